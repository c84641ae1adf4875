"""From a naive loop to the best one on this machine, and the ceiling that the model's own matrix products set.

    python benchmarks/ladder.py 7m 40m

For each preset: `yupana flops ladder` (every rung a real run in a process of its own), then the matrix products of one
step alone, in the layouts and sizes that the step has, then the same again after the ladder, since a machine with
neighbours is not equally fast all the time. Writes docs/results/ladder-PRESET.json, .md and .png. A ladder that was
stopped goes on: its runs lie in runs/ladder-PRESET.
"""

from __future__ import annotations

import argparse
import json
import shlex
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from yupana import config as settings
from yupana.files import write_atomically, write_json
from yupana.flops.hardware import best_rates, bf16_is_fast
from yupana.flops.operations import Product, step_operations
from yupana.train import host

RESULTS = Path("docs/results")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("presets", nargs="*", default=["7m"])
    parser.add_argument("--steps", type=int, default=12)
    parser.add_argument("--batch", type=int, default=32, help="sequences in a step")
    parser.add_argument("--more", default="", help="further settings of yupana train, such as '--model.n_layers=2'")
    parser.add_argument("--name", help="of the result files, instead of the preset's")
    options = parser.parse_args()
    host.keep_memory()
    for preset in options.presets:
        measure(preset, options)


def measure(preset: str, options: argparse.Namespace) -> None:
    """One ladder with its ceiling, written as a page."""
    name = options.name or preset
    more = options.more.split()
    ceilings = [products_alone(preset, options.batch, more)]
    command = ["flops", "ladder", preset, "--steps", str(options.steps), "--out", f"runs/ladder-{name}"]
    command += ["--save", str(RESULTS / f"ladder-{name}.png"), f"--train.global_batch={options.batch}", "--json", *more]
    RESULTS.mkdir(parents=True, exist_ok=True)
    done = subprocess.run([sys.executable, "-m", "yupana", *command], stdout=subprocess.PIPE, text=True, check=True)
    result = json.loads(done.stdout)
    ceilings.append(products_alone(preset, options.batch, more))
    result |= {
        "command": shlex.join(["python", *sys.argv]),
        "batch": options.batch,
        "products_alone_share_of_peak": max(ceilings) / max(best_rates("cpu").values()),
        "products_alone_flops_per_second": ceilings,
    }
    best = max(rung["mfu"] for rung in result["rungs"] if rung["kept"])
    result["best_of_ceiling"] = best / result["products_alone_share_of_peak"]
    write_json(RESULTS / f"ladder-{name}.json", result)
    write_atomically(RESULTS / f"ladder-{name}.md", page(name, result))
    print(page(name, result))


def products_alone(preset: str, batch: int, more: list[str], seconds: float = 8.0) -> float:
    """FLOP/s of one step's matrix products with nothing between them, each at its best of several rounds."""
    import torch

    config = settings.load(preset, None, more)
    dtype = torch.bfloat16 if bf16_is_fast("cpu") else torch.float32
    operations = [o for o in step_operations(config.model, batch, config.data.seq_len) if o.name == "linear"]
    flops, taken = 0, 0.0
    for operation in operations:
        for layout, product in enumerate((*operation.forward.products, *operation.backward.products)):
            best = time_product(product, layout, dtype, seconds / (3 * len(operations)))
            flops += operation.count * product.flops
            taken += operation.count * best
    return flops / taken


def time_product(product: Product, layout: int, dtype: Any, seconds: float) -> float:
    """Seconds of one product in the layout of the forward pass (0), of dx (1) or of dW (2)."""
    import torch

    m, n, k = product.m, product.n, product.k
    a = torch.randn(k, m).to(dtype).T if layout == 2 else torch.randn(m, k).to(dtype)
    b = torch.randn(n, k).to(dtype).T if layout == 0 else torch.randn(k, n).to(dtype)
    out = torch.empty(m, n, dtype=dtype)
    best, end = float("inf"), time.perf_counter() + seconds
    while time.perf_counter() < end or best == float("inf"):
        begun = time.perf_counter()
        torch.mm(a, b, out=out)
        best = min(best, time.perf_counter() - begun)
    return best


def page(name: str, result: dict[str, Any]) -> str:
    """The ladder as a Markdown page."""
    ran = [rung for rung in result["rungs"] if "mfu" in rung]
    lines = [
        f"# From naive to best: {name}",
        "",
        f"Batch {result['batch']}, {result['steps']} steps a rung, MFU `palm` against {ran[0]['peak'] / 1e9:.0f} GFLOP/s "
        f"({ran[0]['peak_source']}). Made by `{result['command']}`.",
        "",
        f"The matrix products of a step alone reach {result['products_alone_share_of_peak']:.1%} of that peak; the best "
        f"rung is at {result['best_of_ceiling']:.1%} of theirs.",
        "",
        "| rung | MFU | tokens/s | peak memory | loss minus the lowest rung's | |",
        "| --- | ---: | ---: | ---: | ---: | --- |",
    ]
    for rung in result["rungs"]:
        if "mfu" not in rung:
            lines.append(f"| {rung['name']} | — | — | — | — | {rung['reason']} |")
            continue
        told = "**best**" if rung["name"] == result["best"] else "" if rung["kept"] else f"{rung['let_go']}: let go"
        lines.append(
            f"| {rung['name']} | {rung['mfu']:.1%} | {rung['tokens_per_second']:,.0f} "
            f"| {rung['memory_bytes'] / 1e9:.2f} GB | {rung['loss_difference']:+.5f} | {told} |"
        )
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
