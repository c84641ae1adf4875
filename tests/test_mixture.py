"""Mixtures: shares, phases, exact resume, epochs and their cost, and the loss by source."""

import itertools
import json

import numpy as np
import pytest
import torch
import yaml
from conftest import TINY
from hypothesis import given, settings
from hypothesis import strategies as st

from yupana import config
from yupana.config import DataConfig, PhaseConfig
from yupana.corpus.batches import Batches
from yupana.corpus.mixture import Phase, by_size, shares
from yupana.corpus.prepare import prepare
from yupana.corpus.shards import open_corpus
from yupana.errors import UserError
from yupana.report.page import write_report
from yupana.report.read import read_run
from yupana.report.text import by_source
from yupana.run import RunDirectory, open_run
from yupana.scaling import repetition
from yupana.scaling.laws import MUENNIGHOFF, repeated_loss
from yupana.train import checkpoint
from yupana.train.begin import begin

QUICK = settings(max_examples=40, deadline=None)
EXACT = ("step", "loss", "grad_norm", "lr", "val_loss", "val_bpb", "val_by_source")


@pytest.fixture(scope="module")
def three(text_folder, tmp_path_factory):
    """Three small corpora of bytes: a, b, c, of 1, 2 and 1 files."""
    folder = tmp_path_factory.mktemp("three")
    files = sorted(text_folder.iterdir())
    for name, some in (("a", files[:1]), ("b", files[1:3]), ("c", files[3:4])):
        texts = [part for file in some for part in file.read_text().split("\n\n") if part.strip()]
        lines = folder / f"{name}.jsonl"
        lines.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
        prepare([str(lines)], folder / name, "bytes", 0.2)
    return {name: open_corpus(folder / name) for name in "abc"}


def drawn_from(batch):
    """The folder's name of each row."""
    return [row[0][0].folder.name for row in batch.spans]


# Which tokens make which batch


