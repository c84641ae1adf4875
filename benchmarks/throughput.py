"""Training throughput of yupana beside its peers: same shape, same text, same batches, interleaved in one run.

    python benchmarks/throughput.py --case a --corpus corpora/python-bpe4096 --litgpt-python .venv-peers/bin/python
    python benchmarks/throughput.py --case c --corpus corpora/python-llama3 --rounds 3 --steps 4

Writes docs/results/throughput-CASE.json and a Markdown table beside it. Cases: `a`, 7 million parameters, all workers
alive at once, each round asks every one for a few steps in turn; `c`, two layers of Llama 3.2-1B with its whole
vocabulary, where memory holds one worker: each is started anew in every round; `b`, all of Llama 3.2-1B, with
`--device cuda`. One process computes at a time; the order rotates from round to round; the machine's matrix-product
peak is measured between rounds and its best taken.

`--corpus` is a folder of token shards (`yupana corpus prepare`); without it the text is Python's own library as
bytes. litgpt needs an environment of its own (see peers/litgpt_loop.py). The list of contenders is CONTENDERS.

Everybody runs in the dtype that this machine multiplies fastest (`best`), and the default Trainer in bf16 as well, as
most people would start it. Reading the result: tokens/s is the median over all steps, with the lowest and highest
round's median. MFU is `palm` FLOPs against the best product of the fastest dtype measured in the same run, for every
contender. A ratio is yupana's tokens/s over the peer's in the same round; its median, lowest and highest.
"""

from __future__ import annotations

import argparse
import os
import platform
import shlex
import statistics
import sys
import sysconfig
import tempfile
import time
from dataclasses import asdict, dataclass, replace
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from peers.worker import FOLDER, QUIET, Worker

import yupana
from yupana.files import write_atomically, write_json
from yupana.flops.count import flops_per_token
from yupana.flops.hardware import best_rates, bf16_is_fast, device_name
from yupana.model.shapes import ModelShape, RopeScaling

# What glibc 2.36 heeds, seen in page faults (7M, batch 32, transformers eager, a step): plain 172 000; thresholds
# 1 500; thresholds and glibc's own huge pages 1. torch's THP_MEM_ALLOC_ENABLE with the thresholds leaves 290, and
# its 2 MB alignment fragments the heap (1 GB of tensors came to hold 6 GB), so it is not used. MALLOC_TOP_PAD_
# changes nothing beside these.
ALLOCATORS: dict[str, dict[str, str]] = {
    "plain": {},
    "tuned": {
        "MALLOC_MMAP_THRESHOLD_": str(1 << 32),
        "MALLOC_TRIM_THRESHOLD_": str(1 << 34),
        "GLIBC_TUNABLES": "glibc.malloc.hugetlb=1",
    },
}


@dataclass(frozen=True)
class Case:
    """A model and a batch."""

    title: str
    preset: str
    n_layers: int
    seq_len: int
    batch: int
    warmup: int
    keep_workers: bool
    """Whether all contenders stay in memory together."""

    def shape(self) -> ModelShape:
        """The preset's shape with this case's number of layers."""
        file = Path(yupana.__file__).parent / "presets" / f"{self.preset}.yaml"
        model = yaml.safe_load(file.read_text())["model"] | {"n_layers": self.n_layers}
        if scaling := model.get("rope_scaling"):
            model["rope_scaling"] = RopeScaling(**scaling)
        return ModelShape(**model)


CASES = {
    "a": Case("7M parameters", "7m", 6, 256, 32, warmup=5, keep_workers=True),
    "b": Case("Llama 3.2-1B on a GPU", "llama3.2-1b", 16, 2048, 8, warmup=5, keep_workers=False),
    "c": Case("two layers of Llama 3.2-1B", "llama3.2-1b", 2, 512, 4, warmup=2, keep_workers=False),
}


@dataclass(frozen=True)
class Contender:
    """A worker script and how to run it."""

    name: str
    script: str
    dtype: str = "best"
    compile: bool = False
    optimizer: str = "default"
    cases: str = "abc"


CONTENDERS = (
    Contender("yupana", "yupana_loop.py", compile=True),
    Contender("trainer-default-bf16", "transformers_trainer.py", "bf16-autocast"),
    Contender("trainer-default", "transformers_trainer.py"),
    Contender("trainer-tuned", "transformers_trainer.py", "best", True, "fused"),
    Contender("transformers-eager", "transformers_loop.py"),
    Contender("transformers-compiled", "transformers_loop.py", "best", True, "fused"),
    Contender("litgpt-eager", "litgpt_loop.py", cases="ac"),
    Contender("litgpt-compiled", "litgpt_loop.py", "best", True, "fused", cases="ac"),
)


