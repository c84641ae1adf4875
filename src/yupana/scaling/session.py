"""What the scaling commands do, from parsed arguments to the object they print."""

from __future__ import annotations

from argparse import Namespace
from pathlib import Path
from typing import Any

import numpy as np

from yupana import config
from yupana.errors import UserError
from yupana.files import write_json
from yupana.run import open_run
from yupana.scaling import allocation, annealing, diagnose, result, runs
from yupana.scaling import fit as fits
from yupana.scaling import plan as plans
from yupana.scaling import points as reading
from yupana.scaling.compare import FILE, compare, read_prediction
from yupana.scaling.predict import ANNEALING, MEMORY, predict
from yupana.scaling.sweep import Planned, speed

MOST_REFITS = 20_000


def fit_points(arguments: Namespace) -> tuple[dict[str, Any], reading.Points]:
    """`scaling fit` of points; the points that were fitted are for drawing."""
    if not 0 <= arguments.refits <= MOST_REFITS:
        raise UserError(f"--refits lies between 0 and {MOST_REFITS:,}, got {arguments.refits}")
    points = reading.read(arguments.sources, arguments.columns, arguments.where)
    points = _without_highest(points, arguments.drop)
    if arguments.approach != 3 and arguments.law != "chinchilla":
        raise UserError("approaches 1 and 2 fit a power law N_opt(C), so --law goes with --approach 3 only")
    if arguments.approach == 3:
        found = fits.parametric(points, arguments.law, arguments.refits, arguments.seed)
        told = result.of_parametric(points, found)
        if arguments.below:
            told["held_out"] = diagnose.held_out(points, arguments.law, arguments.below)
    else:
        told = result.of_allocation(points, (allocation.envelope if arguments.approach == 1 else allocation.isoflop)(points))
    return told, points


def fit_curves(arguments: Namespace) -> dict[str, Any]:
    """`scaling fit --law annealing` or `multipower`: whole curves, from run directories or CSV files."""
    paths = [Path(source) for source in arguments.sources]
    for path in paths:
        if not path.exists():
            raise UserError(f"{path} does not exist: give run directories, or CSV files with step, lr and loss")
    curves = [runs.curve_of(open_run(path)) if path.is_dir() else runs.curve_from_csv(path) for path in paths]
    return result.of_curves(annealing.fit(arguments.law, curves), curves)


def predict_run(arguments: Namespace) -> dict[str, Any]:
    """`scaling predict` before a run."""
    law = result.load_law(arguments.law)
    annealing_gain, rates = ANNEALING, None
    if arguments.config is not None:
        settings = config.load(file=arguments.config)
        steps = settings.total_steps
        n = float(settings.model.parameters)
        tokens = float(steps * settings.train.global_batch * settings.data.seq_len)
        rates = runs.schedule_rates(settings.optim, steps)
        annealing_gain = _annealing(arguments.curve, settings.optim.lr)
    elif arguments.parameters and arguments.tokens:
        n, tokens = arguments.parameters, arguments.tokens
        if n <= 0 or tokens <= 0:
            raise UserError("--parameters and --tokens must be positive")
    else:
        raise UserError("say which run to predict: --config run.yaml, or --parameters N and --tokens D")
    told = predict(law, n, tokens, rates, annealing=annealing_gain, far=arguments.far)
    if arguments.out:
        arguments.out.parent.mkdir(parents=True, exist_ok=True)
        write_json(arguments.out, told)
    return told


def compare_run(arguments: Namespace) -> dict[str, Any]:
    """`scaling predict PREDICTION --run RUN`: during or after a run; its report draws the prediction from then on."""
    prediction = read_prediction(Path(arguments.law))
    run = open_run(arguments.run)
    settings = config.load(file=run.config_file)
    evaluations = [record for record in run.metrics() if "val_loss" in record]
    told = compare(prediction, evaluations, settings.total_steps, settings.model.parameters)
    write_json(run.path / FILE, prediction)
    return told | {"prediction": prediction}


