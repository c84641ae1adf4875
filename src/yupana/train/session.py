"""A run made ready: everything checked, the model built or its last good checkpoint loaded."""

from __future__ import annotations

import platform
import subprocess
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

import yupana
from yupana import config as settings
from yupana.config import Config
from yupana.corpus.batches import Batches
from yupana.corpus.mixture import Mixture
from yupana.corpus.sequences import BestFit
from yupana.corpus.shards import Corpus
from yupana.errors import UserError
from yupana.files import write_atomically, write_json
from yupana.flops import count, hardware
from yupana.flops.layout import Layout, check_layout, check_sequence
from yupana.model.llama import Llama
from yupana.run import RunDirectory
from yupana.train import checkpoint, host, optimizer, parallel
from yupana.train.limits import check_fits, check_rank_fits
from yupana.train.loss import LossFunction
from yupana.train.ranks import Ranks
from yupana.train.saver import Saver
from yupana.train.shares import ALONE, Share, shares

# What a checkpoint's manifest and the configuration must agree on, or data would be skipped or repeated.
MUST_MATCH = {
    "shape": "architecture (model)",
    "dtype": "precision (train.precision)",
    "corpus": "corpus (data.corpus)",
    "phases": "phases of the mixture (data.phases)",
    "tokenizer": "tokenizer",
    "seq_len": "sequence length (data.seq_len)",
    "global_batch": "batch (train.global_batch)",
    "data_seed": "order of data (data.seed)",
    "packing": "packing (data.packing)",
}


@dataclass
class Session:
    """A run made ready: what the loop works with."""

    config: Config
    run: RunDirectory
    mixture: Mixture
    device: str
    precision: str
    compiled: str
    peaks: hardware.Peaks
    model: Llama
    optimizer: optimizer.Optimizer
    batches: Batches
    loss_function: LossFunction
    summed_loss: parallel.Summed
    saver: Saver
    ranks: Ranks = ALONE
    start: int = 0
    seconds: float = 0.0
    notes: list[str] = field(default_factory=list)

    @property
    def micro_batch(self) -> int:
        """Sequences in one forward and backward pass of a rank."""
        return self.config.train.micro_batch or len(self.rows)

    @property
    def rows(self) -> range:
        """The sequences of each global batch that are this rank's."""
        size = self.config.train.global_batch // self.ranks.layout.data
        return range(self.ranks.data_rank * size, (self.ranks.data_rank + 1) * size)

    @property
    def corpus(self) -> Corpus:
        """The first of the mixture: all have the same tokenizer."""
        return next(iter(self.mixture.sources.values()))

    @property
    def planned(self) -> dict[str, int]:
        """Tokens that each source gives to the whole run."""
        config = self.config
        return self.mixture.planned(
            config.total_steps, config.data.seq_len, config.train.global_batch, config.data.seed
        )


def prepare(
    config: Config, run: RunDirectory, mixture: Mixture, *, resume: bool, ranks: Ranks = ALONE
) -> Session:
    """Check that everything fits, build the model, and load the last good checkpoint when resuming.

    Every rank calls it together; rank 0 writes the run directory.
    """
    device = choose_device(config.train.device)
    ranks = ranks.laid_out(config.parallel, device)
    check_layout(
        ranks.layout, config.model, config.data.seq_len, config.train.global_batch, config.train.micro_batch
    )
    fits(config, mixture, ranks.layout)
    # One machine measures for all: ranks that disagreed on precision would train different models.
    precision, peaks = ranks.at_first(lambda: machine(config, device, ranks.count))
    host.make_deterministic(device)
    torch.backends.cuda.matmul.allow_tf32 = precision == "tf32"
    batches = Batches(
        mixture.phases,
        seq_len=config.data.seq_len,
        global_batch=config.train.global_batch,
        seed=config.data.seed,
        packing=config.data.packing,
    )
    if config.fast.recompute == "none":
        ranks.together(lambda: check_memory(config, ranks.layout, precision, device))
    compiled = parallel.how_to_compile(config, ranks.layout, device, peaks.best_known)
    model = parallel.build(config, ranks, device, precision, compiled)
    session = Session(
        config,
        run,
        mixture,
        device,
        precision,
        compiled,
        peaks,
        model,
        build_optimizer(config, model, precision, ranks),
        batches,
        *parallel.loss_functions(config, ranks, compiled),
        Saver(run, ranks, config.checkpoint.keep, background=config.checkpoint.background),
        ranks,
    )
    if resume:
        restore(session)
    ranks.at_first(lambda: begin_files(session))
    return session


