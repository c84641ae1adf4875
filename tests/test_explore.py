"""Looking into a corpus, against counts made by hand, plain Python sets, and planted copies."""

import errno
import importlib.util
import json
import os
import random
import re
import signal
import string
import subprocess
import sys
import tempfile
from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from yupana.corpus import quality, tokenizers
from yupana.corpus import words as w
from yupana.corpus.duplicates import Duplicates, jaccard, shingle_set, signature
from yupana.corpus.explore import explore
from yupana.corpus.frequent import Distinct, Frequent
from yupana.corpus.pieces import PIECE, pieces
from yupana.corpus.prepare import prepare
from yupana.corpus.statistics import sizes
from yupana.errors import UserError
from yupana.report.explore_page import write_page
from yupana.report.explore_text import explore_tables

QUICK = settings(max_examples=40, deadline=None)
PROSE = (
    "The river runs over the stones and keeps a count of them. Nobody asked it to do that, and yet it does. "
    "In the evening the boats come back with fish that have been counted as well. "
)


def write_lines(path, texts):
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    return str(path)


def look(*sources, **options):
    return explore([str(source) for source in sources], **options)


# Counting in bounded memory


@QUICK
@given(st.lists(st.lists(st.integers(0, 40).map(str), max_size=30), max_size=30), st.integers(1, 12))
def test_frequent_is_never_too_high_and_at_most_its_error_too_low(batches, capacity):
    frequent = Frequent(capacity)
    truth = Counter()
    for batch in batches:
        frequent.add(batch)
        truth.update(batch)
        assert len(frequent.counts) <= 2 * capacity
    for thing, count in truth.items():
        assert count - frequent.error <= frequent.counts.get(thing, 0) <= count
    if len(truth) <= 2 * capacity:
        assert frequent.error == 0
        assert dict(frequent.top(100)) == dict(truth)


@pytest.mark.parametrize("different", [1, 1000, 200_000])
def test_distinct(different):
    distinct = Distinct(1 << 20)
    for part in np.array_split(w.mix(np.arange(3 * different, dtype=np.uint64) % np.uint64(different)), 7):
        distinct.add(part)
    assert distinct.estimate() == pytest.approx(different, rel=5e-3)


@QUICK
@given(st.lists(st.sampled_from(["a", "b", "c", "dd"]), max_size=30), st.integers(1, 6))
def test_ngrams_are_equal_exactly_where_the_words_are(words, n):
    numbers = w.ngrams(w.hashes(words), n).tolist()
    runs = [tuple(words[at : at + n]) for at in range(len(words) - n + 1)]
    assert len(numbers) == len(runs)
    assert len(set(numbers)) == len(set(runs))
    assert len(set(zip(numbers, runs, strict=True))) == len(set(runs))


# Copies


