"""How long a user waits: `yupana --help`, and `yupana train` up to its first step.

    python benchmarks/startup.py

Each in a fresh process, in turn; the corpus is prepared and the machine's peak measured once before (as on any but
the first run). The first step's end is the time of its line in metrics.jsonl, so one step's work is included.
Writes docs/results/startup.json.
"""

from __future__ import annotations

import argparse
import shlex
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from yupana.files import write_json


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--rounds", type=int, default=5)
    rounds = parser.parse_args().rounds
    first_step()  # fills the caches
    taken: dict[str, list[float]] = {"help": [], "first_step_eager": [], "first_step_compiled": []}
    for _ in range(rounds):
        taken["help"].append(seconds([sys.executable, "-m", "yupana", "--help"]))
        taken["first_step_eager"].append(first_step("--train.compile=off"))
        taken["first_step_compiled"].append(first_step("--train.compile=block"))
    result = {
        name: {"median": statistics.median(values), "min": min(values), "max": max(values)}
        for name, values in taken.items()
    }
    folder = Path("docs/results")
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / "startup.json", {"command": shlex.join(["python", *sys.argv]), "seconds": result})
    for name, figures in result.items():
        print(f"{name}: {figures['median']:.2f} s ({figures['min']:.2f}–{figures['max']:.2f})")


def seconds(command: list[str]) -> float:
    """Wall time of a process."""
    begun = time.perf_counter()
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    return time.perf_counter() - begun


def first_step(*settings: str) -> float:
    """Seconds from starting `yupana train 7m` to the line of its first step."""
    with tempfile.TemporaryDirectory() as folder:
        metrics = Path(folder) / "run" / "metrics.jsonl"
        command = ["train", "7m", "--run", str(metrics.parent), "--train.tokens=null", "--train.steps=2", *settings]
        begun = time.perf_counter()
        with subprocess.Popen(
            [sys.executable, "-m", "yupana", *command], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        ) as process:
            while process.poll() is None and not (metrics.exists() and '"loss"' in metrics.read_text()):
                time.sleep(0.01)
            taken = time.perf_counter() - begun
            process.kill()
        return taken


if __name__ == "__main__":
    main()
