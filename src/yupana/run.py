"""The run directory: the only contract between training and everything that reads it. Needs no torch.

run.yaml        the resolved configuration; starts the same run again
env.json        versions, hardware, git revision, corpus and tokenizer hashes
metrics.jsonl   one object a logged step; evaluation lines carry val_loss and val_bpb, and of a mixture val_by_source
checkpoints/    step_N/, complete once its manifest.json is there
export/         Hugging Face folder
report.html, report.png, sample.txt
evaluations.json, waterfall.json, step_prediction.json, prediction.json
                what yupana eval, flops explain, flops predict and scaling predict said of the run; its report shows it
"""

from __future__ import annotations

import fcntl
import json
import os
from pathlib import Path
from typing import IO, Any

from yupana.errors import UserError
from yupana.files import disk_errors, write_atomically

WATERFALL = "waterfall.json"
"""Where a run directory keeps what `flops explain` said of it."""
STEP_PREDICTION = "step_prediction.json"
"""Where a run directory keeps what `flops predict RUN` said of its step."""


class RunDirectory:
    """Paths, metrics and the lock of one run."""

    def __init__(self, path: Path | str) -> None:
        self.path = Path(path)
        self._lock: IO[str] | None = None
        self._metrics: IO[str] | None = None

    @property
    def config_file(self) -> Path:
        """The resolved configuration."""
        return self.path / "run.yaml"

    @property
    def env_file(self) -> Path:
        """Versions, hardware, revision, corpus."""
        return self.path / "env.json"

    @property
    def metrics_file(self) -> Path:
        """One JSON object a line."""
        return self.path / "metrics.jsonl"

    @property
    def checkpoints(self) -> Path:
        """Folder of checkpoints."""
        return self.path / "checkpoints"

    @property
    def export(self) -> Path:
        """Hugging Face folder."""
        return self.path / "export"

    @property
    def exists(self) -> bool:
        """Whether a run was begun here."""
        return self.config_file.is_file()

    def lock(self) -> None:
        """Hold the run for this process until it ends, however it ends (the kernel lets go of the lock).

        Raises UserError when a live process holds it.
        """
        with disk_errors(str(self.path)):
            try:
                self.path.mkdir(parents=True, exist_ok=True)
            except FileExistsError:
                raise UserError(f"{self.path} is a file: --run names a folder") from None
            file = open(self.path / ".lock", "a+")  # noqa: SIM115 - held until the process ends
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            file.seek(0)
            owner = file.read().strip() or "unknown"
            raise UserError(
                f"{self.path} is in use by a live process (process {owner}): wait for it, stop it, "
                "or choose another --run"
            ) from None
        file.truncate(0)
        file.write(str(os.getpid()))
        file.flush()
        self._lock = file

    @property
    def held(self) -> bool:
        """Whether a live process holds the run: it is being trained."""
        try:
            file = open(self.path / ".lock")  # noqa: SIM115 - closed below
        except OSError:
            return False
        with file:
            try:
                fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
            except OSError:
                return True
            return False

    def unlock(self) -> None:
        """Let go of the run and close its files; a folder in which no run was begun goes away again."""
        if self._lock is not None and sorted(self.path.iterdir()) == [self.path / ".lock"]:
            (self.path / ".lock").unlink()
            self.path.rmdir()
        for file in (self._metrics, self._lock):
            if file is not None:
                file.close()
        self._metrics = self._lock = None

    def log(self, record: dict[str, Any]) -> None:
        """Append one object to metrics.jsonl; it reaches the file before this returns."""
        with disk_errors(str(self.metrics_file)):
            if self._metrics is None:
                self._metrics = open(self.metrics_file, "a")  # noqa: SIM115 - held for the run
            self._metrics.write(json.dumps(record) + "\n")
            self._metrics.flush()

    def metrics(self) -> list[dict[str, Any]]:
        """All whole lines of metrics.jsonl; a last line cut off by a kill is left out."""
        if not self.metrics_file.is_file():
            return []
        records = []
        for line in self.metrics_file.read_text(errors="replace").splitlines():
            try:
                record = json.loads(line)
            except ValueError:
                continue
            if isinstance(record, dict) and "step" in record:
                records.append(record)
        return records

    def rewind(self, step: int) -> None:
        """Drop the metrics after `step`: a resumed run writes them again."""
        kept = [json.dumps(record) for record in self.metrics() if record["step"] <= step]
        write_atomically(self.metrics_file, "".join(line + "\n" for line in kept))


def open_run(path: Path | str) -> RunDirectory:
    """An existing run, to read. Raises UserError when there is none."""
    run = RunDirectory(path)
    if not run.exists:
        raise UserError(f"{path} is not a run directory: it has no run.yaml")
    return run
