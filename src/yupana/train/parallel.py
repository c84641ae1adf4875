"""The plain model on many ranks, put there from outside in one visible order.

On the meta device, where nothing has a value yet: tensor parallelism → the fast paths of fast.py (among them
recomputation, then compilation) → context parallelism → FSDP2 or replication, block by block. Then each rank makes its
own part, and the initial values are those of the plain model, whatever the layout. All of it is torch's own:
`parallelize_module`, `fully_shard`, `replicate`, DTensor.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed._composable.replicate_with_fsdp import replicate
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard, register_fsdp_forward_method
from torch.distributed.tensor import DTensor, Partial, Replicate, Shard
from torch.distributed.tensor.parallel import (
    ColwiseParallel,
    PrepareModuleInput,
    RowwiseParallel,
    SequenceParallel,
    parallelize_module,
)

from yupana.config import Config
from yupana.errors import UserError
from yupana.flops.layout import Layout
from yupana.model.llama import Block, Llama, initial
from yupana.model.shapes import ModelShape
from yupana.train import fast, host
from yupana.train.context import share_sequences
from yupana.train.loss import LossFunction, linear_cross_entropy, summed_cross_entropy
from yupana.train.optimizer import Norm, norm_of_all, squares
from yupana.train.ranks import Ranks
from yupana.train.shares import cut_by_columns, first_column, local, segments, whole_sizes
from yupana.train.vocabulary import cross_entropy_of_spread_logits

Summed = Callable[[Tensor, Tensor, Tensor], Tensor]  # (hidden, weight, targets) → summed cross-entropy


def build(config: Config, ranks: Ranks, device: str, precision: str, compiled: str) -> Llama:
    """The initial model, in the dtype that the precision keeps its weights in, its fast paths and its ranks.

    Raises UserError for a path that this device or this layout does not have.
    """
    check_paths(config, ranks.layout, compiled)
    dtype = torch.bfloat16 if precision in ("bf16", "bf16-lean") else torch.float32
    with torch.device("meta"):
        model = Llama(config.model).to(dtype)
    if ranks.layout.tp > 1:
        share_products(model, ranks)
    fast.apply(model, config, device, compiled)
    if ranks.layout.cp > 1:
        share_sequences(model, ranks)
    if ranks.count > 1:
        shard_blocks(model, ranks)
    if ranks.layout.tp > 1:
        gather_hidden(model)
    model.to_empty(device=device)
    initialise(model, config.model, config.train.seed, ranks)
    return model


def how_to_compile(config: Config, layout: Layout, device: str, peak: float) -> str:
    """What train.compile comes to; with tensor parallelism auto is "off"."""
    if layout.tp > 1 and config.train.compile == "auto" and config.fast.recompute != "selective":
        return "off"
    return host.how_to_compile(config, device, peak)


def check_paths(config: Config, layout: Layout, compiled: str) -> None:
    """Raise UserError for a fast path, an optimiser or a record that the layout does not have."""
    if layout.ranks == 1:
        return
    told = f"the layout is {layout}"
    if compiled in ("model", "cuda-graphs"):
        raise UserError(f"train.compile is {compiled}, but {told}: weights arrive block by block, so compile by block")
    if config.log.anatomy_every:
        raise UserError(f"log.anatomy_every looks into weights that one process holds whole, but {told}: leave it out")
    if config.optim.name == "muon" and layout.shards * layout.tp > 1:
        raise UserError(f"optim.name is muon, which needs whole matrices, but {told}: use parallel.replicate, or adamw")
    if layout.cp > 1 and config.fast.attention not in ("auto", "sdpa"):
        raise UserError(
            f"fast.attention is {config.fast.attention}, but {told}: ranks that share sequences have torch's own alone, sdpa"
        )
    if layout.tp > 1:
        if compiled != "off":
            raise UserError(
                f"train.compile is {compiled}, but {told}: compiled tensor parallelism gave other gradients when it was "
                "tried (docs/scale-out.md), so set train.compile to off"
            )
        for name, only in (("projections", "fused"), ("loss", "chunked"), ("float8", "off")):
            if getattr(config.fast, name) != only:
                raise UserError(
                    f"fast.{name} is {getattr(config.fast, name)}, but {told}: tensor parallelism has {only} alone"
                )


# --- tensor parallelism ------------------------------------------------------------------------------------------


def share_products(model: Llama, ranks: Ranks) -> None:
    """Tensor parallelism with sequence parallelism (Megatron-LM: 1909.08053 §3, 2205.05198 §4.2.2).

    Between products the residual stream is cut along the sequence, [batch, seq / tp, d_model]; it is gathered before
    wqkv and w_gate_up, whose rows are cut, and summed and scattered after wo and w_down, whose columns are. Each
    rank has n_heads / tp heads. Embedding and head are cut along the vocabulary. Rank t's part of a fused matrix
    holds its share of Q, of K and of V, so that its heads are whole: torch sees one matrix cut into equal parts,
    shares.py knows which rows they are.
    """
    mesh = tp_mesh(ranks)
    outside: dict[str, Any] = {
        "embedding": RowwiseParallel(input_layouts=Replicate(), output_layouts=Shard(1)),
        "norm": SequenceParallel(),
    }
    if model.output is not None:
        outside["output"] = ColwiseParallel()  # for its weight alone: the loss reads that
    parallelize_module(model, mesh, outside)
    for layer in model.layers:
        assert isinstance(layer, Block)
        parallelize_module(
            layer,
            mesh,
            {
                "attention_norm": SequenceParallel(),
                "attention": PrepareModuleInput(
                    input_layouts=(Shard(1), None, None, None),
                    desired_input_layouts=(Replicate(), None, None, None),
                ),
                "attention.wqkv": ColwiseParallel(),
                "attention.wo": RowwiseParallel(output_layouts=Shard(1)),
                "feed_forward_norm": SequenceParallel(),
                "feed_forward": PrepareModuleInput(input_layouts=(Shard(1),), desired_input_layouts=(Replicate(),)),
                "feed_forward.w_gate_up": ColwiseParallel(),
                "feed_forward.w_down": RowwiseParallel(output_layouts=Shard(1)),
            },
        )
        layer.attention.widths = [width // ranks.layout.tp for width in layer.attention.widths]


def gather_hidden(model: Llama) -> None:
    """What `hidden` returns: [batch, seq / tp, d_model] → [batch, seq, d_model] on each rank.

    The loss over a share of the vocabulary gives each rank a share of the gradient: going back they are summed as the
    sequence is cut again.
    """
    cut: Callable[..., Any] = model.hidden

    def hidden(*inputs: Any) -> Tensor:
        return cut(*inputs).redistribute(placements=[Replicate()]).to_local(grad_placements=[Partial()])

    model.hidden = hidden  # type: ignore[method-assign, assignment]


def loss_functions(config: Config, ranks: Ranks, compiled: str) -> tuple[LossFunction, Summed]:
    """The output head and the loss for training, and the summed loss for evaluation; over shares of the vocabulary."""
    if ranks.layout.tp == 1:
        return fast.loss_function(config, compiled), summed_cross_entropy
    share = config.model.vocab_size // ranks.layout.tp
    group = tp_mesh(ranks).get_group()
    kernel = functools.partial(cross_entropy_of_spread_logits, first=ranks.tp_rank * share, group=group)

    def loss(hidden: Tensor, weight: Tensor, targets: Tensor, scale: Tensor) -> Tensor:
        assert isinstance(weight, DTensor)
        return linear_cross_entropy(hidden, weight.to_local(), targets, scale, kernel)

    @torch.no_grad()
    def summed(hidden: Tensor, weight: Tensor, targets: Tensor) -> Tensor:
        return loss(hidden, weight, targets, hidden.new_ones((), dtype=torch.float32))

    return loss, summed


def tp_mesh(ranks: Ranks) -> DeviceMesh:
    """The ranks that share this one's products."""
    assert ranks.mesh is not None
    return ranks.mesh["tp"]


