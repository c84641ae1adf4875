"""From hardware and hours to a model, tokens and an expected loss; and what other choices would cost.

The budget is count · peak · MFU · seconds, in the `palm` convention that MFU is quoted in. The law's N and D are met
exactly: D is the budget over the palm FLOPs a token of the real shape, so attention and the head are paid for.
"""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from yupana.config import CheckpointConfig, Config, DataConfig, LogConfig, OptimConfig, TrainConfig
from yupana.errors import UserError
from yupana.flops.count import flops_per_token
from yupana.model.shapes import ModelShape
from yupana.scaling import counting, hyperparameters, laws
from yupana.scaling.laws import ChinchillaLaw
from yupana.scaling.shapes import family

WORTH_A_WORD = 0.01  # of the loss: an error on held-out runs below that is not told
FURTHEST = 100.0  # times the largest budget a law was fitted on, without --far
SIZES = (0.25, 0.5, 2**-0.5, 1.0, 2**0.5, 2.0, 4.0)  # of the trade-off curve, in models of the optimum's size


@dataclass(frozen=True)
class Request:
    """What there is to spend and what is wanted."""

    hardware: str
    peak: float
    """FLOP/s of one accelerator."""
    watts: float | None
    count: int
    seconds: float
    mfu: float
    vocab_size: int = 128_256
    seq_len: int = 2048
    corpus: str = "python"
    corpus_tokens: float | None = None
    """Distinct tokens there are; more than these are repeats."""
    serve_tokens: float = 0.0
    """Tokens the model will read and write in its life."""
    price: float | None = None
    """Of one accelerator for an hour, in any currency."""
    lr_law: str = "step"
    schedule: str = "cosine"
    far: bool = False
    size: float = 1.0
    """Parameters over the optimum's: 0.5 trains a model half as large on more tokens."""

    @property
    def flops(self) -> float:
        """The budget, palm FLOPs."""
        return self.count * self.peak * self.mfu * self.seconds


def make_request(seconds: float, mfu: float, count: int, peak: float, **rest: Any) -> Request:
    """A checked request. Raises UserError for zero time, an MFU outside (0, 1], no accelerator or a negative price."""
    for name, value in (("hours", seconds), ("count", count), ("the peak", peak)):
        if not (value > 0 and math.isfinite(value)):
            raise UserError(f"{name} must be more than zero, got {value:g}")
    if not 0 < mfu <= 1:
        raise UserError(f"mfu is a share of the peak between 0 and 1, got {mfu:g}" + (" (40 % is 0.4)" if mfu > 1 else ""))
    for name in ("price", "corpus_tokens"):
        if rest.get(name) is not None and rest[name] <= 0:
            raise UserError(f"{name} must be positive, got {rest[name]:g}")
    return Request(seconds=seconds, mfu=mfu, count=count, peak=peak, **rest)


def plan(request: Request, law: ChinchillaLaw) -> tuple[dict[str, Any], Config]:
    """The plan as one object, and the configuration that `yupana train` starts.

    Raises UserError when the law would have to be extrapolated more than a hundredfold (unless `far`), or no Llama is
    small enough.
    """
    warnings = _extrapolation(request, law)
    choices = Choices(request, law)
    best = choices.best()
    shape = choices.shapes[best if request.size == 1 else choices.nearest(best, request.size)]
    config = configuration(request, shape)
    tokens = config.total_steps * config.train.global_batch * request.seq_len
    loss = float(expected_loss(request, law, counting.parameters(shape, law.counted), tokens))
    warnings += _caveats(request, law, tokens)
    flops = counting.training_flops(shape, tokens, request.seq_len, "palm")
    seconds = flops / (request.count * request.peak * request.mfu)
    result = {
        "hardware": request.hardware,
        "count": request.count,
        "mfu": request.mfu,
        "law": law.name,
        "flops": flops,
        "flops_by_convention": {c: counting.training_flops(shape, tokens, request.seq_len, c) for c in counting.FLOPS},
        "budget_flops": request.flops,
        "parameters": shape.parameters,
        "parameters_by_convention": {c: counting.parameters(shape, c) for c in counting.PARAMETERS},
        "tokens": tokens,
        "tokens_per_parameter": tokens / shape.parameters,
        "epochs": None if request.corpus_tokens is None else tokens / request.corpus_tokens,
        "loss": loss,
        "loss_interval": _interval(request, law, counting.parameters(shape, law.counted), tokens),
        "interval_level": 0.8,
        "seconds": seconds,
        **_bill(request, seconds),
        "model": dataclasses.asdict(shape),
        "seq_len": request.seq_len,
        "steps": config.total_steps,
        "batch_tokens": config.train.global_batch * request.seq_len,
        "lr": config.optim.lr,
        "lr_law": request.lr_law,
        "schedule": config.optim.schedule,
        "warmup_steps": config.optim.warmup_steps,
        "optimum_6nd": dict(zip(("n", "tokens"), map(float, law.optimum(request.flops)), strict=True)),
        "trade_off": trade_off(choices, best),
        "ten_points_of_mfu": ten_points_of_mfu(choices, best),
        "inference_aware": inference_aware(law, loss, request.serve_tokens),
        "warnings": warnings,
    }
    return result, config


