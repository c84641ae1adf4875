"""Worker: Hugging Face's `Trainer`, paused between requests by a callback.

    python benchmarks/peers/transformers_trainer.py JOB.json

`dtype` bf16-autocast, `compile` false and `optimizer` default are what a user gets from `TrainingArguments(bf16=True)`;
bf16, true and fused are its best settings on a CPU. Everything that is not training is off for both: logging,
evaluation, saving, reporting, the progress bar. Text comes in the file's order, as for the other workers.

A step lasts from the end of the one before it (or from the request) to its own end: batch, forward, backward, clip,
optimiser, scheduler.
"""

from __future__ import annotations

import os
import tempfile
import time
from typing import Any

import accelerate
import torch
import transformers
from huggingface import build
from protocol import BETAS, CLIP, WEIGHT_DECAY, Channel, Job, page_faults, read_job
from transformers import Trainer, TrainerCallback, TrainingArguments


class Sequences(torch.utils.data.Dataset):
    """Each sequence of the batches, in order."""

    def __init__(self, batches: torch.Tensor) -> None:
        self.ids = batches[:, :, :-1].flatten(0, 1).contiguous()  # [n_batches · batch, seq]

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        return {"input_ids": self.ids[index], "labels": self.ids[index]}


class LossKeepingTrainer(Trainer):
    """Trainer, with each step's loss kept: it tells nobody otherwise unless it logs."""

    def training_step(self, *args: Any, **kwargs: Any) -> torch.Tensor:
        """Trainer's own step."""
        self.last_loss = super().training_step(*args, **kwargs)
        return self.last_loss


class Pause(TrainerCallback):
    """Blocks training between requests and times the steps."""

    def __init__(self, channel: Channel, tokens_per_step: int) -> None:
        self.channel, self.tokens_per_step = channel, tokens_per_step
        self.trainer: LossKeepingTrainer | None = None  # known only once it exists

    def on_train_begin(self, *args: Any, **kwargs: Any) -> None:
        """Wait for the first request."""
        self._wait()

    def on_step_end(self, *args: Any, **kwargs: Any) -> None:
        """Take the time; after a request's last step answer and wait for the next."""
        now = time.perf_counter()
        self.seconds.append(now - self.since)
        self.losses.append(self.trainer.last_loss.item())
        self.since = now
        if len(self.seconds) == self.wanted:
            tokens = self.wanted * self.tokens_per_step
            self.channel.report(self.seconds, self.losses, tokens, page_faults() - self.faults)
            self._wait()

    def _wait(self) -> None:
        self.seconds: list[float] = []
        self.losses: list[float] = []
        wanted = self.channel.wait()
        if wanted is None:
            os._exit(0)  # Trainer has nothing to save
        self.wanted, self.faults, self.since = wanted, page_faults(), time.perf_counter()


def arguments(job: Job, batch: int) -> TrainingArguments:
    """Trainer's defaults, but for the job's settings and what is switched off."""
    tuned = {"optim": "adamw_torch_fused", "logging_nan_inf_filter": False} if job.optimizer == "fused" else {}
    return TrainingArguments(
        output_dir=tempfile.gettempdir() + "/yupana-benchmark-trainer",  # never written to
        bf16=job.dtype == "bf16-autocast",
        torch_compile=job.compile,
        per_device_train_batch_size=batch,
        learning_rate=job.lr,
        lr_scheduler_type="constant",
        adam_beta1=BETAS[0],
        adam_beta2=BETAS[1],
        weight_decay=WEIGHT_DECAY,
        max_grad_norm=CLIP,
        max_steps=1_000_000,
        train_sampling_strategy="sequential",
        seed=job.seed,
        use_cpu=job.device == "cpu",
        dataloader_pin_memory=job.device == "cuda",
        report_to="none",
        save_strategy="no",
        eval_strategy="no",
        logging_strategy="no",
        disable_tqdm=True,
        **tuned,
    )


def main() -> None:
    channel, job = Channel(), read_job()
    batches = torch.from_numpy(job.load_batches())
    _, batch, tokens = batches.shape
    model = build(job, tokens - 1)
    pause = Pause(channel, batch * (tokens - 1))
    trainer = LossKeepingTrainer(
        model=model, args=arguments(job, batch), train_dataset=Sequences(batches), callbacks=[pause]
    )
    pause.trainer = trainer
    versions = {
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "accelerate": accelerate.__version__,
        "optimizer": str(trainer.args.optim),
    }
    channel.ready("transformers Trainer", model.num_parameters(), versions)
    trainer.train()


if __name__ == "__main__":
    main()
