"""The common protocol of the peer benchmark's workers: one JSON job file in, one JSON line out for each request.

A worker is an independent process, `python WORKER.py JOB.json`. It builds its model from random weights and prints
`{"ready": true, …}`; then for each line `{"steps": k}` on stdin it takes k optimiser steps on successive batches
(cycling) and prints one line with a duration and a loss for each; `{"quit": true}` or the end of stdin ends it.
Between requests it blocks, so that several workers can wait while one computes. Nothing else reaches stdout.

The job: `{"shape": {…ModelShape's fields…}, "batches": FILE.npy of int64 [n_batches, batch, seq + 1],
"dtype": "fp32" | "bf16" | "bf16-autocast", "compile": bool, "optimizer": "default" | "fused", "lr": 1e-3, "seed": 0,
"device": "cpu" | "cuda"}`.

This file needs numpy alone, so that it also runs in an environment without yupana.
"""

from __future__ import annotations

import json
import os
import resource
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, TextIO

import numpy as np
import numpy.typing as npt

BETAS = (0.9, 0.95)
WEIGHT_DECAY = 0.1
CLIP = 1.0


@dataclass(frozen=True)
class Job:
    """What a worker is asked to train."""

    shape: dict[str, Any]
    """ModelShape's fields."""
    batches: str
    """File of int64 token ids, [n_batches, batch, seq + 1]."""
    dtype: str = "bf16"
    """fp32, bf16 (weights too) or bf16-autocast (fp32 weights)."""
    compile: bool = False
    """Whether to use torch.compile."""
    optimizer: str = "default"
    """The peer's own default, or torch's fused AdamW."""
    lr: float = 1e-3
    """Constant learning rate."""
    seed: int = 0
    """Seed of the random weights."""
    device: str = "cpu"
    """cpu or cuda."""

    def load_batches(self) -> npt.NDArray[np.int64]:
        """Token ids, int64 [n_batches, batch, seq + 1]."""
        return np.load(self.batches)


class Channel:
    """The conversation with the driver. Whatever else is printed in this process goes to stderr."""

    def __init__(self) -> None:
        self._out: TextIO = os.fdopen(os.dup(1), "w")
        os.dup2(2, 1)  # chatter of libraries, C++ ones included
        sys.stdout = sys.stderr

    def send(self, message: dict[str, Any]) -> None:
        """One JSON line to the driver."""
        self._out.write(json.dumps(message) + "\n")
        self._out.flush()

    def wait(self) -> int | None:
        """Block until asked for steps; None when there is nothing more to do."""
        line = sys.stdin.readline()
        request = json.loads(line) if line.strip() else {"quit": True}
        return None if request.get("quit") else int(request["steps"])

    def ready(self, name: str, parameters: int, versions: dict[str, str]) -> None:
        """Say that the model stands."""
        self.send({"ready": True, "name": name, "parameters": parameters, "versions": versions})

    def report(self, seconds: list[float], losses: list[float], tokens: int, faults: int) -> None:
        """Answer one request: durations and losses of its steps, tokens in all, page faults during it."""
        self.send(
            {
                "seconds": seconds,
                "losses": losses,
                "tokens": tokens,
                "peak_rss_bytes": peak_rss_bytes(),
                "minor_faults_per_step": faults / max(1, len(seconds)),
            }
        )


def read_job() -> Job:
    """The job named on the command line."""
    if len(sys.argv) != 2:
        raise SystemExit(f"usage: {sys.argv[0]} JOB.json")
    content = json.loads(Path(sys.argv[1]).read_text())
    return Job(**{field.name: content[field.name] for field in fields(Job) if field.name in content})


def serve(channel: Channel, step: Callable[[int], float], tokens_per_step: int) -> None:
    """Answer requests until the end, with `step(i) → loss` taking the i-th optimiser step, counted from 0."""
    done = 0
    while (count := channel.wait()) is not None:
        seconds, losses, faults = [], [], page_faults()
        for _ in range(count):
            start = time.perf_counter()
            losses.append(step(done))
            seconds.append(time.perf_counter() - start)
            done += 1
        channel.report(seconds, losses, count * tokens_per_step, page_faults() - faults)


def page_faults() -> int:
    """Pages that the kernel has mapped for this process so far without reading a disk."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt


def peak_rss_bytes() -> int:
    """The most memory this process held. (getrusage's ru_maxrss would include the parent's before exec.)"""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024
    raise RuntimeError("/proc/self/status has no VmHWM line")