@QUICK
@given(st.integers(1, 400), st.integers(1, 60), st.integers(0, 5))
def test_phases_change_with_a_whole_step_and_sources_go_on_where_they_were(three, after, length, seed):
    a, b, c = three.values()
    phases = [Phase(0, {a: 2, b: 1}), Phase(after * 100, {b: 0.5, c: 0.5}), Phase((after + length) * 100, {a: 1, c: 1})]
    steps = [0, *(-(-phase.after // (16 * 6)) for phase in phases[1:])]
    if len(set(steps)) < 3:
        with pytest.raises(UserError, match="shorter than a step"):
            Batches(phases, 16, 6, seed)
        return
    loader = Batches(phases, 16, 6, seed)
    allowed = [{"a", "b"}, {"b", "c"}, {"a", "c"}]
    seen = {name: [] for name in three}
    for step in range(steps[2] + 30):
        batch = loader.batch(step)
        names = drawn_from(batch)
        phase = sum(step >= begin for begin in steps) - 1
        assert set(names) <= allowed[phase]
        for name, ((_, start, _),) in zip(names, batch.spans, strict=True):
            seen[name].append(start)
        assert (loader.batch(step, range(2, 5)).tokens == batch.tokens[2:5]).all()
    for name, starts in seen.items():  # every window once before any again, over the phases
        count = (three[name].split("train").n_tokens - 1) // 16
        for epoch in range(0, len(starts), count):
            assert len(set(starts[epoch : epoch + count])) == len(starts[epoch : epoch + count])
    counted = loader.sequences_seen(steps[2] + 30)
    assert {name: counted[corpus] for name, corpus in three.items()} == {n: len(s) for n, s in seen.items()}


def test_each_phase_has_its_shares(three):
    a, b, _ = three.values()
    loader = Batches([Phase(0, {a: 0.7, b: 0.3}), Phase(10_000 * 8, {a: 0.1, b: 0.9})], 8, 100, seed=3)
    names = [name for step in range(200) for name in drawn_from(loader.batch(step))]
    assert (names[:10_000].count("a"), names[10_000:].count("a")) == (7000, 1000)


def test_shares_by_size_and_temperature(three):
    sizes = np.array([corpus.split("train").n_tokens for corpus in three.values()])
    corpora = list(three.values())
    assert by_size(corpora, 1) == pytest.approx(sizes / sizes.sum())
    assert by_size(corpora, 3.3) == pytest.approx(sizes ** (1 / 3.3) / (sizes ** (1 / 3.3)).sum())
    assert by_size(corpora, 1e9) == pytest.approx([1 / 3] * 3)


@QUICK
@given(st.lists(st.floats(0.001, 10), min_size=1, max_size=6))
def test_shares_are_whole_and_within_one(weights):
    found = shares(weights, 10_000)
    assert found.sum() == 10_000
    assert (np.abs(found - np.array(weights) / sum(weights) * 10_000) < 1).all()


# Best-fit packing


@QUICK
@given(st.lists(st.integers(1, 70), min_size=2, max_size=30), st.integers(4, 40), st.integers(0, 3))
def test_best_fit_gives_every_target_once_and_cuts_only_what_does_not_fit(tmp_path_factory, lengths, seq_len, seed):
    folder = tmp_path_factory.mktemp("fit")
    letters = "abcdefghijklmnopqrstuvwxyz"
    lines = "".join(json.dumps({"text": letters[n % 26] * length}) + "\n" for n, length in enumerate(lengths))
    (folder / "t.jsonl").write_text(lines)
    prepare([str(folder / "t.jsonl")], folder / "out", "bytes", 0)
    corpus = open_corpus(folder / "out")
    stream, loader = corpus.split("train"), Batches(corpus, seq_len, 1, seed, "best-fit")
    (packed,) = loader.sources
    for epoch in range(2):
        predicted, padding = np.zeros(stream.n_tokens, dtype=int), 0
        pieces = np.zeros(stream.n_documents, dtype=int)
        for step in range(epoch * packed.count, (epoch + 1) * packed.count):
            batch, place = loader.batch(step), 0
            for number, (_, start, stop) in enumerate(batch.spans[0]):
                end = place + stop - start - 1
                assert (batch.tokens[0, place:end] == stream.read(start, stop - 1)).all()
                assert (batch.targets[0, place:end] == stream.read(start + 1, stop)).all()
                assert (batch.document_ids[0, place:end] == number).all()
                assert stream.document_of(start) == stream.document_of(stop - 1)
                pieces[stream.document_of(start)] += 1
                predicted[start + 1 : stop] += 1
                place = end
            assert (batch.targets[0, place:] == -100).all()
            assert not set(batch.document_ids[0, place:]) & set(batch.document_ids[0, :place])
            padding += seq_len - place
        expected = np.ones(stream.n_tokens, dtype=int)
        expected[stream.starts] = 0  # nothing comes before a document's first token
        assert (predicted == expected).all()
        places = np.diff(np.append(stream.starts, stream.n_tokens)) - 1
        assert (pieces == -(-places // seq_len)).all()
        assert padding / (packed.count * seq_len) == pytest.approx(packed.padding)
        assert packed.cut == pytest.approx((places > seq_len).mean())


def test_best_fit_trains_each_document_as_if_alone(three):
    """The loss summed over an epoch is that of every document by itself."""
    from yupana.model.llama import Llama
    from yupana.model.shapes import ModelShape

    torch.manual_seed(0)
    shape = ModelShape(n_layers=2, d_model=16, n_heads=2, n_kv_heads=1, head_dim=8, d_ff=24, vocab_size=258)
    model = Llama(shape).double()
    model.initialise(1)
    corpus, seq_len = three["c"], 2000
    stream, loader = corpus.split("train"), Batches(corpus, seq_len, 1, 0, "best-fit")

    def nats(tokens, targets, documents=None):
        hidden = model.hidden(torch.from_numpy(tokens), documents if documents is None else torch.from_numpy(documents))
        logits = hidden.flatten(0, 1) @ model.output_weight.T
        return torch.nn.functional.cross_entropy(logits, torch.from_numpy(targets).flatten(), reduction="sum").item()

    with torch.no_grad():
        packed = 0.0
        for step in range(loader.sources[0].count):
            batch = loader.batch(step)
            packed += nats(batch.tokens, batch.targets, batch.document_ids)
        alone = 0.0
        for begin_, end in itertools.pairwise([*stream.starts, stream.n_tokens]):
            document = stream.read(int(begin_), int(end))
            assert len(document) - 1 <= seq_len
            alone += nats(document[None, :-1], document[None, 1:])
    assert packed == pytest.approx(alone, rel=1e-9)


# A run on a mixture


def train(path, data, *more, resume=False):
    path.parent.mkdir(exist_ok=True)
    file = path.parent / f"{path.name}.yaml"
    file.write_text(yaml.safe_dump({"data": data}))
    return begin(RunDirectory(path), None, file, [*TINY, *more], resume=resume)


def curve(path):
    return [{key: record[key] for key in EXACT if key in record} for record in open_run(path).metrics()]


def mixed(three):
    path = {name: str(corpus.path) for name, corpus in three.items()}
    weights = {path["a"]: 0.6, path["b"]: 0.4, path["c"]: 0}
    return {"corpus": weights, "phases": [{"after": 1500, "corpus": {path["b"]: 1, path["c"]: 3}}]}


@pytest.mark.parametrize("packing", ["stream", "best-fit"])
def test_a_run_over_two_phases_resumes_bit_for_bit_from_its_own_run_yaml(three, tmp_path, packing):
    data = {**mixed(three), "packing": packing}
    more = ("--train.steps=12", "--checkpoint.every=4", "--log.eval_every=4")
    train(tmp_path / "whole", data, *more)
    train(tmp_path / "parts", data, *more)
    for folder in checkpoint.complete(open_run(tmp_path / "parts"))[1:]:
        (folder / "manifest.json").unlink()
    begin(RunDirectory(tmp_path / "parts"), None, None, [], resume=True)  # run.yaml says it all
    assert curve(tmp_path / "parts") == curve(tmp_path / "whole")
    begin(RunDirectory(tmp_path / "again"), None, tmp_path / "whole" / "run.yaml", [])
    assert curve(tmp_path / "again") == curve(tmp_path / "whole")
    other = {**data, "phases": [{**data["phases"][0], "after": 2000}]}
    with pytest.raises(UserError, match="phases of the mixture"):
        train(tmp_path / "parts", other, *more, resume=True)


def test_the_loss_of_each_source_is_recorded_and_reported(three, tmp_path):
    pytest.importorskip("matplotlib")
    train(tmp_path / "run", mixed(three), "--train.steps=9", "--log.eval_every=3", "--optim.lr=1e-2")
    run = open_run(tmp_path / "run")
    last = [record for record in run.metrics() if "val_by_source" in record][-1]
    assert set(last["val_by_source"]) == {"a", "b", "c"}
    of = {entry["name"]: entry for entry in json.loads(run.env_file.read_text())["corpora"]}
    loader = Batches(
        [Phase(0, {three["a"]: 0.6, three["b"]: 0.4}), Phase(1500, {three["b"]: 1, three["c"]: 3})], 32, 8, seed=0
    )
    names = [name for step in range(9) for name in drawn_from(loader.batch(step))]
    for name, entry in of.items():
        assert entry["planned_tokens"] == 32 * names.count(name)
        assert entry["epochs"] == pytest.approx(entry["planned_tokens"] / three[name].split("train").n_tokens)

    model = checkpoint.load_model(checkpoint.choose(run))
    losses, sizes = {}, {}
    for name, corpus in three.items():  # the loss again, window by window, by torch's own cross-entropy
        stream = corpus.split("val")
        windows = min((stream.n_tokens - 1) // 32, 2048 // 3 // 32)
        text = torch.from_numpy(stream.read(0, windows * 32 + 1))
        with torch.no_grad():
            logits = model.hidden(text[:-1].reshape(windows, 32)).flatten(0, 1) @ model.output_weight.T
        losses[name] = torch.nn.functional.cross_entropy(logits.float(), text[1:]).item()
        sizes[name] = corpus.token_bytes[text[1:].numpy()].mean()
        assert last["val_by_source"][name]["val_loss"] == pytest.approx(losses[name], rel=1e-5)
        bits = losses[name] / np.log(2) / sizes[name]
        assert last["val_by_source"][name]["val_bpb"] == pytest.approx(bits, rel=1e-5)
    weights = [0.6 * 1500, 0.4 * 1500 + 0.25 * 804, 0.75 * 804]  # of 9 steps of 256 tokens
    assert last["val_loss"] == pytest.approx(np.average(list(losses.values()), weights=weights), rel=1e-5)

    page = write_report(run).read_text()
    told = by_source(read_run(run))
    for name in three:
        assert f"{told[name]['first_val_loss']:.3f} → {last['val_by_source'][name]['val_loss']:.3f}" in page
    assert (run.path / "sources.png").is_file()


# Repetition


def test_the_cost_of_repetition_is_the_papers_law():
    for n, tokens, unique in ((1e8, 1e9, 1e8), (7e6, 4e6, 5e5), (1e9, 1e11, 1e11)):
        found = repetition.cost(n, {"a": tokens}, {"a": unique})
        law = MUENNIGHOFF
        assert found == pytest.approx(repeated_loss(law, n, tokens, unique) - repeated_loss(law, n, tokens, tokens))
    half = {"a": 5e8, "b": 5e8}
    assert repetition.cost(1e8, half, {"a": 1e9, "b": 1e9}) == pytest.approx(0, abs=1e-12)
    costs = [repetition.cost(1e8, half, {"a": 1e9, "b": unique}) for unique in (5e8, 1e8, 2e7, 1e6)]
    assert costs == sorted(costs)
    assert costs[-1] > 0.02
    # Two equal sources gone through equally often are one of twice the size.
    twice = repetition.cost(1e8, half, {"a": 5e7, "b": 5e7})
    assert twice == pytest.approx(repetition.cost(1e8, {"a": 1e9}, {"a": 1e8}))


def test_only_more_than_four_epochs_are_warned_about(yupana, three, tmp_path):
    assert repetition.told(1e7, {"a": 400, "b": 10}, {"a": 100, "b": 10}) == []
    (line,) = repetition.told(1e7, {"a": 401, "b": 10}, {"a": 100, "b": 10})
    assert "a 4.0 times (100 tokens)" in line
    size = three["c"].split("train").n_tokens
    steps = 5 * size // 256
    few = [*TINY, "--data.corpus", three["c"].path, "--checkpoint.every=0", "--log.eval_every=1000"]
    done = yupana("train", "7m", "--run", tmp_path / "run", *few, "--train.steps", steps, "--json")
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("this run goes through c ") == 1
    assert "nats a token above" in done.stderr


# Wrong input


@pytest.mark.parametrize(
    ("data", "words"),
    [
        ({"corpus": {"a": 0.7, "b": 0.2}}, r"data\.corpus sum to 0\.9: shares must sum to 1"),
        ({"corpus": {"a": 70.5, "b": 20}}, r"sum to 90\.5"),
        ({"corpus": {"a": -1, "b": 2}}, "'a' the weight -1"),
        ({"corpus": {"a": 0, "b": 0}}, "only weights of 0"),
        ({"corpus": {"a": float("nan")}}, "weight nan"),
        ({"corpus": {}}, "empty mixture"),
        ({"corpus": []}, "empty mixture"),
        ({"corpus": ["a", "a"]}, "twice"),
        ({"corpus": "a", "temperature": 2.0}, "leave the weights out"),
        ({"corpus": ["a", "b"], "temperature": 0}, "temperature must be above 0"),
        ({"corpus": "a", "phases": (PhaseConfig(5, {"a": 0.5}),)}, r"data\.phases, after 5 sum to 0\.5"),
        ({"corpus": "a", "phases": (PhaseConfig(5, "b"), PhaseConfig(5, "a"))}, "in order"),
        ({"corpus": "a", "phases": (PhaseConfig(0, "b"),)}, "in order"),
    ],
)
def test_wrong_mixtures(data, words):
    with pytest.raises(UserError, match=words):
        DataConfig(**data)


@pytest.mark.parametrize("weights", [{"a": 82.5, "b": 17.5}, {"a": 3, "b": 1}, {"a": 1 / 3, "b": 2 / 3}, {"a": 2e6, "b": 0}])
def test_shares_percent_and_proportions_are_taken(weights):
    assert DataConfig(corpus=weights).corpus == weights


def test_wrong_mixtures_of_real_corpora(three, tmp_path):
    a, b = str(three["a"].path), str(three["b"].path)
    with pytest.raises(UserError, match=r"did you mean '.*/a'"):
        train(tmp_path / "run", {"corpus": {a + "x": 1, b: 1}}, "--train.steps=2")
    (tmp_path / "copy").symlink_to(a)
    with pytest.raises(UserError, match="hold the same corpus"):
        train(tmp_path / "run", {"corpus": {a: 1, str(tmp_path / "copy"): 1}}, "--train.steps=2")
    with pytest.raises(UserError, match=r"one after 512 tokens, and the run ends after 512"):
        train(tmp_path / "run", {"corpus": a, "phases": [{"after": 512, "corpus": b}]}, "--train.steps=2")
    prepare([str(three["a"].path.parent / "a.jsonl")], tmp_path / "bpe", "bpe:300", 0.2)
    with pytest.raises(UserError, match=r"another tokenizer \(bpe:300\).*--tokenizer"):
        train(tmp_path / "run", {"corpus": [a, str(tmp_path / "bpe")]}, "--train.steps=2")
    assert not (tmp_path / "run").exists()
    for broken, words in (
        ("[{after: 5}]", "data.phases"),
        ("[{after: soon, corpus: a}]", "data.phases"),
        ("[{later: 5, corpus: a}]", "later"),
    ):
        (tmp_path / "c.yaml").write_text(f"data:\n  phases: {broken}\n")
        with pytest.raises(UserError, match=words):
            config.load(None, tmp_path / "c.yaml")


def test_a_mixture_survives_run_yaml(tmp_path):
    given_ = DataConfig(corpus={"x": 0.5, "y": 0.5}, phases=(PhaseConfig(1000, ["x", "y"]), PhaseConfig(2000, {"x": 1})),
                        temperature=3.0)  # fmt: skip
    from yupana.config import Config

    config.save(Config(data=given_), tmp_path / "run.yaml")
    assert config.load(None, tmp_path / "run.yaml").data == given_
