"""A training step's time, tokens a second, MFU and memory before it runs, operation by operation.

A product takes its FLOPs over the measured rate for its shape, attention its FLOPs over the measured rate for its
length, everything else its bytes over the rate that its own kernel reaches at that size; the step is their sum, with
the host's time between them. For a machine that is not at hand a data sheet times stated efficiencies stands in.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from typing import Any, ClassVar

from yupana.errors import UserError
from yupana.flops.accelerators import Accelerator, of_device
from yupana.flops.count import flops_per_token, mfu
from yupana.flops.limits import LAYOUTS, Layout, Limits
from yupana.flops.memory import USABLE, Setup, largest_micro_batch, memory_bytes
from yupana.flops.operations import Operation, Pass, Product, step_operations


@dataclass(frozen=True)
class DataSheet:
    """The rates of an accelerator that is not at hand: shares of what its data sheet promises."""

    card: Accelerator
    launch_seconds: float = 0.0
    compiled_seconds: float = 0.0

    PRODUCTS = 798 / 989.4
    ATTENTION: ClassVar = {"forward": 400 / 989.4, "backward": 330 / 989.4}
    MEMORY = 0.8
    ASSUMED = (
        f"matrix products at {PRODUCTS:.0%} of the data sheet's peak (798 of 989.4 TFLOP/s were measured for an 8192³ "
        "bf16 product on one H100; small products reach less)",
        f"attention at {ATTENTION['forward']:.0%} of it forward and {ATTENTION['backward']:.0%} backward (400 and 330 "
        "TFLOP/s on an H100: an assumption)",
        f"everything else at {MEMORY:.0%} of the data sheet's bandwidth (an assumption)",
        "the host hidden behind the accelerator",
    )

    def peak(self, dtype: str) -> float:
        """Dense, of the data sheet."""
        return self.card.bf16 if dtype == "bfloat16" else self.card.fp32

    def product_rate(self, dtype: str, layout: Layout, m: int, n: int, k: int) -> float:
        """See Limits."""
        return self.PRODUCTS * self.peak(dtype)

    def attention_rate(self, dtype: str, pass_: str, head_dim: int, seq_len: int) -> float:
        """See Limits."""
        return self.ATTENTION[pass_] * self.peak(dtype)

    def kernel_rate(self, kind: str, dtype: str, pass_: str, size: int) -> float:
        """See Limits."""
        return self.MEMORY * self.card.bandwidth


@dataclass(frozen=True)
class Line:
    """One operation of the step, all its repetitions together."""

    name: str
    part: str
    count: int
    """Times in a step."""
    flops: dict[str, int]
    """Matrix-product FLOPs, forward and backward."""
    bytes: dict[str, int]
    """At least moved, forward and backward."""
    seconds: dict[str, float]
    """Predicted, forward and backward."""
    bound: str
    """compute, memory or host: what it waits for."""


def predict(setup: Setup, source: Limits | Accelerator) -> dict[str, Any]:
    """Step time, tokens/s, MFU, memory and every operation of the step, with rates from limits or a data sheet."""
    dtype = "float32" if setup.precision == "fp32" else "bfloat16"
    rates: Limits | DataSheet = DataSheet(source) if isinstance(source, Accelerator) else source
    lines = predict_lines(setup, rates, dtype)
    seconds = sum(sum(line.seconds.values()) for line in lines)
    tokens = setup.global_batch * setup.seq_len
    peak, peak_source = _peak(source, dtype)
    counts = flops_per_token(setup.shape, setup.seq_len)
    used = {name: mfu(counts[name] * tokens / seconds, peak) for name in counts}
    if used["exact"] > 1:
        raise UserError(
            f"the limits predict an MFU of {used['exact']:.0%}: they promise more than the peak of {peak:g} FLOP/s "
            f"({peak_source}), so they are wrong; measure them anew with yupana flops limits"
        )
    capacity = source.memory_bytes if isinstance(source, Accelerator) else source.machine.memory_bytes
    memory = memory_bytes(setup)
    measured = not isinstance(source, Accelerator)
    return {
        "seq_len": setup.seq_len,
        "micro_batch": setup.micro_batch,
        "global_batch": setup.global_batch,
        "precision": setup.precision,
        "parameters": setup.shape.parameters,
        "hardware": source.name if isinstance(source, Accelerator) else source.machine.name,
        "rates": f"measured {source.machine.date}" if isinstance(source, Limits) else f"assumed from {source.source}",
        "assumed": [] if measured else list(DataSheet.ASSUMED),
        "peak_flops_per_second": peak,
        "peak_source": peak_source,
        "step_seconds": seconds,
        "tokens_per_second": tokens / seconds,
        "mfu": used,
        "memory_bytes": memory,
        "memory_capacity_bytes": int(capacity),
        "fits": memory["total"] <= USABLE * capacity,
        "largest_micro_batch": largest_micro_batch(setup, capacity),
        "operations": [asdict(line) for line in lines],
    }


def predict_lines(setup: Setup, rates: Limits | DataSheet, dtype: str) -> list[Line]:
    """Every operation of the step with its predicted seconds; the host's share is the last line."""
    operations = [*step_operations(setup.shape, setup.micro_batch, setup.seq_len, setup.sizes), *housekeeping(setup)]
    balance = rates.peak(dtype) / rates.kernel_rate("add", dtype, "forward", 1 << 28)  # FLOPs a byte
    lines = [_line(setup, operation, rates, dtype, balance) for operation in operations]
    device = sum(sum(line.seconds.values()) for line in lines)
    host = host_seconds(setup, rates)
    if isinstance(rates, DataSheet) or rates.machine.device == "cuda":  # the host runs ahead of the accelerator
        host = max(0.0, host - device)
    nothing = {"forward": 0, "backward": 0}
    return [*lines, Line("host", "host", 1, nothing, nothing, {"forward": host / 2, "backward": host / 2}, "host")]


