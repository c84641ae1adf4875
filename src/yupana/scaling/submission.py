"""One run of a sweep as a process: here, or on a cluster through submitit."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from yupana.errors import UserError

if TYPE_CHECKING:
    from yupana.scaling.sweep import Sweep


@dataclass
class Training:
    """`yupana train` of a configuration, its output appended to a file; resumed where the run has begun."""

    config: str
    run: str
    output: str
    environment: dict[str, str] = field(default_factory=dict)

    def __call__(self) -> int:
        """Train to the end; the exit code."""
        command = [sys.executable, "-m", "yupana", "train", "--config", self.config, "--run", self.run, "--json"]
        resume = ["--resume"] if (Path(self.run) / "run.yaml").exists() else []
        with open(self.output, "a") as log:
            return subprocess.run(
                [*command, *resume], stdout=log, stderr=subprocess.STDOUT, env=os.environ | self.environment, check=False
            ).returncode

    def checkpoint(self) -> Any:
        """What submitit queues again after a time limit or a pre-emption: the same, which then resumes."""
        import submitit

        return submitit.helpers.DelayedSubmission(self)


def submitted(sweep: Sweep) -> Callable[[Training], int]:
    """A function that hands a training to submitit and waits for its exit code.

    Slurm takes it where there is Slurm, and submitit's own local process elsewhere. A job that ends without an exit
    code, because its node died, counts as failed. Raises UserError where submitit is not installed.
    """
    try:
        import submitit
    except ImportError:
        raise UserError("executor in the sweep's file is submitit, which is not installed: pip install submitit") from None

    executor = submitit.AutoExecutor(folder=Path(sweep.out).absolute() / "logs" / "submitit")
    gpus = {"gpus_per_node": 1} if sweep.device == "cuda" else {}
    partition = {"slurm_partition": sweep.partition} if sweep.partition else {}
    executor.update_parameters(timeout_min=sweep.minutes, name="yupana-sweep", **gpus, **partition)

    def launch(training: Training) -> int:
        try:
            return int(executor.submit(training).result())
        except (submitit.core.utils.UncompletedJobError, submitit.core.utils.FailedJobError) as lost:
            with open(training.output, "a") as log:
                log.write(f"{lost}\n")
            return 1

    return launch
