"""How the ranks of one start find each other, and nobody of an earlier one.

torchrun keeps one store for all its restarts, under the same keys: gloo and NCCL read there where the other ranks
listen, and after a restart they may read where a rank listened that has been killed since (pytorch issue 135712).
TORCHELASTIC_RESTART_COUNT tells the starts apart on one machine only: each machine counts its own failures. So the ranks
agree on a name themselves. Each leaves a word that nobody has used before; rank 0 answers every word that it finds,
with a word of its own; an answer to one's own word can only come from a rank 0 that lives now.
"""

from __future__ import annotations

import time
import uuid
from datetime import timedelta

import torch.distributed as dist

MEETING = timedelta(minutes=30)  # from the first rank's arrival to the last one's: machines start at different times
PAUSE_SECONDS = 0.02  # between two looks of rank 0


def meet() -> tuple[dist.Store, int, int]:
    """A store that the ranks of this start share and no other start has written to, this rank, and how many there are.

    Reads RANK, WORLD_SIZE, MASTER_ADDR and MASTER_PORT. Raises ValueError or dist.DistError (of which
    dist.DistStoreError, dist.DistNetworkError) when they do not meet.
    """
    store, rank, count = next(dist.rendezvous("env://", timeout=MEETING))
    return dist.PrefixStore(name_of_start(store, rank, count), store), rank, count


def name_of_start(store: dist.Store, rank: int, count: int, patience: timedelta = MEETING) -> str:
    """A name on which the `count` ranks that live now agree, whatever earlier ranks have left in `store`.

    Raises dist.DistStoreError when one of them does not come.
    """
    word = uuid.uuid4().hex
    if rank == 0:
        answer_all(store, word, count, patience)
        return word
    store.set(f"word/{rank}", word)
    store.wait([f"answer/{word}"], patience)
    name = store.get(f"answer/{word}").decode()
    store.add(f"met/{name}", 1)
    return name


def answer_all(store: dist.Store, word: str, count: int, patience: timedelta) -> None:
    """Answer every word, until all others have said that they have read an answer to their own."""
    answered, begun = set(), time.monotonic()
    while (met := store.add(f"met/{word}", 0)) < count - 1:
        if time.monotonic() - begun > patience.total_seconds():
            raise dist.DistStoreError(f"{met + 1} of {count} ranks came within {patience.total_seconds():.0f} s")
        for rank in range(1, count):
            if store.check([f"word/{rank}"]) and (other := store.get(f"word/{rank}").decode()) not in answered:
                store.set(f"answer/{other}", word)
                answered.add(other)
        time.sleep(PAUSE_SECONDS)
