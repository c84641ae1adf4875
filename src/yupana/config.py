"""Every setting of a run: typed, with its unit, default and check, in one file.

A configuration comes from a preset, then a YAML file, then `--section.key value` overrides, each on top of
the one before; jsonargparse reads and type-checks them.
"""

from __future__ import annotations

import dataclasses
import itertools
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Literal, TypeVar, get_args, get_origin, get_type_hints

from yupana.errors import UserError, did_you_mean
from yupana.files import write_atomically
from yupana.model.shapes import ModelShape

PRESETS = Path(__file__).parent / "presets"

Tree = TypeVar("Tree")
"""A tree of settings: a dataclass of sections, with the name of its COMMAND."""


@dataclass(frozen=True)
class PhaseConfig:
    """A mixture that begins later in the run."""

    after: int
    """Tokens of the run after which it begins (with the next whole step)."""
    corpus: str | list[str] | dict[str, float]
    """As data.corpus."""


@dataclass(frozen=True)
class DataConfig:
    """Which text, cut how."""

    corpus: str | list[str] | dict[str, float] = "python"
    """A folder of token shards, or text to prepare first (a file, a folder, 'python' for the Python
    installation's own library, hf:NAME for a hub dataset); or a mixture of them. {folder: weight}: whole numbers are
    proportions (tokens of each, say), others are shares that sum to 1 or percent that sum to 100; 0: only evaluated.
    [folder, folder]: by size, see temperature."""
    temperature: float = 1.0
    """Of a mixture given as a list: shares in proportion to (training tokens)^(1/temperature); large: all equal."""
    phases: tuple[PhaseConfig, ...] = ()
    """Mixtures that replace data.corpus later in the run: [{after: TOKENS, corpus: MIXTURE}, …]."""
    tokenizer: str = "bpe:4096"
    """For text that is not prepared yet: bytes, bpe:VOCAB (trained on that text), llama3, or a folder."""
    seq_len: int = 256
    """Tokens in a sequence."""
    seed: int = 0
    """Seed of the order of the data."""
    packing: Literal["stream", "documents", "best-fit"] = "stream"
    """stream: attention crosses document boundaries; documents: no token attends across documents; best-fit: the same,
    and a document that fits into a sequence is never cut."""

    def __post_init__(self) -> None:
        _at_least(1, data=self, names=["seq_len"])
        _at_least(0, data=self, names=["seed"])
        if not self.temperature > 0:
            raise UserError(f"data.temperature must be above 0, got {self.temperature:g}")
        _check_mixture("data.corpus", self.corpus)
        before = 0
        for phase in self.phases:
            _check_mixture(f"data.phases, after {phase.after}", phase.corpus)
            if phase.after <= before:
                raise UserError(
                    f"data.phases must come in order, each after more tokens than the one before: got {phase.after} "
                    f"after {before}"
                )
            before = phase.after
        if self.temperature != 1 and not any(isinstance(c, list) for c in (self.corpus, *(p.corpus for p in self.phases))):
            raise UserError(
                "data.temperature sets the shares of a mixture given as a list, data.corpus: [A, B]; here it would do "
                "nothing: leave it out, or leave the weights out"
            )


