"""TRL's trainers with what yupana adds: a held-out loss that weighs every token alike, and a run directory."""

from __future__ import annotations

import math
import time
from typing import Any

import numpy as np
import torch
from torch.nn import functional
from transformers import TrainerCallback
from trl import DPOConfig, DPOTrainer, SFTConfig, SFTTrainer

from yupana.corpus.tokenizers import token_bytes
from yupana.errors import UserError
from yupana.run import RunDirectory
from yupana.train.trackers import Trackers
from yupana.tune.callback import YupanaCallback
from yupana.tune.config import Tuning
from yupana.tune.conversations import Preference
from yupana.tune.data import Data
from yupana.tune.template import IGNORED, Tokens


def build(
    config: Tuning, run: RunDirectory, model: Any, tokenizer: Any, data: Data, device: str, precision: str
) -> SFTTrainer | DPOTrainer:
    """The trainer of the method, with every setting that matters said out loud: libraries change their defaults."""
    settings = {
        "output_dir": str(run.checkpoints),
        "max_steps": config.train.steps or -1,
        "num_train_epochs": config.train.epochs,
        "per_device_train_batch_size": config.train.micro_batch,
        "per_device_eval_batch_size": config.train.micro_batch,
        "gradient_accumulation_steps": config.train.global_batch // config.train.micro_batch,
        "gradient_checkpointing": config.train.recompute,
        "bf16": precision == "bf16-autocast",
        "use_cpu": device == "cpu",
        "seed": config.train.seed,
        "data_seed": config.data.seed,
        "learning_rate": config.lr,
        "weight_decay": config.optim.weight_decay,
        "max_grad_norm": config.optim.clip,
        "lr_scheduler_type": config.optim.schedule if config.optim.schedule != "constant" else "constant_with_warmup",
        "warmup_steps": config.optim.warmup_share,  # below 1 it is a share
        "logging_steps": config.log.every,
        "logging_first_step": True,
        "logging_nan_inf_filter": False,  # it would show the mean of the losses before in place of one that is not finite
        "eval_strategy": "steps",
        "eval_steps": config.log.eval_every,
        "eval_on_start": True,
        "save_strategy": "steps" if config.checkpoint.every else "no",
        "save_steps": config.checkpoint.every or 500,
        "save_total_limit": config.checkpoint.keep,
        "report_to": [],  # RunRecorder sends to yupana's own trackers, under its own names
        "run_name": run.path.name,
        "dataloader_pin_memory": device == "cuda",
    }
    if config.train.method == "dpo":
        arguments = DPOConfig(beta=config.dpo.beta, max_length=config.data.seq_len, **settings)
        return DPOTrainer(
            model,
            args=arguments,
            train_dataset=_pairs(data.train_pairs),
            eval_dataset=_pairs(data.held_out_pairs),
            processing_class=tokenizer,
        )
    arguments = SFTConfig(max_length=config.data.seq_len, packing=config.data.packing, eval_packing=False, **settings)
    trainer = AssistantTrainer(
        model,
        args=arguments,
        train_dataset=_dataset(data.train),
        eval_dataset=_dataset(data.held_out),
        processing_class=tokenizer,
    )
    trainer.held_out, trainer.token_bytes = data.held_out, token_bytes(tokenizer.backend_tokenizer)
    return trainer


class AssistantTrainer(SFTTrainer):
    """SFTTrainer whose evaluation is the mean over all held-out assistant tokens.

    The library's own `eval_loss` is a mean of batch means, in which a token of a short answer weighs more.
    """

    held_out: list[Tokens]
    token_bytes: np.ndarray
    control: Any

    def evaluate(self, *_: Any, metric_key_prefix: str = "eval", **__: Any) -> dict[str, float]:
        """`eval_loss` in nats an assistant token, `eval_bpb` in bits a byte of what the assistant says."""
        nats, tokens, read = held_out_sums(self.model, self.held_out, self.token_bytes)
        metrics = {
            f"{metric_key_prefix}_loss": nats / tokens,
            f"{metric_key_prefix}_bpb": nats / math.log(2) / max(read, 1),
            f"{metric_key_prefix}_tokens": tokens,
        }
        self.log(metrics)
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        return metrics


@torch.no_grad()
def held_out_sums(model: Any, held_out: list[Tokens], token_bytes: np.ndarray) -> tuple[float, int, int]:
    """Nats, tokens and bytes of all labelled tokens, a conversation at a time."""
    was_training = model.training
    model.eval()
    device = next(model.parameters()).device
    nats, tokens, read = 0.0, 0, 0
    for conversation in held_out:
        ids = torch.tensor([conversation.ids], device=device)
        targets = torch.tensor(conversation.labels[1:], device=device)
        logits = model(input_ids=ids).logits[0, :-1]
        labelled = targets != IGNORED
        nats += functional.cross_entropy(logits[labelled].float(), targets[labelled], reduction="sum").item()
        spoken = targets[labelled].cpu().numpy()
        tokens += spoken.size
        read += int(token_bytes[spoken].sum())
    model.train(was_training)
    return nats, tokens, read


class RunRecorder(TrainerCallback):
    """Every logged line into metrics.jsonl and the trackers, under the names that pretraining has."""

    LEFT_OUT = ("epoch", "num_tokens", "eval_runtime", "eval_samples_per_second", "eval_steps_per_second")

    def __init__(self, run: RunDirectory, trackers: Trackers, counted: YupanaCallback, method: str) -> None:
        self.run, self.trackers, self.counted = run, trackers, counted
        # A preference loss is no nats a token: it does not pass for a held-out loss.
        self.names = {"learning_rate": "lr", "eval_loss": "val_loss" if method == "sft" else "val_dpo_loss"}
        self.start = time.perf_counter()
        self.before = {"tokens": 0, "seconds": 0.0}

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """A resumed tuning writes the lines after its checkpoint again."""
        self.run.rewind(state.global_step)
        lines = self.run.metrics()
        if lines:
            self.before = {name: lines[-1][name] for name in self.before}
        self.start = time.perf_counter()

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **_: Any) -> None:
        """Write a line of training or of evaluation; the summary at the end is neither."""
        if not logs or not ("loss" in logs or "eval_loss" in logs):
            return
        if not math.isfinite(logs.get("loss", 0.0)):
            raise UserError(f"step {state.global_step}: the loss is not finite ({logs['loss']}): lower optim.lr")
        line = {"step": state.global_step, "tokens": self.before["tokens"] + self.counted.tokens}
        for name, value in logs.items():
            if name not in self.LEFT_OUT:
                line[self.names.get(name, name.replace("eval_", "val_"))] = value
        line["seconds"] = self.before["seconds"] + time.perf_counter() - self.start
        self.run.log(line)
        self.trackers.log(line)


def _dataset(conversations: list[Tokens]) -> Any:
    """Tokens and labels as the columns that SFTTrainer takes as they are."""
    from datasets import Dataset

    return Dataset.from_dict({"input_ids": [t.ids for t in conversations], "labels": [t.labels for t in conversations]})


def _pairs(preferences: list[Preference]) -> Any:
    from datasets import Dataset

    def said(text: str) -> list[dict[str, str]]:
        return [{"role": "assistant", "content": text}]

    return Dataset.from_dict(
        {
            "prompt": [p.prompt for p in preferences],
            "chosen": [said(p.chosen) for p in preferences],
            "rejected": [said(p.rejected) for p in preferences],
        }
    )
