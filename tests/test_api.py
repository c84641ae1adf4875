"""`import yupana`: free of cost, and the same answers as the commands."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import TINY

import yupana as package
from yupana.errors import UserError

EXAMPLES = Path(__file__).parents[1] / "examples"


def test_importing_costs_nothing_and_lists_everything():
    code = "import sys, yupana; dir(yupana); heavy = {'torch', 'numpy', 'rich', 'jsonargparse', 'yaml'} & set(sys.modules)\n"
    code += "assert not heavy, heavy\nassert 'pretrain' in dir(yupana)\nyupana.open_run\nassert 'torch' not in sys.modules"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_every_name_is_there_and_no_other():
    for name in package.__all__:
        if name != "YupanaCallback":
            assert getattr(package, name)
    with pytest.raises(AttributeError, match="has no attribute 'pretrian'"):
        package.pretrian


def test_settings_are_those_of_the_command_line():
    from yupana import config

    changes = {"optim.lr": 1e-3, "optim.betas": [0.9, 0.99], "data.corpus": "x", "log.wandb": True}
    changed = package.settings("7m", changes=changes)
    assert changed == config.load(
        "7m", overrides=["--optim.lr=1e-3", "--optim.betas=[0.9,0.99]", "--data.corpus=x", "--log.wandb=true"]
    )
    with pytest.raises(UserError, match=r"unknown setting 'optim.learning_rate'"):
        package.settings("7m", changes={"optim.learning_rate": 1})


def test_count_is_the_commands(yupana):
    counted = json.loads(yupana("flops", "count", "190m", "--seq_len", 512, "--json").stdout)
    ours = package.count("190m", 512)
    assert ours == {name: counted[name] for name in ours}
    assert package.count(package.settings("190m"), 512) == ours


def test_plan_is_the_commands(yupana):
    call = ["scaling", "plan", "--hardware", "a40", "--count", 2, "--hours", 3, "--mfu", "0.4", "--json"]
    told = json.loads(yupana(*call).stdout)
    assert json.loads(json.dumps(package.plan(hardware="a40", count=2, hours=3, mfu=0.4))) == told
    with pytest.raises(UserError, match=r"plan has no option 'hour' \(did you mean 'hours'\?\)"):
        package.plan(hardware="a40", hour=3)


@pytest.mark.slow
def test_steps_one_by_one_are_the_training(corpus, tmp_path):
    settings = package.settings("7m", changes=dict(s[2:].split("=") for s in TINY) | {
        "data.corpus": str(corpus), "train.steps": 6, "checkpoint.every": 2,
    })  # fmt: skip
    whole = package.pretrain(settings, tmp_path / "whole")
    seen = []
    for line in package.steps(settings, tmp_path / "parts"):
        seen.append(line["loss"])
        if line["step"] == 3:
            break
    for line in package.steps(settings, tmp_path / "parts", resume=True):  # from the checkpoint of step 2
        seen.append(line["loss"])
    losses = [line["loss"] for line in whole.metrics if "loss" in line]
    assert seen == [*losses[:3], *losses[2:]]
    with pytest.raises(UserError, match="already holds a run"):
        next(iter(package.steps(settings, tmp_path / "parts")))


@pytest.mark.slow
def test_a_run_as_frame_figures_and_picture(corpus, tmp_path):
    pandas = pytest.importorskip("pandas")
    settings = package.settings("7m", changes=dict(s[2:].split("=") for s in TINY) | {
        "data.corpus": str(corpus), "train.steps": 5, "log.eval_every": 2,
    })  # fmt: skip
    run = package.pretrain(settings, tmp_path / "run")
    frame = run.frame()
    assert isinstance(frame, pandas.DataFrame)
    assert list(frame.index) == [0, 1, 2, 3, 4, 5]
    assert frame["val_loss"].notna().tolist() == [True, False, True, False, True, True]
    for line in run.metrics:
        for name in ("loss", "val_loss", "mfu"):
            if name in line:
                assert frame.loc[line["step"], name] == line[name]
    assert run.config == settings
    assert run.summary()["val_loss"] == frame["val_loss"].iloc[-1]
    assert len(run.plot().axes) == 5
    assert (run.export(tmp_path / "out") / "config.json").is_file()
    assert run.sample("a", tokens=3).startswith("a")


@pytest.mark.slow
@pytest.mark.parametrize("names", [["train_and_look", "tune"], ["steps"], ["scaling"], ["trainer_callback"]])
def test_examples_run_from_an_empty_folder(names, tmp_path):
    """tune goes on with what train_and_look made."""
    needs = {"tune": "trl", "trainer_callback": "transformers"}
    for name in names:
        if name in needs:
            pytest.importorskip(needs[name])
        env = {**os.environ, "PYTHONPATH": str(Path(package.__file__).parents[1])}
        done = subprocess.run(
            [sys.executable, EXAMPLES / f"{name}.py"], cwd=tmp_path, env=env, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stderr[-2000:]
        shown = done.stdout
    wanted = {"tune": "merged model:", "steps": "enough", "scaling": "4 hours of one H100", "trainer_callback": "MFU"}
    assert wanted[names[-1]] in shown


def test_every_example_is_tested():
    found = {path.stem for path in EXAMPLES.glob("*.py")}
    assert found == {"train_and_look", "tune", "steps", "scaling", "trainer_callback"}