@dataclass(frozen=True)
class TrainConfig:
    """How long, how large a batch, how precise."""

    steps: int | None = None
    """Optimiser steps to take; or give tokens."""
    tokens: int | None = None
    """Tokens to train on, rounded up to whole steps; or give steps."""
    global_batch: int = 32
    """Sequences in an optimiser step."""
    micro_batch: int | None = None
    """Sequences in one forward and backward pass (gradient accumulation); default: all of global_batch."""
    precision: Literal["auto", "fp32", "tf32", "bf16-autocast", "bf16", "bf16-lean"] = "auto"
    """bf16: bf16 weights with fp32 master copies in the optimiser; bf16-lean: bf16 weights and moments with
    stochastic rounding, 8 bytes a parameter; tf32: fp32 rounded to 19 bits inside a GPU's products; auto: bf16 where
    the machine multiplies it faster than fp32."""
    compile: Literal["auto", "off", "block", "model", "max-autotune", "cuda-graphs"] = "auto"
    """torch.compile: one block that all layers share, the whole model, the block with every product's kernel
    searched for, or the whole model replayed as CUDA graphs; auto: block, when the run is long enough to earn the
    compile time back."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """auto: the GPU if there is one."""
    seed: int = 0
    """Seed of the initial weights (and of stochastic rounding)."""

    def __post_init__(self) -> None:
        if (self.steps is None) == (self.tokens is None):
            given = "both are given" if self.steps is not None else "neither is given"
            raise UserError(f"exactly one of train.steps and train.tokens says how long to train: {given}")
        _at_least(1, train=self, names=["steps", "tokens", "global_batch", "micro_batch"])
        _at_least(0, train=self, names=["seed"])
        if self.micro_batch and self.global_batch % self.micro_batch:
            raise UserError(
                f"train.global_batch ({self.global_batch}) must be a multiple of train.micro_batch ({self.micro_batch})"
            )

    def total_steps(self, seq_len: int) -> int:
        """Optimiser steps of the whole run."""
        if self.steps is not None:
            return self.steps
        assert self.tokens is not None
        return -(-self.tokens // (self.global_batch * seq_len))


@dataclass(frozen=True)
class FastConfig:
    """The fast paths, each of which can be switched back to its slow twin: the rungs of `yupana flops ladder`."""

    attention: Literal["auto", "unfused", "sdpa", "blocked", "flash", "cudnn", "flex"] = "auto"
    """unfused: scores whole; sdpa: torch's choice; blocked: query blocks, for a CPU; flash, cudnn: that back end of a
    GPU; flex: FlexAttention, whose cost follows the documents; auto: the fastest known for the device and length."""
    projections: Literal["fused", "separate"] = "fused"
    """Q, K and V from one product, gate and up from one; or from three and two."""
    loss: Literal["chunked", "full"] = "chunked"
    """Output head and cross-entropy a chunk of tokens at a time, or all logits at once."""
    adamw: Literal["fused", "foreach", "loop"] = "fused"
    """One kernel for all parameters, one an operation, or one an operation and parameter."""
    recompute: Literal["none", "selective", "block"] = "none"
    """What is computed again in the backward pass to save memory: the cheap operations of a compiled block, or all
    of each block."""
    float8: Literal["off", "tensorwise", "rowwise"] = "off"
    """8-bit products in the blocks (not in the head), scaled by tensor or by row; a GPU from Ada or Hopper on."""
    allocator: Literal["keep", "system"] = "keep"
    """keep: freed memory stays with the process (a CPU), segments can grow (a GPU); system: as the system does it."""
    overlap: bool = True
    """Read the next batch during a step, and let Python collect garbage only between evaluations."""


@dataclass(frozen=True)
class OptimConfig:
    """The optimiser and the learning rate's schedule."""

    name: Literal["adamw", "muon"] = "adamw"
    """adamw (arXiv 1711.05101); muon: Muon for the blocks' matrices, AdamW for the embedding, the head and norms."""
    lr: float = 1e-3
    """Peak learning rate."""
    weight_decay: float = 0.1
    """Decoupled decay, on matrices only (not on norms)."""
    betas: tuple[float, float] = (0.9, 0.95)
    """Decay of the first and second moments."""
    eps: float = 1e-8
    """Added to the root of the second moment."""
    clip: float = 1.0
    """Largest global gradient norm; 0 switches clipping off."""
    schedule: Literal["cosine", "wsd", "constant"] = "cosine"
    """After the warm-up: cosine to min_lr_ratio; wsd: stable, then linear decay over decay_fraction."""
    warmup_steps: int = 20
    """Steps of linear warm-up."""
    min_lr_ratio: float = 0.1
    """Learning rate at the end, as a share of lr."""
    decay_fraction: float = 0.2
    """Share of the steps that wsd decays over."""

    def __post_init__(self) -> None:
        for name in ("lr", "eps"):
            if not getattr(self, name) > 0:
                raise UserError(f"optim.{name} must be positive, got {getattr(self, name):g}")
        _at_least(0, optim=self, names=["weight_decay", "clip", "warmup_steps"])
        for name in ("min_lr_ratio", "decay_fraction"):
            if not 0 <= getattr(self, name) <= 1:
                raise UserError(f"optim.{name} must lie between 0 and 1, got {getattr(self, name):g}")
        if not all(0 <= beta < 1 for beta in self.betas):
            raise UserError(f"optim.betas must lie in [0, 1), got {self.betas}")


