"""benchmarks/gpu.sh, stage by stage, on a CPU with a small model: no GPU minute is lost to a typo in it."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import TINY

ROOT = Path(__file__).parents[1]
SMALL = [s for s in TINY if s.split("=")[0] not in ("--data.seq_len", "--train.global_batch", "--optim.warmup_steps")]


def stage(tmp_path, corpus, *arguments, **more):
    environment = {
        **os.environ, "PYTHON": sys.executable, "MODEL": "7m", "BATCH": "8", "STEPS": "4", "OUT": str(tmp_path / "out"),
        "EXTRA": " ".join([*SMALL, f"--data.corpus={corpus}", "--train.tokens=null", "--train.steps=4"]), **more,
    }  # fmt: skip
    command = ["bash", str(ROOT / "benchmarks" / "gpu.sh"), *arguments]
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=False)


@pytest.mark.slow
def test_every_stage_of_the_gpu_script_runs(tmp_path, corpus):
    import shutil

    shutil.rmtree(ROOT / "runs" / "gpu", ignore_errors=True)
    done = stage(tmp_path, corpus, "ladder", "32", FIRST="2", RUNGS="4")
    assert "ladder 32: done" in done.stdout, done.stderr
    ladder = json.loads((tmp_path / "out" / "ladder-32.json").read_text())
    assert len(ladder["rungs"]) == 4
    done = stage(tmp_path, corpus, "best", "32")
    assert "best 32: done" in done.stdout, done.stderr
    fall = json.loads((tmp_path / "out" / "waterfall-32.json").read_text())
    assert fall["step_seconds"] > 0
    assert {p.suffix for p in (tmp_path / "out").iterdir()} == {".json", ".jsonl", ".png", ".yaml"}
    shutil.rmtree(ROOT / "runs" / "gpu", ignore_errors=True)


def test_an_unknown_stage_is_named(tmp_path, corpus):
    done = stage(tmp_path, corpus, "lader")
    assert done.returncode == 2
    assert "no stage is called lader" in done.stderr
