"""This machine's peak: the data sheet's, and the best matrix product it has been seen to do.

A peak is never guessed. An accelerator that is not in the table has its measured rate only, and so does every CPU.
"""

from __future__ import annotations

import contextlib
import functools
import json
import platform
import time
from dataclasses import asdict, dataclass
from pathlib import Path

from yupana.errors import UserError
from yupana.files import cache_folder, write_json
from yupana.flops.accelerators import of_device


@dataclass(frozen=True)
class Peaks:
    """Peak rates of this machine's device in FLOP/s for one dtype."""

    device: str
    dtype: str
    measured: float
    data_sheet: float | None
    source: str

    @property
    def best_known(self) -> float:
        """The data sheet's figure where there is one, else the measured one."""
        return self.data_sheet or self.measured


def peaks(device: str, dtype: str) -> Peaks:
    """Peaks of `device` ("cpu" or "cuda") for `dtype` ("bfloat16", "float32", or on a GPU "tf32")."""
    name = device_name(device)
    row = of_device(name)
    sheet = {"bfloat16": row.bf16, "tf32": row.tf32, "float32": row.fp32}[dtype] if row is not None else None
    source = row.source if row is not None and sheet else f"measured matrix product on {name}"
    return Peaks(name, dtype, best_rates(device)[dtype], sheet, source)


def bf16_is_fast(device: str) -> bool:
    """Whether this device multiplies bf16 matrices faster than fp32 ones, by a fifth at least.

    Having the instructions is not enough: Xeons whose AMX is hidden from a virtual machine multiply bf16 at half the
    rate of fp32.
    """
    rates = best_rates(device)
    return rates["bfloat16"] > 1.2 * rates["float32"]


def has_float8(device: str) -> bool:
    """Whether this machine multiplies 8-bit floats: a GPU from Ada or Hopper on."""
    import torch

    return device == "cuda" and torch.cuda.get_device_capability() >= (8, 9)


def device_name(device: str) -> str:
    """The processor's or accelerator's own name."""
    if device == "cuda":
        import torch

        return torch.cuda.get_device_name()
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


@functools.cache
def best_rates(device: str) -> dict[str, float]:
    """The best matrix-product rate of each dtype ever seen on this device, FLOP/s.

    Measures for half a second in every process and keeps the best in $XDG_CACHE_HOME/yupana: a machine that was busy
    at the first measurement must not look slow for ever.
    """
    import torch

    file = cache_folder() / "matmul_rates.json"
    key = f"{device_name(device)} | {torch.get_num_threads()} threads | torch {torch.__version__}"
    measured = matmul_rates(device)
    try:
        kept = json.loads(file.read_text())
        best = {dtype: max(rate, float(kept.get(key, {}).get(dtype, 0.0))) for dtype, rate in measured.items()}
    except (OSError, ValueError, AttributeError, TypeError):
        kept, best = {}, measured
    if best != kept.get(key):
        with contextlib.suppress(OSError, UserError):  # a cache that cannot be written costs accuracy, nothing more
            file.parent.mkdir(parents=True, exist_ok=True)
            write_json(file, {**kept, key: best})
    return best


def matmul_rates(device: str, seconds: float = 0.5) -> dict[str, float]:
    """The best rate of square matrix products on random data by dtype, FLOP/s, the dtypes in turn for `seconds`."""
    import torch

    sizes = (8192, 4096) if device == "cuda" else (2048, 1024)
    full = [torch.randn(3, size, size, device=device) for size in sizes]
    squares = {"bfloat16": [matrices.bfloat16() for matrices in full], "float32": full}
    if device == "cuda":
        squares["tf32"] = full
    best = dict.fromkeys(squares, 0.0)
    end = time.perf_counter() + seconds
    attempt = 0
    allowed = torch.backends.cuda.matmul.allow_tf32
    while attempt < 3 or time.perf_counter() < end:
        for dtype, matrices in squares.items():
            torch.backends.cuda.matmul.allow_tf32 = dtype == "tf32"
            for a, b, out in matrices:
                start = time.perf_counter()
                torch.mm(a, b, out=out)
                if device == "cuda":
                    torch.cuda.synchronize()
                if attempt:  # the first products pay for start-up
                    best[dtype] = max(best[dtype], 2 * len(a) ** 3 / (time.perf_counter() - start))
        attempt += 1
    torch.backends.cuda.matmul.allow_tf32 = allowed
    return best


def describe(value: Peaks) -> dict[str, object]:
    """The peaks as a dictionary for env.json."""
    return asdict(value)
