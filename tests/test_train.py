"""Training: the loss falls, the same run gives the same numbers, and a killed one goes on as if never stopped."""

import json
import os
import random
import signal
import subprocess
import sys
import time

import pytest
import torch
from conftest import TINY
from killed_ranks import SLOWED, wait_for_life

from yupana import config as settings
from yupana.errors import UserError
from yupana.run import RunDirectory, open_run
from yupana.train import checkpoint
from yupana.train.begin import begin
from yupana.train.interrupt import Interrupted

EXACT = ("step", "loss", "grad_norm", "lr", "val_loss", "val_bpb")


def train(path, corpus, *more, resume=False):
    run = RunDirectory(path)
    return begin(run, None, None, [*TINY, f"--data.corpus={corpus}", *more], resume=resume)


def curve(path):
    """Everything of metrics.jsonl that must be the same bit for bit: all but times, rates and memory."""
    return [{k: record[k] for k in EXACT if k in record} for record in open_run(path).metrics()]


@pytest.mark.parametrize("precision", ["fp32", "bf16-autocast", "bf16", "bf16-lean"])
def test_loss_falls_in_every_precision(tmp_path, corpus, precision):
    last = train(tmp_path / "run", corpus, "--train.steps=40", "--optim.lr=1e-2", f"--train.precision={precision}")
    first = open_run(tmp_path / "run").metrics()[0]
    assert first["val_loss"] == pytest.approx(5.55, abs=0.2)  # ln 258: an untrained model knows nothing
    assert last["val_loss"] < first["val_loss"] - 1.5


def test_precisions_follow_fp32(tmp_path, corpus):
    losses = {}
    for precision in ("fp32", "bf16-autocast", "bf16", "bf16-lean"):
        more = ("--train.steps=60", "--optim.lr=5e-3", f"--train.precision={precision}")
        losses[precision] = train(tmp_path / precision, corpus, *more)["val_loss"]
    for precision, tolerance in (("bf16-autocast", 0.02), ("bf16", 0.02), ("bf16-lean", 0.06)):
        assert losses[precision] == pytest.approx(losses["fp32"], abs=tolerance), losses


@pytest.mark.parametrize("packing", ["stream", "documents"])
def test_two_runs_are_bit_identical(tmp_path, corpus, packing):
    for name in ("a", "b"):
        train(tmp_path / name, corpus, "--train.steps=12", "--log.eval_every=5", f"--data.packing={packing}")
    assert curve(tmp_path / "a") == curve(tmp_path / "b")
    assert len(curve(tmp_path / "a")) == 12 + 4


@pytest.mark.parametrize(("precision", "kept"), [("fp32", 1), ("fp32", 0), ("bf16", 1), ("bf16-lean", 1)])
def test_resume_is_bit_identical(tmp_path, corpus, precision, kept):
    more = (f"--train.precision={precision}", "--checkpoint.every=4", "--log.eval_every=4", "--train.steps=12")
    train(tmp_path / "whole", corpus, *more)
    train(tmp_path / "parts", corpus, *more)
    for folder in checkpoint.complete(open_run(tmp_path / "parts"))[kept:]:  # as if killed before it was complete
        (folder / "manifest.json").unlink()
    assert len(checkpoint.complete(open_run(tmp_path / "parts"))) == kept
    train(tmp_path / "parts", corpus, *more, resume=True)
    assert curve(tmp_path / "parts") == curve(tmp_path / "whole")


def test_micro_batches_give_the_same_step(tmp_path, corpus):
    for micro in (8, 2):
        train(
            tmp_path / str(micro), corpus, "--train.steps=6", f"--train.micro_batch={micro}", "--train.precision=fp32"
        )
    for one, other in zip(curve(tmp_path / "8"), curve(tmp_path / "2"), strict=True):
        for key in ("loss", "grad_norm", "val_loss"):
            if key in one:
                assert one[key] == pytest.approx(other[key], rel=1e-5)