def housekeeping(setup: Setup) -> list[Operation]:
    """What a step does with whole gradients and weights beside the optimiser's update."""
    shape, s = setup.shape, setup.sizes
    table, n = shape.vocab_size * shape.d_model, shape.parameters
    operations = []
    if shape.tie_embeddings:  # the embedding's gradient and the head's are one
        operations.append(Operation("accumulate", "tied", 1, Pass(), Pass(bytes=3 * table * s.weight)))
    if setup.accumulation > 1:
        moved = n * (s.weight + 2 * s.gradient) * (setup.accumulation - 1)
        operations.append(Operation("accumulate", "micro_batches", 1, Pass(), Pass(bytes=moved)))
    if setup.precision == "bf16-autocast":
        moved = shape.matmul_parameters * (s.weight + s.activation)
        operations.append(Operation("cast", "weights", 1, Pass(bytes=moved), Pass(bytes=moved)))
    return operations


def host_seconds(setup: Setup, rates: Limits | DataSheet) -> float:
    """Time in which the host prepares work: compiled blocks, and operations outside of them."""
    layers, tensors = setup.shape.n_layers, 6 * setup.shape.n_layers + 3
    chunks = -(-setup.tokens // setup.head_rows)
    each = 60 + 8 * chunks + 2 * tensors  # embedding, rotary table, last norm; head; gradients handed over
    once = 6 * tensors  # norm of the gradients, update
    launches = setup.accumulation * each + once
    return setup.accumulation * layers * rates.compiled_seconds + launches * rates.launch_seconds


ONCE_A_STEP = ("adamw", "micro_batches")
KERNELS = {"residual": "rmsnorm", "accumulate": "add", "cast": "copy"}
"""Whose rate stands for an operation: a residual addition is a part of the norm's kernel."""


def _line(setup: Setup, operation: Operation, rates: Limits | DataSheet, dtype: str, balance: float) -> Line:
    times = 1 if operation.part in ONCE_A_STEP else setup.accumulation
    count = operation.count * times
    passes = {"forward": operation.forward, "backward": operation.backward}
    seconds = {name: count * _seconds(setup, operation, name, rates, dtype) for name in passes}
    flops, moved = (sum(getattr(p, what) for p in passes.values()) for what in ("flops", "bytes"))
    return Line(
        operation.name,
        operation.part,
        count,
        {name: count * p.flops for name, p in passes.items()},
        {name: count * p.bytes for name, p in passes.items()},
        seconds,
        "compute" if flops > balance * moved else "memory",
    )


def _seconds(setup: Setup, operation: Operation, pass_: str, rates: Limits | DataSheet, dtype: str) -> float:
    """Of one repetition of one pass."""
    work: Pass = getattr(operation, pass_)
    if operation.name == "linear":
        layouts = LAYOUTS[:1] if pass_ == "forward" else LAYOUTS[1:]
        return sum(
            part.flops / rates.product_rate(dtype, layout, part.m, part.n, part.k)
            for layout, product in zip(layouts, work.products, strict=True)
            for part in (_chunks(setup, layout, product) if operation.part == "output" else [product])
        )
    if operation.name == "attention":
        return work.flops / rates.attention_rate(dtype, pass_, setup.shape.head_dim, setup.seq_len)
    if not work.bytes:
        return 0.0
    kind, size = KERNELS.get(operation.name, operation.name), work.bytes
    if operation.part == "norm":
        kind = "final_norm"
    if operation.name == "cross_entropy":
        size = size * min(setup.head_rows, setup.tokens) // setup.tokens
    if operation.name == "adamw" and setup.precision == "bf16-lean":
        kind = "adamw_lean"
    if operation.name in ("accumulate", "cast"):
        pass_ = "forward"  # the memory's own rates have one
    if operation.name == "adamw" and setup.precision == "bf16-autocast":
        dtype = "float32"
    return work.bytes / rates.kernel_rate(kind, dtype, pass_, size)


def _chunks(setup: Setup, layout: Layout, product: Product) -> list[Product]:
    """The head's product in the pieces it is done in: so many tokens at once."""
    whole, rest = divmod(setup.tokens, min(setup.head_rows, setup.tokens))
    rows = [setup.head_rows if whole > 1 or rest else setup.tokens] * whole + [rest] * bool(rest)
    return [replace(product, k=r) if layout == "wgrad" else replace(product, m=r) for r in rows]


def _peak(source: Limits | Accelerator, dtype: str) -> tuple[float, str]:
    """What MFU is against, in FLOP/s, and where it comes from: the data sheet where the card is known."""
    card = source if isinstance(source, Accelerator) else of_device(source.machine.name)
    if card is not None:
        return (card.bf16 if dtype == "bfloat16" else card.fp32), card.source
    assert isinstance(source, Limits)
    return source.peak(dtype), f"best matrix product measured on {source.machine.name}"
