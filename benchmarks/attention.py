"""Causal attention on a CPU, forward and backward: query blocks (train/attention.py) beside torch's own kernel.

    python benchmarks/attention.py

fp32 and bf16, the head shapes of the 7M preset and of Llama 3.2-1B, several lengths at 4 096 tokens a batch; both
compiled, interleaved round by round, best of all rounds. Writes docs/results/attention.md.
"""

from __future__ import annotations

import argparse
import itertools
import shlex
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from yupana.files import write_atomically
from yupana.model.llama import attend
from yupana.train import host
from yupana.train.attention import blocked_causal_attention

SHAPES = {"7m": (6, 6, 48), "llama3.2-1b": (32, 8, 64)}  # query heads, key/value heads, head_dim
TOKENS = 4096


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--rounds", type=int, default=8)
    rounds = parser.parse_args().rounds
    host.keep_memory()
    lines = [
        "# Causal attention on a CPU, forward and backward",
        "",
        f"{TOKENS:,} tokens, {torch.get_num_threads()} threads, torch {torch.__version__}; best of {rounds} "
        f"interleaved rounds. Made by `python {shlex.join(sys.argv)}`.",
        "",
        "| dtype | heads | seq_len | query blocks | torch's kernel | blocks are faster by |",
        "| --- | --- | ---: | ---: | ---: | ---: |",
    ]
    for dtype, (name, shape), seq in itertools.product(("float32", "bfloat16"), SHAPES.items(), (256, 512, 1024, 2048)):
        blocks, own = race(shape, seq, rounds, getattr(torch, dtype))
        times = f"{blocks * 1e3:.0f} ms | {own * 1e3:.0f} ms | {own / blocks:.2f}×"
        lines.append(f"| {dtype} | {name} | {seq:,} | {times} |")
        print(lines[-1], flush=True)
    write_atomically(Path("docs/results/attention.md"), "\n".join(lines) + "\n")


def race(shape: tuple[int, int, int], seq: int, rounds: int, dtype: torch.dtype) -> tuple[float, float]:
    """Seconds of the fastest pass of each."""
    n_heads, n_kv_heads, head_dim = shape
    torch._dynamo.reset()
    generator = torch.Generator().manual_seed(0)
    q, k, v = (
        torch.randn(TOKENS // seq, seq, heads, head_dim, generator=generator, dtype=dtype)
        .transpose(1, 2)
        .requires_grad_()
        for heads in (n_heads, n_kv_heads, n_kv_heads)
    )
    ways = [torch.compile(way, dynamic=False) for way in (blocked_causal_attention, attend)]
    best = [float("inf")] * 2
    for number in range(rounds + 1):
        for index, way in enumerate(ways):
            seconds = one_pass(way, q, k, v)
            if number:  # the first round compiles
                best[index] = min(best[index], seconds)
    return best[0], best[1]


def one_pass(way: Callable[..., Tensor], q: Tensor, k: Tensor, v: Tensor) -> float:
    """Seconds of one forward and backward pass."""
    begun = time.perf_counter()
    out = way(q, k, v, None)
    out.backward(torch.ones_like(out))
    return time.perf_counter() - begun


if __name__ == "__main__":
    main()
