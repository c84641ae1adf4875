"""AdamW (Loshchilov & Hutter, 1711.05101) and Muon, over fp32 weights or fp32 masters of bf16 ones; and a lean AdamW.

Bytes a parameter: fp32 16 (weight, gradient, two moments), masters 18 (bf16 weight and gradient, fp32 master,
gradient and moments; the bf16 gradient is freed at once, so 16 in practice), lean 8 (everything in bf16). Muon keeps
one moment instead of two.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Protocol

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from yupana.config import OptimConfig
from yupana.errors import UserError
from yupana.train.shares import local

LEAN_CHUNK = 1 << 23  # parameters updated at once in lean mode: its fp32 temporaries stay near 100 MB

Norm = Callable[[dict[str, Tensor]], Tensor]  # of all gradients together, by parameter


def norm_of_all(gradients: dict[str, Tensor]) -> Tensor:
    """The norm of all gradients of a model that one process holds whole."""
    return global_norm(list(gradients.values()))


class Optimizer(Protocol):
    """What the loop needs of an optimiser. Of a sharded model it sees this rank's parts alone, as plain tensors."""

    updated: dict[str, Tensor]
    """The tensors that `step` updates, by parameter; `.grad` holds what was collected."""

    def collect(self) -> None:
        """Take the gradients of one micro-batch."""

    def step(self, step: int, lr: float) -> Tensor:
        """Clip, update, forget the gradients; returns the global gradient norm before clipping."""

    def state(self) -> dict[str, Tensor]:
        """Every tensor a resumed run needs, by name; loading copies into them in place."""

    def loaded(self, step: int) -> None:
        """Called once `state` has been filled from a checkpoint taken after `step` steps."""


def build(
    model: nn.Module, precision: str, optim: OptimConfig, seed: int, kernel: str = "fused", norm: Norm = norm_of_all
) -> Optimizer:
    """The optimiser of a precision: "fp32", "tf32", "bf16-autocast", "bf16" or "bf16-lean".

    `kernel` is `fast.adamw`: "fused", "foreach" or "loop" (the lean one has its own). `norm` gives the norm that is
    clipped, where other ranks have parts of the gradients.
    """
    if precision == "bf16-lean":
        if optim.name != "adamw":
            raise UserError(f"optim.name is {optim.name}, but train.precision bf16-lean has an AdamW of its own: use bf16")
        return LeanAdamW(model, optim, seed, norm)
    return TorchOptimizer(model, optim, precision == "bf16", kernel, norm)


