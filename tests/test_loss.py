"""The chunked head and cross-entropy against the plain one in float64, and the optimisers against torch's."""

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from yupana.config import OptimConfig
from yupana.model.llama import Llama, attend, attention_mask
from yupana.model.shapes import ModelShape
from yupana.train import loss as loss_module
from yupana.train import optimizer
from yupana.train.attention import blocked_causal_attention
from yupana.train.loss import IGNORED, linear_cross_entropy, softmax_gradient, summed_cross_entropy
from yupana.train.schedule import learning_rate


def relative(ours, theirs, least=1e-30):
    return ((ours.double() - theirs).norm() / theirs.norm().clamp_min(least)).item()


@given(
    tokens=st.integers(1, 40),
    width=st.integers(1, 17),
    vocab=st.integers(2, 70),
    rows=st.integers(1, 16),
    ignored=st.floats(0, 0.9),
    factor=st.sampled_from([1.0, 0.25, -3.0]),
    seed=st.integers(0, 10_000),
)
@settings(max_examples=60, deadline=None)
def test_loss_and_gradients_equal_float64(tokens, width, vocab, rows, ignored, factor, seed):
    generator = torch.Generator().manual_seed(seed)
    hidden = torch.randn(tokens, width, generator=generator, dtype=torch.float64)
    weight = torch.randn(vocab, width, generator=generator, dtype=torch.float64)
    targets = torch.randint(0, vocab, (tokens,), generator=generator)
    targets[torch.rand(tokens, generator=generator) < ignored] = IGNORED

    h64, w64 = hidden.clone().requires_grad_(), weight.clone().requires_grad_()
    expected = F.cross_entropy(F.linear(h64, w64), targets, ignore_index=IGNORED, reduction="sum") / tokens
    (factor * expected).backward()

    h, w = hidden.float().requires_grad_(), weight.float().requires_grad_()
    before = loss_module.chunk_rows
    loss_module.chunk_rows = lambda tokens, vocab_size: min(tokens, rows)
    try:
        loss = linear_cross_entropy(h, w, targets, torch.tensor(1.0 / tokens))
        (factor * loss).backward()
        summed = summed_cross_entropy(h.detach(), w.detach(), targets)
    finally:
        loss_module.chunk_rows = before
    assert loss.item() == pytest.approx(expected.item(), rel=1e-5, abs=1e-6)
    assert summed.item() == pytest.approx(expected.item() * tokens, rel=1e-5, abs=1e-5)
    # Where a target is all but certain, 1 - p cancels: fp32 then owes an absolute accuracy, not a relative one.
    assert relative(h.grad, h64.grad, least=0.1) < 1e-5
    assert relative(w.grad, w64.grad, least=0.1) < 1e-5


def test_accumulating_the_heads_gradient_in_bf16_stays_close_to_float64():
    """16 chunks added into a bf16 gradient: at most 2.5 times the error of the single bf16 product, under 1 %."""
    torch.manual_seed(0)
    hidden, weight = torch.randn(4096, 64), torch.randn(512, 64) * 0.1
    targets = torch.randint(0, 512, (4096,))
    w64 = weight.double().requires_grad_()
    F.cross_entropy(F.linear(hidden.double(), w64), targets).backward()
    errors = {}
    for rows in (4096, 256):
        before = loss_module.chunk_rows
        loss_module.chunk_rows = lambda tokens, vocab_size, rows=rows: rows
        try:
            w = weight.bfloat16().requires_grad_()
            linear_cross_entropy(hidden.bfloat16(), w, targets, torch.tensor(1 / 4096)).backward()
        finally:
            loss_module.chunk_rows = before
        errors[rows] = relative(w.grad, w64.grad)
    assert errors[256] < 2.5 * errors[4096]
    assert errors[256] < 0.01


@pytest.mark.parametrize("vocab", [64, 65, 1000])
def test_a_product_in_pieces_costs_one_rounding_more(vocab, monkeypatch):
    """bf16 over pieces of 32 words: at most √2 times the error, against float64, of rounding the right result once."""
    torch.manual_seed(0)
    logits, weight = torch.randn(256, vocab).bfloat16(), torch.randn(vocab, 64).bfloat16()
    exact = logits.double() @ weight.double()
    monkeypatch.setattr(loss_module, "PIECE", 32)
    out = torch.empty(256, 64, dtype=torch.bfloat16)
    loss_module.times_weight(logits, weight, out)
    assert relative(out, exact) < 1.5 * relative(exact.bfloat16(), exact)


def test_kernel_gives_a_probability_gradient():
    logits, targets = torch.randn(7, 11), torch.randint(0, 11, (7,))
    _, gradient = softmax_gradient(logits, targets, torch.tensor(1.0))
    torch.testing.assert_close(gradient.sum(-1), torch.zeros(7), atol=1e-6, rtol=0)


@given(
    batch=st.integers(1, 2),
    kv_heads=st.integers(1, 3),
    groups=st.integers(1, 3),
    seq=st.integers(1, 300),
    width=st.integers(1, 9),
    masked=st.booleans(),
    seed=st.integers(0, 1000),
)
@settings(max_examples=30, deadline=None)
def test_blocked_attention_equals_the_models_own(batch, kv_heads, groups, seq, width, masked, seed):
    generator = torch.Generator().manual_seed(seed)
    sizes = [(batch, kv_heads * groups, seq, width), (batch, kv_heads, seq, width), (batch, kv_heads, seq, width)]
    inputs = [torch.randn(size, generator=generator, dtype=torch.float64) for size in sizes]
    documents = torch.randint(0, 2, (batch, seq), generator=generator).cumsum(-1)
    mask = attention_mask(torch.arange(seq), documents, cached=0) if masked else None
    results = []
    for function in (attend, blocked_causal_attention):
        leaves = [x.clone().requires_grad_() for x in inputs]
        out = function(*leaves, mask)
        out.square().sum().backward()
        results.append([out, *(leaf.grad for leaf in leaves)])
    for ours, theirs in zip(results[1], results[0], strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-5)


