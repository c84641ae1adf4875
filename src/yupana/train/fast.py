"""The fast paths, put on the plain model from outside in one visible order.

attention → projections → float8 → recomputation → compilation. Each is one function, each can be switched back to
its slow twin (`fast` and `train.compile` in the configuration), and none changes a parameter's name: a checkpoint
fits whatever paths wrote it.
"""

from __future__ import annotations

import functools
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from yupana.config import Config
from yupana.errors import UserError
from yupana.flops.hardware import has_float8
from yupana.model.llama import Attention, Block, FeedForward, Llama
from yupana.train import attention
from yupana.train.loss import LossFunction, full_cross_entropy, linear_cross_entropy, softmax_gradient

KEPT = 0.5  # of the activations that a compiled block would keep, with recompute "selective"


def apply(model: Llama, config: Config, device: str, compiled: str) -> None:
    """Make `model` fast in place as `config.fast` says; `compiled` is what train.compile came to ("off", "block", …).

    Raises UserError for a path that this device does not have.
    """
    fast = config.fast
    attention.choose(model, fast.attention, device, compiled != "off", config.data.seq_len, config.data.packing)
    if fast.projections == "separate":
        separate_projections(model)
    if fast.float8 != "off":
        multiply_in_float8(model, fast.float8, device)
    if fast.recompute == "block":
        recompute_blocks(model)
    compile_model(model, compiled, keep_share=KEPT if fast.recompute == "selective" else 1.0)


def separate_projections(model: Llama) -> None:
    """Q, K and V from three products and gate and up from two, over the same weights: the slow twin."""

    def separate(linear: nn.Linear, widths: list[int], x: Tensor) -> list[Tensor]:
        return [F.linear(x, weight) for weight in linear.weight.split(widths)]

    def separate_heads(attention: Attention, x: Tensor) -> list[Tensor]:
        return [part.unflatten(-1, (-1, attention.head_dim)) for part in separate(attention.wqkv, attention.widths, x)]

    for module in model.modules():
        if isinstance(module, Attention):
            module.project = functools.partial(separate_heads, module)  # type: ignore[method-assign]
        elif isinstance(module, FeedForward):
            widths = [module.w_gate_up.out_features // 2] * 2
            module.project = functools.partial(separate, module.w_gate_up, widths)  # type: ignore[method-assign]


def multiply_in_float8(model: Llama, recipe: str, device: str, emulate: bool = False) -> None:
    """The blocks' linear layers in 8-bit floats through torchao; the head stays as it is.

    `recipe` is "tensorwise" (fastest) or "rowwise" (safer). `emulate` computes the same roundings in ordinary
    products, for tests without such a GPU. Raises UserError where neither the device nor the package has it.
    """
    if not emulate and not has_float8(device):
        raise UserError(
            f"fast.float8 is {recipe}, but this {'GPU' if device == 'cuda' else 'CPU'} has no 8-bit matrix products: "
            "they need a GPU from Ada or Hopper on; use --fast.float8 off"
        )
    try:
        from torchao.float8 import Float8LinearConfig, convert_to_float8_training
    except ImportError:
        raise UserError("fast.float8 needs torchao: pip install 'yupana[float8]'") from None
    config = Float8LinearConfig(emulate=True) if emulate else Float8LinearConfig.from_recipe_name(recipe)
    convert_to_float8_training(model.layers, config=config, module_filter_fn=divides_by_16)


def divides_by_16(module: nn.Module, name: str) -> bool:
    """Whether a linear layer's sides are multiples of 16, as the 8-bit products demand."""
    return isinstance(module, nn.Linear) and module.in_features % 16 == 0 and module.out_features % 16 == 0


def recompute_blocks(model: Llama) -> None:
    """Keep only what enters each block and run the block once more in the backward pass (1604.06174)."""
    for layer in model.layers:
        layer.forward = functools.partial(checkpoint, layer.forward, use_reentrant=False)


def compile_model(model: Llama, how: str, keep_share: float) -> None:
    """torch.compile: one block that all layers share, or the whole model.

    `keep_share` below 1 lets the compiler recompute the cheap operations of a block in its backward pass until only
    that share of the activations is kept.
    """
    if how == "off":
        return
    torch._functorch.config.activation_memory_budget = keep_share
    if how in ("model", "cuda-graphs"):
        mode = "reduce-overhead" if how == "cuda-graphs" else None
        model.hidden = torch.compile(model.hidden, mode=mode, dynamic=False)  # type: ignore[method-assign]
        return
    for layer in model.layers:
        assert isinstance(layer, Block)
        layer.compile(
            fullgraph=True, dynamic=False, mode="max-autotune-no-cudagraphs" if how == "max-autotune" else None
        )


def loss_function(config: Config, compiled: str) -> LossFunction:
    """The output head and the loss, as `fast.loss` says."""
    if config.fast.loss == "full":
        return full_cross_entropy
    kernel: Any = torch.compile(softmax_gradient, dynamic=False) if compiled != "off" else softmax_gradient
    return functools.partial(linear_cross_entropy, kernel=kernel)