def check_memory(config: Config, layout: Layout, precision: str, device: str) -> None:
    """Raise UserError, naming the largest micro-batch that fits, when a rank's step does not fit into its memory."""
    share = config.train.global_batch // layout.data
    micro_batch = config.train.micro_batch or share
    if layout.ranks == 1:
        check_fits(config.model, config.data.seq_len, micro_batch, share, precision, device)
    else:
        check_rank_fits(config.model, config.data.seq_len, micro_batch, share, precision, device, layout)


def machine(config: Config, device: str, count: int) -> tuple[str, hardware.Peaks]:
    """The precision that the configuration comes to here, and the peak of `count` devices like this one."""
    precision = choose_precision(config.train.precision, device)
    one = hardware.peaks(device, {"fp32": "float32", "tf32": "tf32"}.get(precision, "bfloat16"))
    sheet = one.data_sheet and one.data_sheet * count
    return precision, replace(one, measured=one.measured * count, data_sheet=sheet)


def build_optimizer(config: Config, model: Llama, precision: str, ranks: Ranks) -> optimizer.Optimizer:
    """A fresh optimiser over this rank's parts of the model."""
    norm = parallel.norm_function(ranks)
    return optimizer.build(model, precision, config.optim, config.train.seed, config.fast.adamw, norm)


def begin_files(session: Session) -> None:
    """What stands in the run directory before the first step."""
    run = session.run
    settings.save(session.config, run.config_file)
    write_atomically(run.path / "tokenizer.json", session.corpus.tokenizer_file.read_bytes())
    write_json(run.env_file, environment(session))
    run.rewind(session.start or -1)  # from step 0 everything is written again, the first evaluation too


def build_model(config: Config, device: str, precision: str) -> Llama:
    """The plain initial model, in the dtype that the precision keeps its weights in."""
    dtype = torch.bfloat16 if precision in ("bf16", "bf16-lean") else torch.float32
    with torch.device("meta"):
        model = Llama(config.model).to(dtype)
    model.to_empty(device=device)
    model.initialise(config.train.seed)
    return model


def state(session: Session) -> dict[str, Share]:
    """All that a checkpoint holds, as far as it is this rank's."""
    tensors = checkpoint.model_tensors(session.model) | session.optimizer.state()
    return shares(tensors, session.config.model, session.ranks)


def restore(session: Session) -> None:
    """Load the newest undamaged checkpoint, if there is one, and go on after it."""
    folder, session.notes = session.ranks.at_first(lambda: checkpoint.newest_good(session.run))
    if folder is None:
        if session.notes:
            raise UserError(f"{session.run.path} has no undamaged checkpoint: {'; '.join(session.notes)}")
        session.notes.append("no checkpoint yet: starting at step 0")
        return
    about = checkpoint.manifest(folder)
    same_run(session, about)
    if about.get("imported"):  # weights alone, from a Hugging Face folder: the optimiser begins afresh
        import_weights(session, folder, about["dtype"])
    else:
        checkpoint.load(folder, state(session))
    session.start, session.seconds = about["step"], about["seconds"]
    session.optimizer.loaded(session.start)
    session.notes.append(f"resumed from {folder.name}")


def import_weights(session: Session, folder: Path, dtype: str) -> None:
    """The weights of a checkpoint that may be in another dtype; the optimiser makes its own copies of them."""
    weights = checkpoint.model_tensors(session.model)
    stored = {name: torch.empty_like(here, dtype=getattr(torch, dtype)) for name, here in weights.items()}
    checkpoint.load(folder, shares(stored, session.config.model, session.ranks))
    for name, here in weights.items():
        here.copy_(stored[name])
    session.optimizer = build_optimizer(session.config, session.model, session.precision, session.ranks)


def same_run(session: Session, about: dict[str, Any]) -> None:
    """Raise UserError when the checkpoint belongs to another model or another order of data than this session's."""
    now = {**identity(session.config, session.mixture), **checkpoint.about_model(session.model)}
    if about.get("imported"):
        now.pop("dtype")
    for key, what in MUST_MATCH.items():
        if key in about and key in now and about[key] != now[key]:
            raise UserError(
                f"{session.run.path} was begun with another {what} ({_short(about[key], now[key])}, now "
                f"{_short(now[key], about[key])}): going on would mix two runs; start a new --run instead"
            )