def test_near_copies_are_found_and_nothing_else(tmp_path):
    """300 planted pairs of every similarity; the truth is Jaccard's formula on Python sets."""
    chance = random.Random(1)
    words = ["".join(chance.choices(string.ascii_lowercase, k=6)) for _ in range(20_000)]
    pairs = []
    for _ in range(300):
        one = chance.choices(words, k=chance.randrange(60, 400))
        other = list(one)
        for _ in range(chance.randrange(1, 1 + len(one) // 25)):
            other[chance.randrange(len(other))] = chance.choice(words)
        pairs.append((" ".join(one), " ".join(other)))
    truth = [_similarity(*pair) for pair in pairs]
    assert sum(s >= 0.8 for s in truth) > 80
    assert sum(s < 0.8 for s in truth) > 80
    with Duplicates(0.8) as duplicates:
        for number, text in enumerate(text for pair in pairs for text in pair):
            duplicates.add(str(number), text, w.hashes(w.plain_words(text)))
        clusters, examples = duplicates.near()
    found = {tuple(sorted(cluster)) for cluster in clusters}
    assert found == {(2 * n, 2 * n + 1) for n, similarity in enumerate(truth) if similarity >= 0.8}
    for example in examples:
        assert example["similarity"] == pytest.approx(truth[int(example["first"]["id"]) // 2])


def _similarity(one, other):
    sets = [{tuple(text.split()[at : at + 5]) for at in range(len(text.split()) - 4)} for text in (one, other)]
    return len(sets[0] & sets[1]) / len(sets[0] | sets[1])


def test_signatures_agree_as_often_as_the_sets_are_similar():
    chance = np.random.default_rng(0)
    agreed = []
    for _ in range(60):
        shared, own = chance.integers(0, 1 << 32, (2, 400), dtype=np.uint32)
        one, other = np.unique(np.concatenate([shared, own[:200]])), np.unique(np.concatenate([shared, own[200:]]))
        agreed.append((signature(one) == signature(other)).mean())
        assert jaccard(one, other) == pytest.approx(0.5, abs=0.01)
    assert np.mean(agreed) == pytest.approx(0.5, abs=0.02)  # standard error 0.006


def test_equal_copies_and_a_bucket_of_a_thousand():
    with Duplicates() as duplicates:
        for number in range(1000):
            text = PROSE + PROSE * (number % 10)
            duplicates.add(str(number), text, w.hashes(w.plain_words(text)))
        near_prose = PROSE * 3 + "And so on."
        duplicates.add("other", near_prose, w.hashes(w.plain_words(near_prose)))
        result = duplicates.result()
    assert result["exact"]["documents"] == 990
    assert result["exact"]["bytes"] == sum(len(PROSE) * (1 + n % 10) for n in range(10, 1000))
    assert result["exact"]["most_copies"] == 100
    assert result["exact"]["examples"][0]["id"] == "0"
    assert result["exact"]["examples"][0]["copy"] == "10"
    # Twice or ten times the same prose is the same set of runs.
    assert result["near"]["largest_cluster"] >= 9


@QUICK
@given(st.lists(st.sampled_from("abc"), max_size=12))
def test_short_texts_have_one_run(words):
    expected = 0 if not words else max(1, len({tuple(words[at : at + 5]) for at in range(len(words) - 4)}))
    assert len(shingle_set(w.hashes(words))) == expected


# The rules


def measured(text):
    words = text.split()
    return quality.measures(text, words, w.hashes(words), quality.c4_lines(text)[1])


def drops(text):
    values = measured(text)
    return {(rule.family, rule.measure) for rule in quality.RULES if rule.drops(values)}


GOOD = (
    "The keeper of this house has a habit that nobody on the coast would call sensible. Each evening, when boats come "
    "home, he walks down with a lantern and asks every crew what they saw beyond the islands. Some have stories to "
    "tell; most only want supper. He writes whatever he hears into a grey book, be it weather, whales or gossip, and "
    "never reads a page aloud. Last winter the sea took part of his roof. Neighbours carried his furniture inland, "
    "but the book he kept under one arm until spring."
)


def test_good_prose_passes_every_rule():
    assert drops(GOOD) == set()


@pytest.mark.parametrize(
    ("text", "family", "measure"),
    [
        ("of the " + "boat " * 2, "gopher", "words"),
        (" ".join(["a", "of", "to"] * 40), "gopher", "mean_word_length"),
        (" ".join(["unquestionably", "the", "of"] + ["extraordinarily"] * 60), "gopher", "mean_word_length"),
        (GOOD + " #" * 20, "gopher", "hashes_per_word"),
        (GOOD + "..." * 20, "gopher", "ellipses_per_word"),
        ("\n".join("- " + line for line in GOOD.split(".")[:5]), "gopher", "bullet_lines"),
        ("\n".join(line + "..." for line in GOOD.split(".")[:6]), "gopher", "ellipsis_lines"),
        (GOOD + " 12345" * 40, "gopher", "words_with_letters"),
        (" ".join(f"word{chr(97 + n % 26)}{n}" for n in range(80)) + " the", "gopher", "stop_words"),
        (GOOD + "\nsame line here" * 3, "repetition", "repeated_lines"),
        (GOOD + "\n\none two\n\none two\n\none two", "repetition", "repeated_paragraphs"),
        ("\n".join([GOOD, GOOD]), "repetition", "repeated_line_characters"),
        ("\n\n".join([GOOD, GOOD]), "repetition", "repeated_paragraph_characters"),
        (GOOD + " night falls" * 30, "repetition", "top_2gram"),
        (GOOD + " a quiet night" * 30, "repetition", "top_3gram"),
        (GOOD + " and so it goes" * 30, "repetition", "top_4gram"),
        (GOOD + " one two three four five" * 9, "repetition", "repeated_5grams"),
        (GOOD + " one two three four five six seven eight nine ten" * 4, "repetition", "repeated_10grams"),
        ("The boats come in the evening with fish. The nets of the boats.", "c4", "sentences"),
        (GOOD + " {", "c4", "curly_brackets"),
        (GOOD + " Lorem Ipsum dolor.", "c4", "lorem_ipsum"),
        (GOOD.replace(".", ";").replace("; ", ";\n"), "fineweb", "punctuated_lines"),
        ("\n".join(GOOD.split()), "fineweb", "short_lines"),
    ],
)
def test_each_rule_drops_what_it_is_for(text, family, measure):
    assert (family, measure) in drops(text)


def test_measures_by_hand():
    values = measured("one two\none two\n\n# three four ...\nlast line…\n")
    assert values["words"] == 10
    assert values["mean_word_length"] == pytest.approx((3 * 4 + 1 + 5 + 4 + 3 + 4 + 5) / 10)
    assert values["hashes_per_word"] == pytest.approx(0.1)
    assert values["ellipses_per_word"] == pytest.approx(0.2)
    assert values["ellipsis_lines"] == pytest.approx(0.5)
    assert values["words_with_letters"] == pytest.approx(0.8)
    assert values["repeated_lines"] == pytest.approx(0.25)
    assert values["repeated_line_characters"] == pytest.approx(7 / (7 + 7 + 16 + 10))
    assert values["repeated_paragraphs"] == 0
    assert values["short_lines"] == 1
    assert values["punctuated_lines"] == pytest.approx(0.5)
    assert values["top_2gram"] == pytest.approx(12 / 34)


def test_c4_keeps_the_lines_that_its_code_keeps():
    reasons = {
        "The boats come back in the evening.": None,
        'He said "the boats come back."': None,
        "The boats come back in the evening": "no end mark",
        "The boats come back in the...": "no end mark",
        "The boats come back.": "under 5 words",
        "Please enable JavaScript to see the boats.": "'javascript'",
        "By reading on you accept our Privacy Policy and more.": "terms of use, cookies",
        "The boats " + "x" * 1001 + " come back today.": "a word over 1 000 characters",
    }
    for line, reason in reasons.items():
        assert quality.c4_line(line) == reason, line
    counts, sentences = quality.c4_lines("\n".join([*reasons, "", "One boat is here. Two are not! Is that all of it?"]))
    assert counts["kept"] == 3
    assert sum(counts.values()) == 9
    assert sentences == 1 + 1 + 3


@settings(max_examples=60, deadline=None)
@given(st.lists(st.sampled_from(["a", "bb", "ccc", "d"]), min_size=1, max_size=60))
def test_repeated_ngrams_agree_with_a_slow_loop(words):
    values = measured(" ".join(words))
    total = sum(map(len, words))
    for n in range(2, 11):
        runs = [tuple(words[at : at + n]) for at in range(len(words) - n + 1)]
        counts = Counter(runs)
        chosen = {run for run, count in counts.items() if count > 1}
        if n <= 4 and chosen:
            chosen = {max(counts, key=lambda run: (counts[run], -runs.index(run)))}
        inside = {at + k for at, run in enumerate(runs) if run in chosen for k in range(n)}
        name = f"top_{n}gram" if n <= 4 else f"repeated_{n}grams"
        assert values[name] == pytest.approx(sum(len(words[at]) for at in inside) / total)


# A whole source


def test_figures_of_a_small_source_are_exact(tmp_path):
    addresses = "mail a.b@example.org or 8.8.8.8 and 10.0.0.1"
    texts = ["the cat\nthe cat\n", "the cat\nthe cat\n", "Ünïcode 12 ,;", GOOD, addresses]
    result = look(write_lines(tmp_path / "a.jsonl", texts), tokenizer_names=["bytes"])
    (source,) = result["sources"]
    joined = "".join(texts)
    assert result["documents"] == source["documents"] == 5
    assert result["bytes"] == source["bytes"] == result["tokens"] == len(joined.encode())
    assert source["characters"] == len(joined)
    assert source["words"] == sum(len(text.split()) for text in texts)
    assert source["lines"] == sum(len(text.split("\n")) - text.endswith("\n") for text in texts)
    assert source["vocabulary"]["different_words"] == len({word for text in texts for word in text.split()})
    counts = Counter(word for text in texts for word in text.split())
    assert source["vocabulary"]["most_frequent"][0] == {"word": "the", "count": counts["the"]}
    assert source["sizes"]["mean"] == pytest.approx(np.mean([len(text.encode()) for text in texts]))
    assert sum(source["sizes"]["documents"]) == 5
    assert source["personal"] == {"found": {"e-mail address": 1, "public IPv4 address": 1}, "documents": 1}
    assert source["duplicates"]["exact"]["documents"] == 1
    assert source["character_classes"]["digits"] == pytest.approx(sum(c.isdigit() for c in joined) / len(joined))
    assert sum(source["character_classes"].values()) == pytest.approx(1)
    assert source["repeated"]["lines"]["most"] == [{"text": "the cat", "count": 4}]
    assert source["repeated"]["lines"]["count_error"] == 0
    (tokens,) = source["tokenizers"]
    assert tokens["bytes_per_token"] == 1
    assert tokens["vocabulary_used"] == len(set(joined.encode()))
    short = next(rule for rule in source["quality"]["rules"] if rule["measure"] == "words")
    assert short["documents"] == 4
    assert short["examples"][0]["value"] == 4


def test_sizes():
    found = sizes([1, 2, 3, 4, 1000])
    assert found["quantiles"] == {"least": 1, "p5": 1, "p25": 2, "median": 3, "p75": 4, "p95": 4, "most": 1000}
    assert found["documents"] == [1, 2, 1, 0, 0, 0, 0, 0, 0, 1]
    assert found["from"][-1] == 512
    assert sizes([])["mean"] is None


def test_zipf_and_heaps_exponents_are_recovered(tmp_path):
    chance = np.random.default_rng(3)
    ranks = np.arange(1, 20_001)
    share = ranks**-1.1 / (ranks**-1.1).sum()
    zipf = [" ".join(f"w{n}" for n in chance.choice(ranks, 500, p=share)) for _ in range(300)]
    fresh = [" ".join(f"v{300 * row + n}" for n in range(300)) for row in range(60)]
    result = look(write_lines(tmp_path / "zipf.jsonl", zipf), write_lines(tmp_path / "fresh.jsonl", fresh))
    vocabularies = [source["vocabulary"] for source in result["sources"]]
    assert vocabularies[0]["zipf"]["exponent"] == pytest.approx(1.1, abs=0.06)
    assert vocabularies[1]["heaps"]["exponent"] == pytest.approx(1, abs=0.01)
    assert vocabularies[1]["different_words"] == pytest.approx(18_000, rel=2e-3)


def test_contamination_counts_the_planted_runs(tmp_path):
    words = [f"token{number}" for number in range(100)]
    evaluation = write_lines(tmp_path / "eval.jsonl", [" ".join(words[:60]), " ".join(words[60:])])
    planted = "Before it: " + ", ".join(words[10:30]).upper() + "! And after."  # 20 words hold 8 runs of 13
    source = write_lines(tmp_path / "a.jsonl", [GOOD, planted, " ".join(words[:12])])
    found = look(source, evaluation=[evaluation])["sources"][0]["contamination"]
    assert found["runs"] == (60 - 12) + (40 - 12)
    assert found["found"] == 8
    assert found["documents"] == 1
    assert found["examples"] == [{"id": "a.jsonl:2", "run": " ".join(words[10:23])}]
    with pytest.raises(UserError, match="holds no run of 13 words"):
        look(source, evaluation=[write_lines(tmp_path / "tiny.jsonl", ["two words"])])


def test_languages(tmp_path):
    pytest.importorskip("py3langid", reason="languages need py3langid")
    german = "Der Fluss läuft über die Steine und zählt sie. Niemand hat ihn darum gebeten, und doch tut er es."
    found = look(write_lines(tmp_path / "a.jsonl", [GOOD, german, PROSE, PROSE + "More."]))["sources"][0]["languages"]
    assert found == {"en": 0.75, "de": 0.25}


@pytest.fixture(scope="module")
def own_tokenizers():
    """The kinds that texts are cut for."""
    made = [tokenizers.load("bytes"), tokenizers.load("bpe:400", [PROSE * 3, "a\n\n b\n", "  two  spaces "])]
    return made if importlib.util.find_spec("llama_models") is None else [*made, tokenizers.load("llama3")]


@settings(max_examples=200, deadline=None)
@given(st.text(alphabet="ab \n\t.,'s1é日\r", max_size=200), st.integers(3, 40))
def test_the_tokens_of_the_pieces_are_those_of_the_text(own_tokenizers, text, longest):
    before, pieces.__globals__["FORCED"] = pieces.__globals__["FORCED"], 100  # only where the words allow it
    try:
        cut = list(pieces(text, longest))
    finally:
        pieces.__globals__["FORCED"] = before
    assert "".join(cut) == "".join(pieces(text, longest)) == text
    for tokenizer in own_tokenizers:
        whole = tokenizer.encode(text, add_special_tokens=False).ids
        assert [t for piece in cut for t in tokenizer.encode(piece, add_special_tokens=False).ids] == whole


def test_pieces_are_short_where_there_is_a_place_to_cut():
    assert max(map(len, pieces(PROSE * 50, 200))) <= 200
    assert list(pieces("x" * 50 + "\n" + "y\n" * 9, 20)) == ["x" * 50 + "\n", "y\n" * 9]
    assert list(pieces("", 5)) == [""]
    assert list(pieces("x" * 50, 20)) == ["x" * 50]
    assert list(pieces("x" * 100, 20)) == ["x" * 80, "x" * 20]  # no place at all: at four times as many


def test_a_long_document_is_prepared_in_pieces_to_the_same_bytes(tmp_path, monkeypatch):
    source = write_lines(tmp_path / "a.jsonl", [PROSE * 20 + "\n\n" + GOOD, PROSE, GOOD * 4])
    prepare([source], tmp_path / "whole", "bpe:400")
    for module in ("encode", "pieces"):
        monkeypatch.setattr(f"yupana.corpus.{module}.PIECE", 500)
    monkeypatch.setattr("yupana.corpus.pieces.pieces.__defaults__", (500,))
    prepare([source], tmp_path / "pieces", "bpe:400")
    names = sorted(path.name for path in (tmp_path / "whole").iterdir())
    for name in names:
        assert (tmp_path / "whole" / name).read_bytes() == (tmp_path / "pieces" / name).read_bytes(), name


def test_tokens_are_those_of_the_tokenizer(text_folder):
    found = look(text_folder, tokenizer_names=["bpe:600"])["sources"][0]["tokenizers"][0]
    texts = [path.read_text() for path in sorted(text_folder.iterdir())]
    made = tokenizers.load("bpe:600", texts)
    exact = [len(made.encode(text, add_special_tokens=False).ids) for text in texts]
    assert found["tokens"] == sum(exact)
    assert found["sizes"]["quantiles"]["most"] == max(exact)


# The command


@pytest.mark.parametrize("tokenizer", ["bytes", "llama3"])
def test_a_source_that_ends_where_the_counting_is_sent_out(tmp_path, tokenizer):
    if tokenizer == "llama3":
        pytest.importorskip("llama_models", reason="needs llama-models")
    text = (PROSE * (PIECE // len(PROSE) + 1))[:PIECE]
    (tmp_path / "a.jsonl").write_text(json.dumps({"text": text}) + "\n")
    expected = len(tokenizers.load(tokenizer).encode(text, add_special_tokens=False).ids)
    assert look(tmp_path / "a.jsonl", tokenizer_names=[tokenizer])["tokens"] == expected


def test_the_same_answer_twice_in_other_processes(text_folder, tmp_path):
    answers = []
    for seed in ("1", "2"):
        command = [sys.executable, "-m", "yupana", "corpus", "explore", str(text_folder), "--json", "--tokenizer", "bpe:400"]
        done = subprocess.run(
            command, capture_output=True, text=True, check=True, env={**os.environ, "PYTHONHASHSEED": seed}
        )
        answers.append(json.loads(done.stdout))
    assert answers[0] == answers[1]
    assert {"documents", "tokens", "bytes", "skipped"} <= set(answers[0])
    assert answers[0]["documents"] == len(list(text_folder.iterdir()))


def test_ctrl_c_answers_about_what_was_read(tmp_path):
    source = write_lines(tmp_path / "a.jsonl", [f"{n} {PROSE}" for n in range(50)])
    asked = []

    def stop_at_third(what, share):
        asked.append(share)
        if len(asked) == 3:
            os.kill(os.getpid(), signal.SIGINT)

    result = look(source, source, progress=stop_at_third)
    assert not result["complete"]
    assert result["documents"] == 3
    assert result["tokens"] == result["bytes"] == 3 * len(f"0 {PROSE}")
    assert len(result["sources"]) == 1
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_progress_goes_from_nothing_to_all(text_folder):
    asked = []
    look(text_folder, text_folder, progress=lambda what, share: asked.append(share))
    assert asked == sorted(asked)
    assert asked[-1] == pytest.approx(1)
    assert 0 < asked[0] < 0.5


def test_sample_takes_the_first(tmp_path):
    source = write_lines(tmp_path / "a.jsonl", [f"{n}" for n in range(30)])
    result = look(source, sample=7)
    assert result["documents"] == 7
    assert result["sources"][0]["sample"] == 7


def test_page_and_table(tmp_path):
    pytest.importorskip("matplotlib")
    texts = [GOOD, GOOD, GOOD + " {", "<script>alert(1)</script> [bold]x[/bold]\n" * 3, f"{GOOD} <script> more {GOOD}"]
    result = look(write_lines(tmp_path / "a.jsonl", texts), write_lines(tmp_path / "b.jsonl", [PROSE]))
    page = write_page(result, tmp_path).read_text()
    assert "<script" not in page
    assert "&lt;script&gt;alert(1)" in page
    assert not re.findall(r'(?:src|href)="(?!#)', page)
    assert page.count("<svg") == 1
    assert json.loads((tmp_path / "explore.json").read_text()) == result
    assert (tmp_path / "explore.png").read_bytes().startswith(b"\x89PNG")
    from rich.console import Console

    with open(tmp_path / "table.txt", "w") as file:
        Console(file=file, width=140).print(explore_tables(result))
    table = (tmp_path / "table.txt").read_text()
    assert "a.jsonl" in table
    assert "b.jsonl" in table
    assert "[bold]x[/bold]" in table  # markup in a text is text


# Bad input


def test_everything_skipped_is_counted_with_its_reason(yupana, tmp_path):
    folder = tmp_path / "in"
    folder.mkdir()
    (folder / "good.txt").write_text(PROSE)
    (folder / "zero.txt").write_bytes(b"before\x00after")
    (folder / "latin.txt").write_bytes("café au lait".encode("latin-1"))
    (folder / "void.txt").touch()
    (folder / "blank.txt").write_text("\n \n")
    (folder / "lines.jsonl").write_text('{"text": "fine"}\n{"text": "cut in the mid\n{"body": 1}\n{"text": ""}\n')
    done = yupana("corpus", "explore", folder, "--json", "--tokenizer", "bytes")
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    assert result["documents"] == 2
    assert result["skipped"] == {
        "bad encoding": 1,
        "binary file": 1,
        "empty document": 2,
        "empty file": 1,
        "malformed JSON line": 1,
        "missing field": 1,
    }
    prepared = yupana("corpus", "prepare", folder, "--out", tmp_path / "out", "--tokenizer", "bytes", "--json")
    assert json.loads(prepared.stdout)["skipped"] == result["skipped"]
    shown = yupana("corpus", "explore", folder, "--tokenizer", "bytes").stdout
    assert "1 skipped, binary file, the first at" in " ".join(shown.split())


@pytest.mark.parametrize("command", [["explore"], ["prepare", "--out", "out", "--tokenizer", "bytes"]])
@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("hf:nobody/no-such-dataset", "the hub dataset hf:nobody/no-such-dataset could not be read"),
        ("nowhere.txt", "the source 'nowhere.txt' does not exist"),
        ("rows.parquet", "has no field 'text': it has body, id"),
        ("cut.jsonl", "holds no documents (1 skipped: malformed JSON line"),
        ("void.txt", "is empty"),
    ],
)
def test_a_wrong_source_is_one_sentence(yupana, tmp_path, command, source, message):
    if source == "rows.parquet":
        pyarrow = pytest.importorskip("pyarrow")
        from pyarrow import parquet

        parquet.write_table(pyarrow.table({"body": ["x"], "id": [1]}), tmp_path / source)
    elif source == "cut.jsonl":
        (tmp_path / source).write_text('{"text": "cut in the mid')
    elif source == "void.txt":
        (tmp_path / source).touch()
    elif source.startswith("hf:"):
        pytest.importorskip("datasets")
    done = yupana("corpus", command[0], source, *command[1:], cwd=tmp_path)
    assert done.returncode == 2, done.stderr
    assert message in done.stderr
    assert done.stderr.startswith("yupana: ")
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"sample": 0}, "--sample must be at least 1"),
        ({"similarity": 0.0}, "--similarity must be above 0"),
        ({"tokenizer_names": ["bpe:12"]}, "is too small"),
        ({"tokenizer_names": ["lama3"]}, r"there is no tokenizer 'lama3' \(did you mean 'llama3'"),
    ],
)
def test_wrong_options(text_folder, options, message):
    with pytest.raises(UserError, match=message):
        look(text_folder, **options)


