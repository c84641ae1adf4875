"""Where the lost MFU went: from a profile of real steps to parts that sum to the step's time.

A step of t seconds does F model FLOPs; at the peak rate P they would take F / P. The rest of the time is split among
what took it: matrix products slower than the peak (by shape), attention beyond its FLOPs' worth, elementwise
kernels, loss, optimiser, data, and the gaps in which nothing of these ran. MFU + all the lost shares = 100 %.
"""

from __future__ import annotations

import re
from collections import defaultdict
from dataclasses import dataclass
from typing import Any

from yupana.flops.operations import Operation, step_operations
from yupana.model.shapes import ModelShape


@dataclass(frozen=True)
class Event:
    """One kernel or operator of the profile, its own time without what it called."""

    name: str
    seconds: float
    shapes: tuple[tuple[int, ...], ...] = ()
    """Of its inputs."""


@dataclass(frozen=True)
class Part:
    """A share of the step."""

    name: str
    seconds: float
    """A step."""
    useful_seconds: float
    """What its model FLOPs would take at the peak."""
    lever: str
    """What would shrink it."""

    @property
    def lost_seconds(self) -> float:
        """Time beyond what its FLOPs are worth."""
        return self.seconds - self.useful_seconds


PRODUCTS = re.compile(r"aten::(mm|addmm_?|_scaled_mm)$|gemm|nvjet|cutlass|xmma|cublas|Cijk", re.I)
# The first rule that matches wins.
RULES: tuple[tuple[str, str], ...] = (
    ("attention", r"flash|fmha|sdpa|scaled_dot_product|attention|aten::_?baddbmm|aten::bmm|_softmax|aten::softmax"),
    ("head and loss", r"logsumexp|nll_loss|cross_?entropy|exp.*gather|gather.*exp|scatter"),
    ("optimizer", r"adam|multi_tensor|_foreach|linalg_vector_norm|muon|addcdiv|addcmul|lerp"),
    ("communication", r"nccl|all_reduce|all_gather|reduce_scatter|c10d"),
    ("data", r"yupana\.data"),
    ("embedding", r"embedding|index_select"),
)
# Kernels that torch.compile makes are named after the operations inside them.
FUSED = re.compile(r"(cpp|triton_\w+?)_fused")
FUSED_RULES: tuple[tuple[str, str], ...] = (
    ("SwiGLU", r"silu|sigmoid"),
    ("rotary", r"neg|cat.*mul|cos|sin"),
    ("norms", r"rsqrt|mean|pow|mul_sum"),
    ("attention", r"clone|transpose"),  # heads laid out for the attention's products, and back
    ("residuals", r"add"),
)
# Outside compiled code operators have their plain names.
EAGER_RULES: tuple[tuple[str, str], ...] = (
    ("SwiGLU", r"aten::silu"),
    ("norms", r"aten::(rsqrt|mean|pow)"),
    ("rotary", r"aten::(neg|cos|sin|cat)"),
    ("copies and casts", r"aten::(copy_|_to_copy|clone|contiguous|fill_|zero_)|memcpy|memset"),
)
LEVERS = {
    "matrix products": "larger micro-batch; fast.projections fused; train.compile max-autotune; float8",
    "attention": "another fast.attention; shorter sequences",
    "optimizer": "fast.adamw fused; a larger global batch, so that it comes less often",
    "head and loss": "fast.loss chunked; train.compile block",
    "norms": "train.compile block",
    "SwiGLU": "train.compile block",
    "rotary": "train.compile block",
    "residuals": "nothing much: it is memory traffic",
    "embedding": "nothing much: it is memory traffic",
    "communication": "overlap it; a larger micro-batch",
    "copies and casts": "train.precision bf16 instead of bf16-autocast; train.compile block",
    "data": "fast.overlap true",
    "other elementwise": "train.compile block",
    "host and gaps": "train.compile cuda-graphs on a GPU; a larger micro-batch; fast.allocator keep",
}
HOST = re.compile(r"CompiledFxGraph|CompiledFunction|Torch-Compiled|TorchDynamo|ProfilerStep|Backward|Optimizer\.|autograd")


def kind_of(event: Event) -> str:
    """The part an event belongs to."""
    if PRODUCTS.search(event.name):
        return "matrix products"
    fused = FUSED.search(event.name) is not None
    for part, pattern in RULES + (FUSED_RULES if fused else EAGER_RULES):
        if re.search(pattern, event.name, re.I):
            return part
    return "host and gaps" if HOST.search(event.name) else "other elementwise"


def waterfall(
    events: list[Event], wall_seconds: float, steps: int, shape: ModelShape, batch: int, seq_len: int, peak: float
) -> list[Part]:
    """The parts of one step, largest loss first; their seconds sum to `wall_seconds / steps`.

    `batch` is sequences in a step, `peak` in FLOP/s. Useful seconds are those of the `exact` count: what is masked is
    not computed by a good kernel, so it is no loss and no use either.
    """
    spent: dict[str, float] = defaultdict(float)
    for event in events:
        spent[kind_of(event)] += event.seconds / steps
    spent["host and gaps"] += wall_seconds / steps - sum(spent.values())
    useful = useful_flops(step_operations(shape, batch, seq_len))
    parts = [Part(name, seconds, useful.get(name, 0.0) / peak, LEVERS[name]) for name, seconds in spent.items()]
    return sorted(parts, key=lambda part: -part.lost_seconds)


def useful_flops(operations: list[Operation]) -> dict[str, int]:
    """Model FLOPs by part, `exact`; the output head is a matrix product like the others."""
    attention = sum(o.flops for o in operations if o.name == "attention")
    return {"matrix products": sum(o.flops for o in operations) - attention, "attention": attention}


def factors_of(event: Event) -> tuple[tuple[int, ...], ...]:
    """The shapes of a product's two factors; empty where it has none of two dimensions.

    addmm(sum, a, b) begins with what is added to; compiled code's mm(a, b, out) ends with what is written.
    """
    first = 1 if "addmm" in event.name else 0
    factors = event.shapes[first : first + 2]
    return factors if [len(shape) for shape in factors] == [2, 2] else ()


def by_shape(events: list[Event], steps: int, peak: float) -> list[dict[str, Any]]:
    """Matrix products grouped by their sizes [m, k] × [k, n]: seconds a step, rate, and what is lost against the peak."""
    groups: dict[tuple[int, int, int], list[float]] = defaultdict(list)
    for event in events:
        factors = factors_of(event)
        if kind_of(event) == "matrix products" and factors:
            (m, k), (_, n) = factors
            groups[m, k, n].append(event.seconds)
    rows = []
    for (m, k, n), seconds in groups.items():
        flops, taken = 2 * m * n * k * len(seconds) / steps, sum(seconds) / steps
        rows.append(
            {
                "m": m, "n": n, "k": k, "count": len(seconds) / steps, "seconds": taken,
                "share_of_peak": flops / taken / peak, "lost_seconds": taken - flops / peak,
            }
        )  # fmt: skip
    return sorted(rows, key=lambda row: -row["lost_seconds"])
