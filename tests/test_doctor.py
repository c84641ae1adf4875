"""`yupana doctor` says what it tried, and no secret."""

import json
import os

import pytest


@pytest.mark.slow
def test_every_section_and_no_secret(yupana, tmp_path):
    (tmp_path / "home").mkdir()
    secret = "hf_" + "s3cret" * 5
    env = {**os.environ, "HF_TOKEN": secret, "WANDB_API_KEY": "w" * 40, "HOME": str(tmp_path / "home")}
    done = yupana("doctor", "--json", "--folder", tmp_path, env=env)
    found = json.loads(done.stdout)
    assert {"versions", "machine", "works", "disk", "logins"} <= found.keys()
    assert done.returncode == (1 if found["sick"] else 0)
    by_name = {check["name"]: check for checks in found.values() if isinstance(checks, list) for check in checks if checks
               and isinstance(check, dict)}  # fmt: skip
    assert by_name["fp32 products"]["ok"]
    assert by_name["attention: math"]["ok"]
    import torch

    assert by_name["torch"]["told"] == torch.__version__
    assert by_name["Hugging Face hub"]["told"] == "logged in"
    assert by_name["Weights & Biases"]["told"] == "logged in"
    assert secret not in done.stdout + done.stderr
    assert "wwww" not in done.stdout + done.stderr


def test_a_failure_is_told_not_raised():
    from yupana import doctor

    def broken():
        raise RuntimeError("no kernel\nand a long story")

    assert doctor._tried("x", broken) == {"name": "x", "ok": False, "told": "no kernel"}
    assert doctor._tried("x", broken, optional=True)["ok"] is None
    assert doctor._installed("no-such-package-here", "pip install it")["told"] == "not installed: pip install it"
