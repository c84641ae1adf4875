"""What packing costs, against packing done token by token."""

import json
from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from yupana.corpus.packing import compare, pack
from yupana.errors import UserError

LENGTHS = st.lists(st.integers(1, 60), min_size=1, max_size=40)


@settings(max_examples=150, deadline=None)
@given(LENGTHS, st.integers(2, 24), st.data())
def test_figures_agree_with_packing_token_by_token(lengths, seq_len, data):
    overlap = data.draw(st.integers(0, seq_len - 1))
    stream, best_fit, windows = compare(lengths, seq_len, overlap)
    tokens = [(number, at) for number, length in enumerate(lengths) for at in range(length)]
    rows = [tokens[begin : begin + seq_len] for begin in range(0, len(tokens), seq_len)]
    check(stream, rows, lengths, seq_len)

    windowed = []
    for number, length in enumerate(lengths):
        for begin in range(0, length, seq_len - overlap):
            if begin + seq_len <= length:
                windowed.append([(number, begin + at) for at in range(seq_len)])
    check(windows, windowed, lengths, seq_len)

    rows, rest = [], []
    for number, length in enumerate(lengths):
        own = [(number, at) for at in range(length)]
        rows += [own[begin : begin + seq_len] for begin in range(0, length - length % seq_len, seq_len)]
        rest += [own[length - length % seq_len :]] if length % seq_len else []
    rows += [[t for piece in group for t in rest[piece]] for group in pack(np.array([len(r) for r in rest], int), seq_len)]
    check(best_fit, rows, lengths, seq_len)
    assert best_fit["lost"] == stream["lost"] == 0
    assert best_fit["needlessly_cut"] == 0


def check(found, rows, lengths, seq_len):
    """Everything that `found` says, counted from the sequences themselves."""
    total = sum(lengths)
    seen = Counter(token for row in rows for token in row)
    at_home = Counter()
    for row in rows:
        at_home.update(number for number, count in Counter(number for number, _ in row).items() if count == lengths[number])
    cut = {number for number in range(len(lengths)) if at_home[number] != 1}
    assert all(len(row) <= seq_len for row in rows)
    assert found["sequences"] == len(rows)
    filled = sum(map(len, rows))
    assert found["padding"] == pytest.approx(1 - filled / (len(rows) * seq_len) if rows else 0, abs=1e-12)
    assert found["cut"] == pytest.approx(len(cut) / len(lengths))
    assert found["needlessly_cut"] == pytest.approx(sum(lengths[n] <= seq_len for n in cut) / len(lengths))
    assert found["lost"] == pytest.approx(1 - len(seen) / total, abs=1e-12)
    assert found["twice"] == pytest.approx((filled - len(seen)) / total, abs=1e-12)


@settings(max_examples=100, deadline=None)
@given(st.lists(st.integers(1, 20), max_size=60))
def test_best_fit_is_the_slow_best_fit(lengths):
    """Every piece, longest first, into the fullest sequence that has room: found by looking at all of them."""
    groups = []
    for length in sorted(lengths, reverse=True):
        roomy = [group for group in groups if sum(group) + length <= 20]
        if roomy:
            max(roomy, key=sum).append(length)
        else:
            groups.append([length])
    found = [[lengths[number] for number in group] for group in pack(np.array(lengths, dtype=int), 20)]
    assert sorted(map(sum, found)) == sorted(map(sum, groups))
    assert Counter(length for group in found for length in group) == Counter(lengths)


def test_command(yupana, corpus):
    done = yupana("corpus", "packing", corpus, "--seq_len", "256", "--json")
    result = json.loads(done.stdout)
    assert [row["method"] for row in result["methods"]] == ["stream", "best-fit", "windows, 32 overlapping"]
    assert result["documents"] >= 5
    assert all(row["lost"] == 0 for row in result["methods"][:2])
    assert "best-fit" in yupana("corpus", "packing", corpus, "--seq_len", "256").stdout
    refused = yupana("corpus", "packing", corpus, "--seq_len", "256", "--overlap", "256")
    assert refused.returncode == 2
    assert "overlap" in refused.stderr


def test_no_documents():
    with pytest.raises(UserError, match="needs documents"):
        compare([], 8)