class TorchOptimizer:
    """torch's AdamW, or its Muon for the blocks' matrices beside it, on fp32 weights.

    The weights are the model's own, or master copies of its bf16 weights. Muon (Jordan et al. 2024) with the step
    size of 2502.16982, so that one learning rate serves both; fused Q, K and V are one matrix to it.
    """

    def __init__(
        self, model: nn.Module, optim: OptimConfig, masters: bool, kernel: str = "fused", norm: Norm = norm_of_all
    ) -> None:
        self.names = [name for name, _ in model.named_parameters()]
        self.parameters: list[Tensor] = list(model.parameters())
        self.weights = [own(p) for p in self.parameters]
        self.masters = [w.detach().float().requires_grad_() for w in self.weights] if masters else self.weights
        self.has_masters, self.clip, self.norm = masters, optim.clip, norm
        self.updated = dict(zip(self.names, self.masters, strict=True))
        matrices = [m for n, m in self.updated.items() if optim.name == "muon" and n.startswith("layers.") and m.ndim == 2]
        chosen = {id(m) for m in matrices}
        rest = [m for m in self.masters if id(m) not in chosen]
        groups = [
            {"params": [m for m in rest if m.ndim >= 2], "weight_decay": optim.weight_decay},
            {"params": [m for m in rest if m.ndim < 2], "weight_decay": 0.0},
        ]
        adamw = torch.optim.AdamW(
            groups, lr=optim.lr, betas=optim.betas, eps=optim.eps, fused=kernel == "fused", foreach=kernel == "foreach"
        )
        self.parts: list[torch.optim.Optimizer] = [adamw]
        # Made now rather than at the first step, so that a checkpoint can fill it.
        for master in rest:
            adamw.state[master] = {
                "step": torch.zeros((), dtype=torch.float32, device=master.device),
                "exp_avg": torch.zeros_like(master),
                "exp_avg_sq": torch.zeros_like(master),
            }
        if matrices:
            muon = torch.optim.Muon(
                matrices, lr=optim.lr, weight_decay=optim.weight_decay, adjust_lr_fn="match_rms_adamw"
            )
            muon.state.update({master: {"momentum_buffer": torch.zeros_like(master)} for master in matrices})
            self.parts.append(muon)
        self.divides = kernel == "fused" and not matrices  # AdamW's one kernel can clip as it reads

    def collect(self) -> None:
        """Add the bf16 gradients of a micro-batch to the masters', in fp32; fp32 ones have added up where they are."""
        for parameter, master in zip(self.parameters, self.masters, strict=True):
            if parameter.grad is None or parameter is master:
                continue
            gradient = local(parameter.grad)
            if not self.has_masters:
                master.grad = gradient
                continue
            master.grad = gradient.float() if master.grad is None else master.grad.add_(gradient)
            parameter.grad = None

    @torch.no_grad()
    def step(self, step: int, lr: float) -> Tensor:
        """See Optimizer."""
        collected = {name: master.grad for name, master in self.updated.items() if master.grad is not None}
        norm, gradients = self.norm(collected), list(collected.values())
        if self.clip and self.divides:
            self.parts[0].grad_scale = ((norm + 1e-6) / self.clip).clamp(min=1.0)  # type: ignore[attr-defined]
        elif self.clip:
            torch._foreach_mul_(gradients, (self.clip / (norm + 1e-6)).clamp(max=1.0))
        for part in self.parts:
            for group in part.param_groups:
                group["lr"] = lr
            part.step()
            part.zero_grad(set_to_none=True)
        for parameter in self.parameters:
            parameter.grad = None
        if self.has_masters:
            torch._foreach_copy_(self.weights, self.masters)
        return norm

    def state(self) -> dict[str, Tensor]:
        """See Optimizer."""
        tensors = {f"optimizer.master.{n}": m.detach() for n, m in self.updated.items() if self.has_masters}
        for name, master in self.updated.items():
            kept = next(part.state[master] for part in self.parts if master in part.state)
            tensors |= {f"optimizer.{key}.{name}": tensor for key, tensor in kept.items() if key != "step"}
        return tensors

    def loaded(self, step: int) -> None:
        """See Optimizer."""
        for kept in self.parts[0].state.values():
            kept["step"].fill_(step)