def identity(config: Config, mixture: Mixture) -> dict[str, Any]:
    """What must not change between a run's beginning and its end: which tokens make which batch."""
    phases = [(p.after, {c.hash: weight for c, weight in p.weights.items() if weight}) for p in mixture.phases]
    return {
        "corpus": phases[0][1],
        "phases": [{"after": after, "corpus": weights} for after, weights in phases[1:]],
        "tokenizer": next(iter(mixture.sources.values())).tokenizer_hash,
        "seq_len": config.data.seq_len,
        "global_batch": config.train.global_batch,
        "data_seed": config.data.seed,
        "packing": config.data.packing,
    }


def fits(config: Config, mixture: Mixture, layout: Layout) -> None:
    """Raise UserError for a vocabulary smaller than the tokenizer's, and held-out text that ranks cannot share."""
    for corpus in mixture.sources.values():
        if config.model.vocab_size < corpus.vocab_size:
            raise UserError(
                f"model.vocab_size ({config.model.vocab_size}) is smaller than the tokenizer's of {corpus.path} "
                f"({corpus.vocab_size}): set --model.vocab_size {corpus.vocab_size} or prepare the corpus with a "
                "smaller tokenizer"
            )
        held_out = corpus.split("val").n_tokens - 1
        if 0 < held_out < config.data.seq_len:  # one window, shorter than data.seq_len
            told = f"the {held_out:,} held-out tokens of {corpus.path} (hold out more: a larger val_fraction)"
            check_sequence(layout, held_out, told)


def choose_device(wanted: str) -> str:
    """ "cpu" or "cuda". Raises UserError when a GPU was asked for and there is none."""
    if wanted == "cuda" and not torch.cuda.is_available():
        raise UserError(
            "train.device is cuda, but torch sees no GPU here: use --train.device cpu, or install a "
            "torch build that matches the driver"
        )
    if wanted == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    return wanted


def choose_precision(wanted: str, device: str) -> str:
    """bf16 where the machine is fast at it, unless the user says otherwise."""
    if wanted == "tf32" and device != "cuda":
        raise UserError("train.precision is tf32, which a GPU's matrix products have: use fp32 here")
    if wanted != "auto":
        return wanted
    return "bf16" if hardware.bf16_is_fast(device) else "fp32"


def environment(session: Session) -> dict[str, Any]:
    """What env.json says: versions, hardware, revision, corpus."""
    return {
        "yupana": yupana.__version__,
        "git_revision": _git_revision(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "numpy": np.__version__,
        "platform": platform.platform(),
        "device": session.peaks.device,
        "device_kind": session.device,
        "threads": torch.get_num_threads(),
        "ranks": session.ranks.count,
        "layout": asdict(session.ranks.layout),
        "precision": session.precision,
        "compiled": session.compiled,
        "peaks": hardware.describe(session.peaks),
        "parameters": session.config.model.parameters,
        "flops_per_token": count.flops_per_token(session.config.model, session.config.data.seq_len),
        "bos_id": session.corpus.bos_id,
        "eos_id": session.corpus.eos_id,
        "corpora": sources(session),
    }


def sources(session: Session) -> list[dict[str, Any]]:
    """What env.json says of each source: which corpus it is, its share, and how often the run goes through it."""
    packed = {c: s for c, s in zip(session.batches.corpora, session.batches.sources, strict=True)}
    planned, found = session.planned, []
    for name, corpus in session.mixture.sources.items():
        unique = corpus.info["splits"]["train"]["tokens"]
        about = {
            "name": name,
            "path": str(corpus.path),
            "hash": corpus.hash,
            "tokenizer_hash": corpus.tokenizer_hash,
            "weight": session.mixture.phases[0].weights.get(corpus, 0.0),
            "unique_tokens": unique,
            "planned_tokens": planned[name],
            "epochs": planned[name] / max(1, unique),
        }
        if isinstance(how := packed.get(corpus), BestFit):
            about |= {"padding": how.padding, "cut": how.cut}
        found.append(about)
    return found


def _short(value: Any, other: Any) -> str:
    if isinstance(value, dict) and isinstance(other, dict):
        different = {k: v for k, v in value.items() if other.get(k) != v}
        return ", ".join(f"{k[:12]} {v}" for k, v in different.items()) or "more"
    return str(value)[:12]


def _git_revision() -> str | None:
    try:
        found = subprocess.run(
            ["git", "-C", str(Path(yupana.__file__).parent), "describe", "--always", "--dirty", "--abbrev=40"],
            capture_output=True,
            text=True,
            timeout=10,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return found.stdout.strip() or None
