"""From what the user typed to a training run: the configuration, the lock, the corpus, then the loop."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Generator, Sequence
from pathlib import Path
from typing import Any

import torch

from yupana import config as settings
from yupana.config import Config
from yupana.corpus.prepare import prepare
from yupana.corpus.progress import PrepareProgress
from yupana.corpus.shards import Corpus, open_corpus, verify
from yupana.corpus.sources import fingerprint
from yupana.corpus.tokenizers import identity
from yupana.errors import UserError
from yupana.flops.hardware import cache_folder
from yupana.model.huggingface_config import config_from_shape
from yupana.run import RunDirectory
from yupana.train import host
from yupana.train.exchange import export_run
from yupana.train.loop import train


def begin(
    run: RunDirectory,
    preset: str | None = None,
    file: Path | None = None,
    overrides: Sequence[str] = (),
    *,
    resume: bool = False,
) -> dict[str, Any]:
    """Train, from a preset, a file and overrides, in `run`; returns the last metrics.

    Raises UserError for wrong input, and before anything is written where that can be.
    """
    if resume and not run.exists:
        raise UserError(f"there is nothing to resume in {run.path}: it has no run.yaml; leave --resume out to begin")
    _refuse_existing(run, resume)
    if resume and file is None and preset is None:
        file = run.config_file
    if preset is None and file is None and not overrides:
        raise UserError(f"name a preset ({', '.join(settings.preset_names())}) or give --config FILE")
    config = settings.load(preset, file, overrides)
    training = steps(config, run, resume=resume)
    while True:
        try:
            next(training)
        except StopIteration as ended:
            return ended.value


def steps(
    config: Config, run: RunDirectory, *, resume: bool = False
) -> Generator[dict[str, Any], None, dict[str, Any]]:
    """Train `config` in `run`, yielding the last line of metrics after every step; returns the last with validation.

    Closing it early leaves what was last saved, and resume goes on from there. Raises UserError as `begin` does.
    """
    _refuse_existing(run, resume)
    if config.fast.allocator == "keep":
        host.keep_memory()
    if config.checkpoint.export:  # refuse now what could not be exported at the end
        config_from_shape(config.model, torch.bfloat16, None, None, config.data.seq_len)
    corpora = open_corpora(config)
    run.lock()
    try:
        last = yield from train(config, run, corpora, resume=resume)
        if config.checkpoint.export:
            export_run(run.path, None, "last", "bfloat16")
        return last
    finally:
        run.unlock()


def _refuse_existing(run: RunDirectory, resume: bool) -> None:
    if run.exists and not resume:
        raise UserError(f"{run.path} already holds a run: add --resume to go on with it, or choose another --run")


def open_corpora(config: Config) -> dict[Corpus, float]:
    """The prepared corpora of a configuration with their weights, every shard verified."""
    wanted = config.data.corpus
    weights = wanted if isinstance(wanted, dict) else {wanted: 1.0}
    corpora = {}
    for name, weight in weights.items():
        folder = Path(name)
        if not (folder / "corpus.json").is_file():
            folder = prepared(name, config.data.tokenizer)
        corpus = open_corpus(folder)
        verify(corpus)
        corpora[corpus] = weight
    return corpora


def prepared(source: str, tokenizer: str) -> Path:
    """Shards of a source that is still text, made once and kept in the cache; a changed text is another corpus."""
    key = hashlib.sha256(json.dumps([fingerprint(source), identity(tokenizer)]).encode()).hexdigest()[:12]
    label = "".join(c if c.isalnum() else "-" for c in f"{Path(source).name}-{tokenizer}")[:60]
    folder = cache_folder() / "corpora" / f"{label}-{key}"
    with PrepareProgress() as progress:
        prepare([source], folder, tokenizer, val_fraction=0.05, progress=progress)
    return folder
