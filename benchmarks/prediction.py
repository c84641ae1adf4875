"""Predicted against measured step time and peak memory; no constant is fitted to these configurations.

    yupana flops limits
    python benchmarks/prediction.py

The prediction is `yupana flops predict` with this machine's saved limits. The measurement is a real training step
(compiled blocks, chunked head, AdamW) on random tokens, each configuration in a process of its own, all in turn,
several times over. Time is the fastest round's median of three steps in which no thread had to wait for a processor
and no memory was used for the first time, or its fastest step where there were not three; memory is the process's
peak, and beside it the peak of the tensors alone, from torch's own profiler. Writes docs/results/prediction.json
and .md.
"""

from __future__ import annotations

import argparse
import json
import shlex
import statistics
import subprocess
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from yupana.files import write_atomically, write_json


@dataclass(frozen=True)
class Case:
    """A configuration."""

    model: str
    seq_len: int
    batch: int
    precision: str
    accumulation: int = 1
    layers: int | None = None

    @property
    def name(self) -> str:
        """As the table shows it."""
        layers = f", {self.layers} layers" if self.layers else ""
        times = f" × {self.accumulation}" if self.accumulation > 1 else ""
        return f"{self.model}{layers}, {self.batch} × {self.seq_len}{times}, {self.precision}"

    @property
    def overrides(self) -> list[str]:
        """Settings on top of the preset's."""
        return [f"--model.n_layers={self.layers}"] if self.layers else []


CASES = (
    Case("7m", 256, 4, "fp32"),
    Case("7m", 128, 32, "fp32", accumulation=2),
    Case("7m", 1024, 4, "fp32"),
    Case("7m", 256, 16, "bf16"),
    Case("40m", 256, 8, "fp32"),
    Case("40m", 512, 4, "fp32", accumulation=2),
    Case("40m", 512, 4, "bf16"),
    Case("190m", 256, 4, "fp32", layers=4),
    Case("190m", 512, 2, "bf16", layers=4),
    Case("llama3.2-1b", 512, 1, "fp32", layers=2),
    Case("llama3.2-1b", 256, 2, "bf16", layers=2),
    Case("llama3.2-1b", 1024, 1, "bf16", layers=2),
)
STEPS = 3


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--cases", type=int, nargs="+", default=list(range(len(CASES))), help="numbers, from 0")
    parser.add_argument("--add", action="store_true", help="to the rounds that the result file holds already")
    parser.add_argument("--out", type=Path, default=Path("docs/results/prediction.json"))
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.worker:
        print(json.dumps(measure(Case(**json.loads(options.worker)))))
        return
    chosen = [CASES[number] for number in options.cases]
    cases = list(chosen)
    runs: dict[Case, list[dict[str, Any]]] = {case: [] for case in cases}
    if options.add and options.out.is_file():
        earlier = {r["case"]: r for r in json.loads(options.out.read_text())["rows"]}
        cases += [case for case in CASES if case.name in earlier and case not in cases]
        runs = {case: earlier.get(case.name, {"runs": []})["runs"] for case in cases}
    for number in range(options.rounds):
        for case in chosen[:: 1 if number % 2 == 0 else -1]:
            command = [sys.executable, __file__, "--worker", json.dumps(asdict(case))]
            done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
            run = json.loads(done.stdout.splitlines()[-1])
            runs[case].append(run)
            expected = predict(case)["step_seconds"]
            told = f"{run['step_seconds']:.3f} s ({run['quiet_steps']} quiet), predicted {expected:.3f} s"
            print(f"round {number + 1}/{options.rounds} {case.name}: {told}", file=sys.stderr, flush=True)
            write([row(c, predict(c), runs[c]) for c in CASES if runs.get(c)], options.out)  # whatever happens next
    write([row(c, predict(c), runs[c]) for c in CASES if runs.get(c)], options.out)  # with 0 rounds: predicted anew
    print(options.out.with_suffix(".md").read_text())


def predict(case: Case) -> dict[str, Any]:
    """What the command says."""
    from yupana.config import load
    from yupana.train.limits import prediction

    shape = load(case.model, None, case.overrides).model
    return prediction(shape, case.seq_len, case.batch, case.batch * case.accumulation, case.precision)


