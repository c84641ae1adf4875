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
# # Train a Llama, and account for every FLOP
#
# From text to a loss curve, in order: look at the model, look at the data, train, read the curve and the MFU, sample.
# On a machine with a GPU this trains the real Llama 3.2-1B for 50 steps; on a CPU it trains its 7-million-parameter
# sibling with the very same cells. Time: about two minutes on two CPU cores; on a GPU not measured yet.
#
# Install once, from a clone: `pip install -e '.[all]' -c constraints.txt`.

# %%
from yupana.train import host

host.keep_memory()  # before torch allocates anything: worth 10–40 % of a CPU step

import tempfile
from pathlib import Path

import torch

GPU = torch.cuda.is_available()
PRESET = "llama3.2-1b" if GPU else "7m"
WORK = Path(tempfile.mkdtemp(prefix="yupana-"))
print(f"{PRESET}, on {torch.cuda.get_device_name() if GPU else f'{torch.get_num_threads()} CPU threads'}")

# %% [markdown]
# ## The model
#
# Two presets side by side. A token costs 6 FLOPs a weight that takes part in a matrix product (2 forward, 4 backward),
# and attention on top. In a small model the output head and attention weigh more than in a large one.

# %%
from rich.console import Console

from yupana import config
from yupana.report.text import flops_table

console = Console(width=110)
for name, seq_len in (("llama3.2-1b", 2048), ("7m", 256)):
    console.print(flops_table(name, config.load(name).model, seq_len))

# %% [markdown]
# ## The data
#
# The Python installation's own library: ten megabytes of code and documentation that every machine has. A byte-level
# BPE is trained on it (or Llama 3's tokenizer is used, where the model is Llama 3's), documents are split into training
# and held-out ones, and the tokens end up in flat files that training maps into memory.

# %%
from yupana.corpus.prepare import prepare

tokenizer = config.load(PRESET).data.tokenizer
result = prepare(["python"], WORK / "corpus", tokenizer, val_fraction=0.05)
print({key: result[key] for key in ("documents", "tokens", "bytes", "skipped", "vocab_size")})
print(f"{result['bytes'] / result['tokens']:.2f} bytes a token")

# %%
from tokenizers import Tokenizer

from yupana.corpus.shards import open_corpus

corpus = open_corpus(WORK / "corpus")
words = Tokenizer.from_file(str(corpus.tokenizer_file))
tokens = corpus.split("val").read(0, 120)
print(" | ".join(words.decode([int(t)], skip_special_tokens=False) for t in tokens))

# %% [markdown]
# ## Train
#
# One call. The configuration is a preset with a few settings on top; everything about the run ends up in one folder.

# %%
from yupana.run import RunDirectory
from yupana.train.begin import begin

run = RunDirectory(WORK / "run")
steps = ["--train.steps=50", "--train.global_batch=8"] if GPU else ["--train.steps=300"]
short = ["--optim.warmup_steps=10", "--log.eval_every=50", "--log.eval_tokens=32768"]
last = begin(run, PRESET, None, [f"--data.corpus={WORK / 'corpus'}", *steps, *short])

# %% [markdown]
# ## The curve and the MFU
#
# Model FLOPs Utilization is the model's own FLOPs a second over what the hardware can do at best: the data sheet's
# figure for a GPU, a measured matrix product for a CPU. `palm` counts attention in full (what papers quote), `exact`
# counts the half that is not masked.

# %%
from IPython.display import Image, display

from yupana.report.page import write_report
from yupana.report.text import run_table

write_report(run)
display(Image(str(run.path / "report.png")))
console.print(run_table(run))

# %% [markdown]
# ## A sample
#
# After so few steps the model knows the looks of Python, not its sense.

# %%
from yupana.train.sample import sample_text

print(sample_text(run.path, prompt="def ", tokens=100, seed=1))
