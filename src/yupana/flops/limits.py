"""What a machine can do, measured once and kept as JSON: matrix products by shape, attention, bandwidths, overheads.

`measure.py` fills it, `predict.py` reads it. Rates that were not measured are interpolated between those that were,
in the logarithm of the sizes, and never extrapolated beyond them.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any, Literal

from yupana.errors import UserError, did_you_mean
from yupana.files import cache_folder, write_json
from yupana.flops.accelerators import ACCELERATORS

# Ten times what any data sheet promises; whatever lies above is no measurement.
MOST_FLOPS = 10 * max(row.fp8 or row.bf16 for row in ACCELERATORS)
MOST_BANDWIDTH = 10 * max(row.bandwidth for row in ACCELERATORS)
MOST_BYTES = 10 * max(row.memory_bytes for row in ACCELERATORS) + (1 << 46)
MOST_SECONDS = 1.0

LARGE = 2 * 1024**3  # FLOPs of a product that counts for the peak; smaller ones live in a cache and can be faster

Layout = Literal["forward", "dgrad", "wgrad"]
LAYOUTS: tuple[Layout, ...] = ("forward", "dgrad", "wgrad")
DTYPES = ("float32", "bfloat16")


@dataclass(frozen=True)
class ProductRate:
    """The rate of one matrix product [m, k] × [k, n]."""

    dtype: str
    layout: str
    """forward: x Wᵀ; dgrad: dy W; wgrad: dyᵀ x. How the two factors lie in memory."""
    m: int
    n: int
    k: int
    flops_per_second: float


@dataclass(frozen=True)
class AttentionRate:
    """The rate of causal attention, with the masked half left out of the FLOPs (`exact`)."""

    dtype: str
    head_dim: int
    seq_len: int
    forward: float
    """FLOP/s."""
    backward: float
    """FLOP/s; the recomputed product of scores is not counted."""


@dataclass(frozen=True)
class KernelRate:
    """What an elementwise kernel achieves, in the bytes that operations.py says it must move."""

    kind: str
    """An operation's name in operations.py, or copy, add, fill for the memory itself."""
    dtype: str
    pass_: str
    """forward or backward."""
    bytes: int
    """Moved in one call: small ones stay in the caches."""
    bytes_per_second: float


@dataclass(frozen=True)
class CollectiveRate:
    """What a collective over all ranks achieves."""

    name: str
    bytes: int
    """Of the tensor on each rank."""
    bytes_per_second: float
    """Bytes of the tensor over the seconds taken."""


@dataclass(frozen=True)
class Machine:
    """Where the figures come from."""

    device: str
    """cpu or cuda."""
    name: str
    """The processor's or the accelerator's own name."""
    threads: int
    torch: str
    date: str
    memory_bytes: int
    """Of the accelerator, or of the whole machine."""


