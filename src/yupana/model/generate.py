"""Text from a model, one token at a time."""

from __future__ import annotations

from collections.abc import Collection, Iterator

import torch
from torch import Tensor

from yupana.errors import UserError
from yupana.model.llama import Cache, Llama


@torch.no_grad()
def generate(
    model: Llama,
    prompt: list[int],
    max_tokens: int,
    *,
    temperature: float = 0.8,
    top_k: int = 50,
    seed: int = 0,
    stop: Collection[int] = (),
) -> Iterator[int]:
    """Yield up to `max_tokens` token ids that continue `prompt`; ends before a token of `stop`.

    Temperature 0 takes the likeliest token; otherwise samples among the `top_k` likeliest (0: all).
    Raises UserError for an empty prompt or sizes out of range.
    """
    if not prompt:
        raise UserError("the prompt is empty: give at least one token to continue")
    if max_tokens < 1 or temperature < 0 or top_k < 0:
        raise UserError(
            f"sampling needs max_tokens ≥ 1, temperature ≥ 0 and top_k ≥ 0, got {max_tokens}, {temperature}, {top_k}"
        )
    weight = model.output_weight
    generator = torch.Generator(device=weight.device).manual_seed(seed)
    cache = Cache(model.shape, batch=1, room=len(prompt) + max_tokens, like=weight)
    tokens = torch.tensor([prompt], device=weight.device)
    for _ in range(max_tokens):
        hidden = model.hidden(tokens, cache=cache)[:, -1]  # [1, d_model]
        token = choose(torch.nn.functional.linear(hidden, weight)[0].float(), temperature, top_k, generator)
        if token in stop:
            return
        yield token
        tokens = torch.tensor([[token]], device=weight.device)


def choose(logits: Tensor, temperature: float, top_k: int, generator: torch.Generator) -> int:
    """A token id from logits [vocab]."""
    if temperature == 0:
        return int(logits.argmax())
    if top_k:
        least = logits.topk(min(top_k, logits.numel())).values[-1]
        logits = logits.masked_fill(logits < least, -torch.inf)
    probabilities = torch.softmax(logits / temperature, dim=-1)
    return int(torch.multinomial(probabilities, 1, generator=generator))
