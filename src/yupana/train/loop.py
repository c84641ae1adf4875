"""The training loop: batch, forward, backward, clip, step, log. Everything else stands around it."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Generator
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import Tensor

from yupana.config import Config
from yupana.corpus.batches import Batch, validation_batches
from yupana.corpus.mixture import Mixture
from yupana.run import RunDirectory
from yupana.train import checkpoint, parallel
from yupana.train.context import cut
from yupana.train.evaluate import Evaluation, HeldOut, dealt, evaluate
from yupana.train.health import Health
from yupana.train.interrupt import SIGNALS, Interrupted, Interruption
from yupana.train.loss import IGNORED
from yupana.train.pace import rank_seconds
from yupana.train.prefetch import Prefetch
from yupana.train.progress import Progress
from yupana.train.ranks import Ranks
from yupana.train.recorder import Recorder
from yupana.train.sample import sample_held_out
from yupana.train.schedule import learning_rate
from yupana.train.session import Session, identity, prepare, state
from yupana.train.shares import ALONE
from yupana.train.trackers import Trackers
from yupana.train.watchdog import Watchdog

MicroBatch = tuple[Tensor, Tensor, Tensor | None]  # tokens, targets and document ids, each [batch, seq]


def train(
    config: Config, run: RunDirectory, mixture: Mixture, *, resume: bool, ranks: Ranks = ALONE
) -> Generator[dict[str, Any], None, dict[str, Any]]:
    """Train `config` in `run` (locked by the caller): yields the last line of metrics after every step.

    Every rank does it together. Returns the last line of metrics with the validation loss. Raises UserError for input
    that does not fit, for a loss that is not finite, and Interrupted for a signal.
    """
    session = prepare(config, run, mixture, resume=resume, ranks=ranks)
    ranks = session.ranks
    with (
        Interruption(patient=ranks.count > 1) as interruption,
        Watchdog(ranks, config.parallel.timeout) as watchdog,
        session.saver,
        Progress(session) as progress,
        Trackers(config, run, active=ranks.first) as trackers,
        Prefetch(functools.partial(read_batch, session), config.total_steps, config.fast.overlap) as batches,
    ):
        recorder = Recorder(session, progress, trackers)
        if session.start == 0:
            recorder.evaluated(0, held_out_loss(session))
        for step in range(session.start, config.total_steps):
            lr = learning_rate(step, config.total_steps, config.optim)
            loss = forward_backward(session, batches(step))
            every = config.log.anatomy_every
            health = Health(session.model, session.optimizer) if every and (step + 1) % every == 0 else None
            grad_norm = session.optimizer.step(step, lr)
            if health is not None:
                recorder.examined(step + 1, health.figures(*one_sequence(session, step)))
            recorder.stepped(step + 1, loss, grad_norm, lr)

            done, last = step + 1, step + 1 == config.total_steps
            asked = ranks.greatest(interruption.asked)  # a signal to one stops all, after the same step
            watchdog.seen(f"step {done} of {config.total_steps}")
            saving = config.checkpoint.every > 0 and (done % config.checkpoint.every == 0 or last)
            validation = None
            if done % config.log.eval_every == 0 or saving or last:
                recorder.flush()
                validation = recorder.evaluated(done, held_out_loss(session), rank_seconds(session))
                batches.tidy()
                watchdog.seen(f"the evaluation after step {done}")
            if saving or asked:
                recorder.flush()
                save(session, done, validation, recorder.seconds)
                if config.log.samples:
                    recorder.sampled(done, ranks.at_first(functools.partial(sample_held_out, run.path)))
                recorder.paused(done)
                watchdog.seen(f"the checkpoint of step {done}")
            if asked and not last:
                raise Interrupted(
                    f"{SIGNALS[asked]}: saved at step {done} of {config.total_steps}; "
                    f"go on with: yupana train --run {run.path} --resume"
                )
            yield recorder.last
        return recorder.summary()


def read_batch(session: Session, step: int) -> list[MicroBatch]:
    """This rank's share of global batch `step` in micro-batches, on its way to the device."""
    mine, rows = session.rows, session.micro_batch
    starts = range(mine.start, mine.stop, rows)
    parts = [session.batches.batch(step, rows=range(start, start + rows)) for start in starts]
    return [on_device(cut(part, session.ranks), session.device) for part in parts]


