"""From what the user typed to a training run: the configuration, the lock, the corpus, then the loop."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Generator, Sequence
from pathlib import Path
from typing import Any

import torch

from yupana import config as settings
from yupana.config import Config
from yupana.corpus.mixture import Mixture, Phase, by_size
from yupana.corpus.prepare import prepare
from yupana.corpus.progress import PrepareProgress
from yupana.corpus.shards import Corpus, open_corpus, verify
from yupana.corpus.sources import fingerprint
from yupana.corpus.tokenizers import identity
from yupana.errors import UserError
from yupana.files import cache_folder
from yupana.model.huggingface_config import config_from_shape
from yupana.run import RunDirectory
from yupana.train import host
from yupana.train.exchange import export_run
from yupana.train.loop import train
from yupana.train.ranks import Ranks, joined, restarted, under_launcher
from yupana.train.shares import ALONE


def begin(
    run: RunDirectory,
    preset: str | None = None,
    file: Path | None = None,
    overrides: Sequence[str] = (),
    *,
    resume: bool = False,
    look: Callable[[Config, Mixture], None] | None = None,
) -> dict[str, Any]:
    """Train, from a preset, a file and overrides, in `run`; returns the last metrics.

    `look` is shown what will be trained on what, before it begins. Under a launcher every rank calls it, and `resume`
    goes on with the run if there is one, so that the same command serves every start; a run that the launcher starts
    again goes on by itself. Raises UserError for wrong input, and before anything is written where that can be.
    """
    with joined() as ranks:
        resume = ranks.at_first(lambda: goes_on(run, resume))
        config = ranks.together(lambda: chosen(run, preset, file, overrides, resume=resume))
        training = steps(config, run, resume=resume, look=look, ranks=ranks)
        while True:
            try:
                next(training)
            except StopIteration as ended:
                return ended.value


def goes_on(run: RunDirectory, resume: bool) -> bool:
    """Whether this start goes on with a run. Raises UserError when there is none, or one that nobody asked for."""
    if under_launcher():
        resume = run.exists and (resume or restarted())
    if resume and not run.exists:
        raise UserError(f"there is nothing to resume in {run.path}: it has no run.yaml; leave --resume out to begin")
    _refuse_existing(run, resume)
    return resume


def chosen(
    run: RunDirectory, preset: str | None, file: Path | None, overrides: Sequence[str], *, resume: bool
) -> Config:
    """The configuration from a preset, a file and overrides; of the run itself where it goes on and none is named."""
    if resume and file is None and preset is None:
        file = run.config_file
    if preset is None and file is None and not overrides:
        raise UserError(f"name a preset ({', '.join(settings.preset_names())}) or give --config FILE")
    return settings.load(preset, file, overrides)


def steps(
    config: Config,
    run: RunDirectory,
    *,
    resume: bool = False,
    look: Callable[[Config, Mixture], None] | None = None,
    ranks: Ranks = ALONE,
) -> Generator[dict[str, Any], None, dict[str, Any]]:
    """Train `config` in `run`, yielding the last line of metrics after every step; returns the last with validation.

    Closing it early leaves what was last saved, and resume goes on from there. `look` and errors are as `begin` has them.
    """
    _refuse_existing(run, resume)
    if config.fast.allocator == "keep":
        host.keep_memory()
    if config.checkpoint.export:  # refuse now what could not be exported at the end
        config_from_shape(config.model, torch.bfloat16, None, None, config.data.seq_len)
    mixture = open_everywhere(config, ranks)
    if look is not None and ranks.first:
        look(config, mixture)
    ranks.at_first(run.lock)
    try:
        last = yield from train(config, run, mixture, resume=resume, ranks=ranks)
        if config.checkpoint.export:
            ranks.at_first(lambda: export_run(run.path, None, "last", "bfloat16"))
        return last
    finally:
        run.unlock()


def _refuse_existing(run: RunDirectory, resume: bool) -> None:
    if run.exists and not resume:
        raise UserError(f"{run.path} already holds a run: add --resume to go on with it, or choose another --run")


def open_everywhere(config: Config, ranks: Ranks) -> Mixture:
    """The mixture on every rank, prepared by rank 0 where it is not yet; settings and corpora are the same on all.

    Raises UserError, naming the rank and the setting, where they are not.
    """
    if ranks.count == 1:
        return open_mixture(config)
    ranks.check_equal(flat(settings.as_dict(config)))
    ranks.at_first(lambda: len(open_mixture(config).sources))  # prepares what is not there yet
    mixture = ranks.together(lambda: open_mixture(config))
    ranks.check_equal({f"corpus {name} (data.corpus)": corpus.hash for name, corpus in mixture.sources.items()})
    return mixture


def flat(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested dictionaries as one with dotted keys."""
    found: dict[str, Any] = {}
    for key, value in values.items():
        found |= flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value}
    return found


