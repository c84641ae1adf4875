"""The driver's end of a worker: start it, ask it for steps, end it (the protocol is in protocol.py)."""

from __future__ import annotations

import json
import os
import subprocess
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).parent
# Idle workers must not spin: OpenMP's threads sleep as soon as a parallel region ends.
QUIET = {"OMP_WAIT_POLICY": "PASSIVE", "GOMP_SPINCOUNT": "0", "TOKENIZERS_PARALLELISM": "false"}


class Worker:
    """A process that trains when asked and blocks otherwise."""

    def __init__(
        self, name: str, python: str, script: str, job: Mapping[str, Any], environment: Mapping[str, str]
    ) -> None:
        self.name = name
        self.log = tempfile.TemporaryFile("w+")  # noqa: SIM115 (closed with the worker)
        with tempfile.NamedTemporaryFile("w", suffix=".json", delete=False) as file:
            json.dump(job, file)
        self.job_file = Path(file.name)
        self.process = subprocess.Popen(
            [python, str(FOLDER / script), file.name],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self.log,
            text=True,
            env={**os.environ, **QUIET, **environment},
        )
        self.ready = self._read()  # {"ready": true, "name": …, "parameters": …, "versions": …}

    def steps(self, count: int) -> dict[str, Any]:
        """Take `count` steps; the worker's answer."""
        self._write({"steps": count})
        return self._read()

    def close(self) -> None:
        """End the process, politely first."""
        try:
            self._write({"quit": True})
            self.process.wait(timeout=60)
        except (OSError, RuntimeError, subprocess.TimeoutExpired):
            self.process.kill()
            self.process.wait()
        self.log.close()
        self.job_file.unlink(missing_ok=True)

    def _write(self, message: dict[str, Any]) -> None:
        assert self.process.stdin is not None
        try:
            self.process.stdin.write(json.dumps(message) + "\n")
            self.process.stdin.flush()
        except BrokenPipeError:
            raise RuntimeError(self._death()) from None

    def _read(self) -> dict[str, Any]:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            raise RuntimeError(self._death())
        return json.loads(line)

    def _death(self) -> str:
        code = self.process.wait()
        self.log.seek(0)
        return f"worker {self.name} ended with code {code}:\n" + "".join(self.log.readlines()[-15:])