@pytest.mark.slow
def test_killed_at_random_moments_and_resumed_equals_never_stopped(tmp_path, corpus):
    """SIGKILL at 20 random moments, saving included: the metrics and the last weights are the uninterrupted run's."""
    more = [*TINY, f"--data.corpus={corpus}", "--train.steps=60", "--checkpoint.every=3", "--log.eval_every=10"]
    train(tmp_path / "whole", corpus, *more[len(TINY) + 1 :])
    command = [sys.executable, "-c", SLOWED, "train", "--run", str(tmp_path / "killed"), *more]
    rng = random.Random(5)
    kills = 0
    for _ in range(200):
        resume = ["--resume"] if (tmp_path / "killed" / "run.yaml").is_file() else []
        process = subprocess.Popen([*command, *resume], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
        if kills < 20:
            wait_for_life(tmp_path / "killed" / "metrics.jsonl", process)
            time.sleep(rng.random() * 0.5)
            if process.poll() is None:
                process.kill()
                kills += 1
        _, errors = process.communicate()
        if process.returncode == 0:
            break
        assert process.returncode == -signal.SIGKILL, errors.decode()
    assert kills == 20
    assert curve(tmp_path / "killed") == curve(tmp_path / "whole")
    models = [checkpoint.load_model(checkpoint.choose(open_run(tmp_path / n))) for n in ("whole", "killed")]
    for (name, one), other in zip(models[0].named_parameters(), models[1].parameters(), strict=True):
        assert torch.equal(one, other), name


def test_sigterm_saves_and_says_how_to_resume(tmp_path, corpus):
    command = [sys.executable, "-m", "yupana", "train", "--run", str(tmp_path / "run"), *TINY]
    command += [f"--data.corpus={corpus}", "--train.steps=100000", "--checkpoint.every=100000"]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    wait_for_life(tmp_path / "run" / "metrics.jsonl", process)
    time.sleep(0.5)
    process.terminate()
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 1
    assert "saved at step" in errors
    assert "--resume" in errors
    assert checkpoint.newest_good(open_run(tmp_path / "run"))[0] is not None


@pytest.mark.parametrize("damage", ["torn", "altered", "missing", "manifest"])
def test_damaged_checkpoint_is_refused_by_name_and_the_one_before_used(tmp_path, corpus, damage):
    more = ("--train.steps=8", "--checkpoint.every=4", "--log.eval_every=4")
    train(tmp_path / "run", corpus, *more)
    run = open_run(tmp_path / "run")
    expected = curve(tmp_path / "run")
    newest = run.checkpoints / "step_8"
    victim = next(newest.glob("*.safetensors"))
    if damage == "torn":
        os.truncate(victim, victim.stat().st_size - 100)
    elif damage == "altered":
        content = bytearray(victim.read_bytes())
        content[-5] ^= 1
        victim.write_bytes(content)
    elif damage == "missing":
        victim.unlink()
    else:
        (newest / "manifest.json").write_text("{")
    good, refused = checkpoint.newest_good(run)
    assert good == run.checkpoints / "step_4"
    assert "step_8" in refused[0]
    train(tmp_path / "run", corpus, *more, resume=True)
    assert curve(tmp_path / "run") == expected


def test_keeps_the_newest_and_the_best(tmp_path, corpus):
    train(
        tmp_path / "run", corpus, "--train.steps=10", "--checkpoint.every=2", "--checkpoint.keep=2", "--log.every=5"
    )
    run = open_run(tmp_path / "run")
    steps = [int(folder.name[5:]) for folder in checkpoint.complete(run)]
    assert steps[-2:] == [8, 10]
    scores = {r["step"]: r["val_loss"] for r in run.metrics() if "val_loss" in r and r["step"] > 0}
    assert checkpoint.best(run).name == f"step_{min(scores, key=scores.get)}"
    assert [r["step"] for r in run.metrics() if "loss" in r] == [1, 2, 4, 5, 6, 8, 10]


def test_non_finite_loss_names_step_documents_and_checkpoint(tmp_path, corpus, monkeypatch):
    from yupana.train import loop

    whole, taken = loop.forward_backward, iter(range(10))

    def poisoned(session, parts):
        loss = whole(session, parts)
        return loss * float("nan") if next(taken) == 6 else loss

    monkeypatch.setattr(loop, "forward_backward", poisoned)
    with pytest.raises(UserError, match=r"step 7 is not finite.*documents \d+.*step_4"):
        train(tmp_path / "run", corpus, "--train.steps=10", "--checkpoint.every=4", "--log.every=5")
    assert [f.name for f in checkpoint.complete(open_run(tmp_path / "run"))] == ["step_4"]


def test_disk_full_while_saving_keeps_the_checkpoint_before(tmp_path, corpus, monkeypatch):
    train(tmp_path / "run", corpus, "--train.steps=4", "--checkpoint.every=4")
    import errno

    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(checkpoint, "_write_tensors", full)
    with pytest.raises(UserError, match="disk is full"):
        train(tmp_path / "run", corpus, "--train.steps=8", "--checkpoint.every=4", resume=True)
    run = open_run(tmp_path / "run")
    assert [f.name for f in run.checkpoints.iterdir()] == ["step_4"]
    assert checkpoint.problem(run.checkpoints / "step_4") is None


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ("--data.seq_len=16", "data.seq_len"),
        ("--model.d_ff=64", "architecture"),
        ("--train.global_batch=4", "train.global_batch"),
        ("--data.seed=9", "data.seed"),
        ("--data.packing=documents", "data.packing"),
        ("--train.precision=bf16", "train.precision"),
    ],
)
def test_resuming_as_another_run_is_refused(tmp_path, corpus, change, named):
    train(tmp_path / "run", corpus, "--train.steps=2", "--train.precision=fp32")
    before = (tmp_path / "run" / "metrics.jsonl").read_bytes()
    with pytest.raises(UserError, match=named):
        train(tmp_path / "run", corpus, "--train.steps=4", "--train.precision=fp32", change, resume=True)
    assert (tmp_path / "run" / "metrics.jsonl").read_bytes() == before