@dataclass(frozen=True)
class ParallelConfig:
    """How many ranks share the work, and in which way: their product is the number of processes."""

    fsdp: int = -1
    """Ranks that share the weights, gradients and optimiser among them, each with its own sequences; -1 takes the
    ranks that the others leave."""
    replicate: int = 1
    """Copies of the model, each with its own sequences: data parallel, or hybrid sharding beside fsdp."""
    tp: int = 1
    """Ranks that share each matrix product, the sequence between the products, and the vocabulary of the loss."""
    cp: int = 1
    """Ranks that share each sequence, in attention too, and the weights as fsdp does."""
    pp: int = 1
    """Stages of a pipeline of layers; not in this version."""
    timeout: int = 600
    """Seconds without progress after which every rank says where it stands, and all end."""

    def __post_init__(self) -> None:
        _at_least(1, parallel=self, names=["replicate", "tp", "cp", "pp", "timeout"])
        if self.fsdp != -1:
            _at_least(1, parallel=self, names=["fsdp"])
        if self.pp > 1:
            raise UserError(
                f"parallel.pp is {self.pp}, but this version has no pipeline parallelism: leave it at 1; use fsdp and tp"
            )


@dataclass(frozen=True)
class CheckpointConfig:
    """When to save and what to keep."""

    every: int = 100
    """Steps between checkpoints, the last step's among them; 0 saves none: for measuring, not for training."""
    keep: int = 2
    """Newest checkpoints to keep, beside the one with the best validation loss."""
    export: bool = False
    """Write a Hugging Face folder, export/, at the end."""
    background: bool = False
    """Write while training goes on: a step waits only for a copy in memory, which takes as much again."""

    def __post_init__(self) -> None:
        _at_least(0, checkpoint=self, names=["every"])
        _at_least(1, checkpoint=self, names=["keep"])
        if self.export and not self.every:
            raise UserError("checkpoint.export needs a checkpoint, and checkpoint.every is 0: set it to 1 or more")


@dataclass(frozen=True)
class LogConfig:
    """What is recorded, and where it is sent."""

    every: int = 1
    """Steps between lines of metrics."""
    eval_every: int = 50
    """Steps between evaluations on held-out text (the first and last step are always evaluated)."""
    eval_tokens: int = 131_072
    """Held-out tokens in an evaluation, at most."""
    tensorboard: bool = False
    """Write TensorBoard events into the run directory."""
    wandb: bool = False
    """Log to Weights & Biases; offline unless you are logged in."""
    trackio: bool = False
    """Log to Trackio, on this machine; `trackio show` opens its page."""
    samples: bool = False
    """After every checkpoint, how the model goes on from a held-out passage: the report shows them one below the other."""
    anatomy_every: int | None = None
    """Steps between looks inside: activations, gradients, updates and attention of each layer; null: never."""

    def __post_init__(self) -> None:
        _at_least(1, log=self, names=["every", "eval_every", "eval_tokens", "anatomy_every"])


@dataclass(frozen=True)
class Config:
    """A run, whole."""

    COMMAND: ClassVar[str] = "train"
    model: ModelShape = field(default_factory=ModelShape)
    data: DataConfig = field(default_factory=DataConfig)
    train: TrainConfig = field(default_factory=lambda: TrainConfig(steps=100))
    fast: FastConfig = field(default_factory=FastConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)
    parallel: ParallelConfig = field(default_factory=ParallelConfig)
    checkpoint: CheckpointConfig = field(default_factory=CheckpointConfig)
    log: LogConfig = field(default_factory=LogConfig)

    def __post_init__(self) -> None:
        if self.log.samples and (self.checkpoint.background or not self.checkpoint.every):
            raise UserError(
                "log.samples reads each checkpoint when it is written: it needs checkpoint.every of 1 or more, and no "
                "checkpoint.background"
            )

    @property
    def total_steps(self) -> int:
        """Optimiser steps of the whole run."""
        return self.train.total_steps(self.data.seq_len)


