"""Refusing tensors that do not fit together, in one sentence."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from yupana.errors import UserError


def must_be(operation: str, dimension: str, expected: int, found: int) -> None:
    """Raise UserError naming the dimension unless `found` is `expected`."""
    if found != expected:
        raise UserError(f"{operation}: {dimension} must be {expected}, got {found}")


def must_have(operation: str, name: str, tensor: Tensor, dimensions: Sequence[str], sizes: Sequence[int | None]) -> None:
    """Raise UserError unless `tensor` has these named dimensions, each of its size (None: any)."""
    wanted = "[" + ", ".join(dimensions) + "]"
    if tensor.ndim != len(dimensions):
        raise UserError(
            f"{operation}: {name} must have {len(dimensions)} dimensions {wanted}, got {tensor.ndim}: "
            f"{list(tensor.shape)}"
        )
    for dimension, expected, found in zip(dimensions, sizes, tensor.shape, strict=True):
        if expected is not None and found != expected:
            raise UserError(
                f"{operation}: dimension {dimension} of {name} {wanted} must be {expected}, got {found}: "
                f"{list(tensor.shape)}"
            )


def must_index(operation: str, name: str, ids: Tensor, limit: int, what: str) -> None:
    """Raise UserError unless every id lies in [0, limit)."""
    if ids.numel() and not (int(ids.min()) >= 0 and int(ids.max()) < limit):
        raise UserError(
            f"{operation}: {name} must lie in [0, {limit}), the {what}, got {int(ids.min())} to {int(ids.max())}"
        )