def main() -> None:
    options = parse()
    os.environ.update(QUIET)  # before torch is imported here: this process measures the peak, then must not spin
    best = "bf16" if bf16_is_fast(options.device) else "fp32"
    case = CASES[options.case]
    shape = case.shape()
    contenders = [
        replace(c, dtype=best if c.dtype == "best" else c.dtype) for c in chosen(options.only, options.case)
    ]
    say(f"the dtype that this machine multiplies fastest: {best}")
    allocators = list(ALLOCATORS) if options.allocator == "both" else [options.allocator]
    if options.device == "cuda":
        allocators = ["plain"]
    peak = Peak(options.device)
    with tempfile.TemporaryDirectory() as folder:
        batches = write_batches(Path(folder) / "batches.npy", case, shape, options)
        runs = {name: measure(contenders, name, case, shape, batches, options, peak) for name in allocators}
    result = {
        "benchmark": "throughput",
        "case": options.case,
        "title": case.title,
        "command": shlex.join(["python", *sys.argv]),
        "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "machine": machine(options.device),
        "text": str(options.corpus or "Python's library as bytes"),
        "shape": asdict(shape),
        "parameters": shape.parameters,
        "seq_len": case.seq_len,
        "batch": options.batch or case.batch,
        "rounds": options.rounds,
        "steps_a_round": options.steps,
        "palm_flops_per_token": flops_per_token(shape, case.seq_len)["palm"],
        "peak_flops_per_second": peak.best,
        "allocators": {name: ALLOCATORS[name] for name in allocators},
    }
    result["contenders"] = [row for name in allocators for row in rows(name, runs[name], result)]
    out = options.out or Path(f"docs/results/throughput-{options.case}.json")
    out.parent.mkdir(parents=True, exist_ok=True)
    write_json(out, result)
    table = markdown(result)
    write_atomically(out.with_suffix(".md"), table)
    print(table)


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--case", choices=CASES, default="a")
    parser.add_argument("--only", nargs="+", metavar="NAME", help="contenders: " + ", ".join(c.name for c in CONTENDERS))
    parser.add_argument("--rounds", type=int, default=6)
    parser.add_argument("--steps", type=int, default=6, help="steps of each contender in a round")
    parser.add_argument("--warmup", type=int, help="steps before the first (case c: before every) measurement")
    parser.add_argument("--batch", type=int, help="sequences a step, instead of the case's")
    parser.add_argument("--allocator", choices=[*ALLOCATORS, "both"], default="both")
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--restart", action="store_true", help="start workers anew in every round, as case c does")
    parser.add_argument("--corpus", type=Path, help="folder of token shards")
    parser.add_argument("--lr", type=float, default=1e-3)
    parser.add_argument("--litgpt-python", default=".venv-peers/bin/python", help="interpreter that has litgpt")
    parser.add_argument("--out", type=Path, help="result file (default docs/results/throughput-CASE.json)")
    return parser.parse_args()


def chosen(only: list[str] | None, case: str) -> list[Contender]:
    """The contenders of this run; those named, or all that the case has."""
    by_name = {c.name: c for c in CONTENDERS}
    if unknown := set(only or ()) - set(by_name):
        raise SystemExit(f"no contender is called {', '.join(sorted(unknown))}; there are {', '.join(by_name)}")
    return [c for c in CONTENDERS if (c.name in only if only else case in c.cases)]


def write_batches(file: Path, case: Case, shape: ModelShape, options: argparse.Namespace) -> Path:
    """Cut real text into enough batches for a whole run: int64 [n_batches, batch, seq + 1]."""
    batch = options.batch or case.batch
    n_batches = min(64, (case.warmup if options.warmup is None else options.warmup) + options.rounds * options.steps)
    wanted = n_batches * batch * (case.seq_len + 1)
    if options.corpus:
        from yupana.corpus.shards import open_corpus

        stream = open_corpus(options.corpus).split("train")
        ids = stream.read(0, min(wanted, stream.n_tokens))
    else:
        sources = sorted(Path(sysconfig.get_path("stdlib")).glob("*.py"))
        ids = np.frombuffer(b"".join(f.read_bytes() for f in sources), dtype=np.uint8).astype(np.int64)[:wanted]
    n_batches = len(ids) // (batch * (case.seq_len + 1))
    if not n_batches or ids.max() >= shape.vocab_size:
        raise SystemExit(f"{options.corpus or 'the text'} is too short, or has ids beyond the vocabulary's end")
    np.save(file, ids[: n_batches * batch * (case.seq_len + 1)].reshape(n_batches, batch, case.seq_len + 1))
    return file


