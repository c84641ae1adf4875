"""Cross-entropy of the next token, with an optional z-loss (PaLM, arXiv 2204.02311, §5) that keeps log Z near 0.

forward    log Z = log Σ_v exp z_v        loss = mean over predicted tokens of (log Z - z_target + ζ log² Z)
backward   p = softmax(z)                 dz_v = dloss / n · (p_v (1 + 2 ζ log Z) - [v = target])

n counts the tokens that predict something; a target of IGNORED predicts nothing and gets no gradient.
∂ log Z / ∂z_v = p_v is all there is to it. In training log Z is taken in fp32: a bf16 log-probability of -11 is off by
up to 0.03 nats.
"""

from __future__ import annotations

from torch import Tensor

from yupana.anatomy.shapes import must_have, must_index

IGNORED = -100  # the target of a token that predicts nothing: the next one belongs to another document


def forward(logits: Tensor, targets: Tensor, z_loss: float = 0.0) -> Tensor:
    """`logits` [tokens, vocab], `targets` [tokens] → the mean loss in nats, a scalar; `z_loss` is ζ.

    Raises UserError on a misfit.
    """
    _must_fit(logits, targets)
    counted = targets != IGNORED
    log_z = log_normaliser(logits)
    at_target = logits.gather(-1, targets.clamp_min(0)[:, None])[:, 0]
    losses = log_z - at_target + z_loss * log_z.square()
    return losses[counted].sum() / predictions(targets)


def backward(dloss: Tensor | float, logits: Tensor, targets: Tensor, z_loss: float = 0.0) -> Tensor:
    """`dloss` a scalar → `dlogits` [tokens, vocab]."""
    _must_fit(logits, targets)
    counted = targets != IGNORED
    log_z = log_normaliser(logits)[:, None]
    dlogits = (logits - log_z).exp() * (1 + 2 * z_loss * log_z)
    rows = counted.nonzero()[:, 0]
    dlogits[rows, targets[rows]] -= 1
    return dlogits * counted[:, None] * (dloss / predictions(targets))


def log_normaliser(logits: Tensor) -> Tensor:
    """Log Σ exp over the vocabulary, the maximum taken out first: [tokens]."""
    maximum = logits.amax(-1, keepdim=True)
    return (maximum + (logits - maximum).exp().sum(-1, keepdim=True).log())[:, 0]


def predictions(targets: Tensor) -> int:
    """Tokens that predict something; at least 1, so that a batch without any has loss 0."""
    return max(1, int((targets != IGNORED).sum()))


def _must_fit(logits: Tensor, targets: Tensor) -> None:
    must_have("cross_entropy", "logits", logits, ["tokens", "vocab"], [None, None])
    must_have("cross_entropy", "targets", targets, ["tokens"], [logits.shape[0]])
    must_index("cross_entropy", "targets", targets[targets != IGNORED], logits.shape[1], "vocabulary")
