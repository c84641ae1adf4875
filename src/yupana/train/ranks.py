"""This process among the others of a run: how they meet, agree and add up. Alone, every function is a plain call.

`torchrun` (or anything that sets RANK, WORLD_SIZE, MASTER_ADDR and MASTER_PORT) says how many there are; what each
does is the layout's matter (flops/layout.py). Rank 0 speaks for all: it holds the run directory and writes the metrics.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import sys
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh

from yupana.config import ParallelConfig
from yupana.errors import UserError
from yupana.flops.layout import Layout, layout_of
from yupana.train.meeting import meet

T = TypeVar("T")

MESH = ("replicate", "shards", "tp")
PATIENCE = timedelta(days=1)  # of a collective: rank 0 may prepare a corpus meanwhile; the watchdog is quicker in a step
PR_SET_PDEATHSIG = 1  # of sys/prctl.h


@dataclass(frozen=True)
class Ranks:
    """All processes of a run, seen from one of them."""

    rank: int = 0
    count: int = 1
    layout: Layout = field(default_factory=Layout)
    mesh: DeviceMesh | None = None
    """replicate × shards (fsdp and cp together) × tp, where there are several."""
    sequences: DeviceMesh | None = None
    """The ranks that share this one's sequences, where the layout has cp."""
    group: dist.ProcessGroup | None = None
    """Whom the functions below talk to: everyone, on the usual lines unless `apart`."""

    @property
    def first(self) -> bool:
        """Whether this one speaks for all."""
        return self.rank == 0

    @property
    def data_rank(self) -> int:
        """Which share of the batch is this one's, from 0 below layout.data."""
        return self.rank // (self.layout.tp * self.layout.cp)

    @property
    def shard_rank(self) -> int:
        """Which share of the weights."""
        return self.rank // self.layout.tp % self.layout.shards

    @property
    def cp_rank(self) -> int:
        """Which share of each sequence."""
        return self.rank // self.layout.tp % self.layout.cp

    @property
    def tp_rank(self) -> int:
        """Which share of each matrix product."""
        return self.rank % self.layout.tp

    def laid_out(self, parallel: ParallelConfig, device: str) -> Ranks:
        """The same ranks in the layout that the configuration asks for. Raises UserError when they don't fit."""
        layout = layout_of(parallel.replicate, parallel.fsdp, parallel.cp, parallel.tp, self.count)
        mesh, sequences = None, None
        if self.count > 1:
            mesh = init_device_mesh(device, (layout.replicate, layout.shards, layout.tp), mesh_dim_names=MESH)
        if layout.cp > 1:
            sizes = (layout.data, layout.cp, layout.tp)
            sequences = init_device_mesh(device, sizes, mesh_dim_names=("data", "cp", "tp"))["cp"]
        return Ranks(self.rank, self.count, layout, mesh, sequences)

    def apart(self) -> Ranks:
        """The same ranks on lines of their own, for a thread whose talk must not mix with the others'."""
        return replace(self, group=dist.new_group(backend="gloo")) if self.count > 1 else self

    def gather(self, value: T) -> list[T]:
        """What every rank gives, in their order, on every rank."""
        if self.count == 1:
            return [value]
        values: list[Any] = [None] * self.count
        dist.all_gather_object(values, value, self.group)
        return values

    def together(self, call: Callable[[], T]) -> T:
        """`call()` on every rank; a UserError on one is raised on all, so that nobody waits for one that has given up."""
        wrong, result = None, None
        try:
            result = call()
        except UserError as error:
            wrong = str(error)
        told = [text for text in self.gather(wrong) if text is not None]
        if told:
            raise UserError(told[0])
        return result  # type: ignore[return-value]

    def at_first(self, call: Callable[[], T]) -> T:
        """`call()` on rank 0 alone; its result on every rank. A UserError there is raised on all."""
        result = self.together(lambda: call() if self.first else None)
        return self.gather(result)[0]  # type: ignore[return-value]

    def summed(self, value: Tensor) -> Tensor:
        """The sum of what the ranks with tokens of their own give; those of a tp group give the same."""
        if self.count == 1:
            return value
        total = value.clone()
        dist.all_reduce(total, group=self.group)
        return total // self.layout.tp if not total.is_floating_point() else total / self.layout.tp

    def greatest(self, value: int) -> int:
        """The greatest of what the ranks give; the host alone is asked, no accelerator waits."""
        if self.count == 1:
            return value
        largest = torch.tensor(value)
        dist.all_reduce(largest, dist.ReduceOp.MAX, self.group)
        return int(largest)

    def barrier(self) -> None:
        """Wait until every rank is here."""
        self.greatest(0)

    def check_equal(self, what: dict[str, Any]) -> None:
        """Raise UserError, naming the first that differs, unless every rank gives the same values."""
        everyone = self.gather(what)
        for rank, other in enumerate(everyone):
            for key in {**everyone[0], **other}:
                if other.get(key) != everyone[0].get(key):
                    raise UserError(
                        f"rank {rank} has another {key} than rank 0 ({short(other.get(key))}, not "
                        f"{short(everyone[0].get(key))}): start every rank with the same settings and the same corpora"
                    )


def short(value: object) -> str:
    """A value in a sentence."""
    text = str(value)
    return text if len(text) <= 40 else f"{text[:37]}…"


def under_launcher() -> bool:
    """Whether torchrun, or something like it, has started this process."""
    return {"RANK", "WORLD_SIZE"} <= set(os.environ)


def speaks() -> bool:
    """Whether this process tells the user what is wrong: the only one, or the first."""
    return os.environ.get("RANK", "0") == "0"


def restarted() -> bool:
    """Whether the launcher has started this run again after a failure."""
    return int(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")) > 0


def lost_the_others(error: BaseException) -> bool:
    """Whether a collective failed because another rank is gone."""
    gone = ("closed by peer", "reset by peer", "Broken pipe", "Connection refused", "remote process exited")
    return under_launcher() and any(sign in str(error) for sign in gone)


@contextlib.contextmanager
def joined() -> Any:
    """The ranks that the launcher has started, until the block ends; one, when there is no launcher.

    Raises UserError when they cannot meet.
    """
    if not under_launcher() or int(os.environ["WORLD_SIZE"]) == 1:
        yield Ranks()
        return
    end_with_parent()
    cuda = torch.cuda.is_available()
    if cuda:
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")) % torch.cuda.device_count())
    try:
        store, rank, count = meet()
        store.set_timeout(PATIENCE)
        backend = "cpu:gloo,cuda:nccl" if cuda else "gloo"
        dist.init_process_group(backend, store=store, rank=rank, world_size=count, timeout=PATIENCE)
    except (ValueError, dist.DistNetworkError, dist.DistStoreError) as error:
        where = f"{os.environ.get('MASTER_ADDR')}:{os.environ.get('MASTER_PORT')}"
        raise UserError(
            f"the ranks cannot meet at {where} ({' '.join(str(error).split())[:200]}): is the port in use, or another "
            "machine's? start them with torchrun, which chooses one"
        ) from error
    yield Ranks(dist.get_rank(), dist.get_world_size())
    dist.barrier()  # not reached after a failure: the others may be gone, and leaving is enough
    dist.destroy_process_group()


def end_with_parent() -> None:
    """Have this process asked to stop (SIGTERM) when its launcher is gone, however that ended: no orphan trains on."""
    if sys.platform.startswith("linux"):
        with contextlib.suppress(OSError, AttributeError):
            ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
