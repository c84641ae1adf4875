"""One command on one machine: as many processes as it has accelerators, or as the layout asks for.

Started without a launcher, `yupana train` becomes one: torch's own elastic agent (what `torchrun --standalone` runs)
starts it again once a rank, and passes signals on. Nothing happens here where one process is enough.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from pathlib import Path

from yupana.config import Config
from yupana.errors import UserError
from yupana.flops.layout import check_layout, layout_of
from yupana.run import RunDirectory

GRACE_SECONDS = "120"  # from SIGTERM to SIGKILL: to finish a step and save


def launched(
    run: RunDirectory, preset: str | None, file: Path | None, overrides: Sequence[str], *, resume: bool
) -> int | None:
    """The exit code of the processes that were started, or None when this one is to train by itself.

    Raises UserError for what can be known to be wrong before they start.
    """
    from yupana.train.begin import chosen, goes_on
    from yupana.train.ranks import under_launcher

    if under_launcher():
        return None
    resume = goes_on(run, resume)
    config = chosen(run, preset, file, overrides, resume=resume)
    count = processes(config)
    if count == 1:
        return None
    parallel, train = config.parallel, config.train
    layout = layout_of(parallel.replicate, parallel.fsdp, parallel.cp, parallel.tp, count)
    check_layout(layout, config.model, config.data.seq_len, train.global_batch, train.micro_batch)
    return start(count)


def processes(config: Config) -> int:
    """How many ranks the layout means on this machine: all accelerators, or their product where fsdp is given."""
    import torch

    parallel = config.parallel
    asked = parallel.replicate * parallel.cp * parallel.tp
    cards = torch.cuda.device_count() if config.train.device != "cpu" else 0
    if parallel.fsdp == -1:
        return max(cards, asked)
    asked *= parallel.fsdp
    if cards and asked > cards:
        raise UserError(
            f"the layout (parallel) is one of {asked} ranks, but this machine has {cards} accelerators: leave parallel.fsdp "
            "at -1, which takes what there is, or start it on several machines with torchrun"
        )
    return asked


def start(count: int) -> int:
    """This same command in `count` processes; 2 where they found the user's input wrong."""
    from torch.distributed.elastic.multiprocessing import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // count)))
    os.environ.setdefault("TORCH_ELASTIC_SHUTDOWN_TIMEOUT", GRACE_SECONDS)
    config = LaunchConfig(
        min_nodes=1, max_nodes=1, nproc_per_node=count, rdzv_backend="c10d", rdzv_endpoint="localhost:0",
        run_id=str(os.getpid()), max_restarts=0, monitor_interval=0.1,
    )  # fmt: skip
    try:
        elastic_launch(config, sys.executable)("-m", "yupana", *sys.argv[1:])
    except ChildFailedError as failed:
        codes = {failure.exitcode for failure in failed.failures.values()}
        return 2 if codes == {2} else 1
    except SignalException:
        return 1
    return 0