def open_mixture(config: Config) -> Mixture:
    """The prepared corpora of a configuration, every shard verified, and how they are mixed.

    Raises UserError for a source that is none, two that are the same, and a phase that the run never reaches.
    """
    data = config.data
    wanted = [(0, data.corpus), *((phase.after, phase.corpus) for phase in data.phases)]
    end = config.total_steps * config.train.global_batch * data.seq_len
    if wanted[-1][0] >= end:
        raise UserError(
            f"data.phases has one after {wanted[-1][0]:,} tokens, and the run ends after {end:,}: train longer "
            "(train.tokens), begin it earlier, or leave it out"
        )
    named = list(dict.fromkeys(name for _, corpus in wanted for name in ([corpus] if isinstance(corpus, str) else corpus)))
    opened = {name: opened_corpus(name, data.tokenizer) for name in named}
    for name, corpus in opened.items():
        if (first := next(other for other in named if opened[other] == corpus)) != name:
            raise UserError(f"the mixture's {first} and {name} hold the same corpus: leave one out")
    phases = tuple(Phase(after, _weights(corpus, opened, data.temperature)) for after, corpus in wanted)
    return Mixture(dict(zip(_labels(named), opened.values(), strict=True)), phases)


def opened_corpus(name: str, tokenizer: str) -> Corpus:
    """The corpus of that name, prepared first where it is text, verified."""
    folder = Path(name)
    if not (folder / "corpus.json").is_file():
        folder = prepared(name, tokenizer)
    corpus = open_corpus(folder)
    verify(corpus)
    return corpus


def _weights(
    wanted: str | list[str] | dict[str, float], opened: dict[str, Corpus], temperature: float
) -> dict[Corpus, float]:
    if isinstance(wanted, str):
        return {opened[wanted]: 1.0}
    if isinstance(wanted, list):
        corpora = [opened[name] for name in wanted]
        return dict(zip(corpora, by_size(corpora, temperature), strict=True))
    total = sum(wanted.values())
    return {opened[name]: weight / total for name, weight in wanted.items()}


def _labels(names: list[str]) -> list[str]:
    """What the sources are called in metrics and reports: the folder's own name where that tells them apart."""
    short = [Path(name).name or name for name in names]
    return short if len(set(short)) == len(short) else names


def prepared(source: str, tokenizer: str) -> Path:
    """Shards of a source that is still text, made once and kept in the cache; a changed text is another corpus."""
    key = hashlib.sha256(json.dumps([fingerprint(source), identity(tokenizer)]).encode()).hexdigest()[:12]
    label = "".join(c if c.isalnum() else "-" for c in f"{Path(source).name}-{tokenizer}")[:60]
    folder = cache_folder() / "corpora" / f"{label}-{key}"
    if not (folder / "corpus.json").is_file():  # its name holds the fingerprint of the text: what is there is it
        with PrepareProgress() as progress:
            prepare([source], folder, tokenizer, val_fraction=0.05, progress=progress)
    return folder
