"""What the hardware can do: dense data-sheet peaks of known accelerators, and this machine's measured peak.

A peak is never guessed. An accelerator that is not in the table has its measured matrix-product rate only, and so
does every CPU.
"""

from __future__ import annotations

import json
import os
import platform
import time
from dataclasses import asdict, dataclass
from pathlib import Path

from yupana.files import write_json


@dataclass(frozen=True)
class Accelerator:
    """One row of the table: dense bf16 peak in FLOP/s, with its source."""

    name: str
    device_names: tuple[str, ...]  # what torch.cuda.get_device_name() says
    bf16: float
    source: str


ACCELERATORS = (
    Accelerator("a40", ("NVIDIA A40",), 149.7e12, "NVIDIA A40 data sheet"),
    Accelerator("a100-40gb", ("NVIDIA A100-SXM4-40GB", "NVIDIA A100-PCIE-40GB"), 312e12, "NVIDIA A100 data sheet"),
    Accelerator("a100-80gb", ("NVIDIA A100-SXM4-80GB", "NVIDIA A100 80GB PCIe"), 312e12, "NVIDIA A100 data sheet"),
    Accelerator(
        "h100-sxm", ("NVIDIA H100 80GB HBM3",), 989.4e12, "NVIDIA H100 data sheet (half of the sparse 1 979)"
    ),
    Accelerator("h100-pcie", ("NVIDIA H100 PCIe",), 756e12, "NVIDIA H100 data sheet (half of the sparse 1 513)"),
    Accelerator("h100-nvl", ("NVIDIA H100 NVL",), 835.5e12, "NVIDIA H100 data sheet (half of the sparse 1 671)"),
    Accelerator("h200", ("NVIDIA H200",), 989.4e12, "NVIDIA H200 data sheet (half of the sparse 1 979)"),
    Accelerator("l4", ("NVIDIA L4",), 121e12, "NVIDIA L4 data sheet (half of the sparse 242)"),
    Accelerator("l40s", ("NVIDIA L40S",), 362.05e12, "NVIDIA L40S data sheet"),
    Accelerator("rtx4090", ("NVIDIA GeForce RTX 4090",), 165.2e12, "NVIDIA Ada white paper, fp32 accumulation"),
    Accelerator("rtx3090", ("NVIDIA GeForce RTX 3090",), 71e12, "NVIDIA GA102 white paper, fp32 accumulation"),
    Accelerator("mi300x", ("AMD Instinct MI300X",), 1307.4e12, "AMD Instinct MI300X data sheet"),
)


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
    """Peaks of `device` ("cpu" or "cuda") for `dtype` ("float32" or "bfloat16").

    Measures for about a second the first time, then reads the cache (in $XDG_CACHE_HOME/yupana).
    """
    name = device_name(device)
    row = next((a for a in ACCELERATORS if name in a.device_names), None)
    sheet = row.bf16 if row is not None and dtype == "bfloat16" else None
    source = row.source if row is not None and sheet else f"measured matrix product on {name}"
    return Peaks(name, dtype, _cached_rate(device, name, dtype), sheet, source)


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


def matmul_rate(device: str, dtype: str, seconds: float = 0.8) -> float:
    """The best rate of a square matrix product on random data, FLOP/s, looked for during `seconds`."""
    import torch

    size = 8192 if device == "cuda" else 2048
    a = torch.randn(size, size, device=device).to(getattr(torch, dtype))
    b = torch.randn(size, size, device=device).to(getattr(torch, dtype))
    best, end, runs = float("inf"), time.perf_counter() + seconds, 0
    while runs < 3 or time.perf_counter() < end:
        start = time.perf_counter()
        a @ b
        if device == "cuda":
            torch.cuda.synchronize()
        # The first product pays for start-up.
        best, runs = min(best, time.perf_counter() - start) if runs else best, runs + 1
    return 2 * size**3 / best


def bf16_is_fast(device: str) -> bool:
    """Whether this device multiplies bf16 matrices faster than fp32 ones (by a fifth at least)."""
    return peaks(device, "bfloat16").measured > 1.2 * peaks(device, "float32").measured


def cache_folder() -> Path:
    """Where yupana keeps what it can make again: $XDG_CACHE_HOME/yupana or ~/.cache/yupana."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "yupana"


def _cached_rate(device: str, name: str, dtype: str) -> float:
    import torch

    file = cache_folder() / "matmul_rates.json"
    key = f"{name} | {torch.get_num_threads()} threads | torch {torch.__version__} | {dtype}"
    try:
        rates = json.loads(file.read_text())
        return float(rates[key])
    except (OSError, ValueError, KeyError, TypeError):
        rates = {}
    rate = matmul_rate(device, dtype)
    try:
        rates = json.loads(file.read_text())
    except (OSError, ValueError):
        rates = {}
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        write_json(file, {**rates, key: rate})
    except Exception:  # a cache that cannot be written costs a second next time, nothing more
        pass
    return rate


def describe(value: Peaks) -> dict[str, object]:
    """The peaks as a dictionary for env.json."""
    return asdict(value)
