"""Texts to tokens: the fast ways give the ids of the tokenizer itself, in the same order, whatever the text."""

import importlib.util

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from yupana.corpus import encode, tokenizers
from yupana.corpus.encode import Encoder

STRINGS = st.text(st.characters(exclude_categories=("Cs",)), max_size=200) | st.lists(
    st.sampled_from(["Word", " ", "  ", "\n", "\r\n", "\t", "'ll", "'S", "12", "3456", "é", "日本", "नमस्ते", "👩‍👩‍👧",
                     "\ufffd", "\0", "<|eot_id|>", "()", "?!", "\u3000", "\u2028", "\u0301", "ſ", "K"]), max_size=30
).map("".join)  # fmt: skip


@pytest.fixture(scope="module")
def llama3():
    pytest.importorskip("tiktoken")
    if importlib.util.find_spec("llama_models") is None:
        pytest.skip("llama-models is not installed")
    return tokenizers.load("llama3")


@pytest.fixture(scope="module")
def encoder(llama3):
    with Encoder("llama3", llama3, np.dtype("<u4")) as made:
        yield made


@pytest.fixture(scope="module")
def metas():
    """The tokenizer of Llama 3's authors, in their own class."""
    return pytest.importorskip("llama_models.llama3.tokenizer").Tokenizer.get_instance()


def encoded(encoder, texts):
    found = list(encoder.stream(iter(texts)))
    assert [text for text, _ in found] == list(texts)
    return [tokens.tolist() for _, tokens in found]


@settings(max_examples=60, deadline=None)
@given(st.lists(STRINGS, max_size=40), st.sampled_from([1, 50, 1 << 20]))
def test_bytes_are_the_tokenizers_ids(texts, group):
    tokenizer = tokenizers.load("bytes")
    before, encode.GROUP = encode.GROUP, group
    try:
        with Encoder("bytes", tokenizer, np.dtype("<u2")) as encoder:
            assert encoded(encoder, texts) == [list(text.encode()) for text in texts]
    finally:
        encode.GROUP = before


@settings(max_examples=200, deadline=None)
@given(texts=st.lists(STRINGS, min_size=1, max_size=20))
def test_llama3_ids_are_those_of_its_authors(encoder, metas, texts):
    """`python benchmarks/corpus.py same` does it a million times."""
    expected = [metas.encode(text, bos=False, eos=False) for text in texts]
    assert encoder.fast is not None
    assert encoded(encoder, texts) == expected
    assert [ids.tolist() for ids in encoder._by_library(texts)] == expected


def test_llama3_ids_are_the_same_by_either_library(llama3, encoder, monkeypatch):
    """Also of texts that are kept from tiktoken: long runs of white space, or of letters without any."""
    long = ["a" * 25_000, "x" + " " * 25_000 + "y", "\n" * 21_000, "12345" * 5000]
    long += [f"what texts are joined by {encode.SEPARATOR} in one", encode.SEPARATOR]
    texts = ["", "word " * 9000, "", "in pieces, and more " * 90_000, *long, "", "last"]
    asked = []
    library = encoder._by_library
    monkeypatch.setattr(encoder, "_by_library", lambda texts: asked.extend(texts) or library(texts))
    found = encoded(encoder, texts)
    assert found == [llama3.encode(text, add_special_tokens=False).ids for text in texts]
    assert sorted(asked) == sorted(long)


def test_a_folder_with_llama3s_tokenizer_goes_through_tiktoken_too(llama3, tmp_path):
    (tmp_path / "tokenizer.json").write_bytes(tokenizers.canonical(llama3))
    with Encoder(str(tmp_path), tokenizers.load(str(tmp_path)), np.dtype("<u4")) as encoder:
        assert encoder.fast is not None
        assert encoded(encoder, ["It's naïve 日本"]) == [llama3.encode("It's naïve 日本", add_special_tokens=False).ids]


@pytest.mark.parametrize("part", ["ignore_merges", "merge", "added", "pattern"])
def test_tokenizers_that_are_not_tiktokens_are_told_apart(part):
    """One whose merges are all there is tiktoken's; change anything and it is not."""
    vocabulary = {chr(byte): byte for byte in range(33, 127)} | {"ab": 127, "bc": 128, "abc": 129}
    names = {character: number for number, character in enumerate(vocabulary)}
    merges = [("a", "b"), ("b", "c"), ("a", "bc"), ("ab", "c")]
    as_tiktoken = made_of(names, merges)
    assert tokenizers.ranks(as_tiktoken) == {token.encode(): rank for token, rank in names.items()}
    other = {
        "ignore_merges": lambda: made_of(names, merges, ignore_merges=False),
        "merge": lambda: made_of(names, merges[:3]),
        "added": lambda: made_of(names, merges, added=["word"]),
        "pattern": lambda: made_of(names, merges, words=False),
    }[part]()
    assert tokenizers.ranks(other) is None


def made_of(vocabulary, merges, ignore_merges=True, added=(), words=True):
    from tokenizers import Tokenizer, models, pre_tokenizers

    tokenizer = tokenizers._llama3_words(Tokenizer(models.BPE(vocabulary, merges, ignore_merges=ignore_merges)))
    if not words:
        tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.add_tokens(list(added))
    return tokenizer


@settings(max_examples=300, deadline=None)
@given(st.text(alphabet="ab \n", max_size=60), st.integers(0, 60), st.sampled_from(["ab", " ", " \n"]), st.integers(8, 30))
def test_every_long_run_is_seen(text, place, kind, length):
    before, encode.RUN = encode.RUN, 4
    try:
        run = (kind * length)[:length]
        assert not encode._ordinary(text[:place] + run + text[place:])
    finally:
        encode.RUN = before
