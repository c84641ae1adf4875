"""The ladder from a naive loop to the best one: the same model, batch and seed, one lever at a time.

Every rung is an ordinary run (`yupana train` with settings, in a process of its own), so that whatever it gains can
be had by writing the same settings into a run.yaml. A lever stays pulled for the rungs above it unless it made the
step slower here or took the loss beyond its tolerance.
"""

from __future__ import annotations

import json
import shutil
import statistics
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from yupana.errors import UserError
from yupana.run import open_run

SLOWER = 0.98  # of the rate before: a lever below that is let go of; noise moves a rate by a percent or two

# Nats a token, between the mean losses of the second halves of two rungs that saw the same batches: 200 steps of a small
# model stay within it on every rung of a CPU (tests/test_mfu.py). In fp32 only the order of additions differs.
TOLERANCE = {"fp32": 0.001}
LOWER_TOLERANCE = 0.03  # bf16 with fp32 masters, TF32, float8


@dataclass(frozen=True)
class Lever:
    """One change from the rung below."""

    name: str
    settings: dict[str, str]
    on: str = "any"
    """The device it is for: "any", "cpu" or "cuda"."""


NAIVE = {
    "train.precision": "fp32",
    "train.compile": "off",
    "fast.attention": "unfused",
    "fast.projections": "separate",
    "fast.loss": "full",
    "fast.adamw": "loop",
    "fast.recompute": "block",
    "fast.allocator": "system",
    "fast.overlap": "false",
}


def levers(micro_batch: int, largest: int) -> list[Lever]:
    """Every lever in order. `micro_batch` is where the ladder starts, `largest` what fits (the whole batch)."""
    steps = [
        Lever("fp32, eager, everything by hand", {**NAIVE, "train.micro_batch": str(micro_batch)}),
        Lever("TF32 products", {"train.precision": "tf32"}, "cuda"),
        Lever("bf16 weights, fp32 masters", {"train.precision": "bf16"}),
        Lever("torch's attention (SDPA)", {"fast.attention": "sdpa"}),
        Lever("Q, K, V and gate, up fused", {"fast.projections": "fused"}),
        Lever("nothing recomputed", {"fast.recompute": "none"}),
        Lever("blocks compiled", {"train.compile": "block"}),
        Lever("attention in query blocks", {"fast.attention": "blocked"}, "cpu"),
        Lever("attention: flash", {"fast.attention": "flash"}, "cuda"),
        Lever("attention: cuDNN", {"fast.attention": "cudnn"}, "cuda"),
        Lever("head and loss in chunks", {"fast.loss": "chunked"}),
        Lever("AdamW in one kernel", {"fast.adamw": "fused"}),
        Lever(f"micro-batch {largest}", {"train.micro_batch": str(largest)}),
        Lever("cheap operations recomputed", {"fast.recompute": "selective"}),
        Lever("allocator keeps its memory", {"fast.allocator": "keep"}),
        Lever("batches read ahead, no garbage collection", {"fast.overlap": "true"}),
        Lever("whole model compiled", {"train.compile": "model"}),
        Lever("kernels searched (max-autotune)", {"train.compile": "max-autotune"}),
        Lever("CUDA graphs", {"train.compile": "cuda-graphs"}, "cuda"),
        Lever("float8 products, tensorwise", {"fast.float8": "tensorwise"}, "cuda"),
        Lever("float8 products, rowwise", {"fast.float8": "rowwise"}, "cuda"),
    ]
    return [lever for lever in steps if largest > micro_batch or not lever.name.startswith("micro-batch")]


