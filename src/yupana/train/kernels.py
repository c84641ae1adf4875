"""The kernels of a training step one at a time, for `yupana flops limits` to measure.

They are the functions that the step itself runs, compiled as the step compiles them, alone and with inputs of
their own; rows stay dynamic, so that one compilation serves every size.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from yupana.config import OptimConfig
from yupana.flops.bench import Kernel, Kernels, random
from yupana.flops.operations import Operation, Sizes, cross_entropy, embedding, residual, rmsnorm, rope, swiglu
from yupana.model.llama import Attend, attend, rotate
from yupana.train import attention, optimizer
from yupana.train.loss import softmax_gradient

WIDTH = 1024  # of the rows that are measured
HEAD_DIM = 64
VOCAB = 16384


def kernels(device: str, *, compiled: bool) -> Kernels:
    """The step's kernels on this device, compiled or plain."""

    def fuse(function: Callable[..., Any]) -> Callable[..., Any]:
        return torch.compile(function) if compiled else function

    def free(inputs: Callable[..., tuple[Tensor, ...]]) -> Callable[..., tuple[Tensor, ...]]:
        return functools.partial(free_rows, inputs) if compiled else inputs

    @functools.cache
    def attention_of(seq_len: int, dtype: str) -> Attend:
        blocked = device == "cpu" and attention.on_cpu(dtype == "bfloat16", compiled, seq_len) == "blocked"
        chosen = attention.blocked_causal_attention if blocked else attend
        return torch.compile(chosen, dynamic=False) if compiled else chosen

    elementwise = [
        Kernel("rmsnorm", fuse(residual_norm), free(norm_inputs), norm_operations),
        Kernel("rope", fuse(rotate_heads), free(rope_inputs), lambda rows, sizes: [rope(1, rows, WIDTH, sizes)]),
        Kernel("swiglu", fuse(gated), free(swiglu_inputs), lambda rows, sizes: [swiglu(1, rows, WIDTH, sizes)]),
        Kernel("cross_entropy", fuse(softmax_gradient), free(loss_inputs),
               lambda rows, sizes: [cross_entropy(rows, VOCAB, sizes)], both_in_forward=True),
        # Outside the compiled blocks:
        Kernel("final_norm", normed, lambda rows, dtype: (random_rows(rows, WIDTH, dtype), ones(WIDTH, dtype)),
               lambda rows, sizes: [rmsnorm("norm", 1, rows, WIDTH, sizes)]),
        Kernel("embedding", nn.functional.embedding, embedding_inputs,
               lambda rows, sizes: [embedding(VOCAB, rows, WIDTH, sizes)]),
    ]  # fmt: skip
    return Kernels(attention_of, elementwise, optimizer_step)


def normed(x: Tensor, weight: Tensor) -> Tensor:
    """RMSNorm as model/llama.py does it, [rows, width]."""
    full = x.float()
    return (full * torch.rsqrt(full.square().mean(-1, keepdim=True) + 1e-5)).to(x.dtype) * weight


def residual_norm(x: Tensor, branch: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
    """A branch joins the residual stream, which is then normed: one kernel in a compiled block. [rows, width]."""
    x = x + branch
    return x, normed(x, weight)


def rotate_heads(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Heads rotated and laid out one after another: [rows, width] → [1, heads, rows, head_dim]."""
    return rotate(x.view(1, x.shape[0], -1, HEAD_DIM), (cos, sin)).transpose(1, 2).contiguous()


def gated(gate_up: Tensor) -> Tensor:
    """silu(gate) · up, [rows, 2 · width] → [rows, width]."""
    gate, up = gate_up.chunk(2, dim=-1)
    return nn.functional.silu(gate) * up


def optimizer_step(precision: str, parameters: int, device: str) -> Callable[[], None]:
    """One AdamW step over `parameters` weights, with the gradient's collection and the clipping."""
    dtype = torch.bfloat16 if precision in ("bf16", "bf16-lean") else torch.float32
    model = nn.Linear(WIDTH, parameters // WIDTH, bias=False, device=device, dtype=dtype)
    optim = optimizer.build(model, precision, OptimConfig(), seed=0)
    gradient = torch.randn_like(model.weight)
    taken = 0

    def step() -> None:
        nonlocal taken
        model.weight.grad = gradient
        optim.collect()
        optim.step(taken, 1e-4)
        taken += 1

    return step


def free_rows(inputs: Callable[..., tuple[Tensor, ...]], rows: int, dtype: torch.dtype) -> tuple[Tensor, ...]:
    """The inputs, marked so that the compiler writes code for any number of rows at once, not for this one first."""
    made = inputs(rows, dtype)
    for tensor in made:
        if tensor.dim() > 0 and tensor.shape[0] == rows:
            torch._dynamo.maybe_mark_dynamic(tensor, 0)
    return made


# --- inputs: random, never zeros, since the power that numbers draw depends on their bits -------------------------


def random_rows(rows: int, width: int, dtype: torch.dtype) -> Tensor:
    """[rows, width] on the default device; its gradient is wanted."""
    return random(rows * width, dtype).view(rows, width).requires_grad_()


def ones(width: int, dtype: torch.dtype) -> Tensor:
    """A norm's weight."""
    return torch.ones(width, dtype=dtype, requires_grad=True)


def norm_inputs(rows: int, dtype: torch.dtype) -> tuple[Tensor, ...]:
    """Of residual_norm."""
    return random_rows(rows, WIDTH, dtype), random_rows(rows, WIDTH, dtype), ones(WIDTH, dtype)


def norm_operations(rows: int, sizes: Sizes) -> list[Operation]:
    """What residual_norm counts as."""
    return [residual("attention", 1, rows, WIDTH, sizes), rmsnorm("norm", 1, rows, WIDTH, sizes)]


def rope_inputs(rows: int, dtype: torch.dtype) -> tuple[Tensor, ...]:
    """Of rotate_heads."""
    angles = torch.rand(rows, 1, HEAD_DIM // 2)
    return random_rows(rows, WIDTH, dtype), angles.cos(), angles.sin()


def swiglu_inputs(rows: int, dtype: torch.dtype) -> tuple[Tensor, ...]:
    """Of gated."""
    return (random_rows(rows, 2 * WIDTH, dtype),)


def loss_inputs(rows: int, dtype: torch.dtype) -> tuple[Tensor, ...]:
    """Of softmax_gradient."""
    return random(rows * VOCAB, dtype).view(rows, VOCAB), torch.randint(0, VOCAB, (rows,)), torch.tensor(1e-3)


def embedding_inputs(rows: int, dtype: torch.dtype) -> tuple[Tensor, ...]:
    """Of torch's embedding."""
    return torch.randint(0, VOCAB, (rows,)), random_rows(VOCAB, WIDTH, dtype)