def load(preset: str | None = None, file: Path | None = None, overrides: Sequence[str] = ()) -> Config:
    """The configuration from a preset's name, a YAML file and `--section.key value` overrides.

    Raises UserError, naming the key and the nearest valid one, for anything that does not fit.
    """
    layers: list[str] = []
    for layer in (preset_path(preset) if preset is not None else None, file):
        if layer is not None:
            layers += [*_clear_other_length(_checked_file(Config, layer)), "--config", str(layer)]
    return _parsed(Config, [*layers, *_clear_other_length(" ".join(overrides)), *overrides])


def load_tree(tree: type[Tree], file: Path | None, overrides: Sequence[str]) -> Tree:
    """As `load`, for another command's tree of settings."""
    if file is not None:
        _checked_file(tree, file)
    return _parsed(tree, [*(["--config", str(file)] if file is not None else []), *overrides])


def preset_path(name: str) -> Path:
    """The YAML file of a preset. Raises UserError for an unknown name."""
    path = PRESETS / f"{name}.yaml"
    if not path.is_file():
        raise UserError(
            f"there is no preset '{name}'{did_you_mean(name, preset_names())}: the presets are {', '.join(preset_names())}"
        )
    return path


def preset_names() -> list[str]:
    """The presets that come with yupana."""
    return sorted(path.stem for path in PRESETS.glob("*.yaml"))


def save(config: Any, path: Path) -> None:
    """Write the resolved configuration as YAML, atomically; `load(file=path)` gives it back."""
    import yaml

    write_atomically(path, yaml.safe_dump(as_dict(config), sort_keys=False))


def as_dict(config: Any) -> dict[str, Any]:
    """The configuration as plain dictionaries, lists and scalars."""
    return _plain(dataclasses.asdict(config))


def settings(tree: Any = Config) -> list[tuple[str, str, str]]:
    """Every setting as (dotted key, default, what it is): what the command's --help lists."""
    rows = []
    for section in dataclasses.fields(tree):
        branch = get_type_hints(tree)[section.name]
        told = _attribute_docs(branch)
        default = getattr(tree(), section.name)
        for key in dataclasses.fields(branch):
            rows.append((f"{section.name}.{key.name}", str(getattr(default, key.name)), told[key.name]))
    return rows


def _parsed(tree: type[Tree], arguments: list[str]) -> Tree:
    from jsonargparse import ArgumentParser

    command = tree.COMMAND  # type: ignore[attr-defined]
    parser = ArgumentParser(exit_on_error=False, allow_abbrev=False, prog=f"yupana {command}", add_help=False)
    parser.add_argument("--config", action="config")
    parser.add_class_arguments(tree)
    try:
        parsed = parser.instantiate(parser.parse_args(arguments))
    except UserError:
        raise
    except Exception as error:  # jsonargparse wraps every failure in its own words; retell them in ours
        raise UserError(_retell(tree, error)) from error
    sections = dataclasses.fields(tree)  # type: ignore[arg-type]
    return tree(**{section.name: getattr(parsed, section.name) for section in sections})


def _checked_file(tree: Any, path: Path) -> str:
    """The file's text. Raises UserError unless it is YAML, a mapping of sections that are mappings."""
    import yaml

    try:
        text = path.read_text()
        content = yaml.safe_load(text)
    except FileNotFoundError:
        raise UserError(f"the configuration file {path} does not exist") from None
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"the configuration file {path} cannot be read as text: {error}") from error
    except yaml.YAMLError as error:
        raise UserError(f"the configuration file {path} is not valid YAML: {' '.join(str(error).split())}") from error
    sections = ", ".join(section.name for section in dataclasses.fields(tree))
    if not isinstance(content, dict):
        raise UserError(f"the configuration file {path} holds no settings: it needs sections ({sections})")
    for section, values in content.items():
        if not isinstance(values, dict):
            raise UserError(f"{section} in {path} must be a section of settings, such as 'model:', got {values!r}")
    return text


def _clear_other_length(text: str) -> list[str]:
    """A layer that sets train.steps replaces an earlier layer's train.tokens, and the reverse."""
    given = [name for name in ("steps", "tokens") if re.search(rf"(^|\s|\.){name}\b", text)]
    others = {"steps": "tokens", "tokens": "steps"}
    return [f"--train.{others[given[0]]}=null"] if len(given) == 1 else []


