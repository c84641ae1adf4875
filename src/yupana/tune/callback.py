"""`YupanaCallback`: MFU, tokens a second and memory for any `transformers` Trainer.

It imports `transformers` at its top, which other files do not: the callback has to be one of its classes.
"""

from __future__ import annotations

import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import TrainerCallback

from yupana.errors import UserError
from yupana.files import write_json
from yupana.flops import count, hardware
from yupana.flops.tuned import Products, flops_of_sequences, weight_flops
from yupana.train.loss import IGNORED
from yupana.train.recorder import memory_bytes
from yupana.tune.counting import Batch, attention_width, dtype_of_products, matrix_products, tokens_of
from yupana.tune.step_profile import StepProfile


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

    `explain=20` takes step 20 under the profiler and writes `waterfall.json` into the output folder: where the MFU that
    is missing went, part by part (a Llama whose weights are all trained, in batches without padding).

    It never stops a training: what it cannot count (a mixture of experts, a model without a known attention) it says
    once, and leaves MFU out.
    """

    def __init__(self, peak: float | None = None, explain: int | None = None) -> None:
        """`peak` in FLOP/s of one device replaces the data sheet's (or the measured) peak; `explain` is a step from 2 on."""
        self.peak, self.explain = peak, explain
        self.waterfall: dict[str, Any] = {}
        self.history: list[dict[str, float]] = []
        self.tokens = 0
        self.flops = {"palm": 0, "exact": 0}
        self._batches: list[Batch] = []
        self._batches_before = 0
        self._seconds = 0.0
        self._mark: float | None = None
        self._linears: dict[str, tuple[Any, int]] = {}
        self._gradient_seen: dict[str, bool] = {}
        self._products: Products | None = None
        self._head: nn.Module | None = None
        self._hooks: list[Any] = []
        self._attention_width: int | None = None
        self._peaks: hardware.Peaks | None = None
        self._cuda = False
        self._profile: StepProfile | None = None

    @classmethod
    def add_to(cls, trainer: Any, peak: float | None = None, explain: int | None = None) -> YupanaCallback:
        """Add the callback before every tracker, so that their pages show its figures too; returns it."""
        callback = cls(peak, explain)
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
            for name, (module, _size) in self._linears.items():
                self._hooks.append(module.register_forward_pre_hook(self._saw_input(name)))

    def on_step_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """The clock starts with the first step."""
        if self._mark is None:
            self._mark = time.perf_counter()
        if self.explain is not None and state.global_step + 1 in (self.explain - 1, self.explain):
            self._profile = self._profile or StepProfile(self._cuda)
            self._batches_before = len(self._batches)
            self._profile.begin(profiled=state.global_step + 1 == self.explain)

    def on_step_end(self, args: Any, state: Any, control: Any, model: Any = None, **_: Any) -> None:
        """A step was taken; where something follows that is no step, wait for its end."""
        if self._products is None:
            self._count_products()
        if self._profile is not None:
            seconds = self._profile.end()
            if state.global_step == self.explain:
                self._explain_step(seconds, model, Path(args.output_dir))
                self._profile = None
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

    def _explain_step(self, seconds: float, model: Any, folder: Path) -> None:
        assert self._profile is not None
        batches = self._batches[self._batches_before :]
        lengths, computed, _ = tokens_of(batches)
        alike = len({(batch.rows, batch.columns) for batch in batches}) == 1 and set(lengths) == {batches[0].columns}
        trained = all(parameter.requires_grad for parameter in model.parameters())
        try:
            if self._peaks is None or not (alike and trained and sum(lengths) == computed):
                raise UserError("it needs all weights trained, and sequences of one length")
            rows = sum(batch.rows for batch in batches)
            peaks = self._peaks if self.peak is None else replace(self._peaks, data_sheet=self.peak, source="as given")
            self.waterfall = self._profile.waterfall(seconds, model, rows, batches[0].columns, peaks)
            folder.mkdir(parents=True, exist_ok=True)
            write_json(folder / "waterfall.json", self.waterfall)
        except UserError as error:
            print(f"YupanaCallback: no waterfall, because {error}", file=sys.stderr)

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
        tokens: Any = named.get("input_ids", positional[0] if positional else named.get("inputs_embeds"))
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
                trained=bool(module.weight.requires_grad),
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


def _outside_compilation(hook: Any) -> Any:
    return torch.compiler.disable(hook)
