"""Every setting of a fine-tuning, in one file: typed, with its unit, default and check, as config.py has it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar, Literal

from yupana.config import _at_least
from yupana.errors import UserError

TARGETS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
"""The matrices of a Llama's blocks, as `transformers` names them."""


@dataclass(frozen=True)
class BaseConfig:
    """What is tuned."""

    base: str = ""
    """A run directory, a Hugging Face folder or a hub name."""
    adapter: str | None = None
    """A folder with an adapter of that base to go on with; null: a new one."""


@dataclass(frozen=True)
class ChatConfig:
    """Conversations: a file with one JSON object a line, or hf:NAME[:SPLIT], a dataset of the hub."""

    train: str = ""
    """SFT: {"messages": [{"role", "content"}, …]} or {"prompt", "completion"} a line; DPO: {"prompt", "chosen",
    "rejected"}."""
    held_out: str | None = None
    """A file to evaluate on; null: a share of train."""
    held_out_share: float = 0.05
    """Share of train that is held out where there is no such file; at least one conversation."""
    seq_len: int = 1024
    """Tokens of a sequence; longer conversations are cut, and counted."""
    packing: bool = True
    """SFT: several conversations in a sequence, each attending only within itself."""
    template: Literal["auto", "llama3", "plain"] = "auto"
    """llama3: Llama 3's headers; plain: headers as ordinary text, for a tokenizer without them; auto: the tokenizer's
    own template, else llama3 where it has the headers, else plain."""
    seed: int = 0
    """Seed of what is held out and of the order."""

    def __post_init__(self) -> None:
        _at_least(8, data=self, names=["seq_len"])
        if not 0 < self.held_out_share < 1:
            raise UserError(f"data.held_out_share must be between 0 and 1, got {self.held_out_share:g}")


@dataclass(frozen=True)
class TuneConfig:
    """By which method, how long, how large a batch, how precise."""

    method: Literal["sft", "dpo"] = "sft"
    """sft: the assistant's tokens by cross-entropy; dpo: preferences (arXiv 2305.18290)."""
    steps: int | None = None
    """Optimiser steps; null: as many as the epochs take."""
    epochs: float = 1.0
    """Passes over the data, where steps is null."""
    global_batch: int = 16
    """Sequences in an optimiser step (pairs, for dpo)."""
    micro_batch: int = 1
    """Sequences in one forward and backward pass."""
    precision: Literal["auto", "fp32", "bf16-autocast", "bf16"] = "auto"
    """bf16: weights in bf16 (adapters in fp32); bf16-autocast: fp32 weights; auto: on a device that is fast at bf16,
    bf16 with adapters and bf16-autocast without; else fp32."""
    recompute: bool = False
    """Compute each block's activations again in the backward pass, to save memory."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """auto: the GPU if there is one."""
    seed: int = 0
    """Seed of the adapters' weights and of dropout."""

    def __post_init__(self) -> None:
        _at_least(1, train=self, names=["steps", "global_batch", "micro_batch"])
        if self.global_batch % self.micro_batch:
            raise UserError(
                f"train.global_batch ({self.global_batch}) must be a multiple of train.micro_batch ({self.micro_batch})"
            )
        if self.epochs <= 0:
            raise UserError(f"train.epochs must be positive, got {self.epochs:g}")


@dataclass(frozen=True)
class TuneOptimConfig:
    """AdamW and the learning rate's schedule."""

    lr: float | None = None
    """Peak learning rate; null: 2e-4 with adapters, 2e-5 without; for dpo 2e-5 and 1e-6."""
    weight_decay: float = 0.0
    """Decoupled decay."""
    clip: float = 1.0
    """Largest global gradient norm."""
    schedule: Literal["cosine", "linear", "constant"] = "cosine"
    """After the warm-up: down to zero, or constant."""
    warmup_share: float = 0.05
    """Share of the steps in which the learning rate rises."""

    def __post_init__(self) -> None:
        if not 0 <= self.warmup_share < 1:
            raise UserError(f"optim.warmup_share must be at least 0 and below 1, got {self.warmup_share:g}")


@dataclass(frozen=True)
class LoraConfig:
    """Low-rank adapters (arXiv 2106.09685): W + (alpha / rank) · B·A, with W frozen."""

    rank: int = 16
    """Inner width of the adapters; 0 trains all weights instead."""
    alpha: float = 32.0
    """Scale of the adapters, in units of 1 / rank."""
    dropout: float = 0.0
    """Share of the adapters' inputs that is dropped in training."""
    targets: list[str] = field(default_factory=lambda: list(TARGETS))
    """The matrices that get an adapter."""

    def __post_init__(self) -> None:
        _at_least(0, lora=self, names=["rank"])
        if not 0 <= self.dropout < 1:
            raise UserError(f"lora.dropout must be at least 0 and below 1, got {self.dropout:g}")


@dataclass(frozen=True)
class DpoConfig:
    """Direct preference optimisation."""

    beta: float = 0.1
    """How strongly the tuned model is held to the base."""


@dataclass(frozen=True)
class SaveConfig:
    """What is kept."""

    every: int = 0
    """Steps between checkpoints that --resume goes on from; 0: only the result is saved."""
    keep: int = 2
    """Newest checkpoints to keep."""
    merge: bool = True
    """Write the tuned model whole, adapters merged into the base, as a folder that `transformers` loads."""

    def __post_init__(self) -> None:
        _at_least(0, checkpoint=self, names=["every"])
        _at_least(1, checkpoint=self, names=["keep"])


@dataclass(frozen=True)
class TuneLogConfig:
    """What is recorded, and where it is sent."""

    every: int = 1
    """Steps between lines of metrics."""
    eval_every: int = 50
    """Steps between evaluations on what is held out (the first and last step are always evaluated)."""
    tensorboard: bool = False
    """Write TensorBoard events into the run directory."""
    wandb: bool = False
    """Log to Weights & Biases; offline unless you are logged in."""
    trackio: bool = False
    """Log to Trackio, on this machine; `trackio show` opens its page."""

    def __post_init__(self) -> None:
        _at_least(1, log=self, names=["every", "eval_every"])


@dataclass(frozen=True)
class Tuning:
    """A fine-tuning, whole."""

    COMMAND: ClassVar[str] = "tune"
    model: BaseConfig = field(default_factory=BaseConfig)
    data: ChatConfig = field(default_factory=ChatConfig)
    train: TuneConfig = field(default_factory=TuneConfig)
    lora: LoraConfig = field(default_factory=LoraConfig)
    dpo: DpoConfig = field(default_factory=DpoConfig)
    optim: TuneOptimConfig = field(default_factory=TuneOptimConfig)
    checkpoint: SaveConfig = field(default_factory=SaveConfig)
    log: TuneLogConfig = field(default_factory=TuneLogConfig)

    def check(self) -> None:
        """Raise UserError where a tuning is not told what to tune, on what, or told two things at once."""
        if not self.model.base:
            raise UserError("model.base names nothing to tune: give a run directory, a Hugging Face folder or a hub name")
        if not self.data.train:
            raise UserError("data.train names no conversations: give a .jsonl file (--data.train chat.jsonl)")
        if self.model.adapter and not self.lora.rank:
            raise UserError("model.adapter goes on with an adapter, and lora.rank 0 trains all weights: give one of them")

    @property
    def lr(self) -> float:
        """The peak learning rate."""
        if self.optim.lr is not None:
            return self.optim.lr
        if self.train.method == "dpo":
            return 2e-5 if self.lora.rank else 1e-6
        return 2e-4 if self.lora.rank else 2e-5