def measure(case: Case) -> dict[str, Any]:
    """One process: seconds of its steps, and its peaks of memory."""
    from peers.protocol import peak_rss_bytes

    from yupana.train import host

    host.keep_memory()
    import torch

    from yupana.config import load
    from yupana.flops.bench import waited
    from yupana.train import fast, optimizer
    from yupana.train.profile import SETTLED
    from yupana.train.session import build_model

    config = load(case.model, None, [*case.overrides, "--train.steps=1", f"--data.seq_len={case.seq_len}"])
    model = build_model(config, "cpu", case.precision)
    optim = optimizer.build(model, case.precision, config.optim, 0)
    head_and_loss = fast.loss_function(config, "block")
    fast.apply(model, config, "cpu", "block")
    size = (case.accumulation, case.batch, case.seq_len + 1)
    ids = torch.randint(0, config.model.vocab_size, size, generator=torch.Generator().manual_seed(0))
    scale = torch.tensor(1.0 / (case.accumulation * case.batch * case.seq_len))
    autocast = torch.autocast("cpu", torch.bfloat16, enabled=case.precision == "bf16-autocast")

    def step(index: int) -> float:
        losses = []
        for part in ids:
            inputs, targets = part[:, :-1].contiguous(), part[:, 1:].flatten()
            with autocast:
                hidden = model.hidden(inputs).flatten(0, 1)
                loss = head_and_loss(hidden, model.output_weight, targets, scale)
            loss.backward()
            optim.collect()
            losses.append(loss.detach())
        optim.step(index, 1e-4)
        return torch.stack(losses).sum().item()

    for index in range(3):  # compiles; twice, since the first gradients arrive in the second step
        step(index)
    seconds, quiet = [], []
    while len(quiet) < STEPS and len(seconds) < 4 * STEPS:
        begun, before, held = time.perf_counter(), waited(), peak_rss_bytes()
        step(len(seconds) + 3)
        seconds.append(time.perf_counter() - begun)
        in_line = waited() - before > 0.05 * seconds[-1]  # a thread stood in line for a processor
        if not in_line and peak_rss_bytes() - held < SETTLED:
            quiet.append(seconds[-1])
    state = [*model.parameters(), *optim.state().values()]
    kept = sum(t.untyped_storage().nbytes() for t in {t.untyped_storage().data_ptr(): t for t in state}.values())
    process = peak_rss_bytes()
    return {
        "step_seconds": statistics.median(quiet) if len(quiet) == STEPS else min(seconds),
        "seconds": seconds,
        "quiet_steps": len(quiet),
        "tensor_bytes": kept + peak_allocated(lambda: step(len(seconds) + 3)),
        "process_bytes": process,
    }


def peak_allocated(call: Any) -> int:
    """The most bytes that `call` has allocated at once, as torch's profiler saw them come and go."""
    from torch.profiler import ProfilerActivity, profile

    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        call()
    events = [e for e in profiler.profiler.kineto_results.events() if e.name() == "[memory]"]
    held = most = 0
    for event in sorted(events, key=lambda e: e.start_ns()):
        held += event.nbytes()
        most = max(most, held)
    return most


def row(case: Case, predicted: dict[str, Any], runs: list[dict[str, Any]]) -> dict[str, Any]:
    """Predicted beside measured."""
    quiet = [run for run in runs if run["quiet_steps"] == STEPS]
    seconds = min(run["step_seconds"] for run in quiet or runs)
    tensors = statistics.median(run["tensor_bytes"] for run in runs)
    process = statistics.median(run["process_bytes"] for run in runs)
    memory = predicted["memory_bytes"]
    return {
        "case": case.name,
        **asdict(case),
        "predicted_seconds": predicted["step_seconds"],
        "measured_seconds": seconds,
        "quiet_runs": len(quiet),
        "time_error": predicted["step_seconds"] / seconds - 1,
        "predicted_process_bytes": memory["total"],
        "measured_process_bytes": process,
        "process_error": memory["total"] / process - 1,
        "predicted_tensor_bytes": memory["total"] - memory["runtime"],
        "measured_tensor_bytes": tensors,
        "tensor_error": (memory["total"] - memory["runtime"]) / tensors - 1,
        "predicted_memory": memory,
        "runs": runs,
    }


def write(rows: list[dict[str, Any]], out: Path) -> None:
    """The result as JSON and as a table."""
    errors = {
        figure: statistics.median(abs(r[f"{figure}_error"]) for r in rows) for figure in ("time", "process", "tensor")
    }
    command = shlex.join(["python", *sys.argv])
    out.parent.mkdir(parents=True, exist_ok=True)
    write_json(out, {"command": command, "median_absolute_error": errors, "rows": rows})
    disturbed = sum(not r["quiet_runs"] for r in rows)
    lines = [
        "# Predicted against measured",
        "",
        "Made by `python benchmarks/prediction.py` (later rounds with `--add`) with limits from `yupana flops limits`; "
        "no constant was fitted to these rows. Two rules were corrected after looking at some of them, though, so they "
        "are not wholly unseen: the time of heads narrower than the measured ones (7m), and when the gradients of head "
        f"and embedding come and go in memory (40m fp32, llama3.2-1b bf16). Median absolute error of all "
        f"{len(rows)} rows: step time {errors['time']:.1%}, "
        f"tensors {errors['tensor']:.1%}, the whole process {errors['process']:.1%}.",
        "",
        f"Rows with an asterisk ({disturbed}): in no round did three steps run without waiting for a processor that "
        "something else used and without memory used for the first time, so the measured time is not this machine's best; "
        "they count in the median all the same. The process holds more than its tensors: torch, the compiler, and what the "
        "allocator cannot reuse.",
        "",
        "| configuration | step, predicted | measured | error | tensors, predicted | measured | error | process | error |",
        "| --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: |",
    ]
    for r in rows:
        mark = "" if r["quiet_runs"] else "*"
        lines.append(
            f"| {r['case']} | {r['predicted_seconds']:.3f} s | {r['measured_seconds']:.3f} s{mark} | {r['time_error']:+.1%} "
            f"| {r['predicted_tensor_bytes'] / 1e9:.2f} GB | {r['measured_tensor_bytes'] / 1e9:.2f} GB "
            f"| {r['tensor_error']:+.1%} | {r['measured_process_bytes'] / 1e9:.2f} GB | {r['process_error']:+.1%} |"
        )
    write_atomically(out.with_suffix(".md"), "\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
