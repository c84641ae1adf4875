"""`YupanaCallback`: MFU, tokens a second and memory for any `transformers` Trainer.

It imports `transformers` at its top, which other files do not: the callback has to be one of its classes.
"""

from __future__ import annotations

import itertools
import sys
import time
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import TrainerCallback

from yupana.flops import count, hardware
from yupana.flops.tuned import Products, flops_of_sequences, weight_flops
from yupana.train.loss import IGNORED
from yupana.train.recorder import memory_bytes


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


class YupanaCallback(TrainerCallback):
    """Adds `tokens_per_second, mfu, mfu_exact, mfu_measured, memory_bytes` to every line that a Trainer logs.

        trainer = Trainer(model, args, train_dataset=data, callbacks=[YupanaCallback()])

    The names mean what they mean in yupana's metrics.jsonl. `mfu` is the count `palm`, `mfu_exact` counts causal
    attention at half; both are against the data sheet's peak of the device and dtype, or against this machine's own
    matrix products where it has no data sheet; `mfu_measured` always against the latter. A frozen weight counts what
    it costs (flops/tuned.py), so LoRA is not flattered; padding counts as no token (`padding_share` tells how much
    there was), the head counts for labelled tokens, packed documents attend within themselves. Recomputed activations
    and passes without gradients (DPO's reference) never count. Evaluation, saving and the time between them are not a
    step's. On several devices the tokens are all devices' and MFU is one device's.

    The figures are in `state.log_history`, in the progress bar and in `history`; `tokens` and `flops` are the sums. A
    tracker that reports before this callback is called (wandb, TensorBoard) misses them:
    `YupanaCallback.add_to(trainer)` puts it first.

    It never stops a training: what it cannot count (a mixture of experts, a model without a known attention) it says
    once, and leaves MFU out.
    """

    def __init__(self, peak: float | None = None) -> None:
        """`peak` in FLOP/s of one device replaces the data sheet's (or the measured) peak."""
        self.peak = peak
        self.history: list[dict[str, float]] = []
        self.tokens = 0
        self.flops = {"palm": 0, "exact": 0}
        self._batches: list[Batch] = []
        self._seconds = 0.0
        self._mark: float | None = None
        self._linears: dict[str, tuple[nn.Module, int]] = {}
        self._gradient_seen: dict[str, bool] = {}
        self._products: Products | None = None
        self._head: nn.Module | None = None
        self._hooks: list[Any] = []
        self._attention_width: int | None = None
        self._peaks: hardware.Peaks | None = None
        self._cuda = False

    @classmethod
    def add_to(cls, trainer: Any, peak: float | None = None) -> YupanaCallback:
        """Add the callback before every tracker, so that their pages show its figures too; returns it."""
        callback = cls(peak)
        trainer.callback_handler.callbacks.insert(1, callback)  # 0 decides what a step logs, and has to come first
        return callback

    def on_train_begin(self, args: Any, state: Any, control: Any, model: Any = None, **_: Any) -> None:
        """Look at the model: its products, its dtype, its device."""
        self._remove_hooks()
        self.history, self._batches, self._seconds, self._mark = [], [], 0.0, None
        self.tokens, self.flops = 0, {"palm": 0, "exact": 0}
        self._cuda = next(model.parameters()).device.type == "cuda"
        self._linears = matrix_products(model)
        self._gradient_seen, self._products = {}, None
        head = model.get_output_embeddings() if hasattr(model, "get_output_embeddings") else None
        self._head = getattr(head, "base_layer", head)  # under an adapter
        try:
            self._attention_width = attention_width(model.config)
            self._peaks = hardware.peaks("cuda" if self._cuda else "cpu", dtype_of_products(args, model))
        except (AttributeError, ValueError, RuntimeError) as error:
            self._attention_width = None
            print(f"YupanaCallback: no MFU, because {error}", file=sys.stderr)
        self._hooks = [model.register_forward_pre_hook(_outside_compilation(self._saw_batch), with_kwargs=True)]
        if not getattr(args, "torch_compile", False):  # a look at each product's input would break the graph there
            for name, (module, _) in self._linears.items():
                self._hooks.append(module.register_forward_pre_hook(self._saw_input(name)))

    def on_step_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """The clock starts with the first step."""
        if self._mark is None:
            self._mark = time.perf_counter()

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """A step was taken; where something follows that is no step, wait for its end."""
        if self._products is None:
            self._count_products()
        if control.should_log or control.should_evaluate or control.should_save:
            self._stop_clock()

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **_: Any) -> None:
        """Add the figures since the last training line to this one."""
        if not logs or "loss" not in logs:  # a line of an evaluation, or of the whole training
            return
        self._stop_clock()
        self._mark = time.perf_counter()
        if not self._batches or self._seconds == 0:
            return
        figures = self._figures(args)
        self.history.append({"step": state.global_step, **figures})
        logs.update(figures)
        if state.log_history and state.log_history[-1].get("step") == state.global_step:
            state.log_history[-1].update(figures)
        self._batches, self._seconds = [], 0.0

    def on_evaluate(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """What passed since the last step was no step's."""
        self._mark = time.perf_counter()

    def on_save(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """What passed since the last step was no step's."""
        self._mark = time.perf_counter()

    def on_train_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Leave the model as it was."""
        self._remove_hooks()

    def _figures(self, args: Any) -> dict[str, float]:
        lengths, computed, labelled = tokens_of(self._batches)
        tokens, seconds = sum(lengths), self._seconds
        self.tokens += tokens
        figures = {"tokens_per_second": tokens * args.world_size / seconds, "memory_bytes": self._memory()}
        if self._products is not None and self._peaks is not None:
            flops = flops_of_sequences(self._products, lengths, labelled)
            self.flops = {name: self.flops[name] + counted for name, counted in flops.items()}
            peak = self.peak or self._peaks.best_known
            figures["mfu"] = count.mfu(flops["palm"] / seconds, peak)
            figures["mfu_exact"] = count.mfu(flops["exact"] / seconds, peak)
            figures["mfu_measured"] = count.mfu(flops["palm"] / seconds, self._peaks.measured)
        if tokens < computed:
            figures["padding_share"] = 1 - tokens / computed
        return figures

    def _memory(self) -> int:
        return memory_bytes("cuda" if self._cuda else "cpu")

    def _stop_clock(self) -> None:
        if self._cuda:
            torch.cuda.synchronize()
        if self._mark is not None:
            self._seconds += time.perf_counter() - self._mark
        self._mark = None

    def _saw_batch(self, module: nn.Module, positional: tuple[Any, ...], named: dict[str, Any]) -> None:
        """A forward pass begins. Nothing is read off the device here: that waits until a line is due."""
        if not module.training or not torch.is_grad_enabled():
            return
        tokens = named.get("input_ids", positional[0] if positional else named.get("inputs_embeds"))
        mask, labels = named.get("attention_mask"), named.get("labels")
        batch = Batch(
            rows=tokens.shape[0],
            columns=tokens.shape[1],
            lengths=mask.detach().sum(-1) if mask is not None and mask.dim() == 2 else None,
            positions=named.get("position_ids"),
            labelled=(labels != IGNORED).sum() if labels is not None else None,
        )
        self._batches.append(batch)

    def _saw_input(self, name: str) -> Any:
        def look(module: nn.Module, positional: tuple[Any, ...]) -> None:
            if module.training and torch.is_grad_enabled() and positional:
                self._gradient_seen[name] = self._gradient_seen.get(name, False) or positional[0].requires_grad

        return look

    def _count_products(self) -> None:
        """After the first step: which weights are trained, and which inputs needed a gradient."""
        for hook in self._hooks[1:]:
            hook.remove()
        self._hooks = self._hooks[:1]
        if self._attention_width is None:
            return
        body = head = 0
        for name, (module, size) in self._linears.items():
            flops = weight_flops(
                size,
                input_needs_gradient=self._gradient_seen.get(name, True),
                trained=module.weight.requires_grad,  # type: ignore[union-attr]
            )
            if module is self._head:
                head += flops
            else:
                body += flops
        self._products = Products(body, head, self._attention_width)

    def _remove_hooks(self) -> None:
        for hook in self._hooks:
            hook.remove()
        self._hooks = []


def matrix_products(model: nn.Module) -> dict[str, tuple[nn.Module, int]]:
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


def _outside_compilation(hook: Any) -> Any:
    return torch.compiler.disable(hook)
