"""yupana in Python: the commands as functions. `import yupana` gives them, each imported when it is first used."""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from yupana import config
from yupana.config import Config
from yupana.errors import UserError, did_you_mean
from yupana.run import RunDirectory
from yupana.run import open_run as open_directory

if TYPE_CHECKING:
    import pandas
    from matplotlib.figure import Figure


LEFT_OUT = ("step", "health", "sample")
"""Of a line of metrics, what is no column of a frame."""


class Run:
    """A run directory to look at, finished or not. Reading it needs no torch."""

    def __init__(self, path: Path | str) -> None:
        """Raises UserError where there is no run."""
        self.directory = open_directory(path)
        self.path = self.directory.path

    def __repr__(self) -> str:
        return f"Run({str(self.path)!r})"

    @property
    def config(self) -> Config:
        """The resolved configuration; it starts the same run again."""
        return config.load(file=self.directory.config_file)

    @property
    def env(self) -> dict[str, Any]:
        """Versions, hardware, revision and corpus, as env.json has them."""
        return json.loads(self.directory.env_file.read_text()) if self.directory.env_file.is_file() else {}

    @property
    def metrics(self) -> list[dict[str, Any]]:
        """Every whole line of metrics.jsonl."""
        return self.directory.metrics()

    def frame(self) -> pandas.DataFrame:
        """metrics.jsonl as a pandas frame indexed by step: a row a step, held-out figures in the row of their step.

        Raises UserError where pandas is not installed.
        """
        try:
            import pandas
        except ImportError:
            raise UserError("a frame needs pandas: pip install pandas (or read Run.metrics)") from None
        rows: dict[int, dict[str, Any]] = {}
        for line in self.metrics:
            rows.setdefault(line["step"], {}).update({k: v for k, v in line.items() if k not in LEFT_OUT})
        frame = pandas.DataFrame.from_dict(rows, orient="index")
        frame.index.name = "step"
        return frame.sort_index()

    def summary(self) -> dict[str, Any]:
        """The run in figures, as `yupana report --json` gives them."""
        from yupana.report.text import summaries

        return summaries([self.directory])[0]

    def plot(self) -> Figure:
        """The curves of the run as a matplotlib figure, which a notebook shows."""
        from yupana.report.foretold import foretold
        from yupana.report.plots import draw
        from yupana.report.read import read_run

        record = read_run(self.directory)
        return draw(record, foretold(record))

    def report(self) -> Path:
        """Write report.html and, where matplotlib is installed, report.png; returns the page's path."""
        from yupana.report.page import write_report

        return write_report(self.directory)

    def sample(self, prompt: str = "", tokens: int = 120, **options: Any) -> str:
        """The prompt and its continuation from the last checkpoint (`temperature`, `top_k`, `seed`, `which`)."""
        from yupana.train.sample import sample_text

        return sample_text(self.path, prompt, tokens, **options)

    def export(self, out: Path | str | None = None, dtype: str = "bfloat16") -> Path:
        """Write the last checkpoint as a folder that `transformers` loads (the run's export/); returns it."""
        from yupana.train.exchange import export_run

        return Path(export_run(self.path, Path(out) if out is not None else None, "last", dtype)["path"])


def open_run(path: Path | str) -> Run:
    """A run directory to look at. Raises UserError where there is none."""
    return Run(path)


def settings(
    preset: str | None = None, file: Path | str | None = None, changes: Mapping[str, Any] | None = None
) -> Config:
    """A configuration from a preset, a YAML file and changes, `{"optim.lr": 1e-3}`, each on top of the one before.

    Raises UserError naming a key that does not fit and the nearest valid one.
    """
    return config.load(preset, Path(file) if file is not None else None, _overrides(changes or {}))


