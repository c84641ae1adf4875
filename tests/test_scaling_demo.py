"""The demonstration's script, all its stages, with models that train in seconds; and predictions on a run's page."""

import csv
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import yaml

from yupana import config
from yupana.report.page import write_report
from yupana.run import RunDirectory
from yupana.scaling import laws, runs
from yupana.scaling.predict import predict

ROOT = Path(__file__).parents[1]
STEPS = 20_000


@pytest.mark.slow
def test_demonstration_goes_through_its_stages(tmp_path, corpus):
    sweep = {
        "out": str(tmp_path / "sweep"), "corpus": str(corpus), "budgets": [1e9, 4e9], "sizes": 3, "span": 2, "seq_len": 32,
        "head_dim": 8, "aspect": 16, "device": "cpu", "eval_tokens": 2048, "lr_law": "deepseek", "jobs": 2,
        "evaluations": 1, "checkpoints": 0,
    }  # fmt: skip
    (tmp_path / "sweep.yaml").write_text(yaml.safe_dump(sweep))
    variables = {
        "SWEEP": tmp_path / "sweep.yaml", "TARGET": tmp_path / "target.yaml", "RUNS": tmp_path / "sweep" / "runs",
        "RUN": tmp_path / "target", "OUT": tmp_path / "out", "BELOW": "", "PYTHON": sys.executable,
        "XDG_CACHE_HOME": tmp_path / "cache",
    }  # fmt: skip

    def stage(name, **more):
        environment = os.environ | {key: str(value) for key, value in (variables | more).items()}
        done = subprocess.run(
            [ROOT / "benchmarks" / "scaling_demo.sh", name], env=environment, capture_output=True, text=True, check=False
        )
        return done.returncode, done.stdout + done.stderr

    code, told = stage("sweep")
    assert code == 0, told
    with open(tmp_path / "out" / "runs.csv") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 6
    for row in rows:
        assert float(row["flops"]) == 6 * float(row["n"]) * float(row["tokens"])
        assert 1 < float(row["loss"]) < 6
    assert not list((tmp_path / "sweep" / "runs").glob("*/checkpoints/step_*"))
    assert stage("nothing")[0] == 2

    target = config.load(file=max((tmp_path / "sweep" / "configs").glob("4e09-*.yaml")))
    config.save(target, tmp_path / "target.yaml")
    code, told = stage("predict")
    assert code == 0, told
    prediction = json.loads((tmp_path / "out" / "prediction.json").read_text())
    assert prediction["curve"][-1]["step"] == target.total_steps
    code, told = stage("train")
    assert code == 2
    assert "is not committed" in told
    for name in ("train", "compare"):
        code, told = stage(name, UNCOMMITTED="1")
        assert code == 0, told
    assert json.loads((tmp_path / "out" / "comparison.json").read_text())["finished"]
    assert json.loads((tmp_path / "target" / "prediction.json").read_text()) == prediction
    with open(tmp_path / "out" / "curves.csv") as file:
        assert {row["name"] for row in csv.DictReader(file)} == {*(row["name"] for row in rows), "target"}


@pytest.mark.parametrize(("factor", "words"), [(1.002, "never left its alarm band"), (1.8, "left its alarm band at step")])
def test_the_page_of_a_run_says_whether_it_kept_to_its_prediction(tmp_path, factor, words):
    pytest.importorskip("matplotlib")
    made_up_run(tmp_path / "run", factor)
    page = write_report(RunDirectory(tmp_path / "run")).read_text()
    assert words in page
    assert "predicted (80 %; lighter: alarm)" in page
    (tmp_path / "run" / "prediction.json").unlink()
    assert "alarm band" not in write_report(RunDirectory(tmp_path / "run")).read_text()


@pytest.mark.parametrize(
    ("content", "words"), [("{}", "is no prediction"), ("half a fi", "is no prediction"), (None, "another run")]
)
def test_a_prediction_that_does_not_fit_is_named_and_not_drawn(tmp_path, content, words):
    pytest.importorskip("matplotlib")
    prediction = made_up_run(tmp_path / "run", 1.0)
    other = json.dumps(prediction | {"curve": prediction["curve"][:-5]}) if content is None else content
    (tmp_path / "run" / "prediction.json").write_text(other)
    page = write_report(RunDirectory(tmp_path / "run")).read_text()
    assert "No prediction is drawn" in page
    assert words in page
    assert "predicted (80 %" not in page


def made_up_run(path, factor):
    """A run whose losses are `factor` times those predicted for it, with its prediction inside; the prediction."""
    settings = config.load(preset="7m", overrides=[f"--train.steps={STEPS}"])
    tokens = STEPS * settings.train.global_batch * settings.data.seq_len
    rates = runs.schedule_rates(settings.optim, STEPS)
    prediction = predict(laws.BESIROGLU, float(settings.model.parameters), float(tokens), rates)
    path.mkdir()
    config.save(settings, path / "run.yaml")
    (path / "env.json").write_text(json.dumps({"parameters": settings.model.parameters}))
    (path / "prediction.json").write_text(json.dumps(prediction))
    run = RunDirectory(path)
    told = [row["step"] for row in prediction["curve"]], [row["loss"] for row in prediction["curve"]]
    rates_and_speed = {"grad_norm": 1.0, "tokens_per_second": 1e5, "mfu": 0.4, "mfu_exact": 0.3, "mfu_measured": 0.4}
    for step in range(500, STEPS + 1, 500):
        loss = factor * float(np.interp(step, *told))
        about = {"step": step, "tokens": tokens * step // STEPS, "seconds": step / 10}
        run.log({**about, "loss": loss, "lr": rates[step - 1], "memory_bytes": 1e9, **rates_and_speed})
        run.log({**about, "val_loss": loss, "val_bpb": loss})
    return prediction
