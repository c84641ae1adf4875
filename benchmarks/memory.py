"""Memory and speed of the chunked output head and cross-entropy beside full logits.

    python benchmarks/memory.py

Two layers of Llama 3.2-1B (vocabulary 128 256), bf16 weights with fp32 masters, one forward and backward pass and
optimiser step in a fresh process each, in turn. `full` is the plain way: all logits, then `F.cross_entropy` in fp32.
Memory is the process's peak above what weights, masters, moments and gradients take. Writes
docs/results/memory.json and .md.
"""

from __future__ import annotations

import argparse
import json
import shlex
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from yupana.files import write_atomically, write_json

TOKENS = (512, 4096)
WAYS = ("chunked", "full")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=3, help="timed steps of a process, after one that warms up")
    parser.add_argument("--worker", nargs=2, metavar=("WAY", "TOKENS"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.worker:
        print(json.dumps(measure(options.worker[0], int(options.worker[1]), options.steps)))
        return
    runs: dict[tuple[str, int], list[dict[str, Any]]] = {(way, tokens): [] for tokens in TOKENS for way in WAYS}
    for number in range(options.rounds):
        for way, tokens in list(runs)[:: 1 if number % 2 == 0 else -1]:
            command = [sys.executable, __file__, "--steps", str(options.steps), "--worker", way, str(tokens)]
            done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
            runs[way, tokens].append(json.loads(done.stdout.splitlines()[-1]))
            print(f"round {number + 1}/{options.rounds} {way} {tokens}: {runs[way, tokens][-1]}", file=sys.stderr)
    write(runs)


def measure(way: str, tokens: int, steps: int) -> dict[str, Any]:
    """One process: the peak above the state's own bytes, and the median step."""
    from peers.protocol import peak_rss_bytes

    from yupana.train import host

    host.keep_memory()
    import torch

    from yupana.config import load
    from yupana.train import fast, optimizer
    from yupana.train.session import build_model

    settings = ["--model.n_layers=2", "--train.steps=1", f"--data.seq_len={tokens}", f"--fast.loss={way}"]
    config = load("llama3.2-1b", None, settings)
    before = peak_rss_bytes()
    model = build_model(config, "cpu", "bf16")
    optim = optimizer.build(model, "bf16", config.optim, 0)
    fast.apply(model, config, "cpu", "block")
    head_and_loss = fast.loss_function(config, "block")
    ids = torch.randint(0, config.model.vocab_size, (1, tokens + 1), generator=torch.Generator().manual_seed(0))
    inputs, targets = ids[:, :-1].contiguous(), ids[:, 1:].flatten()
    scale = torch.tensor(1.0 / tokens)

    def step(index: int) -> float:
        hidden = model.hidden(inputs).flatten(0, 1)
        loss = head_and_loss(hidden, model.output_weight, targets, scale)
        loss.backward()
        optim.collect()
        optim.step(index, 1e-4)
        return loss.item()

    losses, seconds = [step(0)], []
    for index in range(steps):
        begun = time.perf_counter()
        losses.append(step(index + 1))
        seconds.append(time.perf_counter() - begun)
    state = 18 * sum(p.numel() for p in model.parameters())  # bf16 weight and gradient; fp32 master, gradient, moments
    return {
        "seconds": statistics.median(seconds),
        "above_state_bytes": peak_rss_bytes() - before - state,
        "state_bytes": state,
        "losses": losses,
    }


def write(runs: dict[tuple[str, int], list[dict[str, Any]]]) -> None:
    """The result as JSON and as a table."""
    rows = []
    for tokens in TOKENS:
        row: dict[str, Any] = {"tokens": tokens}
        for way in WAYS:
            row[way] = {
                "above_state_bytes": statistics.median(r["above_state_bytes"] for r in runs[way, tokens]),
                "seconds": statistics.median(r["seconds"] for r in runs[way, tokens]),
                "runs": runs[way, tokens],
            }
        for figure in ("above_state_bytes", "seconds"):
            row[f"{figure}_ratio"] = row["chunked"][figure] / row["full"][figure]
        rows.append(row)
    folder = Path("docs/results")
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / "memory.json", {"command": shlex.join(["python", *sys.argv]), "rows": rows})
    lines = [
        "# Memory of the output head: chunked beside full logits",
        "",
        "Two layers of Llama 3.2-1B, bf16 with fp32 masters, peak above weights, masters, moments and gradients "
        f"({rows[0]['chunked']['runs'][0]['state_bytes'] / 1e9:.2f} GB). Made by `python {shlex.join(sys.argv)}`.",
        "",
        "| tokens | chunked | full logits | memory ratio | chunked step | full step | time ratio |",
        "| ---: | ---: | ---: | ---: | ---: | ---: | ---: |",
    ]
    for row in rows:
        a, b = row["chunked"], row["full"]
        lines.append(
            f"| {row['tokens']:,} | {a['above_state_bytes'] / 1e9:.2f} GB | {b['above_state_bytes'] / 1e9:.2f} GB "
            f"| {row['above_state_bytes_ratio']:.2f} | {a['seconds']:.2f} s | {b['seconds']:.2f} s "
            f"| {row['seconds_ratio']:.2f} |"
        )
    write_atomically(folder / "memory.md", "\n".join(lines) + "\n")
    print("\n".join(lines))


if __name__ == "__main__":
    main()
