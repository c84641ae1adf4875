"""The runs of a sweep as two small tables, for a repository that keeps no run directories.

    python benchmarks/scaling_demo_tables.py OUT RUN…

OUT/runs.csv has a line a run, its columns named as `yupana scaling fit` finds them; OUT/curves.csv has the training loss
of every run as means over a fiftieth of it.
"""

from __future__ import annotations

import csv
import sys
from pathlib import Path
from typing import Any

import numpy as np

from yupana import config
from yupana.files import write_atomically
from yupana.run import RunDirectory, open_run
from yupana.scaling.counting import parameters, training_flops

POINTS = 50


def main() -> None:
    """Read the runs, write both tables."""
    out, *paths = map(Path, sys.argv[1:])
    runs = [open_run(path) for path in paths]
    write(out / "runs.csv", [end_of(run) for run in runs])
    write(out / "curves.csv", [row for run in runs for row in curve_of(run)])


def end_of(run: RunDirectory) -> dict[str, Any]:
    """Size, length, settings and the last validation of a run."""
    settings = config.load(file=run.config_file)
    records = run.metrics()
    last = [record for record in records if "val_loss" in record][-1]
    shape, seq_len, tokens = settings.model, settings.data.seq_len, last["tokens"]
    return {
        "name": run.path.name,
        "n": shape.parameters,
        "n_non_embedding": parameters(shape, "non-embedding"),
        "tokens": tokens,
        "flops": 6 * shape.parameters * tokens,
        "palm_flops": f"{training_flops(shape, tokens, seq_len, 'palm'):.6g}",
        "steps": last["step"],
        "batch_tokens": settings.train.global_batch * seq_len,
        "lr": settings.optim.lr,
        "loss": round(last["val_loss"], 5),
        "bits_per_byte": round(last["val_bpb"], 5),
        "seconds": round(max(record.get("seconds", 0.0) for record in records), 1),
    }


def curve_of(run: RunDirectory) -> list[dict[str, Any]]:
    """At most fifty points of the training loss, each the mean of the logged steps up to it."""
    records = [record for record in run.metrics() if "loss" in record]
    parts = np.array_split(np.arange(len(records)), min(POINTS, len(records)))
    return [
        {
            "name": run.path.name,
            "step": records[part[-1]]["step"],
            "tokens": records[part[-1]]["tokens"],
            "lr": f"{records[part[-1]]['lr']:.4g}",
            "loss": round(float(np.mean([records[i]["loss"] for i in part])), 4),
        }
        for part in parts
    ]


def write(path: Path, rows: list[dict[str, Any]]) -> None:
    """A CSV file with a header."""
    import io

    text = io.StringIO()
    writer = csv.DictWriter(text, list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    write_atomically(path, text.getvalue())


if __name__ == "__main__":
    main()
