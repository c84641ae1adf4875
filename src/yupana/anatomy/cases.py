"""A case for every operation: random inputs of given sizes, the hand-written passes, and torch's own operations."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from yupana.anatomy import (
    adamw,
    attention,
    block,
    clip,
    cross_entropy,
    embedding,
    linear,
    linear_cross_entropy,
    llama,
    muon,
    references,
    residual,
    rmsnorm,
    rope,
    softmax,
    swiglu,
    tiled_attention,
)
from yupana.anatomy.checks import Case, Tensors
from yupana.anatomy.sizes import Sizes


def _embedding(s: Sizes) -> Case:
    tokens = s.ids(s.batch, s.seq)
    return Case(
        {"table": s.random(s.vocab_size, s.d_model)},
        forward=lambda x: embedding.forward(x["table"], tokens),
        backward=lambda dy, x: {"table": embedding.backward(dy, x["table"], tokens)},
        reference=lambda x: F.embedding(tokens, x["table"]),
    )


def _rmsnorm(s: Sizes) -> Case:
    return Case(
        {"x": s.random(s.batch, s.seq, s.d_model), "weight": s.random(s.d_model)},
        forward=lambda x: rmsnorm.forward(x["x"], x["weight"], s.norm_eps),
        backward=lambda dy, x: _named(x, rmsnorm.backward(dy, x["x"], x["weight"], s.norm_eps)),
        reference=lambda x: references.rms_norm(x["x"], x["weight"], s),
    )


def _linear(s: Sizes) -> Case:
    return Case(
        {"x": s.random(s.batch, s.seq, s.d_model), "weight": s.random(s.d_ff, s.d_model)},
        forward=lambda x: linear.forward(x["x"], x["weight"]),
        backward=lambda dy, x: _named(x, linear.backward(dy, x["x"], x["weight"])),
        reference=lambda x: F.linear(x["x"], x["weight"]),
    )


def _rope(s: Sizes) -> Case:
    return Case(
        {"x": s.random(s.batch, s.n_heads, s.seq, s.head_dim)},
        forward=lambda x: rope.forward(x["x"], s.rope()),
        backward=lambda dy, x: {"x": rope.backward(dy, s.rope())},
        reference=lambda x: references.turned(x["x"], s),
    )


def _softmax(s: Sizes) -> Case:
    return Case(
        {"x": s.random(s.batch, s.seq, s.vocab_size, scale=4.0)},
        forward=lambda x: softmax.forward(x["x"]),
        backward=lambda dy, x: {"x": softmax.backward(dy, softmax.forward(x["x"]))},
        reference=lambda x: x["x"].softmax(-1),
    )


def _attention(s: Sizes) -> Case:
    seen = attention.mask(s.seq, s.document_ids)
    return Case(
        s.queries_keys_values(),
        forward=lambda x: attention.forward(x["q"], x["k"], x["v"], seen),
        backward=lambda dy, x: _named(x, attention.backward(dy, x["q"], x["k"], x["v"], seen)),
        reference=lambda x: references.attended(x["q"], x["k"], x["v"], s),
    )


def _tiled_attention(s: Sizes) -> Case:
    seen = attention.mask(s.seq, s.document_ids)

    def backward(dy: Tensor, x: Tensors) -> Tensors:
        out, normaliser = tiled_attention.forward(x["q"], x["k"], x["v"], seen, s.tile)
        gradients = tiled_attention.backward(dy, x["q"], x["k"], x["v"], seen, out, normaliser, s.tile)
        return _named(x, gradients)

    return Case(
        s.queries_keys_values(),
        forward=lambda x: tiled_attention.forward(x["q"], x["k"], x["v"], seen, s.tile)[0],
        backward=backward,
        reference=lambda x: references.attended(x["q"], x["k"], x["v"], s),
    )


def _residual(s: Sizes) -> Case:
    size = (s.batch, s.seq, s.d_model)
    return Case(
        {"x": s.random(*size), "branch": s.random(*size)},
        forward=lambda x: residual.forward(x["x"], x["branch"]),
        backward=lambda dy, x: _named(x, residual.backward(dy)),
        reference=lambda x: torch.add(x["x"], x["branch"]),
    )


def _swiglu(s: Sizes) -> Case:
    size = (s.batch, s.seq, s.d_ff)
    return Case(
        {"gate": s.random(*size, scale=2.0), "up": s.random(*size)},
        forward=lambda x: swiglu.forward(x["gate"], x["up"]),
        backward=lambda dy, x: _named(x, swiglu.backward(dy, x["gate"], x["up"])),
        reference=lambda x: F.silu(x["gate"]) * x["up"],
    )


def _cross_entropy(s: Sizes) -> Case:
    targets = s.targets(s.batch * s.seq)
    return Case(
        {"logits": s.random(s.batch * s.seq, s.vocab_size, scale=3.0)},
        forward=lambda x: cross_entropy.forward(x["logits"], targets, s.z_loss),
        backward=lambda dy, x: {"logits": cross_entropy.backward(dy, x["logits"], targets, s.z_loss)},
        reference=lambda x: references.loss(x["logits"], targets, s.z_loss),
    )


def _linear_cross_entropy(s: Sizes) -> Case:
    targets = s.targets(s.batch * s.seq)

    def backward(dy: Tensor, x: Tensors) -> Tensors:
        _, dhidden, dweight = linear_cross_entropy.forward_and_backward(
            x["hidden"], x["weight"], targets, s.z_loss, rows=s.tile
        )
        return {"hidden": dy * dhidden, "weight": dy * dweight}

    return Case(
        {"hidden": s.random(s.batch * s.seq, s.d_model), "weight": s.random(s.vocab_size, s.d_model)},
        forward=lambda x: linear_cross_entropy.forward_and_backward(
            x["hidden"], x["weight"], targets, s.z_loss, rows=s.tile
        )[0],
        backward=backward,
        reference=lambda x: references.loss(F.linear(x["hidden"], x["weight"]), targets, s.z_loss),
    )


def _block(s: Sizes) -> Case:
    seen = attention.mask(s.seq, s.document_ids)

    def backward(dy: Tensor, x: Tensors) -> Tensors:
        _, kept = block.forward(x["x"], x, s.rope(), seen, s.norm_eps)
        dx, gradients = block.backward(dy, kept, x, s.rope(), seen, s.norm_eps)
        return {"x": dx, **gradients}

    return Case(
        {"x": s.random(s.batch, s.seq, s.d_model), **s.block_weights()},
        forward=lambda x: block.forward(x["x"], x, s.rope(), seen, s.norm_eps)[0],
        backward=backward,
        reference=lambda x: references.block(x["x"], x, s),
    )


def _llama(s: Sizes) -> Case:
    tokens, targets = s.ids(s.batch, s.seq), s.targets(s.batch, s.seq)

    def both(x: Tensors) -> tuple[Tensor, Tensors]:
        return llama.loss_and_gradients(x, tokens, targets, s, s.document_ids, s.z_loss)

    def reference(x: Tensors) -> Tensor:
        stream = F.embedding(tokens, x["embedding.weight"])
        for index in range(s.n_layers):
            prefix = f"layers.{index}."
            layer = {name.removeprefix(prefix): w for name, w in x.items() if name.startswith(prefix)}
            stream = references.block(stream, layer, s)
        hidden = references.rms_norm(stream, x["norm.weight"], s)
        head = x["embedding.weight"] if s.tie_embeddings else x["output.weight"]
        return references.loss(F.linear(hidden, head).flatten(0, 1), targets.flatten(), s.z_loss)

    return Case(
        s.llama_weights(),
        forward=lambda x: both(x)[0],
        backward=lambda dy, x: {name: dy * gradient for name, gradient in both(x)[1].items()},
        reference=reference,
    )


def _adamw(s: Sizes) -> Case:
    gradients = [s.random(s.d_ff, s.d_model) for _ in range(3)]
    lr, betas, decay = 0.1, (0.9, 0.95), 0.1

    def forward(x: Tensors) -> Tensor:
        weight, m, v = x["weight"], torch.zeros_like(x["weight"]), torch.zeros_like(x["weight"])
        for step, gradient in enumerate(gradients, start=1):
            weight, m, v = adamw.forward(weight, gradient, m, v, step, lr, betas, weight_decay=decay)
        return weight

    return Case(
        {"weight": s.random(s.d_ff, s.d_model)},
        forward=forward,
        reference=lambda x: references.adamw(x["weight"], gradients, lr, betas, decay),
    )


def _muon(s: Sizes) -> Case:
    gradients = [s.random(s.d_ff, s.d_model) for _ in range(3)]

    def forward(x: Tensors) -> Tensor:
        weight, buffer = x["weight"], torch.zeros_like(x["weight"])
        for gradient in gradients:
            weight, buffer = muon.forward(weight, gradient, buffer, lr=0.1)
        return weight

    return Case(
        {"weight": s.random(s.d_ff, s.d_model)},
        forward=forward,
        reference=lambda x: references.muon(x["weight"], gradients, 0.1, muon.COEFFICIENTS),
    )


def _clip(s: Sizes) -> Case:
    sizes = {"matrix": (s.d_ff, s.d_model), "norm": (s.d_model,)}
    return Case(
        {name: s.random(*size) for name, size in sizes.items()},
        forward=lambda x: torch.cat([g.flatten() for g in clip.forward(x, 1.0)[0].values()]),
        reference=lambda x: torch.cat([g.flatten() for g in references.clipped(list(x.values()), 1.0)]),
    )


def _named(inputs: Tensors, gradients: tuple[Tensor, ...]) -> Tensors:
    """The gradients by the names of their inputs."""
    return dict(zip(inputs, gradients, strict=True))


CASES: dict[str, Callable[[Sizes], Case]] = {
    "embedding": _embedding,
    "rmsnorm": _rmsnorm,
    "linear": _linear,
    "rope": _rope,
    "softmax": _softmax,
    "attention": _attention,
    "tiled_attention": _tiled_attention,
    "residual": _residual,
    "swiglu": _swiglu,
    "cross_entropy": _cross_entropy,
    "linear_cross_entropy": _linear_cross_entropy,
    "block": _block,
    "llama": _llama,
    "adamw": _adamw,
    "muon": _muon,
    "clip": _clip,
}
