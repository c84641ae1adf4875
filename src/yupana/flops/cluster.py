"""A step on many accelerators before it runs: compute, what communication adds to it, memory a rank, the best layout.

Compute is that of `predict` for a rank's share, tensor and context parallelism dividing each operation; communication is
that of `step_collectives` over data-sheet links. Block by block, weights are gathered and gradients reduced while the
neighbouring block computes: of those only what takes longer than the block is seen, and the first and last of them.
Sequences are gathered and scattered between products, where nothing is left to compute meanwhile: all of that is seen.
None of this has been measured on a cluster.
"""

from __future__ import annotations

import math
from collections import defaultdict
from dataclasses import asdict, dataclass, replace
from typing import Any

from yupana.errors import UserError
from yupana.flops.accelerators import Accelerator
from yupana.flops.communication import (
    GRADIENT,
    Collective,
    block_tensors,
    outer_tensors,
    padded,
    sent_share,
    step_collectives,
)
from yupana.flops.count import flops_per_token, mfu
from yupana.flops.interconnect import LATENCY, REACHED, Interconnect, members
from yupana.flops.layout import Layout, check_layout
from yupana.flops.memory import USABLE, Setup, layer_bytes, most_that_fits
from yupana.flops.predict import predict
from yupana.model.shapes import ModelShape

ASSUMED = (
    f"collectives at {REACHED:.0%} of the links' data-sheet rates, and {LATENCY * 1e6:.0f} µs each however small",
    "blocks' weights and gradients travel while the neighbouring block computes, and slow it down by nothing",
    "sequences between tensor-parallel products travel while nothing computes",
)
OUTSIDE = ("embedding", "norm", "output", "cross_entropy", "adamw", "tied", "micro_batches", "host", "weights")


@dataclass(frozen=True)
class Part:
    """A kind of collective in the step's time."""

    collective: Collective
    ranks: int
    seconds: float
    """If nothing else ran."""
    seen: float
    """What it adds to the step."""


def cluster_step(setup: Setup, layout: Layout, card: Accelerator, links: Interconnect) -> dict[str, Any]:
    """The prediction of a step; `setup` is a rank's share of the batch, `global_batch` in it too."""
    alone = predict(setup, card)
    compute = rank_seconds(alone, layout)
    parts = parts_of(setup, layout, links, compute)
    seconds = compute["all"] + sum(part.seen for part in parts)
    tokens = setup.global_batch * setup.seq_len * layout.data
    peak = alone["peak_flops_per_second"]
    counts = flops_per_token(setup.shape, setup.seq_len)
    memory = rank_memory(setup, layout)
    return {
        **alone,
        "layout": asdict(layout),
        "ranks": layout.ranks,
        "global_batch": setup.global_batch * layout.data,
        "links": {**asdict(links)},
        "assumed": [*alone["assumed"], *ASSUMED],
        "compute_seconds": compute["all"],
        "step_seconds": seconds,
        "tokens_per_second": tokens / seconds,
        "mfu": {name: mfu(counts[name] * tokens / seconds, peak * layout.ranks) for name in counts},
        "memory_bytes": memory,
        "fits": memory["total"] <= USABLE * card.memory_bytes,
        "largest_micro_batch": largest(setup, layout, card.memory_bytes, min(2, setup.accumulation)),
        "communication": [
            {**asdict(p.collective), "ranks": p.ranks, "seconds": p.seconds, "seen_seconds": p.seen,
             "hidden_share": 1 - p.seen / p.seconds if p.seconds else 0.0}
            for p in parts
        ],
    }  # fmt: skip


def rank_seconds(alone: dict[str, Any], layout: Layout) -> dict[str, float]:
    """A rank's compute in a step: "all", and "forward" and "backward" of one block of one micro-batch."""
    found: dict[str, float] = defaultdict(float)
    layers = 1
    for line in alone["operations"]:
        divided = layout.tp * (layout.shards if line["part"] == "adamw" else layout.cp)
        for pass_, seconds in line["seconds"].items():
            found["all"] += seconds / divided
            if line["part"] not in OUTSIDE:
                layers = line["count"]  # layers × micro-batches
                found[pass_] += seconds / divided
    return {"all": found["all"], **{name: found[name] / layers for name in ("forward", "backward")}}


