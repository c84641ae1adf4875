"""A model's loss on named texts: nats a token and bits a byte, by document, with intervals.

A document is what `corpus prepare` makes one of: it begins with the token that begins a text and ends with the one
that ends it, which is predicted too. It is read in windows of `seq_len` tokens that do not overlap, as in training.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.nn import functional

from yupana import config
from yupana.corpus import tokenizers
from yupana.corpus.sources import documents
from yupana.errors import UserError
from yupana.model import huggingface
from yupana.model.huggingface_config import read_config
from yupana.model.llama import Llama
from yupana.run import RunDirectory
from yupana.train import checkpoint
from yupana.train.loss import IGNORED

RESAMPLES = 2000
LOGITS = 1 << 26  # in a batch, at most


@dataclass(frozen=True)
class Reader:
    """A model that reads text."""

    model: Llama
    tokenizer: Any
    bos: int
    eos: int
    seq_len: int
    """Of its training."""


def open_reader(path: Path, which: str = "last") -> Reader:
    """The model of a run directory's checkpoint, of a tuned run, or of a Hugging Face folder; in fp32.

    Raises UserError when there is none.
    """
    run = RunDirectory(path)
    if run.exists and checkpoint.complete(run):
        model = checkpoint.load_model(checkpoint.choose(run, which), dtype=torch.float32)
        tokenizer = tokenizers.from_file(run.path / "tokenizer.json")
        env = json.loads(run.env_file.read_text()) if run.env_file.is_file() else {}
        if "bos_id" in env:
            bos, eos = env["bos_id"], env["eos_id"]
        else:  # an imported run, not trained yet
            bos, eos = tokenizers.bos_and_eos(tokenizer, str(run.path / "tokenizer.json"))
        return Reader(model, tokenizer, bos, eos, config.load(file=run.config_file).data.seq_len)
    folder = run.export if run.exists else path
    if not (folder / "config.json").is_file():
        raise UserError(f"{path} is no model: give a run directory with a checkpoint, a tuned run or a Hugging Face folder")
    tokenizer = tokenizers.load(str(folder))
    bos, eos = tokenizers.bos_and_eos(tokenizer, str(folder))
    longest = int(read_config(folder).get("max_position_embeddings", 2048))
    return Reader(huggingface.read(folder, torch.float32), tokenizer, bos, eos, min(longest, 2048))


def text_loss(reader: Reader, files: list[str], seq_len: int | None = None, seed: int = 0) -> dict[str, Any]:
    """`nll_per_token, bits_per_byte, tokens, bytes, documents`, their 95 % intervals, and the same for each file.

    Intervals are percentiles of a bootstrap over documents (Efron, 1979), within each file: tokens of one document
    depend on each other, so resampling tokens would promise too much. With fewer than two documents there is none.
    Raises UserError for a file that cannot be read.
    """
    length = seq_len or reader.seq_len
    if length < 2:
        raise UserError(f"--seq_len must be at least 2, got {length}")
    lengths = tokenizers.token_bytes(reader.tokenizer)
    domains = [(file, _document_sums(reader, file, length, lengths)) for file in files]
    generator = np.random.default_rng(seed)
    drawn = [_resampled(sums, generator) for _, sums in domains]
    whole = _figures(np.concatenate([sums for _, sums in domains]), np.sum(drawn, axis=0))
    each = [{"name": name, **_figures(sums, sample)} for (name, sums), sample in zip(domains, drawn, strict=True)]
    return {**whole, "seq_len": length, "domains": each}


def _document_sums(reader: Reader, file: str, seq_len: int, lengths: np.ndarray) -> np.ndarray:
    """Nats, predicted tokens and bytes of every document, float64 [documents, 3]."""
    rows = max(1, LOGITS // (seq_len * reader.model.shape.vocab_size))
    sums: list[list[float]] = []
    batch: list[tuple[int, list[int]]] = []
    for number, ids in enumerate(_tokenised(reader, file)):
        sums.append([0.0, len(ids) - 1, float(lengths[ids[1:]].sum())])
        for start in range(0, len(ids) - 1, seq_len):
            batch.append((number, ids[start : start + seq_len + 1]))
            if len(batch) == rows:
                _add(reader.model, batch, sums)
                batch = []
    if batch:
        _add(reader.model, batch, sums)
    return np.array(sums)


def _tokenised(reader: Reader, file: str) -> Iterator[list[int]]:
    for _, text in documents([file]):
        yield [reader.bos, *reader.tokenizer.encode(text, add_special_tokens=False).ids, reader.eos]


@torch.no_grad()
def _add(model: Llama, batch: list[tuple[int, list[int]]], sums: list[list[float]]) -> None:
    """Add the nats of each window [seq + 1] to its document; shorter windows are filled up on the right."""
    longest = max(len(window) for _, window in batch)
    tokens = torch.zeros(len(batch), longest, dtype=torch.long)
    targets = torch.full_like(tokens, IGNORED)
    for row, (_, window) in enumerate(batch):
        tokens[row, : len(window)] = targets[row, : len(window)] = torch.tensor(window)
    device = model.embedding.weight.device
    logits = model(tokens[:, :-1].to(device)).float().transpose(1, 2)  # [rows, vocab, seq]
    nats = functional.cross_entropy(logits, targets[:, 1:].to(device), ignore_index=IGNORED, reduction="none").sum(1)
    for (number, _), value in zip(batch, nats.tolist(), strict=True):
        sums[number][0] += value


def _resampled(sums: np.ndarray, generator: np.random.Generator) -> np.ndarray:
    """Sums over documents drawn with replacement, [RESAMPLES, 3]."""
    count = len(sums)
    return np.stack([sums[generator.integers(count, size=count)].sum(0) for _ in range(RESAMPLES)])


def _figures(sums: np.ndarray, drawn: np.ndarray) -> dict[str, Any]:
    nats, tokens, read = sums.sum(0)
    known = len(sums) > 1
    per_token, per_byte = drawn[:, 0] / drawn[:, 1], drawn[:, 0] / math.log(2) / np.maximum(drawn[:, 2], 1)
    return {
        "nll_per_token": nats / tokens,
        "nll_interval": _interval(per_token) if known else None,
        "bits_per_byte": nats / math.log(2) / max(read, 1),
        "bits_per_byte_interval": _interval(per_byte) if known else None,
        "tokens": int(tokens),
        "bytes": int(read),
        "documents": len(sums),
    }


def _interval(values: np.ndarray) -> list[float]:
    return [float(v) for v in np.percentile(values, [2.5, 97.5])]
