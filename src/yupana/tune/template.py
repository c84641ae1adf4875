"""Conversations to tokens and labels through a chat template; only what the assistant says has labels.

Which tokens are the assistant's is found by rendering the conversation up to each of its messages. So it works with
the template of any tokenizer, marked with `{% generation %}` or not: a template without the mark makes other tools
train on everything or on nothing without a word.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from yupana.errors import UserError
from yupana.tune.conversations import Conversation, Message

IGNORED = -100  # a label that counts for nothing, as torch and transformers have it

LLAMA3 = (
    "{{ bos_token }}"
    "{% for message in messages %}"
    "{{ '<|start_header_id|>' + message['role'] + '<|end_header_id|>\n\n' + message['content'] | trim + '<|eot_id|>' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{% endif %}"
)
"""Llama 3's dialogue format (llama-models 0.3.0, llama3/chat_format.py)."""

PLAIN = (
    "{{ bos_token }}"
    "{% for message in messages %}"
    "{{ '<|' + message['role'] + '|>\n' + message['content'] | trim }}"
    "{{ eos_token if message['role'] == 'assistant' else '\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>\n' }}{% endif %}"
)
"""Headers spelled out as ordinary text, for a tokenizer that has no tokens for them: nothing is added to it, so the
embedding keeps its size and an adapter fits its base. The assistant ends with the token that ends a document."""

LLAMA3_TOKENS = ("<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>")


@dataclass(frozen=True)
class Tokens:
    """A conversation as tokens."""

    ids: list[int]
    labels: list[int]
    """The ids of what the assistant says and of the token that ends it; IGNORED elsewhere."""


def choose_template(tokenizer: Any, wanted: str) -> str:
    """Set the tokenizer's chat template as `data.template` wants it; returns which it is: own, llama3 or plain.

    Raises UserError where the tokenizer lacks Llama 3's headers and they were asked for.
    """
    has_headers = all(token in tokenizer.get_vocab() for token in LLAMA3_TOKENS)
    if wanted == "auto" and tokenizer.chat_template:
        return "own"
    if wanted == "llama3" and not has_headers:
        missing = [token for token in LLAMA3_TOKENS if token not in tokenizer.get_vocab()]
        raise UserError(
            f"data.template is llama3, but the tokenizer has no token {missing[0]}: use plain, which spells headers as text"
        )
    name = "llama3" if has_headers and wanted != "plain" else "plain"
    tokenizer.chat_template = {"llama3": LLAMA3, "plain": PLAIN}[name]
    return name


def encode(tokenizer: Any, conversation: Conversation) -> Tokens:
    """The tokens of a conversation, and labels on the assistant's.

    Raises UserError for a message that spells out one of the tokenizer's special tokens (it would end the message, or
    begin another in another's name), and for a template that does not write from left to right.
    """
    refuse_specials(tokenizer, conversation)
    messages = conversation.messages
    text = render(tokenizer, messages)
    spans = []
    for i, message in enumerate(messages):
        if message["role"] == "assistant":
            before = render(tokenizer, messages[:i], prompt=True)
            through = render(tokenizer, messages[: i + 1])
            if not (text.startswith(before) and text.startswith(through.rstrip())):
                raise UserError(
                    f"{conversation.where}: the tokenizer's chat template changes what it wrote when a message follows, so "
                    "what the assistant says cannot be told apart: use --data.template llama3 or plain"
                )
            spans.append((len(before), len(through.rstrip())))
    encoded = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
    ids, offsets = encoded["input_ids"], encoded["offset_mapping"]
    spoken = [any(start <= first and last <= end for start, end in spans) for first, last in offsets]
    return Tokens(ids, [number if said else IGNORED for number, said in zip(ids, spoken, strict=True)])


def render(tokenizer: Any, messages: list[Message], *, prompt: bool = False) -> str:
    """The conversation as text; `prompt` adds the header of the assistant's answer."""
    try:
        return tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=prompt)
    except Exception as error:  # whatever a template raises: Jinja's errors, or its own words
        raise UserError(f"the tokenizer's chat template refuses the conversation: {' '.join(str(error).split())}") from error


def refuse_specials(tokenizer: Any, conversation: Conversation) -> None:
    """Raise UserError for a message that spells out a special token."""
    specials = [token.content for token in tokenizer.added_tokens_decoder.values() if token.special]
    for i, message in enumerate(conversation.messages):
        found = next((token for token in specials if token in message["content"]), None)
        if found is not None:
            raise UserError(
                f"{conversation.where}: messages[{i}].content spells out the special token {found}, which would end or "
                "begin a message: take it out of the text"
            )
