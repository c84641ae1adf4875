"""What the ranks of test_parallel.py do, started by torchrun: a list of tasks, each by its name.

python -m torch.distributed.run --standalone --nproc-per-node N tests/parallel_worker.py TASKS.json ANSWERS.json
"""

import json
import sys
from pathlib import Path

import torch
from torch.distributed.tensor.debug import CommDebugMode
from torch.utils._python_dispatch import TorchDispatchMode

from yupana import config as settings
from yupana.errors import UserError
from yupana.run import RunDirectory
from yupana.train import checkpoint, loop
from yupana.train.begin import open_everywhere, open_mixture
from yupana.train.ranks import joined
from yupana.train.session import build_model, prepare
from yupana.train.shares import segments, whole_sizes


def train(task, ranks):
    """A run, or its continuation; its metrics lie in the run directory."""
    config = settings.load(None, None, task["settings"])
    run, mixture = RunDirectory(task["run"]), open_mixture(config)
    for _ in loop.train(config, run, mixture, resume=task.get("resume", False), ranks=ranks):
        pass


def save_again(task, ranks):
    """Load the last checkpoint in this layout and save it as another step, without training."""
    config = settings.load(None, None, task["settings"])
    session = prepare(config, RunDirectory(task["run"]), open_mixture(config), resume=True, ranks=ranks)
    loop.save(session, session.start + 1, None, 0.0)


class Counted(CommDebugMode):
    """torch's own counter of collectives, that also adds up their bytes."""

    KINDS = {  # noqa: RUF012 - operator: (collective, which argument is the whole tensor, times its bytes)
        "c10d::_allgather_base_": ("all_gather", 0),
        "c10d::_reduce_scatter_base_": ("reduce_scatter", 1),
        "c10d::allreduce_": ("all_reduce", 0),
        "_c10d_functional::all_gather_into_tensor": ("all_gather", 0),
        "_c10d_functional::reduce_scatter_tensor": ("reduce_scatter", 0),
        "_c10d_functional::all_reduce": ("all_reduce", 0),
    }

    def __init__(self):
        super().__init__()
        self.found = {}

    def __enter__(self):
        """Without torch's tracking of modules, which loses its way where FSDP wraps a method that is not forward."""
        self.comm_counts.clear()
        self.advanced_module_tracker.module_parents_dict[self.advanced_module_tracker.name] = set()
        return TorchDispatchMode.__enter__(self)

    def __exit__(self, *error):
        """As __enter__."""
        TorchDispatchMode.__exit__(self, *error)

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = super().__torch_dispatch__(func, types, args, kwargs)
        if out is not NotImplemented and func._schema.name in self.KINDS:
            name, position = self.KINDS[func._schema.name]
            tensor = args[position][0] if isinstance(args[position], list) else args[position]
            many = args[1] if func._schema.name == "_c10d_functional::all_gather_into_tensor" else 1
            count, size = self.found.get(name, (0, 0))
            self.found[name] = (count + 1, size + many * tensor.numel() * tensor.element_size())
        return out


def step(task, ranks):
    """Of one step: {collective: (count, bytes)}, torch's own count, and the largest relative error of any gradient."""
    config = settings.load(None, None, task["settings"])
    session = prepare(config, RunDirectory(task["run"]), open_mixture(config), resume=False, ranks=ranks)
    loop.held_out_loss(session)  # torch makes no causal mask while it counts: it must be there already
    with Counted() as counted:
        loop.forward_backward(session, loop.read_batch(session, 0))
    worst = max(ranks.gather(gradient_error(config, session))) if session.precision == "fp32" else 0.0
    total = counted.get_total_counts()
    with counted:
        session.optimizer.step(0, 1e-3)
        session.ranks.greatest(0)
    return [counted.found, total + counted.get_total_counts(), worst]


def gradient_error(config, session):
    """The largest relative error of this rank's gradients, against the plain model's on the whole batch."""
    plain = build_model(config, "cpu", "fp32")
    batch = session.batches.batch(0)
    logits = plain(torch.from_numpy(batch.tokens)).flatten(0, 1)
    torch.nn.functional.cross_entropy(logits, torch.from_numpy(batch.targets).flatten()).backward()
    sizes, worst = whole_sizes(config.model), 0.0
    for name, parameter in plain.named_parameters():
        here = session.optimizer.updated[name].grad
        for part in segments(name, sizes[name], config.model, session.ranks):
            expected = parameter.grad[part.in_parameter : part.in_parameter + part.rows]
            if here.ndim == 2 and here.shape[1] != expected.shape[1]:
                expected = expected[:, session.ranks.tp_rank * here.shape[1] :][:, : here.shape[1]]
            if part.rows:
                found = here[part.in_part : part.in_part + part.rows]
                worst = max(worst, float((found - expected).norm() / parameter.grad.norm()))
    return worst


def differing(task, ranks):
    """The sentence with which ranks of different settings refuse to begin."""
    config = settings.load(None, None, [*task["settings"], *task["by_rank"][ranks.rank]])
    try:
        open_everywhere(config, ranks)
    except UserError as error:
        return str(error)
    return "nothing"


def refused(task, ranks):
    """What each rank says to a configuration that cannot be made ready."""
    config = settings.load(None, None, task["settings"])
    try:
        prepare(config, RunDirectory(task["run"]), open_mixture(config), resume=False, ranks=ranks)
        told = "nothing"
    except UserError as error:
        told = str(error)
    return ranks.gather(told)


def broken_disk(task, ranks):
    """One rank cannot write its part of a checkpoint: all say so, and the one before stays."""
    config = settings.load(None, None, task["settings"])
    session = prepare(config, RunDirectory(task["run"]), open_mixture(config), resume=True, ranks=ranks)
    whole = checkpoint._write_tensors

    def full(*arguments):
        if ranks.rank == 1:
            raise OSError(28, "No space left on device")
        return None

    checkpoint._write_tensors = full
    try:
        loop.save(session, session.start + 1, None, 0.0)
        told = "nothing"
    except UserError as error:
        told = str(error)
    finally:
        checkpoint._write_tensors = whole
    return ranks.gather(told)


TASKS = {f.__name__: f for f in (train, save_again, step, differing, refused, broken_disk)}


def main():
    """Do the tasks in order; rank 0 writes the answers."""
    tasks = json.loads(Path(sys.argv[1]).read_text())
    for task in tasks:
        Path(task.get("run", ".")).mkdir(parents=True, exist_ok=True)
    with joined() as ranks:
        answers = [TASKS[task["do"]](task, ranks) for task in tasks]
        if ranks.first:
            Path(sys.argv[2]).write_text(json.dumps(answers))


if __name__ == "__main__":
    main()
