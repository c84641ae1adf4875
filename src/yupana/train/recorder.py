"""Metrics on their way from the device to the run directory, the screen and the trackers."""

from __future__ import annotations

import math
import platform
import resource
import time
from typing import Any

import torch
from torch import Tensor

from yupana.errors import UserError
from yupana.flops import count
from yupana.flops.pace import slowest
from yupana.train import checkpoint
from yupana.train.evaluate import HeldOut
from yupana.train.health import Figures
from yupana.train.progress import Progress
from yupana.train.session import Session
from yupana.train.trackers import Trackers

SLOW = 0.25  # a rank that takes so much longer than the others is told, once


class Recorder:
    """Metrics on their way to the file, the screen and the trackers.

    Losses stay on the device until they are due, so that a GPU never waits for the host; none is trusted before
    it has been seen to be finite, and nothing is saved before that.
    """

    def __init__(self, session: Session, progress: Progress, trackers: Trackers) -> None:
        self.session, self.progress, self.trackers = session, progress, trackers
        self.pending: list[tuple[int, Tensor, Tensor, float]] = []
        self.last: dict[str, Any] = {}
        self.doubted = False
        self.slow: set[int] = set()
        self.validation: dict[str, Any] = {}
        self.base = session.seconds
        self.clock = self.mark = time.perf_counter()
        self.marked_step = session.start
        config = session.config
        self.tokens_per_step = config.train.global_batch * config.data.seq_len
        self.flops = count.flops_per_token(config.model, config.data.seq_len)

    @property
    def seconds(self) -> float:
        """Seconds spent in training so far, over all resumptions, evaluation and saving included."""
        return self.base + time.perf_counter() - self.clock

    def stepped(self, step: int, loss: Tensor, grad_norm: Tensor, lr: float) -> None:
        """A step was taken."""
        self.pending.append((step, loss, grad_norm, lr))
        if step % self.session.config.log.every == 0 or step == self.session.start + 1:
            self.flush()

    def flush(self) -> None:
        """Write what is pending; the last of it becomes a line of metrics. Raises UserError when not finite."""
        if not self.pending:
            return
        for step, loss, grad_norm, _ in self.pending:
            if not (math.isfinite(loss.item()) and math.isfinite(grad_norm.item())):
                raise UserError(self._diverged(step, loss.item(), grad_norm.item()))
        step, loss, grad_norm, lr = self.pending[-1]
        now = time.perf_counter()
        rate = (step - self.marked_step) * self.tokens_per_step / (now - self.mark)
        peaks = self.session.peaks
        self.last = {
            "step": step,
            "tokens": step * self.tokens_per_step,
            "loss": loss.item(),
            "lr": lr,
            "grad_norm": grad_norm.item(),
            "tokens_per_second": rate,
            "mfu": count.mfu(rate * self.flops["palm"], peaks.best_known),
            "mfu_exact": count.mfu(rate * self.flops["exact"], peaks.best_known),
            "mfu_measured": count.mfu(rate * self.flops["palm"], peaks.measured),
            "memory_bytes": memory_bytes(self.session.device),
            "seconds": self.seconds,
        }
        self.pending.clear()
        self._log(self.last)
        self.trackers.log(self.last)
        self.progress.stepped(self.last)
        if self.last["mfu"] > 1 and not self.doubted:
            self.doubted = True
            self.progress.note(
                f"MFU {100 * self.last['mfu']:.0f} % cannot be: the peak it is measured against ({peaks.source}) is too "
                "low, perhaps because the machine was busy when it was measured"
            )
        self.mark, self.marked_step = now, step

    def evaluated(self, step: int, validation: HeldOut, rank_seconds: list[float] | None = None) -> HeldOut:
        """Held-out text was evaluated, and perhaps the pace of the ranks; the time it took is not a step's."""
        self.validation = {
            "step": step,
            "tokens": step * self.tokens_per_step,
            "val_loss": validation.loss,
            "val_bpb": validation.bits_per_byte,
            "val_tokens": validation.tokens,
            "seconds": self.seconds,
        }
        self.trackers.log(self.validation)
        if len(validation.by_source) > 1:
            self.validation["val_by_source"] = {
                name: {"val_loss": found.loss, "val_bpb": found.bits_per_byte, "val_tokens": found.tokens}
                for name, found in validation.by_source.items()
            }
            self.trackers.log({"step": step, **{f"val_loss/{n}": e.loss for n, e in validation.by_source.items()}})
        if rank_seconds is not None:
            self.validation["rank_seconds"] = rank_seconds
            self._tell_slowest(rank_seconds)
        self._log(self.validation)
        self.progress.evaluated(self.validation)
        self.paused(step)
        return validation

    def examined(self, step: int, parts: dict[str, Figures]) -> None:
        """A step was looked into (health.py): one line of metrics with the figures of each part."""
        self._log({"step": step, "tokens": step * self.tokens_per_step, "health": parts})
        flat = {f"{part}/{name}": v for part, found in parts.items() for name, v in found.items() if v is not None}
        self.trackers.log({"step": step, **flat})

    def sampled(self, step: int, sample: dict[str, str]) -> None:
        """The model of `step` went on from a held-out passage: one line of metrics."""
        self._log({"step": step, "tokens": step * self.tokens_per_step, "sample": sample})

    def paused(self, step: int) -> None:
        """What came after `step` and took until now (an evaluation, a checkpoint) is no step's time."""
        self.mark, self.marked_step = time.perf_counter(), step

    def summary(self) -> dict[str, Any]:
        """The last line of metrics with the last evaluation's figures."""
        return {**self.validation, **self.last}

    def _tell_slowest(self, rank_seconds: list[float]) -> None:
        rank, behind = slowest(rank_seconds)
        if behind > SLOW and rank not in self.slow:
            self.slow.add(rank)
            self.progress.note(f"rank {rank} is slow: it takes {behind:.0%} longer than the others for the same work")

    def _log(self, record: dict[str, Any]) -> None:
        if self.session.ranks.first:
            self.session.run.log(record)

    def _diverged(self, step: int, loss: float, grad_norm: float) -> str:
        session = self.session
        documents = session.batches.batch(step - 1).documents
        shown = sorted({int(d) for row in documents for d in row})
        named = ", ".join(map(str, shown[:12])) + (f" and {len(shown) - 12} more" if len(shown) > 12 else "")
        folder, _ = checkpoint.newest_good(session.run)
        last = f"the last good checkpoint is {folder}" if folder else "there is no checkpoint yet"
        return (
            f"step {step} is not finite (loss {loss}, gradient norm {grad_norm}); its batch holds training documents "
            f"{named}; {last}: lower optim.lr, lengthen optim.warmup_steps or look at those documents"
        )


def memory_bytes(device: str) -> int:
    """Peak memory so far: the GPU's as torch allocated it, or this process's."""
    if device == "cuda":
        return torch.cuda.max_memory_allocated()
    scale = 1 if platform.system() == "Darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * scale
