"""Text from a run's checkpoint."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer

from yupana.corpus.shards import open_corpus
from yupana.errors import UserError
from yupana.model import huggingface
from yupana.model.generate import generate
from yupana.model.llama import Llama
from yupana.run import RunDirectory, open_run
from yupana.train import checkpoint


def sample_text(
    path: Path,
    prompt: str = "",
    tokens: int = 120,
    temperature: float = 0.8,
    top_k: int = 50,
    seed: int = 0,
    which: str = "last",
) -> str:
    """The prompt and its continuation, up to the end of the document or `tokens` tokens.

    A tuned run has no checkpoint of ours: its export is read.
    """
    model, tokenizer = open_model(open_run(path), which)
    return continued(model, tokenizer, prompt, tokens, temperature=temperature, top_k=top_k, seed=seed)


def open_model(run: RunDirectory, which: str = "last") -> tuple[Llama, Tokenizer]:
    """The model of a checkpoint in fp32, or of a tuned run's export, and the run's tokenizer."""
    tuned = not checkpoint.complete(run) and run.export.is_dir()
    if tuned:
        model = huggingface.read(run.export, torch.float32)
    else:
        model = checkpoint.load_model(checkpoint.choose(run, which), dtype=torch.float32)
    file = (run.export if tuned else run.path) / "tokenizer.json"
    if not file.is_file():
        raise UserError(f"{file.parent} has no tokenizer.json: it cannot turn text into tokens")
    return model, Tokenizer.from_file(str(file))


def continued(model: Llama, tokenizer: Tokenizer, prompt: str, tokens: int, **sampling: Any) -> str:
    """The prompt and up to `tokens` tokens after it; `sampling` as generate has it."""
    begin = tokenizer.token_to_id("<|begin_of_text|>")
    end = tokenizer.token_to_id("<|end_of_text|>")
    ids: list[int] = tokenizer.encode(prompt, add_special_tokens=False).ids
    if begin is not None:
        ids = [begin, *ids]
    return tokenizer.decode([*ids, *generate(model, ids, tokens, stop=[] if end is None else [end], **sampling)])


def sample_after_training(path: Path, passages: int = 3, temperature: float = 0.5) -> str:
    """How the model goes on from passages of the held-out text, each told apart from the passage.

    Cooler than `sample_text`: what a model has learnt in minutes shows in its likelier tokens.
    """
    run = open_run(path)
    model, tokenizer = open_model(run)
    told = []
    for prompt in _held_out_passages(run, tokenizer, passages):
        text = continued(model, tokenizer, prompt, 120, temperature=temperature)
        told.append(f"[held-out text]\n{prompt}\n[the model goes on]\n{text.removeprefix(prompt)}\n")
    return "\n".join(told)


def sample_held_out(path: Path, temperature: float = 0.5) -> dict[str, str]:
    """How the last checkpoint's model goes on from a held-out passage: {"prompt", "text"}, the same prompt every time."""
    run = open_run(path)
    model, tokenizer = open_model(run)
    prompt = _held_out_passages(run, tokenizer, 1)[0]
    text = continued(model, tokenizer, prompt, 80, temperature=temperature)
    return {"prompt": prompt, "text": text.removeprefix(prompt)}


def _held_out_passages(run: RunDirectory, tokenizer: Tokenizer, number: int, tokens: int = 48) -> list[str]:
    """From the middle of held-out documents, evenly spread, of the run's heaviest corpus; fewer if there are fewer."""
    corpora = json.loads(run.env_file.read_text())["corpora"]
    heaviest = max(corpora, key=lambda corpus: corpus["weight"])
    held_out = open_corpus(heaviest["path"]).split("val")
    ends = [*held_out.starts[1:], held_out.n_tokens]
    passages = []
    for document in sorted({held_out.n_documents * (2 * n + 1) // (2 * number) for n in range(number)}):
        start, end = int(held_out.starts[document]), int(ends[document])
        middle = start + (end - start) // 2
        ids = held_out.read(middle, min(end, middle + tokens))
        passages.append(tokenizer.decode([int(i) for i in ids]).strip("\ufffd"))  # a character cut in half at an end
    return passages