def test_out_must_be_a_folder(yupana, text_folder, tmp_path):
    (tmp_path / "file").touch()
    done = yupana("corpus", "explore", text_folder, "--out", tmp_path / "file")
    assert done.returncode == 2
    assert "is a file: --out names a folder" in done.stderr


def test_no_room_for_temporary_files_is_one_sentence(text_folder, monkeypatch):
    class Full(Duplicates):
        def add(self, *_):
            raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(sys.modules[explore.__module__], "Duplicates", Full)
    with pytest.raises(UserError, match=f"could not write to {tempfile.gettempdir()}: the disk is full"):
        look(text_folder)


PEAK = "import resource; print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, file=sys.stderr)"


@pytest.mark.slow
@pytest.mark.parametrize("command", ["explore", "prepare"])
def test_a_huge_line_and_many_tiny_files(tmp_path, command):
    """A JSON line of 15 MB among 2 000 tiny files: all is read, within 1.2 GB."""
    folder = tmp_path / "in"
    folder.mkdir()
    for number in range(2000):
        (folder / f"{number}.txt").write_text(f"tiny {number}")
    repeats = 15_000_000 // len(PROSE)
    write_lines(folder / "line.jsonl", [PROSE * repeats])
    options = ["--json", "--tokenizer", "bpe:300", *(["--out", str(tmp_path / "out")] if command == "prepare" else [])]
    code = f"import sys; from yupana.cli import main; main({['corpus', command, str(folder), *options]!r}); {PEAK}"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    result = json.loads(done.stdout)
    assert result["bytes"] == sum(len(f"tiny {number}") for number in range(2000)) + repeats * len(PROSE)
    assert int(done.stderr.split()[-1]) < 1.2e6, "kilobytes"


