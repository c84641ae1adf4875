"""Kill ranks at random, again and again, under torchrun's restarts: the run must end as if nothing had happened.

    python benchmarks/killed_ranks.py --kills 20 --ranks 4 --steps 400

Trains a tiny model twice on the CPU: once undisturbed, once with SIGKILL to a random rank at a random moment of each
life, saving included. Prints one JSON object: whether all losses, gradient norms, validation losses and the tensors of
the last checkpoint are the same bit for bit, whether each step is written once, and whether a process was left behind.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import textwrap
import time
from pathlib import Path
from typing import Any

TINY = [
    "--model.n_layers=2", "--model.d_model=32", "--model.n_heads=4", "--model.n_kv_heads=2", "--model.head_dim=8",
    "--model.d_ff=50", "--model.vocab_size=302", "--data.seq_len=32", "--train.global_batch=8", "--train.device=cpu",
    "--train.precision=fp32", "--train.compile=off", "--log.eval_tokens=1024", "--checkpoint.every=3",
]  # fmt: skip
LIFE_SECONDS = 1.5  # at most, of steps: enough for a few checkpoints
EXACT = ("step", "loss", "grad_norm", "lr", "val_loss", "val_bpb")
# The same program with pauses, so that a kill falls as often into saving as into a step.
SLOWED = """
import sys, time
from yupana.train import checkpoint, loop
from yupana.cli import main
seal, step = checkpoint._seal, loop.forward_backward
def slow_seal(path): time.sleep(0.03); return seal(path)
def slow_step(*a): time.sleep(0.02); return step(*a)
checkpoint._seal, loop.forward_backward = slow_seal, slow_step
sys.exit(main(sys.argv[1:]))
"""


def main() -> None:
    """Both runs, compared."""
    options = parsed()
    folder = options.folder or Path(tempfile.mkdtemp())
    print(json.dumps(trial(folder, options.kills, options.ranks, options.steps, options.seed, options.more)))


def trial(
    folder: Path, kills: int, ranks: int, steps: int, seed: int = 5, more: tuple[str, ...] | list[str] = ()
) -> dict[str, Any]:
    """Both runs in `folder`, and what came of them."""
    script = folder / "slowed_yupana.py"
    script.write_text(SLOWED)
    text = folder / "text"
    text.mkdir()
    for name in ("textwrap.py", "argparse.py", "heapq.py", "shlex.py"):
        (text / f"{name}.txt").write_text((Path(textwrap.__file__).parent / name).read_text())
    settings = [*TINY, f"--data.corpus={text}", "--data.tokenizer=bytes", f"--train.steps={steps}", *more]
    settings.append(f"--log.eval_every={max(2, steps // 4)}")

    whole = launch(script, ranks, 0, folder / "whole", settings)
    if whole.wait() != 0:
        raise SystemExit("the undisturbed run failed")
    begun = time.monotonic()
    agent = launch(script, ranks, kills + 2, folder / "killed", settings)
    done = disturb(agent, folder / "killed" / "metrics.jsonl", kills, random.Random(seed))
    code = agent.wait()
    seconds = time.monotonic() - begun
    time.sleep(1)
    written = [record["step"] for record in records(folder / "killed") if "loss" in record]
    return {
        "ranks": ranks, "kills": done, "steps": steps, "exit_code": code,
        "same_bit_for_bit": code == 0 and ends(folder / "whole") == ends(folder / "killed"),
        "each_step_once": written == list(range(1, steps + 1)),
        "seconds": round(seconds, 1), "orphans": len(running(script)),
    }  # fmt: skip


def launch(script: Path, ranks: int, restarts: int, run: Path, settings: list[str]) -> subprocess.Popen[bytes]:
    """torchrun, told to start the ranks again after a failure."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={ranks}"]
    command += [f"--max-restarts={restarts}", "--", str(script), "train", "--run", str(run), "--resume", *settings]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(command, stdout=subprocess.DEVNULL, env=environment)


def disturb(agent: subprocess.Popen[bytes], metrics: Path, kills: int, rng: random.Random) -> int:
    """SIGKILL to one rank of each life, up to LIFE_SECONDS after it has written a metric of its own."""
    done = 0
    while done < kills and wait_for_life(metrics, agent):
        time.sleep(rng.random() * LIFE_SECONDS)
        ranks = children(agent.pid)
        if agent.poll() is None and ranks:
            os.kill(rng.choice(ranks), signal.SIGKILL)
            done += 1
            print(f"kill {done} at step {last_step(metrics)}", file=sys.stderr, flush=True)
            while set(children(agent.pid)) & set(ranks):  # until this life is over
                time.sleep(0.02)
    return done


def wait_for_life(metrics: Path, process: subprocess.Popen[Any]) -> bool:
    """Until the process has written a metric of its own (a kill need not hit its start); False when it has ended."""
    before = metrics.stat().st_mtime_ns if metrics.is_file() else 0
    while process.poll() is None:
        if metrics.is_file() and metrics.stat().st_mtime_ns != before:
            return True
        time.sleep(0.005)
    return False


def last_step(metrics: Path) -> int:
    """Of the metrics so far."""
    lines = metrics.read_text().splitlines()
    return json.loads(lines[-1])["step"] if lines and lines[-1].endswith("}") else 0


def children(pid: int) -> list[int]:
    """The processes that a process has started and that still live."""
    try:
        return [int(c) for task in Path(f"/proc/{pid}/task").iterdir() for c in (task / "children").read_text().split()]
    except OSError:
        return []


def running(script: Path) -> list[int]:
    """Processes with the script on their command line."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            if str(script).encode() in path.read_bytes():
                found.append(int(path.parent.name))
        except OSError:
            continue
    return found


def records(run: Path) -> list[dict[str, float]]:
    """The metrics."""
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def ends(run: Path) -> tuple[list[dict[str, float]], dict[str, bytes]]:
    """What must be the same: every figure of the curve, and the last checkpoint's tensors, file by file."""
    newest = max((run / "checkpoints").glob("step_*"), key=lambda path: int(path.name[5:]))
    tensors = {path.name: data_of(path) for path in newest.glob("*.safetensors")}
    return [{k: r[k] for k in EXACT if k in r} for r in records(run)], tensors


def data_of(path: Path) -> bytes:
    """What follows a safetensors file's header, in which the order of two entries is left to chance."""
    content = path.read_bytes()
    return content[8 + int.from_bytes(content[:8], "little") :]


def parsed() -> argparse.Namespace:
    """The command line; whatever stands after -- are settings of yupana train."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--ranks", type=int, default=4)
    parser.add_argument("--steps", type=int, default=400)
    parser.add_argument("--seed", type=int, default=5)
    parser.add_argument("--folder", type=Path, help="where the runs are kept (a temporary folder)")
    parser.add_argument("more", nargs="*", help="settings, such as --parallel.tp=2, after --")
    return parser.parse_args()


if __name__ == "__main__":
    main()