class Choices:
    """Every real shape with what the budget buys for it; arrays are [shapes]."""

    def __init__(self, request: Request, law: ChinchillaLaw) -> None:
        self.request, self.law = request, law
        self.shapes = family(request.vocab_size)
        self.n = np.array([shape.parameters for shape in self.shapes], dtype=float)
        counted = np.array([counting.parameters(shape, law.counted) for shape in self.shapes], dtype=float)
        cost = np.array([flops_per_token(shape, request.seq_len)["palm"] for shape in self.shapes], dtype=float)
        self.tokens = request.flops / cost
        self.loss = expected_loss(request, law, counted, self.tokens)

    def best(self) -> int:
        """Index of the least expected loss."""
        return int(np.argmin(self.loss))

    def nearest(self, index: int, factor: float) -> int:
        """Index of the shape nearest `factor` times the parameters of `index`."""
        return int(np.argmin(np.abs(np.log(self.n / (factor * self.n[index])))))


def expected_loss(request: Request, law: ChinchillaLaw, n: Any, tokens: Any) -> Any:
    """The law's loss; with a corpus smaller than `tokens`, repeats and excess parameters count for less (2305.16264)."""
    once = law.loss(n, tokens)
    if request.corpus_tokens is None:
        return once
    return np.where(tokens > request.corpus_tokens, laws.repeated_loss(law, n, tokens, request.corpus_tokens), once)


def trade_off(choices: Choices, best: int) -> list[dict[str, float]]:
    """The same budget spent on smaller and larger models: what each costs in loss."""
    rows = []
    for i in sorted({choices.nearest(best, factor) for factor in SIZES}):
        rows.append(
            {
                "size": choices.n[i] / choices.n[best],
                "parameters": int(choices.n[i]),
                "tokens": float(choices.tokens[i]),
                "tokens_per_parameter": float(choices.tokens[i] / choices.n[i]),
                "loss": float(choices.loss[i]),
                "loss_above_best": float(choices.loss[i] - choices.loss[best]),
            }
        )
    return rows


def ten_points_of_mfu(choices: Choices, best: int) -> dict[str, float] | None:
    """The loss with an MFU ten points higher, optimally spent; None where that passes 1."""
    request = choices.request
    if request.mfu + 0.1 > 1:
        return None
    better = dataclasses.replace(request, mfu=request.mfu + 0.1)
    after = float(Choices(better, choices.law).loss.min())
    saved = request.seconds * (1 - request.mfu / better.mfu) / 3600
    return {"mfu": better.mfu, "loss": after, "gain": float(choices.loss[best]) - after, "hours_saved": saved}


def inference_aware(law: ChinchillaLaw, loss: float, serve_tokens: float) -> dict[str, float] | None:
    """The model that reaches `loss` for the least 6·N·D + 2·N·D_serve FLOPs (2401.00448); None when nothing is served."""
    if serve_tokens <= 0:
        return None
    sizes = np.geomspace(1e5, 1e13, 4000)
    tokens = law.tokens_for(sizes, loss)
    total = sizes * (6 * tokens + 2 * serve_tokens)
    i, alone = int(np.argmin(total)), int(np.argmin(sizes * tokens))
    return {
        "serve_tokens": serve_tokens,
        "loss": loss,
        "parameters": float(sizes[i]),
        "tokens": float(tokens[i]),
        "training_flops": float(6 * sizes[i] * tokens[i]),
        "total_flops": float(total[i]),
        "total_flops_of_training_optimum": float(total[alone]),
        "saved": float(1 - total[i] / total[alone]),
    }