def parts_of(setup: Setup, layout: Layout, links: Interconnect, compute: dict[str, float]) -> list[Part]:
    """Each kind of collective with its time and what is seen of it."""
    parts = []
    for one in step_collectives(setup, layout):
        ranks = members(layout, one.over)[0]
        whole = links.seconds(layout, one.over, sent_share(one.name, ranks) * one.bytes, one.count)
        parts.append(Part(one, ranks, whole, whole))
    travelling = [p for p in parts if p.collective.over in ("shards", "replicate")]
    seen = seen_seconds(setup, layout, links, compute)
    total = sum(part.seconds for part in travelling)
    return [
        replace(part, seen=seen * part.seconds / total) if part in travelling and total else part for part in parts
    ]


def seen_seconds(setup: Setup, layout: Layout, links: Interconnect, compute: dict[str, float]) -> float:
    """What weights and gradients on their way add to the step."""
    layers, times, s = setup.shape.n_layers, setup.accumulation, setup.sizes
    block = padded(block_tensors(setup.shape, layout.tp), layout.shards)
    around = padded(outer_tensors(setup.shape, layout.tp), layout.shards)

    def gather(numbers: int) -> float:
        sent = sent_share("all_gather", layout.shards) * numbers * s.weight
        return links.seconds(layout, "shards", sent, 1) if layout.shards > 1 else 0.0

    def reduce(numbers: int) -> float:
        sent = sent_share("reduce_scatter", layout.shards) * numbers * GRADIENT
        seconds = links.seconds(layout, "shards", sent, 1) if layout.shards > 1 else 0.0
        if layout.replicate > 1:
            sent = sent_share("all_reduce", layout.replicate) * numbers / layout.shards * GRADIENT
            seconds += links.seconds(layout, "replicate", sent, 1)
        return seconds

    forward = max(0.0, gather(block) - compute["forward"])
    backward = max(0.0, gather(block) + reduce(block) - compute["backward"])
    ends = gather(around) + gather(block) + reduce(block) + reduce(around)  # nothing runs before, nothing after
    return times * (ends + (layers - 1) * (forward + backward))


