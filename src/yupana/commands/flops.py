"""`yupana flops …`: what a model costs, and what the hardware can do."""

from __future__ import annotations

import argparse
from typing import Any

from yupana.commands.shared import add_command, add_group, print_result


def register(commands: Any) -> None:
    """Add the commands."""
    group = add_group(commands, "flops", "count FLOPs")
    c = add_command(group, "count", count, "FLOPs and parameters of a model, by part, in both conventions")
    c.add_argument("model", metavar="MODEL", help="a preset, a run.yaml, a run directory or a Hugging Face folder")
    c.add_argument("--seq_len", type=int, default=2048, help="tokens in a sequence (2048)")


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
