"""A grid of IsoFLOP runs: sizes × budgets × seeds, each an ordinary run directory, `jobs` at a time, here or by submitit.

The sweep keeps no state of its own: a run is done when its directory says so, so an interrupted sweep goes on where it
stopped, and `yupana scaling fit OUT/runs/*` reads the result.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from queue import SimpleQueue
from typing import Any, get_type_hints

import numpy as np

from yupana import config
from yupana.config import CheckpointConfig, Config, DataConfig, LogConfig, OptimConfig, TrainConfig
from yupana.errors import UserError, did_you_mean
from yupana.model.shapes import ModelShape
from yupana.run import RunDirectory
from yupana.scaling import counting, hyperparameters
from yupana.scaling.result import load_law
from yupana.scaling.submission import Training, submitted

FEWEST_STEPS = 30


@dataclass(frozen=True)
class Sweep:
    """The YAML file of a sweep."""

    out: str
    """Folder of the sweep: configurations and runs."""
    budgets: tuple[float, ...]
    """FLOPs of a run, in `convention`."""
    corpus: str = "python"
    tokenizer: str = "bytes"
    """For text that is not prepared yet."""
    vocab_size: int = 300
    seq_len: int = 256
    sizes: int = 5
    """Models a budget."""
    span: float = 4.0
    """The largest model of a budget over the one in the middle, and the middle over the smallest."""
    convention: str = "6ND"
    """How budgets are counted: 6ND (all parameters), palm or exact."""
    law: str = "besiroglu"
    """Law whose optimum is the middle of the sizes: a published name or a fit."""
    aspect: float = 64.0
    """d_model over n_layers, the same for all."""
    head_dim: int = 32
    """Widths are multiples of it."""
    lr_law: str = "step"
    lr_scale: float = 1.0
    """Times the law's learning rate."""
    lr_most: float = 0.02
    """The learning rate at most: both laws grow without bound towards small models."""
    batch_scale: float = 1.0
    """Times the law's batch."""
    schedule: str = "cosine"
    """Comes down at each run's own end."""
    min_lr_ratio: float = 0.1
    seeds: tuple[int, ...] = (0,)
    device: str = "auto"
    compile: str = "off"
    jobs: int = 1
    """Runs at a time. On this machine they share its processor's threads (models too small for all of them), or have a
    GPU each."""
    executor: str = "here"
    """here: processes of this one; submitit: Slurm's jobs where there is Slurm, submitit's local ones elsewhere."""
    minutes: int = 240
    """Of one run at most, for submitit: one that is cut off or pre-empted is queued again and goes on."""
    partition: str = ""
    """Slurm's, for submitit."""
    eval_tokens: int = 131_072
    evaluations: int = 5
    """Of a run, beside the one before its first step; they cost as much as a third of training on their tokens."""
    checkpoints: int = 3
    """Of a run; 0 saves none, so that a run that is killed begins again."""

    def __post_init__(self) -> None:
        if not self.budgets or min(self.budgets) <= 0:
            raise UserError("budgets in the sweep's file must be a list of positive FLOPs, such as [1e13, 3e13, 1e14]")
        if self.executor not in ("here", "submitit"):
            raise UserError(f"executor in the sweep's file is here or submitit, not '{self.executor}'")
        positive = ("sizes", "vocab_size", "seq_len", "head_dim", "aspect", "lr_scale", "lr_most", "batch_scale", "jobs")
        for name in (*positive, "minutes"):
            if getattr(self, name) <= 0:
                raise UserError(f"{name} in the sweep's file must be positive, got {getattr(self, name)}")
        if self.evaluations < 1 or self.checkpoints < 0:
            raise UserError("evaluations in the sweep's file must be at least 1, and checkpoints at least 0")
        if self.span <= 1 or not self.seeds:
            raise UserError("span in the sweep's file must be above 1, and seeds must hold at least one number")
        if self.convention not in counting.FLOPS:
            raise UserError(f"convention in the sweep's file is one of {', '.join(counting.FLOPS)}, not '{self.convention}'")


@dataclass(frozen=True)
class Planned:
    """One run of a sweep."""

    name: str
    budget: float
    config: Config
    run: RunDirectory
    state: str = field(default="waiting")
    """waiting, begun or done."""

    @property
    def tokens(self) -> int:
        """Tokens of the whole run."""
        return self.config.total_steps * self.config.train.global_batch * self.config.data.seq_len

    @property
    def palm_flops(self) -> float:
        """What the run costs, palm FLOPs."""
        return counting.training_flops(self.config.model, self.tokens, self.config.data.seq_len, "palm")


