"""A few real steps of a configuration under torch's profiler: what `yupana flops explain` explains."""

from __future__ import annotations

import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile

from yupana.config import Config
from yupana.corpus.mixture import Mixture
from yupana.errors import UserError
from yupana.flops.explain import explain
from yupana.flops.waterfall import Event
from yupana.run import RunDirectory
from yupana.train import host
from yupana.train.begin import open_mixture
from yupana.train.loop import forward_backward, read_batch
from yupana.train.session import Session, prepare

WARM_UP = 3  # steps before anything is timed: compilation, the allocator, the caches
# Bytes of memory that are touched and freed before the profiler starts. Its records take pieces of what freed tensors left,
# so that large tensors go elsewhere, and paging in memory that was never used looked like a slow output head and loss.
ROOM = 1 << 30


@dataclass(frozen=True)
class Profile:
    """What a few steps did and took."""

    events: list[Event]
    """The kernels of a GPU, or the operators and compiled kernels of a CPU, each with its own time."""
    products: list[Event]
    """The matrix products among them, with the sizes of their inputs."""
    steps: int
    profiled_seconds: float
    """Wall time of the profiled steps."""
    plain_seconds: float
    """Wall time of as many steps without the profiler, just before."""
    session: Session


def explained(config: Config, steps: int) -> dict[str, Any]:
    """Where the MFU of a configuration goes, from `steps` steps timed and as many profiled; flops/explain.py says what.

    Raises UserError for fewer steps than one, and where the configuration's corpus is missing.
    """
    if steps < 1:
        raise UserError(f"at least 1 step can be explained, got {steps}")
    if config.fast.allocator == "keep":
        host.keep_memory()
    seen = profile_steps(config, open_mixture(config), steps)
    return explain(
        seen.events, seen.products, seen.steps, seen.profiled_seconds, seen.plain_seconds,
        config.model, config.train.global_batch, config.data.seq_len, seen.session.peaks,
    )  # fmt: skip


def profile_steps(config: Config, mixture: Mixture, steps: int) -> Profile:
    """Take a few steps of `config`, timed, and as many under the profiler; nothing is kept of the training itself."""
    # Compiled CPU kernels are told apart only if they are made to say when they begin and end.
    torch._inductor.config.cpp.enable_kernel_profile = True
    torch.compiler.reset()  # what this process has compiled before does not say it
    with tempfile.TemporaryDirectory() as folder:
        session = prepare(config, RunDirectory(Path(folder)), mixture, resume=False)
    for step in range(WARM_UP):
        take_step(session, step)
    plain = timed(session, steps)
    activities = [ProfilerActivity.CPU] + ([ProfilerActivity.CUDA] if session.device == "cuda" else [])
    torch.ones(ROOM, dtype=torch.uint8)  # see ROOM
    with profile(activities=activities, record_shapes=True) as profiler:
        profiled = timed(session, steps)
    if session.device == "cuda":
        return Profile(on_gpu(profiler), launched(profiler), steps, profiled, plain, session)
    events = on_cpu(profiler)
    return Profile(events, events, steps, profiled, plain, session)


def timed(session: Session, steps: int) -> float:
    """Seconds of `steps` steps, to the end of the last kernel."""
    wait = torch.cuda.synchronize if session.device == "cuda" else lambda: None
    wait()
    begun = time.perf_counter()
    for step in range(steps):
        take_step(session, WARM_UP + step)
    wait()
    return time.perf_counter() - begun


def take_step(session: Session, step: int) -> None:
    """One step as the training loop takes it, without the records."""
    with torch.profiler.record_function("yupana.data"):
        batch = read_batch(session, step)
    forward_backward(session, batch)
    session.optimizer.step(step, session.config.optim.lr)


def on_cpu(profiler: Any) -> list[Event]:
    """What ran on the CPU, each with its own time, without what it called."""
    return [Event(e.name, e.self_cpu_time_total / 1e6, sizes(e)) for e in profiler.events() if e.self_cpu_time_total > 0]


def on_gpu(profiler: Any) -> list[Event]:
    """The kernels that ran on the GPU."""
    cuda = torch.autograd.DeviceType.CUDA
    return [Event(e.name, e.self_device_time_total / 1e6) for e in profiler.events() if e.device_type == cuda]


def launched(profiler: Any) -> list[Event]:
    """The GPU's kernels with the sizes that the operator which launched them was given."""
    return [Event(k.name, k.duration / 1e6, sizes(e)) for e in profiler.events() for k in e.kernels or ()]


def sizes(event: Any) -> tuple[tuple[int, ...], ...]:
    """Of an operator's inputs."""
    return tuple(tuple(shape) for shape in event.input_shapes or () if isinstance(shape, list | tuple))
