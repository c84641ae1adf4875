"""What bounds an operation on a machine: its matrix products or its memory traffic (Williams et al. 2009, roofline)."""

from __future__ import annotations

import time
from dataclasses import dataclass

from yupana.flops import hardware
from yupana.flops.accelerators import of_device
from yupana.flops.operations import Operation, Pass, Sizes

BUFFER = 1 << 28  # bytes: far beyond any cache


@dataclass(frozen=True)
class Machine:
    """The two rates that bound an operation."""

    device: str
    dtype: str
    """Of activations: the one this machine multiplies fastest."""
    flops_per_second: float
    bytes_per_second: float
    source: str
    """Where the two rates come from."""

    @property
    def balance(self) -> float:
        """FLOPs a byte at which products and traffic take as long as each other."""
        return self.flops_per_second / self.bytes_per_second

    @property
    def sizes(self) -> Sizes:
        """Bytes an element in training on this machine: bf16 with fp32 masters, or fp32 throughout."""
        return Sizes.of("bf16" if self.dtype == "bfloat16" else "fp32")

    def seconds(self, one: Pass) -> float:
        """The least time of one pass: the longer of its products and its traffic, perfectly overlapped."""
        return max(one.flops / self.flops_per_second, one.bytes / self.bytes_per_second)

    def step_seconds(self, operation: Operation) -> float:
        """The least time of all `count` of an operation, forward and backward."""
        return operation.count * (self.seconds(operation.forward) + self.seconds(operation.backward))

    def bound(self, operation: Operation) -> str:
        """ "compute" or "memory": which of the two fills more of the operation's time."""
        passes = (operation.forward, operation.backward)
        computing = sum(self.seconds(p) for p in passes if p.flops / self.flops_per_second >= self.seconds(p) > 0)
        return "compute" if 2 * computing > sum(self.seconds(p) for p in passes) else "memory"


def this_machine() -> Machine:
    """The rates of this machine: data-sheet figures of a known accelerator, else measured here (about a second)."""
    import torch

    device = "cuda" if torch.cuda.is_available() else "cpu"
    dtype = "bfloat16" if hardware.bf16_is_fast(device) else "float32"
    peaks = hardware.peaks(device, dtype)
    row = of_device(peaks.device)
    bandwidth = row.bandwidth if row is not None else memory_bandwidth(device)
    source = f"{row.source}" if row is not None and peaks.data_sheet else "both measured now: matrix products and a copy"
    return Machine(peaks.device, dtype, peaks.best_known, bandwidth, source)


def memory_bandwidth(device: str, seconds: float = 0.3) -> float:
    """Bytes a second of copying a large buffer, read and written, at best over `seconds`."""
    import torch

    source = torch.ones(BUFFER, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    best, end, attempt = 0.0, time.perf_counter() + seconds, 0
    while attempt < 3 or time.perf_counter() < end:
        start = time.perf_counter()
        target.copy_(source)
        if device == "cuda":
            torch.cuda.synchronize()
        if attempt:  # the first copy also maps the target's pages
            best = max(best, 2 * BUFFER / (time.perf_counter() - start))
        attempt += 1
    return best
