"""A Llama's shape from Hugging Face's config.json, and back. Needs no torch."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from yupana.errors import UserError
from yupana.model.shapes import ModelShape, RopeScaling

if TYPE_CHECKING:
    import torch


def read_config(folder: Path) -> dict[str, Any]:
    """The content of a folder's config.json. Raises UserError where there is none."""
    if not folder.is_dir():
        raise UserError(f"{folder} is not a folder: give one that holds config.json and model.safetensors")
    return read_json(folder / "config.json")


def shape_from_config(config: Mapping[str, Any]) -> ModelShape:
    """The shape that a config.json describes, of any version of `transformers`.

    Raises UserError naming what yupana's Llama does not have, or the key that is missing or wrong.
    """
    _refuse_other_models(config)
    d_model = _whole(config, "hidden_size")
    n_heads = _whole(config, "num_attention_heads")
    theta, scaling = _rope_from_config(config)
    return ModelShape(
        n_layers=_whole(config, "num_hidden_layers"),
        d_model=d_model,
        n_heads=n_heads,
        n_kv_heads=_whole(config, "num_key_value_heads", default=n_heads),
        head_dim=_whole(config, "head_dim", default=d_model // n_heads),
        d_ff=_whole(config, "intermediate_size"),
        vocab_size=_whole(config, "vocab_size"),
        tie_embeddings=_flag(config, "tie_word_embeddings"),
        rope_theta=theta,
        rope_scaling=scaling,
        norm_eps=_number(config, "rms_norm_eps", default=1e-6),  # LlamaConfig's own default
    )


def config_from_shape(
    shape: ModelShape, dtype: torch.dtype, bos: int | None, eos: int | None, max_position_embeddings: int
) -> dict[str, Any]:
    """The config.json of a shape, in the style of Meta's files: every version of `transformers` reads it.

    Raises UserError for a shape that `transformers` refuses to load.
    """
    if shape.d_model % shape.n_heads:
        raise UserError(
            "transformers loads only a Llama whose width is a multiple of its heads: model.d_model "
            f"({shape.d_model}) must be a multiple of model.n_heads ({shape.n_heads}) for an export"
        )
    rope_scaling = shape.rope_scaling and {
        "factor": shape.rope_scaling.factor,
        "high_freq_factor": shape.rope_scaling.high_freq_factor,
        "low_freq_factor": shape.rope_scaling.low_freq_factor,
        "original_max_position_embeddings": shape.rope_scaling.original_context,
        "rope_type": "llama3",
    }
    return {
        "architectures": ["LlamaForCausalLM"],
        "attention_bias": False,
        "attention_dropout": 0.0,
        "bos_token_id": bos,
        "eos_token_id": eos,
        "head_dim": shape.head_dim,
        "hidden_act": "silu",
        "hidden_size": shape.d_model,
        "initializer_range": 0.02,  # llama.INIT_STD; importing it would import torch
        "intermediate_size": shape.d_ff,
        "max_position_embeddings": max_position_embeddings,
        "mlp_bias": False,
        "model_type": "llama",
        "num_attention_heads": shape.n_heads,
        "num_hidden_layers": shape.n_layers,
        "num_key_value_heads": shape.n_kv_heads,
        "rms_norm_eps": shape.norm_eps,
        "rope_scaling": rope_scaling,
        "rope_theta": shape.rope_theta,
        "tie_word_embeddings": shape.tie_embeddings,
        "torch_dtype": str(dtype).removeprefix("torch."),
        "use_cache": True,
        "vocab_size": shape.vocab_size,
    }


def read_json(path: Path) -> dict[str, Any]:
    """The JSON object in a file. Raises UserError naming the file where there is none."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"{path} cannot be read: {(error.strerror or str(error)).lower()}") from error
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise UserError(f"{path} is not valid JSON ({error})") from error
    if not isinstance(content, dict):
        raise UserError(f"{path} holds no JSON object")
    return content


def _refuse_other_models(config: Mapping[str, Any]) -> None:
    architectures = config.get("architectures") or []
    if config.get("model_type") != "llama" or architectures not in ([], ["LlamaForCausalLM"]):
        named = architectures or f"model_type {config.get('model_type')!r}"
        raise UserError(f"config.json describes {named}: yupana reads LlamaForCausalLM only")
    for key in ("attention_bias", "mlp_bias"):
        if _flag(config, key):
            raise UserError(f"config.json sets {key}: yupana's Llama has no biases")
    if (activation := config.get("hidden_act", "silu")) != "silu":
        raise UserError(f"config.json sets hidden_act to {activation!r}: yupana's Llama has silu only")
    if config.get("quantization_config"):
        raise UserError("config.json has a quantization_config: yupana reads unquantised weights only")


def _rope_from_config(config: Mapping[str, Any]) -> tuple[float, RopeScaling | None]:
    """Theta and scaling: together in `rope_parameters` since transformers 5, before that in two places."""
    rope = {key: config[key] for key in ("rope_theta", "partial_rotary_factor") if key in config}
    for key in ("rope_scaling", "rope_parameters"):  # the later one wins
        branch = config.get(key) or {}
        if not isinstance(branch, Mapping) or any(isinstance(value, Mapping) for value in branch.values()):
            raise UserError(f"config.json sets {key} to {branch!r}: yupana's Llama has one for all layers")
        rope |= branch
    if (share := rope.get("partial_rotary_factor")) not in (None, 1):
        raise UserError(f"config.json sets partial_rotary_factor to {share!r}: yupana rotates whole heads")
    theta = _number(rope, "rope_theta", default=10_000.0)  # LlamaConfig's own default
    kind = rope.get("rope_type", rope.get("type", "default"))
    if kind == "default":
        return theta, None
    if kind != "llama3":
        raise UserError(f"config.json has the rope type {kind!r}: yupana's Llama has 'default' and 'llama3'")
    return theta, RopeScaling(
        factor=_number(rope, "factor"),
        low_freq_factor=_number(rope, "low_freq_factor"),
        high_freq_factor=_number(rope, "high_freq_factor"),
        original_context=_whole(rope, "original_max_position_embeddings"),
    )


def _whole(config: Mapping[str, Any], key: str, default: int | None = None) -> int:
    value = _number(config, key, default)
    if value < 1 or value != int(value):
        raise UserError(f"config.json sets {key} to {value:g}: it must be a whole number of at least 1")
    return int(value)


def _number(config: Mapping[str, Any], key: str, default: float | None = None) -> float:
    value = config.get(key)
    if value is None and default is None:
        raise UserError(f"config.json does not say {key}")
    value = default if value is None else value
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
        raise UserError(f"config.json sets {key} to {value!r}: it must be a number")
    return float(value)


def _flag(config: Mapping[str, Any], key: str) -> bool:
    value = config.get(key) or False
    if not isinstance(value, bool):
        raise UserError(f"config.json sets {key} to {value!r}: it must be true or false")
    return value