def test_resuming_with_another_corpus_or_tokenizer_is_refused(tmp_path, corpus, text_folder):
    from yupana.corpus.prepare import prepare

    train(tmp_path / "run", corpus, "--train.steps=2")
    prepare([str(text_folder / "argparse.py.txt")], tmp_path / "other", "bytes")
    with pytest.raises(UserError, match="corpus"):
        train(tmp_path / "run", tmp_path / "other", "--train.steps=4", resume=True)
    prepare([str(text_folder)], tmp_path / "bpe", "bpe:290", val_fraction=0.1)
    with pytest.raises(UserError, match=r"corpus|tokenizer"):
        train(tmp_path / "run", tmp_path / "bpe", "--train.steps=4", resume=True)


def test_a_longer_run_may_go_on(tmp_path, corpus):
    train(tmp_path / "run", corpus, "--train.steps=4", "--optim.schedule=constant")
    last = train(tmp_path / "run", corpus, "--train.steps=6", "--optim.schedule=constant", resume=True)
    assert last["step"] == 6
    assert settings.load(file=tmp_path / "run" / "run.yaml").train.steps == 6


def test_run_in_use_and_nothing_to_resume(tmp_path, corpus, yupana):
    with pytest.raises(UserError, match="nothing to resume"):
        train(tmp_path / "run", corpus, "--train.steps=2", resume=True)
    assert not (tmp_path / "run").exists()
    train(tmp_path / "run", corpus, "--train.steps=2")
    with pytest.raises(UserError, match="already holds a run"):
        train(tmp_path / "run", corpus, "--train.steps=2")
    holder = RunDirectory(tmp_path / "run")
    holder.lock()
    try:
        done = yupana("train", "--run", tmp_path / "run", "--resume")
    finally:
        holder.unlock()
    assert done.returncode == 2
    assert f"process {os.getpid()}" in done.stderr
    assert "Traceback" not in done.stderr


def test_interruption_in_process(tmp_path, corpus, monkeypatch):
    from yupana.train import loop

    whole, taken = loop.forward_backward, iter(range(10))

    def interrupting(session, parts):
        if next(taken) == 3:
            signal.raise_signal(signal.SIGINT)
        return whole(session, parts)

    monkeypatch.setattr(loop, "forward_backward", interrupting)
    with pytest.raises(Interrupted, match="saved at step 4"):
        train(tmp_path / "run", corpus, "--train.steps=10")
    assert checkpoint.complete(open_run(tmp_path / "run"))[-1].name == "step_4"


def test_compiled_run_equals_eager_and_itself(tmp_path, corpus):
    more = ("--train.steps=5", "--train.precision=fp32")
    for name, compile_ in (("eager", "off"), ("a", "block"), ("b", "block")):
        train(tmp_path / name, corpus, *more, f"--train.compile={compile_}")
    assert curve(tmp_path / "a") == curve(tmp_path / "b")
    for one, other in zip(curve(tmp_path / "eager"), curve(tmp_path / "a"), strict=True):
        assert one.get("loss", 0) == pytest.approx(other.get("loss", 0), rel=1e-5)


def test_run_directory_is_complete(tmp_path, corpus):
    train(tmp_path / "run", corpus, "--train.steps=3", "--log.tensorboard=true")
    env = json.loads((tmp_path / "run" / "env.json").read_text())
    assert {"torch", "device", "git_revision", "corpora", "flops_per_token", "peaks"} <= set(env)
    metrics = open_run(tmp_path / "run").metrics()
    wanted = {"step", "tokens", "loss", "lr", "grad_norm", "tokens_per_second", "mfu", "memory_bytes", "seconds"}
    assert wanted <= set(metrics[1])
    assert {"val_loss", "val_bpb"} <= set(metrics[0])
    assert metrics[-1]["tokens"] == 3 * 8 * 32
    assert list((tmp_path / "run" / "tensorboard").iterdir())
    again = settings.load(file=tmp_path / "run" / "run.yaml")
    assert again.train.steps == 3
