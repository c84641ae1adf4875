"""Checkpoints through torch's DCP, as safetensors (nothing is pickled), complete once their manifest is there.

checkpoints/step_200/*.safetensors    one file a rank that wrote; shares.py says what is in them
checkpoints/step_200/manifest.json    step, tokens, val_loss, shape, and every file's size and sha256
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import warnings
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
import torch.distributed.checkpoint as dcp
from torch import Tensor
from torch.distributed.checkpoint import HuggingFaceStorageReader, HuggingFaceStorageWriter

from yupana.errors import UserError
from yupana.files import disk_errors, sha256_of, sync_folder, write_json
from yupana.model.llama import Llama
from yupana.model.shapes import ModelShape, RopeScaling
from yupana.run import RunDirectory
from yupana.train.ranks import Ranks
from yupana.train.shares import ALONE, LoadPlanner, SavePlanner, Share, local, shares

MANIFEST = "manifest.json"


def save(run: RunDirectory, step: int, tensors: dict[str, Share], about: dict[str, Any], ranks: Ranks = ALONE) -> Path:
    """Write checkpoint `step`; it counts only once its manifest has been renamed into place.

    Every rank calls it with its own parts, and writes a file of its own into the same folder. Raises UserError, on
    every rank, when the disk is full; earlier checkpoints stay as they were.
    """
    folder = run.checkpoints / f"step_{step}"
    ranks.at_first(lambda: _make_empty(folder))
    files: dict[str, Any] = {}
    for sealed in ranks.gather(ranks.together(lambda: _write(folder, tensors, ranks))):
        files |= sealed
    ranks.at_first(lambda: _complete(run, folder, {"step": step, **about, "files": files}))
    return folder


def load(folder: Path, tensors: dict[str, Share]) -> None:
    """Fill `tensors` in place from a checkpoint, whatever layout wrote it; each rank reads its own parts.

    Raises UserError when names or shapes do not match.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # "assuming the intent is to load in a single process": it is
        reader = HuggingFaceStorageReader(str(folder))
        saved = reader.read_metadata().state_dict_metadata
        for name, tensor in tensors.items():
            size = tuple(saved[name].size) if name in saved else None  # type: ignore[union-attr]
            if size != tensor.whole:
                found = "is missing" if size is None else f"has shape {list(size)}"
                raise UserError(
                    f"{folder} is a checkpoint of another architecture or precision: {name} {found}, "
                    f"this run needs {list(tensor.whole)}"
                )
        dcp.load(dict(tensors), storage_reader=HuggingFaceStorageReader(str(folder)), planner=LoadPlanner(), no_dist=True)


def complete(run: RunDirectory) -> list[Path]:
    """Checkpoints with a manifest, oldest first. Their content is not checked yet: see `problem`."""
    found = [p for p in run.checkpoints.glob("step_*") if re.fullmatch(r"step_\d+", p.name)]
    return sorted((p for p in found if (p / MANIFEST).is_file()), key=lambda p: int(p.name[5:]))


def manifest(folder: Path) -> dict[str, Any]:
    """A checkpoint's manifest. Raises UserError when it is not readable JSON."""
    try:
        return json.loads((folder / MANIFEST).read_text())
    except (OSError, ValueError):
        raise UserError(f"{folder / MANIFEST} cannot be read") from None


def problem(folder: Path) -> str | None:
    """What is wrong with a checkpoint's files, naming the file; None when every byte is as it was written."""
    try:
        files = manifest(folder)["files"]
    except (UserError, KeyError):
        return f"its {MANIFEST} is damaged"
    for name, sealed in files.items():
        path = folder / name
        if not path.is_file():
            return f"{name} is missing"
        if path.stat().st_size != sealed["bytes"]:
            return f"{name} is torn ({path.stat().st_size} bytes of {sealed['bytes']})"
        if sha256_of(path) != sealed["sha256"]:
            return f"{name} has been altered"
    return None


def newest_good(run: RunDirectory) -> tuple[Path | None, list[str]]:
    """The newest undamaged checkpoint, and a sentence for each newer one that was refused."""
    refused: list[str] = []
    for folder in reversed(complete(run)):
        wrong = problem(folder)
        if wrong is None:
            return folder, refused
        refused.append(f"checkpoint {folder.name} is refused: {wrong}")
    return None, refused