# --- sharding and replication ------------------------------------------------------------------------------------


def shard_blocks(model: Llama, ranks: Ranks) -> None:
    """FSDP2 (2304.11277) or replication of each block, then of what is around the blocks.

    A block's weights are gathered just before it runs, while the block before it still computes, and freed after it;
    its gradients are summed and scattered while the block before it goes backward. Embedding, last norm and head are
    one group that stays whole from the beginning of the forward pass to the end of the backward pass. Gradients are
    added up in fp32. Replicas have whole weights, and sum their gradients block by block in the same way.
    """
    assert ranks.mesh is not None
    layout, precise = ranks.layout, MixedPrecisionPolicy(reduce_dtype=torch.float32)
    apply: Callable[[nn.Module], Any]
    if layout.shards == 1:
        apply = functools.partial(replicate, mesh=ranks.mesh["replicate"], mp_policy=precise)
    elif layout.replicate == 1:
        apply = functools.partial(fully_shard, mesh=ranks.mesh["shards"], mp_policy=precise)
    else:
        apply = functools.partial(fully_shard, mesh=ranks.mesh["replicate", "shards"], mp_policy=precise)
    for layer in model.layers:
        apply(layer)
    apply(model)
    register_fsdp_forward_method(model, "hidden")
    for module in model.modules():
        if isinstance(module, FSDPModule):  # sums, not means: the loss is divided by the whole batch's tokens already
            module.set_gradient_divide_factor(1.0)
            module.set_force_sum_reduction_for_comms(True)


@torch.no_grad()
def initialise(model: Llama, shape: ModelShape, seed: int, ranks: Ranks) -> None:
    """Each rank's part of what Llama.initialise gives the whole model."""
    sizes = whole_sizes(shape)
    for name, parameter in model.named_parameters():
        whole, here = initial(name, sizes[name], seed), local(parameter)
        columns = slice(None)
        if cut_by_columns(name):
            (start,) = first_column(name, sizes[name], ranks)
            columns = slice(start, start + here.shape[1])
        for segment in segments(name, sizes[name], shape, ranks):
            rows = whole[segment.in_parameter : segment.in_parameter + segment.rows]
            here[segment.in_part : segment.in_part + segment.rows].copy_(rows if rows.ndim == 1 else rows[:, columns])


def rest(model: Llama) -> None:
    """After a forward pass that none follows backward: give up the gathered weights, so that the next are fresh."""
    if isinstance(model, FSDPModule):
        model.reset_iter_state()


def norm_function(ranks: Ranks) -> Norm:
    """The norm of all gradients together from the parts of each rank, an fp32 scalar, the same on all.

    A part that several ranks hold alike (copies, and the norms' weights under tp) counts as often, divided by that.
    """
    if ranks.count == 1:
        return norm_of_all

    def norm(gradients: dict[str, Tensor]) -> Tensor:
        device = next(iter(gradients.values())).device
        total = torch.zeros((), dtype=torch.float32, device=device)
        for name, gradient in gradients.items():
            alike = ranks.layout.replicate * (ranks.layout.tp if name.endswith("norm.weight") else 1)
            if gradient.numel():
                total += torch.stack(squares(gradient)).sum() / alike
        dist.all_reduce(total)
        return total.sqrt()

    return norm
