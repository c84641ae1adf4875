"""`yupana anatomy`: what it prints, for people and for programs, and what it refuses."""

import json

import pytest

from yupana.anatomy import swiglu
from yupana.anatomy.cases import CASES
from yupana.cli import main
from yupana.config import load
from yupana.flops import bound
from yupana.flops.bound import Machine
from yupana.flops.count import flops_per_token
from yupana.flops.operations import Pass, Product


@pytest.fixture(autouse=True)
def known_machine(monkeypatch):
    """Rates that do not depend on how busy this machine is."""
    machine = Machine("a machine", "float32", 4e11, 1e10, "made up for the test")
    monkeypatch.setattr(bound, "this_machine", lambda: machine)
    return machine


def asked(capsys, *arguments):
    """Exit code and what was printed."""
    code = main(["anatomy", *arguments])
    return code, capsys.readouterr()


@pytest.mark.parametrize("op", CASES)
def test_every_operation_as_json(op, capsys):
    code, printed = asked(capsys, op, "--json", "--model", "7m", "--seq_len", "64")
    assert code == 0
    result = json.loads(printed.out)
    assert result["flops"] == sum(part["flops"] for part in result["parts"])
    assert result["bytes"] == sum(part["bytes"] for part in result["parts"]) > 0
    assert {check["name"] for check in result["checks"]} >= {"forward"}
    for check in result["checks"]:
        assert set(check) == {"name", "relative_error", "passed"}
        assert check["passed"]
        assert check["relative_error"] < 1e-6


def test_an_operation_for_people(capsys):
    code, printed = asked(capsys, "rmsnorm")
    assert code == 0
    for word in ("1910.07467", "dx = r (g - n · mean(g ⊙ n))", "x [1, 2048, 2048]", "agrees", "memory", "finite difference"):
        assert word in printed.out


def test_a_wrong_backward_is_seen_in_the_exit_code(capsys, monkeypatch):
    monkeypatch.setattr(swiglu, "backward", lambda dy, gate, up: (dy * up, dy * gate))
    code, printed = asked(capsys, "swiglu")
    assert code == 1
    assert "DIFFERS" in printed.out


def test_the_whole_step(capsys, tmp_path, monkeypatch):
    monkeypatch.setenv("COLUMNS", "120")  # on a slow machine the times are long, and names are cut at 80
    picture = tmp_path / "step.png"
    code, printed = asked(capsys, "--json", "--batch", "3", "--seq_len", "512", "--save", str(picture))
    assert code == 0
    result = json.loads(printed.out)
    assert result["flops"] == 3 * 512 * flops_per_token(load("llama3.2-1b").model, 512)["exact"]
    for share in ("flops_share", "bytes_share", "seconds_share"):
        assert sum(row[share] for row in result["operations"]) == pytest.approx(1.0)
    assert picture.read_bytes().startswith(b"\x89PNG")
    code, printed = asked(capsys)
    assert "w_gate_up" in printed.out
    assert "adamw" in printed.out


def test_time_is_the_longer_of_products_and_traffic(known_machine):
    products = Pass(bytes=10**10, products=(Product(10**4, 10**4, 10**4),))  # 2e12 FLOPs: 5 s; traffic: 1 s
    assert known_machine.seconds(products) == pytest.approx(5.0)
    assert known_machine.seconds(Pass(bytes=3 * 10**10)) == pytest.approx(3.0)
    assert known_machine.balance == pytest.approx(40.0)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["atention"], ["atention", "did you mean 'attention'"]),
        (["linear", "--model", "llama3.2-1bb"], ["llama3.2-1bb", "did you mean 'llama3.2-1b'"]),
        (["linear", "--dtype", "bfloat16"], ["float64", "bfloat16", "0.004", "1e-10"]),
        (["linear", "--dtype", "float16"], ["float64", "float16"]),
        (["linear", "--dtype", "float46"], ["float46", "did you mean 'float64'"]),
        (["--dtype", "float32"], ["--dtype", "name the operation"]),
        (["linear", "--batch", "0"], ["--batch", "at least 1"]),
        (["--seq_len", "-3"], ["--seq_len", "-3"]),
        (["--save", "step.gif"], ["--save", ".png", "step.gif"]),
        (["--save", "nowhere/step.png"], ["nowhere", "does not exist"]),
        (["block", "--save", "step.png"], ["--save", "leave out"]),
    ],
)
def test_what_it_refuses(arguments, words, capsys):
    code, printed = asked(capsys, *arguments)
    assert code == 2
    assert len(printed.err.splitlines()) == 1
    for word in words:
        assert word in printed.err


def test_bandwidth_is_measured():
    assert 1e8 < bound.memory_bandwidth("cpu", seconds=0.05) < 1e13
