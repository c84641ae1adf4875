"""The corpus tools at size: a command of corpus.py.

    kernel   prepare and explore the source of Linux, 1.3 GB in 78 000 files (explore the first --sample documents):
             seconds, and peak memory of all processes
    tiny     explore and prepare 100 000 files of 120 bytes
    line     explore and prepare one line of 200 MB: as a text file, as a JSON line, and without a place to cut it
    full     prepare into 8 MB of disk, then make room and go on: one sentence, then the same bytes
    killed   kill a preparation again and again and go on: the same bytes
"""

from __future__ import annotations

import contextlib
import json
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

YUPANA = [sys.executable, "-m", "yupana", "corpus"]
CASES = ("kernel", "tiny", "line", "full", "killed")


def size(kernel: str, cases: list[str], scratch: Path, sample: int | None) -> dict[str, Any]:
    """What each case comes to; `kernel` is the folder of a source of a gigabyte, `scratch` has a few GB of room.

    `sample` documents of the kernel are explored, the first ones by name; all unless given.
    """
    with tempfile.TemporaryDirectory(dir=scratch) as name:
        folder = Path(name)
        found: dict[str, Any] = {}
        for case in cases:
            found[case] = {
                "kernel": lambda: both([kernel], folder, sample),
                "tiny": lambda: both([str(tiny(folder / "tiny"))], folder),
                "line": lambda: {kind: both([str(path)], folder) for kind, path in lines(folder).items()},
                "full": lambda: full(kernel, folder),
                "killed": lambda: killed(kernel, folder),
            }[case]()
            print(json.dumps({case: found[case]}), file=sys.stderr, flush=True)
        return found


def both(sources: list[str], folder: Path, sample: int | None = None) -> dict[str, Any]:
    """Preparing and exploring, under Llama 3's tokenizer."""
    prepared = measured([*YUPANA, "prepare", *sources, "--out", str(folder / "out"), "--tokenizer", "llama3", "--json"])
    print(json.dumps(prepared), file=sys.stderr, flush=True)
    shutil.rmtree(folder / "out")
    some = ["--sample", str(sample)] if sample else []
    explored = measured([*YUPANA, "explore", *sources, *some, "--tokenizer", "llama3", "--json"])
    return {"prepare": prepared, "explore": explored}


def measured(command: list[str]) -> dict[str, Any]:
    """Seconds and the peak memory of a command and all its children together, looked at ten times a second.

    CPU seconds beside the clock's: of a busy machine only those say what the command takes.

    Memory is the proportional set size: a page that processes share counts once.
    """
    began, used, peak = time.perf_counter(), cpu_of_children(), 0
    with tempfile.TemporaryFile("w+") as output:
        process = subprocess.Popen(command, stdout=output)
        while process.poll() is None:
            peak = max(peak, sum(memory_of(pid) for pid in family(process.pid)))
            time.sleep(0.1)
        seconds = time.perf_counter() - began
        if process.returncode:
            raise SystemExit(f"{' '.join(command)} ended with {process.returncode}")
        output.seek(0)
        result = json.load(output)
    return {
        **{key: result[key] for key in ("documents", "tokens", "bytes", "skipped")},
        "seconds": round(seconds, 1),
        "cpu_seconds": round(cpu_of_children() - used, 1),
        "peak_bytes": peak,
        "megabytes_per_second": round(result["bytes"] / seconds / 1e6, 2),
    }


def cpu_of_children() -> float:
    """Seconds of processors that ended children, and theirs, have used."""
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


def family(pid: int) -> list[int]:
    """A process and all that descend from it."""
    found = [pid]
    with contextlib.suppress(OSError):
        for task in Path(f"/proc/{pid}/task").iterdir():
            for child in (task / "children").read_text().split():
                found += family(int(child))
    return found


def memory_of(pid: int) -> int:
    """Bytes of a process; 0 of one that is gone."""
    with contextlib.suppress(OSError):
        for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
            if line.startswith("Pss:"):
                return int(line.split()[1]) * 1024
    return 0


