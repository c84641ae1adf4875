"""Hugging Face in and out: the folder that `transformers` calls a LlamaForCausalLM, read and written.

`read` and `write` hold one copy of the weights and one shard or tensor more, never two copies.
"""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from yupana.errors import UserError, did_you_mean
from yupana.files import disk_errors, sync_folder, write_atomically, write_json
from yupana.model.huggingface_config import config_from_shape, read_config, read_json, shape_from_config
from yupana.model.llama import Llama
from yupana.model.shapes import ModelShape

SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"
DTYPES = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}

Part = tuple[str, tuple[int, ...]]  # a Hugging Face tensor's name and shape


@dataclass(frozen=True)
class TokenizerFile:
    """A tokenizer to put beside the weights: a tokenizer.json and the tokens that begin and end a text."""

    path: Path
    bos: str | None = None
    eos: str | None = None


def read(folder: str | Path, dtype: torch.dtype | None = None) -> Llama:
    """The model in a Hugging Face folder, on the CPU; `dtype` None keeps the stored one.

    Raises UserError, naming the file, key or tensor, for a folder that is not a complete Llama.
    """
    folder = Path(folder)
    shape = shape_from_config(read_config(folder))
    shards = _open_shards(folder)
    stored = _stored_tensors(shards)
    layout = tensor_layout(shape)
    _check_stored(folder, shape, layout, stored)
    if dtype is None:
        dtype = _widest([stored[name] for parts in layout.values() for name, _ in parts])
    with torch.device("meta"):
        model = Llama(shape)
    state = {}
    for ours, parameter in model.named_parameters():
        state[ours] = torch.empty(parameter.shape, dtype=dtype)
        row = 0
        for name, size in layout[ours]:  # the parts stand one above the other in our matrix
            state[ours][row : row + size[0]] = shards[stored[name].file].get_tensor(name)
            row += size[0]
    if shape.tie_embeddings and "lm_head.weight" in stored:
        head = shards[stored["lm_head.weight"].file].get_tensor("lm_head.weight")
        _check_tied(folder, state["embedding.weight"], head)
    model.load_state_dict(state, assign=True)
    return model


def write(
    model: Llama | Mapping[str, Tensor],
    shape: ModelShape,
    folder: str | Path,
    *,
    dtype: torch.dtype = torch.bfloat16,
    tokenizer: TokenizerFile | None = None,
    max_position_embeddings: int = 131_072,
    max_shard_bytes: int = 5_000_000_000,
    overwrite: bool = False,
) -> None:
    """Write a folder that `AutoModelForCausalLM` (and, with `tokenizer`, `AutoTokenizer`) loads.

    `model` is the model or its state dict. The folder appears whole or not at all; one that holds something
    is refused, and with `overwrite` replaced only if it is an earlier export. Raises UserError.
    """
    folder = Path(folder)
    state = model.state_dict() if isinstance(model, Llama) else model
    _check_state(shape, state)
    _check_target(folder, overwrite)
    bos, eos = _special_ids(tokenizer, shape)
    config = config_from_shape(shape, dtype, bos, eos, max_position_embeddings)
    place = folder.resolve()
    temporary = place.with_name(f".{place.name}.{os.getpid()}.tmp")
    with disk_errors(str(folder)):
        try:
            temporary.mkdir(parents=True)
            write_json(temporary / "config.json", config)
            write_json(temporary / "generation_config.json", {"bos_token_id": bos, "eos_token_id": eos})
            if tokenizer is not None:
                _write_tokenizer(temporary, tokenizer, max_position_embeddings)
            _write_weights(temporary, tensor_layout(shape), state, dtype, max_shard_bytes)
            sync_folder(temporary)
            _move_into_place(temporary, place)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)


def tensor_layout(shape: ModelShape) -> dict[str, list[Part]]:
    """Each parameter of ours → the Hugging Face tensors stacked in it by rows, in `transformers`' order."""
    d, q, kv, ff = shape.d_model, shape.q_width, shape.kv_width, shape.d_ff
    table = (shape.vocab_size, d)
    layout: dict[str, list[Part]] = {"embedding.weight": [("model.embed_tokens.weight", table)]}
    for i in range(shape.n_layers):
        ours, theirs = f"layers.{i}", f"model.layers.{i}"
        attention, mlp = f"{theirs}.self_attn", f"{theirs}.mlp"
        layout[f"{ours}.attention.wqkv.weight"] = [
            (f"{attention}.q_proj.weight", (q, d)),
            (f"{attention}.k_proj.weight", (kv, d)),
            (f"{attention}.v_proj.weight", (kv, d)),
        ]
        layout[f"{ours}.attention.wo.weight"] = [(f"{attention}.o_proj.weight", (d, q))]
        layout[f"{ours}.feed_forward.w_gate_up.weight"] = [
            (f"{mlp}.gate_proj.weight", (ff, d)),
            (f"{mlp}.up_proj.weight", (ff, d)),
        ]
        layout[f"{ours}.feed_forward.w_down.weight"] = [(f"{mlp}.down_proj.weight", (d, ff))]
        layout[f"{ours}.attention_norm.weight"] = [(f"{theirs}.input_layernorm.weight", (d,))]
        layout[f"{ours}.feed_forward_norm.weight"] = [(f"{theirs}.post_attention_layernorm.weight", (d,))]
    layout["norm.weight"] = [("model.norm.weight", (d,))]
    if not shape.tie_embeddings:
        layout["output.weight"] = [("lm_head.weight", table)]
    return layout


