"""Sizes of a check and the random tensors of those sizes."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from yupana.anatomy import cross_entropy, rope
from yupana.anatomy.checks import Tensors


@dataclass(frozen=True)
class Llama3Scaling:
    """Frequency scaling that bites at short sequences: fast, blended and slow waves all occur."""

    factor: float = 4.0
    low_freq_factor: float = 1.0
    high_freq_factor: float = 4.0
    original_context: int = 32


@dataclass(frozen=True)
class Sizes:
    """Sizes of a case; the defaults are odd on purpose."""

    batch: int = 2
    seq: int = 7
    n_kv_heads: int = 2
    group: int = 3
    """Query heads that share a key head."""
    pairs: int = 3
    """Half of head_dim."""
    d_model: int = 10
    d_ff: int = 11
    vocab_size: int = 13
    n_layers: int = 2
    tie_embeddings: bool = True
    scaled: bool = True
    """Whether the rotary frequencies are stretched."""
    documents: tuple[int, ...] = (3, 1)
    """Lengths of the documents of a sequence, over and over; () is one document."""
    ignored: float = 0.2
    """Share of targets that predict nothing."""
    z_loss: float = 1e-2
    tile: int = 3
    seed: int = 0
    rope_theta: float = 100.0
    norm_eps: float = 1e-5
    generator: torch.Generator = field(default_factory=torch.Generator, compare=False)

    def __post_init__(self) -> None:
        self.generator.manual_seed(self.seed)

    @property
    def head_dim(self) -> int:
        """Width of a head."""
        return 2 * self.pairs

    @property
    def n_heads(self) -> int:
        """Query heads."""
        return self.n_kv_heads * self.group

    @property
    def rope_scaling(self) -> Llama3Scaling | None:
        """As a model's shape has it."""
        return Llama3Scaling() if self.scaled else None

    @property
    def document_ids(self) -> Tensor | None:
        """[batch, seq], or None for one document."""
        if not self.documents:
            return None
        lengths = torch.tensor(self.documents).repeat(self.seq)
        row = torch.arange(len(lengths)).repeat_interleave(lengths)[: self.seq]
        return row.expand(self.batch, -1)

    def random(self, *shape: int, scale: float = 1.0) -> Tensor:
        """Normal numbers, float64."""
        return scale * torch.randn(*shape, generator=self.generator, dtype=torch.float64)

    def ids(self, *shape: int) -> Tensor:
        """Random tokens."""
        return torch.randint(0, self.vocab_size, shape, generator=self.generator)

    def targets(self, *shape: int) -> Tensor:
        """Random tokens, some ignored."""
        drawn = self.ids(*shape)
        drawn[torch.rand(shape, generator=self.generator) < self.ignored] = cross_entropy.IGNORED
        return drawn

    def rope(self) -> rope.Rope:
        """Cosines and sines of the sequence."""
        return rope.table(self.seq, rope.frequencies(self.head_dim, self.rope_theta, self.rope_scaling))

    def queries_keys_values(self) -> Tensors:
        """Random q, k and v."""
        size = (self.seq, self.head_dim)
        return {
            "q": self.random(self.batch, self.n_heads, *size),
            "k": self.random(self.batch, self.n_kv_heads, *size),
            "v": self.random(self.batch, self.n_kv_heads, *size),
        }

    def block_weights(self) -> Tensors:
        """Weights of a block, large enough that every nonlinearity is felt."""
        q, kv = self.n_heads * self.head_dim, self.n_kv_heads * self.head_dim
        return {
            "attention_norm.weight": 1 + self.random(self.d_model, scale=0.2),
            "attention.wqkv.weight": self.random(q + 2 * kv, self.d_model, scale=0.4),
            "attention.wo.weight": self.random(self.d_model, q, scale=0.4),
            "feed_forward_norm.weight": 1 + self.random(self.d_model, scale=0.2),
            "feed_forward.w_gate_up.weight": self.random(2 * self.d_ff, self.d_model, scale=0.4),
            "feed_forward.w_down.weight": self.random(self.d_model, self.d_ff, scale=0.4),
        }

    def llama_weights(self) -> Tensors:
        """Weights of a whole model."""
        weights = {"embedding.weight": self.random(self.vocab_size, self.d_model)}
        for index in range(self.n_layers):
            weights |= {f"layers.{index}.{name}": w for name, w in self.block_weights().items()}
        weights["norm.weight"] = 1 + self.random(self.d_model, scale=0.2)
        if not self.tie_embeddings:
            weights["output.weight"] = self.random(self.vocab_size, self.d_model, scale=0.4)
        return weights