def read_sweep(path: Path) -> Sweep:
    """The sweep of a YAML file. Raises UserError for what is not there, unknown or of a wrong type."""
    import yaml

    try:
        content = yaml.safe_load(path.read_text())
    except FileNotFoundError:
        raise UserError(f"the sweep's file {path} does not exist") from None
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise UserError(f"the sweep's file {path} cannot be read: {' '.join(str(error).split())}") from error
    if not isinstance(content, dict):
        raise UserError(f"the sweep's file {path} holds no settings: it needs out and budgets")
    known = {f.name for f in dataclasses.fields(Sweep)}
    for key in content:
        if key not in known:
            raise UserError(f"unknown setting '{key}' in {path}{did_you_mean(str(key), known)}")
    if missing := [name for name in ("out", "budgets") if name not in content]:
        raise UserError(f"{path} lacks {' and '.join(missing)}")
    hints = get_type_hints(Sweep)
    return Sweep(**{key: _typed(key, value, hints[key], path) for key, value in content.items()})


def runs_of(sweep: Sweep) -> list[Planned]:
    """Every run, cheapest first, with its state. Raises UserError when a budget is too small for its models."""
    law = load_law(sweep.law)
    runs = []
    for budget in sweep.budgets:
        middle = float(law.optimum(budget)[0])
        for shape in _shapes(sweep, middle):
            for seed in sweep.seeds:
                settings = _configuration(sweep, shape, budget, seed)
                name = f"{budget:.3g}-{shape.d_model}x{shape.n_layers}-seed{seed}".replace("+", "")
                runs.append(_with_state(name, budget, settings, Path(sweep.out)))
    return sorted(runs, key=lambda one: one.palm_flops)


def speed(runs: list[Planned]) -> float | None:
    """palm FLOP/s that the finished runs reached (median); None before the first."""
    rates = []
    for one in runs:
        if one.state == "done":
            seconds = max(record.get("seconds", 0.0) for record in one.run.metrics())
            rates.append(one.palm_flops / max(seconds, 1e-9))
    return float(np.median(rates)) if rates else None


def write_configurations(sweep: Sweep, runs: list[Planned]) -> None:
    """OUT/configs/NAME.yaml for every run."""
    folder = Path(sweep.out) / "configs"
    folder.mkdir(parents=True, exist_ok=True)
    for one in runs:
        config.save(one.config, folder / f"{one.name}.yaml")


def make(sweep: Sweep, runs: list[Planned], told: Callable[[str], None]) -> list[str]:
    """Train what is not done yet, `jobs` runs at a time; the names of those that failed.

    `told` gets a line before and after each. Each run is a `yupana train` process of its own, its output in
    OUT/logs/NAME.log; a run that had begun is resumed. The first runs alone: it prepares the text for all.
    Raises UserError where submitit is asked for and not installed.
    """
    launch = submitted(sweep) if sweep.executor == "submitit" else Training.__call__
    write_configurations(sweep, runs)
    (Path(sweep.out) / "logs").mkdir(exist_ok=True)
    waiting = [one for one in runs if one.state != "done"]
    places: SimpleQueue[int] = SimpleQueue()
    for place in range(sweep.jobs):
        places.put(place)

    def train(one: Planned) -> int:
        place = places.get()
        try:
            return _train(sweep, one, place, launch, told)
        finally:
            places.put(place)

    with ThreadPoolExecutor(sweep.jobs) as pool:
        try:
            codes = [train(one) for one in waiting[:1]]
            codes += pool.map(train, waiting[1:])
        except BaseException:  # Ctrl-C: the processes have it too; begin no more of them
            pool.shutdown(wait=True, cancel_futures=True)
            raise
    return [one.name for one, code in zip(waiting, codes, strict=True) if code]


def _train(
    sweep: Sweep, one: Planned, place: int, launch: Callable[[Training], int], told: Callable[[str], None]
) -> int:
    """One run; its exit code."""
    told(f"{one.name}: {one.config.model.parameters:,} parameters, {one.tokens:,} tokens")
    out = Path(sweep.out).absolute()
    output = out / "logs" / f"{one.name}.log"
    environment = {} if sweep.executor == "submitit" else shared(sweep, place)
    file = out / "configs" / f"{one.name}.yaml"
    code = launch(Training(str(file), str(one.run.path.absolute()), str(output), environment))
    if code:
        told(f"    {one.name} failed ({code}): see {output}")
    else:
        losses = [record["val_loss"] for record in one.run.metrics() if "val_loss" in record]
        told(f"    {one.name}: validation loss {losses[-1]:.4f}")
    return code


