"""A stopwatch for kernels: the best of several repetitions, everything in turn."""

from __future__ import annotations

import contextlib
import functools
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from yupana.flops.operations import Operation, Sizes

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class Kernel:
    """An elementwise kernel of the training step."""

    kind: str
    """The operation's name in operations.py."""
    call: Callable[..., Any]
    inputs: Callable[[int, Any], tuple[Any, ...]]
    """Inputs for so many rows in a torch dtype, on torch's default device."""
    operations: Callable[[int, Sizes], list[Operation]]
    """What it counts as, for the bytes."""
    both_in_forward: bool = False
    """Whether one call does the work of both passes."""


@dataclass(frozen=True)
class Kernels:
    """The training step's own kernels (train/kernels.py builds them: this package doesn't import training)."""

    attention: Callable[[int, str], Callable[..., Any]]
    """For a seq_len and a dtype, the attention that training uses: (q, k, v, mask) → out, heads before positions."""
    elementwise: list[Kernel]
    optimizer: Callable[[str, int, str], Callable[[], None]]
    """(precision, parameters, device) → a function that takes one step."""


Tell = Callable[[str, float], None]
"""Told what is measured and which share of the whole is done, between 0 and 1."""


@dataclass(frozen=True)
class Effort:
    """How much to measure."""

    sides: tuple[int, ...]
    """Of products: m, n and k each."""
    most_flops: float
    """Of one product; larger ones are left out."""
    seq_lens: tuple[int, ...]
    head_dims: tuple[int, ...]
    attention_tokens: int
    """Tokens in one call of attention, at least one sequence."""
    kernel_bytes: tuple[int, ...]
    """Of an elementwise kernel's forward pass."""
    parameters: tuple[int, ...]
    """Of one optimiser step."""
    seconds: float
    """In all, but for compiling."""


CPU = Effort((128, 512, 2048, 8192), 2.0**34, (128, 512), (64,), 1024, (1 << 20, 1 << 23, 1 << 26),
             (1 << 20, 1 << 24), 18)  # fmt: skip
CUDA = Effort((512, 2048, 8192, 32768), 2.0**42, (512, 1024, 2048, 4096, 8192), (64, 128), 16384,
              (1 << 22, 1 << 26, 1 << 29), (1 << 22, 1 << 27), 20)  # fmt: skip
SMALL = Effort((64, 128), 2.0**24, (32, 64), (16,), 64, (1 << 16,), (1 << 16,), 1)
"""For tests."""

SWEEPS = 3  # times that everything is measured, one whole measurement after another
MOST_ROUNDS = 8  # in a sweep
A_VISIT = 0.004  # seconds a short call is repeated for
DISTURBED = 0.02  # share of a visit that threads may wait for a processor before the visit is made again


class Bench:
    """A stopwatch for a device. A call's time is its fewest seconds of all repetitions.

    A busy neighbour slows whatever runs beside it down, a short call on two threads a hundredfold, for as long as a
    time slice or for many seconds: hence repetitions within a visit, visits made again when threads had to wait for a
    processor, rounds of visits, and sweeps over everything.
    """

    def __init__(self, device: str, dtypes: tuple[str, ...], effort: Effort, tell: Tell) -> None:
        self.device, self.dtypes, self.effort, self.tell = device, dtypes, effort, tell
        self.sweep = 0
        self.share = 0.0
        self.patience = effort.seconds / 2  # seconds left for visits made again

    def timed(self, call: Callable[[], Any]) -> tuple[Any, float]:
        """What one call returns, and its seconds."""
        import torch

        if self.device == "cuda":
            torch.cuda.synchronize()
        start = time.perf_counter()
        result = call()
        if self.device == "cuda":
            torch.cuda.synchronize()
        return result, time.perf_counter() - start

    def visit(self, visited: Callable[[], tuple[float, ...]]) -> tuple[float, ...]:
        """The fewest of each of the seconds that a function returns, called for A_VISIT or once, and again if disturbed."""
        best: tuple[float, ...] = ()
        while True:
            begun, before = time.perf_counter(), waited()
            while not best or time.perf_counter() - begun < A_VISIT:
                found = visited()
                best = tuple(map(min, best, found)) if best else found
                if time.perf_counter() - begun + sum(found) > A_VISIT:
                    break
            spent = time.perf_counter() - begun
            if waited() - before < DISTURBED * spent or self.patience < 0:
                return best
            self.patience -= spent

    def best(self, what: str, calls: Sequence[Callable[[], tuple[float, ...]]], share: float) -> list[tuple[float, ...]]:
        """The fewest seconds that each call returns, all in turn, for `share` of the time there is in this sweep."""
        begun, budget = time.perf_counter(), share * self.effort.seconds / SWEEPS
        best: list[tuple[float, ...]] = []
        for number in range(MOST_ROUNDS):
            for index, call in enumerate(calls):
                if number == 0:
                    call()  # compiles; touches its memory
                    best.append(self.visit(call))
                else:
                    best[index] = tuple(map(min, best[index], self.visit(call)))
                done = max((time.perf_counter() - begun) / budget, (number + index / len(calls)) / MOST_ROUNDS)
                self.told(what, share * min(1.0, done))
            if time.perf_counter() - begun > budget:
                break
        self.share += share
        return best

    def told(self, what: str, done: float) -> None:
        """Tell what is measured."""
        self.tell(what, min(1.0, (self.sweep + self.share + done) / SWEEPS))

    def plain(self, call: Callable[[], object]) -> Callable[[], tuple[float, ...]]:
        """A call that returns its seconds."""
        return lambda: (self.timed(call)[1],)

    def both_passes(
        self, function: Callable[..., Any], inputs: tuple[Any, ...], gradients: tuple[Any, ...]
    ) -> Callable[[], tuple[float, ...]]:
        """A call that returns the seconds of a function of `inputs` and of its backward pass from `gradients`."""
        import torch

        wanted = [x for x in inputs if x is not None and x.requires_grad]

        def call() -> tuple[float, ...]:
            outputs, forward = self.timed(functools.partial(function, *inputs))
            outputs = outputs if isinstance(outputs, tuple) else (outputs,)
            _, backward = self.timed(functools.partial(torch.autograd.grad, outputs, wanted, gradients))
            return forward, backward

        return call


def random(count: int, dtype: torch.dtype) -> torch.Tensor:
    """[count] random numbers in a pattern that repeats: drawing each anew would take longer than what is measured."""
    import torch

    drawn = torch.randn(min(count, 1 << 20)).to(dtype)
    return drawn.repeat(-(-count // drawn.numel()))[:count]


def waited() -> float:
    """Seconds that this process's threads have stood in line for a processor so far; 0 where the system doesn't say."""
    total = 0
    for task in Path("/proc/self/task").glob("*/schedstat"):
        with contextlib.suppress(OSError, IndexError, ValueError):  # a thread may end meanwhile
            total += int(task.read_text().split()[1])
    return total / 1e9
