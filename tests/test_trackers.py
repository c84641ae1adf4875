"""Trackers beside the run directory: one that fails stops nothing, one that is missing says how to install it."""

import sys

import pytest
from conftest import TINY

from yupana import config
from yupana.errors import UserError
from yupana.run import RunDirectory
from yupana.train.begin import begin
from yupana.train.trackers import Trackers


def losses(path, corpus, *more):
    begin(RunDirectory(path), "7m", None, [*TINY, "--train.steps=4", f"--data.corpus={corpus}", *more])
    return [line["loss"] for line in RunDirectory(path).metrics() if "loss" in line]


@pytest.mark.slow
def test_a_tracker_that_fails_is_left_out_and_training_goes_on(corpus, tmp_path, monkeypatch, capsys):
    alone = losses(tmp_path / "alone", corpus)
    seen = []

    def failing(self):
        def send(record):
            seen.append(record["step"])
            if record["step"] == 2:
                raise ConnectionError("the server is gone")

        def close():
            raise OSError("nothing to close")

        self.logs["TensorBoard"] = send
        self.closes.append(close)

    def refusing(self):
        raise RuntimeError("no such project")

    monkeypatch.setattr(Trackers, "_open_tensorboard", failing)
    monkeypatch.setattr(Trackers, "_open_trackio", refusing)
    assert losses(tmp_path / "run", corpus, "--log.tensorboard=true", "--log.trackio=true") == alone
    told = capsys.readouterr().err
    assert "Trackio failed and is left out of this run: no such project" in told
    assert told.count("TensorBoard failed and is switched off for this run: the server is gone") == 1
    assert "a tracker could not be closed: nothing to close" in told
    assert max(seen) == 2


@pytest.mark.parametrize(
    ("setting", "module"),
    [("log.tensorboard", "torch.utils.tensorboard"), ("log.wandb", "wandb"), ("log.trackio", "trackio")],
)
def test_one_that_is_not_installed_says_how_to_install_it(setting, module, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, module, None)
    wanted = config.load("7m", overrides=[f"--{setting}=true"])
    with (
        pytest.raises(UserError, match=rf"{setting} needs .*: pip install 'yupana\[track\]'"),
        Trackers(wanted, RunDirectory(tmp_path)),
    ):
        pass


@pytest.mark.slow
def test_a_run_that_goes_on_is_the_same_run_in_wandb(corpus, tmp_path, monkeypatch):
    pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    losses(tmp_path / "run", corpus, "--log.wandb=true", "--optim.schedule=constant")
    name = (tmp_path / "run" / "wandb_id").read_text()
    begin(RunDirectory(tmp_path / "run"), None, None, ["--train.steps=6"], resume=True)
    folders = [path.name for path in (tmp_path / "run" / "wandb").glob("offline-run-*")]
    assert {folder.rsplit("-", 1)[1] for folder in folders} == {name}