@dataclass(frozen=True)
class Stored:
    """Where a tensor is stored, and as what."""

    file: str
    shape: tuple[int, ...]
    dtype: str


def _open_shards(folder: Path) -> dict[str, Any]:
    """The folder's safetensors files by name, open (mapped into memory, so nothing is read yet)."""
    shards = {}
    for file in _weight_files(folder):
        try:
            shards[file] = safe_open(folder / file, framework="pt")
        except FileNotFoundError as error:
            raise UserError(f"{folder / file} is missing, though {INDEX} names it") from error
        except (SafetensorError, OSError) as error:
            raise UserError(f"{folder / file} is damaged or not a safetensors file ({error})") from error
    return shards


def _stored_tensors(shards: Mapping[str, Any]) -> dict[str, Stored]:
    """Every tensor in the files, from their headers alone."""
    stored = {}
    for file, shard in shards.items():
        for name in shard.keys():  # noqa: SIM118 (a file, not a dictionary)
            view = shard.get_slice(name)
            stored[name] = Stored(file, tuple(view.get_shape()), view.get_dtype())
    return stored


def _weight_files(folder: Path) -> list[str]:
    if (folder / SINGLE).exists():
        return [SINGLE]
    if not (folder / INDEX).exists():
        raise UserError(f"{folder} holds neither {SINGLE} nor {INDEX}: only safetensors weights are read")
    weight_map = read_json(folder / INDEX).get("weight_map")
    if not isinstance(weight_map, dict) or not all(isinstance(file, str) for file in weight_map.values()):
        raise UserError(f"{folder / INDEX} has no weight_map from tensor names to files")
    return sorted(set(weight_map.values()))


def _check_stored(
    folder: Path, shape: ModelShape, layout: Mapping[str, list[Part]], stored: Mapping[str, Stored]
) -> None:
    expected = dict(part for parts in layout.values() for part in parts)
    for name, size in expected.items():
        if name not in stored:
            raise UserError(f"the tensor {name} is missing in {folder}")
        if stored[name].shape != size:
            raise UserError(
                f"the tensor {name} in {folder / stored[name].file} has the shape "
                f"{list(stored[name].shape)}, but config.json makes it {list(size)}"
            )
        if stored[name].dtype not in DTYPES:
            raise UserError(
                f"the tensor {name} in {folder / stored[name].file} is stored as {stored[name].dtype}: "
                f"yupana reads {', '.join(DTYPES)}"
            )
    for name in stored:
        if name in expected or name.endswith(".rotary_emb.inv_freq"):  # a constant that old exports stored
            continue
        if name == "lm_head.weight" and shape.tie_embeddings:  # a tied head stored twice
            continue
        raise UserError(
            f"the tensor {name} in {folder / stored[name].file} is not part of the Llama "
            f"that config.json describes{did_you_mean(name, expected)}"
        )


def _check_tied(folder: Path, embedding: Tensor, head: Tensor) -> None:
    if head.shape != embedding.shape or not torch.equal(head.to(embedding.dtype), embedding):
        raise UserError(
            f"config.json in {folder} ties the embeddings, but lm_head.weight and model.embed_tokens.weight "
            "differ: set tie_word_embeddings to false there"
        )


def _widest(tensors: list[Stored]) -> torch.dtype:
    """The narrowest dtype that holds each of them exactly."""
    widest = DTYPES[tensors[0].dtype]
    for tensor in tensors:
        widest = torch.promote_types(widest, DTYPES[tensor.dtype])
    return widest


def _check_state(shape: ModelShape, state: Mapping[str, Tensor]) -> None:
    layout = tensor_layout(shape)
    for ours, parts in layout.items():
        if ours not in state:
            raise UserError(f"the weights to export lack {ours}: they belong to another architecture")
        size = (sum(part[0] for _, part in parts), *parts[0][1][1:])
        if tuple(state[ours].shape) != size:
            raise UserError(
                f"{ours} in the weights to export has the shape {list(state[ours].shape)}, "
                f"but the model's is {list(size)}"
            )
    for ours in state:
        if ours not in layout:
            raise UserError(f"the weights to export hold {ours}, which the model does not have")


def _check_target(folder: Path, overwrite: bool) -> None:
    if folder.exists() and not folder.is_dir():
        raise UserError(f"{folder} is a file: choose a folder to export to")
    names = sorted(path.name for path in folder.iterdir()) if folder.exists() else []
    if names and not overwrite:
        raise UserError(f"{folder} is not empty: choose another folder, or ask to overwrite the export there")
    written = re.compile(
        r"config\.json|generation_config\.json|tokenizer\.json|tokenizer_config\.json|"
        r"model(-\d{5}-of-\d{5})?\.safetensors|model\.safetensors\.index\.json"
    )
    for name in names:
        if not written.fullmatch(name):
            raise UserError(f"{folder} holds {name}, which is not part of an export: it is not overwritten")