def steps(settings: Config | str, run: Path | str, *, resume: bool = False) -> Iterator[dict[str, Any]]:
    """Train, yielding the last line of metrics (`step, tokens, loss, lr, mfu, …`) after every step.

    `settings` is a Config or a preset's name. Leaving the loop early keeps what was saved last (checkpoint.every);
    `resume` goes on from there. What the loop's body takes counts as the next step's time. Raises UserError.
    """
    from yupana.train.begin import steps as begin_steps

    wanted = config.load(settings) if isinstance(settings, str) else settings
    yield from begin_steps(wanted, RunDirectory(run), resume=resume)


def pretrain(settings: Config | str, run: Path | str, *, resume: bool = False) -> Run:
    """Train to the end and return the run. `settings` is a Config or a preset's name. Raises UserError."""
    for _ in steps(settings, run, resume=resume):
        pass
    return Run(run)


def tune_model(run: Path | str, changes: Mapping[str, Any], *, resume: bool = False) -> dict[str, Any]:
    """Fine-tune as `yupana tune` does; `changes` are its settings, `{"model.base": …, "data.train": …}`.

    Returns the last metrics and where adapter and model are. Raises UserError.
    """
    from yupana.tune.begin import begin

    return begin(RunDirectory(run), None, _overrides(changes), resume=resume)


def count(model: str | Config, seq_len: int) -> dict[str, Any]:
    """Parameters and FLOPs a token, `{"parameters", "matmul_parameters", "flops_per_token": {"palm", "exact"}}`.

    `model` is a Config, a preset, a run directory, a run.yaml or a Hugging Face folder.
    """
    from yupana.flops.count import flops_per_token
    from yupana.named import shape_of

    shape = model.model if isinstance(model, Config) else shape_of(model)
    return {
        "parameters": shape.parameters,
        "matmul_parameters": shape.matmul_parameters,
        "flops_per_token": flops_per_token(shape, seq_len),
    }


def explain(settings: Config | Run | str, steps: int = 5) -> dict[str, Any]:
    """Where the MFU of a configuration goes, as `yupana flops explain --json` gives it: steps timed, steps profiled.

    `settings` is a Config, a Run, or what the command takes: a preset, a run.yaml or a run directory. Raises UserError.
    """
    from yupana.named import config_of
    from yupana.train.profile import explained

    if isinstance(settings, Run):
        settings = settings.config
    return explained(settings if isinstance(settings, Config) else config_of(settings), steps)


def fit(*sources: Path | str, **options: Any) -> dict[str, Any]:
    """A scaling law from one CSV file of points or from finished runs, as `yupana scaling fit --json` gives it.

    Options are the command's: `law`, `approach`, `columns`, `where`, `drop`, `refits`, `seed`, `below`.
    """
    from yupana.scaling.annealing import LAWS
    from yupana.scaling.session import fit_curves, fit_points

    arguments = _arguments(["scaling", "fit", *map(str, sources)], options)
    return fit_curves(arguments) if arguments.law in LAWS else fit_points(arguments)[0]


def plan(**options: Any) -> dict[str, Any]:
    """Hardware and hours to model, tokens and loss, as `yupana scaling plan --json` gives it.

    Options are the command's: `hardware`, `count`, `hours`, `mfu`, `law`, …
    """
    from yupana.scaling.session import make_plan

    if "hardware" not in options:
        raise UserError("plan needs hardware, such as plan(hardware='h100', hours=24)")
    return make_plan(_arguments(["scaling", "plan", "--hardware", str(options["hardware"])], options))


def _overrides(changes: Mapping[str, Any]) -> list[str]:
    """Changes as the command line has them."""
    return [f"--{key}={value if isinstance(value, str) else json.dumps(value)}" for key, value in changes.items()]


def _arguments(command: list[str], options: Mapping[str, Any]) -> argparse.Namespace:
    """The command's arguments with their defaults, and the options in place of them."""
    from yupana.cli import parser

    arguments = parser().parse_args(command)
    for name, value in options.items():
        if not hasattr(arguments, name):
            known = [known for known in vars(arguments) if not known.startswith("_")]
            raise UserError(f"{command[1]} has no option '{name}'{did_you_mean(name, known)}")
        setattr(arguments, name, str(value) if name == "mfu" else value)
    return arguments
