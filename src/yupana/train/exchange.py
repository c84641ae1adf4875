"""A run out to a Hugging Face folder, and a Hugging Face folder in as a run."""

from __future__ import annotations

import dataclasses
import shutil
from pathlib import Path
from typing import Any

import torch

from yupana import config as settings
from yupana.config import Config, DataConfig
from yupana.corpus import tokenizers
from yupana.errors import UserError
from yupana.files import sha256_of
from yupana.model import huggingface
from yupana.run import RunDirectory, open_run
from yupana.train import checkpoint
from yupana.train.shares import shares


def export_run(run_path: Path, out: Path | None, which: str, dtype: str) -> dict[str, Any]:
    """Write a checkpoint's model and tokenizer as a folder that `transformers` loads; an earlier export is replaced.

    Raises UserError when the run has no such checkpoint or the folder holds something else.
    """
    run = open_run(run_path)
    folder = checkpoint.choose(run, which)
    model = checkpoint.load_model(folder)
    tokenizer = run.path / "tokenizer.json"
    out = out or run.export
    huggingface.write(
        model,
        model.shape,
        out,
        dtype=getattr(torch, dtype),
        tokenizer=huggingface.TokenizerFile(tokenizer, *_ends(tokenizer)) if tokenizer.is_file() else None,
        overwrite=True,
    )
    return {
        "path": str(out),
        "checkpoint": folder.name,
        "parameters": model.shape.parameters,
        "dtype": dtype,
        "tokenizer": tokenizer.is_file(),
    }


def _ends(tokenizer: Path) -> tuple[str | None, str | None]:
    """The tokens that begin and end a text, where the tokenizer has ours: without them generation would never stop."""
    known = tokenizers.from_file(tokenizer)
    bos, eos = (name if known.token_to_id(name) is not None else None for name in (tokenizers.BOS, tokenizers.EOS))
    return bos, eos


def import_folder(folder: Path, run_path: Path) -> dict[str, Any]:
    """Make a run whose step 0 is the model of a Hugging Face folder; `train --resume` goes on from there.

    Raises UserError when the folder is no Llama, or the run exists.
    """
    run = RunDirectory(run_path)
    if run.exists:
        raise UserError(f"{run.path} already holds a run: choose another --run")
    model = huggingface.read(folder)
    run.lock()
    try:
        about = {"tokens": 0, "seconds": 0.0, "val_loss": None, "imported": True, **checkpoint.about_model(model)}
        tokenizer = folder / "tokenizer.json"
        if tokenizer.is_file():
            shutil.copyfile(tokenizer, run.path / "tokenizer.json")
            about["tokenizer"] = sha256_of(tokenizer)
        checkpoint.save(run, 0, shares(checkpoint.model_tensors(model), model.shape), about)
        data = dataclasses.replace(DataConfig(), tokenizer=str(folder))
        settings.save(Config(model=model.shape, data=data), run.config_file)
    finally:
        run.unlock()
    return {"run": str(run.path), "parameters": model.shape.parameters, "checkpoint": "step_0"}
