"""The commands from end to end, as a user types them, on a run small enough to train in seconds."""

import json
import math
import re

import pytest
from conftest import TINY

pytestmark = pytest.mark.slow

SETTINGS = ["--train.steps=12", "--checkpoint.every=5", "--log.eval_every=5"]


@pytest.fixture(scope="module")
def run(tmp_path_factory, corpus):
    """A finished run, trained through the command line with every output switched on."""
    import subprocess
    import sys

    path = tmp_path_factory.mktemp("runs") / "tiny"
    outputs = ["--log.tensorboard=true", "--log.wandb=true", "--checkpoint.export=true"]
    command = ["train", "7m", "--run", path, *TINY, *SETTINGS, *outputs, f"--data.corpus={corpus}"]
    done = subprocess.run(
        [sys.executable, "-m", "yupana", *map(str, command)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    (path / "stdout").write_text(done.stdout)
    (path / "stderr").write_text(done.stderr)
    return path


def test_training_shows_the_curve_the_table_and_a_sample(run):
    shown = (run / "stdout").read_text()
    for label in ("validation loss, first", "validation loss, last", "MFU (palm)", "MFU (exact)", "peak memory"):
        assert label in shown
    assert f"Report: {run / 'report.html'}" in shown
    assert (run / "sample.txt").read_text() in shown
    progress = (run / "stderr").read_text()
    assert "validation loss" in progress
    assert "left" in progress


def test_page_shows_what_the_run_holds(run):
    page = (run / "report.html").read_text()
    last = _metrics(run)[-1]
    assert f"{last['val_loss']:.4f}" in page
    assert f'{last["val_bpb"]:.7g}' in page  # the curves
    assert (run / "report.png").read_bytes().startswith(b"\x89PNG")
    assert not re.search(r"(src|href)=.?https?:|url\(http", page)  # self-contained


def test_trackers_hold_the_same_curve(run):
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    events = accumulator.EventAccumulator(str(run / "tensorboard"))
    events.Reload()
    wanted = {m["step"]: m["loss"] for m in _metrics(run) if "loss" in m}
    found = {e.step: e.value for e in events.Scalars("loss")}
    assert found.keys() == wanted.keys()
    for step, loss in wanted.items():
        assert found[step] == pytest.approx(loss, rel=1e-6)
    offline = list((run / "wandb").glob("offline-run-*"))
    assert len(offline) == 1
    assert list(offline[0].glob("*.wandb"))


def test_exported_folder_loads_in_transformers(run):
    transformers = pytest.importorskip("transformers")
    model = transformers.AutoModelForCausalLM.from_pretrained(run / "export")
    tokenizer = transformers.AutoTokenizer.from_pretrained(run / "export")
    assert sum(p.numel() for p in model.parameters()) == json.loads((run / "env.json").read_text())["parameters"]
    assert tokenizer.decode(tokenizer("def näher")["input_ids"], skip_special_tokens=True) == "def näher"


def test_sample_is_the_prompt_and_more_and_the_same_again(yupana, run):
    call = ["sample", run, "--prompt", "import ", "--tokens", 20, "--seed", 3, "--json"]
    first, second = yupana(*call), yupana(*call)
    assert first.returncode == 0, first.stderr
    text = json.loads(first.stdout)["text"]
    assert text.startswith("import ")
    assert len(text) > len("import ")
    assert first.stdout == second.stdout


def test_report_of_several_runs_side_by_side(yupana, run):
    done = yupana("report", run, run, "--json")
    assert done.returncode == 0, done.stderr
    figures = json.loads(done.stdout)["runs"]
    assert len(figures) == 2
    assert figures[0]["steps"] == 12
    assert math.isclose(figures[0]["flops"], figures[0]["tokens"] * _env(run)["flops_per_token"]["exact"])
    assert "tiny" in yupana("report", run, run).stdout


def test_export_and_import_and_going_on_from_there(yupana, run, corpus, tmp_path):
    done = yupana("export", run, "--out", tmp_path / "out", "--dtype", "float32", "--checkpoint", "best", "--json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["parameters"] == _env(run)["parameters"]
    done = yupana("import", tmp_path / "out", "--run", tmp_path / "imported", "--json")
    assert done.returncode == 0, done.stderr
    settings = [s for s in TINY if not s.startswith("--model")]
    done = yupana(
        *["train", "--run", tmp_path / "imported", "--resume", f"--data.corpus={corpus}", "--train.steps=3"],
        *["--json", *settings],
    )
    assert done.returncode == 0, done.stderr
    first = _metrics(tmp_path / "imported")[0]
    best = min(m["val_loss"] for m in _metrics(run) if "val_loss" in m)
    assert first["val_loss"] == pytest.approx(best, abs=0.02)  # the imported weights, not fresh ones


def test_a_mixture_of_two_corpora(yupana, corpus, text_folder, tmp_path):
    from yupana.corpus.prepare import prepare

    other = tmp_path / "other"
    prepare([str(text_folder / "heapq.py.txt"), str(text_folder / "bisect.py.txt")], other, "bytes", val_fraction=0.1)
    file = tmp_path / "mixture.yaml"
    file.write_text(f"data:\n  corpus:\n    {corpus}: 3\n    {other}: 1\n")
    done = yupana("train", "7m", "--config", file, "--run", tmp_path / "run", *TINY, "--train.steps=3", "--json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["step"] == 3
    assert [c["weight"] for c in _env(tmp_path / "run")["corpora"]] == [0.75, 0.25]


def test_counts_of_the_reference_model(yupana):
    done = yupana("flops", "count", "llama3.2-1b", "--seq_len", 4096, "--json")
    counted = json.loads(done.stdout)
    assert counted["parameters"] == 1_235_814_400
    matmul = 1_235_814_400 - 33 * 2048  # everything but the norms; the tied embedding is the head
    assert counted["flops_per_token"]["palm"] == 6 * matmul + 12 * 16 * 2048 * 4096


def test_every_setting_is_in_the_help(yupana):
    shown = yupana("train", "--help").stdout
    from yupana.config import settings

    assert "--resume" in shown
    for key, _, _ in settings():
        assert key in shown


def _env(run):
    return json.loads((run / "env.json").read_text())


def _metrics(run):
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
