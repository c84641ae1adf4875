"""This machine's limits, measured with the training step's own kernels, and the step that a prediction is about."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from yupana.errors import UserError
from yupana.flops import limits as kept
from yupana.flops.accelerators import Accelerator, accelerator
from yupana.flops.hardware import bf16_is_fast, device_name
from yupana.flops.layout import Layout
from yupana.flops.limits import Limits
from yupana.flops.memory import Setup, check
from yupana.model.shapes import ModelShape

Tell = Callable[[str, float], None]
"""Told what is measured and which share of it is done."""


def silent(what: str, share: float) -> None:
    """Tell nobody."""


def default_file(device: str) -> Path:
    """Where this machine's limits are kept."""
    import torch

    return kept.default_file(device, device_name(device), torch.get_num_threads(), torch.__version__)


def measure_limits(device: str, dtypes: tuple[str, ...], file: Path, tell: Tell) -> Limits:
    """Measure and save in `file`, keeping the better of each rate that it holds of this machine from before.

    A machine that was busy when it was measured must not look slow for ever.
    """
    from yupana.flops.measure import measure
    from yupana.train.kernels import kernels

    before = kept.load(file) if file.is_file() else None  # what is wrong with it is said before a minute has passed
    limits = measure(device, dtypes, kernels(device, compiled=can_compile(device)), tell)
    if before is not None and same_machine(before, limits):
        limits = before.best_of(limits)
    kept.save(limits, file)
    return limits


def same_machine(one: Limits, other: Limits) -> bool:
    """Whether two measurements are of the same processor, threads and torch."""
    return replace(one.machine, date="") == replace(other.machine, date="")


def limits_for(device: str, precision: str, tell: Tell) -> Limits:
    """This machine's limits, with the dtype that `precision` computes in; measured now where they never were."""
    file, dtype = default_file(device), dtype_of(precision)
    if file.is_file() and (limits := kept.load(file)).has(dtype):
        return limits
    return measure_limits(device, (dtype,), file, tell)


def dtype_of(precision: str) -> str:
    """What the matrix products of a precision are done in."""
    return "float32" if precision == "fp32" else "bfloat16"


def can_compile(device: str) -> bool:
    """Whether torch.compile works here: on a CPU it needs a C++ compiler."""
    return device != "cpu" or shutil.which("g++") is not None


def setup(
    shape: ModelShape, seq_len: int, micro_batch: int, global_batch: int, precision: str, device: str, runtime_bytes: int = 0
) -> Setup:
    """The step as `yupana train` carries it out on "cpu" or "cuda", blocks compiled."""
    from yupana.train import attention
    from yupana.train.loss import chunk_rows

    bf16_weights = precision in ("bf16", "bf16-lean")
    blocked = device == "cpu" and attention.on_cpu(bf16_weights, True, seq_len) == "blocked"
    return Setup(
        shape,
        seq_len,
        micro_batch,
        global_batch,
        precision,
        head_rows=chunk_rows(1 << 62, shape.vocab_size),
        attention_block=attention.BLOCK if blocked else None,
        runtime_bytes=runtime_bytes,
    )


def check_fits(
    shape: ModelShape, seq_len: int, micro_batch: int, global_batch: int, precision: str, device: str
) -> None:
    """Raise UserError, naming the largest micro-batch that fits, before a step that this machine's memory can't hold."""
    from yupana.flops.measure import machine

    here = machine(device)
    check(setup(shape, seq_len, micro_batch, global_batch, precision, device), here.memory_bytes, here.name)


def check_rank_fits(
    shape: ModelShape, seq_len: int, micro_batch: int, share: int, precision: str, device: str, layout: Layout
) -> None:
    """Raise UserError when a rank's step does not fit; `share` is its part of the batch, in sequences.

    On a CPU the ranks of a machine share its memory.
    """
    from yupana.flops.cluster import check_rank
    from yupana.flops.measure import machine

    here = machine(device)
    beside = int(os.environ.get("LOCAL_WORLD_SIZE", "1")) if device == "cpu" else 1
    planned = setup(shape, seq_len, micro_batch, share, precision, device)
    check_rank(planned, layout, here.memory_bytes / beside, f"{here.name} for each rank" if beside > 1 else here.name)


