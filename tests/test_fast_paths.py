"""Every fast path of train/ against the hand-written operations of anatomy/, which run in float64."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from yupana.anatomy import adamw, attention, clip, cross_entropy, linear_cross_entropy, llama
from yupana.config import OptimConfig
from yupana.model.llama import Llama, attend, attention_mask
from yupana.model.shapes import ModelShape, RopeScaling
from yupana.train import loss as loss_module
from yupana.train import optimizer
from yupana.train.attention import blocked_causal_attention, flex_attention, flex_mask, unfused_attention
from yupana.train.loss import full_cross_entropy, softmax_gradient, summed_cross_entropy
from yupana.train.schedule import learning_rate

SHAPE = ModelShape(
    n_layers=2, d_model=24, n_heads=6, n_kv_heads=2, head_dim=8, d_ff=40, vocab_size=70,
    rope_theta=500.0, rope_scaling=RopeScaling(factor=4.0, original_context=64),
)  # fmt: skip


def close(ours, exact, tolerance, least=1e-3):
    """Relative to the exact result's norm; absolute where that is smaller than `least`."""
    error = (ours.double() - exact).norm() / exact.norm().clamp_min(least)
    assert error.item() < tolerance


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def some_ignored(tokens, vocab, share, seed):
    generator = torch.Generator().manual_seed(seed)
    targets = torch.randint(0, vocab, (tokens,), generator=generator)
    targets[torch.rand(tokens, generator=generator) < share] = cross_entropy.IGNORED
    return targets


def test_both_ignore_the_same_target():
    assert loss_module.IGNORED == cross_entropy.IGNORED


@given(
    rows=st.integers(1, 20), vocab=st.integers(2, 60), share=st.floats(0, 1), scale=st.floats(0.1, 8),
    seed=st.integers(0, 1000),
)  # fmt: skip
@settings(max_examples=40, deadline=None)
def test_softmax_gradient(rows, vocab, share, scale, seed):
    logits, targets = scale * normal(rows, vocab, seed=seed), some_ignored(rows, vocab, share, seed)
    n = cross_entropy.predictions(targets)
    summed, gradient = softmax_gradient(logits.float(), targets, torch.tensor(1 / n))
    close(summed / n, cross_entropy.forward(logits, targets), 1e-5, least=0.1)
    close(gradient, cross_entropy.backward(1.0, logits, targets), 1e-5, least=0.1)


@pytest.mark.parametrize(
    ("dtype", "autocast", "tolerance"),
    [(torch.float32, False, 1e-5), (torch.bfloat16, False, 2e-2), (torch.float32, True, 2e-2)],
)
@given(
    tokens=st.integers(1, 40), width=st.integers(1, 17), vocab=st.integers(2, 70), rows=st.integers(1, 16),
    share=st.floats(0, 0.9), seed=st.integers(0, 1000),
)  # fmt: skip
@settings(max_examples=40, deadline=None)
def test_linear_cross_entropy(dtype, autocast, tolerance, tokens, width, vocab, rows, share, seed):
    hidden, weight = (normal(n, width, seed=seed + n).to(dtype) for n in (tokens, vocab))
    targets = some_ignored(tokens, vocab, share, seed)
    n = cross_entropy.predictions(targets)
    loss, dhidden, dweight = linear_cross_entropy.forward_and_backward(hidden.double(), weight.double(), targets)
    h, w = hidden.clone().requires_grad_(), weight.clone().requires_grad_()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loss_module, "chunk_rows", lambda tokens, vocab_size: min(tokens, rows))
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=autocast):
            ours = loss_module.linear_cross_entropy(h, w, targets, torch.tensor(1 / n))
            full = full_cross_entropy(hidden, weight, targets, torch.tensor(1 / n))
        ours.backward()
        summed = summed_cross_entropy(hidden, weight, targets)
    # Where a target is all but certain, 1 - p cancels: the logits' rounding then is absolute, not relative.
    close(ours.detach(), loss, tolerance, least=1.0)
    close(summed / n, loss, tolerance, least=1.0)
    close(full, loss, tolerance, least=1.0)
    close(h.grad, dhidden, tolerance, least=0.5)
    close(w.grad, dweight, tolerance, least=0.5)


@given(
    batch=st.integers(1, 2), kv_heads=st.integers(1, 3), groups=st.integers(1, 3), seq=st.integers(1, 300),
    width=st.integers(1, 9), masked=st.booleans(), seed=st.integers(0, 1000),
)  # fmt: skip
@settings(max_examples=30, deadline=None)
@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")
def test_every_attention(batch, kv_heads, groups, seq, width, masked, seed):
    heads = (kv_heads * groups, kv_heads, kv_heads)
    q, k, v = (normal(batch, n, seq, width, seed=seed + i) for i, n in enumerate(heads))
    ids = torch.randint(0, 2, (batch, seq), generator=torch.Generator().manual_seed(seed)).cumsum(-1)
    ids = ids if masked else None
    seen, do = attention.mask(seq, ids), normal(batch, heads[0], seq, width, seed=seed + 3)
    exact = [attention.forward(q, k, v, seen), *attention.backward(do, q, k, v, seen)]
    mask = attention_mask(torch.arange(seq), ids, cached=0)
    for way in (attend, unfused_attention, blocked_causal_attention):
        leaves = [x.float().requires_grad_() for x in (q, k, v)]
        out = way(*leaves, mask)
        out.backward(do.float())
        for ours, theirs in zip([out.detach(), *(leaf.grad for leaf in leaves)], exact, strict=True):
            close(ours, theirs, 1e-5, least=1.0)
    if groups in (1, 2) and width % 2 == 0:  # on a CPU FlexAttention has a forward pass alone
        with torch.no_grad():
            out = flex_attention(q.float(), k.float(), v.float(), flex_mask(torch.arange(seq), ids, 0))
        close(out, exact[0], 1e-5, least=1.0)