def _special_ids(tokenizer: TokenizerFile | None, shape: ModelShape) -> tuple[int | None, int | None]:
    """The ids of the tokens that begin and end a text; the tokenizer must fit into the model's vocabulary."""
    if tokenizer is None:
        return None, None
    content = read_json(tokenizer.path)
    try:
        ids = content["model"]["vocab"] | {token["content"]: token["id"] for token in content["added_tokens"]}
        largest = max(ids.values())
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(f"{tokenizer.path} is not a tokenizer.json of the tokenizers library") from error
    if largest >= shape.vocab_size:
        raise UserError(
            f"the tokenizer {tokenizer.path} has ids up to {largest}, "
            f"but model.vocab_size is {shape.vocab_size}"
        )
    for token in (tokenizer.bos, tokenizer.eos):
        if token is not None and token not in ids:
            raise UserError(f"{tokenizer.path} has no token '{token}'{did_you_mean(token, ids)}")
    bos, eos = (None if token is None else ids[token] for token in (tokenizer.bos, tokenizer.eos))
    return bos, eos


def _write_tokenizer(folder: Path, tokenizer: TokenizerFile, max_position_embeddings: int) -> None:
    write_atomically(folder / "tokenizer.json", tokenizer.path.read_bytes())
    write_json(folder / "tokenizer_config.json", {
        "bos_token": tokenizer.bos,
        "clean_up_tokenization_spaces": False,  # decoding gives the text back, spaces before commas included
        "eos_token": tokenizer.eos,
        "model_max_length": max_position_embeddings,
        "tokenizer_class": "PreTrainedTokenizerFast",
    })


def _write_weights(
    folder: Path,
    layout: Mapping[str, list[Part]],
    state: Mapping[str, Tensor],
    dtype: torch.dtype,
    max_shard_bytes: int,
) -> None:
    shards = _split(layout, dtype.itemsize, max_shard_bytes)
    weight_map = {}
    where = {name: (ours, row) for ours, parts in layout.items() for name, row in _first_rows(parts)}
    for number, shard in enumerate(shards, start=1):
        file = SINGLE if len(shards) == 1 else f"model-{number:05d}-of-{len(shards):05d}.safetensors"
        tensors = {}
        for name, size in shard:
            ours, row = where[name]
            # A view of the weights themselves when they are on the CPU in this dtype already: no copy.
            tensors[name] = state[ours].detach()[row : row + size[0]].to("cpu", dtype).contiguous()
            weight_map[name] = file
        _save(tensors, folder / file)
    if len(shards) > 1:
        sizes = [torch.Size(size).numel() for shard in shards for _, size in shard]
        metadata = {"total_parameters": sum(sizes), "total_size": sum(sizes) * dtype.itemsize}
        write_json(folder / INDEX, {"metadata": metadata, "weight_map": dict(sorted(weight_map.items()))})


def _first_rows(parts: list[Part]) -> Iterator[tuple[str, int]]:
    row = 0
    for name, size in parts:
        yield name, row
        row += size[0]


def _split(layout: Mapping[str, list[Part]], itemsize: int, max_shard_bytes: int) -> list[list[Part]]:
    """Consecutive tensors until a shard is full, as huggingface_hub splits; an oversized one stands alone."""
    shards: list[list[Part]] = []
    current: list[Part] = []
    used = 0
    for part in (part for parts in layout.values() for part in parts):
        size = torch.Size(part[1]).numel() * itemsize
        if size > max_shard_bytes:
            shards.append([part])
            continue
        if used + size > max_shard_bytes:
            shards.append(current)
            current, used = [], 0
        current.append(part)
        used += size
    return [*shards, current] if current else shards


def _save(tensors: dict[str, Tensor], path: Path) -> None:
    with _plain_os_errors():
        save_file(tensors, path, metadata={"format": "pt"})
    path.chmod((path.parent / "config.json").stat().st_mode)  # safetensors lets only the owner read it
    with open(path, "rb") as file:
        os.fsync(file.fileno())


@contextmanager
def _plain_os_errors() -> Iterator[None]:
    """Turn the library's "I/O error: … (os error 28)" into the OSError that it stands for."""
    try:
        yield
    except SafetensorError as error:
        code = re.search(r"\(os error (\d+)\)", str(error))
        if code is None:
            raise
        raise OSError(int(code[1]), os.strerror(int(code[1]))) from error


def _move_into_place(temporary: Path, folder: Path) -> None:
    """Rename, an earlier export aside first: full folders cannot replace each other in one step."""
    aside = folder.with_name(f".{folder.name}.{os.getpid()}.old")
    if folder.exists():
        os.rename(folder, aside)
    try:
        os.rename(temporary, folder)
    except OSError:
        if aside.exists():
            os.rename(aside, folder)
        raise
    sync_folder(folder.parent)
    shutil.rmtree(aside, ignore_errors=True)
