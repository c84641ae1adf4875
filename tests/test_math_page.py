"""docs/math.md: its figures recomputed, its links and the names it mentions looked up."""

import re
from pathlib import Path

import pytest

from yupana.anatomy.cases import CASES
from yupana.config import load
from yupana.flops.by_name import operations_of
from yupana.flops.count import flops_per_token

PAGE = Path(__file__).parents[1] / "docs" / "math.md"
TEXT = PAGE.read_text()
ROWS = re.findall(r"^\| (\S+) \| (\d+) \| (\S+) \| (\S+) \| (\S+) \| (\S+) % \|$", TEXT, re.MULTILINE)


def test_the_table_is_found():
    assert len(ROWS) == 6


@pytest.mark.parametrize("row", ROWS)
def test_its_figures_are_those_of_flops_count(row):
    shape, seq_len = load(row[0]).model, int(row[1])
    counts = flops_per_token(shape, seq_len)
    products = 6 * shape.matmul_parameters
    for shown, exact in zip(row[2:5], (products, counts["palm"], counts["exact"]), strict=True):
        assert f"{exact / 1e9:.4g}" == f"{float(shown):.4g}"
    assert f"{100 * (1 - products / counts['exact']):.1f}" == row[5]


def test_figures_in_its_sentences():
    shape = load("llama3.2-1b").model
    assert f"{shape.matmul_parameters:,}".replace(",", " ") in TEXT
    step = [*operations_of("llama", shape, 1, 2048), *operations_of("adamw", shape, 1, 2048)]
    assert sum(o.elementwise for o in step) / sum(o.flops for o in step) == pytest.approx(0.0025, rel=0.02)
    assert sum(o.bytes for o in step if not o.flops) / sum(o.bytes for o in step) == pytest.approx(0.75, abs=0.01)
    muon = operations_of("muon", shape, 1, 2048)[0].flops / flops_per_token(shape, 2048)["exact"]
    assert muon / 524_288 == pytest.approx(0.011, rel=0.03)
    assert muon / 2048 == pytest.approx(2.86, rel=0.01)
    assert shape.matmul_parameters / (shape.n_layers * shape.q_width) == pytest.approx(37_700, rel=0.001)


def test_its_links_lead_somewhere():
    headings = {re.sub(r"[^\w\- ]", "", line.lstrip("# ")).strip().lower().replace(" ", "-")
                for line in TEXT.splitlines() if line.startswith("#")}  # fmt: skip
    for name, target in re.findall(r"\[([^\]]+)\]\((?!http)([^)]+)\)", TEXT):
        if target.startswith("#"):
            assert target[1:] in headings, target
            continue
        file = PAGE.parent / target
        assert file.exists(), target
        if name.startswith("`test_"):
            assert f"def {name.strip('`')}(" in file.read_text(), name


def test_every_operation_is_on_it():
    for name in CASES:
        assert f"anatomy/{name}.py" in TEXT, name
