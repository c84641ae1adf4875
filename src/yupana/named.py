"""A model named by the user: a preset, a run.yaml, a run directory, or a Hugging Face folder."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from yupana import config
from yupana.config import Config
from yupana.errors import UserError, did_you_mean
from yupana.model.shapes import ModelShape


def settings_of(name: str) -> list[str]:
    """The arguments of `yupana train` that a preset, a run.yaml or a run directory stands for.

    Raises UserError when it is none of them.
    """
    path = Path(name)
    if name in config.preset_names():
        return [name]
    if path.is_dir() and (path / "run.yaml").is_file():
        return ["--config", str(path / "run.yaml")]
    if path.is_file():
        return ["--config", str(path)]
    raise UserError(
        f"'{name}' is no configuration{did_you_mean(name, config.preset_names())}: give a preset "
        f"({', '.join(config.preset_names())}), a run.yaml or a run directory"
    )


def config_of(name: str, overrides: Sequence[str] = ()) -> Config:
    """The configuration that a preset, a run.yaml or a run directory stands for, with overrides on top."""
    given = settings_of(name)
    if given[0] == "--config":
        return config.load(file=Path(given[1]), overrides=overrides)
    return config.load(preset=name, overrides=overrides)


def shape_of(model: str) -> ModelShape:
    """The shape of the model that `model` names. Raises UserError when it names none."""
    path = Path(model)
    if model in config.preset_names():
        return config.load(preset=model).model
    if path.is_dir() and (path / "run.yaml").is_file():
        return config.load(file=path / "run.yaml").model
    if path.is_dir() and (path / "config.json").is_file():
        from yupana.model.huggingface_config import read_config, shape_from_config

        return shape_from_config(read_config(path))
    if path.is_file():
        return config.load(file=path).model
    raise UserError(
        f"'{model}' is no model{did_you_mean(model, config.preset_names())}: give a preset "
        f"({', '.join(config.preset_names())}), a run.yaml, a run directory or a Hugging Face folder"
    )
