"""The same work on every rank, each by itself: who holds the others up.

Within a step all ranks wait for the slowest in the next collective, so a step takes all of them the same time. So with
each evaluation every rank runs a block like those of the model, forward and backward, on a micro-batch like its own and
without the others, and rank 0 writes down what each took. This finds an accelerator that is throttled and a host that
something else uses; it does not find a slow disk or a slow network.
"""

from __future__ import annotations

import time
from dataclasses import replace
from statistics import median

import torch

from yupana.model.llama import Block, rope_table
from yupana.train.session import Session

REPEATS = 3  # the first warms up; the median of three leaves it out


def rank_seconds(session: Session) -> list[float] | None:
    """Seconds that each rank took for one block, forward and backward; None where there is one rank."""
    return session.ranks.gather(block_seconds(session)) if session.ranks.count > 1 else None


def block_seconds(session: Session) -> float:
    """This rank's own: the median of REPEATS."""
    device, layout, shape = session.device, session.ranks.layout, session.config.model
    share = replace(
        shape, n_heads=shape.n_heads // layout.tp, n_kv_heads=shape.n_kv_heads // layout.tp, d_ff=shape.d_ff // layout.tp
    )
    dtype = session.model.embedding.weight.dtype
    numbers = torch.Generator(device).manual_seed(0)  # of its own: the run's stays as it is
    with torch.device("meta"):
        block = Block(share).to(dtype)
    block.to_empty(device=device)
    for parameter in block.parameters():
        parameter.data.uniform_(-0.02, 0.02, generator=numbers)
    size = (session.micro_batch, session.config.data.seq_len // layout.cp, shape.d_model)
    x = torch.empty(size, dtype=dtype, device=device).uniform_(-1, 1, generator=numbers)
    rope = rope_table(shape, torch.arange(size[1], device=device))
    taken = []
    for _ in range(REPEATS):
        begun = now(device)
        with torch.autocast(device, torch.bfloat16, enabled=session.precision == "bf16-autocast"):
            out = block(x, rope, None)
        out.backward(x)
        taken.append(now(device) - begun)
    return median(taken)


def now(device: str) -> float:
    """Seconds on a clock, when the device has done all it was given."""
    if device == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter()
