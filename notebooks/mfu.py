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
# # MFU: count it, predict it, raise it, explain it
#
# How many FLOPs a token costs, what the hardware could do, what a step will take, three ways to take the same step, and
# where the time of the best one goes. On a machine with a GPU the model is Llama 3.2-1B, on a CPU a small sibling; the
# cells are the same. Time: about two minutes on two CPU cores; on a GPU not measured yet. The losses are the same
# whenever it is run again on the same machine; seconds, and what follows from them, are not. The whole story is in
# [`docs/mfu.md`](../docs/mfu.md).
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
from pydoc_data.topics import topics

import matplotlib.pyplot as plt
import torch
from IPython.display import display
from rich.console import Console

import yupana

GPU = torch.cuda.is_available()
WORK = Path(tempfile.mkdtemp(prefix="yupana-"))
console = Console(width=110)
print("one GPU" if GPU else f"{torch.get_num_threads()} CPU threads")

# %% [markdown]
# ## Count
#
# MFU is FLOPs a token × tokens a second ÷ peak FLOP/s. Two counts are in use, and they differ by the masked half of
# attention: `palm` takes it in (what papers quote), `exact` leaves it out (what a good kernel computes). The longer the
# sequences, the more it matters which one a figure is.

# %%
print("Llama 3.2-1B, GFLOPs a token, forward and backward")
for seq_len in (512, 2048, 8192, 32768):
    flops = yupana.count("llama3.2-1b", seq_len)["flops_per_token"]
    print(f"{seq_len:7,} tokens   palm {flops['palm'] / 1e9:6.2f}   exact {flops['exact'] / 1e9:6.2f}   "
          f"palm ÷ exact {flops['palm'] / flops['exact']:.2f}")  # fmt: skip

# %% [markdown]
# ## The peak
#
# A known accelerator's peak is its data sheet's *dense* figure. Everything else is measured: the best matrix product
# that this machine has been seen to do, in the dtype that it multiplies fastest: bf16 on a GPU and on some CPUs.
# Products do not all reach it. A narrow model's are small, and small products spend their time on reading and on
# starting.

# %%
from yupana.flops.hardware import bf16_is_fast, peaks

device = "cuda" if GPU else "cpu"
fastest = torch.bfloat16 if bf16_is_fast(device) else torch.float32
dtype = str(fastest).removeprefix("torch.")
peak = peaks(device, dtype)
print(f"peak: {peak.best_known / 1e12:.3f} TFLOP/s in {dtype}, {peak.source}")


def rate(width, rows=4096):
    """FLOP/s of [rows, width] × [width, width], the best of several."""
    import time

    x, w = (torch.randn(height, width, device=device).to(fastest) for height in (rows, width))
    best = float("inf")
    for _ in range(12):
        if GPU:
            torch.cuda.synchronize()
        begun = time.perf_counter()
        torch.mm(x, w)
        if GPU:
            torch.cuda.synchronize()
        best = min(best, time.perf_counter() - begun)
    return 2 * rows * width * width / best


widths = [64, 128, 256, 512, 1024, 2048]
shares = [rate(width) / peak.best_known for width in widths]
figure, axes = plt.subplots(figsize=(6, 3), layout="constrained")
axes.plot(widths, [100 * share for share in shares], "o-", color="#0072B2")
axes.set_xscale("log", base=2)
axes.set_xticks(widths, [str(width) for width in widths])
axes.set(xlabel="d_model: width of the product", ylabel="% of the peak", ylim=(0, 105))
axes.spines[["top", "right"]].set_visible(False)
plt.show()

# %% [markdown]
# ## Predict
#
# Before anything runs: every operation of the step by its FLOPs and bytes, at the rates of a data sheet (with stated
# assumptions) or of a measured machine (`yupana flops limits`). Memory is counted tensor by tensor, without making the
# model. This is Llama 3.2-1B on one H100, which this notebook need not have.

# %%
from yupana.named import shape_of
from yupana.train.limits import prediction

