"""A stopwatch for kernels: the best of several repetitions, everything in turn."""

from __future__ import annotations

import functools
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from yupana.flops.operations import Operation, Sizes


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

    attention: Callable[[int], Callable[..., Any]]
    """For a seq_len, the attention that training uses: (q, k, v, mask) → out, heads before positions."""
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


CPU = Effort((128, 512, 2048, 8192), 2.0**34, (128, 512), (64,), 1024, (1 << 20, 1 << 24, 1 << 27),
             (1 << 20, 1 << 25), 35)  # fmt: skip
CUDA = Effort((512, 2048, 8192, 32768), 2.0**42, (512, 1024, 2048, 4096, 8192), (64, 128), 16384,
              (1 << 22, 1 << 26, 1 << 29), (1 << 22, 1 << 27), 20)  # fmt: skip
SMALL = Effort((64, 128), 2.0**24, (32, 64), (16,), 64, (1 << 16,), (1 << 16,), 1)
"""For tests."""

MOST_ROUNDS = 8


class Bench:
    """A stopwatch for a device, with random memory to work on."""

    def __init__(self, device: str, dtypes: tuple[str, ...], effort: Effort, tell: Tell) -> None:
        self.device, self.dtypes, self.effort, self.tell = device, dtypes, effort, tell
        self.share = 0.0

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

    def best(self, what: str, calls: list[Callable[[], object]], share: float) -> list[float]:
        """The fewest seconds of each call, all in turn, for `share` of the time there is; two rounds at least."""
        for call in calls:
            call()
        best = [float("inf")] * len(calls)
        begun, budget = time.perf_counter(), share * self.effort.seconds
        for number in range(MOST_ROUNDS):
            for index, call in enumerate(calls):
                best[index] = min(best[index], self.timed(call)[1])
                spent = (time.perf_counter() - begun) / budget
                self.tell(what, self.share + share * min(1.0, max(spent, (number + index / len(calls)) / MOST_ROUNDS)))
            if number and time.perf_counter() - begun > budget:
                break
        self.share += share
        return best

    def differentiable(
        self, what: str, function: Callable[..., Any], inputs: tuple[Any, ...], gradients: tuple[Any, ...], share: float
    ) -> tuple[float, float]:
        """The fewest seconds of a function of `inputs`, and of its backward pass from `gradients` of its outputs."""
        import torch

        self.tell(what, self.share)
        wanted = [x for x in inputs if x is not None and x.requires_grad]
        best = [float("inf"), float("inf")]
        begun = time.perf_counter()
        for number in range(1 + MOST_ROUNDS):
            outputs, forward = self.timed(functools.partial(function, *inputs))
            outputs = outputs if isinstance(outputs, tuple) else (outputs,)
            _, backward = self.timed(functools.partial(torch.autograd.grad, outputs, wanted, gradients))
            if number == 0:  # compiles
                begun = time.perf_counter()
                continue
            best = [min(best[0], forward), min(best[1], backward)]
            if number > 1 and time.perf_counter() - begun > share * self.effort.seconds:
                break
        self.share += share
        return best[0], best[1]