class LeanAdamW:
    """AdamW on bf16 weights and bf16 moments, without masters: 8 bytes a parameter, gradient included.

    Most updates are smaller than half the distance between neighbouring bf16 numbers, so rounding to nearest would
    lose them; the weights are rounded stochastically instead, right on average (Zamirai et al. 2010.06192). The
    moments change by 5–10 % a step, far above bf16's 0.4 %, and round to nearest. The random bits are a function
    of (seed, step), so a resumed run repeats them.
    """

    def __init__(self, model: nn.Module, optim: OptimConfig, seed: int, norm: Norm) -> None:
        self.parameters = dict(model.named_parameters())
        self.named = {name: own(p) for name, p in self.parameters.items()}
        self.updated: dict[str, Tensor] = dict(self.named)
        self.moments = {n: (torch.zeros_like(w), torch.zeros_like(w)) for n, w in self.named.items()}
        self.optim, self.seed, self.norm = optim, seed, norm

    def collect(self) -> None:
        """Gradients add up in bf16, in the parameters' own `.grad`."""
        for name, parameter in self.parameters.items():
            if parameter is not self.named[name]:
                self.named[name].grad = None if parameter.grad is None else local(parameter.grad)

    @torch.no_grad()
    def step(self, step: int, lr: float) -> Tensor:
        """See Optimizer."""
        norm = self.norm({name: w.grad for name, w in self.named.items() if w.grad is not None})
        scale = (self.optim.clip / (norm + 1e-6)).clamp(max=1.0) if self.optim.clip else torch.ones_like(norm)
        generator = torch.Generator(device=norm.device).manual_seed(hash_seed(self.seed, step))
        for name, weight in self.named.items():
            if weight.grad is None:
                continue
            decay = self.optim.weight_decay if weight.ndim >= 2 else 0.0
            flat = [t.view(-1).split(LEAN_CHUNK) for t in (weight, weight.grad, *self.moments[name])]
            for w, g, m, v in zip(*flat, strict=True):
                self._update(w, g, m, v, scale, lr, decay, step, generator)
            weight.grad = self.parameters[name].grad = None
        return norm

    def _update(
        self,
        weight: Tensor,
        gradient: Tensor,
        exp_avg: Tensor,
        exp_avg_sq: Tensor,
        scale: Tensor,
        lr: float,
        decay: float,
        step: int,
        generator: torch.Generator,
    ) -> None:
        beta1, beta2 = self.optim.betas
        g = gradient.float().mul_(scale)
        m = exp_avg.float().lerp_(g, 1 - beta1)
        v = exp_avg_sq.float().mul_(beta2).addcmul_(g, g, value=1 - beta2)
        exp_avg.copy_(m)
        exp_avg_sq.copy_(v)
        correction1, correction2 = 1 - beta1 ** (step + 1), 1 - beta2 ** (step + 1)
        denominator = v.sqrt_().div_(math.sqrt(correction2)).add_(self.optim.eps)
        new = weight.float().mul_(1 - lr * decay).addcdiv_(m, denominator, value=-lr / correction1)
        weight.copy_(round_stochastically(new, generator))

    def state(self) -> dict[str, Tensor]:
        """See Optimizer."""
        tensors = {f"optimizer.exp_avg.{name}": m for name, (m, _) in self.moments.items()}
        return tensors | {f"optimizer.exp_avg_sq.{name}": v for name, (_, v) in self.moments.items()}

    def loaded(self, step: int) -> None:
        """Nothing: the step is an argument of `step`."""


def own(parameter: Tensor) -> Tensor:
    """A parameter, or the part of it that this rank holds."""
    return local(parameter) if isinstance(parameter, DTensor) else parameter


def round_stochastically(x: Tensor, generator: torch.Generator) -> Tensor:
    """fp32 → bf16, up or down with the probability that makes the expectation x. Overwrites x.

    bf16 is the upper half of fp32's bits: adding 16 random bits below and cutting them off carries just so often.
    """
    bits = x.view(torch.int32)
    bits += torch.randint(0, 1 << 16, bits.shape, dtype=torch.int32, device=x.device, generator=generator)
    bits &= -(1 << 16)
    return x.to(torch.bfloat16)


def global_norm(gradients: list[Tensor]) -> Tensor:
    """The Euclidean norm of all gradients together, an fp32 scalar; bf16 ones are summed in fp32, in pieces."""
    return torch.stack([part for gradient in gradients for part in squares(gradient)]).sum().sqrt()


def squares(gradient: Tensor) -> list[Tensor]:
    """The sums of squares of a gradient's pieces, fp32 scalars."""
    return [torch.linalg.vector_norm(piece, dtype=torch.float32).square() for piece in pieces(gradient)]


def pieces(tensor: Tensor) -> Iterator[Tensor]:
    """A tensor in flat pieces that are cheap to convert to fp32."""
    yield from tensor.reshape(-1).split(LEAN_CHUNK)


def hash_seed(seed: int, step: int) -> int:
    """A 63-bit seed from a seed and a step."""
    mixed = (seed * 0x9E3779B97F4A7C15 + step * 0xBF58476D1CE4E5B9 + 0x94D049BB133111EB) & (2**64 - 1)
    mixed = ((mixed ^ (mixed >> 31)) * 0xD6E8FEB86659FD93) & (2**64 - 1)
    return (mixed ^ (mixed >> 32)) >> 1
