"""Adapters: a new one, one to go on with, and whether it fits its base."""

from __future__ import annotations

import hashlib
import json
import warnings
from pathlib import Path
from typing import Any

from yupana.errors import UserError, did_you_mean
from yupana.files import write_json
from yupana.tune.config import LoraConfig

WEIGHTS, SETTINGS, BASE = "adapter_model.safetensors", "adapter_config.json", "yupana_base.json"


def new_adapter(model: Any, settings: LoraConfig) -> Any:
    """The model with a new adapter. Raises UserError for a target that the model does not have."""
    import peft

    names = {name.split(".")[-1] for name, module in model.named_modules() if hasattr(module, "in_features")}
    for target in settings.targets:
        if target not in names:
            raise UserError(
                f"lora.targets names '{target}'{did_you_mean(target, names)}: the model's matrices are "
                f"{', '.join(sorted(names))}"
            )
    if "lm_head" in settings.targets:  # a tied head would be merged into the embedding too
        raise UserError("lora.targets names lm_head: adapt the blocks' matrices, or train all weights with lora.rank 0")
    config = peft.LoraConfig(
        r=settings.rank,
        lora_alpha=settings.alpha,
        lora_dropout=settings.dropout,
        target_modules=settings.targets,
        task_type="CAUSAL_LM",
    )
    return peft.get_peft_model(model, config)


def open_adapter(model: Any, folder: Path, base: str) -> Any:
    """The model with the adapter in `folder`, to go on with. Raises UserError where it is another base's."""
    import peft

    check_adapter(model, folder, base)
    return peft.PeftModel.from_pretrained(model, str(folder), is_trainable=True)


def check_adapter(model: Any, folder: Path, base: str) -> None:
    """Raise UserError unless `folder` holds a LoRA adapter that was made for this model."""
    from safetensors import SafetensorError, safe_open

    if not (folder / SETTINGS).is_file() or not (folder / WEIGHTS).is_file():
        raise UserError(f"{folder} holds no adapter: it needs {SETTINGS} and {WEIGHTS}")
    modules = {name: module for name, module in model.named_modules() if hasattr(module, "in_features")}
    try:
        with safe_open(folder / WEIGHTS, framework="pt") as file:
            shapes = {name: file.get_slice(name).get_shape() for name in file.keys()}  # noqa: SIM118 (a file)
    except SafetensorError as error:
        raise UserError(f"{folder / WEIGHTS} is damaged or not a safetensors file ({error})") from error
    for name, shape in shapes.items():
        target, _, part = name.removeprefix("base_model.model.").rpartition(".lora_")
        if target not in modules:
            raise UserError(f"the adapter {folder} is of another base: it adapts {target}, which {base} does not have")
        width = modules[target].in_features if part.startswith("A") else modules[target].out_features
        if shape[1 if part.startswith("A") else 0] != width:
            raise UserError(
                f"the adapter {folder} is of another base: its {name} is {shape}, but {target} of {base} is {width} wide"
            )
    made_for = json.loads((folder / BASE).read_text()) if (folder / BASE).is_file() else None
    if made_for is not None and made_for["fingerprint"] != fingerprint(model):
        raise UserError(
            f"the adapter {folder} is of another base: it was made for {made_for['base']}, whose weights are not those of "
            f"{base}"
        )


def save_adapter(model: Any, folder: Path, base: str, mark: str) -> None:
    """Write the adapter with the base that it is for; `mark` is that base's fingerprint."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that the base's card could not be looked up on the hub
        model.save_pretrained(str(folder), safe_serialization=True)
    write_json(folder / BASE, {"base": base, "fingerprint": mark})


def fingerprint(model: Any) -> str:
    """What tells a model's weights from another's of the same shape: SHA-256 of its norms and first embeddings, as bf16.

    bf16, so that a model loaded in fp32 and in bf16 is the same one.
    """
    import torch

    digest = hashlib.sha256()
    for name, parameter in model.named_parameters():
        if parameter.dim() == 1 or "embed_tokens" in name:
            part = parameter.detach()[:64].to("cpu", torch.bfloat16)
            digest.update(part.contiguous().view(torch.int16).numpy().tobytes())
    return digest.hexdigest()
