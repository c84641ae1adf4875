"""The known corpora: the table is consistent with itself, with the papers' totals, and with the page."""

import json
import re
from pathlib import Path

import pytest

from yupana.corpus.known import KNOWN, named
from yupana.errors import UserError
from yupana.report.corpora_plot import draw_mixtures, kind_of
from yupana.report.corpora_text import amount, size

PAGE = Path(__file__).parents[1] / "docs" / "corpora.md"
BY_NAME = {entry.name: entry for entry in KNOWN}


def test_every_entry_has_a_source_and_a_use():
    assert len(BY_NAME) == len(KNOWN) >= 17
    for entry in KNOWN:
        assert entry.source
        assert entry.good_for
        assert entry.kind == ("model" if entry.name.startswith("llama") else "corpus")
        if entry.kind == "corpus":
            assert entry.licence, entry.name
            assert re.fullmatch(r"[\w.-]+/[\w.-]+(:[\w.-]+)?", entry.hub), entry.name


@pytest.mark.parametrize("entry", [entry for entry in KNOWN if entry.mixture], ids=lambda entry: entry.name)
def test_mixtures_sum_to_one_and_every_part_has_a_colour(entry):
    assert sum(part.weight for part in entry.mixture) == pytest.approx(1, abs=2e-3)
    assert all(kind_of(part.name) for part in entry.mixture)


def test_the_piles_weights_are_its_sizes_times_its_epochs():
    """The paper's weights, sizes and epochs are three columns; any slip in one of 66 figures breaks this."""
    parts = BY_NAME["pile"].mixture
    effective = [part.bytes * part.epochs for part in parts]
    assert sum(effective) / (1 << 30) == pytest.approx(1254.20, abs=0.2)
    assert sum(part.bytes for part in parts) == pytest.approx(BY_NAME["pile"].bytes, rel=1e-3)
    for part, share in zip(parts, effective, strict=True):
        assert share / sum(effective) == pytest.approx(part.weight, abs=1e-4), part.name


def test_published_totals_follow_from_the_parts():
    for name, total in (("redpajama1", 1.21e12), ("dolma", 3.059e12)):
        assert sum(part.tokens for part in BY_NAME[name].mixture) == pytest.approx(total, rel=1e-3)
        assert BY_NAME[name].tokens == pytest.approx(total, rel=1e-3)
    assert sum(part.weight for part in BY_NAME["llama1"].mixture[:2]) == pytest.approx(0.82)  # "82 % web"


def test_the_page_says_what_the_table_says():
    rows = {row.split("|")[1].strip(" `"): row.split("|") for row in PAGE.read_text().splitlines() if row.startswith("| `")}
    assert set(rows) == set(BY_NAME)
    for name, row in rows.items():
        entry = BY_NAME[name]
        shown = amount(entry.tokens) if entry.tokens else size(entry.bytes)
        assert row[2].strip().replace("–", "—") == shown, name
        assert row[6].strip(" `").replace("–", "") == (entry.hub or ""), name
        assert set(re.findall(r"\d{4}\.\d{5}", row[7])) <= set(re.findall(r"\d{4}\.\d{5}", entry.source)), name


def test_command(yupana, tmp_path):
    done = yupana("corpus", "list", "--json", "--save", tmp_path / "m.svg")
    listed = json.loads(done.stdout)["corpora"]
    assert [entry["name"] for entry in listed] == [entry.name for entry in KNOWN]
    assert listed[0]["mixture"][0] == {"name": "CommonCrawl", "weight": 0.67, "epochs": 1.1, "tokens": None, "bytes": 3.3e12}
    assert "CommonCrawl" in (tmp_path / "m.svg").read_text()
    done = yupana("corpus", "list", "fineweb")
    assert "15 T (GPT-2)" in done.stdout
    done = yupana("corpus", "list", "finweb")
    assert done.returncode == 2
    assert "did you mean 'fineweb'" in done.stderr


def test_unknown_names_and_an_empty_picture():
    with pytest.raises(UserError, match=r"no corpus 'piles'.*did you mean 'pile'"):
        named(["piles"])
    assert len(draw_mixtures([]).axes[0].patches) == 0
