"""Measuring what this machine can do: the rates that limits.py keeps, in under a minute once the kernels are compiled.

Every rate is the best of many repetitions spread over the whole time (bench.py). Data are random: zeros draw less
power and run faster than training does. Products write into memory that exists, and every kernel runs once before it
is timed, so that neither page faults nor compilation are measured.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import gc
import os
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from datetime import datetime, timezone
from pathlib import Path
from typing import TYPE_CHECKING

from yupana.flops.bench import CPU, CUDA, MOST_ROUNDS, SWEEPS, Bench, Effort, Kernels, Tell, random, waited
from yupana.flops.hardware import device_name
from yupana.flops.limits import DTYPES, LAYOUTS, AttentionRate, CollectiveRate, KernelRate, Limits, Machine, ProductRate
from yupana.flops.operations import Sizes, adamw
from yupana.flops.operations import attention as attention_operation

if TYPE_CHECKING:
    import torch


def measure(
    device: str,
    dtypes: tuple[str, ...],
    kernels: Kernels,
    tell: Tell = lambda what, share: None,
    effort: Effort | None = None,
) -> Limits:
    """Measure this machine's `device` ("cpu" or "cuda"): products in every dtype, kernels in `dtypes`."""
    import torch

    bench = Bench(device, dtypes, effort or (CUDA if device == "cuda" else CPU), tell)
    begun, before = time.perf_counter(), waited()
    with torch.device(device):
        limits = sweep(bench, kernels)
        for number in range(1, SWEEPS):
            bench.sweep, bench.share = number, 0.0
            limits = limits.best_of(sweep(bench, kernels))
    tell("done", 1.0)
    disturbed = (waited() - before) / (time.perf_counter() - begun)
    return replace(limits, runtime_bytes=runtime_bytes(device), disturbed=disturbed)


def sweep(bench: Bench, kernels: Kernels) -> Limits:
    """Everything measured once."""
    return Limits(
        machine(bench.device),
        launch_seconds(bench),
        compiled_seconds(bench, kernels),
        runtime_bytes=0,
        products=product_rates(bench),
        attention=attention_rates(bench, kernels),
        kernels=memory_rates(bench) + elementwise_rates(bench, kernels) + optimizer_rates(bench, kernels),
        collectives=collective_rates(bench),
    )


def machine(device: str) -> Machine:
    """This machine's description."""
    import torch

    if device == "cuda":
        memory = torch.cuda.get_device_properties(0).total_memory
    else:
        memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    date = datetime.now(timezone.utc).isoformat(timespec="seconds")
    return Machine(device, device_name(device), torch.get_num_threads(), torch.__version__, date, memory)


def product_rates(bench: Bench) -> list[ProductRate]:
    """Of every m, n, k on the grid, in the three layouts that a linear layer has forward and backward.

    Of a dtype that is not asked for only squares: enough to know which dtype is the faster.
    """
    import torch

    sides, rates = bench.effort.sides, []
    grid = [(m, n, k) for m in sides for n in sides for k in sides if 2 * m * n * k <= bench.effort.most_flops]
    squares = [sizes for sizes in grid if len(set(sizes)) == 1]
    wanted = {dtype: grid if dtype in bench.dtypes else squares for dtype in DTYPES}
    for dtype, sizes in wanted.items():
        largest = max(max(m * n, n * k, m * k) for m, n, k in sizes)
        room = [random(largest, getattr(torch, dtype)) for _ in range(3)]
        keys = [(layout, *size) for layout in LAYOUTS for size in sizes]
        calls = [bench.plain(product(room, *key)) for key in keys]
        share = 0.54 * len(sizes) / sum(map(len, wanted.values()))
        seconds = bench.best(f"{dtype} matrix products", calls, share)
        for (layout, m, n, k), (taken,) in zip(keys, seconds, strict=True):
            rates.append(ProductRate(dtype, layout, m, n, k, 2 * m * n * k / taken))
    return rates


