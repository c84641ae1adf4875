"""What the corpus tools cost: tokenising against tiktoken, near-duplicates found, memory, and the reader.

    python benchmarks/corpus.py tokenise SOURCE… [--megabytes 64] [--rounds 3]
    python benchmarks/corpus.py same SOURCE… [--strings 1000000]      ids against those of Llama 3's authors
    python benchmarks/corpus.py duplicates [--pairs 600]
    python benchmarks/corpus.py size KERNEL [--cases tiny,line]       at size: corpus_size.py says which cases there are
    python benchmarks/corpus.py reader CORPUS [--step_seconds S]

Each prints one JSON object. SOURCE is anything that yupana reads; benchmarks/corpus_sources.sh fetches some.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import tempfile
import time
from pathlib import Path
from typing import Any

from corpus_same import llama3_of_its_authors, same
from corpus_size import CASES, size

from yupana.corpus import words as w
from yupana.corpus.sources import documents


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(required=True)
    c = commands.add_parser("tokenise")
    c.add_argument("sources", nargs="+")
    c.add_argument("--megabytes", type=int, default=64)
    c.add_argument("--rounds", type=int, default=3)
    c.set_defaults(run=lambda a: tokenise(a.sources, a.megabytes << 20, a.rounds, a.tokenizers.split(",")))
    c.add_argument("--tokenizers", default="llama3,bytes,bpe:4096", help="comma-separated")
    c = commands.add_parser("same")
    c.add_argument("sources", nargs="+")
    c.add_argument("--strings", type=int, default=1_000_000)
    c.add_argument("--seed", type=int, default=7)
    c.set_defaults(run=lambda a: same(some_of_each(a.sources, 32 << 20), a.strings, a.seed))
    c = commands.add_parser("duplicates")
    c.add_argument("--pairs", type=int, default=600)
    c.set_defaults(run=lambda a: duplicates(a.pairs))
    c = commands.add_parser("size")
    c.add_argument("kernel", help="the folder of the gigabyte source")
    c.add_argument("--cases", default=",".join(CASES))
    c.add_argument("--scratch", type=Path, default=Path(tempfile.gettempdir()), help="where there are a few GB of room")
    c.add_argument("--sample", type=int, help="documents of it that are explored (all)")
    c.set_defaults(run=lambda a: size(a.kernel, a.cases.split(","), a.scratch, a.sample))
    c = commands.add_parser("reader")
    c.add_argument("corpus")
    c.add_argument("--step_seconds", type=float, help="of a training step, to say what share reading is")
    c.add_argument("--seq_len", type=int, default=256)
    c.add_argument("--global_batch", type=int, default=32)
    c.set_defaults(run=lambda a: reader(a.corpus, a.seq_len, a.global_batch, a.step_seconds))
    arguments = parser.parse_args()
    print(json.dumps({**arguments.run(arguments), "cores": os.cpu_count()}, indent=2))


def tokenise(sources: list[str], size: int, rounds: int, tokenizer_names: list[str]) -> dict[str, Any]:
    """Tokens/s of the whole preparation under each tokenizer, and of tiktoken's batch encoder on Llama 3's own ranks.

    The same text, the same cores, in turn. The preparation reads JSON lines, makes the tokenizer, tokenises, hashes and
    writes; tiktoken has the texts in memory and its encoder made. The ids are compared document by document.
    """
    import numpy as np

    from yupana.corpus.prepare import prepare
    from yupana.corpus.shards import open_corpus

    texts = some_of_each(sources, size)
    encoding = llama3_of_its_authors().model
    seconds: dict[str, list[float]] = {}
    tokens: dict[str, int] = {}
    with tempfile.TemporaryDirectory() as folder:
        lines = Path(folder, "text.jsonl")
        lines.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
        for number in range(rounds):
            began = time.perf_counter()
            expected = encoding.encode_ordinary_batch(texts, num_threads=os.cpu_count() or 1)
            seconds.setdefault("tiktoken", []).append(time.perf_counter() - began)
            tokens["tiktoken"] = sum(map(len, expected))
            if number:
                del expected  # lists of Python's whole numbers, 36 bytes each
            for name in tokenizer_names:
                began = time.perf_counter()
                out = Path(folder, f"{name}-{number}")
                result = prepare([lines], out, name, val_fraction=0)
                seconds.setdefault(f"prepare, {name}", []).append(time.perf_counter() - began)
                tokens[f"prepare, {name}"] = result["tokens"]
            if not number:
                stream = open_corpus(Path(folder, "llama3-0")).split("train")
                bounds = [*stream.starts, stream.n_tokens]
                differing = sum(
                    not np.array_equal(stream.read(int(a) + 1, int(b) - 1), np.array(ids, dtype=np.int64))
                    for a, b, ids in zip(bounds[:-1], bounds[1:], expected, strict=True)
                )
    ratios = sorted(theirs / ours for theirs, ours in zip(seconds["tiktoken"], seconds["prepare, llama3"], strict=True))
    return {
        "bytes": sum(len(text.encode()) for text in texts),
        "documents": len(texts),
        "tokens": tokens["tiktoken"],
        "documents_whose_ids_differ": differing,
        "seconds": seconds,
        "tokens_per_second": {name: tokens[name] / min(times) for name, times in seconds.items()},
        "prepare_over_tiktoken": {"median": ratios[len(ratios) // 2], "least": ratios[0], "most": ratios[-1]},
    }


def some_of_each(sources: list[str], size: int) -> list[str]:
    """Documents of `size` characters in all, of each source as much, as far as it goes."""
    texts: list[str] = []
    for number, source in enumerate(sources):
        wanted = (size - sum(map(len, texts))) // (len(sources) - number)
        for _, text in documents([source]):
            texts.append(text)
            wanted -= len(text)
            if wanted <= 0:
                break
    return texts


def duplicates(pairs: int) -> dict[str, Any]:
    """Recall and precision on planted pairs of every similarity, by exploring and by preparing.

    The truth is Jaccard's formula on Python sets of runs of five words. A pair counts as found when exploring puts both
    into a group, and when preparing keeps one of them only.
    """
    from yupana.corpus.duplicates import Duplicates
    from yupana.corpus.prepare import prepare

    generator = random.Random(1)
    vocabulary = [f"word{number}" for number in range(20_000)]
    planted = []
    for _ in range(pairs):
        one = generator.choices(vocabulary, k=200)
        other = list(one)
        for place in generator.sample(range(200), generator.choice([0, 1, 2, 3, 4, 6, 8, 12, 20, 40])):
            other[place] = f"other{generator.randrange(10**9)}"
        planted.append((" ".join(one), " ".join(other), jaccard(one, other)))
    texts = [(f"{number}{side}", pair[place]) for number, pair in enumerate(planted) for place, side in enumerate("ab")]
    generator.shuffle(texts)

    with Duplicates(0.8) as found:
        for name, text in texts:
            found.add(name, text, w.hashes(w.plain_words(text)))
        exact = {one for one, other, similarity in planted if one == other}
        groups, _ = found.near()
        names = [name for name, text in first_of_each(texts)]
        near = {tuple(sorted(names[member][:-1] for member in group)) for group in groups}
    explored = [one in exact or (str(n), str(n)) in near for n, (one, _, _) in enumerate(planted)]

    with tempfile.TemporaryDirectory() as folder:
        lines = Path(folder, "t.jsonl")
        lines.write_text("".join(json.dumps({"text": text, "id": name}) + "\n" for name, text in texts))
        prepare([lines], Path(folder, "out"), "bytes", val_fraction=0, near_duplicates=True)
        import gzip

        gone = gzip.decompress(Path(folder, "out", "removed.jsonl.gz").read_bytes()).decode().splitlines()
        places = {int(json.loads(line)["id"].rpartition(":")[2]) - 1 for line in gone}
    removed = {texts[place][0][:-1] for place in places}
    prepared = [str(number) in removed for number in range(pairs)]
    truth = [similarity for _, _, similarity in planted]
    return {"pairs": pairs, "explore": judged(truth, explored), "prepare": judged(truth, prepared)}


def first_of_each(texts: list[tuple[str, str]]) -> list[tuple[str, str]]:
    """Without equal copies: those are told apart before nearness is looked at."""
    seen: set[str] = set()
    return [(name, text) for name, text in texts if not (text in seen or seen.add(text))]  # type: ignore[func-returns-value]


def judged(truth: list[float], found: list[bool]) -> dict[str, Any]:
    """Recall at 0.8 and more, precision against 0.8, and the share found by similarity."""
    alike = [similarity >= 0.8 for similarity in truth]
    both = sum(a and f for a, f in zip(alike, found, strict=True))
    shares = {}
    for low, high in ((0, 0.4), (0.4, 0.6), (0.6, 0.7), (0.7, 0.8), (0.8, 0.9), (0.9, 1.01)):
        here = [f for s, f in zip(truth, found, strict=True) if low <= s < high]
        shares[f"{low} to {min(high, 1)}"] = [sum(here), len(here)]
    return {"recall": both / sum(alike), "precision": both / sum(found), "found_of_pairs_by_similarity": shares}


def jaccard(one: list[str], other: list[str]) -> float:
    """|A ∩ B| / |A ∪ B| of the runs of five words."""
    sets = [{tuple(words[at : at + 5]) for at in range(len(words) - 4)} for words in (one, other)]
    return len(sets[0] & sets[1]) / len(sets[0] | sets[1])


def reader(path: str, seq_len: int, global_batch: int, step_seconds: float | None) -> dict[str, Any]:
    """Tokens/s of one core that makes batches from a warm cache, for each packing; the best of five."""
    from yupana.corpus.batches import Batches
    from yupana.corpus.shards import open_corpus

    corpus, found = open_corpus(path), {}
    for packing in ("stream", "documents", "best-fit"):
        began = time.perf_counter()
        batches = Batches(corpus, seq_len, global_batch, packing=packing)  # type: ignore[arg-type]
        made = time.perf_counter() - began
        steps, best = max(1, 2_000_000 // (seq_len * global_batch)), 0.0
        for _ in range(5):
            began = time.perf_counter()
            for step in range(steps):
                batches.batch(step)
            best = max(best, steps * seq_len * global_batch / (time.perf_counter() - began))
        found[packing] = {"tokens_per_second": best, "seconds_to_open": made}
        if step_seconds:
            found[packing]["share_of_a_step"] = seq_len * global_batch / best / step_seconds
    tokens = corpus.info["splits"]["train"]["tokens"]
    return {"corpus_tokens": tokens, "seq_len": seq_len, "global_batch": global_batch, "packings": found}


if __name__ == "__main__":
    main()
