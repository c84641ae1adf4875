"""The shape of a Llama: every size that fixes its parameters and its FLOPs. Imports nothing, not even torch."""

from __future__ import annotations

from dataclasses import dataclass

from yupana.errors import UserError


@dataclass(frozen=True)
class RopeScaling:
    """Llama 3's stretching of the rotary frequencies beyond the original context (arXiv 2407.21783, §3.4.2).

    Wavelengths above `original_context / low_freq_factor` are stretched by `factor`, those below
    `original_context / high_freq_factor` are kept, those between are blended.
    """

    factor: float = 32.0
    """Stretch of the lowest frequencies."""
    low_freq_factor: float = 1.0
    """Wavelengths longer than original_context / low_freq_factor tokens are stretched in full."""
    high_freq_factor: float = 4.0
    """Wavelengths shorter than original_context / high_freq_factor tokens are left alone."""
    original_context: int = 8192
    """Context of the pretraining, in tokens."""

    def __post_init__(self) -> None:
        if self.factor <= 0 or self.low_freq_factor <= 0 or self.original_context < 1:
            raise UserError(f"model.rope_scaling needs positive values, got {self}")
        if self.high_freq_factor <= self.low_freq_factor:
            raise UserError(
                f"model.rope_scaling.high_freq_factor ({self.high_freq_factor:g}) must be larger than "
                f"low_freq_factor ({self.low_freq_factor:g})"
            )


@dataclass(frozen=True)
class ModelShape:
    """The sizes of a Llama (the `model` branch of a configuration)."""

    n_layers: int = 6
    """Number of transformer blocks."""
    d_model: int = 288
    """Width of the residual stream."""
    n_heads: int = 6
    """Query heads."""
    n_kv_heads: int = 6
    """Key/value heads; divides n_heads (grouped-query attention when smaller)."""
    head_dim: int = 48
    """Width of a head; even, for the rotary embedding."""
    d_ff: int = 768
    """Inner width of the SwiGLU feed-forward."""
    vocab_size: int = 4096
    """Tokens in the vocabulary."""
    tie_embeddings: bool = True
    """Whether the output head is the embedding matrix."""
    rope_theta: float = 500_000.0
    """Base of the rotary embedding's wavelengths."""
    rope_scaling: RopeScaling | None = None
    """Llama 3's frequency scaling for long contexts; none by default."""
    norm_eps: float = 1e-5
    """Added to the mean square inside RMSNorm."""

    def __post_init__(self) -> None:
        for name in ("n_layers", "d_model", "n_heads", "n_kv_heads", "head_dim", "d_ff", "vocab_size"):
            if getattr(self, name) < 1:
                raise UserError(f"model.{name} must be at least 1, got {getattr(self, name)}")
        if self.n_heads % self.n_kv_heads:
            raise UserError(
                f"model.n_heads ({self.n_heads}) must be a multiple of model.n_kv_heads ({self.n_kv_heads}): "
                "each key/value head serves the same number of query heads"
            )
        if self.head_dim % 2:
            raise UserError(f"model.head_dim must be even for the rotary embedding, got {self.head_dim}")
        if self.rope_theta <= 0:
            raise UserError(f"model.rope_theta must be positive, got {self.rope_theta:g}")
        if self.norm_eps <= 0:
            raise UserError(f"model.norm_eps must be positive, got {self.norm_eps:g}")

    @property
    def q_width(self) -> int:
        """Width of all query heads side by side."""
        return self.n_heads * self.head_dim

    @property
    def kv_width(self) -> int:
        """Width of all key (or value) heads side by side."""
        return self.n_kv_heads * self.head_dim

    @property
    def layer_matmul_parameters(self) -> int:
        """Weights of one block's matrices: Q, K, V, output, gate, up, down."""
        attention = self.d_model * (self.q_width + 2 * self.kv_width) + self.q_width * self.d_model
        feed_forward = 3 * self.d_model * self.d_ff
        return attention + feed_forward

    @property
    def matmul_parameters(self) -> int:
        """Weights that take part in a matrix product: the blocks and the output head, tied or not."""
        return self.n_layers * self.layer_matmul_parameters + self.vocab_size * self.d_model

    @property
    def parameters(self) -> int:
        """All parameters; a tied head counts once."""
        norms = (2 * self.n_layers + 1) * self.d_model
        untied_embedding = 0 if self.tie_embeddings else self.vocab_size * self.d_model
        return self.matmul_parameters + untied_embedding + norms
