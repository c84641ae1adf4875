"""The machine around the model: the allocator, determinism, and whether compiling pays."""

from __future__ import annotations

import ctypes
import os
import shutil
import sys

from yupana.config import Config
from yupana.errors import UserError
from yupana.flops import count

# Of malloc.h: the thresholds above which glibc maps memory anew, and gives it back at the top of the heap.
M_TRIM_THRESHOLD, M_TOP_PAD, M_MMAP_THRESHOLD = -1, -2, -3
NEVER = -1
# Of sys/mman.h.
MADV_HUGEPAGE = 14
HUGE_PAGE = 2 << 20


def keep_memory() -> bool:
    """Make glibc keep freed memory instead of giving it back to the kernel every step, and use huge pages.

    A training step frees and allocates the same gigabytes again and again; by default glibc unmaps each large
    block, and the kernel zeroes and maps every page anew: 10–40 % of a CPU step. On a GPU, torch's segments are let
    grow instead of being cut into pieces that fit nothing. Returns whether glibc agreed. Call it before torch
    allocates anything large.
    """
    os.environ.setdefault("PYTORCH_CUDA_ALLOC_CONF", "expandable_segments:True")
    if not sys.platform.startswith("linux"):
        return False
    try:
        glibc = ctypes.CDLL(None)
        wanted = ((M_MMAP_THRESHOLD, NEVER), (M_TRIM_THRESHOLD, NEVER), (M_TOP_PAD, 64 << 20))
        kept = all([glibc.mallopt(option, value) == 1 for option, value in wanted])
    except (OSError, AttributeError):  # not glibc
        return False
    if kept:
        use_huge_pages(glibc)
    return kept


def use_huge_pages(glibc: ctypes.CDLL) -> None:
    """Ask for huge pages over half of the machine's memory, which the heap then grows into.

    torch's own way (THP_MEM_ALLOC_ENABLE) aligns every large tensor to 2 MB; the gaps keep freed blocks from being used
    again, and pages are faulted in anew all the time. glibc's own (a tunable) must be set before the process starts.
    Nothing is touched here: memory is taken when it is used.
    """
    glibc.malloc.restype, glibc.malloc.argtypes = ctypes.c_void_p, [ctypes.c_size_t]
    glibc.free.argtypes = [ctypes.c_void_p]
    glibc.madvise.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
    size = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 2
    block = glibc.malloc(size)
    if block is not None:  # a limit on the address space may forbid it
        first = -block % HUGE_PAGE
        glibc.madvise(block + first, size - first, MADV_HUGEPAGE)
        glibc.free(block)


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