def measure(
    contenders: list[Contender],
    allocator: str,
    case: Case,
    shape: ModelShape,
    batches: Path,
    options: argparse.Namespace,
    peak: Peak,
) -> dict[str, dict[str, Any]]:
    """All rounds with one allocator setting: {contender: {"ready": …, "warmup": answer, "rounds": [answer, …]}}."""
    warmup = case.warmup if options.warmup is None else options.warmup
    keep = case.keep_workers and not options.restart
    workers: dict[str, Worker] = {}
    results: dict[str, dict[str, Any]] = {}

    def start(contender: Contender) -> Worker:
        job = {k: v for k, v in asdict(contender).items() if k in ("dtype", "compile", "optimizer")}
        job |= {"shape": asdict(shape), "batches": str(batches), "lr": options.lr, "seed": 0, "device": options.device}
        python = options.litgpt_python if contender.script.startswith("litgpt") else sys.executable
        worker = Worker(contender.name, python, contender.script, job, ALLOCATORS[allocator])
        workers[contender.name] = worker
        entry = results.setdefault(contender.name, {"contender": contender, "rounds": []})
        entry |= {"ready": worker.ready, "warmup": worker.steps(warmup) if warmup else None}
        return worker

    contenders = [c for c in contenders if runnable(c, options.litgpt_python)]
    try:
        if keep:
            for contender in contenders:
                say(f"{allocator}: starting {contender.name}")
                start(contender)
        for number in range(options.rounds):
            peak.measure()
            turn = number % max(1, len(contenders))
            for contender in contenders[turn:] + contenders[:turn]:
                worker = workers[contender.name] if keep else start(contender)
                answer = worker.steps(options.steps)
                results[contender.name]["rounds"].append(answer)
                rate = answer["tokens"] / sum(answer["seconds"])
                say(f"{allocator}: round {number + 1}/{options.rounds} {contender.name} {rate:,.0f} tokens/s")
                if not keep:
                    workers.pop(contender.name).close()
        peak.measure()
    finally:
        for worker in workers.values():
            worker.close()
    return results


def runnable(contender: Contender, litgpt_python: str) -> bool:
    """Whether the contender's script and interpreter are there; says so where they are not."""
    missing = None
    if not (FOLDER / contender.script).exists():
        missing = FOLDER / contender.script
    elif contender.script.startswith("litgpt") and not Path(litgpt_python).exists():
        missing = Path(litgpt_python)
    if missing:
        say(f"leaving out {contender.name}: {missing} does not exist")
    return missing is None


class Peak:
    """The best rate of a matrix product on this machine in this run, FLOP/s, by dtype."""

    SIZES = ((1024, 1024, 1024), (2048, 2048, 2048), (4096, 2048, 4096), (8192, 2048, 2048))  # rows, inner, columns

    def __init__(self, device: str) -> None:
        self.best = {"bf16": 0.0, "fp32": 0.0}
        self.device = device

    def measure(self) -> None:
        """Three products of each size and dtype after one that warms up; a GPU's are measured once, by yupana."""
        import torch

        if self.device == "cuda":
            rates = best_rates("cuda")
            self.best = {"bf16": rates["bfloat16"], "fp32": rates["float32"]}
            return

        for name, dtype in (("bf16", torch.bfloat16), ("fp32", torch.float32)):
            for m, k, n in self.SIZES:
                a, b, out = torch.randn(m, k).to(dtype), torch.randn(k, n).to(dtype), torch.empty(m, n, dtype=dtype)
                for attempt in range(4):
                    start = time.perf_counter()
                    torch.mm(a, b, out=out)
                    if attempt:
                        rate = 2 * m * k * n / (time.perf_counter() - start)
                        self.best[name] = max(self.best[name], rate)


