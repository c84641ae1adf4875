"""Where the tasks of a pipeline run: on this machine, or on a cluster, by datatrove's own executors.

local                              processes of this machine
slurm:partition=cpu,time=04:00:00  an array of jobs for each pass; more settings as datatrove's SlurmPipelineExecutor has
                                   them: qos, cpus_per_task, mem_per_cpu_gb, tasks_per_job, max_array_size …; and
                                   sbatch.account=NAME for whatever else sbatch takes
ray  ray:mem_per_cpu_gb=4          tasks of a Ray cluster (RAY_ADDRESS, or one on this machine)

On a cluster the sources and the destination must lie on a file system that all its machines see. Which executor ran is no
part of what a corpus is: the bytes are the same, and a preparation begun by one can be finished by another.
"""

from __future__ import annotations

import inspect
import os
import shlex
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from yupana.errors import UserError, did_you_mean

KINDS = ("local", "slurm", "ray")
OURS = {"self", "pipeline", "tasks", "workers", "depends", "logging_dir", "skip_completed"}
"""Parameters of datatrove's executors that are not the user's to set."""
POLL = 10.0
"""Seconds between two looks at what a Slurm job has finished."""


def check(executor: str, workers: int | None) -> None:
    """Raise UserError for an executor that there is not, settings that it has not, and what it needs and is not there."""
    kind, settings = _settings(executor)
    if workers is not None and workers < 1:
        raise UserError(f"--workers must be at least 1, got {workers}")
    if kind == "slurm":
        if missing := [name for name in ("partition", "time") if name not in settings]:
            raise UserError(
                f"the Slurm executor needs {' and '.join(missing)}: --executor slurm:partition=NAME,time=04:00:00"
            )
        if not any(Path(folder, "sbatch").exists() for folder in os.environ.get("PATH", "").split(os.pathsep)):
            raise UserError("there is no sbatch here: start the command on a machine that can submit to Slurm")
    elif kind == "ray":
        try:
            import ray  # noqa: F401
        except ImportError as error:
            raise UserError("--executor ray needs the ray package: pip install ray") from error


def run(executor: str, steps: list[Any], tasks: int, workers: int | None, marks: Path) -> None:
    """Run a pipeline to its end; a task that is marked as done in `marks` does not run again.

    `workers` tasks run at once: the cores of this machine, all of a cluster's, unless given. Raises UserError when a
    cluster gives up.
    """
    kind, settings = _settings(executor)
    if kind == "local":
        from datatrove.executor import LocalPipelineExecutor

        at_once = min(workers or os.cpu_count() or 1, tasks)
        LocalPipelineExecutor(steps, tasks=tasks, workers=at_once, logging_dir=str(marks), start_method="fork").run()
    elif kind == "slurm":
        _on_slurm(steps, tasks, workers or -1, marks, settings)
    else:
        import ray
        from datatrove.executor.ray import RayPipelineExecutor

        if not ray.is_initialized():
            ray.init(log_to_driver=False, logging_level="warning")
        made = RayPipelineExecutor(steps, tasks=tasks, workers=workers or -1, logging_dir=str(marks), **settings)
        made.run()
        if left := made.get_incomplete_ranks():
            raise _gave_up("Ray", len(left), tasks, marks / "logs")


def _on_slurm(steps: list[Any], tasks: int, workers: int, marks: Path, settings: dict[str, Any]) -> None:
    """Submit the tasks that are left as an array of jobs and wait for them."""
    from datatrove.executor import SlurmPipelineExecutor

    class Submitted(SlurmPipelineExecutor):
        """Without the job that adds up statistics: nobody reads them."""

        def launch_merge_stats(self) -> None:
            """Nothing."""

    here = shlex.quote(str(Path(sys.executable).parent))  # where launch_pickled_pipeline is
    settings = {"qos": None, "job_name": f"yupana-{marks.name}", "env_command": f"export PATH={here}:$PATH", **settings}
    made = Submitted(steps, tasks=tasks, workers=workers, logging_dir=str(marks.absolute()), **settings)
    try:
        made.run()
    except subprocess.CalledProcessError as error:
        raise UserError(f"Slurm refused the job (sbatch ended with {error.returncode}): its message is above") from error
    last_look = False
    while left := made.get_incomplete_ranks():
        if last_look:
            raise _gave_up(f"Slurm's job {made.job_id}", len(left), tasks, marks / "slurm_logs")
        last_look = not _queued(str(made.job_id))  # a mark may be seen a little later than the job is gone
        time.sleep(POLL)


def _queued(job: str) -> bool:
    """Whether Slurm still has a job of that number; also while it does not answer."""
    asked = subprocess.run(["squeue", "--noheader", "--jobs", job], capture_output=True, text=True, check=False)
    if asked.returncode:
        return "invalid job id" not in asked.stderr.lower()  # what it says of one that is long gone
    return bool(asked.stdout.strip())


def _gave_up(who: str, left: int, tasks: int, logs: Path) -> UserError:
    """The error whose cause is the machines, not the input: what was done is kept, as with a full disk."""
    error = UserError(
        f"{who} ended with {left} of {tasks} tasks unfinished: their output is in {logs}; start the same command again "
        "to go on with those"
    )
    error.__cause__ = ChildProcessError(who)
    return error


def _settings(executor: str) -> tuple[str, dict[str, Any]]:
    """The kind of an executor and its settings, each as the type that datatrove gives it."""
    kind, _, written = executor.partition(":")
    if kind not in KINDS:
        raise UserError(f"there is no executor '{kind}'{did_you_mean(kind, KINDS)}: the executors are {', '.join(KINDS)}")
    known = _known(kind)
    settings: dict[str, Any] = {}
    for part in filter(None, written.split(",")):
        name, equals, value = part.partition("=")
        if kind == "slurm" and equals and name.startswith("sbatch."):
            settings.setdefault("sbatch_args", {})[name.removeprefix("sbatch.")] = value
            continue
        if not equals or name not in known:
            advice = f"it has {', '.join(known)}" if known else "it has none"
            close = did_you_mean(name, known)
            raise UserError(f"the executor {kind} has no setting '{name}'{close}: {advice}, as NAME=VALUE")
        try:
            settings[name] = known[name](value)
        except (ValueError, KeyError) as error:
            raise UserError(f"{name}={value} of the executor {kind} is no {known[name].__name__}") from error
    return kind, settings


def _known(kind: str) -> dict[str, type]:
    """Settings of an executor that can be written in a line, and their types, as datatrove declares them."""
    if kind == "local":
        return {}
    if kind == "slurm":
        from datatrove.executor import SlurmPipelineExecutor as Executor
    else:
        from datatrove.executor.ray import RayPipelineExecutor as Executor
    types = {"str": str, "int": int, "float": float}
    declared = {
        name: str(of.annotation).split(" |")[0] for name, of in inspect.signature(Executor.__init__).parameters.items()
    }
    return {name: types[of] for name, of in declared.items() if of in types and name not in OURS}