def configuration(request: Request, shape: ModelShape) -> Config:
    """The run: whole steps that spend the budget and no more; learning rate and batch by the chosen law."""
    cost = float(flops_per_token(shape, request.seq_len)["palm"])
    tokens = request.flops / cost
    lr, batch_tokens = hyperparameters.learning_rate_and_batch(request.lr_law, shape, tokens, request.seq_len)
    batch = max(1, round(batch_tokens / request.seq_len))
    batch = max(request.count, request.count * round(batch / request.count))  # every accelerator has its share
    batch = min(batch, max(request.count, int(tokens / request.seq_len / 20 / request.count) * request.count))
    steps = int(tokens / (batch * request.seq_len))
    if steps < 10:
        raise UserError(
            f"the budget pays for {steps} steps of {batch} sequences of {request.seq_len} tokens: take more hours, fewer "
            "accelerators or a shorter --seq_len"
        )
    return Config(
        model=shape,
        data=DataConfig(corpus=request.corpus, seq_len=request.seq_len, tokenizer=_tokenizer(request.vocab_size)),
        train=TrainConfig(steps=steps, global_batch=batch, micro_batch=_micro_batch(batch, request)),
        optim=OptimConfig(
            lr=float(f"{lr:.3g}"),
            schedule=request.schedule,  # type: ignore[arg-type]
            warmup_steps=max(1, min(2000, round(0.02 * steps))),
        ),
        checkpoint=CheckpointConfig(every=max(1, min(1000, steps // 5))),
        log=LogConfig(every=max(1, steps // 2000), eval_every=max(1, steps // 20)),
    )


def _interval(request: Request, law: ChinchillaLaw, n: float, tokens: float) -> list[float] | None:
    pair = law.interval(n, tokens)
    if pair is None:
        return None
    shift = float(expected_loss(request, law, n, tokens) - law.loss(n, tokens))  # what repeating costs
    return [pair[0] + shift, pair[1] + shift]


def _bill(request: Request, seconds: float) -> dict[str, float | None]:
    hours = request.count * seconds / 3600
    energy = None if request.watts is None else hours * request.watts / 1000
    return {
        "accelerator_hours": hours,
        "energy_kwh": energy,
        "cost": None if request.price is None else hours * request.price,
    }


def _extrapolation(request: Request, law: ChinchillaLaw) -> list[str]:
    if law.largest_flops is None or request.flops <= law.largest_flops:
        return []
    times = request.flops / law.largest_flops
    if times > FURTHEST and not request.far:
        raise UserError(
            f"{request.flops:.3g} FLOPs are {times:,.0f} times the largest run the law '{law.name}' was fitted on: fit "
            "it on larger runs, or add --far to extrapolate all the same"
        )
    return [f"the budget is {times:,.1f} times the largest run the law was fitted on", *missed(law)]


def missed(law: ChinchillaLaw) -> list[str]:
    """The error that the law made on larger runs than it was fitted on, where it was tried and is worth a word.

    An interval of refits holds the scatter of runs and not the error of the law's own form.
    """
    tried = law.held_out
    if tried is None or abs(error := tried["mean_error"]) < WORTH_A_WORD:
        return []
    return [
        f"fitted below {tried['below']:.2g} FLOPs, this law told the losses up to {tried['furthest']:.0f} times beyond "
        f"{abs(error):.1%} too {'high' if error > 0 else 'low'}: expect the same here, outside the interval"
    ]


def _caveats(request: Request, law: ChinchillaLaw, tokens: int) -> list[str]:
    told = []
    if law.name in laws.LAWS:
        told.append(
            f"the law '{law.name}' was fitted on its authors' text and tokenizer: the split between size and tokens carries "
            "over, the level of the loss does not; fit a law on your own runs for that"
        )
    if law.interval(1e8, 1e9) is None:
        told.append(f"the law '{law.name}' comes without uncertainty, so the loss has no interval")
    if request.corpus_tokens and tokens > request.corpus_tokens:
        told.append(
            f"the corpus is read {tokens / request.corpus_tokens:.1f} times; repeats count for less, by the decay that "
            "2305.16264 measured on C4"
        )
    if request.watts is not None:
        told.append("energy is the data sheet's power at full load, without hosts and cooling")
    return told


def _tokenizer(vocab_size: int) -> str:
    if vocab_size == 128_256:
        return "llama3"
    return f"bpe:{vocab_size}" if vocab_size > 512 else "bytes"


def _micro_batch(batch: int, request: Request) -> int:
    """The largest divisor of one accelerator's share that holds at most 16 384 tokens."""
    share = batch // request.count
    most = max(1, 16_384 // request.seq_len)
    return max(d for d in range(1, min(share, most) + 1) if share % d == 0)
