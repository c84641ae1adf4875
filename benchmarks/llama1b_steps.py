"""Real optimiser steps of the full Llama 3.2-1B on this machine, in the memory-lean precision, on a repeated batch.

    python benchmarks/llama1b_steps.py --out docs/results/llama3.2-1b-three-steps.json

1 235 814 400 weights in bf16, gradients and both moments in bf16, stochastic rounding. Text: Python's library in
Llama 3's tokens where `llama-models` is installed, else as bytes. Prints each step's loss, time, tokens/s and MFU, and
the peak of the process's memory.
"""

from __future__ import annotations

import argparse
import shlex
import sys
import tempfile
import time
from pathlib import Path

import torch
from peers.protocol import peak_rss_bytes

from yupana import config as settings
from yupana.corpus.prepare import prepare
from yupana.corpus.shards import open_corpus
from yupana.errors import UserError
from yupana.files import write_json
from yupana.flops import count
from yupana.run import RunDirectory
from yupana.train import host, loop
from yupana.train.session import Session
from yupana.train.session import prepare as make_ready

PRECISION = "bf16-lean"


def main() -> None:
    host.keep_memory()  # before torch allocates anything
    options = parse()
    with tempfile.TemporaryDirectory() as folder:
        session = ready(Path(folder), options)
        result = {
            "benchmark": "llama3.2-1b-steps",
            "command": shlex.join(["python", *sys.argv]),
            "device": session.peaks.device,
            "torch": torch.__version__,
            "parameters": sum(p.numel() for p in session.model.parameters()),
            "precision": PRECISION,
            "batch": options.batch,
            "seq_len": options.seq_len,
            "peak_flops_per_second": session.peaks.measured,
            "steps": [],
        }
        per_token = count.flops_per_token(session.config.model, options.seq_len)
        print(f"{result['parameters']:,} parameters, {options.batch} × {options.seq_len} tokens, {PRECISION}")
        batch = loop.read_batch(session, 0)
        for step in range(options.steps):
            begun = time.perf_counter()
            loss = loop.forward_backward(session, batch).item()  # the same batch again and again
            session.optimizer.step(step, options.lr)
            seconds = time.perf_counter() - begun
            rate = options.batch * options.seq_len / seconds
            entry = {"loss": loss, "seconds": seconds, "tokens_per_second": rate}
            entry |= {f"mfu_{name}": rate * flops / session.peaks.measured for name, flops in per_token.items()}
            result["steps"].append(entry)
            print(
                f"step {step + 1}  loss {loss:.4f}  {seconds:.1f} s  {rate:.0f} tokens/s  MFU {entry['mfu_palm']:.1%} "
                f"(exact {entry['mfu_exact']:.1%})  peak memory {peak_rss_bytes() / 1e9:.2f} GB",
                flush=True,
            )
    losses = [entry["loss"] for entry in result["steps"]]
    result["peak_rss_bytes"] = peak_rss_bytes()
    if losses != sorted(losses, reverse=True):
        raise SystemExit(f"the loss did not fall: {losses}")
    if options.out:
        options.out.parent.mkdir(parents=True, exist_ok=True)
        write_json(options.out, result)


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--steps", type=int, default=3)
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--seq_len", type=int, default=512)
    parser.add_argument("--lr", type=float, default=2e-5)
    parser.add_argument("--out", type=Path)
    return parser.parse_args()


def ready(folder: Path, options: argparse.Namespace) -> Session:
    """A session of the llama3.2-1b preset on a corpus made for it."""
    try:
        prepare(["python"], folder / "corpus", "llama3", val_fraction=0.05)
    except UserError:
        prepare(["python"], folder / "corpus", "bytes", val_fraction=0.05)
    overrides = [
        f"--data.corpus={folder / 'corpus'}",
        f"--data.seq_len={options.seq_len}",
        f"--train.global_batch={options.batch}",
        f"--train.steps={options.steps}",
        f"--train.precision={PRECISION}",
        "--train.micro_batch=null",
    ]
    config = settings.load("llama3.2-1b", None, overrides)
    run = RunDirectory(folder / "run")
    run.lock()
    return make_ready(config, run, {open_corpus(folder / "corpus"): 1.0}, resume=False)


if __name__ == "__main__":
    main()
