"""A run's loss on text that is not prepared: by source, and by how much of a document the model has seen."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tokenizers import Tokenizer

from yupana.corpus import tokenizers
from yupana.corpus.pieces import pieces
from yupana.corpus.sources import documents
from yupana.errors import UserError
from yupana.model.llama import Llama
from yupana.run import RunDirectory, open_run
from yupana.train import checkpoint

ROWS = 16
"""Windows in one forward pass."""
LOGITS = 1 << 26
"""Logits at once."""


def losses(
    path: Path, sources: Sequence[str], text_field: str = "text", sample: int | None = None, tokens: int = 131_072
) -> list[dict[str, Any]]:
    """The loss of a run's newest checkpoint on the first `sample` documents, or `tokens` tokens, of each source.

    Each is {run, step, tokens, loss (nats a token), bits_per_byte, by_position: [{from, to, tokens, loss}]}. A document
    is cut into windows of data.seq_len, each seen alone, so that a position is the number of tokens before it; the
    windows of one document after its first begin in its middle. Raises UserError for a run without a checkpoint or
    without a tokenizer.
    """
    run = open_run(path)
    folder = checkpoint.choose(run)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    model = checkpoint.load_model(folder, dtype=torch.float32).to(device)
    about, seq_len = checkpoint.manifest(folder), _seq_len(run)
    if not (run.path / "tokenizer.json").is_file():
        raise UserError(f"{run.path} has no tokenizer.json: it cannot turn text into tokens")
    tokenizer = tokenizers.from_file(run.path / "tokenizer.json")
    ends = _ends(run, tokenizer)
    sizes = tokenizers.token_bytes(tokenizer)
    found = []
    for source in sources:
        windows = _windows(source, text_field, sample, tokenizer, ends, seq_len, tokens)
        nats, counts, read = _summed(model, windows, seq_len, sizes, device)
        total = int(counts.sum())
        found.append({
            "run": str(path), "step": about["step"], "tokens": total, "loss": float(nats.sum() / total),
            "bits_per_byte": float(nats.sum() / math.log(2) / max(read, 1)), "by_position": _binned(nats, counts),
        })  # fmt: skip
    return found


def _ends(run: RunDirectory, tokenizer: Tokenizer) -> tuple[int, int]:
    """The tokens that begin and end a document, as the run was trained; an imported one says nothing of them."""
    if run.env_file.is_file():
        env = json.loads(run.env_file.read_text())
        return env["bos_id"], env["eos_id"]
    return tokenizers.bos_and_eos(tokenizer, str(run.path))


def _seq_len(run: RunDirectory) -> int:
    import yaml

    return int(yaml.safe_load(run.config_file.read_text())["data"]["seq_len"])


def _windows(
    source: str, text_field: str, sample: int | None, tokenizer: Tokenizer, ends: tuple[int, int], seq_len: int, tokens: int
) -> Iterator[np.ndarray]:
    """Windows of up to seq_len + 1 tokens of the source's documents, until there are `tokens` targets."""
    taken = 0
    for number, (_, text) in enumerate(documents([source], text_field)):
        if number == sample:
            return
        ids = [ends[0]]
        for piece in pieces(text):
            ids += tokenizer.encode(piece, add_special_tokens=False).ids
            if sample is None and len(ids) > tokens - taken:
                break
        else:
            ids.append(ends[1])
        for begin in range(0, len(ids) - 1, seq_len):
            window = np.array(ids[begin : begin + seq_len + 1], dtype=np.int64)
            yield window
            taken += len(window) - 1
            if sample is None and taken >= tokens:
                return


@torch.no_grad()
def _summed(
    model: Llama, windows: Iterator[np.ndarray], seq_len: int, sizes: np.ndarray, device: str
) -> tuple[np.ndarray, np.ndarray, int]:
    """Nats and tokens by position, both [seq_len], and the bytes of text that the tokens stand for."""
    nats, counts, read = np.zeros(seq_len), np.zeros(seq_len, dtype=np.int64), 0
    while group := [window for _, window in zip(range(ROWS), windows, strict=False)]:
        width = max(map(len, group)) - 1
        tokens = np.zeros((len(group), width), dtype=np.int64)
        targets = np.full((len(group), width), -100, dtype=np.int64)
        for row, window in enumerate(group):
            tokens[row, : len(window) - 1], targets[row, : len(window) - 1] = window[:-1], window[1:]
            read += int(sizes[window[1:]].sum())
        hidden = model.hidden(torch.from_numpy(tokens).to(device)).flatten(0, 1)
        wanted = torch.from_numpy(targets).to(device).flatten()
        chunk = max(1, LOGITS // len(sizes))
        loss = torch.cat([
            torch.nn.functional.cross_entropy(part @ model.output_weight.T, goal, reduction="none", ignore_index=-100)
            for part, goal in zip(hidden.split(chunk), wanted.split(chunk), strict=True)
        ])  # fmt: skip
        nats[:width] += loss.view(len(group), width).double().sum(0).cpu().numpy()
        counts[:width] += (targets != -100).sum(axis=0)
    return nats, counts, read


def _binned(nats: np.ndarray, counts: np.ndarray) -> list[dict[str, Any]]:
    """The loss at positions 0, 1, 2 to 3, 4 to 7 and so on: by tokens seen before."""
    bins, begin = [], 0
    while begin < len(counts) and counts[begin:].sum():
        end = max(1, 2 * begin)
        here = slice(begin, min(end, len(counts)))
        number = int(counts[here].sum())
        bins.append({
            "from": begin, "to": here.stop - 1, "tokens": number,
            "loss": float(nats[here].sum() / number) if number else None,
        })  # fmt: skip
        begin = end
    return bins
