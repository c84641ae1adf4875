"""Where the lost MFU went: from a profile of real steps to parts that sum to the step's time.

A step of t seconds does F model FLOPs; at the peak rate P they would take F / P. The rest of the time is split among
what took it: matrix products slower than the peak (by shape), attention beyond its FLOPs' worth, elementwise
kernels, recomputation, loss, optimiser, data, and the gaps in which nothing of these ran. MFU + all the lost shares = 100 %.
"""

from __future__ import annotations

import re
from collections import defaultdict
from dataclasses import dataclass
from typing import Any

from yupana.flops import operations
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


@dataclass(frozen=True)
class Advice:
    """Something that would shrink a part."""

    text: str
    setting: str = ""
    """That it is about; empty where it is about none."""
    no_use: tuple[str, ...] = ()
    """Values of the setting that leave nothing to gain."""


COMPILE = Advice("train.compile block", "train.compile", ("block", "model", "max-autotune", "cuda-graphs"))
LARGER = Advice("larger micro-batch", "train.micro_batch", ("whole",))
WIDER = Advice("a wider model, whose products grow faster")
TRAFFIC = Advice("nothing much: it is memory traffic")
LEVERS: dict[str, tuple[Advice, ...]] = {
    "matrix products": (
        LARGER,
        Advice("fast.projections fused", "fast.projections", ("fused",)),
        Advice("train.compile max-autotune", "train.compile", ("max-autotune", "cuda-graphs")),
        Advice("fast.float8 rowwise", "fast.float8", ("tensorwise", "rowwise", "impossible")),
        WIDER,
    ),
    "recomputation": (Advice("fast.recompute none or selective, as far as memory allows"),),
    "attention": (Advice("another fast.attention"), Advice("shorter sequences")),
    "optimizer": (Advice("fast.adamw fused", "fast.adamw", ("fused",)), Advice("a larger global batch")),
    "head and loss": (Advice("fast.loss chunked", "fast.loss", ("chunked",)), COMPILE, TRAFFIC),
    "norms": (COMPILE, WIDER),
    "SwiGLU": (COMPILE, WIDER),
    "rotary": (COMPILE, WIDER),
    "residuals": (WIDER,),
    "embedding": (TRAFFIC,),
    "communication": (Advice("overlap it"), LARGER),
    "copies and casts": (
        Advice("train.precision bf16", "train.precision", ("bf16", "bf16-lean", "fp32", "tf32")),
        COMPILE,
        Advice("fast.allocator keep", "fast.allocator", ("keep",)),
        TRAFFIC,
    ),
    "data": (Advice("fast.overlap true", "fast.overlap", ("true",)), Advice("a faster disk")),
    "other elementwise": (COMPILE, WIDER),
    "host and gaps": (
        COMPILE,
        Advice("train.compile cuda-graphs", "cuda-graphs", ("true", "impossible")),
        LARGER,
        Advice("fast.allocator keep", "fast.allocator", ("keep",)),
        WIDER,
    ),
}
NOTICED = 0.005  # of the model's FLOPs: what products do beyond less than that is not looked for
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


def lever(part: str, settings: dict[str, str]) -> str:
    """What would shrink a part of a step, without what its `settings` (by dotted name) have done already."""
    return "; ".join(advice.text for advice in LEVERS[part] if settings.get(advice.setting) not in advice.no_use)


def waterfall(
    events: list[Event], products: list[Event], wall_seconds: float, steps: int, shape: ModelShape, batch: int,
    seq_len: int, peak: float, settings: dict[str, str],
) -> list[Part]:  # fmt: skip
    """The parts of one step, largest loss first; their seconds sum to `wall_seconds / steps`.

    `products` are the matrix products with their sizes, which a GPU's kernels do not tell. `batch` is sequences in a step,
    `peak` in FLOP/s, `settings` what levers go by. Useful seconds are those of the `exact` count: what is masked is
    not computed by a good kernel, so it is no loss and no use either.
    """
    spent: dict[str, float] = defaultdict(float)
    for event in events:
        spent[kind_of(event)] += event.seconds / steps
    spent["host and gaps"] += wall_seconds / steps - sum(spent.values())
    useful = useful_flops(step_operations(shape, batch, seq_len))
    products_seconds = spent["matrix products"]
    for name, share in beyond_the_model(products, steps, useful["matrix products"], shape, settings).items():
        spent[name] += share * products_seconds
        spent["matrix products"] -= share * products_seconds
    parts = [Part(name, seconds, useful.get(name, 0.0) / peak, lever(name, settings)) for name, seconds in spent.items()]
    return sorted(parts, key=lambda part: -part.lost_seconds)


def useful_flops(step: list[Operation]) -> dict[str, int]:
    """Model FLOPs by part, `exact`; the output head is a matrix product like the others."""
    attention = sum(o.flops for o in step if o.name == "attention")
    return {"matrix products": sum(o.flops for o in step) - attention, "attention": attention}


def beyond_the_model(
    products: list[Event], steps: int, useful: int, shape: ModelShape, settings: dict[str, str]
) -> dict[str, float]:
    """What else than the model's own FLOPs the matrix products did: the share of their FLOPs, by part.

    Muon orthogonalises with products; whatever else is done beyond `useful` FLOPs a step is done twice.
    """
    done = sum(2 * m * k * n for m, k, n in map(sizes_of, products) if m) / steps
    muon = operations.muon(shape, operations.Sizes.of("fp32")).flops if settings.get("optim.name") == "muon" else 0
    extra = {"optimizer": muon, "recomputation": done - useful - muon}
    return {name: flops / done for name, flops in extra.items() if flops > NOTICED * useful and done > 0}


def sizes_of(event: Event) -> tuple[int, int, int]:
    """m, k and n of a product [m, k] × [k, n]; zeros for what is none, or doesn't tell."""
    factors = factors_of(event)
    if kind_of(event) != "matrix products" or not factors:
        return 0, 0, 0
    (m, k), (_, n) = factors
    return m, k, n


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
        m, k, n = sizes_of(event)
        if m:
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
