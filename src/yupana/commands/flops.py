"""`yupana flops …`: what a model costs, and what the hardware can do."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from yupana.commands.shared import add_command, add_group, print_result


def register(commands: Any) -> None:
    """Add the commands."""
    group = add_group(commands, "flops", "count FLOPs")
    c = add_command(group, "count", count, "FLOPs and parameters of a model, by part, in both conventions")
    c.add_argument("model", metavar="MODEL", help="a preset, a run.yaml, a run directory or a Hugging Face folder")
    c.add_argument("--seq_len", type=int, default=2048, help="tokens in a sequence (2048)")

    c = add_command(group, "explain", explain, "profile a few steps of a run and say where its lost MFU went")
    c.add_argument("run", metavar="RUN", help="a run directory (or a run.yaml, or a preset); any --section.key V on top")
    c.add_argument("--steps", type=int, default=5, help="steps to time and to profile, each (5)")
    c.add_argument("--save", type=Path, metavar="PNG", help="draw the waterfall")
    c.set_defaults(takes_settings=True)

    c = add_command(group, "ladder", ladder, "the same training from naive to best, one lever at a time")
    c.add_argument("model", metavar="MODEL", help="a preset or a run.yaml; any --section.key V on top")
    c.add_argument("--steps", type=int, default=12, help="steps of each rung; the second half counts (12)")
    c.add_argument("--micro_batch", type=int, help="sequences at once on the lower rungs (a quarter of the batch)")
    c.add_argument("--largest_micro_batch", type=int, help="sequences at once on the upper rungs (the batch)")
    c.add_argument("--out", type=Path, metavar="DIR", help="where the rungs' runs are kept; a stopped ladder goes on")
    c.add_argument("--save", type=Path, metavar="PNG", help="draw the ladder")
    c.add_argument("--write", type=Path, metavar="YAML", help="write the best rung's settings for yupana train --config")
    c.set_defaults(takes_settings=True)


def count(arguments: argparse.Namespace) -> int:
    """`yupana flops count`."""
    from yupana.flops.count import breakdown, flops_per_token
    from yupana.named import shape_of
    from yupana.report.text import flops_table

    shape = shape_of(arguments.model)
    result = {
        "model": arguments.model,
        "seq_len": arguments.seq_len,
        "parameters": shape.parameters,
        "matmul_parameters": shape.matmul_parameters,
        "flops_per_token": flops_per_token(shape, arguments.seq_len),
        "parts": [{"name": n, "parameters": p, "palm": f} for n, p, f in breakdown(shape, arguments.seq_len)],
    }
    print_result(arguments, result, flops_table(arguments.model, shape, arguments.seq_len))
    return 0


def explain(arguments: argparse.Namespace) -> int:
    """`yupana flops explain`."""
    from yupana.errors import UserError
    from yupana.files import write_json
    from yupana.flops.explain import explain as make_sense
    from yupana.named import config_of
    from yupana.report.mfu_plots import draw_waterfall, save_png
    from yupana.report.mfu_text import waterfall_table
    from yupana.train import host

    if arguments.steps < 1:
        raise UserError(f"--steps must be at least 1, got {arguments.steps}")
    config = config_of(arguments.run, arguments.overrides)
    if config.fast.allocator == "keep":
        host.keep_memory()
    from yupana.train.begin import open_corpora
    from yupana.train.profile import profile_steps

    seen = profile_steps(config, open_corpora(config), arguments.steps)
    shape, batch, seq_len = config.model, config.train.global_batch, config.data.seq_len
    result = make_sense(
        seen.events, seen.products, seen.steps, seen.profiled_seconds, seen.plain_seconds,
        shape, batch, seq_len, seen.session.peaks,
    )  # fmt: skip
    if Path(arguments.run).is_dir():
        write_json(Path(arguments.run) / "waterfall.json", result)
    if arguments.save:
        save_png(draw_waterfall(result, f"Where the MFU of {Path(arguments.run).name} went"), arguments.save)
    print_result(arguments, result, waterfall_table(result))
    return 0


def ladder(arguments: argparse.Namespace) -> int:
    """`yupana flops ladder`."""
    import tempfile

    from yupana.errors import UserError
    from yupana.flops.ladder import climb, levers
    from yupana.named import config_of, settings_of
    from yupana.report.mfu_plots import draw_ladder, save_png
    from yupana.report.mfu_text import ladder_table
    from yupana.train.session import choose_device

    config = config_of(arguments.model, arguments.overrides)
    batch = config.train.global_batch
    largest = arguments.largest_micro_batch or batch
    first = arguments.micro_batch or max(1, largest // 4)
    if arguments.steps < 4:
        raise UserError(f"--steps must be at least 4, so that some are left after the first, got {arguments.steps}")
    if batch % largest or batch % first:
        raise UserError(f"the batch of {batch} sequences must be a multiple of both micro-batches ({first}, {largest})")
    model = [*settings_of(arguments.model), *arguments.overrides]
    with tempfile.TemporaryDirectory() as temporary, Climbing() as climbing:
        rungs = climb(
            model, arguments.steps, arguments.out or Path(temporary), choose_device(config.train.device),
            levers(first, largest), climbing.step,
        )  # fmt: skip
    best = max((rung for rung in rungs if rung.get("kept")), key=lambda rung: rung["tokens_per_second"])
    if arguments.save:
        save_png(draw_ladder(rungs, f"{arguments.model}: from naive to best"), arguments.save)
    if arguments.write:
        write_settings(arguments.write, best["settings"])
    result = {"model": arguments.model, "steps": arguments.steps, "rungs": rungs, "best": best["name"]}
    print_result(arguments, result, ladder_table(rungs))
    return 0


def write_settings(path: Path, settings: dict[str, str]) -> None:
    """Dotted settings as a YAML file that `yupana train --config` takes."""
    import yaml

    from yupana.files import write_atomically

    sections: dict[str, dict[str, Any]] = {}
    for key, value in settings.items():
        section, name = key.split(".")
        sections.setdefault(section, {})[name] = yaml.safe_load(value)
    write_atomically(path, yaml.safe_dump(sections, sort_keys=False))


class Climbing:
    """Which rung is running and how long the rest will take, on standard error."""

    def __enter__(self) -> Climbing:
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
        from rich.progress import TimeRemainingColumn as Eta

        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), Eta())
        self.bar = Progress(*columns, console=Console(stderr=True))
        self.bar.start()
        self.task = self.bar.add_task("", total=None)
        return self

    def step(self, done: int, total: int, name: str) -> None:
        """Rung `done` of `total` begins."""
        self.bar.update(self.task, completed=done, total=total, description=name)

    def __exit__(self, *_: object) -> None:
        self.bar.stop()
