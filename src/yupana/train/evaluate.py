"""Loss on held-out text: nats a token and bits a byte."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from yupana.corpus.batches import Batch
from yupana.model.llama import Llama
from yupana.train.loss import IGNORED, summed_cross_entropy


@dataclass(frozen=True)
class Evaluation:
    """Sums over held-out text."""

    nats: float
    tokens: int
    bytes: int

    @property
    def loss(self) -> float:
        """Nats a token."""
        return self.nats / self.tokens

    @property
    def bits_per_byte(self) -> float:
        """Bits a byte of the text: comparable across tokenizers."""
        return self.nats / math.log(2) / max(self.bytes, 1)


@dataclass(frozen=True)
class HeldOut:
    """An evaluation of each source, and all of them together by the tokens that the run takes from each."""

    by_source: Mapping[str, Evaluation]
    weights: Mapping[str, float]
    """Of any sum."""

    @property
    def loss(self) -> float:
        """Nats a token."""
        return self._mean({name: found.loss for name, found in self.by_source.items()})

    @property
    def bits_per_byte(self) -> float:
        """Bits a byte of the text."""
        read = self._mean({name: found.bytes / found.tokens for name, found in self.by_source.items()})
        return self.loss / math.log(2) / max(read, 1e-9)

    @property
    def tokens(self) -> int:
        """Held-out tokens of all sources."""
        return sum(found.tokens for found in self.by_source.values())

    def _mean(self, values: Mapping[str, float]) -> float:
        return sum(self.weights[name] * value for name, value in values.items()) / sum(self.weights.values())


def evaluate(
    model: Llama,
    batches: Iterable[Batch],
    token_bytes: np.ndarray,
    rows: int,
    device: str,
    summed: Callable[[Tensor, Tensor, Tensor], Tensor] = summed_cross_entropy,
) -> Evaluation:
    """Sum the loss over batches of at most `rows` sequences.

    Smaller batches are filled up with rows that count for nothing, and the graph is built although nobody walks it
    backward: so the compiled training step serves here too, instead of a second compilation.
    """
    nats, tokens, read = 0.0, 0, 0
    for batch in batches:
        missing = rows - batch.tokens.shape[0]
        inputs = torch.from_numpy(np.pad(batch.tokens, ((0, missing), (0, 0)))).to(device)
        targets = torch.from_numpy(np.pad(batch.targets, ((0, missing), (0, 0)), constant_values=IGNORED)).to(device)
        documents = None
        if batch.document_ids is not None:
            documents = torch.from_numpy(np.pad(batch.document_ids, ((0, missing), (0, 0)))).to(device)
        states = model.hidden(inputs, documents).detach().flatten(0, 1)
        nats += summed(states, model.output_weight.detach(), targets.flatten()).item()
        counted = batch.targets[batch.targets != IGNORED]
        tokens += counted.size
        read += int(token_bytes[counted].sum())
    return Evaluation(nats, tokens, read)


def dealt(batches: Iterable[Batch], rank: int, count: int) -> Iterator[Batch]:
    """Every `count`-th of `batches`, from number `rank` on: as many for each rank, since all work on each together.

    Where they do not come out even, the last is one whose targets count for nothing.
    """
    left = iter(batches)
    while hand := list(itertools.islice(left, count)):
        one = hand[min(rank, len(hand) - 1)]
        yield one if rank < len(hand) else replace(one, targets=np.full_like(one.targets, IGNORED))