def rank_memory(setup: Setup, layout: Layout) -> dict[str, int]:
    """Bytes of a rank at its fullest: at the head, in the first block going back, as the last gradients meet, or after."""
    shape, s, shards, tp, cp = setup.shape, setup.sizes, layout.shards, layout.tp, layout.cp
    keys = 2 * setup.tokens * shape.kv_width // tp * s.activation if cp > 1 else 0  # of whole sequences, and values
    setup = replace(setup, seq_len=setup.seq_len // cp)
    block, around = padded(block_tensors(shape, tp), shards), padded(outer_tensors(shape, tp), shards)
    own = (shape.n_layers * block + around) // shards
    gathered = around * s.weight if shards > 1 else 0
    passing = 2 * block * s.weight if shards > 1 else 0  # a block and the next one
    kept = 2 * setup.tokens * shape.d_model * s.activation  # what wqkv and w_gate_up read: whole on every tp rank
    layer = (layer_bytes(setup) - kept) // tp + kept + keys
    head = shape.vocab_size // tp * shape.d_model
    rows = min(setup.head_rows * tp, setup.tokens)
    logits = rows * (shape.vocab_size // tp) * s.activation
    activations = shape.n_layers * layer + 2 * setup.tokens * shape.d_model * s.activation
    before = own * (s.gradient if s.masters else s.weight) if setup.accumulation > 1 else 0  # earlier micro-batches'
    arriving = before + head * s.activation
    moments = {
        "head": {"activations": activations, "logits": 2 * logits, "gradients": arriving},
        "block": {
            "activations": activations, "workspace": passing + block * (s.weight + GRADIENT), "gradients": arriving,
        },
        "end": {"gradients": before + own * s.weight + around * s.weight, "workspace": around * GRADIENT},
        "update": {"gradients": own * s.gradient},
    }  # fmt: skip
    fullest = max(moments.values(), key=lambda parts: sum(parts.values()))
    fixed = {"weights": own * s.weight + gathered, "optimizer": own * s.state * (3 if s.masters else 2)}
    empty = dict.fromkeys(("weights", "gradients", "optimizer", "activations", "logits", "workspace"), 0)
    parts = {**empty, **fixed, **fullest, "runtime": setup.runtime_bytes}
    return {"total": sum(parts.values()), **parts}


def check_rank(setup: Setup, layout: Layout, capacity: float, device: str) -> None:
    """Raise UserError, naming the largest micro-batch that fits, when a rank's does not fit into `capacity` bytes."""
    needed = rank_memory(setup, layout)["total"]
    if needed <= USABLE * capacity:
        return
    most = largest(setup, layout, capacity, min(2, setup.accumulation))
    raise UserError(
        f"a micro-batch of {setup.micro_batch} × {setup.seq_len:,} tokens needs {needed / 1e9:.1f} GB on each rank "
        f"({layout}), and {device} has {capacity / 1e9:.1f} GB, of which {USABLE:.0%} can be used: "
        + (f"the largest that fits is {most}" if most else "not even one sequence fits: take more ranks, a smaller model, "
           "shorter sequences or --precision bf16-lean")
    )  # fmt: skip


def largest(setup: Setup, layout: Layout, capacity: float, times: int = 1) -> int:
    """The most sequences in a rank's micro-batch that fit, with `times` of them in a step; 0 if not even one."""

    def fits(batch: int) -> bool:
        needed = rank_memory(replace(setup, micro_batch=batch, global_batch=times * batch), layout)["total"]
        return needed <= USABLE * capacity

    return most_that_fits(fits)


def candidates(
    setup: Setup, count: int, card: Accelerator, links: Interconnect, global_batch: int | None
) -> list[dict[str, Any]]:
    """Every layout of `count` cards that suits the model, with the largest micro-batch up to the setup's that fits.

    The fastest first; among those within 1 % of it, the one with the least communication to go wrong: little tp, no
    replicas. Layouts in which not even one sequence fits are left out.
    """
    found = []
    for layout in layouts(setup.shape, setup.seq_len, count, links.node):
        share = setup.micro_batch if global_batch is None else global_batch // layout.data
        if not share or (global_batch is not None and global_batch % layout.data):
            continue
        most = min(setup.micro_batch, share, largest(setup, layout, card.memory_bytes))
        if most < share:  # several in a step: gradients add up between them
            most = min(most, largest(setup, layout, card.memory_bytes, times=2))
        if not most:
            continue
        micro = next(size for size in range(most, 0, -1) if share % size == 0)
        found.append(cluster_step(replace(setup, micro_batch=micro, global_batch=share), layout, card, links))
    if not found:
        raise UserError(
            f"no layout of {count} {card.name} holds this model and batch: take more cards, a smaller --micro_batch, "
            "shorter sequences or --precision bf16-lean"
        )
    best = max(worth(result) for result in found)

    def rank(result: dict[str, Any]) -> tuple[bool, int, int, int, float]:
        slower = worth(result) < 0.99 * best
        simple = (0, 0, 0) if slower else tuple(result["layout"][name] for name in ("tp", "cp", "replicate"))
        return (slower, *simple, -worth(result))

    return sorted(found, key=rank)


def worth(result: dict[str, Any]) -> float:
    """Tokens a second, less 5 % where sequences are cut (cp): by so much it must win, since nobody has measured it."""
    return result["tokens_per_second"] * (0.95 if result["layout"]["cp"] > 1 else 1.0)


def layouts(shape: ModelShape, seq_len: int, count: int, node: int) -> list[Layout]:
    """replicate × fsdp × cp × tp = count, cp and tp inside a node and dividing the sequence, tp the model too."""
    shared, found = math.gcd(shape.n_kv_heads, shape.n_heads, shape.d_ff, shape.vocab_size), []
    for inside in (n for n in range(1, min(count, node) + 1) if count % n == 0):
        for tp in (t for t in range(1, inside + 1) if inside % t == 0 and shared % t == 0):
            cp, rest = inside // tp, count // inside
            if seq_len % (2 * cp if cp > 1 else 1) == 0 and seq_len // cp % tp == 0:
                found += [Layout(rest // fsdp, fsdp, tp, cp) for fsdp in range(1, rest + 1) if rest % fsdp == 0]
    return found


def cluster_prediction(
    setup: Setup, count: int, card: Accelerator, links: Interconnect, layout: Layout | None, global_batch: int | None
) -> dict[str, Any]:
    """The prediction for a layout, or for the recommended one with the others beside it ("candidates").

    `setup.micro_batch` is the largest a rank may take. Raises UserError for a layout that the model or the batch does
    not suit, and where nothing fits.
    """
    if layout is None:
        ranked = candidates(setup, count, card, links, global_batch)
        brief = ("layout", "micro_batch", "step_seconds", "tokens_per_second", "mfu")
        others = [{**{k: r[k] for k in brief}, "memory_bytes": r["memory_bytes"]["total"]} for r in ranked]
        return {**ranked[0], "recommended": True, "candidates": others}
    whole = global_batch or setup.micro_batch * layout.data
    check_layout(layout, setup.shape, setup.seq_len, whole, setup.micro_batch)
    share = replace(setup, global_batch=whole // layout.data)
    return {**cluster_step(share, layout, card, links), "recommended": False, "candidates": []}
