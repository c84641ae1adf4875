"""The ranks of a start agree on a name, whatever killed ranks have left in the store that torchrun keeps."""

import contextlib
import random
import threading
import time
from datetime import timedelta

import pytest
import torch.distributed as dist

from yupana.train.meeting import name_of_start

PATIENCE = timedelta(seconds=20)


def start(store, ranks, count, rng):
    """What each of `ranks` takes for the name, when they come at different times; None where it is left waiting."""
    names = dict.fromkeys(ranks)

    def come(rank, after, patience):
        time.sleep(after)
        with contextlib.suppress(dist.DistStoreError):
            names[rank] = name_of_start(store, rank, count, patience)

    patience = PATIENCE if len(ranks) == count else timedelta(seconds=0.3)
    threads = [threading.Thread(target=come, args=(rank, rng.random() / 10, patience)) for rank in ranks]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return names


@pytest.mark.parametrize("missing", [[], [0], [2], [0, 1]])
def test_every_start_has_a_name_of_its_own(missing):
    """Four ranks, start after start on one store; before each, one in which some were killed before they had met."""
    store, rng, seen = dist.HashStore(), random.Random(7), set()
    for _ in range(4):
        if missing:
            start(store, [rank for rank in range(4) if rank not in missing], 4, rng)
        names = start(store, range(4), 4, rng)
        (name,) = set(names.values())
        assert name is not None
        assert name not in seen
        seen.add(name)


def test_a_rank_that_does_not_come_is_told():
    with pytest.raises(dist.DistStoreError, match="1 of 3 ranks came within 0 s"):
        name_of_start(dist.HashStore(), 0, 3, timedelta(seconds=0.1))
