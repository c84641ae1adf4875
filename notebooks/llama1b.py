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
# From text to a model that answers, in order: look at the data, look at the model, train, read the curve, compare its
# end with what a law of the learning rate foretold, see where the lost MFU went, sample, export to `transformers`,
# fine-tune. On a machine with a GPU this trains the real Llama 3.2-1B for 50 steps; on a CPU it trains its
# 7-million-parameter sibling with the very same cells. Time: about three minutes on two CPU cores; on a GPU not measured
# yet. Losses and samples are the same whenever the notebook is run again on the same machine; seconds are not.
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
# ## The data
#
# The Python installation's own library: ten megabytes of code and documentation that every machine has. A byte-level
# BPE is trained on it (or Llama 3's tokenizer is used, where the model is Llama 3's), documents are split into training
# and held-out ones, and the tokens end up in flat files that training maps into memory.

# %%
from yupana import config
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
# ## The model
#
# Two presets side by side. A token costs 6 FLOPs a weight that takes part in a matrix product (2 forward, 4 backward),
# and attention on top. In a small model the output head and attention weigh more than in a large one.

# %%
from rich.console import Console

from yupana.report.text import flops_table

console = Console(width=110)
for name, seq_len in (("llama3.2-1b", 2048), ("7m", 256)):
    console.print(flops_table(name, config.load(name).model, seq_len))

# %% [markdown]
# ## Train
#
# One call. The configuration is a preset with a few settings on top; everything about the run ends up in one folder.

# %%
from yupana.run import RunDirectory
from yupana.train.begin import begin

run = RunDirectory(WORK / "run")
steps = ["--train.steps=50", "--train.global_batch=8"] if GPU else ["--train.steps=240"]
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
# ## Predicted, then measured
#
# After two thirds of the steps, could the end have been known? The annealing law
# ([2408.11029](https://arxiv.org/abs/2408.11029)) gives the loss of every step from the learning rates up to it. Fitted
# to the first two thirds of this curve, it foretells the last third, of which it has seen nothing. What a *larger* run
# will reach is a question for the laws of size and tokens: `scaling_laws.ipynb`.

# %%
import numpy as np

from yupana.scaling import annealing, runs

curve = runs.curve_of(run)
losses = np.convolve(curve.losses, np.ones(9) / 9, "valid")  # a mean of nine steps: single batches scatter
steps = curve.steps[4:-4]
known = (steps > 20) & (steps <= steps[-1] * 2 // 3)  # without the warm-up, which the law does not describe
law = annealing.fit("annealing", [annealing.Curve("this run", curve.rates, steps[known], losses[known])])
predicted = law.losses(curve.rates, steps)
error = predicted[-1] / losses[-1] - 1
print(f"the end: predicted {predicted[-1]:.3f}, measured {losses[-1]:.3f} nats a token: {error:+.1%}")

# %%
import matplotlib.pyplot as plt

figure, axes = plt.subplots(figsize=(8, 3.4), layout="constrained")
axes.plot(curve.steps, curve.losses, color="#b8cfe0", linewidth=0.8)
axes.plot(steps, losses, color="#0072B2")
axes.plot(steps[~known & (steps > 20)], predicted[~known & (steps > 20)], color="#D55E00", linestyle="--", linewidth=2)
axes.axvline(steps[known][-1], color="#8a8a8a", linewidth=0.8)
axes.text(steps[known][-1], axes.get_ylim()[1], " from here on predicted (dashed) ", va="top", color="#D55E00")
axes.set(xlabel="step", ylabel="training loss, nats a token")
axes.spines[["top", "right"]].set_visible(False)
plt.show()

# %% [markdown]
# ## Where the lost MFU went
#
# A few steps of this run's own configuration under the profiler. From the left: the peak; then what each part of the
# step took away from it; then the MFU that is left. The table names the setting that would shrink each part.

# %%
import yupana
from yupana.report.mfu_plots import draw_waterfall
from yupana.report.mfu_text import waterfall_table

seen = yupana.explain(yupana.open_run(run.path), steps=3)
display(draw_waterfall(seen, f"Where the MFU of {PRESET} went"))
console.print(waterfall_table(seen))

# %% [markdown]
# ## A sample
#
# After so few steps the model knows the looks of Python, not its sense.

# %%
print(yupana.open_run(run.path).sample("def ", tokens=100, seed=1))

# %% [markdown]
# ## Into the ecosystem
#
# The export is an ordinary folder for `transformers`: configuration, safetensors weights, tokenizer, a model card.

# %%
from transformers import AutoModelForCausalLM, AutoTokenizer

exported = yupana.open_run(run.path).export()
model, tokenizer = (kind.from_pretrained(exported) for kind in (AutoModelForCausalLM, AutoTokenizer))
ids = tokenizer("import ", return_tensors="pt")
print(tokenizer.decode(model.generate(**ids, max_new_tokens=24, do_sample=False)[0]))

# %% [markdown]
# ## Fine-tune
#
# Conversations, one JSON object a line; TRL's SFTTrainer trains with the loss on the answers alone: low-rank adapters
# (PEFT) on a large model, all weights (`lora.rank` 0) on one as small as the CPU's, which has nothing yet to adapt. The
# facts are not in the pretraining text: what is learnt here comes from the conversations.

# %%
import json

colours = {"sky": "blue", "grass": "green", "snow": "white", "coal": "black", "blood": "red", "sun": "yellow"}
ways = ["What colour is {}?", "Tell me the colour of {}.", "{}: which colour?", "Colour of {}, please."]
with open(WORK / "chat.jsonl", "w") as file:
    for thing, colour in colours.items():
        for way in ways:
            file.write(json.dumps({"prompt": way.format(thing), "completion": f"It is {colour}."}) + "\n")

tuned = yupana.tune_model(WORK / "tuned", {
    "model.base": str(run.path), "data.train": str(WORK / "chat.jsonl"), "data.seq_len": 64,
    "lora.rank": 16 if GPU else 0, "optim.lr": 2e-4 if GPU else 2e-3, "train.steps": 80, "train.global_batch": 8,
    "log.eval_every": 20,
})  # fmt: skip
held_out = [line["val_loss"] for line in yupana.open_run(WORK / "tuned").metrics if "val_loss" in line]
print(f"held-out loss {held_out[0]:.3f} → {held_out[-1]:.3f} nats a token of the answers; MFU {tuned['mfu']:.1%}")

# %%
model, tokenizer = (kind.from_pretrained(tuned["export"]) for kind in (AutoModelForCausalLM, AutoTokenizer))
for asked in ("What colour is snow?", "Colour of coal, please.", "grass: which colour?"):
    chat = [{"role": "user", "content": asked}]
    ids = tokenizer.apply_chat_template(chat, add_generation_prompt=True, return_tensors="pt", return_dict=True)
    answer = model.generate(**ids, max_new_tokens=8, do_sample=False)[0][ids["input_ids"].shape[1] :]
    print(f"{asked:28s} {tokenizer.decode(answer, skip_special_tokens=True)}")

# %% [markdown]
# The form of an answer is learnt; which colour belongs to which thing is more than this small model keeps, 240 steps old
# as it is. The same cells on the full Llama 3.2-1B are where a GPU comes in.
