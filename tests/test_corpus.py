"""Sources, tokenizers, token shards, batches: nothing lost, nothing repeated, everything the same every time."""

import gzip
import importlib.util
import itertools
import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from yupana.corpus import batches, sources, tokenizers
from yupana.corpus.batches import Batches, validation_batches
from yupana.corpus.permutation import permuted
from yupana.corpus.prepare import prepare
from yupana.corpus.shards import open_corpus, verify
from yupana.errors import UserError
from yupana.files import cache_folder

QUICK = settings(max_examples=40, deadline=None)

VARIED = [
    "plain words, and numbers 1234567 3.14159;  two  spaces\n\n\n\ttabs\r\nand carriage returns\r\n",
    "naïve café Zürich Ελληνικά Русский עברית العربية हिन्दी ไทย 日本語 한국어 𝔘𝔫𝔦𝔠𝔬𝔡𝔢",
    "👩‍👩‍👧‍👦 🇵🇪 e\u0301 \u200b\u00a0\u2028 \ufffd \x01\x7f",
    "<|begin_of_text|> and <|end_of_text|> and <|eot_id|> spelt out are text",
    "def f(x):\n    return [y**2 for y in x if y!=3]  # it's, we'll, I'D, THEY'RE\n" * 3,
    " ",
    "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa",
]

def write_lines(path, texts):
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    return path


def some_texts(count, seed=0):
    words = ["the", "run", "of", "rivers", "over", "stone", "keeps", "its", "own", "count", "tells", "é"]
    generator = random.Random(seed)
    return [f"{n} " + " ".join(generator.choices(words, k=generator.randrange(1, 60))) for n in range(count)]


def content(folder):
    return {path.name: path.read_bytes() for path in sorted(Path(folder).iterdir())}


def split_texts(folder, split):
    """Every document of a split, decoded, by walking over BOS … EOS."""
    corpus = open_corpus(folder)
    tokenizer = tokenizers.from_file(corpus.tokenizer_file)
    stream = corpus.split(split)
    if not stream.n_tokens:
        return []
    starts = [*stream.document_starts(0, stream.n_tokens), stream.n_tokens]
    texts = []
    for begin, end in itertools.pairwise(starts):
        ids = stream.read(int(begin), int(end))
        assert ids[0] == corpus.bos_id
        assert ids[-1] == corpus.eos_id
        texts.append(tokenizer.decode(ids[1:-1].tolist(), skip_special_tokens=False))
    return texts


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    """60 short documents over several shards of bytes."""
    folder = tmp_path_factory.mktemp("small")
    prepare([str(write_lines(folder / "a.jsonl", some_texts(60)))], folder / "out", "bytes", 0.2, shard_tokens=1500)
    return open_corpus(folder / "out")


@pytest.fixture(scope="module")
def other(tmp_path_factory):
    folder = tmp_path_factory.mktemp("other")
    prepare([str(write_lines(folder / "b.jsonl", some_texts(30, 1)))], folder / "out", "bytes", 0.2)
    return open_corpus(folder / "out")


# The order of the data


@QUICK
@given(st.integers(1, 3000), st.integers(0, 2**40), st.integers(0, 50))
def test_permutation_is_a_bijection(n, seed, epoch):
    assert sorted(permuted(np.arange(n), n, seed, epoch)) == list(range(n))


def test_permutation_changes_with_the_epoch_and_needs_no_whole():
    n = 10**12
    few = np.array([0, 5, n - 1])
    assert (permuted(few, n, 1, 0) == [permuted(np.array([x]), n, 1, 0)[0] for x in few]).all()
    assert (permuted(few, n, 1, 0) != permuted(few, n, 1, 1)).any()
    order = permuted(np.arange(4096), 4096, 0)
    assert abs(np.corrcoef(np.arange(4096), order)[0, 1]) < 0.05