def forward_backward(session: Session, parts: list[MicroBatch]) -> Tensor:
    """The mean loss of a global batch in nats a token; its gradients are with the optimiser.

    `parts` are this rank's micro-batches; the loss is that of all ranks.
    """
    predicted = session.ranks.summed(torch.stack([(targets != IGNORED).sum() for _, targets, _ in parts]).sum())
    scale = 1.0 / predicted.clamp_min(1).float()
    losses = []
    for tokens, targets, documents in parts:
        with autocast(session):
            hidden = session.model.hidden(tokens, documents).flatten(0, 1)
            loss = session.loss_function(hidden, session.model.output_weight, targets.flatten(), scale)
        loss.backward()
        session.optimizer.collect()
        losses.append(loss.detach())
    return session.ranks.summed(torch.stack(losses).sum())


def one_sequence(session: Session, step: int) -> tuple[Tensor, Tensor | None]:
    """The first sequence of global batch `step`: tokens and document ids, each [1, seq]."""
    tokens, _, documents = on_device(session.batches.batch(step, rows=range(1)), session.device)
    return tokens, documents


def on_device(batch: Batch, device: str) -> MicroBatch:
    """Tokens, targets and document ids of a batch."""
    arrays = (batch.tokens, batch.targets, batch.document_ids)
    tokens, targets, documents = (None if a is None else _to(torch.from_numpy(a), device) for a in arrays)
    assert tokens is not None
    assert targets is not None
    return tokens, targets, documents


def autocast(session: Session) -> AbstractContextManager[Any]:
    """bf16 autocast where that is the precision, otherwise nothing."""
    if session.precision == "bf16-autocast":
        return torch.autocast(session.device, dtype=torch.bfloat16)
    return contextlib.nullcontext()


def held_out_loss(session: Session) -> HeldOut:
    """The loss on the first windows of each source's held-out documents; log.eval_tokens in all."""
    config, rows = session.config, session.micro_batch
    tokens = config.log.eval_tokens // len(session.mixture.sources)
    found, ranks = {}, session.ranks
    for name, corpus in session.mixture.sources.items():
        batches = validation_batches(corpus, config.data.seq_len, rows, tokens, packing=config.data.packing)
        mine = (cut(batch, ranks) for batch in dealt(batches, ranks.data_rank, ranks.layout.data))
        with autocast(session):
            own = evaluate(session.model, mine, corpus.token_bytes, rows, session.device, session.summed_loss)
        parallel.rest(session.model)
        sums = ranks.summed(torch.tensor([own.nats, own.tokens, own.bytes], dtype=torch.float64))
        found[name] = Evaluation(sums[0].item(), round(sums[1].item()), round(sums[2].item()))
    end = config.total_steps * config.train.global_batch * config.data.seq_len
    return HeldOut(found, session.mixture.shares(end))


def save(session: Session, step: int, validation: HeldOut | None, seconds: float) -> None:
    """Save checkpoint `step` and drop those no longer kept."""
    about = {
        "tokens": step * session.config.train.global_batch * session.config.data.seq_len,
        "seconds": round(seconds, 3),
        "val_loss": validation.loss if validation else None,
        "precision": session.precision,
        **checkpoint.about_model(session.model),
        **identity(session.config, session.mixture),
    }
    session.saver.save(step, state(session), about)


def _to(tensor: Tensor, device: str) -> Tensor:
    return tensor if device == "cpu" else tensor.pin_memory().to(device, non_blocking=True)
