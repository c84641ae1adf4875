"""A few real steps of a configuration under torch's profiler: what `yupana flops explain` explains."""

from __future__ import annotations

import gc
import itertools
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile

from yupana.config import Config
from yupana.corpus.mixture import Mixture
from yupana.errors import UserError
from yupana.flops.explain import explain
from yupana.flops.hardware import has_float8
from yupana.flops.waterfall import Event
from yupana.run import RunDirectory
from yupana.train import host
from yupana.train.begin import open_mixture
from yupana.train.loop import forward_backward, read_batch
from yupana.train.recorder import memory_bytes
from yupana.train.session import Session, prepare

WARM_UP = 4  # steps before anything is timed: compilation and the caches
# A pair of steps that raises the peak of memory by more bytes than this does not count. Memory that a process has never used
# is slow at first, on a virtual machine very (a gigabyte of gradients takes a second instead of 0.03), and the heap
# grows for ten steps where tensors of that size come and go.
SETTLED = 1 << 24
TRIES = 4  # pairs for each that is asked for; then they count as they are


@dataclass
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
    """Wall time of as many steps without the profiler, in turn with them."""
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
        config.model, config.train.global_batch, config.data.seq_len, seen.session.peaks, in_force(seen.session),
    )  # fmt: skip


def in_force(session: Session) -> dict[str, str]:
    """The settings that the waterfall's levers are about, as they came out on this machine."""
    config, cuda = session.config, session.device == "cuda"
    return {
        **{f"fast.{name}": str(value).lower() for name, value in asdict(config.fast).items()},
        "fast.float8": config.fast.float8 if has_float8(session.device) else "impossible",
        "cuda-graphs": str(session.compiled == "cuda-graphs").lower() if cuda else "impossible",
        "optim.name": config.optim.name,
        "train.compile": session.compiled,
        "train.micro_batch": "whole" if session.micro_batch == len(session.rows) else str(session.micro_batch),
        "train.precision": session.precision,
    }


def profile_steps(config: Config, mixture: Mixture, steps: int) -> Profile:
    """Take a few steps of `config`, timed, and as many under the profiler; nothing is kept of the training itself."""
    # Compiled CPU kernels are told apart only if they are made to say when they begin and end.
    torch._inductor.config.cpp.enable_kernel_profile = True
    torch.compiler.reset()  # what this process has compiled before does not say it
    with tempfile.TemporaryDirectory() as folder:
        session = prepare(config, RunDirectory(Path(folder)), mixture, resume=False)
    numbers = itertools.count()
    for _ in range(WARM_UP):
        take_step(session, next(numbers))
    seen = Profile([], [], 0, 0.0, 0.0, session)
    tries = TRIES * steps
    while seen.steps < steps:
        before, tries = memory_bytes(session.device), tries - 1
        plain = timed(session, next(numbers))  # in turn, since a machine is not equally fast all the time
        profiler, profiled = under_profiler(session, next(numbers))
        if memory_bytes(session.device) - before > SETTLED and tries >= steps - seen.steps:
            continue
        seen.steps += 1
        seen.plain_seconds += plain
        seen.profiled_seconds += profiled
        events, products = recorded(profiler, session.device == "cuda")
        seen.events += events
        seen.products += products
    return seen


def under_profiler(session: Session, step: int) -> tuple[Any, float]:
    """One step under the profiler, and its seconds.

    A profiler for every step: its records take pieces of what freed tensors left, so that large tensors go to new memory,
    gigabytes of it where one profiler saw several steps of a model with a large vocabulary.
    """
    gc.collect()  # the profiler before: its events refer to each other
    with new_profiler(session.device == "cuda") as profiler:
        seconds = timed(session, step)
    return profiler, seconds


def timed(session: Session, step: int) -> float:
    """Seconds of a step, to the end of its last kernel."""
    wait = torch.cuda.synchronize if session.device == "cuda" else lambda: None
    wait()
    begun = time.perf_counter()
    take_step(session, step)
    wait()
    return time.perf_counter() - begun


def take_step(session: Session, step: int) -> None:
    """One step as the training loop takes it, without the records."""
    with torch.profiler.record_function("yupana.data"):
        batch = read_batch(session, step)
    forward_backward(session, batch)
    session.optimizer.step(step, session.config.optim.lr)


def new_profiler(cuda: bool) -> profile:
    """torch's profiler of what a waterfall is made of."""
    activities = [ProfilerActivity.CPU] + ([ProfilerActivity.CUDA] if cuda else [])
    return profile(activities=activities, record_shapes=True)


def recorded(profiler: Any, cuda: bool) -> tuple[list[Event], list[Event]]:
    """All that a profiler saw, and the events in which the matrix products tell their sizes: on a CPU the same list."""
    if cuda:
        return on_gpu(profiler), launched(profiler)
    events = on_cpu(profiler)
    return events, events


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
