"""What a tuning reads: tokens of conversations, or preferences, with a part held out; and what was cut or left out."""

from __future__ import annotations

import random
from dataclasses import dataclass, field
from typing import Any

from yupana.errors import UserError
from yupana.tune.config import Tuning
from yupana.tune.conversations import Conversation, Preference, read_conversations, read_preferences
from yupana.tune.template import IGNORED, Tokens, encode, refuse_specials


@dataclass
class Data:
    """Training and held-out data, ready for a trainer."""

    train: list[Tokens] = field(default_factory=list)
    held_out: list[Tokens] = field(default_factory=list)
    train_pairs: list[Preference] = field(default_factory=list)
    held_out_pairs: list[Preference] = field(default_factory=list)
    about: dict[str, Any] = field(default_factory=dict)
    """How many conversations there are, and what was cut or left out."""


def read_data(config: Tuning, tokenizer: Any) -> Data:
    """Read, split and tokenise. Raises UserError naming file, line and field."""
    file, held_out_file = config.data.train, config.data.held_out
    if config.train.method == "dpo":
        train_pairs, held_out_pairs = _split(config, read_preferences, file, held_out_file)
        for pair in train_pairs + held_out_pairs:
            answers = [{"role": "assistant", "content": text} for text in (pair.chosen, pair.rejected)]
            refuse_specials(tokenizer, Conversation(pair.where, [*pair.prompt, *answers]))
        about = {"preferences": len(train_pairs), "held_out": len(held_out_pairs)}
        return Data(train_pairs=train_pairs, held_out_pairs=held_out_pairs, about=about)
    conversations, held_out = _split(config, read_conversations, file, held_out_file)
    data = Data(about={"conversations": len(conversations), "held_out": len(held_out), "cut": 0, "left_out": 0})
    data.train = _tokens(config, tokenizer, conversations, data.about)
    data.held_out = _tokens(config, tokenizer, held_out, data.about)
    for name, tokens in (("data.train", data.train), ("what is held out", data.held_out)):
        if not tokens:
            raise UserError(
                f"{name} has no answer within its first {config.data.seq_len} tokens (data.seq_len): raise data.seq_len"
            )
    data.about["train_tokens"] = sum(len(t.ids) for t in data.train)
    data.about["assistant_tokens"] = sum(label != IGNORED for t in data.train for label in t.labels)
    return data


def _split(config: Tuning, read: Any, file: str, held_out_file: str | None) -> tuple[list[Any], list[Any]]:
    """Training and held-out items: from two files, or a share of one, chosen by the seed."""
    items = read(file)
    if held_out_file:
        return items, read(held_out_file)
    if len(items) < 2:
        raise UserError(f"{file} holds one line only, and some has to be held out: give data.held_out, or more lines")
    order = random.Random(config.data.seed).sample(range(len(items)), len(items))
    held = set(order[: max(1, round(config.data.held_out_share * len(items)))])
    return [x for i, x in enumerate(items) if i not in held], [x for i, x in enumerate(items) if i in held]


def _tokens(config: Tuning, tokenizer: Any, conversations: list[Conversation], about: dict[str, Any]) -> list[Tokens]:
    """Tokenised and cut to seq_len; a conversation whose answers are all beyond the cut is left out."""
    kept = []
    for conversation in conversations:
        tokens = encode(tokenizer, conversation)
        if len(tokens.ids) > config.data.seq_len:
            about["cut"] += 1
            tokens = Tokens(tokens.ids[: config.data.seq_len], tokens.labels[: config.data.seq_len])
        if all(label == IGNORED for label in tokens.labels):
            about["left_out"] += 1
        else:
            kept.append(tokens)
    return kept