def prediction(
    shape: ModelShape,
    seq_len: int,
    micro_batch: int,
    global_batch: int,
    precision: str = "auto",
    *,
    hardware: str | None = None,
    limits_file: Path | None = None,
    tell: Tell = silent,
    must_fit: bool = False,
) -> dict[str, Any]:
    """A step's prediction for a named accelerator, for the machine of a limits file, or else for this one.

    Raises UserError for an unknown accelerator, a limits file that is wrong, sizes below 1, and, if it `must_fit`, a
    micro-batch that doesn't.
    """
    from yupana.flops.predict import predict

    source, precision = rates_of(hardware, limits_file, precision, tell)
    if isinstance(source, Limits):
        device, name, capacity, runtime = (
            source.machine.device, source.machine.name, float(source.machine.memory_bytes), source.runtime_bytes,
        )  # fmt: skip
    else:
        device, name, capacity, runtime = "cuda", source.name, source.memory_bytes, 0
    planned = setup(shape, seq_len, micro_batch, global_batch, precision, device, runtime)
    if must_fit:
        check(planned, capacity, name)
    return predict(planned, source)


def cluster(
    shape: ModelShape,
    seq_len: int,
    micro_batch: int,
    global_batch: int | None,
    precision: str,
    *,
    hardware: str | None,
    count: int,
    layout: Layout | None,
    node: int | None,
    link: float | None,
    network: float | None,
    must_fit: bool = False,
) -> dict[str, Any]:
    """A step's prediction on `count` named accelerators, in a layout or in the one that is recommended.

    `link` and `network` in GB/s, one way a card. Raises UserError as `prediction` does, for an accelerator whose links
    are not known, and for a layout that does not suit.
    """
    from yupana.flops.cluster import cluster_prediction
    from yupana.flops.interconnect import interconnect

    if hardware is None or hardware == "cpu":
        raise UserError("--count is for accelerators by their data sheet: name one with --hardware, such as h100")
    card = accelerator(hardware)
    links = interconnect(card.name, node, link, network)
    share = setup(shape, seq_len, micro_batch, micro_batch, "bf16" if precision == "auto" else precision, "cuda")
    result = cluster_prediction(share, count, card, links, layout, global_batch)
    if must_fit and not result["fits"]:
        needed = result["memory_bytes"]["total"] / 1e9
        raise UserError(
            f"a micro-batch of {result['micro_batch']} × {seq_len:,} tokens needs {needed:.1f} GB on each {card.name} of "
            f"{card.memory_bytes / 1e9:.0f} GB: the largest that fits is {result['largest_micro_batch']}"
        )
    return result


def rates_of(hardware: str | None, file: Path | None, precision: str, tell: Tell) -> tuple[Limits | Accelerator, str]:
    """Where the rates come from, and the precision: the one given, or the fastest there."""
    if hardware is not None and file is not None:
        raise UserError("--hardware and --limits contradict each other: give the data sheet's name or the measured file")
    if hardware is not None and hardware != "cpu":
        return accelerator(hardware), "bf16" if precision == "auto" else precision
    if file is not None:
        limits = kept.load(file)
        precision = fastest(limits) if precision == "auto" else precision
        if not limits.has(dtype_of(precision)):
            raise UserError(
                f"{file} holds no kernels measured in {dtype_of(precision)}: measure them with yupana flops limits "
                f"--dtype {dtype_of(precision)} --out {file}"
            )
        return limits, precision
    from yupana.train.session import choose_device, choose_precision

    device = choose_device("auto" if hardware is None else "cpu")
    precision = choose_precision(precision, device)
    return limits_for(device, precision, tell), precision


def fastest(limits: Limits) -> str:
    """The precision that `auto` means on the machine of these limits: see hardware.bf16_is_fast."""
    return "bf16" if limits.peak("bfloat16") > 1.2 * limits.peak("float32") else "fp32"


def dtypes_of(wanted: str, device: str) -> tuple[str, ...]:
    """The dtypes that "auto", "both" or a dtype's name mean."""
    if wanted == "auto":
        return ("bfloat16",) if bf16_is_fast(device) else ("float32",)
    return ("float32", "bfloat16") if wanted == "both" else (wanted,)