def climb(
    model: list[str],
    steps: int,
    folder: Path,
    device: str,
    pulled: list[Lever],
    tell: Callable[[str, float], None] = lambda what, share: None,
    most: int | None = None,
) -> list[dict[str, Any]]:
    """Run rung after rung for `steps` steps each and return one record a rung, lowest first.

    `model` holds the arguments of `yupana train` that all share; `most` rungs are climbed. A rung whose run is complete
    in `folder` is read instead of run again, so a ladder that was stopped goes on. A rung that this machine cannot do
    is kept in the list with the reason. Raises UserError when the lowest rung itself fails.
    """
    rungs: list[dict[str, Any]] = []
    settings: dict[str, str] = {}
    best: dict[str, Any] | None = None
    pulled = [lever for lever in pulled if lever.on in ("any", device)][:most]
    for number, lever in enumerate(pulled):
        tell(lever.name, number / len(pulled))
        wanted = settings | lever.settings
        rung: dict[str, Any] = {"name": lever.name, "settings": wanted}
        reason = run_rung(model, wanted, steps, folder / f"rung_{number:02d}")
        if reason is None:
            rung |= measured(folder / f"rung_{number:02d}", folder / "rung_00")
            rung["tolerance"] = tolerance(wanted)
            rung["let_go"] = fault(rung, best)
            rung["kept"] = not rung["let_go"]
            if rung["kept"]:
                settings, best = wanted, rung
        elif best is None:
            raise UserError(f"the lowest rung of the ladder did not run: {reason}")
        else:
            rung |= {"kept": False, "reason": reason}
        rungs.append(rung)
    tell("", 1.0)
    against_one_peak(rungs)
    return rungs


def tolerance(settings: dict[str, str]) -> float:
    """How far, in nats a token, the loss of a rung with these settings may lie from the lowest rung's."""
    exact = settings.get("fast.float8", "off") == "off"
    return TOLERANCE.get(settings["train.precision"], LOWER_TOLERANCE) if exact else LOWER_TOLERANCE


def fault(rung: dict[str, Any], best: dict[str, Any] | None) -> str:
    """Why a rung's lever is let go of, beside the best rung below it; empty if it is kept."""
    if not abs(rung["loss_difference"]) <= rung["tolerance"]:  # a NaN is a fault too
        return f"loss beyond ± {rung['tolerance']:g}"
    if best is not None and rung["tokens_per_second"] <= SLOWER * best["tokens_per_second"]:
        return "slower"
    return ""


def run_rung(model: list[str], settings: dict[str, str], steps: int, path: Path) -> str | None:
    """Train one rung to its end; the reason in one sentence if it could not."""
    if (path / "run.yaml").is_file() and any(r["step"] == steps and "loss" in r for r in open_run(path).metrics()):
        return None
    command = [sys.executable, "-m", "yupana", "train", *model, "--run", str(path), "--json"]
    shutil.rmtree(path, ignore_errors=True)  # what a stopped ladder left
    command += [f"--{key}={value}" for key, value in settings.items()]
    command += ["--train.tokens=null", f"--train.steps={steps}", "--log.every=1"]
    command += [f"--log.eval_every={steps}", "--log.eval_tokens=1", "--checkpoint.every=0"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode == 0:
        return None
    lines = [line for line in done.stderr.splitlines() if line.strip()]
    return lines[-1].removeprefix("yupana: ") if lines else f"it ended with code {done.returncode}"


def measured(path: Path, lowest: Path) -> dict[str, Any]:
    """A finished rung in figures: medians over the second half of its steps, and how far its loss is from the lowest.

    `loss_difference` is in nats a token, averaged over those steps: each pair saw the same batch.
    """
    steps = [record for record in open_run(path).metrics() if "loss" in record]
    reference = {record["step"]: record["loss"] for record in open_run(lowest).metrics() if "loss" in record}
    settled = steps[len(steps) // 2 :]
    env = json.loads((path / "env.json").read_text())
    return {
        "tokens_per_second": statistics.median(record["tokens_per_second"] for record in settled),
        "memory_bytes": max(record["memory_bytes"] for record in steps),
        "loss": statistics.fmean(record["loss"] for record in settled),
        "loss_difference": statistics.fmean(record["loss"] - reference[record["step"]] for record in settled),
        "flops_per_token": env["flops_per_token"],
        "peak": env["peaks"]["data_sheet"] or env["peaks"]["measured"],
        "peak_source": env["peaks"]["source"],
    }


def against_one_peak(rungs: list[dict[str, Any]]) -> None:
    """Give every rung its MFU against the same peak: the highest of any rung's dtype, so that the bars compare."""
    ran = [rung for rung in rungs if "tokens_per_second" in rung]
    peak, source = max((rung["peak"], rung["peak_source"]) for rung in ran)
    for rung in ran:
        for name, flops in rung["flops_per_token"].items():
            rung["mfu" if name == "palm" else f"mfu_{name}"] = rung["tokens_per_second"] * flops / peak
        rung["peak"], rung["peak_source"] = peak, source