def shared(sweep: Sweep, place: int) -> dict[str, str]:
    """What a run in one of `jobs` places on this machine gets of it: its share of the threads, and a GPU of its own."""
    if sweep.jobs == 1:
        return {}
    threads = max(1, len(os.sched_getaffinity(0)) // sweep.jobs)
    gpu = {"CUDA_VISIBLE_DEVICES": str(place)} if sweep.device == "cuda" else {}
    return {"OMP_NUM_THREADS": str(threads), **gpu}


def _typed(key: str, value: Any, hint: Any, path: Path) -> Any:
    try:
        if hint in (int, float, str):
            return hint(value)
        inner = float if key == "budgets" else int
        return tuple(inner(entry) for entry in value)
    except (TypeError, ValueError):
        kind = "a number" if hint in (int, float) else "text" if hint is str else "a list of numbers"
        raise UserError(f"{key} in {path} must be {kind}, got {value!r}") from None


def _shapes(sweep: Sweep, middle: float) -> list[ModelShape]:
    """`sizes` different shapes, evenly in log N over `span` to either side of `middle` parameters."""
    widths = [sweep.head_dim * k for k in range(1, 1 + 16_384 // sweep.head_dim)]
    family = [_shape(sweep, width) for width in widths]
    n = np.log([shape.parameters for shape in family])
    chosen: list[int] = []
    places = np.linspace(-1, 1, sweep.sizes) if sweep.sizes > 1 else np.zeros(1)
    for target in np.log(middle) + np.log(sweep.span) * places:
        free = [i for i in range(len(family)) if i not in chosen]
        chosen.append(min(free, key=lambda i: abs(n[i] - target)))
    return [family[i] for i in sorted(chosen)]


def _shape(sweep: Sweep, width: int) -> ModelShape:
    heads = width // sweep.head_dim
    return ModelShape(
        n_layers=max(1, round(width / sweep.aspect)),
        d_model=width,
        n_heads=heads,
        n_kv_heads=heads,
        head_dim=sweep.head_dim,
        d_ff=32 * max(1, round(width * 8 / 3 / 32)),
        vocab_size=sweep.vocab_size,
        tie_embeddings=True,
    )


def _configuration(sweep: Sweep, shape: ModelShape, budget: float, seed: int) -> Config:
    cost = counting.training_flops(shape, 1, sweep.seq_len, sweep.convention)
    tokens = budget / cost
    lr, batch_tokens = hyperparameters.learning_rate_and_batch(sweep.lr_law, shape, tokens, sweep.seq_len)
    most = tokens / sweep.seq_len / FEWEST_STEPS
    if most < 1:
        raise UserError(
            f"a budget of {budget:.3g} FLOPs trains {shape.parameters:,} parameters on {tokens:,.0f} tokens only, fewer "
            f"than {FEWEST_STEPS} sequences of {sweep.seq_len}: take a smaller span or seq_len, or larger budgets"
        )
    batch = int(np.clip(round(batch_tokens * sweep.batch_scale / sweep.seq_len), 1, most))
    steps = max(1, round(tokens / (batch * sweep.seq_len)))
    return Config(
        model=shape,
        data=DataConfig(corpus=sweep.corpus, tokenizer=sweep.tokenizer, seq_len=sweep.seq_len, seed=seed),
        train=TrainConfig(
            steps=steps,
            global_batch=batch,
            seed=seed,
            device=sweep.device,  # type: ignore[arg-type]
            compile=sweep.compile,  # type: ignore[arg-type]
        ),
        optim=OptimConfig(
            lr=float(f"{min(lr * sweep.lr_scale, sweep.lr_most):.3g}"),
            schedule=sweep.schedule,  # type: ignore[arg-type]
            warmup_steps=max(1, steps // 20),
            min_lr_ratio=sweep.min_lr_ratio,
        ),
        checkpoint=CheckpointConfig(every=max(20, _share(steps, sweep.checkpoints)) if sweep.checkpoints else 0, keep=1),
        log=LogConfig(
            every=max(1, steps // 200), eval_every=_share(steps, sweep.evaluations), eval_tokens=sweep.eval_tokens
        ),
    )


def _share(steps: int, times: int) -> int:
    """Steps between `times` events of a run, the last at its end; rounded up, so that there are no more."""
    return -(-steps // times)


def _with_state(name: str, budget: float, settings: Config, out: Path) -> Planned:
    run = RunDirectory(out / "runs" / name)
    done = any("val_loss" in record and record["step"] >= settings.total_steps for record in run.metrics())
    return Planned(name, budget, settings, run, "done" if done else "begun" if run.exists else "waiting")