def make_plan(arguments: Namespace) -> dict[str, Any]:
    """`scaling plan`."""
    name, peak, watts = _hardware(arguments.hardware)
    request = plans.make_request(
        seconds=_hours(arguments) * 3600, mfu=_mfu(arguments.mfu), count=arguments.count, peak=peak, hardware=name,
        watts=watts, vocab_size=arguments.vocab_size, seq_len=arguments.seq_len, corpus=arguments.corpus,
        corpus_tokens=arguments.corpus_tokens, serve_tokens=arguments.serve_tokens, price=arguments.price,
        lr_law=arguments.lr_law, schedule=arguments.schedule, far=arguments.far, size=arguments.size,
    )  # fmt: skip
    told, settings = plans.plan(request, result.load_law(arguments.law))
    if arguments.write:
        config.save(settings, arguments.write)
        told["written"] = str(arguments.write)
    return told


def sweep_overview(runs: list[Planned], jobs: int) -> dict[str, Any]:
    """What is done, what the rest costs, and the seconds it takes at the finished runs' speed (None before any)."""
    left = sum(one.palm_flops for one in runs if one.state != "done")
    rate = speed(runs)
    rate = None if rate is None else rate * jobs
    return {
        "runs": [
            {
                "name": one.name,
                "budget": one.budget,
                "parameters": one.config.model.parameters,
                "tokens": one.tokens,
                "steps": one.config.total_steps,
                "batch_tokens": one.config.train.global_batch * one.config.data.seq_len,
                "lr": one.config.optim.lr,
                "palm_flops": one.palm_flops,
                "state": one.state,
            }
            for one in runs
        ],
        "done": sum(one.state == "done" for one in runs),
        "flops_left": left,
        "flops_per_second": rate,
        "seconds_left": None if rate is None else left / rate,
        "failed": [],
    }


def _hours(arguments: Namespace) -> float:
    if (arguments.hours is None) == (arguments.money is None):
        raise UserError("give exactly one of --hours and --money")
    if arguments.hours is not None:
        return arguments.hours
    if not arguments.price or arguments.price <= 0:
        raise UserError("--money needs --price, what one accelerator costs for an hour")
    return arguments.money / (arguments.price * max(1, arguments.count))


def _mfu(given: str) -> float:
    """A number, or the median MFU of a run directory's steps (the first tenth, which warms up, left out)."""
    try:
        return float(given)
    except ValueError:
        pass
    if not Path(given).exists():
        raise UserError(f"--mfu takes a number between 0 and 1, or a run directory that measured it, got '{given}'")
    steps = [record["mfu"] for record in open_run(given).metrics() if "mfu" in record]
    if not steps:
        raise UserError(f"{given} has no MFU in its metrics yet")
    return float(np.median(steps[len(steps) // 10 :]))


def _hardware(name: str) -> tuple[str, float, float | None]:
    """(name, peak in FLOP/s, watts) of a data-sheet name, of this machine's processor, or of a plain number."""
    if name.lower() == "cpu":
        from yupana.flops.hardware import peaks

        measured = peaks("cpu", "float32")
        return "cpu", measured.measured, None
    try:
        return f"{float(name):g} FLOP/s", float(name), None
    except ValueError:
        from yupana.flops.accelerators import accelerator

        row = accelerator(name)
        return row.name, row.bf16, row.watts


def _without_highest(points: reading.Points, count: int) -> reading.Points:
    if not 0 <= count < len(points):
        raise UserError(f"--drop lies between 0 and the number of points ({len(points)}), got {count}")
    return points.where(np.sort(np.argsort(points.loss, kind="stable")[: len(points) - count]))


def _annealing(fit: str | None, peak: float) -> float:
    if fit is None:
        return ANNEALING
    content = result.read_fit(fit)
    if content is None or content.get("law") != "annealing":
        raise UserError(
            f"{fit} is no fit of the annealing law: make one with yupana scaling fit RUN… --law annealing --out DIR"
        )
    return content["parameters"]["C"] * peak * MEMORY
