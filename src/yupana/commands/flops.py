"""`yupana flops …`: what a model costs, and what the hardware can do."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from yupana.commands.shared import add_command, add_group, print_result

PRECISIONS = ["auto", "fp32", "bf16-autocast", "bf16", "bf16-lean"]
MODEL_HELP = "a preset, a run.yaml, a run directory or a Hugging Face folder"


def register(commands: Any) -> None:
    """Add the commands."""
    group = add_group(commands, "flops", "count FLOPs, measure the machine, predict a step")
    c = add_command(group, "count", count, "FLOPs and parameters of a model, by part, in both conventions")
    c.add_argument("model", metavar="MODEL", help=MODEL_HELP)
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
    c.add_argument("--rungs", type=int, help="climb only so many rungs (all)")
    c.add_argument("--out", type=Path, metavar="DIR", help="where the rungs' runs are kept; a stopped ladder goes on")
    c.add_argument("--save", type=Path, metavar="PNG", help="draw the ladder")
    c.add_argument("--write", type=Path, metavar="YAML", help="write the best rung's settings for yupana train --config")
    c.set_defaults(takes_settings=True)

    c = add_command(group, "limits", limits, "measure what this machine can do, once")
    c.add_argument("--device", choices=["auto", "cpu", "cuda"], default="auto", help="auto: the GPU if there is one")
    c.add_argument("--dtype", choices=["auto", "float32", "bfloat16", "both"], default="auto",
                   help="of attention and kernels; auto: the one that training would use here")  # fmt: skip
    c.add_argument("--out", type=Path, metavar="FILE", help="JSON file to write (in ~/.cache/yupana)")

    told = "a step's time, MFU and memory before it runs; of a run directory, kept there for its report"
    c = add_command(group, "predict", predict, told)
    c.add_argument("model", metavar="MODEL", help=MODEL_HELP)
    c.add_argument("--seq_len", type=int, help="tokens in a sequence (a run's own)")
    c.add_argument("--micro_batch", type=int, help="sequences in one forward and backward pass (a run's own)")
    c.add_argument("--global_batch", type=int, help="sequences in an optimiser step (a run's own, or micro_batch)")
    c.add_argument("--precision", choices=PRECISIONS, help="a run's own, or auto: the fastest on that hardware")
    c.add_argument("--hardware", metavar="H", help="an accelerator by its data sheet, such as h100; cpu: this machine")
    c.add_argument("--limits", type=Path, metavar="FILE", help="limits measured elsewhere, with yupana flops limits")
    c.add_argument("--check", action="store_true", help="fail when the micro-batch does not fit")
    c.add_argument("--count", type=int, default=1, help="accelerators (1); --micro_batch is then the largest of a rank")
    for name, told in (("replicate", "copies of the model"), ("fsdp", "ranks that share its weights"),
                       ("cp", "ranks that share each sequence"), ("tp", "ranks that share its products")):  # fmt: skip
        c.add_argument(f"--{name}", type=int, help=f"{told}; without a layout the best is looked for")
    c.add_argument("--node", type=int, help="accelerators in a machine (its data sheet's)")
    c.add_argument("--link", type=float, metavar="GB/s", help="between them, one way (its data sheet's)")
    c.add_argument("--network", type=float, metavar="GB/s", help="from one to another machine, one way (its data sheet's)")


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
    from yupana.files import write_json
    from yupana.named import config_of
    from yupana.report.mfu_plots import draw_waterfall, save_png
    from yupana.report.mfu_text import waterfall_table
    from yupana.run import WATERFALL

    config = config_of(arguments.run, arguments.overrides)  # what is wrong with it is said before torch is there
    from yupana.train.profile import explained

    result = explained(config, arguments.steps)
    if Path(arguments.run).is_dir():
        write_json(Path(arguments.run) / WATERFALL, result)
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
    from yupana.report.bar import Bar
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
    with tempfile.TemporaryDirectory() as temporary, Bar() as progress:
        rungs = climb(
            model, arguments.steps, arguments.out or Path(temporary), choose_device(config.train.device),
            levers(first, largest), progress.tell, arguments.rungs,
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
        plain = value in ("true", "false") or value.isdigit()  # not "off", which YAML takes for false
        sections.setdefault(section, {})[name] = yaml.safe_load(value) if plain else value
    write_atomically(path, yaml.safe_dump(sections, sort_keys=False))


def limits(arguments: argparse.Namespace) -> int:
    """`yupana flops limits`."""
    from yupana.train import host

    host.keep_memory()  # before torch allocates anything
    from yupana.flops.limits import as_dict
    from yupana.report.bar import Bar
    from yupana.report.flops_text import limits_tables
    from yupana.train.limits import default_file, dtypes_of, measure_limits
    from yupana.train.session import choose_device

    device = choose_device(arguments.device)
    file = arguments.out or default_file(device)
    with Bar() as progress:
        measured = measure_limits(device, dtypes_of(arguments.dtype, device), file, progress.tell)
    print_result(arguments, {"path": str(file), **as_dict(measured)}, limits_tables(measured))
    if not arguments.json:
        print(f"\nWrote {file}")
    return 0


def predict(arguments: argparse.Namespace) -> int:
    """`yupana flops predict`."""
    of_run = _sizes_of_run(arguments)
    if arguments.count != 1:
        return predict_cluster(arguments)
    from yupana.named import shape_of
    from yupana.report.bar import Bar
    from yupana.report.flops_text import prediction_tables
    from yupana.train.limits import prediction

    with Bar() as progress:
        result = prediction(
            shape_of(arguments.model),
            arguments.seq_len,
            arguments.micro_batch,
            arguments.global_batch or arguments.micro_batch,
            arguments.precision,
            hardware=arguments.hardware,
            limits_file=arguments.limits,
            tell=progress.tell,
            must_fit=arguments.check,
        )
    if of_run:
        from yupana.files import write_json
        from yupana.run import STEP_PREDICTION

        write_json(Path(arguments.model) / STEP_PREDICTION, {key: v for key, v in result.items() if key != "operations"})
    print_result(arguments, {"model": arguments.model, **result}, prediction_tables(arguments.model, result))
    return 0


def _sizes_of_run(arguments: argparse.Namespace) -> bool:
    """Take the step of a run directory, where no other was given, and say whether it was. Raises UserError without one."""
    from yupana.errors import UserError

    is_run = (Path(arguments.model) / "run.yaml").is_file()
    of_run = is_run and arguments.seq_len is arguments.micro_batch is None
    if is_run:
        from yupana.named import config_of

        run = config_of(arguments.model)
        arguments.precision = arguments.precision or run.train.precision
        if of_run:
            arguments.seq_len = run.data.seq_len
            arguments.global_batch = arguments.global_batch or run.train.global_batch
            arguments.micro_batch = run.train.micro_batch or run.train.global_batch
    for name in ("seq_len", "micro_batch"):
        if getattr(arguments, name) is None:
            raise UserError(f"--{name} is missing: give it, or a run directory and neither --seq_len nor --micro_batch")
    arguments.precision = arguments.precision or "auto"
    return of_run


def predict_cluster(arguments: argparse.Namespace) -> int:
    """`yupana flops predict --count N`."""
    from yupana.errors import UserError
    from yupana.flops.layout import layout_of
    from yupana.named import shape_of
    from yupana.report.cluster_text import cluster_tables
    from yupana.train.limits import cluster

    sizes = {name: getattr(arguments, name) for name in ("replicate", "fsdp", "cp", "tp")}
    for name, size in {"count": arguments.count, **sizes}.items():
        if size is not None and size < 1:
            raise UserError(f"--{name} must be at least 1, got {size}")
    layout = None
    if any(sizes.values()):
        replicate, fsdp, cp, tp = (size or alone for size, alone in zip(sizes.values(), (1, -1, 1, 1), strict=True))
        layout = layout_of(replicate, fsdp, cp, tp, arguments.count)
    result = cluster(
        shape_of(arguments.model), arguments.seq_len, arguments.micro_batch, arguments.global_batch, arguments.precision,
        hardware=arguments.hardware, count=arguments.count, layout=layout, node=arguments.node, link=arguments.link,
        network=arguments.network, must_fit=arguments.check,
    )  # fmt: skip
    print_result(arguments, {"model": arguments.model, **result}, cluster_tables(arguments.model, result))
    return 0
