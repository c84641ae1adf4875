"""The check of an operation: hand-written passes against autograd through torch's own operations, and a difference.

A case is an operation with random inputs: `forward` and `backward` call the functions of this folder, `reference`
calls torch's (F.rms_norm, F.scaled_dot_product_attention, torch.optim.AdamW, …) on the same numbers.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass, replace

import torch
from torch import Tensor

from yupana.errors import UserError

TOLERANCE = 1e-10  # of a gradient, relative, in float64
DIFFERENCE_TOLERANCE = 1e-6  # of the derivative along one direction, from differences
SMALLEST = 1e-3  # the norm below which errors are absolute: some gradients are 0, such as dq of a lone token

Tensors = dict[str, Tensor]


@dataclass(frozen=True)
class Case:
    """An operation with its inputs."""

    inputs: Tensors
    """What gradients are taken of, by name."""
    forward: Callable[[Tensors], Tensor]
    """The hand-written forward pass."""
    reference: Callable[[Tensors], Tensor]
    """The same from torch's own operations."""
    backward: Callable[[Tensor, Tensors], Tensors] | None = None
    """The hand-written backward pass: the output's gradient and the inputs → the gradient of every input."""


@dataclass(frozen=True)
class Check:
    """One comparison."""

    name: str
    relative_error: float
    passed: bool


def run(case: Case, seed: int = 0) -> list[Check]:
    """The forward pass, every gradient, and a finite difference along a random direction.

    Raises UserError for inputs that are not float64.
    """
    must_be_float64(case.inputs)
    with torch.no_grad():
        ours = case.forward(case.inputs)
    leaves = {name: x.clone().requires_grad_() for name, x in case.inputs.items()}
    theirs = case.reference(leaves)
    checks = [_check("forward", ours, theirs.detach())]
    if case.backward is None:
        return checks
    generator = torch.Generator().manual_seed(seed)
    dy = torch.randn(ours.shape, generator=generator, dtype=ours.dtype)
    with torch.no_grad():
        gradients = case.backward(dy, case.inputs)
    expected = torch.autograd.grad(theirs, list(leaves.values()), dy)
    for name, gradient in zip(leaves, expected, strict=True):
        checks.append(_check(f"d{name}", gradients[name], gradient))
    return [*checks, difference(case, dy, gradients, generator)]


def difference(case: Case, dy: Tensor, gradients: Tensors, generator: torch.Generator, h: float = 5e-6) -> Check:
    """Σ gradient · direction against differences of f(s) = Σ dy ⊙ forward(x + s · direction).

    (8 (f(h) - f(-h)) - (f(2h) - f(-2h))) / 12h = f'(0) + O(h⁴): a norm of a short vector bends too much for O(h²).
    """
    directions = {n: torch.randn(x.shape, generator=generator, dtype=x.dtype) for n, x in case.inputs.items()}
    with torch.no_grad():
        f = {
            s: (dy * case.forward({n: x + s * h * directions[n] for n, x in case.inputs.items()})).sum()
            for s in (-2, -1, 1, 2)
        }
        slope = (8 * (f[1] - f[-1]) - (f[2] - f[-2])) / (12 * h)
        along = torch.stack([(gradients[n] * directions[n]).sum() for n in gradients]).sum()
        # What cancels in the sums sets the scale of the rounding, not what is left.
        scale = torch.stack([gradients[n].norm() * directions[n].norm() for n in gradients]).norm()
    error = (slope - along).abs() / scale.clamp_min(SMALLEST)
    return Check("finite difference", error.item(), error.item() < DIFFERENCE_TOLERANCE)


def must_be_float64(inputs: Tensors) -> None:
    """Raise UserError, saying why, for inputs of any other dtype."""
    for name, x in inputs.items():
        if x.dtype != torch.float64:
            rounding = torch.finfo(x.dtype).eps / 2
            kind = str(x.dtype).removeprefix("torch.")
            raise UserError(
                f"a gradient check needs float64, but {name} is {kind}: {kind} rounds every number by up to "
                f"{rounding:.1g} of itself, which would hide a wrong term as small as that; float64 rounds by 1e-16, "
                f"so agreement to {TOLERANCE:g} means that the formulas are the same"
            )


def _check(name: str, ours: Tensor, theirs: Tensor) -> Check:
    if ours.shape != theirs.shape:
        raise UserError(f"{name}: expected the shape {list(theirs.shape)}, got {list(ours.shape)}")
    error = relative_error(ours, theirs)
    return Check(name, error, error < TOLERANCE)


def relative_error(ours: Tensor, theirs: Tensor) -> float:
    """‖ours - theirs‖ / ‖theirs‖, absolute in units of SMALLEST where theirs is smaller than that."""
    return ((ours - theirs).norm() / theirs.norm().clamp_min(SMALLEST)).item()


def as_dicts(checks: list[Check]) -> list[dict[str, object]]:
    """For JSON."""
    return [asdict(check) for check in checks]


def in_dtype(case: Case, dtype: torch.dtype) -> Case:
    """The same case with its inputs rounded to `dtype`."""
    return replace(case, inputs={name: x.to(dtype) for name, x in case.inputs.items()})