def _retell(tree: Any, error: Exception) -> str:
    """One sentence from a jsonargparse message, with the key and the nearest valid one."""
    message = str(error)
    keys = [key for key, _, _ in settings(tree)]
    if unknown := re.search(r"Group '(\S+)' does not accept option '(\S+)'", message):
        key = f"{unknown[1]}.{unknown[2]}"
        return f"unknown setting '{key}'{did_you_mean(key, keys)}"
    if unknown := re.search(r"Option '(\S+)' is not accepted|[Uu]nrecognized arguments: --([^\s=]+)", message):
        key = unknown[1] or unknown[2]
        same_name = [known for known in keys if known.endswith(f".{key}")]  # --lr for --optim.lr
        return f"unknown setting '{key}'{did_you_mean(same_name[0] if same_name else key, keys)}"
    wrong = [key for key in re.findall(r'Parser key "([^"]+)"', message) if key in keys]
    if wrong:
        values = re.findall(r"Got value: (.*)", message)
        return f"{wrong[-1]} must be {_expected(tree, wrong[-1])}" + (f", got {values[0].strip()}" if values else "")
    if section := re.search(r'Parser key "(\w+)"', message):
        return f"{section[1]} is a section: set --{section[1]}.KEY (yupana {tree.COMMAND} --help lists every setting)"
    return " ".join(message.split())


def _expected(tree: Any, key: str) -> str:
    """What a setting takes, in words."""
    section, name = key.split(".", 1)
    wanted = get_type_hints(get_type_hints(tree)[section])[name.split(".")[0]]
    if get_origin(wanted) is Literal:
        return f"one of {', '.join(get_args(wanted))}"
    words = {
        int: "a whole number",
        float: "a number",
        bool: "true or false",
        str: "text",
        tuple[float, float]: "two numbers, such as [0.9, 0.95]",
        list[str]: "a list of folders",
        dict[str, float]: "a mixture {folder: weight}",
        tuple[PhaseConfig, ...]: "a list of {after: TOKENS, corpus: MIXTURE}",
    }
    kinds = [words[kind] for kind in get_args(wanted) or (wanted,) if kind in words]
    return " or ".join([words[wanted]] if wanted in words else kinds) or "a section of settings"


def _check_mixture(where: str, corpus: str | list[str] | dict[str, float]) -> None:
    """Raise UserError unless the weights are whole numbers, shares that sum to 1, or percent that sum to 100."""
    if not corpus:
        raise UserError(f"{where} is an empty mixture: name at least one folder of shards")
    if isinstance(corpus, list) and len(set(corpus)) < len(corpus):
        raise UserError(f"{where} names a source twice: name each once, or give weights")
    if not isinstance(corpus, dict):
        return
    for name, weight in corpus.items():
        if not 0 <= weight < float("inf"):
            raise UserError(f"{where} gives '{name}' the weight {weight:g}: weights are numbers from 0 up")
    total = sum(corpus.values())
    if not total:
        raise UserError(f"{where} has only weights of 0: give at least one source a weight above 0")
    whole = all(float(weight).is_integer() for weight in corpus.values())
    if not whole and min(abs(total - 1), abs(total - 100) / 100) > 2e-3:
        raise UserError(
            f"the weights of {where} sum to {total:g}: shares must sum to 1 and percent to 100; only whole numbers are "
            "taken as proportions"
        )


def _at_least(least: int, names: list[str], **branch: Any) -> None:
    ((section, values),) = branch.items()
    for name in names:
        value = getattr(values, name)
        if value is not None and value < least:
            raise UserError(f"{section}.{name} must be at least {least}, got {value}")


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _plain(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(entry) for entry in value]
    return value


def _attribute_docs(branch: type) -> dict[str, str]:
    """The string under each field of a dataclass, as one line."""
    import ast
    import inspect
    import textwrap

    body = ast.parse(textwrap.dedent(inspect.getsource(branch))).body[0].body  # type: ignore[attr-defined]
    docs = {}
    for here, following in itertools.pairwise(body):
        if isinstance(here, ast.AnnAssign) and isinstance(following, ast.Expr):
            docs[here.target.id] = " ".join(ast.literal_eval(following.value).split())  # type: ignore[union-attr]
    return docs