def tiny(folder: Path) -> Path:
    """100 000 small files, a hundred a folder."""
    generator = random.Random(3)
    words = ["river", "stone", "count", "keeps", "its", "own", "the", "of", "knot", "cord"]
    for number in range(100_000):
        path = folder / f"{number // 100:03d}" / f"{number % 100:02d}.txt"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"{number} " + " ".join(generator.choices(words, k=23)) + "\n")
    return folder


def lines(folder: Path) -> dict[str, Path]:
    """A line of 200 MB of words as a text and as JSON, and one of letters and digits alone."""
    generator = random.Random(4)
    words = ["river", "stone", "count", "keeps", "its", "own", "the", "of", "knot", "cord", "1532", "é"]
    text = " ".join(generator.choices(words, k=200_000_000 // 5))[:200_000_000]
    (folder / "line.txt").write_text(text)
    (folder / "line.jsonl").write_text(json.dumps({"text": text}, ensure_ascii=False))
    run = "".join(generator.choices("abcdefghijklmnopqrstuvwxyz0123456789", k=2_000_000)) * 100
    (folder / "run.jsonl").write_text(json.dumps({"text": run}))
    kinds = {"words, .txt": "line.txt", "words, .jsonl": "line.jsonl", "no space, .jsonl": "run.jsonl"}
    return {kind: folder / name for kind, name in kinds.items()}


def prepare(sources: list[str], out: Path) -> list[str]:
    return [*YUPANA, "prepare", *sources, "--out", str(out), "--tokenizer", "bpe:4096", "--json"]


def full(kernel: str, folder: Path) -> dict[str, Any]:
    """On a file system in memory that is too small, then made larger."""
    source, disk = a_part(kernel), folder / "disk"
    disk.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=8m", "tmpfs", str(disk)], check=True)
    try:
        first = subprocess.run(prepare([source], disk / "out"), capture_output=True, text=True, check=False)
        there = (disk / "out").exists()
        subprocess.run(["mount", "-o", "remount,size=2g", str(disk)], check=True)
        again = json.loads(subprocess.run(prepare([source], disk / "out"), stdout=subprocess.PIPE, check=True).stdout)
    finally:
        subprocess.run(["umount", str(disk)], check=True)
    whole = json.loads(subprocess.run(prepare([source], folder / "whole"), stdout=subprocess.PIPE, check=True).stdout)
    shutil.rmtree(folder / "whole")
    return {"bytes": whole["bytes"], "exit_code": first.returncode, "message": first.stderr.strip().splitlines()[-1:],
            "anything_left_at_the_destination": there, "same_bytes_after": again["hash"] == whole["hash"]}  # fmt: skip


def killed(kernel: str, folder: Path, kills: int = 10) -> dict[str, Any]:
    """With SIGKILL at random moments, filters and near-duplicate removal among what is killed."""
    source, generator = a_part(kernel), random.Random(5)
    cleaned = ["--filter", "repetition", "--near_duplicates"]
    began = time.perf_counter()
    done = subprocess.run([*prepare([source], folder / "whole"), *cleaned], stdout=subprocess.PIPE, check=True)
    took, whole, at = time.perf_counter() - began, json.loads(done.stdout), []
    for _ in range(kills):
        process = subprocess.Popen([*prepare([source], folder / "again"), *cleaned], stdout=subprocess.DEVNULL)
        at.append(round(generator.uniform(0.1, 0.5) * took, 1))
        time.sleep(at[-1])
        process.send_signal(signal.SIGKILL)
        process.wait()
        if (folder / "again").exists():
            break
    done = subprocess.run([*prepare([source], folder / "again"), *cleaned], stdout=subprocess.PIPE, check=True)
    again = json.loads(done.stdout)
    return {"bytes": whole["bytes"], "seconds": round(took, 1), "killed_after_seconds": at,
            "same_bytes": again["hash"] == whole["hash"]}  # fmt: skip


def a_part(kernel: str) -> str:
    """One of the folders of the kernel, about 30 MB."""
    found = sorted(Path(kernel).glob("**/drivers/media")) or [Path(kernel)]
    return os.fspath(found[0])