print("seq_len  micro_batch   tokens/s   MFU (palm)   memory")
for seq_len, micro_batch in ((2048, 1), (2048, 16), (4096, 8), (8192, 4)):
    told = prediction(shape_of("llama3.2-1b"), seq_len, micro_batch, micro_batch, hardware="h100")
    print(f"{seq_len:7,} {micro_batch:12} {told['tokens_per_second']:10,.0f} {told['mfu']['palm']:12.1%} "
          f"{told['memory_bytes']['total'] / 1e9:7.1f} GB")  # fmt: skip

# %% [markdown]
# ## Raise
#
# The same model, batches and seed, three times: as a first attempt writes it; with torch's fused attention and without
# recomputation; and with everything that `yupana train` does when it is told nothing. The loss is the same; the time is
# not. All three are held against the one peak measured above, whatever dtype they compute in. `yupana flops ladder` pulls
# the levers one at a time.

# %%
from yupana.flops.count import flops_per_token

(WORK / "topics.txt").write_text("\n\n".join(topics.values()))
common = {"data.corpus": str(WORK / "topics.txt"), "train.tokens": None, "log.eval_every": 1000, "optim.warmup_steps": 2}
if GPU:
    preset = "llama3.2-1b"
    common |= {"train.steps": 12, "train.global_batch": 16, "train.micro_batch": 4, "data.seq_len": 2048}
else:
    preset = "7m"
    common |= {"train.steps": 12, "train.global_batch": 16, "train.micro_batch": 8, "model.n_layers": 3}
    common |= {"data.tokenizer": "bpe:2048", "model.vocab_size": 2048}
naive = {"train.precision": "fp32", "train.compile": "off", "fast.attention": "unfused", "fast.projections": "separate",
         "fast.loss": "full", "fast.adamw": "loop", "fast.recompute": "block"}  # fmt: skip
ways = {
    "as first written": naive,
    "fused attention, nothing recomputed": naive | {"fast.attention": "sdpa", "fast.recompute": "none"},
    "yupana's defaults, compiled": {"train.compile": "block"},
}
figures, ends = {}, []
for name, changes in ways.items():
    settings = yupana.settings(preset, changes=common | changes)
    per_token = flops_per_token(settings.model, settings.data.seq_len)["palm"]
    run = yupana.pretrain(settings, WORK / name.replace(" ", "-").replace(",", ""))
    lines = [line for line in run.metrics if "tokens_per_second" in line][4:]
    figures[name] = per_token * max(line["tokens_per_second"] for line in lines) / peak.best_known
    ends.append(lines[-1]["loss"])

# %%
for name, end in zip(figures, ends, strict=True):
    print(f"{name:38s} MFU {figures[name]:6.1%}   loss at the end {end:.4f}")
figure, axes = plt.subplots(figsize=(7, 2.2), layout="constrained")
bars = axes.barh(list(figures), [100 * value for value in figures.values()], color="#0072B2", height=0.6)
axes.bar_label(bars, fmt="%.1f %%", padding=4)
axes.set(xlabel="MFU (palm), % of the peak", xlim=(0, 100))
axes.invert_yaxis()
axes.spines[["top", "right"]].set_visible(False)
plt.show()

# %% [markdown]
# ## Explain
#
# A few steps of the last one under torch's profiler, every kernel sorted into a part, scaled to the time of undisturbed
# steps. Each part takes away what it *lost*: its time beyond what its own FLOPs are worth at the peak. MFU (`exact`) and
# the losses sum to 100 %.

# %%
from yupana.report.mfu_plots import draw_waterfall
from yupana.report.mfu_text import waterfall_table

seen = yupana.explain(settings, steps=4)
lost = sum(part["lost_share"] for part in seen["parts"])
print(f"MFU (exact) {seen['mfu']['exact']:.1%} + lost {lost:.1%} = {seen['mfu']['exact'] + lost:.1%}")
display(draw_waterfall(seen, "Where the lost MFU went"))
console.print(waterfall_table(seen))

# %% [markdown]
# What remains on a narrow model is mostly its products being small: look at their sizes, and at the curve of rates by
# width above. `yupana flops ladder` tries every lever on the machine at hand; `yupana flops explain RUN` does this for
# a run of your own.
