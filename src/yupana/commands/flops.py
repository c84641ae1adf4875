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

    c = add_command(group, "limits", limits, "measure what this machine can do, once")
    c.add_argument("--device", choices=["auto", "cpu", "cuda"], default="auto", help="auto: the GPU if there is one")
    c.add_argument("--dtype", choices=["auto", "float32", "bfloat16", "both"], default="auto",
                   help="of attention and kernels; auto: the one that training would use here")  # fmt: skip
    c.add_argument("--out", type=Path, metavar="FILE", help="JSON file to write (in ~/.cache/yupana)")

    c = add_command(group, "predict", predict, "a step's time, MFU and memory before it runs")
    c.add_argument("model", metavar="MODEL", help=MODEL_HELP)
    c.add_argument("--seq_len", type=int, required=True, help="tokens in a sequence")
    c.add_argument("--micro_batch", type=int, required=True, help="sequences in one forward and backward pass")
    c.add_argument("--global_batch", type=int, help="sequences in an optimiser step (micro_batch)")
    c.add_argument("--precision", choices=PRECISIONS, default="auto", help="auto: the fastest on that hardware")
    c.add_argument("--hardware", metavar="H", help="an accelerator by its data sheet, such as h100; cpu: this machine")
    c.add_argument("--limits", type=Path, metavar="FILE", help="limits measured elsewhere, with yupana flops limits")
    c.add_argument("--check", action="store_true", help="fail when the micro-batch does not fit")


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


def limits(arguments: argparse.Namespace) -> int:
    """`yupana flops limits`."""
    from yupana.train import host

    host.keep_memory()  # before torch allocates anything
    from yupana.flops.limits import as_dict
    from yupana.report.flops_text import limits_tables
    from yupana.report.limits_progress import LimitsProgress
    from yupana.train.limits import default_file, dtypes_of, measure_limits
    from yupana.train.session import choose_device

    device = choose_device(arguments.device)
    file = arguments.out or default_file(device)
    with LimitsProgress() as progress:
        measured = measure_limits(device, dtypes_of(arguments.dtype, device), file, progress.tell)
    print_result(arguments, {"path": str(file), **as_dict(measured)}, limits_tables(measured))
    if not arguments.json:
        print(f"\nWrote {file}")
    return 0


def predict(arguments: argparse.Namespace) -> int:
    """`yupana flops predict`."""
    from yupana.named import shape_of
    from yupana.report.flops_text import prediction_tables
    from yupana.report.limits_progress import LimitsProgress
    from yupana.train.limits import prediction

    with LimitsProgress() as progress:
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
    print_result(arguments, {"model": arguments.model, **result}, prediction_tables(arguments.model, result))
    return 0
