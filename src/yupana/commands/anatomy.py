"""`yupana anatomy [OP]`: an operation's formulas, cost and check; or where the whole step's time goes."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from yupana.commands.shared import add_command, print_result
from yupana.errors import UserError, did_you_mean

if TYPE_CHECKING:
    from yupana.flops.bound import Machine
    from yupana.flops.operations import Operation
    from yupana.model.shapes import ModelShape


def register(commands: Any) -> None:
    """Add the command."""
    c = add_command(commands, "anatomy", anatomy, "an operation's formulas, cost and check; or the whole step")
    c.add_argument("op", metavar="OP", nargs="?", help="embedding, rmsnorm, attention, …; without it the whole step")
    c.add_argument("--model", default="llama3.2-1b", help="preset, run.yaml, run or Hugging Face folder (llama3.2-1b)")
    c.add_argument("--seq_len", type=int, default=2048, help="tokens in a sequence (2048)")
    c.add_argument("--batch", type=int, default=1, help="sequences (1)")
    c.add_argument("--dtype", default="float64", help="of the check's inputs; anything else is refused, with the reason")
    c.add_argument("--save", type=Path, metavar="PNG", help="draw the whole step")


def anatomy(arguments: argparse.Namespace) -> int:
    """`yupana anatomy`: exit code 1 when a check fails."""
    from yupana.flops.bound import this_machine
    from yupana.named import shape_of

    for name in ("seq_len", "batch"):
        if getattr(arguments, name) < 1:
            raise UserError(f"--{name} must be at least 1, got {getattr(arguments, name)}")
    shape = shape_of(arguments.model)
    if arguments.op is None and arguments.dtype != "float64":
        raise UserError("--dtype is of an operation's check: name the operation")
    if arguments.op is None:
        return whole_step(arguments, shape)
    if arguments.save:
        raise UserError("--save draws the whole step: leave out the operation")
    checks = run_checks(arguments.op, arguments.dtype)
    return one_operation(arguments, shape, this_machine(), checks)


def run_checks(op: str, dtype: str) -> list[dict[str, Any]]:
    """The operation's checks, run now. Raises UserError for an unknown operation or any dtype but float64."""
    import torch

    from yupana.anatomy import checks
    from yupana.anatomy.cases import CASES
    from yupana.anatomy.sizes import Sizes

    if op not in CASES:
        raise UserError(f"there is no operation '{op}'{did_you_mean(op, CASES)}: the operations are {', '.join(CASES)}")
    kinds = {"float64": torch.float64, "float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
    if dtype not in kinds:
        raise UserError(f"--dtype must be one of {', '.join(kinds)}, got {dtype}{did_you_mean(dtype, kinds)}")
    return checks.as_dicts(checks.run(checks.in_dtype(CASES[op](Sizes()), kinds[dtype])))


def one_operation(
    arguments: argparse.Namespace, shape: ModelShape, machine: Machine, checks: list[dict[str, Any]]
) -> int:
    """Formulas, cost and check of one operation."""
    import importlib

    from yupana.flops.by_name import operations_of
    from yupana.report.anatomy_text import operation_text

    found = operations_of(arguments.op, shape, arguments.batch, arguments.seq_len, machine.sizes)
    formulas = importlib.import_module(f"yupana.anatomy.{arguments.op}").__doc__
    result = {
        "operation": arguments.op,
        **setting(arguments, machine),
        **totals(found, machine),
        "parts": [cost(o, machine) for o in found],
        "checks": checks,
    }
    print_result(arguments, result, operation_text(result, str(formulas), shape))
    return 0 if all(check["passed"] for check in checks) else 1


def whole_step(arguments: argparse.Namespace, shape: ModelShape) -> int:
    """Every operation of a training step, with its share of FLOPs, bytes and predicted time."""
    from yupana.flops.bound import this_machine
    from yupana.flops.operations import step_operations
    from yupana.report.anatomy_text import step_text

    if arguments.save:
        from yupana.report.anatomy_plot import check_target

        check_target(arguments.save)
    machine = this_machine()
    step = step_operations(shape, arguments.batch, arguments.seq_len, machine.sizes)
    result = {
        **setting(arguments, machine),
        **totals(step, machine),
        "operations": [cost(o, machine) for o in step],
    }
    for name in ("flops", "bytes", "seconds"):
        for row in result["operations"]:
            row[f"{name}_share"] = row[name] / result[name]
    if arguments.save:
        from yupana.report.anatomy_plot import save_step

        save_step(result, arguments.save)
    print_result(arguments, result, step_text(result))
    return 0


def setting(arguments: argparse.Namespace, machine: Machine) -> dict[str, Any]:
    """What the figures are of, and the machine they are for."""
    return {
        "model": arguments.model,
        "seq_len": arguments.seq_len,
        "batch": arguments.batch,
        "device": machine.device,
        "dtype": machine.dtype,
        "flops_per_second": machine.flops_per_second,
        "bytes_per_second": machine.bytes_per_second,
        "rates_source": machine.source,
        "balance": machine.balance,
    }


def totals(found: list[Operation], machine: Machine) -> dict[str, Any]:
    """FLOPs, bytes and least seconds of some operations together."""
    return {
        "flops": sum(o.flops for o in found),
        "bytes": sum(o.bytes for o in found),
        "elementwise": sum(o.elementwise for o in found),
        "seconds": sum(machine.step_seconds(o) for o in found),
    }


def cost(operation: Operation, machine: Machine) -> dict[str, Any]:
    """One operation's cost, all `count` of it."""
    o = operation
    first = o.forward.products[0] if o.forward.products else None
    return {
        "name": o.name,
        "part": o.part,
        "count": o.count,
        "d_in": first.k if first else None,
        "d_out": first.n if first else None,
        "forward": {"flops": o.count * o.forward.flops, "bytes": o.count * o.forward.bytes},
        "backward": {"flops": o.count * o.backward.flops, "bytes": o.count * o.backward.bytes},
        "flops": o.flops,
        "bytes": o.bytes,
        "elementwise": o.elementwise,
        "intensity": o.flops / o.bytes,
        "bound": machine.bound(o),
        "seconds": machine.step_seconds(o),
    }