@dataclass(frozen=True)
class Limits:
    """What one machine can do."""

    machine: Machine
    launch_seconds: float
    """Host time of an operation on a tiny tensor, outside compiled code."""
    compiled_seconds: float
    """Host time of one call of a compiled function, forward and backward together."""
    runtime_bytes: int
    """What a process holds before any tensor: torch, the compiler, thread stacks. 0 on an accelerator."""
    disturbed: float = 0.0
    """Share of the time in which threads waited for a processor that something else used: rates are too low then."""
    products: list[ProductRate] = field(default_factory=list)
    attention: list[AttentionRate] = field(default_factory=list)
    kernels: list[KernelRate] = field(default_factory=list)
    collectives: list[CollectiveRate] = field(default_factory=list)

    def has(self, dtype: str) -> bool:
        """Whether the kernels were measured in this dtype; products always are, in both."""
        return any(row.dtype == dtype for row in self.attention)

    def best_of(self, other: Limits) -> Limits:
        """The faster of each rate of two measurements of the same machine; what only one has measured stays."""

        def both(name: str) -> Any:
            rows: dict[Any, Any] = {}
            for row in [*getattr(self, name), *getattr(other, name)]:
                key = _key(row)
                rows[key] = _faster(rows[key], row) if key in rows else row
            return list(rows.values())

        return replace(
            other,
            launch_seconds=min(self.launch_seconds, other.launch_seconds),
            compiled_seconds=min(self.compiled_seconds, other.compiled_seconds),
            disturbed=min(self.disturbed, other.disturbed),
            products=both("products"),
            attention=both("attention"),
            kernels=both("kernels"),
            collectives=both("collectives"),
        )

    def peak(self, dtype: str) -> float:
        """The best rate of a matrix product of this dtype, FLOP/s, as hardware.py knows it: of LARGE ones, if any."""
        rates = [(2 * r.m * r.n * r.k, r.flops_per_second) for r in self.products if r.dtype == dtype]
        return max([rate for flops, rate in rates if flops >= LARGE] or [rate for _, rate in rates])

    def product_rate(self, dtype: str, layout: Layout, m: int, n: int, k: int) -> float:
        """FLOP/s of [m, k] × [k, n]: multilinear in the logarithms of m, n and k, sizes beyond the grid at its edge."""
        rates = {(r.m, r.n, r.k): r.flops_per_second for r in self.products if (r.dtype, r.layout) == (dtype, layout)}
        return _on_grid(rates, (m, n, k))

    def attention_rate(self, dtype: str, pass_: str, head_dim: int, seq_len: int) -> float:
        """FLOP/s of causal attention.

        Below the narrowest head measured, a score takes as long as it does there: the softmax's time, most of it, does
        not depend on the head's width, and the products over short rows are no faster.
        """
        rates = {(r.head_dim, r.seq_len): getattr(r, pass_) for r in self.attention if r.dtype == dtype}
        narrowest = min((key[0] for key in rates), default=head_dim)
        return _on_grid(rates, (head_dim, seq_len)) * min(1.0, head_dim / narrowest)

    def kernel_rate(self, kind: str, dtype: str, pass_: str, size: int) -> float:
        """Bytes/s of an elementwise kernel that moves `size` bytes."""
        rates = {(r.bytes,): r.bytes_per_second for r in self.kernels if (r.kind, r.dtype, r.pass_) == (kind, dtype, pass_)}
        return _on_grid(rates, (size,))


def _faster(one: Any, other: Any) -> Any:
    """A row with the higher of each of two rows' rates."""
    rates = {name: max(value, getattr(other, name)) for name, value in asdict(one).items() if isinstance(value, float)}
    return replace(one, **rates)


def _key(row: Any) -> tuple[Any, ...]:
    """What a row is the rate of: all of its fields but the rates."""
    return tuple(value for value in asdict(row).values() if not isinstance(value, float))


def _on_grid(rates: Mapping[Any, float], at: tuple[int, ...]) -> float:
    """The rate at a point between measured ones, by interpolating the seconds per FLOP or byte, axis by axis.

    Not every corner of the grid was measured (the largest products take seconds): where a neighbour is missing,
    the other one stands for it.
    """
    if not rates:
        raise UserError("the limits hold no rate for this kind and dtype: measure them anew with yupana flops limits")
    if not at:
        return next(iter(rates.values()))
    stops = sorted({key[-1] for key in rates})
    below = max((s for s in stops if s <= at[-1]), default=stops[0])
    above = min((s for s in stops if s >= at[-1]), default=stops[-1])
    sides = [
        _on_grid({key[:-1]: rate for key, rate in rates.items() if key[-1] == side}, at[:-1]) for side in (below, above)
    ]
    if below == above:
        return sides[0]
    share = math.log(at[-1] / below) / math.log(above / below)
    return 1 / ((1 - share) / sides[0] + share / sides[1])


# --- the file ---------------------------------------------------------------------------------------------------


def default_file(device: str, name: str, threads: int, torch_version: str) -> Path:
    """Where the limits of this machine are kept: other threads or another torch make another file."""
    key = hashlib.sha256(f"{name} | {threads} | {torch_version}".encode()).hexdigest()[:10]
    return cache_folder() / f"limits-{device}-{key}.json"