# A run's loss


@pytest.mark.slow
def test_loss_by_source_and_position(yupana, corpus, text_folder, tmp_path):
    """Against every document fed whole, by torch's own cross-entropy."""
    import torch
    from conftest import TINY

    from yupana.corpus import tokenizers
    from yupana.run import RunDirectory, open_run
    from yupana.train import by_position, checkpoint
    from yupana.train.begin import begin

    begin(RunDirectory(tmp_path / "run"), None, None, [*TINY, f"--data.corpus={corpus}", "--train.steps=20"])
    texts = [file.read_text()[:200] for file in sorted(text_folder.iterdir())]
    (tmp_path / "t.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    (found,) = by_position.losses(tmp_path / "run", [str(tmp_path / "t.jsonl")], sample=3)
    run = open_run(tmp_path / "run")
    model = checkpoint.load_model(checkpoint.choose(run), dtype=torch.float32)
    tokenizer = tokenizers.from_file(run.path / "tokenizer.json")
    bos, eos = tokenizers.bos_and_eos(tokenizer, "")
    by, every = {}, []
    for text in texts[:3]:
        ids = torch.tensor([bos, *tokenizer.encode(text, add_special_tokens=False).ids, eos])
        for begin_ in range(0, len(ids) - 1, 32):
            part = ids[begin_ : begin_ + 33]
            with torch.no_grad():
                logits = model.hidden(part[None, :-1])[0] @ model.output_weight.T
            for place, loss in enumerate(torch.nn.functional.cross_entropy(logits, part[1:], reduction="none").tolist()):
                by.setdefault(place.bit_length(), []).append(loss)
                every.append(loss)
    assert found["tokens"] == len(every)
    assert found["loss"] == pytest.approx(np.mean(every), rel=1e-5)
    read = sum(len(text.encode()) for text in texts[:3])
    assert found["bits_per_byte"] == pytest.approx(sum(every) / np.log(2) / read, rel=1e-5)
    assert [(of["from"], of["to"]) for of in found["by_position"]] == [(0, 0), (1, 1), (2, 3), (4, 7), (8, 15), (16, 31)]
    for of in found["by_position"]:
        assert of["tokens"] == len(by[of["from"].bit_length()])
        assert of["loss"] == pytest.approx(np.mean(by[of["from"].bit_length()]), rel=1e-5)

    few = by_position.losses(tmp_path / "run", [str(tmp_path / "t.jsonl")], tokens=100)[0]
    assert 100 <= few["tokens"] < 100 + 32
    done = yupana("corpus", "explore", tmp_path / "t.jsonl", text_folder, "--tokenizer", "bytes", "--model",
                  tmp_path / "run", "--out", tmp_path / "looks", "--json")  # fmt: skip
    assert done.returncode == 0, done.stderr
    sources = json.loads(done.stdout)["sources"]
    assert [set(source["model"]) >= {"loss", "bits_per_byte", "by_position"} for source in sources] == [True, True]
    assert (tmp_path / "looks" / "losses.png").is_file()
    done = yupana("corpus", "explore", tmp_path / "t.jsonl", "--model", tmp_path / "looks")
    assert done.returncode == 2
    assert "is not a run directory" in done.stderr
