"""What works on this machine, found by trying it. Prints no secret: a login is there or not."""

from __future__ import annotations

import importlib.metadata
import netrc
import os
import platform
import shutil
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from yupana.files import cache_folder
from yupana.flops.hardware import best_rates, has_float8

CORE = ("torch", "numpy", "tokenizers", "safetensors", "rich", "jsonargparse", "PyYAML")
EXTRAS = {
    "report": ("matplotlib",),
    "hf": ("transformers", "accelerate", "huggingface_hub"),
    "corpus": ("datasets", "pyarrow", "zstandard", "llama-models"),
    "tune": ("trl", "peft", "lm-eval"),
    "track": ("wandb", "tensorboard", "trackio"),
    "float8": ("torchao",),
}
Check = dict[str, Any]
"""{"name", "ok": true, false or null (does not apply here), "told"}"""


def examine(folder: Path = Path()) -> dict[str, list[Check]]:
    """Checks by section: versions, machine, works, disk, logins. `folder` is where runs would be written."""
    return {
        "versions": _versions(),
        "machine": _machine(),
        "works": _works(),
        "disk": _disk(folder),
        "logins": _logins(),
    }


def _versions() -> list[Check]:
    checks = [_check("python", sys.version_info >= (3, 10), platform.python_version())]
    checks += [_installed(name, "pip install -e .") for name in CORE]
    for extra, names in EXTRAS.items():
        checks += [_installed(name, f"pip install 'yupana[{extra}]'", optional=True) for name in names]
    return checks


def _installed(name: str, how: str, *, optional: bool = False) -> Check:
    try:
        return _check(name, True, importlib.metadata.version(name))
    except importlib.metadata.PackageNotFoundError:
        return _check(name, None if optional else False, f"not installed: {how}")


def _machine() -> list[Check]:
    import torch

    from yupana.flops.hardware import device_name

    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    checks = [_check("processor", True, f"{device_name('cpu')}, {os.cpu_count()} cores, {memory / 1e9:.0f} GB")]
    if not torch.cuda.is_available():
        return [*checks, _check("accelerator", None, f"none that torch {torch.__version__} sees")]
    for i in range(torch.cuda.device_count()):
        card = torch.cuda.get_device_properties(i)
        told = f"{card.name}, {card.total_memory / 1e9:.0f} GB, capability {card.major}.{card.minor}"
        checks.append(_check(f"accelerator {i}", True, told))
    return checks


def _works() -> list[Check]:
    """Each thing tried on the device that training would choose."""
    import torch

    device = "cuda" if torch.cuda.is_available() else "cpu"
    checks = [
        _tried("fp32 products", partial(_matmul, device, torch.float32)),
        _tried("bf16 products", partial(_matmul, device, torch.bfloat16)),
    ]
    if has_float8(device):
        checks.append(_tried("float8 products", partial(_float8, device)))
    else:
        checks.append(_check("float8 products", None, "needs a GPU from Ada or Hopper on"))
    checks.append(_tried("torch.compile", partial(_compile, device)))
    backends = torch.nn.attention.SDPBackend
    for name, backend in (
        ("attention: math", backends.MATH), ("attention: flash", backends.FLASH_ATTENTION),
        ("attention: efficient", backends.EFFICIENT_ATTENTION), ("attention: cudnn", backends.CUDNN_ATTENTION),
    ):  # fmt: skip
        checks.append(_tried(name, partial(_attention, device, backend), optional=True))
    return checks


def _matmul(device: str, dtype: Any) -> str:
    import torch

    product = torch.eye(64, device=device, dtype=dtype) @ torch.ones(64, 64, device=device, dtype=dtype)
    assert float(product.sum()) == 64 * 64
    return f"{best_rates(device)[str(dtype).removeprefix('torch.')] / 1e9:,.0f} GFLOP/s, best seen"


def _float8(device: str) -> str:
    import torch

    one = torch.ones((), device=device)
    a, b = (torch.ones(64, 64, device=device).to(torch.float8_e4m3fn) for _ in range(2))
    product = torch._scaled_mm(a, b.t(), scale_a=one, scale_b=one, out_dtype=torch.bfloat16)
    assert float(product[0, 0]) == 64
    return "torch._scaled_mm"


def _compile(device: str) -> str:
    import torch

    start = time.perf_counter()
    doubled = torch.compile(lambda x: (x * 2).relu() + 1, dynamic=False)(torch.ones(32, device=device))
    assert float(doubled.sum()) == 96
    return f"first kernel in {time.perf_counter() - start:.1f} s"


def _attention(device: str, backend: Any) -> str:
    import warnings

    import torch
    from torch.nn.attention import sdpa_kernel

    dtype = torch.bfloat16 if device == "cuda" else torch.float32
    q = torch.ones(1, 2, 16, 64, device=device, dtype=dtype, requires_grad=True)
    with warnings.catch_warnings(), sdpa_kernel(backend):
        warnings.simplefilter("ignore")  # why each back end is refused, at length
        torch.nn.functional.scaled_dot_product_attention(q, q, q, is_causal=True).sum().backward()
    return "forward and backward"


def _disk(folder: Path) -> list[Check]:
    checks = []
    for name, place in (("runs", folder.resolve()), ("cache", cache_folder())):
        there = next(parent for parent in [place, *place.parents] if parent.exists())
        free = shutil.disk_usage(there).free
        writable = os.access(there, os.W_OK)
        told = f"{free / 1e9:,.0f} GB free" + ("" if writable else ", and not writable")
        checks.append(_check(f"{name} folder", writable and free > 1e9, told))
    return checks


def _logins() -> list[Check]:
    return [
        _login("Hugging Face hub", _hub_login(), "hf auth login"),
        _login("Weights & Biases", _wandb_login(), "wandb login (without it runs are logged offline)"),
    ]


def _hub_login() -> bool:
    try:
        from huggingface_hub import get_token
    except ImportError:
        return False
    return get_token() is not None


def _wandb_login() -> bool:
    if os.environ.get("WANDB_API_KEY"):
        return True
    try:
        return netrc.netrc().authenticators("api.wandb.ai") is not None
    except (OSError, netrc.NetrcParseError):
        return False


def _login(name: str, there: bool, how: str) -> Check:
    return _check(name, True if there else None, "logged in" if there else f"not logged in: {how}")


def _tried(name: str, trial: Callable[[], str], *, optional: bool = False) -> Check:
    try:
        return _check(name, True, trial())
    except Exception as error:  # whatever a back end raises is the finding
        told = str(error).strip().splitlines()
        return _check(name, None if optional else False, (told[0] if told else type(error).__name__)[:100])


def _check(name: str, ok: bool | None, told: str) -> Check:
    return {"name": name, "ok": ok, "told": told}