def save(limits: Limits, path: Path) -> None:
    """Write the limits as JSON, atomically, making the folder."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"could not make the folder {path.parent}: {error.strerror}") from error
    write_json(path, as_dict(limits))


def as_dict(limits: Limits) -> dict[str, Any]:
    """The limits as plain dictionaries, `pass_` under the name pass."""
    whole = asdict(limits)
    for row in whole["kernels"]:
        row["pass"] = row.pop("pass_")
    return whole


def load(path: Path) -> Limits:
    """The limits in a file. Raises UserError, naming the field, for one that is missing, wrong-typed or absurd."""
    try:
        content = json.loads(path.read_text())
    except FileNotFoundError:
        raise UserError(f"the limits file {path} does not exist: make it with yupana flops limits --out {path}") from None
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"the limits file {path} cannot be read as text: {error}") from error
    except ValueError as error:
        raise UserError(f"the limits file {path} is not valid JSON: {error}") from error
    limits: Limits = _read(Limits, content, "", path)
    measured = {(row.dtype, row.layout) for row in limits.products}
    for dtype in DTYPES:
        for layout in LAYOUTS:
            if (dtype, layout) not in measured:
                raise UserError(f"products in {path} has no {layout} rate for {dtype}: measure with yupana flops limits")
    return limits


ROWS: dict[str, type] = {
    "products": ProductRate, "attention": AttentionRate, "kernels": KernelRate, "collectives": CollectiveRate,
}  # fmt: skip
CHOICES = {"layout": LAYOUTS, "dtype": DTYPES, "pass": ("forward", "backward"), "device": ("cpu", "cuda")}
BOUNDS = {
    "flops_per_second": MOST_FLOPS,
    "forward": MOST_FLOPS,
    "backward": MOST_FLOPS,
    "bytes_per_second": MOST_BANDWIDTH,
    "launch_seconds": MOST_SECONDS,
    "compiled_seconds": MOST_SECONDS,
    "runtime_bytes": MOST_BYTES,
    "memory_bytes": MOST_BYTES,
}


def _read(kind: type, content: Any, where: str, path: Path) -> Any:
    """A dataclass from its dictionary, every field checked."""
    if not isinstance(content, dict):
        raise UserError(f"{where or 'the content'} in {path} must be an object, got {_short(content)}")
    names = {f.name.rstrip("_"): f for f in fields(kind)}
    for name in content:
        if name not in names:
            raise UserError(f"unknown field {_dotted(where, name)} in {path}{did_you_mean(name, names)}")
    values = {}
    for name, f in names.items():
        here = _dotted(where, name)
        if name not in content:
            raise UserError(f"{here} is missing in {path}: measure anew with yupana flops limits")
        value = content[name]
        if name == "machine":
            value = _read(Machine, value, here, path)
        elif name in ROWS:
            if not isinstance(value, list):
                raise UserError(f"{here} in {path} must be a list, got {_short(value)}")
            value = [_read(ROWS[name], row, f"{here}[{i}]", path) for i, row in enumerate(value)]
        else:
            _check(name, str(f.type), value, here, path)
        values[f.name] = value
    return kind(**values)


def _check(name: str, kind: str, value: Any, where: str, path: Path) -> None:
    """Raise UserError unless the value has the field's type and lies between zero and ten times any data sheet."""
    if kind == "str":
        if not isinstance(value, str) or not value:
            raise UserError(f"{where} in {path} must be text, got {_short(value)}")
        if name in CHOICES and value not in CHOICES[name]:
            raise UserError(f"{where} in {path} must be one of {', '.join(CHOICES[name])}, got '{value}'")
        return
    right = isinstance(value, int) if kind == "int" else isinstance(value, int | float)
    if not right or isinstance(value, bool) or not math.isfinite(value):
        raise UserError(f"{where} in {path} must be a {'whole ' if kind == 'int' else ''}number, got {_short(value)}")
    if value < 0 or (value == 0 and name not in ("runtime_bytes", "disturbed")):
        raise UserError(f"{where} in {path} must be positive, got {value:g}")
    if value > BOUNDS.get(name, math.inf):
        raise UserError(
            f"{where} in {path} is {value:g}, more than {BOUNDS[name]:g}: no machine does that; "
            "measure anew with yupana flops limits"
        )


def _dotted(where: str, name: str) -> str:
    return f"{where}.{name}" if where else name


def _short(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 40 else text[:37] + "…"