@pytest.mark.parametrize("seq_len", [7, 64])
def test_an_epoch_reads_every_window_once_and_all_epochs_every_token(small, seq_len):
    stream = small.split("train")
    count = (stream.n_tokens - 1) // seq_len
    loader = Batches(small, seq_len, global_batch=1, seed=3)
    ever = np.zeros(stream.n_tokens, dtype=bool)
    for epoch in range(12):
        predicted = np.zeros(stream.n_tokens, dtype=int)
        for step in range(epoch * count, (epoch + 1) * count):
            batch = loader.batch(step)
            (((_, start, stop),),) = batch.spans
            predicted[start + 1 : stop] += 1
            assert (batch.tokens[0] == stream.read(start, stop - 1)).all()
            assert (batch.targets[0] == stream.read(start + 1, stop)).all()
        assert predicted.max() == 1, "a token was predicted twice in an epoch"
        assert predicted.sum() == count * seq_len
        ever |= predicted.astype(bool)
    remainder = (stream.n_tokens - 1) % seq_len
    assert (~ever).sum() <= max(1, remainder // 2), "the windows' offset should rotate over the epochs"
    assert loader.epochs_seen(count * 3)[small] == 3


@QUICK
@given(st.lists(st.integers(0, 400), min_size=1, max_size=4), st.integers(0, 12), st.integers(0, 12), st.integers(0, 9))
def test_a_batch_is_a_pure_function_of_the_step(small, steps, low, high, seed):
    make = lambda: Batches(small, 32, 12, seed, "documents")  # noqa: E731
    loader = make()
    for step in [*steps, *reversed(steps)]:
        whole, again = loader.batch(step), make().batch(step)
        for name in ("tokens", "targets", "document_ids"):
            assert (getattr(whole, name) == getattr(again, name)).all()
        if low < high:
            for rows in (range(low, high), slice(low, high), range(low, high, 3)):
                part = loader.batch(step, rows)
                chosen = slice(rows.start, rows.stop, rows.step)
                assert (part.tokens == whole.tokens[chosen]).all()
                assert (part.targets == whole.targets[chosen]).all()
                assert (part.document_ids == whole.document_ids[chosen]).all()
                assert part.documents == whole.documents[chosen]


def test_masking_the_targets_of_a_single_row_leaves_its_tokens(small):
    loader = Batches(small, 200, 1, 0, "documents")
    assert all((loader.batch(step).tokens >= 0).all() for step in range(20))


def test_seeds_give_different_orders(small):
    assert (Batches(small, 32, 12, 0).batch(0).tokens != Batches(small, 32, 12, 1).batch(0).tokens).any()


@pytest.mark.parametrize("seq_len", [16, 200])
def test_document_masks_agree_with_a_slow_loop(small, seq_len):
    stream = small.split("train")
    owner = np.repeat(-1, stream.n_tokens)
    number = -1
    for position, token in enumerate(stream.read(0, stream.n_tokens)):
        number += int(token == small.bos_id)
        owner[position] = number
    assert number + 1 == stream.n_documents
    assert [stream.document_of(p) for p in range(stream.n_tokens)] == owner.tolist()
    for step in range(6):
        batch = Batches(small, seq_len, 5, 0, "documents").batch(step)
        plain = Batches(small, seq_len, 5, 0, "stream").batch(step)
        assert plain.document_ids is None
        assert batch.document_ids.dtype == np.int32
        for row, ((_, start, _),) in enumerate(batch.spans):
            for t in range(seq_len):
                here, following = owner[start + t], owner[start + t + 1]
                assert batch.document_ids[row, t] == here - owner[start]
                assert batch.targets[row, t] == (plain.targets[row, t] if here == following else batches.IGNORED)
                assert here in batch.documents[row]


def test_mixtures_hit_their_weights(small, other):
    weights = {small: 3.0, other: 1.0}
    loader = Batches(weights, 32, 100, seed=5)
    drawn = {small.split("train").n_tokens: 0, other.split("train").n_tokens: 0}
    for step in range(100):  # one period of 10 000 sequences
        for ((stream, _, _),) in loader.batch(step).spans:
            drawn[stream.n_tokens] += 1
        if step == 9:  # 1 000 sequences in: near, and shuffled
            assert abs(drawn[small.split("train").n_tokens] - 750) < 60
    assert list(drawn.values()) == [7500, 2500]
    seen = loader.epochs_seen(100)
    for corpus, count in ((small, 7500), (other, 2500)):
        assert seen[corpus] == pytest.approx(count / ((corpus.split("train").n_tokens - 1) // 32))
    turned = Batches(dict(reversed(weights.items())), 32, 100, seed=5)
    assert (turned.batch(7).tokens == loader.batch(7).tokens).all()
    assert (loader.batch(7, range(30, 40)).tokens == loader.batch(7).tokens[30:40]).all()


def test_mixture_epochs_are_whole(small, other):
    """Each source of a mixture goes through all its windows before it begins again."""
    loader = Batches({small: 1.0, other: 2.0}, 64, 50, seed=1)
    size = other.split("train").n_tokens
    starts = [s for step in range(40) for ((stream, s, _),) in loader.batch(step).spans if stream.n_tokens == size]
    count = (size - 1) // 64
    for epoch in range(len(starts) // count):
        assert len(set(starts[epoch * count : (epoch + 1) * count])) == count


def test_validation_is_the_first_windows_in_order(small):
    stream = small.split("val")
    found = list(validation_batches(small, 32, 4, 320))
    assert [len(b.tokens) for b in found] == [4, 4, 2]
    assert (np.concatenate([b.tokens for b in found]).ravel() == stream.read(0, 320)).all()
    (short,) = validation_batches(small, 10**6, 4, 10**6)
    assert short.tokens.shape == (1, stream.n_tokens - 1)


def test_bad_mixtures_and_long_sequences(small, tmp_path):
    with pytest.raises(UserError, match=r"seq_len \(100000\).*has \d+ tokens"):
        Batches(small, 100_000, 4)
    path = write_lines(tmp_path / "a.jsonl", some_texts(30))
    prepare([str(path)], tmp_path / "bpe", "bpe:300", 0.2)
    with pytest.raises(UserError, match="another tokenizer"):
        Batches({small: 1.0, open_corpus(tmp_path / "bpe"): 1.0}, 16, 4)
    prepare([str(write_lines(tmp_path / "b.jsonl", some_texts(9, 4)))], tmp_path / "b", "bytes", 0.2)
    with pytest.raises(UserError, match="weight"):
        Batches({small: 1.0, open_corpus(tmp_path / "b"): 1e-9}, 16, 4)
    with pytest.raises(UserError, match="empty"):
        Batches({}, 16, 4)


def test_batches_import_nothing_heavy():
    code = "import sys, yupana.corpus.batches\n"
    code += "assert not {'torch', 'datasets', 'pyarrow', 'tokenizers', 'zstandard'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


# Shards


def test_splits_hold_every_text_once_and_never_share_one(tmp_path):
    texts = some_texts(80)
    texts += texts[:20]  # duplicates go where their twins are
    result = prepare([str(write_lines(tmp_path / "a.jsonl", texts))], tmp_path / "out", "bytes", 0.3, shard_tokens=2000)
    train, val = split_texts(tmp_path / "out", "train"), split_texts(tmp_path / "out", "val")
    assert sorted(train + val) == sorted(texts)
    assert not set(train) & set(val)
    assert train
    assert val
    assert result["documents"] == 100
    assert result["bytes"] == sum(len(text.encode()) for text in texts)
    assert result["tokens"] == result["bytes"] + 2 * 100
    corpus = open_corpus(tmp_path / "out")
    assert sum(corpus.token_bytes[corpus.split(s).read(0, corpus.split(s).n_tokens)].sum() for s in ("train", "val")) == (
        result["bytes"]
    )
    for name in ("train", "val"):
        assert result["splits"][name]["documents"] == corpus.split(name).n_documents
        assert result["splits"][name]["tokens"] == corpus.split(name).n_tokens


@pytest.mark.parametrize("fraction", [0.0001, 0.01, 0.5, 0.9999])
@pytest.mark.parametrize("count", [2, 3])
def test_two_documents_give_one_to_each_split(tmp_path, count, fraction):
    prepare([str(write_lines(tmp_path / "a.jsonl", some_texts(count)))], tmp_path / "out", "bytes", fraction)
    assert split_texts(tmp_path / "out", "train")
    assert split_texts(tmp_path / "out", "val")


def test_a_finished_corpus_is_kept_and_another_one_refused(tmp_path):
    path = write_lines(tmp_path / "a.jsonl", some_texts(20))
    first = prepare([str(path)], tmp_path / "out", "bytes", 0.1)
    before = content(tmp_path / "out")
    again = prepare([str(path)], tmp_path / "out", "bytes", 0.1)
    assert {**again, "seconds": 0} == {**first, "seconds": 0}
    other = write_lines(tmp_path / "b.jsonl", some_texts(21))
    for source, tokenizer, fraction in ((other, "bytes", 0.1), (path, "bpe:300", 0.1), (path, "bytes", 0.2)):
        with pytest.raises(UserError, match="choose another"):
            prepare([str(source)], tmp_path / "out", tokenizer, val_fraction=fraction)
    assert content(tmp_path / "out") == before
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "note").write_text("mine")
    with pytest.raises(UserError, match="choose another"):
        prepare([str(path)], tmp_path / "full", "bytes")
    assert content(tmp_path / "full") == {"note": b"mine"}


def test_a_changed_source_is_noticed(tmp_path):
    path = write_lines(tmp_path / "a.jsonl", some_texts(20))
    prepare([str(path)], tmp_path / "out", "bytes", 0.1)
    write_lines(path, some_texts(20, 1))
    with pytest.raises(UserError, match="another version of it"):
        prepare([str(path)], tmp_path / "out", "bytes", 0.1)


def test_two_at_once_are_refused_and_the_first_is_not_disturbed(tmp_path):
    fcntl = pytest.importorskip("fcntl")
    work = tmp_path / ".out.preparing"
    work.mkdir()
    (work / "state.json").write_text("the other's")
    lock = os.open(work, os.O_RDONLY)
    fcntl.flock(lock, fcntl.LOCK_EX)
    try:
        with pytest.raises(UserError, match="another process is preparing"):
            prepare([str(write_lines(tmp_path / "a.jsonl", some_texts(9)))], tmp_path / "out", "bytes")
        assert content(work) == {"state.json": b"the other's"}
    finally:
        os.close(lock)


SLOWLY = """
import sys
from yupana.corpus import encode, prepare as preparing
preparing.SAVE_EVERY, encode.LIBRARY_GROUP = 0.03, 20_000
source, out, tokenizer = sys.argv[1:]
print("ready", flush=True)
preparing.prepare([source], out, tokenizer, val_fraction=0.1, shard_tokens=150_000)
"""


def test_killed_at_any_moment_and_continued_gives_the_same_bytes(tmp_path):
    source = write_lines(tmp_path / "a.jsonl", some_texts(12_000))
    call = [sys.executable, "-c", SLOWLY, str(source)]
    began = time.monotonic()
    subprocess.run([*call, str(tmp_path / "whole"), "bpe:400"], check=True, stdout=subprocess.DEVNULL)
    took = time.monotonic() - began
    generator, killed = random.Random(11), 0
    for _ in range(8):
        process = subprocess.Popen([*call, str(tmp_path / "killed"), "bpe:400"], stdout=subprocess.PIPE, text=True)
        process.stdout.readline()
        time.sleep(generator.uniform(0.02, 0.7) * min(took, 4))
        process.send_signal(signal.SIGKILL)
        killed += process.wait() == -signal.SIGKILL
        process.stdout.close()
        if (tmp_path / "killed").exists():
            break
    assert killed
    if (tmp_path / ".killed.preparing").exists():  # as a kill in the middle of a note leaves it
        (tmp_path / ".killed.preparing" / ".state.json.1.tmp").write_text("torn")
    subprocess.run([*call, str(tmp_path / "killed"), "bpe:400"], check=True, stdout=subprocess.DEVNULL)
    assert len(list((tmp_path / "whole").glob("train*.bin"))) > 2
    assert content(tmp_path / "killed") == content(tmp_path / "whole")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.jsonl", "killed", "whole"]


def test_truncated_missing_and_altered_files_are_refused_by_name(tmp_path):
    path = write_lines(tmp_path / "a.jsonl", some_texts(40))
    prepare([str(path)], tmp_path / "out", "bytes", 0.2, shard_tokens=1500)
    names = [name for name in content(tmp_path / "out") if name != "corpus.json"]
    for name in names:
        file = tmp_path / "out" / name
        before = file.read_bytes()
        file.write_bytes(before[:-1])
        with pytest.raises(UserError, match=f"{name}.*truncated|truncated.*{name}"):
            open_corpus(tmp_path / "out")
        file.unlink()
        with pytest.raises(UserError, match=name):
            open_corpus(tmp_path / "out")
        altered = bytearray(before)
        altered[len(altered) // 2] ^= 1
        file.write_bytes(altered)
        with pytest.raises(UserError, match=f"{name}.*altered"):
            verify(open_corpus(tmp_path / "out"))
        file.write_bytes(before)
    verify(open_corpus(tmp_path / "out"))
    with pytest.raises(UserError, match=r"corpus\.json"):
        open_corpus(tmp_path)


def test_full_disk_is_one_sentence_and_a_second_try_goes_on(tmp_path, monkeypatch):
    source = write_lines(tmp_path / "a.jsonl", some_texts(50))
    prepare([str(source)], tmp_path / "whole", "bytes", 0.1)

    def full(_):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with pytest.raises(UserError, match="disk is full"):
            prepare([str(source)], tmp_path / "out", "bytes", 0.1)
    assert not (tmp_path / "out").exists()
    prepare([str(source)], tmp_path / "out", "bytes", 0.1)
    assert content(tmp_path / "out") == content(tmp_path / "whole")


# Sources


def read(*names, field="text"):
    skipped = sources.Skipped()
    found = list(sources.documents(list(names), field, skipped))
    return [text for _, text in found], skipped.counts


@QUICK
@given(st.lists(st.sampled_from(["word " * 300, "x" * 70_000, "short", "", "  ", "é\r", "日本"]), max_size=40))
def test_a_text_file_is_cut_without_losing_a_character(tmp_path_factory, lines):
    path = tmp_path_factory.mktemp("t") / "a.txt"
    whole = "\n".join(["begin", *lines])
    path.write_bytes(whole.encode())
    texts, skipped = read(path)
    kept = "".join(texts)
    assert kept == whole or (skipped and len(kept) <= len(whole))
    assert all(len(text) >= sources.SHORTEST for text in texts[:-1])


def test_every_format_and_compression_gives_the_same_documents(tmp_path):
    texts = some_texts(20)
    zstandard, pyarrow = pytest.importorskip("zstandard"), pytest.importorskip("pyarrow")
    from pyarrow import parquet

    plain = write_lines(tmp_path / "a.jsonl", texts)
    parquet.write_table(pyarrow.table({"text": texts, "n": list(range(20))}), tmp_path / "a.parquet")
    for name in ("a.jsonl", "a.parquet"):
        data = (tmp_path / name).read_bytes()
        (tmp_path / f"{name}.gz").write_bytes(gzip.compress(data))
        frames = [zstandard.compress(part) for part in (data[:100], data[100:])]
        (tmp_path / f"{name}.zst").write_bytes(b"".join(frames))
    for path in sorted(tmp_path.iterdir()):
        assert read(path) == (texts, {}), path.name
    assert read(tmp_path)[0] == texts * 6
    for path in sorted(tmp_path.glob("*.jsonl.*")):
        path.write_bytes(path.read_bytes()[:-5])
        with pytest.raises(UserError, match=f"{path.name} is damaged or cut short"):
            read(path)
    (tmp_path / "a.parquet").write_bytes(b"PAR1 not really")
    with pytest.raises(UserError, match=r"a\.parquet is no Parquet file"):
        read(tmp_path / "a.parquet")
    assert plain.exists()


def test_a_folder_skips_what_it_cannot_read_and_counts_it(tmp_path):
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "b.txt").write_text("second\n\nwhole")
    (tmp_path / "a.txt").write_text("first")
    (tmp_path / "binary.txt").write_bytes(b"\x00\x01\x02")
    (tmp_path / "latin.txt").write_bytes("café".encode("latin-1"))
    (tmp_path / "blank.txt").write_text(" \n")
    (tmp_path / "empty.txt").touch()
    (tmp_path / "picture.png").write_bytes(b"\x89PNG")
    (tmp_path / "code.rs").write_text("fn main() {}")
    (tmp_path / ".hidden.txt").write_text("no")
    lines = ['{"text": "third"}', "{torn", '{"body": 1}', '{"text": null}', '{"text": "\\ud800"}', '{"text": ""}', ""]
    (tmp_path / "z.jsonl").write_text("\n".join(lines))
    texts, skipped = read(tmp_path)
    assert texts == ["first", "fn main() {}", "second\n\nwhole", "third"]
    assert skipped == {
        "binary file": 1,
        "bad encoding": 2,
        "empty document": 2,
        "empty file": 1,
        "not a text, code, JSON lines or Parquet file": 1,
        "malformed JSON line": 1,
        "missing field": 2,
    }


@pytest.mark.parametrize(
    ("name", "data", "message"),
    [
        ("a.txt", b"", "is empty"),
        ("a.txt", b" \n\n ", "holds no documents.*empty document"),
        ("a.txt", b"fine\nthen\x00not", r"is binary, not text \(a zero byte at byte 9, line 2\)"),
        ("a.txt", "fine\ncafé".encode("latin-1"), r"is not UTF-8 \(byte 8, line 2\)"),
        ("a.txt", "café".encode()[:-1], "is not UTF-8"),
        ("a.txt", "café\n".encode() + "café".encode("latin-1"), r"is not UTF-8 \(byte 9, line 2\)"),
        ("a.txt", "café".encode("utf-16"), r"is binary, not text \(a zero byte at byte 3, line 1\)"),
        ("a.jsonl", b'{"body": "x", "id": 1}\n', "line 1 has no field 'text'.*it has body, id"),
        ("a.jsonl", b"[1, 2]\n", "line 1 is a list, not an object"),
        ("a.jsonl", b'{"text": 5}\n', "line 1 has no string in its field 'text'"),
        ("a.json", b'{\n "a": 1\n}\n', "holds no documents.*3 skipped: malformed JSON line, the first at .*line 1"),
        ("a.jsonl.gz", b"not gzip", "damaged or cut short"),
        ("a.jsonl.zst", b"not zstandard", "damaged or cut short"),
    ],
)
def test_a_wrong_file_is_one_sentence_and_nothing_is_written(tmp_path, name, data, message):
    path = tmp_path / name
    path.write_bytes(data)
    with pytest.raises(UserError, match=message) as caught:
        prepare([str(path)], tmp_path / "out", "bytes")
    assert name in str(caught.value)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "out").exists()


def test_missing_sources_and_fields(tmp_path):
    (tmp_path / "notes.txt").write_text("x")
    with pytest.raises(UserError, match=r"does not exist \(did you mean '.*notes\.txt'"):
        read(tmp_path / "note.txt")
    with pytest.raises(UserError, match=r"did you mean 'python'"):
        read("pyhton")
    (tmp_path / "void").mkdir()
    with pytest.raises(UserError, match="is empty"):
        read(tmp_path / "void")
    write_lines(tmp_path / "a.jsonl", ["x"])
    with pytest.raises(UserError, match=r"no field 'txt' .did you mean 'text'"):
        read(tmp_path / "a.jsonl", field="txt")
    with pytest.raises(UserError, match="names no dataset"):
        read("hf:")


def test_an_unreachable_hub_dataset_is_one_sentence(monkeypatch):
    datasets = pytest.importorskip("datasets")

    def unreachable(*_, **__):
        raise ConnectionError("no route\nto host")

    monkeypatch.setattr(datasets, "load_dataset", unreachable)
    with pytest.raises(UserError, match=r"hf:some/where could not be read .no route to host.: check the name") as caught:
        read("hf:some/where")
    assert "\n" not in str(caught.value)
    asked = []
    monkeypatch.setattr(datasets, "load_dataset", lambda *a, **k: asked.append((a, k)) or [{"text": "a"}, {"text": None}])
    assert read("hf:some/where:en") == (["a"], {"missing field": 1})
    assert asked == [(("some/where", "en"), {"split": "train", "streaming": True})]


def test_a_hub_dataset_that_ends_early_or_needs_a_login_is_one_sentence(tmp_path, monkeypatch):
    datasets = pytest.importorskip("datasets")

    def cut_off(*_, **__):
        yield {"text": "first"}
        yield {"text": "second"}
        raise ConnectionResetError("peer closed the connection")

    def gated(name, *_, **__):
        raise datasets.exceptions.DatasetNotFoundError(f"Dataset '{name}' is a gated dataset on the Hub.")

    monkeypatch.setattr(datasets, "load_dataset", cut_off)
    message = "hf:some/where could not be read beyond row 2 .peer closed the connection.: check the name and the network"
    with pytest.raises(UserError, match=message):
        prepare(["hf:some/where"], tmp_path / "out", "bytes")
    monkeypatch.setattr(datasets, "load_dataset", gated)
    with pytest.raises(UserError, match=r"is a gated dataset on the Hub\..: .*log in .hf auth login."):
        prepare(["hf:some/where"], tmp_path / "out", "bytes")
    assert not (tmp_path / "out").exists()


def test_a_file_that_ends_early_gives_what_it_holds_and_is_counted(tmp_path):
    texts = ["".join(random.Random(number).choices("abcdefgh \n", k=20_000)) + "x" for number in range(40)]
    data = "".join(json.dumps({"text": text}) + "\n" for text in texts).encode()
    (tmp_path / "a.jsonl.gz").write_bytes(gzip.compress(data)[:-40_000])
    write_lines(tmp_path / "b.jsonl", ["last"])
    found, skipped = read(tmp_path)
    assert skipped == {"damaged file": 1}
    assert found[-1] == "last"
    assert found[:-1] == texts[: len(found) - 1]
    assert 10 < len(found) < 40


def test_what_is_no_file_is_counted_and_not_waited_for(tmp_path):
    folder, beside = tmp_path / "in", tmp_path / "beside"
    folder.mkdir()
    beside.mkdir()
    (beside / "b.txt").write_text("elsewhere")
    (folder / "a.txt").write_text("here")
    (folder / "gone.txt").symlink_to("nowhere.txt")
    (folder / "file.txt").symlink_to(beside / "b.txt")
    (folder / "linked").symlink_to(beside)
    (folder / "loop").symlink_to(folder)
    os.mkfifo(folder / "pipe.txt")
    assert read(folder) == (["here", "elsewhere"], {"linked folder, broken link, pipe or device": 4})
    assert prepare([str(folder)], tmp_path / "out", "bytes")["skipped"] == read(folder)[1]
    assert sources.total_bytes(folder) == len("here" + "elsewhere")


def test_a_folder_that_may_not_be_read_is_said(tmp_path, monkeypatch):
    (tmp_path / "closed").mkdir()
    (tmp_path / "a.txt").write_text("here")
    listed = os.scandir

    def closed(folder):
        if os.fspath(folder).endswith("closed"):
            raise PermissionError(13, "Permission denied", os.fspath(folder))
        return listed(folder)

    monkeypatch.setattr(os, "scandir", closed)  # to root nothing is closed
    with pytest.raises(UserError, match="closed may not be read: change its permissions"):
        read(tmp_path)


@pytest.mark.parametrize("package", ["pyarrow", "zstandard", "datasets"])
def test_absent_packages_are_named_with_the_extra(tmp_path, monkeypatch, package):
    source = {"pyarrow": "a.parquet", "zstandard": "a.txt.zst", "datasets": "hf:x/y"}[package]
    if package != "datasets":
        (tmp_path / source).write_bytes(b"x")
        source = tmp_path / source
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(UserError, match=rf"needs .*{package}.*pip install 'yupana\[corpus\]'"):
        read(source)


def test_the_python_library_is_a_corpus():
    found = list(sources.documents(["python"]))
    names = [name for name, _ in found]
    assert names == sorted(names)
    assert {"argparse.py", "json/decoder.py", "email/message.py"} <= set(names)
    assert not [name for name in names if "/test" in name or name.startswith(("test", "site-packages"))]
    assert sum(len(text) for _, text in found) > 5_000_000
    assert dict(found)["heapq.py"].startswith('"""Heap queue algorithm')


def test_a_fingerprint_follows_the_content(tmp_path):
    path = tmp_path / "a.txt"
    path.write_text("one")
    before = sources.fingerprint(path)
    os.utime(path, (0, 0))
    assert sources.fingerprint(path) == before
    path.write_text("two")
    assert sources.fingerprint(path) != before


# Tokenizers


@pytest.fixture(scope="module")
def llama3():
    if importlib.util.find_spec("llama_models") is None:
        pytest.skip("llama-models is not installed")
    return tokenizers.load("llama3")


@pytest.fixture(scope="module")
def bpe():
    return tokenizers.load("bpe:600", [Path(random.__file__).read_text()])


@pytest.fixture(params=["bytes", "bpe", "llama3"])
def tokenizer(request):
    return tokenizers.load("bytes") if request.param == "bytes" else request.getfixturevalue(request.param)


def test_tokens_give_the_text_back(tokenizer):
    lengths = tokenizers.token_bytes(tokenizer)
    for text in [*VARIED, "".join(VARIED)]:
        ids = tokenizer.encode(text, add_special_tokens=False).ids
        assert tokenizer.decode(ids, skip_special_tokens=False) == text
        assert lengths[ids].sum() == len(text.encode())


@QUICK
@given(st.text(st.characters(codec="utf-8")))
def test_any_text_comes_back(bpe, text):
    for each in (tokenizers.load("bytes"), bpe):
        assert each.decode(each.encode(text, add_special_tokens=False).ids, skip_special_tokens=False) == text


def test_vocabularies(tokenizer):
    bos, eos = tokenizers.bos_and_eos(tokenizer, "x")
    vocab = tokenizer.get_vocab()
    assert sorted(vocab.values()) == list(range(len(vocab)))
    assert len(vocab) in (258, 600, 128_256)
    assert (vocab["<|begin_of_text|>"], vocab["<|end_of_text|>"]) == (bos, eos)
    assert tokenizers.token_bytes(tokenizer)[[bos, eos]].tolist() == [0, 0]
    assert tokenizer.encode("x").ids[0] == bos


def test_bytes_are_bytes():
    tokenizer = tokenizers.load("bytes")
    assert tokenizer.encode("aé\n", add_special_tokens=False).ids == list("aé\n".encode())


def test_training_a_bpe_is_deterministic_and_exact(tmp_path):
    text = Path(random.__file__).read_text()
    code = "import sys; from yupana.corpus import tokenizers as t; print(t.canonical(t.load('bpe:700', [sys.stdin.read()])))"
    runs = {subprocess.run([sys.executable, "-c", code], input=text, capture_output=True, text=True, check=True).stdout
            for _ in range(2)}  # fmt: skip
    assert len(runs) == 1
    assert tokenizers.load("bpe:700", ["too little text"]).get_vocab_size() == 700


def test_a_saved_tokenizer_is_the_same(tokenizer, tmp_path):
    (tmp_path / "tokenizer.json").write_bytes(tokenizers.canonical(tokenizer))
    again = tokenizers.load(str(tmp_path))
    assert tokenizers.canonical(again) == tokenizers.canonical(tokenizer)
    for text in VARIED:
        assert again.encode(text).ids == tokenizer.encode(text).ids


def test_llama3_from_the_cache_is_the_same_and_a_damaged_cache_is_made_again(llama3):
    (cached,) = cache_folder().glob("llama3-*.tokenizer")
    written = tokenizers.canonical(llama3)
    for damage in (lambda data: data, lambda data: data.replace(b"Split", b"Spilt"), lambda data: data[:1000]):
        cached.write_bytes(damage(cached.read_bytes()))
        assert tokenizers.canonical(tokenizers.load("llama3")) == written
        assert cached.read_bytes().endswith(written)


def test_llama3s_specials_are_those_of_its_authors(llama3):
    metas = pytest.importorskip("llama_models.llama3.tokenizer").Tokenizer.get_instance()
    assert {name: llama3.token_to_id(name) for name in tokenizers.LLAMA3_SPECIALS} == metas.special_tokens
    assert len(metas.special_tokens) == 256


def test_bad_tokenizers(tmp_path, monkeypatch):
    for spec, message in {
        "bpe:many": "write bpe:VOCAB",
        "bpe:100": "258 entries at least",
        "lama3": "did you mean 'llama3'",
        str(tmp_path): r"has no tokenizer\.json",
    }.items():
        with pytest.raises(UserError, match=message):
            tokenizers.load(spec)
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(UserError, match=r"is not a tokenizer\.json"):
        tokenizers.load(str(tmp_path))
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"llama-models.*pip install 'yupana\[corpus\]'"):
        tokenizers.load("llama3")
