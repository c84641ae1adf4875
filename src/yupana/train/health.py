"""How a run is doing inside: activations, gradients, updates and attention of each layer, every `log.anatomy_every` steps.

A gradient or a logit that grows layer by layer announces a divergence before the loss shows it; an update-to-weight
ratio far from 1e-3 tells of a learning rate that does not fit (Wortsman et al., arXiv 2309.14322, on both).

Switched off it costs nothing: nothing of it runs. A step on which it is due copies the weights once and takes one
sequence forward without gradients, with the scores of one group of heads in memory at a time: 0.08 s beside a step of
0.48 s (`yupana train 7m --log.anatomy_every 4 --train.compile off`, 2 cores). It draws no random numbers and writes to
nothing that training reads, so the losses stay the same bit for bit.
"""

from __future__ import annotations

import math
from collections import defaultdict

import torch
from torch import Tensor

from yupana.model.llama import Attention, Block, Llama, Rope, attend, attention_mask, rope_table, rotate
from yupana.train.optimizer import Optimizer

Figures = dict[str, float | None]


class Health:
    """One step under observation: made after the backward pass, asked by `figures` after the update."""

    def __init__(self, model: Llama, optimizer: Optimizer) -> None:
        self.model, self.optimizer = model, optimizer
        self.before = {name: weight.detach().clone() for name, weight in optimizer.updated.items()}
        self.gradients = {
            name: weight.grad.detach().float().norm()
            for name, weight in optimizer.updated.items()
            if weight.grad is not None
        }

    def figures(self, tokens: Tensor, document_ids: Tensor | None) -> dict[str, Figures]:
        """Figures of "embedding", "layers.0", …, "norm" and "output", by part of the model.

        `gradient_norm` (before clipping), `weight_norm`, `update_ratio` = ‖update‖ / ‖weight‖ of the part's
        parameters; of a layer also what one sequence, `tokens` [1, seq], makes of it: `activation_rms` of the stream
        behind it, `attention_max` (the largest score) and `attention_entropy` (mean of the queries, nats). None
        stands for what is not finite.
        """
        squares: dict[str, dict[str, list[Tensor]]] = defaultdict(lambda: defaultdict(list))
        for name, weight in self.optimizer.updated.items():
            part = squares[part_of(name)]
            part["weight"].append(self.before[name].float().norm().square())
            part["update"].append((weight.detach().float() - self.before[name].float()).norm().square())
            if name in self.gradients:
                part["gradient"].append(self.gradients[name].square())
        norms = {
            part: {kind: torch.stack(values).sum().sqrt().item() for kind, values in kinds.items()}
            for part, kinds in squares.items()
        }
        figures: dict[str, Figures] = {
            part: {
                "gradient_norm": found.get("gradient", 0.0),
                "weight_norm": found["weight"],
                "update_ratio": found["update"] / max(found["weight"], 1e-30),
            }
            for part, found in norms.items()
        }
        for index, probed in enumerate(probe(self.model, tokens, document_ids)):
            figures[f"layers.{index}"].update(probed)
        return {
            part: {name: v if v is not None and math.isfinite(v) else None for name, v in found.items()}
            for part, found in figures.items()
        }


def part_of(name: str) -> str:
    """The part of the model that a parameter belongs to: "layers.3" of "layers.3.attention.wo.weight"."""
    pieces = name.split(".")
    return ".".join(pieces[:2]) if pieces[0] == "layers" else pieces[0]


@torch.no_grad()
def probe(model: Llama, tokens: Tensor, document_ids: Tensor | None) -> list[Figures]:
    """Of each layer `activation_rms`, `attention_max` and `attention_entropy` on `tokens` [1, seq].

    The blocks are walked through here, whatever fast paths the model wears (compiled, recomputing, another attention).
    """
    seq = tokens.shape[1]
    positions = torch.arange(seq, device=tokens.device)
    rope = rope_table(model.shape, positions)
    mask = attention_mask(positions, document_ids, cached=0)
    seen = torch.ones(seq, seq, dtype=torch.bool, device=tokens.device).tril() if mask is None else mask[0, 0]
    x = model.embedding(tokens)
    found: list[Figures] = []
    for layer in model.layers:
        assert isinstance(layer, Block)
        q, k, v = queries_keys_values(layer.attention, layer.attention_norm(x), rope)
        largest, entropy = attention_figures(q[0], k[0], seen)
        x = x + layer.attention.wo(attend(q, k, v, mask).transpose(1, 2).reshape(1, seq, -1))
        x = x + layer.feed_forward(layer.feed_forward_norm(x))
        rms = x.float().square().mean().sqrt()
        found.append(
            {"activation_rms": rms.item(), "attention_max": largest.item(), "attention_entropy": entropy.item()}
        )
    return found


def queries_keys_values(attention: Attention, x: Tensor, rope: Rope) -> tuple[Tensor, Tensor, Tensor]:
    """Turned queries, turned keys and values of `x` [1, seq, d_model], each [1, heads, seq, head_dim]."""
    q, k, v = attention.project(x)
    return rotate(q, rope).transpose(1, 2), rotate(k, rope).transpose(1, 2), v.transpose(1, 2)


def attention_figures(q: Tensor, k: Tensor, seen: Tensor) -> tuple[Tensor, Tensor]:
    """The largest score, and the mean entropy of the queries' attention in nats; q and k [heads, seq, head_dim]."""
    group = q.shape[0] // k.shape[0]
    largest, entropies = [], []
    for head, keys in enumerate(k.float()):
        scores = q[head * group : (head + 1) * group].float() @ keys.T / math.sqrt(q.shape[-1])  # [group, seq, seq]
        scores = scores.masked_fill(~seen, -torch.inf)
        largest.append(scores.max())
        logs = scores.log_softmax(-1)
        entropies.append(-(logs.exp() * logs.masked_fill(~seen, 0.0)).sum(-1).mean())
    return torch.stack(largest).max(), torch.stack(entropies).mean()
