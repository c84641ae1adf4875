"""Ranks that are slow, that hang, that are asked to stop, that are killed: the others say so, end, and lose nothing."""

import subprocess
import sys
import time
from pathlib import Path

import pytest
from conftest import TINY
from killed_ranks import children, trial

from yupana.report.read import read_run
from yupana.report.text import slowest_rank
from yupana.run import open_run
from yupana.train import checkpoint


@pytest.mark.slow
def test_sigterm_to_the_launcher_saves_once_and_leaves_no_process(tmp_path, corpus):
    command = [sys.executable, "-m", "yupana", "train", "--run", str(tmp_path / "run"), *TINY, "--parallel.fsdp=2"]
    command += [f"--data.corpus={corpus}", "--train.steps=100000", "--checkpoint.every=100000"]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    metrics = tmp_path / "run" / "metrics.jsonl"
    while process.poll() is None and not (metrics.is_file() and '"loss"' in metrics.read_text()):
        time.sleep(0.02)
    ranks = children(process.pid)
    assert len(ranks) == 2
    process.terminate()
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 1
    assert errors.count("saved at step") == 1
    assert len(checkpoint.complete(open_run(tmp_path / "run"))) == 1
    assert not any(Path(f"/proc/{pid}").exists() for pid in ranks)


@pytest.mark.slow
def test_a_rank_that_is_slow_and_then_hangs_is_named(tmp_path, corpus, yupana):
    script = tmp_path / "hanging.py"
    script.write_text(HANGING)
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", "--", script]
    command += ["train", "--run", str(tmp_path / "run"), *TINY, f"--data.corpus={corpus}", "--parallel.timeout=6"]
    command += ["--log.eval_every=2", "--log.eval_tokens=256"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 1
    said = [line for line in done.stderr.splitlines() if line.startswith("yupana: no step for 6 s since step 3 of")]
    assert len(said) == 1, done.stderr
    assert "rank 1 hangs in hanging.py" in said[0] or "rank 1 hangs in loop.py" in said[0]
    assert "rank 0" not in said[0]
    assert "rank 0: waits for the others" in done.stderr
    slow = slowest_rank(read_run(open_run(tmp_path / "run")))
    assert (slow["rank"], slow["ranks"]) == (1, 2)
    assert slow["behind"] > 1
    assert "rank 1 is slow" in done.stderr
    assert "rank 0 is slow" not in done.stderr
    shown = yupana("report", tmp_path / "run").stdout
    assert f"1 of 0–1, {slow['behind']:.1%} behind the others" in " ".join(shown.split())


HANGING = """
import os, sys, time
from yupana.model import llama
attend = llama.attend
def slow(*inputs):
    time.sleep(0.1)
    return attend(*inputs)
if os.environ["RANK"] == "1":
    llama.attend = slow
from yupana.train import loop
from yupana.cli import main
whole, taken = loop.forward_backward, iter(range(1000000))
def hanging(session, parts):
    while next(taken) >= 3 and os.environ["RANK"] == "1":
        time.sleep(0.1)
    return whole(session, parts)
loop.forward_backward = hanging
sys.exit(main(sys.argv[1:]))
"""


@pytest.mark.slow
def test_killed_ranks_are_started_again_and_lose_nothing(tmp_path):
    """SIGKILL to a random rank at a random moment of each life, 20 times over one run."""
    found = trial(tmp_path, kills=20, ranks=2, steps=200)
    expected = {"kills": 20, "exit_code": 0, "same_bit_for_bit": True, "each_step_once": True, "orphans": 0}
    assert {name: found[name] for name in expected} == expected
