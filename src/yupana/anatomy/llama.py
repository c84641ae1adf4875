"""The whole Llama: embedding, blocks, norm, output head, loss; and the gradient of every parameter.

forward    x = embedding(tokens)      x = block_i(x), i = 1 … n_layers      z = rmsnorm(x) W_outᵀ      loss = CE(z)
backward   dz → dW_out and d(normed) → dx → block_n … block_1 → dE

With tied embeddings W_out is E: one matrix used twice, so its gradient is the sum over both uses, dense from the head
(every row of the vocabulary competes in the softmax) and sparse from the look-up (rows of tokens in the batch alone).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

from torch import Tensor

from yupana.anatomy import attention, block, cross_entropy, embedding, linear, rmsnorm, rope
from yupana.anatomy.block import Weights
from yupana.anatomy.rope import Rope, Scaling
from yupana.anatomy.shapes import must_have
from yupana.errors import UserError


class Shape(Protocol):
    """What of a model's shape the weights' own sizes do not tell; yupana.model.shapes.ModelShape is one."""

    @property
    def n_layers(self) -> int: ...  # noqa: D102
    @property
    def head_dim(self) -> int: ...  # noqa: D102
    @property
    def tie_embeddings(self) -> bool: ...  # noqa: D102
    @property
    def rope_theta(self) -> float: ...  # noqa: D102
    @property
    def rope_scaling(self) -> Scaling | None: ...  # noqa: D102
    @property
    def norm_eps(self) -> float: ...  # noqa: D102


@dataclass(frozen=True)
class Kept:
    """What the forward pass keeps for the backward pass."""

    rotation: Rope
    seen: Tensor
    """The attention's mask."""
    blocks: list[block.Kept]
    x: Tensor
    """The stream after the last block, [batch, seq, d_model]."""
    hidden: Tensor
    """Normed, into the head."""
    logits: Tensor
    """[batch, seq, vocab]."""


def forward(
    weights: Weights, tokens: Tensor, shape: Shape, document_ids: Tensor | None = None
) -> tuple[Tensor, Kept]:
    """Tokens [batch, seq] → logits [batch, seq, vocab], and what backward needs.

    `weights` by the names of yupana.model.llama.Llama's parameters, all of one dtype; with `document_ids`
    [batch, seq] no token attends across documents. Raises UserError on a misfit.
    """
    x = embedding.forward(_named(weights, "embedding.weight"), tokens)
    seq = tokens.shape[1]
    frequency = rope.frequencies(shape.head_dim, shape.rope_theta, shape.rope_scaling)
    cos, sin = rope.table(seq, frequency)
    rotation = (cos.to(x.dtype), sin.to(x.dtype))
    seen = attention.mask(seq, document_ids)
    blocks = []
    for index in range(shape.n_layers):
        x, kept = block.forward(x, _of_layer(weights, index), rotation, seen, shape.norm_eps)
        blocks.append(kept)
    hidden = rmsnorm.forward(x, _named(weights, "norm.weight"), shape.norm_eps)
    logits = linear.forward(hidden, _named(weights, head_name(shape)))
    return logits, Kept(rotation, seen, blocks, x, hidden, logits)


def backward(dlogits: Tensor, kept: Kept, weights: Weights, tokens: Tensor, shape: Shape) -> dict[str, Tensor]:
    """`dlogits` [batch, seq, vocab] → the gradient of every weight, by its name."""
    must_have("llama", "dlogits", dlogits, ["batch", "seq", "vocab"], list(kept.logits.shape))
    head = head_name(shape)
    dhidden, dhead = linear.backward(dlogits, kept.hidden, weights[head])
    dx, dnorm = rmsnorm.backward(dhidden, kept.x, weights["norm.weight"], shape.norm_eps)
    gradients = {"norm.weight": dnorm}
    for index in reversed(range(shape.n_layers)):
        dx, of_block = block.backward(
            dx, kept.blocks[index], _of_layer(weights, index), kept.rotation, kept.seen, shape.norm_eps
        )
        gradients |= {f"layers.{index}.{name}": gradient for name, gradient in of_block.items()}
    gradients["embedding.weight"] = embedding.backward(dx, weights["embedding.weight"], tokens)
    gradients[head] = gradients[head] + dhead if head in gradients else dhead
    return {name: gradients[name] for name in weights}


def loss_and_gradients(
    weights: Weights,
    tokens: Tensor,
    targets: Tensor,
    shape: Shape,
    document_ids: Tensor | None = None,
    z_loss: float = 0.0,
) -> tuple[Tensor, dict[str, Tensor]]:
    """The mean loss in nats a predicted token, and its gradient with respect to every weight.

    `tokens` and `targets` [batch, seq]; a target of cross_entropy.IGNORED predicts nothing. Raises UserError on a
    misfit.
    """
    must_have("llama", "targets", targets, ["batch", "seq"], list(tokens.shape))
    logits, kept = forward(weights, tokens, shape, document_ids)
    flat, wanted = logits.flatten(0, 1), targets.flatten()
    loss = cross_entropy.forward(flat, wanted, z_loss)
    dlogits = cross_entropy.backward(1.0, flat, wanted, z_loss).view_as(logits)
    return loss, backward(dlogits, kept, weights, tokens, shape)


def head_name(shape: Shape) -> str:
    """The weight that makes logits: the embedding itself when tied."""
    return "embedding.weight" if shape.tie_embeddings else "output.weight"


def _of_layer(weights: Weights, index: int) -> Mapping[str, Tensor]:
    prefix = f"layers.{index}."
    found = {name.removeprefix(prefix): w for name, w in weights.items() if name.startswith(prefix)}
    if not found:
        raise UserError(f"llama: n_layers asks for layer {index}, but the weights have no {prefix}*")
    return found


def _named(weights: Weights, name: str) -> Tensor:
    if name not in weights:
        raise UserError(f"llama: the weights have no {name}; they are named as yupana.model.llama.Llama's parameters")
    return weights[name]
