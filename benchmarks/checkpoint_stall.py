"""How long a step waits for a checkpoint, written at once or in the background.

    python benchmarks/checkpoint_stall.py --preset 40m --saves 6

Prints one JSON object: the median seconds that the call takes, the median of the time until the checkpoint is complete,
and its bytes. Between two saves the process trains, as it would.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from pathlib import Path

from yupana import config as settings
from yupana.run import RunDirectory
from yupana.train import loop
from yupana.train.begin import open_mixture
from yupana.train.session import prepare


def main() -> None:
    """Both ways, one after the other."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--preset", default="40m")
    parser.add_argument("--saves", type=int, default=6)
    parser.add_argument("more", nargs="*", help="settings, such as --data.corpus=FOLDER, after --")
    options = parser.parse_args()
    result = {"preset": options.preset, "saves": options.saves}
    for way in ("false", "true"):
        more = [*options.more, f"--checkpoint.background={way}"]
        result["background" if way == "true" else "at_once"] = measured(options.preset, options.saves, more)
    print(json.dumps(result))


def measured(preset: str, saves: int, more: list[str]) -> dict[str, float]:
    """Medians over `saves` checkpoints."""
    short = ["--train.steps=100", "--train.global_batch=2", "--train.micro_batch=2", "--train.compile=off"]
    config = settings.load(preset, None, [*short, *more])
    with tempfile.TemporaryDirectory() as folder:
        session = prepare(config, RunDirectory(Path(folder)), open_mixture(config), resume=False)
        stalls, wholes = [], []
        with session.saver:
            for step in range(saves):
                loop.forward_backward(session, loop.read_batch(session, step))
                session.optimizer.step(step, 1e-4)
                begun = time.perf_counter()
                loop.save(session, step + 1, None, 0.0)
                stalls.append(time.perf_counter() - begun)
                session.saver.wait()
                wholes.append(time.perf_counter() - begun)
            size = sum(path.stat().st_size for path in (session.run.checkpoints / f"step_{saves}").iterdir())
    return {"stall_seconds": statistics.median(stalls), "complete_seconds": statistics.median(wholes), "bytes": size}


if __name__ == "__main__":
    main()
