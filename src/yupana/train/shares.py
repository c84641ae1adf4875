"""Which part of each parameter a rank holds, and the names and places of those parts in a checkpoint.

A checkpoint knows no layout: it holds each matrix whole, in as many pieces as ranks wrote it, and Q, K, V, gate and up
under names of their own, since tensor parallelism cuts each of them and not the fused matrices. So any layout reads
what any other wrote.

Tensor parallelism comes first: the rows of embedding, head, Q, K, V, gate and up, or the columns of wo and w_down, in
equal shares. Then FSDP: the rows of what is left, in shares of ⌈rows / shards⌉, as torch cuts them; the last may be
short or empty.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.distributed.checkpoint.default_planner import DefaultLoadPlanner, DefaultSavePlanner
from torch.distributed.checkpoint.metadata import ChunkStorageMetadata, MetadataIndex, TensorProperties
from torch.distributed.checkpoint.planner import TensorWriteData, WriteItem, WriteItemType
from torch.distributed.tensor import DTensor

from yupana.model.llama import Llama
from yupana.model.shapes import ModelShape
from yupana.train.ranks import Ranks

ALONE = Ranks()


@dataclass(frozen=True)
class Segment:
    """Rows of a parameter that follow each other both in the whole and in this rank's part of it."""

    matrix: str
    """Name of the matrix they belong to, in a checkpoint."""
    rows: int
    matrix_rows: int
    """Of the whole matrix."""
    in_part: int
    """The first row in this rank's part of the parameter."""
    in_parameter: int
    """The first row in the whole parameter."""
    in_matrix: int
    """The first row in the whole matrix."""


@dataclass(frozen=True)
class Share:
    """A rank's part of a matrix, as torch's DCP wants to see it."""

    whole: tuple[int, ...]
    """Size of the whole matrix."""
    offset: tuple[int, ...]
    """Where the part begins in it."""
    tensor: Tensor
    """The part itself; reading a checkpoint fills it."""

    def __create_write_items__(self, name: str, _: object) -> list[WriteItem]:
        if not self.tensor.numel():
            return []
        return [
            WriteItem(
                MetadataIndex(name, torch.Size(self.offset)),
                WriteItemType.SHARD,
                tensor_data=TensorWriteData(
                    self.chunk, TensorProperties.create_from_tensor(self.tensor), torch.Size(self.whole)
                ),
            )
        ]

    def __create_chunk_list__(self) -> list[ChunkStorageMetadata]:
        return [self.chunk] if self.tensor.numel() else []

    @property
    def chunk(self) -> ChunkStorageMetadata:
        """Place and size of the part."""
        return ChunkStorageMetadata(torch.Size(self.offset), self.tensor.size())


class SavePlanner(DefaultSavePlanner):
    """DCP's, that finds a share's tensor."""

    def lookup_object(self, index: MetadataIndex) -> Tensor:
        """What is written under this name."""
        return self.state_dict[index.fqn].tensor


class LoadPlanner(DefaultLoadPlanner):
    """DCP's, that finds a share's tensor."""

    def set_up_planner(self, state_dict: Any, metadata: Any = None, is_coordinator: bool = False) -> None:
        """As it is: DCP's own would put None in the place of what is no tensor."""
        self.state_dict = self.original_state_dict = state_dict
        self.metadata, self.is_coordinator, self.mappings = metadata, is_coordinator, {}

    def lookup_tensor(self, index: MetadataIndex) -> Tensor:
        """What is read into under this name."""
        return self.state_dict[index.fqn].tensor


def local(tensor: Tensor) -> Tensor:
    """What this process holds of a tensor, without its history: the same memory, so that writing to it counts."""
    return (tensor.to_local() if isinstance(tensor, DTensor) else tensor).detach()


def whole_sizes(shape: ModelShape) -> dict[str, tuple[int, ...]]:
    """Size of each parameter of the plain model, by name."""
    with torch.device("meta"):
        return {name: tuple(parameter.shape) for name, parameter in Llama(shape).named_parameters()}


def shares(tensors: dict[str, Tensor], shape: ModelShape, ranks: Ranks = ALONE) -> dict[str, Share]:
    """What a checkpoint holds of `tensors`: this rank's parts of parameters, or of what goes with them.

    A name is a prefix and a parameter's name, such as "optimizer.exp_avg.layers.0.attention.wo.weight".
    """
    sizes, found = whole_sizes(shape), {}
    for name, tensor in tensors.items():
        parameter = next(known for known in sizes if name.endswith(f".{known}"))
        prefix = name.removesuffix(parameter)
        column = first_column(parameter, sizes[parameter], ranks)
        for segment in segments(parameter, sizes[parameter], shape, ranks):
            part = tensor[segment.in_part : segment.in_part + segment.rows]
            found[prefix + segment.matrix] = Share(
                (segment.matrix_rows, *sizes[parameter][1:]), (segment.in_matrix, *column), part
            )
    return found


def segments(name: str, size: tuple[int, ...], shape: ModelShape, ranks: Ranks) -> list[Segment]:
    """Where this rank's part of parameter `name` lies; a matrix of which it has nothing has a segment of no rows."""
    tp = ranks.layout.tp if cut_by_rows(name) else 1
    index = ranks.tp_rank if cut_by_rows(name) else 0
    stacked = list(matrices(name, size[0], shape))
    rows = sum(n for _, n in stacked) // tp  # of the part that FSDP cuts
    chunk = -(-rows // ranks.layout.shards)
    low = min(rows, ranks.shard_rank * chunk)
    high = min(rows, low + chunk)
    found, here, above = [], 0, 0
    for matrix, n in stacked:
        share = n // tp
        first, last = max(low, here), min(high, here + share)
        inside = index * share + (first - here)
        count = max(0, last - first)
        if not count:
            first, inside = low, 0
        found.append(Segment(matrix, count, n, first - low, above + inside, inside))
        here, above = here + share, above + n
    return found


def matrices(name: str, rows: int, shape: ModelShape) -> Iterator[tuple[str, int]]:
    """Names and rows of the matrices stacked in a parameter: its own, or those that one product does together."""
    if name.endswith("wqkv.weight"):
        for letter, width in (("q", shape.q_width), ("k", shape.kv_width), ("v", shape.kv_width)):
            yield name.replace("wqkv", f"w{letter}"), width
    elif name.endswith("w_gate_up.weight"):
        for part in ("gate", "up"):
            yield name.replace("w_gate_up", f"w_{part}"), shape.d_ff
    else:
        yield name, rows


def cut_by_rows(name: str) -> bool:
    """Whether tensor parallelism cuts this parameter's rows (outputs)."""
    return not cut_by_columns(name) and not name.endswith("norm.weight")


def cut_by_columns(name: str) -> bool:
    """Whether tensor parallelism cuts this parameter's columns (inputs)."""
    return name.endswith(("wo.weight", "w_down.weight"))


def first_column(name: str, size: tuple[int, ...], ranks: Ranks) -> tuple[int, ...]:
    """Where this rank's columns begin: (column,) for a matrix, () for a vector."""
    if cut_by_columns(name):
        return (ranks.tp_rank * (size[1] // ranks.layout.tp),)
    return (0,) * (len(size) - 1)
