"""Trackio holds the same curve as metrics.jsonl, and a run that goes on keeps its identity."""

import json
import os
import subprocess
import sys

import pytest
from conftest import TINY

READ = """
import json
from trackio.sqlite_storage import SQLiteStorage
runs = SQLiteStorage.get_runs("yupana")
print(json.dumps({"runs": runs, "logs": SQLiteStorage.get_logs("yupana", runs[0])}, default=str))
"""


@pytest.mark.slow
def test_trackio_holds_the_same_curve_and_goes_on_with_it(yupana, corpus, tmp_path):
    pytest.importorskip("trackio")
    env = {**os.environ, "TRACKIO_DIR": str(tmp_path / "trackio"), "HF_HUB_OFFLINE": "1"}
    command = ["train", "7m", "--run", tmp_path / "run", *TINY, f"--data.corpus={corpus}", "--log.trackio=true"]
    done = yupana(*command, "--train.steps=3", "--optim.schedule=constant", "--json", env=env)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["step"] == 3  # its greeting is not in the way
    again = ["train", "--run", tmp_path / "run", "--resume", "--train.steps=5"]
    assert yupana(*again, env=env).returncode == 0
    read = subprocess.run([sys.executable, "-c", READ], env=env, capture_output=True, text=True, check=False)
    assert read.returncode == 0, read.stderr
    found = json.loads(read.stdout.splitlines()[-1])
    assert len(found["runs"]) == 1
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    for name in ("loss", "val_loss"):
        wanted = {line["step"]: line[name] for line in lines if name in line}
        seen = {row["step"]: row[name] for row in found["logs"] if name in row}
        assert seen == pytest.approx(wanted)
