"""One step of a Trainer under torch's profiler, as the waterfall that `yupana flops explain` shows of a run."""

from __future__ import annotations

import time
from typing import Any

import torch

from yupana.flops.explain import explain
from yupana.flops.hardware import Peaks
from yupana.model.huggingface_config import shape_from_config
from yupana.train.profile import new_profiler, recorded


class StepProfile:
    """The profiler around one step; the step before it, without the profiler, says what a step takes."""

    def __init__(self, cuda: bool) -> None:
        self.cuda = cuda
        self.profiler: Any = None
        self.begun = self.plain_seconds = 0.0

    def begin(self, *, profiled: bool) -> None:
        """A step begins: the one to profile, or the one before it."""
        if profiled:
            self.profiler = new_profiler(self.cuda)
            self.profiler.__enter__()
        self._wait()
        self.begun = time.perf_counter()

    def end(self) -> float:
        """The step ended; its seconds."""
        self._wait()
        seconds = time.perf_counter() - self.begun
        if self.profiler is None:
            self.plain_seconds = seconds
        else:
            self.profiler.__exit__(None, None, None)
        return seconds

    def waterfall(self, seconds: float, model: Any, rows: int, columns: int, peaks: Peaks) -> dict[str, Any]:
        """The profiled step of `rows` sequences of `columns` tokens, as flops/explain.py gives it.

        Raises UserError for a model that is no Llama: what its products are worth is not known here.
        """
        events, products = recorded(self.profiler, self.cuda)
        shape = shape_from_config(model.config.to_dict())
        return explain(events, products, 1, seconds, self.plain_seconds, shape, rows, columns, peaks, {})

    def _wait(self) -> None:
        if self.cuda:
            torch.cuda.synchronize()
