"""The machine around the model: the allocator, determinism, and whether compiling pays."""

from __future__ import annotations

import ctypes
import os
import shutil
import sys

from yupana.config import Config
from yupana.errors import UserError
from yupana.flops import count

# Of malloc.h. The thresholds above which glibc maps memory anew, and gives it back at the top of the heap.
M_TRIM_THRESHOLD, M_TOP_PAD, M_MMAP_THRESHOLD = -1, -2, -3


def keep_memory() -> bool:
    """Make glibc keep freed memory instead of giving it back to the kernel every step, and use huge pages.

    A training step frees and allocates the same gigabytes again and again; by default glibc unmaps each large
    block, and the kernel zeroes and maps every page anew: 10–40 % of a CPU step. On a GPU, torch's segments are let
    grow instead of being cut into pieces that fit nothing. Returns whether glibc agreed. Call it before torch
    allocates anything large.
    """
    os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")  # torch's own: huge pages for large tensors
    os.environ.setdefault("PYTORCH_CUDA_ALLOC_CONF", "expandable_segments:True")
    if not sys.platform.startswith("linux"):
        return False
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):  # not glibc
        return False
    wanted = ((M_MMAP_THRESHOLD, 1 << 30), (M_TRIM_THRESHOLD, (1 << 31) - 1), (M_TOP_PAD, 64 << 20))
    return all([mallopt(option, value) == 1 for option, value in wanted])


def make_deterministic(device: str) -> None:
    """The same numbers on every run. A CPU's kernels give that already; CUDA's have to be asked."""
    import torch

    if device == "cuda":
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        torch.use_deterministic_algorithms(True)
        torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]


def how_to_compile(config: Config, device: str, peak: float) -> str:
    """What train.compile comes to: itself, and for auto "block" where that earns back its time, or "off".

    Compiling takes about half a minute on a CPU and saves a fifth of every step after that. Raises UserError for
    CUDA graphs without a GPU, and for a recomputation that only a compiled model has.
    """
    how: str = config.train.compile
    if how == "cuda-graphs" and device != "cuda":
        raise UserError("train.compile is cuda-graphs, which needs a GPU: use block here")
    if how == "auto":
        tokens = config.total_steps * config.train.global_batch * config.data.seq_len
        expected = count.flops_per_token(config.model, config.data.seq_len)["palm"] * tokens / (0.4 * peak)
        can = device != "cpu" or shutil.which("g++") is not None
        how = "block" if can and expected > 120 else "off"
    if how == "off" and config.fast.recompute == "selective":
        raise UserError("fast.recompute is selective, which a compiled model does: set train.compile to block")
    return how