def test_both_masks_are_the_same():
    ids = torch.tensor([[0, 0, 1, 2, 2, 2], [0, 1, 1, 1, 1, 2]])
    assert torch.equal(attention.mask(6, ids), attention_mask(torch.arange(6), ids, cached=0))


def a_batch(seed=0, seq=48):
    generator = torch.Generator().manual_seed(seed)
    tokens = torch.randint(0, SHAPE.vocab_size, (3, seq + 1), generator=generator)
    ids = torch.randint(0, 9, (3, seq + 1), generator=generator).eq(0).cumsum(-1)
    targets = torch.where(ids[:, 1:] == ids[:, :-1], tokens[:, 1:], cross_entropy.IGNORED)
    return tokens[:, :-1], targets, ids[:, :-1]


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize(
    ("dtype", "compiled", "tolerance"),
    [
        (torch.float32, False, 1e-5),
        (torch.bfloat16, False, 3e-2),
        pytest.param(torch.float32, True, 1e-5, marks=pytest.mark.slow),
    ],
)
def test_a_training_steps_loss_and_gradients(tied, dtype, compiled, tolerance):
    """The model with blocked attention and the chunked head, as training runs it, down to every parameter."""
    shape = ModelShape(**{**vars(SHAPE), "tie_embeddings": tied})
    model = Llama(shape)
    model.initialise(5)
    with torch.no_grad():
        for parameter in model.parameters():  # larger than at the start of a run, so that attention attends
            parameter.mul_(1.0 if parameter.ndim < 2 else 6.0)
    model.to(dtype)
    kernel = torch.compile(softmax_gradient, dynamic=False) if compiled else softmax_gradient
    for layer in model.layers:
        layer.attention.attend = blocked_causal_attention
        if compiled:
            layer.compile(fullgraph=True, dynamic=False)
    tokens, targets, ids = a_batch()
    weights = {name: p.detach().double() for name, p in model.named_parameters()}
    exact, gradients = llama.loss_and_gradients(weights, tokens, targets, shape, ids)
    scale = torch.tensor(1 / cross_entropy.predictions(targets))
    hidden = model.hidden(tokens, ids).flatten(0, 1)
    loss = loss_module.linear_cross_entropy(hidden, model.output_weight, targets.flatten(), scale, kernel)
    loss.backward()
    close(loss.detach(), exact, tolerance)
    for name, parameter in model.named_parameters():
        close(parameter.grad, gradients[name], tolerance, least=1e-6)


@pytest.mark.parametrize("limit", [0.5, 0.0])
@pytest.mark.parametrize(
    ("precision", "kernel", "tolerance"),
    [
        ("fp32", "fused", 1e-5), ("fp32", "foreach", 1e-5), ("fp32", "loop", 1e-5), ("bf16-autocast", "fused", 1e-5),
        ("bf16", "fused", 1e-5), ("bf16", "foreach", 1e-5), ("bf16-lean", "fused", 0.02),
    ],
)  # fmt: skip
def test_optimisers(precision, kernel, tolerance, limit):
    """Thirty steps of clipping and AdamW; of a bf16 model the fp32 masters are compared, where it has them.

    Errors are relative to the way a weight has gone; lean's, which rounds the weights themselves to bf16, to their
    size as well.
    """
    optim = OptimConfig(lr=1e-2, clip=limit, warmup_steps=5)
    dtype = torch.float32 if precision in ("fp32", "bf16-autocast") else torch.bfloat16
    model = Llama(SHAPE)
    model.initialise(3)
    model.to(dtype)
    weights = {name: p.detach().double() for name, p in model.named_parameters()}
    start = dict(weights)
    moments = {name: (torch.zeros_like(w), torch.zeros_like(w)) for name, w in weights.items()}
    ours = optimizer.build(model, precision, optim, seed=0, kernel=kernel)
    generator = torch.Generator().manual_seed(1)
    for step in range(30):
        gradients = {}
        lr = learning_rate(step, 30, optim)
        for name, parameter in model.named_parameters():
            parameter.grad = (0.1 * torch.randn(parameter.shape, generator=generator)).to(dtype)
            gradients[name] = parameter.grad.double()
        ours.collect()
        norm = ours.step(step, lr)
        clipped, exact_norm = clip.forward(gradients, limit or float("inf"))
        assert norm.item() == pytest.approx(exact_norm.item(), rel=1e-5)
        for name, gradient in clipped.items():
            decay = optim.weight_decay if gradient.ndim >= 2 else 0.0
            weights[name], *both = adamw.forward(
                weights[name], gradient, *moments[name], step + 1, lr, optim.betas, optim.eps, decay
            )
            moments[name] = tuple(both)
    state = ours.state()
    for name, parameter in model.named_parameters():
        kept = state.get(f"optimizer.master.{name}", parameter.detach())
        allowed = (weights[name] - start[name]).norm() + (weights[name].norm() if precision == "bf16-lean" else 0.0)
        assert (kept.double() - weights[name]).norm() < tolerance * allowed, name
        if precision != "bf16-lean":
            close(state[f"optimizer.exp_avg.{name}"], moments[name][0], 1e-5)
            close(state[f"optimizer.exp_avg_sq.{name}"], moments[name][1], 1e-5, least=1e-6)
