"""Texts to tokens: the fast ways give the ids of the tokenizer itself, in the same order, whatever the text."""

import importlib.util

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from yupana.corpus import encode, tokenizers
from yupana.corpus.encode import Encoder

needs_llama3 = pytest.mark.skipif(
    importlib.util.find_spec("llama_models") is None, reason="llama-models is not installed"
)
TEXTS = st.lists(st.text(max_size=200), min_size=1, max_size=6)


def encoded(encoder, groups):
    return [(texts, [tokens.tolist() for tokens in found]) for texts, found in encoder.groups(groups)]


@settings(max_examples=60, deadline=None)
@given(st.lists(TEXTS, max_size=4))
def test_bytes_are_the_tokenizers_ids(groups):
    tokenizer = tokenizers.load("bytes")
    with Encoder("bytes", tokenizer, np.dtype("<u2")) as encoder:
        found = encoded(encoder, groups)
    assert found == [(texts, [tokenizer.encode(t, add_special_tokens=False).ids for t in texts]) for texts in groups]


@needs_llama3
def test_llama3_ids_are_the_same_by_either_library(monkeypatch):
    """Also of texts that are kept from tiktoken: long runs of white space, or of letters without any."""
    pytest.importorskip("tiktoken")
    tokenizer = tokenizers.load("llama3")
    plain = ["", " ", "a b", "<|end_of_text|> é 日本語 👩‍👩‍👧‍👦\r\n\t x", "word " * 9000]
    long = ["a" * 25_000, "x" + " " * 25_000 + "y", "\n" * 21_000, "12345" * 5000]
    texts = plain + long
    asked = []
    with Encoder("llama3", tokenizer, np.dtype("<u4")) as encoder:
        library = encoder._by_library
        monkeypatch.setattr(encoder, "_by_library", lambda text: asked.append(text) or library(text))
        ((_, found),) = encoded(encoder, [texts])
    assert found == [tokenizer.encode(text, add_special_tokens=False).ids for text in texts]
    assert sorted(asked) == sorted(long)


@settings(max_examples=300, deadline=None)
@given(st.text(alphabet="ab \n", max_size=60), st.integers(0, 60), st.sampled_from(["ab", " ", " \n"]), st.integers(8, 30))
def test_every_long_run_is_seen(text, place, kind, length):
    before, encode.RUN = encode.RUN, 4
    try:
        run = (kind * length)[:length]
        assert not encode._ordinary(text[:place] + run + text[place:])
    finally:
        encode.RUN = before