def product(room: list[torch.Tensor], layout: str, m: int, n: int, k: int) -> Callable[[], object]:
    """One product, its factors laid out as a linear layer has them, into memory that exists."""
    import torch

    left, right, out = room[0][: m * k], room[1][: k * n], room[2][: m * n].view(m, n)
    a = left.view(k, m).T if layout == "wgrad" else left.view(m, k)
    b = right.view(n, k).T if layout == "forward" else right.view(k, n)
    return lambda: torch.mm(a, b, out=out)


def attention_rates(bench: Bench, kernels: Kernels) -> list[AttentionRate]:
    """Forward and backward, compiled for each length."""
    import torch

    rates = []
    cases = [(d, h, t) for d in bench.dtypes for h in bench.effort.head_dims for t in bench.effort.seq_lens]
    share = 0.2 / len(cases)
    for dtype, head_dim, seq_len in cases:
        batch = max(1, bench.effort.attention_tokens // seq_len)
        size = (batch, seq_len, max(1, 1024 // head_dim), head_dim)  # a block's Q, K and V lie so before they are transposed
        q, k, v, g = (torch.randn(size).to(getattr(torch, dtype)).transpose(1, 2) for _ in range(4))
        for x in (q, k, v):
            x.requires_grad_()
        call = bench.both_passes(kernels.attention(seq_len, dtype), (q, k, v, None), (g,))
        ((forward, backward),) = bench.best(f"{dtype} attention", [call], share)
        work = attention_operation(1, batch, seq_len, size[2], size[2], head_dim, Sizes())
        rates.append(AttentionRate(dtype, head_dim, seq_len, work.forward.flops / forward, work.backward.flops / backward))
    return rates


def elementwise_rates(bench: Bench, kernels: Kernels) -> list[KernelRate]:
    """Each kernel at sizes that fit the caches and at sizes that do not."""
    import torch

    rates = []
    share = 0.12 / (len(kernels.elementwise) * len(bench.dtypes) * len(bench.effort.kernel_bytes))
    for dtype in bench.dtypes:
        item = getattr(torch, dtype).itemsize
        sizes = Sizes(activation=item, weight=item, residual=item)
        for kernel in kernels.elementwise:
            for size in bench.effort.kernel_bytes:
                a_row = sum(o.forward.bytes for o in kernel.operations(1024, sizes)) // 1024
                rows = max(2, size // a_row)
                forward_bytes = sum(o.forward.bytes for o in kernel.operations(rows, sizes))
                backward_bytes = sum(o.backward.bytes for o in kernel.operations(rows, sizes))
                inputs = kernel.inputs(rows, getattr(torch, dtype))
                what = f"{dtype} {kernel.kind}"
                if kernel.both_in_forward:
                    ((seconds,),) = bench.best(what, [bench.plain(functools.partial(kernel.call, *inputs))], share)
                    both = (forward_bytes + backward_bytes) / seconds
                    rates += [KernelRate(kernel.kind, dtype, "forward", forward_bytes, both),
                              KernelRate(kernel.kind, dtype, "backward", backward_bytes, both)]  # fmt: skip
                    continue
                outputs = kernel.call(*inputs)
                outputs = outputs if isinstance(outputs, tuple) else (outputs,)
                gradients = tuple(torch.randn_like(x) for x in outputs)
                del outputs
                call = bench.both_passes(kernel.call, inputs, gradients)
                ((forward, backward),) = bench.best(what, [call], share)
                rates += [KernelRate(kernel.kind, dtype, "forward", forward_bytes, forward_bytes / forward),
                          KernelRate(kernel.kind, dtype, "backward", backward_bytes, backward_bytes / backward)]  # fmt: skip
    return rates


def memory_rates(bench: Bench) -> list[KernelRate]:
    """The memory itself: copying, adding into a third tensor, filling."""
    import torch

    rates = []
    share = 0.05 / len(bench.dtypes) / len(bench.effort.kernel_bytes)
    for dtype in bench.dtypes:
        item = getattr(torch, dtype).itemsize
        for size in bench.effort.kernel_bytes:
            a, b, out = (random(size // item, getattr(torch, dtype)) for _ in range(3))
            moved = {"copy": 2 * a.nbytes, "add": 3 * a.nbytes, "fill": a.nbytes}
            calls: list[Callable[[], object]] = [
                lambda o=out, x=a: o.copy_(x),  # type: ignore[misc]
                lambda o=out, x=a, y=b: torch.add(x, y, out=o),  # type: ignore[misc]
                lambda o=out: o.fill_(1.5),  # type: ignore[misc]
            ]
            seconds = bench.best(f"{dtype} memory", [bench.plain(call) for call in calls], share)
            for (kind, count), (taken,) in zip(moved.items(), seconds, strict=True):
                rates.append(KernelRate(kind, dtype, "forward", count, count / taken))
    return rates


OPTIMIZERS = {"fp32": ("adamw", "float32"), "bf16": ("adamw", "bfloat16"), "bf16-lean": ("adamw_lean", "bfloat16")}
"""Precision → kind and dtype under which its optimiser's rate is kept."""


def optimizer_rates(bench: Bench, kernels: Kernels) -> list[KernelRate]:
    """AdamW over fp32 weights, over masters of bf16 weights, and all in bf16."""
    rates = []
    wanted = {precision: kept for precision, kept in OPTIMIZERS.items() if kept[1] in bench.dtypes or kept[1] == "float32"}
    share = 0.07 / len(wanted) / len(bench.effort.parameters)
    for precision, (kind, dtype) in wanted.items():
        for parameters in bench.effort.parameters:
            step = kernels.optimizer(precision, parameters, bench.device)
            size = adamw(parameters, Sizes.of(precision)).backward.bytes
            ((seconds,),) = bench.best(f"{dtype} optimiser", [bench.plain(step)], share)
            rates.append(KernelRate(kind, dtype, "backward", size, size / seconds))
    return rates


def launch_seconds(bench: Bench) -> float:
    """Host time of an operation outside compiled code."""
    import torch

    x = torch.ones(1)

    def many() -> None:
        for _ in range(1000):
            torch.add(x, x, out=x)

    return bench.best("launch overhead", [bench.plain(many)], 0.005)[0][0] / 1000


def compiled_seconds(bench: Bench, kernels: Kernels) -> float:
    """Host time of calling a compiled function and its backward pass, with next to nothing to compute."""
    import torch

    kernel = next(k for k in kernels.elementwise if k.kind == "swiglu")
    (x,) = kernel.inputs(2, torch.float32)
    gradient = torch.ones_like(kernel.call(x))
    return sum(bench.best("call overhead", [bench.both_passes(kernel.call, (x,), (gradient,))], 0.005)[0])


def collective_rates(bench: Bench) -> list[CollectiveRate]:
    """All-reduce, all-gather and reduce-scatter over all ranks, where torch.distributed is initialised."""
    import torch
    import torch.distributed as dist

    if not (dist.is_available() and dist.is_initialized()):
        return []
    rates = []
    for size in bench.effort.kernel_bytes:
        whole = torch.randn(size // 4 // dist.get_world_size() * dist.get_world_size())
        part = torch.empty(whole.numel() // dist.get_world_size())
        calls: dict[str, Callable[[], object]] = {
            "all_reduce": lambda w=whole: dist.all_reduce(w),  # type: ignore[misc]
            "all_gather": lambda w=whole, p=part: dist.all_gather_into_tensor(w, p),  # type: ignore[misc]
            "reduce_scatter": lambda w=whole, p=part: dist.reduce_scatter_tensor(p, w),  # type: ignore[misc]
        }
        for name, call in calls.items():
            call()
            seconds = min(bench.timed(call)[1] for _ in range(MOST_ROUNDS))  # as many on each rank
            rates.append(CollectiveRate(name, whole.nbytes, whole.nbytes / seconds))
    return rates


def runtime_bytes(device: str) -> int:
    """What this process holds now that all tensors are gone: torch, the compiler and its kernels."""
    if device != "cpu" or not sys.platform.startswith("linux"):
        return 0
    gc.collect()
    with contextlib.suppress(OSError, AttributeError):  # not glibc
        ctypes.CDLL(None).malloc_trim(0)
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