def model_and_gradients(dtype):
    torch.manual_seed(1)
    model = Llama(ModelShape(n_layers=1, d_model=16, n_heads=2, n_kv_heads=1, head_dim=8, d_ff=24, vocab_size=40))
    model.initialise(3)
    model.to(dtype)
    gradients = [[torch.randn_like(p, dtype=torch.float32) for p in model.parameters()] for _ in range(30)]
    return model, gradients


def torch_adamw(gradients, optim, lrs):
    """torch's own AdamW in float64 with torch's own clipping."""
    model, _ = model_and_gradients(torch.float32)
    model.double()
    groups = [
        {"params": [p for p in model.parameters() if p.ndim >= 2], "weight_decay": optim.weight_decay},
        {"params": [p for p in model.parameters() if p.ndim < 2], "weight_decay": 0.0},
    ]
    adamw = torch.optim.AdamW(groups, betas=optim.betas, eps=optim.eps, foreach=False)
    norms = []
    for step, lr in enumerate(lrs):
        for p, g in zip(model.parameters(), gradients[step], strict=True):
            p.grad = g.double()
        norms.append(torch.nn.utils.clip_grad_norm_(model.parameters(), optim.clip).item())
        for group in adamw.param_groups:
            group["lr"] = lr
        adamw.step()
    return model, norms


@pytest.mark.parametrize(("precision", "tolerance"), [("fp32", 1e-6), ("bf16", 3e-3), ("bf16-lean", 0.05)])
def test_optimisers_follow_torchs_adamw(precision, tolerance):
    optim = OptimConfig(lr=1e-3, clip=1.0)
    dtype = torch.float32 if precision == "fp32" else torch.bfloat16
    model, gradients = model_and_gradients(dtype)
    lrs = [learning_rate(step, 30, optim) for step in range(30)]
    expected, norms = torch_adamw(gradients, optim, lrs)
    ours = optimizer.build(model, precision, optim, seed=0)
    for step, lr in enumerate(lrs):
        for p, g in zip(model.parameters(), gradients[step], strict=True):
            p.grad = g.to(dtype)
        ours.collect()
        assert ours.step(step, lr).item() == pytest.approx(norms[step], rel=1e-2)
    start, _ = model_and_gradients(torch.float32)
    for p, q, s in zip(model.parameters(), expected.parameters(), start.parameters(), strict=True):
        moved = (q - s.double()).norm()
        assert ((p.double() - q).norm() / (moved + q.norm())).item() < tolerance


def test_masters_keep_what_bf16_would_lose():
    """Steps far below bf16's spacing add up in the masters, and on average under stochastic rounding."""
    for precision in ("bf16", "bf16-lean"):
        weight = torch.nn.Linear(64, 64, bias=False)
        torch.nn.init.ones_(weight.weight)
        weight.to(torch.bfloat16)
        ours = optimizer.build(weight, precision, OptimConfig(weight_decay=0.0), seed=0)
        for step in range(100):
            weight.weight.grad = torch.full_like(weight.weight, 1e-3)
            ours.collect()
            ours.step(step, lr=2e-4)  # 100 steps of 2e-4: 0.02 in all; bf16's spacing at 1 is 0.0039 below
        assert weight.weight.float().mean().item() == pytest.approx(0.98, abs=2e-3)


def test_stochastic_rounding_is_right_on_average_and_exact_where_it_can_be():
    generator = torch.Generator().manual_seed(0)
    x = torch.full((200_000,), 1.001)
    rounded = optimizer.round_stochastically(x.clone(), generator).float()
    assert set(rounded.unique().tolist()) == {1.0, 1.0078125}
    assert rounded.mean().item() == pytest.approx(1.001, abs=5e-5)
    exact = torch.tensor([0.0, -2.5, 1.0, 3.0e-5]).bfloat16().float()
    assert torch.equal(optimizer.round_stochastically(exact.clone(), generator).float(), exact)


@given(total=st.integers(1, 500), warmup=st.integers(0, 600), schedule=st.sampled_from(["cosine", "wsd", "constant"]))
def test_schedule_stays_within_its_bounds(total, warmup, schedule):
    optim = OptimConfig(lr=1.0, warmup_steps=warmup, schedule=schedule, min_lr_ratio=0.1)
    rates = [learning_rate(step, total, optim) for step in range(total)]
    assert all(0 < rate <= 1.0 + 1e-12 for rate in rates)
    if schedule != "constant" and total > 2 * min(warmup, total // 2):
        assert rates[-1] == pytest.approx(0.1)
    peak = rates.index(max(rates))
    assert rates[: peak + 1] == sorted(rates[: peak + 1])
    assert rates[peak:] == sorted(rates[peak:], reverse=True)


def test_cosine_midpoint():
    optim = OptimConfig(lr=2.0, warmup_steps=0, schedule="cosine", min_lr_ratio=0.0)
    assert learning_rate(49, 100, optim) == pytest.approx(1.0)