def rows(allocator: str, run: dict[str, dict[str, Any]], result: dict[str, Any]) -> list[dict[str, Any]]:
    """One row a contender: rates, MFU, ratios to yupana, and everything they were computed from."""
    tokens_per_step = result["batch"] * result["seq_len"]
    to_mfu = result["palm_flops_per_token"] / max(result["peak_flops_per_second"].values())
    rates = {
        name: [tokens_per_step / statistics.median(r["seconds"]) for r in entry["rounds"]]
        for name, entry in run.items()
    }
    table = []
    for name, entry in run.items():
        rounds = entry["rounds"]
        steps = [s for r in rounds for s in r["seconds"]]
        rate = spread(rates[name], tokens_per_step / statistics.median(steps))
        last = [r["losses"] for r in ([entry["warmup"]] if entry["warmup"] else []) + rounds]
        ratios = [mine / its for mine, its in zip(rates.get("yupana", ()), rates[name], strict=False)]
        table.append(
            {
                **asdict(entry["contender"]),
                "allocator": allocator,
                "versions": entry["ready"].get("versions", {}),
                "parameters": entry["ready"]["parameters"],
                "tokens_per_second": rate,
                "mfu_palm": {key: value * to_mfu for key, value in rate.items()},
                "yupana_over_this": spread(ratios, statistics.median(ratios)) if ratios else None,
                "peak_rss_bytes": max(r["peak_rss_bytes"] for r in rounds),
                "minor_faults_per_step": statistics.median(r.get("minor_faults_per_step", 0) for r in rounds),
                "losses": last,
                "seconds": [r["seconds"] for r in rounds],
            }
        )
    return table


def spread(values: list[float], middle: float) -> dict[str, float]:
    return {"median": middle, "min": min(values), "max": max(values)}


def markdown(result: dict[str, Any]) -> str:
    """The result as a page with one table for each allocator setting."""
    peak, machine_ = result["peak_flops_per_second"], result["machine"]
    lines = [
        f"# Training throughput: {result['title']}",
        "",
        f"{result['parameters']:,} parameters, vocabulary {result['shape']['vocab_size']:,}, sequences of "
        f"{result['seq_len']}, batch {result['batch']}; {result['rounds']} rounds of {result['steps_a_round']} steps. "
        f"{machine_['processor']}, {machine_['cores']} cores, {machine_['memory_bytes'] / 1e9:.0f} GB. Best matrix "
        f"product: bf16 {peak['bf16'] / 1e9:.0f}, fp32 {peak['fp32'] / 1e9:.0f} GFLOP/s. MFU: `palm` against the higher. "
        f"Made {result['date'][:10]} by `{result['command']}`.",
    ]
    for allocator, environment in result["allocators"].items():
        told = ", ".join(f"`{key}={value}`" for key, value in environment.items()) or "environment as it is"
        lines += ["", f"Allocator {allocator} ({told}):", ""]
        lines += ["| contender | dtype | tokens/s | MFU | peak memory | loss, first → last | yupana is faster by |"]
        lines += ["| --- | --- | --- | --- | --- | --- | --- |"]
        for row in result["contenders"]:
            if row["allocator"] != allocator:
                continue
            rate, mfu, ratio = row["tokens_per_second"], row["mfu_palm"], row["yupana_over_this"]
            losses = [loss for part in row["losses"] for loss in part]
            how = row["dtype"] + (", compiled" if row["compile"] else "")
            lines.append(
                f"| {row['name']} | {how} | {rate['median']:,.0f} ({rate['min']:,.0f}–{rate['max']:,.0f}) "
                f"| {mfu['median']:.1%} ({mfu['min']:.1%}–{mfu['max']:.1%}) | {row['peak_rss_bytes'] / 1e9:.2f} GB "
                f"| {losses[0]:.2f} → {losses[-1]:.2f} "
                + (f"| {ratio['median']:.2f}× ({ratio['min']:.2f}–{ratio['max']:.2f}) |" if ratio else "| — |")
            )
    return "\n".join(lines) + "\n"


def machine(device: str) -> dict[str, Any]:
    """Processor, memory and versions."""
    import torch

    return {
        "processor": device_name(device),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "memory_bytes": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        "system": platform.platform(),
        "libc": " ".join(platform.libc_ver()),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "load_average_at_end": os.getloadavg(),
        "huge_pages": huge_pages(),
    }


def huge_pages() -> str:
    try:
        return Path("/sys/kernel/mm/transparent_hugepage/enabled").read_text().strip()
    except OSError:
        return "unknown"


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
