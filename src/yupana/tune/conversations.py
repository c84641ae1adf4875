"""Conversations and preferences from a .jsonl file or a hub dataset; wrong data names its line and field."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from yupana.corpus.sources import hub_rows
from yupana.errors import UserError, did_you_mean

ROLES = ("system", "user", "assistant")
Message = dict[str, str]
"""{"role": …, "content": …}"""


@dataclass(frozen=True)
class Conversation:
    """Messages, and where they come from."""

    where: str
    """File and line, for messages to the user."""
    messages: list[Message]


@dataclass(frozen=True)
class Preference:
    """Two answers to the same messages, the better one first."""

    where: str
    prompt: list[Message]
    chosen: str
    rejected: str


def read_conversations(source: str) -> list[Conversation]:
    """Every conversation of a file: `{"messages": […]}` or `{"prompt": …, "completion": …}` a line.

    `source` is the file, or hf:NAME[:SPLIT] for a dataset of the hub. Raises UserError naming file, line and field.
    """
    found = []
    for where, row in _rows(source):
        if "messages" in row:
            messages = _messages(where, "messages", row["messages"])
        elif "prompt" in row and "completion" in row:
            prompt = _as_messages(where, "prompt", row["prompt"], "user")
            messages = [*prompt, *_as_messages(where, "completion", row["completion"], "assistant")]
        else:
            raise UserError(_no_field(where, row, "messages, or prompt and completion"))
        _check_order(where, messages)
        found.append(Conversation(where, messages))
    return found


def read_preferences(source: str) -> list[Preference]:
    """Every preference of a file or dataset: `{"prompt": …, "chosen": …, "rejected": …}` a line, each a text or messages.

    Without a prompt, chosen and rejected are whole conversations that differ in their last message. Raises UserError.
    """
    found = []
    for where, row in _rows(source):
        if "chosen" not in row or "rejected" not in row:
            raise UserError(_no_field(where, row, "prompt, chosen and rejected"))
        answers = [_as_messages(where, name, row[name], "assistant") for name in ("chosen", "rejected")]
        if "prompt" in row:
            prompt = _as_messages(where, "prompt", row["prompt"], "user")
        else:
            prompt = answers[0][:-1]
            if not prompt or answers[1][:-1] != prompt:
                raise UserError(
                    f"{where}: chosen and rejected differ before their last message: give the common part as prompt"
                )
        for name, answer in zip(("chosen", "rejected"), answers, strict=True):
            if answer[-1]["role"] != "assistant" or ("prompt" in row and len(answer) > 1):
                raise UserError(f"{where}: {name} must be one message of the assistant after the prompt")
        _check_order(where, [*prompt, answers[0][-1]])
        found.append(Preference(where, prompt, answers[0][-1]["content"], answers[1][-1]["content"]))
    return found


def _rows(source: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """(where, row) of every row."""
    return _of_hub(source) if source.startswith("hf:") else _of_file(Path(source))


def _of_hub(source: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """A hub dataset's rows; fields without a value left out."""
    name, _, split = source.removeprefix("hf:").partition(":")
    advice = "check the name (hf:NAME or hf:NAME:SPLIT) and the network, or give a .jsonl file"
    number = 0
    for number, row in enumerate(hub_rows(source, name, None, split or "train", advice), start=1):
        yield f"{source}, row {number}", {key: value for key, value in row.items() if value is not None}
    if not number:
        raise UserError(f"{source} holds no conversations")


def _of_file(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    try:
        lines = path.read_text(encoding="utf-8").split("\n")
    except OSError as error:
        raise UserError(f"{path} cannot be read: {(error.strerror or str(error)).lower()}") from error
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is not UTF-8 text (byte {error.start}): write one JSON object a line") from error
    found = 0
    for number, line in enumerate(lines, start=1):
        where = f"{path}, line {number}"
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except ValueError as error:
            raise UserError(f"{where} is not valid JSON ({error}): write one JSON object a line") from error
        if not isinstance(row, dict):
            raise UserError(f"{where} is {_kind(row)}: write one JSON object a line")
        found += 1
        yield where, row
    if not found:
        raise UserError(f"{path} holds no conversations: write one JSON object a line")


def _as_messages(where: str, name: str, value: Any, role: str) -> list[Message]:
    """A plain text as one message of `role`, or messages as they are."""
    if isinstance(value, str):
        return [_message(where, name, {"role": role, "content": value})]
    return _messages(where, name, value)


def _messages(where: str, name: str, value: Any) -> list[Message]:
    if not isinstance(value, list) or not value:
        raise UserError(f"{where}: {name} must be a list of messages, got {_kind(value)}")
    return [_message(where, f"{name}[{i}]", message) for i, message in enumerate(value)]


def _message(where: str, name: str, message: Any) -> Message:
    if not isinstance(message, dict):
        raise UserError(f'{where}: {name} must be {{"role": …, "content": …}}, got {_kind(message)}')
    for field in ("role", "content"):
        if field not in message:
            hint = " (ShareGPT's from and value are called role and content here)" if "from" in message else ""
            raise UserError(f"{where}: {name} has no {field}{hint}")
    role, content = message["role"], message["content"]
    if role not in ROLES:
        near = did_you_mean(str(role), ROLES)
        raise UserError(f"{where}: {name}.role is {role!r}{near}: the roles are {', '.join(ROLES)}")
    if not isinstance(content, str):
        raise UserError(f"{where}: {name}.content must be text, got {_kind(content)}")
    if not content.strip():
        raise UserError(f"{where}: {name}.content is empty")
    return {"role": role, "content": content}


def _check_order(where: str, messages: list[Message]) -> None:
    roles = [message["role"] for message in messages]
    if "assistant" not in roles:
        raise UserError(f"{where}: no message is the assistant's, so there is nothing to learn from")
    if "system" in roles[1:]:
        raise UserError(f"{where}: messages[{roles.index('system', 1)}] is a system message: only the first can be")
    if roles[0] == "assistant" or roles[:2] == ["system", "assistant"]:
        raise UserError(f"{where}: the assistant speaks before the user")


def _no_field(where: str, row: dict[str, Any], wanted: str) -> str:
    return f"{where}: its fields are {', '.join(map(str, row)) or 'none'}, but a line needs {wanted}"


def _kind(value: Any) -> str:
    names = {dict: "an object", list: "a list", str: "a text", bool: "true or false", type(None): "null"}
    if value == [] or value == "":
        return "an empty " + ("list" if value == [] else "text")
    return names.get(type(value), "a number")
