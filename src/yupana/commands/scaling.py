"""`yupana scaling …`: laws from runs, losses before a run, and plans from hardware and time."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from yupana.commands.shared import add_command, add_group, print_result


def register(commands: Any) -> None:
    """Add the commands."""
    group = add_group(commands, "scaling", "fit scaling laws, predict a run, plan from hardware and time")
    _register_fit(group)
    _register_predict(group)
    _register_plan(group)
    c = add_command(group, "sweep", sweep, "a grid of IsoFLOP runs from one small YAML, to fit a law to")
    c.add_argument("file", type=Path, metavar="FILE", help="out, budgets, corpus, sizes, seeds … (docs/scaling.md)")
    c.add_argument("--dry", action="store_true", help="only show what is done, what it costs and when it ends")


def fit(arguments: argparse.Namespace) -> int:
    """`yupana scaling fit`."""
    from yupana.report.scaling_text import fit_table
    from yupana.scaling.session import fit_curves, fit_points

    curves = arguments.law in ("annealing", "multipower")
    result, points = (fit_curves(arguments), None) if curves else fit_points(arguments)
    if arguments.out:
        result["files"] = _write(arguments.out, result, points)
    print_result(arguments, result, fit_table(result))
    return 0


def predict(arguments: argparse.Namespace) -> int:
    """`yupana scaling predict`."""
    from yupana.report.scaling_text import comparison_table, prediction_table
    from yupana.scaling.session import compare_run, predict_run

    if not arguments.run:
        result = predict_run(arguments)
        print_result(arguments, result, prediction_table(result))
        return 0
    result = compare_run(arguments)
    if arguments.out:
        from yupana.report.scaling_plots import draw_prediction, save

        save(draw_prediction(result["prediction"], result), arguments.out)
    print_result(arguments, result, comparison_table(result))
    return 0


def plan(arguments: argparse.Namespace) -> int:
    """`yupana scaling plan`."""
    from yupana.report.scaling_text import plan_table
    from yupana.scaling.session import make_plan

    result = make_plan(arguments)
    print_result(arguments, result, plan_table(result))
    return 0


def sweep(arguments: argparse.Namespace) -> int:
    """`yupana scaling sweep`: what is done, what the rest costs and when it ends; then the rest."""
    import sys

    from yupana.commands.shared import show
    from yupana.report.scaling_text import sweep_table
    from yupana.scaling.session import sweep_overview
    from yupana.scaling.sweep import make, read_sweep, runs_of

    wanted = read_sweep(arguments.file)
    overview = sweep_overview(runs_of(wanted), wanted.jobs)
    if not arguments.json:
        show(sweep_table(overview))
    if not arguments.dry:
        failed = make(wanted, runs_of(wanted), lambda line: print(line, file=sys.stderr, flush=True))
        overview = sweep_overview(runs_of(wanted), wanted.jobs) | {"failed": failed}
    if arguments.json:
        print_result(arguments, overview, "")
    elif not arguments.dry and not overview["failed"]:
        print(f"Now: yupana scaling fit {wanted.out}/runs/*")
    return 1 if overview["failed"] else 0


def _write(folder: Path, result: dict[str, Any], points: Any) -> list[str]:
    """fit.json and, for points and where matplotlib is installed, the pictures; the paths written."""
    from yupana.files import disk_errors, write_json

    with disk_errors(str(folder)):
        folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / "fit.json", result)
    files = [str(folder / "fit.json")]
    if points is None:
        return files
    try:
        from yupana.report.scaling_plots import write_pictures

        return files + write_pictures(folder, result, points)
    except ImportError:
        return files


def _register_fit(group: Any) -> None:
    c = add_command(group, "fit", fit, "a law from points (a CSV file) or from run directories")
    c.add_argument("sources", nargs="+", metavar="CSV|RUN", help="one CSV file of points, or finished runs")
    c.add_argument("--columns", help="which column is what: n=…,tokens=…,flops=…,loss=…,unique=… (found by name)")
    c.add_argument("--where", metavar="COLUMN=VALUE", help="only the lines with that value")
    c.add_argument("--drop", type=int, default=0, metavar="K", help="leave out the K highest losses (0)")
    c.add_argument(
        "--law", default="chinchilla",
        help="chinchilla, gadre, kaplan or muennighoff; annealing or multipower for whole curves (chinchilla)",
    )  # fmt: skip
    c.add_argument("--approach", type=int, choices=[1, 2, 3], default=3, help="envelope, parabolas or the law (3)")
    c.add_argument("--refits", type=int, default=1000, help="bootstrap refits (1000)")
    c.add_argument("--seed", type=int, default=0, help="of the bootstrap (0)")
    c.add_argument("--below", type=float, metavar="FLOPS", help="also fit below a budget and score the points above it")
    c.add_argument("--out", type=Path, metavar="DIR", help="write fit.json and pictures there")


def _register_predict(group: Any) -> None:
    c = add_command(group, "predict", predict, "the loss of a run before it is made, or beside its prediction")
    c.add_argument("law", metavar="FIT|LAW|PREDICTION", help="a fit.json, a published law, or with --run a prediction")
    c.add_argument("--config", type=Path, metavar="FILE", help="the run.yaml to predict: size, tokens and schedule")
    c.add_argument("--parameters", type=float, metavar="N", help="instead of --config")
    c.add_argument("--tokens", type=float, metavar="D", help="instead of --config")
    c.add_argument("--curve", metavar="FIT", help="a fit --law annealing of your own curves, for the way to the end")
    c.add_argument("--run", metavar="RUN", help="compare this run with the PREDICTION, during or after it")
    c.add_argument("--far", action="store_true", help="allow more than a hundredfold extrapolation")
    c.add_argument("--out", type=Path, metavar="FILE", help="write the prediction there (JSON; with --run a picture)")


def _register_plan(group: Any) -> None:
    c = add_command(group, "plan", plan, "hardware and hours to model, tokens, loss, energy and cost")
    c.add_argument("--hardware", required=True, help="h100, a40, …, cpu (measured here), or a peak in FLOP/s")
    c.add_argument("--count", type=int, default=1, help="accelerators (1)")
    c.add_argument("--hours", type=float, help="of wall-clock")
    c.add_argument("--money", type=float, help="instead of --hours: what to spend at --price")
    c.add_argument("--price", type=float, help="of one accelerator for an hour")
    c.add_argument("--mfu", default="0.4", metavar="M|RUN", help="palm MFU, 0 to 1, or a run that measured it (0.4)")
    c.add_argument("--law", default="besiroglu", metavar="FIT|LAW", help="a fit.json or a published law (besiroglu)")
    c.add_argument("--vocab_size", type=int, default=128_256, help="tokens in the vocabulary (128256)")
    c.add_argument("--seq_len", type=int, default=2048, help="tokens in a sequence (2048)")
    c.add_argument("--corpus", default="python", help="data.corpus of the configuration (python)")
    c.add_argument("--corpus_tokens", type=float, help="distinct tokens there are; more than these are repeats")
    c.add_argument("--serve_tokens", type=float, default=0.0, help="tokens the model will serve in its life (0)")
    c.add_argument("--size", type=float, default=1.0, help="model size over the optimum's: 0.5 over-trains (1)")
    c.add_argument("--lr_law", default="step", help="step (2503.04715) or deepseek (2401.02954)")
    c.add_argument("--schedule", choices=["cosine", "wsd", "constant"], default="cosine")
    c.add_argument("--far", action="store_true", help="allow more than a hundredfold extrapolation")
    c.add_argument("--write", type=Path, metavar="FILE", help="write the configuration that yupana train starts")