def choose(run: RunDirectory, which: str = "last") -> Path:
    """A checkpoint to read: "last", "best" (lowest validation loss) or a step's number.

    Raises UserError when there is none, or the one named is damaged.
    """
    folders = complete(run)
    if not folders:
        raise UserError(f"{run.path} has no checkpoint yet")
    if which == "last":
        folder, refused = newest_good(run)
        if folder is None:
            raise UserError(f"{run.path} has no undamaged checkpoint: {'; '.join(refused)}")
        return folder
    folder = best(run) if which == "best" else run.checkpoints / f"step_{which}"
    if folder not in folders:
        steps = ", ".join(path.name[5:] for path in folders)
        raise UserError(f"{run.path} has no checkpoint '{which}': there are last, best and the steps {steps}")
    assert folder is not None
    if (wrong := problem(folder)) is not None:
        raise UserError(f"checkpoint {folder} is refused: {wrong}")
    return folder


def best(run: RunDirectory) -> Path | None:
    """The checkpoint with the lowest validation loss, if one was evaluated."""
    scored: list[tuple[float, Path]] = []
    for folder in complete(run):
        with contextlib.suppress(UserError):  # a damaged manifest has no score
            loss = manifest(folder).get("val_loss")
            if loss is not None:
                scored.append((loss, folder))
    return min(scored, key=lambda pair: pair[0])[1] if scored else None


def prune(run: RunDirectory, keep: int) -> None:
    """Delete all but the newest `keep` checkpoints and the best one; and what a kill left unfinished."""
    folders = complete(run)
    kept = {*folders[-keep:], best(run)}
    for folder in run.checkpoints.glob("step_*"):
        if folder not in kept:
            (folder / MANIFEST).unlink(missing_ok=True)  # first, so that a kill in between leaves it incomplete
            shutil.rmtree(folder, ignore_errors=True)


def load_model(folder: Path, dtype: torch.dtype | None = None) -> Llama:
    """The model of a checkpoint alone, ready to read or generate; `dtype` None keeps the stored one."""
    about = manifest(folder)
    sizes = dict(about["shape"])
    scaling = sizes.pop("rope_scaling")
    shape = ModelShape(**sizes, rope_scaling=RopeScaling(**scaling) if scaling else None)
    stored = getattr(torch, about["dtype"])
    with torch.device("meta"):
        model = Llama(shape)
    model.to_empty(device="cpu").to(stored)
    load(folder, shares(model_tensors(model), shape))
    return model if dtype is None else model.to(dtype)


def model_tensors(model: Llama) -> dict[str, Tensor]:
    """The model's weights, or this rank's parts of them, by name."""
    return {f"model.{name}": local(parameter) for name, parameter in model.named_parameters()}


def about_model(model: Llama) -> dict[str, Any]:
    """What the manifest says of the model."""
    dtype = str(model.embedding.weight.dtype).removeprefix("torch.")
    return {"shape": asdict(model.shape), "dtype": dtype}


def _make_empty(folder: Path) -> None:
    with disk_errors(f"checkpoint {folder}"):
        shutil.rmtree(folder, ignore_errors=True)  # an incomplete one, left by a kill
        folder.mkdir(parents=True)


def _write(folder: Path, tensors: dict[str, Share], ranks: Ranks) -> dict[str, Any]:
    """Write this rank's file; returns its size and sha256 by name."""
    with disk_errors(f"checkpoint {folder}"):
        try:
            _write_tensors(folder, tensors, ranks)
        except BaseException as error:  # DCP's CheckpointException is no Exception
            shutil.rmtree(folder, ignore_errors=True)
            if (cause := _os_error(error)) is not None:
                raise cause from error
            raise
        mine = f"shard-{ranks.rank + 1:05}-*"  # as DCP names it; a rank of which others have all the parts writes none
        return {path.name: _seal(path) for path in sorted(folder.glob(mine))}


def _complete(run: RunDirectory, folder: Path, about: dict[str, Any]) -> None:
    with disk_errors(f"checkpoint {folder}"):
        sync_folder(folder)
        write_json(folder / MANIFEST, about)
        sync_folder(run.checkpoints)


def _write_tensors(folder: Path, tensors: dict[str, Share], ranks: Ranks) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        writer = HuggingFaceStorageWriter(str(folder), save_distributed=True)
        dcp.save(
            dict(tensors),
            storage_writer=writer,
            planner=SavePlanner(),
            process_group=ranks.group,
            no_dist=ranks.count == 1,
        )


def _seal(path: Path) -> dict[str, Any]:
    with open(path, "rb") as file:
        os.fsync(file.fileno())
    return {"bytes": path.stat().st_size, "sha256": sha256_of(path)}


def _os_error(error: BaseException) -> OSError | None:
    """The OSError behind a failure of DCP, which wraps it."""
    seen: list[BaseException] = [error]
    while seen:
        current = seen.pop()
        if isinstance(current, OSError):
            return current
        seen += [e for e in (current.__cause__, current.__context__) if e is not None]
        failures = getattr(current, "failures", None)
        if isinstance(failures, dict):
            seen += [f[0] if isinstance(f, tuple) else f for f in failures.values()]
    return None
