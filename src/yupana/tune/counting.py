"""What a `transformers` model multiplies, and how many tokens its batches hold."""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn


@dataclass(frozen=True)
class Batch:
    """A forward pass: its sizes, and what is still on the device and read only when a line is due."""

    rows: int
    columns: int
    lengths: Tensor | None = None
    """Tokens a row that are no padding, int [rows]; None where the batch has no attention mask."""
    positions: Tensor | None = None
    """position_ids, int [1 or rows, columns]; None where the batch has none."""
    labelled: Tensor | None = None
    """Tokens that have a label, int []; None where the batch has no labels: all of them."""


def matrix_products(model: nn.Module) -> dict[str, tuple[Any, int]]:
    """The modules that multiply by a matrix, by name, each with its number of weights.

    The output head is one of them, tied or not; embeddings are looked up, not multiplied.
    """
    found = {}
    for name, module in model.named_modules():
        weight = getattr(module, "weight", None)
        if isinstance(module, nn.Embedding) or not isinstance(weight, Tensor):
            continue
        if "original_module" in name:  # PEFT keeps it beside the copy that it trains, and does not run it
            continue
        if hasattr(module, "in_features") and hasattr(module, "out_features") and not hasattr(module, "base_layer"):
            found[name] = (module, module.in_features * module.out_features)  # also where it is stored quantised
        elif type(module).__name__ == "Conv1D":  # GPT-2's linear layer
            found[name] = (module, weight.numel())
    return found


def attention_width(config: Any) -> int:
    """n_layers times the width of all query heads. Raises ValueError for a model whose FLOPs are not known here."""
    config = config.get_text_config() if hasattr(config, "get_text_config") else config
    experts = [name for name in ("num_experts", "num_local_experts", "n_routed_experts") if getattr(config, name, None)]
    if experts:
        raise ValueError(f"a mixture of experts ({experts[0]}) does not use all its weights for every token")
    layers, heads = config.num_hidden_layers, config.num_attention_heads
    return layers * heads * (getattr(config, "head_dim", None) or config.hidden_size // heads)


def dtype_of_products(args: Any, model: nn.Module) -> str:
    """The dtype whose peak counts: that of autocast, else of the weights."""
    weights = next(p.dtype for p in model.parameters() if p.is_floating_point())
    if getattr(args, "bf16", False) or weights in (torch.bfloat16, torch.float16) or getattr(args, "fp16", False):
        return "bfloat16"  # data sheets give fp16 and bf16 the same rate
    device = next(model.parameters()).device.type
    return "tf32" if device == "cuda" and torch.backends.cuda.matmul.allow_tf32 else "float32"


def tokens_of(batches: list[Batch]) -> tuple[list[int], int, int]:
    """Tokens of every sequence in these batches (padding left out), all tokens with padding, and labelled tokens."""
    lengths: list[int] = []
    computed = labelled = 0
    for batch in batches:
        tokens = batch.rows * batch.columns
        computed += tokens
        if batch.lengths is not None:
            lengths += [int(n) for n in batch.lengths.tolist()]
        elif batch.positions is not None:  # packed: a new sequence wherever the position is 0 again
            starts = (batch.positions.expand(batch.rows, -1).flatten() == 0).nonzero().flatten().tolist()
            lengths += [end - start for start, end in itertools.pairwise([*starts, tokens])]
        else:
            lengths += [batch.columns] * batch.rows
        labelled += tokens if batch.labelled is None else int(batch.labelled)
    return lengths, computed, labelled
