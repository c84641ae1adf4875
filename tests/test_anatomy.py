"""The hand-written operations against autograd, differences, torch's optimisers, transformers and planted errors."""

import inspect
import itertools

import pytest
import torch
import torch.nn.functional as F
from hypothesis import example, given, settings
from hypothesis import strategies as st

from yupana.anatomy import (
    adamw,
    attention,
    block,
    checks,
    clip,
    cross_entropy,
    embedding,
    linear,
    linear_cross_entropy,
    llama,
    muon,
    residual,
    rmsnorm,
    rope,
    softmax,
    swiglu,
    tiled_attention,
)
from yupana.anatomy.cases import CASES
from yupana.anatomy.sizes import Sizes
from yupana.errors import UserError
from yupana.model import huggingface
from yupana.model import llama as model_llama
from yupana.model.shapes import ModelShape, RopeScaling

sizes = st.builds(
    Sizes,
    batch=st.integers(1, 3),
    seq=st.integers(1, 9),
    n_kv_heads=st.integers(1, 3),
    group=st.integers(1, 3),
    pairs=st.integers(1, 4),
    d_model=st.integers(2, 9),
    d_ff=st.integers(1, 9),
    vocab_size=st.integers(2, 15),
    n_layers=st.integers(1, 3),
    tie_embeddings=st.booleans(),
    scaled=st.booleans(),
    documents=st.lists(st.integers(1, 4), max_size=3).map(tuple),
    ignored=st.sampled_from([0.0, 0.3, 1.0]),
    z_loss=st.sampled_from([0.0, 1e-2]),
    tile=st.integers(1, 5),
    seed=st.integers(0, 10_000),
)


@pytest.mark.parametrize("name", CASES)
@given(drawn=sizes)
@example(drawn=Sizes(batch=1, seq=1))
@example(drawn=Sizes(seq=6, documents=(1,)))  # every document one token long
@settings(max_examples=40, deadline=None)
def test_operation_agrees_with_autograd(name, drawn):
    failed = [check for check in checks.run(CASES[name](drawn), drawn.seed) if not check.passed]
    assert not failed, failed


# Each plants one error: (operation whose check must notice, module, function, what stands there, what is put there).
MUTANTS = [
    ("embedding", embedding, "backward", "index_add(", "index_copy("),  # tokens that occur twice no longer add up
    ("embedding", embedding, "forward", "table[tokens]", "table[tokens.flip(0)]"),
    ("rmsnorm", rmsnorm, "backward", "g - normed", "g + normed"),
    ("rmsnorm", rmsnorm, "backward", " - normed * (g * normed).mean(-1, keepdim=True)", ""),
    ("rmsnorm", rmsnorm, "backward", "g = dy * weight", "g = dy"),
    ("rmsnorm", rmsnorm, "inverse_rms", " + eps", ""),
    ("linear", linear, "backward", "dy @ weight", "-dy @ weight"),
    ("linear", linear, "backward", "x.reshape(-1, x.shape[-1])", "x.reshape(-1, x.shape[-1]) * 2"),
    ("rope", rope, "backward", "-rope[1]", "rope[1]"),
    ("rope", rope, "_turn", "first * cos - second * sin", "first * cos + second * sin"),
    ("rope", rope, "frequencies", "/ scaling.factor", "* scaling.factor"),
    ("rope", rope, "frequencies", "kept.clamp(0, 1)", "kept.clamp(0, 0.9)"),
    ("softmax", softmax, "backward", "- (dy * y).sum(-1, keepdim=True)", ""),
    ("softmax", softmax, "backward", "return y * ", "return "),
    ("attention", attention, "backward", "softmax.backward(dp, p)", "p * dp"),
    ("attention", attention, "backward", "(ds @ k[:, :, None]) * scale", "ds @ k[:, :, None]"),
    ("attention", attention, "backward", "@ q).sum(2) * scale", "@ q).mean(2) * scale"),
    ("attention", attention, "backward", "@ do).sum(2)", "@ do)[:, :, 0]"),  # one query head of the group alone
    ("attention", attention, "mask", ".tril()", ""),
    ("attention", attention, "mask", " & (document_ids[:, None, :, None] == document_ids[:, None, None, :])", ""),
    ("tiled_attention", tiled_attention, "forward", "total * correction", "total"),
    ("tiled_attention", tiled_attention, "forward", "out * correction", "out"),
    ("tiled_attention", tiled_attention, "forward", "maximum + total.log()", "total.log()"),
    ("tiled_attention", tiled_attention, "backward", "dp - d_tile", "dp + d_tile"),
    ("tiled_attention", tiled_attention, "backward", "dv[:, :, columns] += ", "dv[:, :, columns] = "),
    ("tiled_attention", tiled_attention, "backward", "dq[:, :, :, rows] += ", "dq[:, :, :, rows] = "),
    ("residual", residual, "backward", "dy, dy", "dy, -dy"),
    ("residual", residual, "forward", "x + branch", "x - branch"),
    ("swiglu", swiglu, "backward", "1 + gate * (1 - s)", "1 - gate * (1 - s)"),
    ("swiglu", swiglu, "backward", " * (1 + gate * (1 - s))", ""),
    ("swiglu", swiglu, "backward", "dy * gate * s", "dy * s"),
    ("cross_entropy", cross_entropy, "backward", "-= 1", "+= 1"),
    ("cross_entropy", cross_entropy, "backward", "1 + 2 * z_loss", "1 + z_loss"),
    ("cross_entropy", cross_entropy, "backward", " * counted[:, None]", ""),
    ("cross_entropy", cross_entropy, "predictions", "int((targets != IGNORED).sum())", "len(targets)"),
    ("linear_cross_entropy", linear_cross_entropy, "forward_and_backward", "dweight += ", "dweight = "),
    ("linear_cross_entropy", linear_cross_entropy, "forward_and_backward", "backward(share", "backward(1.0"),
    ("linear_cross_entropy", linear_cross_entropy, "forward_and_backward", "loss + share * ", "loss + "),
    ("block", block, "backward", "dh + dh_branch", "dh_branch"),
    ("block", block, "backward", "dx + dx_branch", "dx_branch"),
    ("block", block, "backward", "rope.backward(dk, rotation)", "dk"),
    ("block", block, "forward", "rmsnorm.forward(h, ", "rmsnorm.forward(x, "),
    ("llama", llama, "backward", "gradients[head] + dhead if head in gradients else dhead", "dhead"),
    ("llama", llama, "backward", "reversed(range(shape.n_layers))", "range(shape.n_layers)"),
    ("llama", llama, "loss_and_gradients", "backward(1.0, ", "backward(0.5, "),
    ("adamw", adamw, "forward", "m / (1 - beta1**step)", "m"),
    ("adamw", adamw, "forward", "v_hat.sqrt() + eps", "(v_hat + eps).sqrt()"),
    ("adamw", adamw, "forward", "1 - lr * weight_decay", "1 + lr * weight_decay"),
    ("muon", muon, "forward", "(1 - momentum) * gradient + momentum * buffer", "buffer"),
    ("muon", muon, "orthogonalised", "b * square + c", "b * square - c"),
    ("muon", muon, "orthogonalised", "x.norm()", "(2 * x.norm())"),
    ("muon", muon, "forward", "max(1.0, rows / columns)", "max(1.0, columns / rows)"),
    ("clip", clip, "forward", ".sqrt()", ""),
    ("clip", clip, "forward", ".clamp(max=1.0)", " / 2"),
]  # fmt: skip


@pytest.mark.parametrize(("name", "module", "function", "there", "planted"), MUTANTS)
def test_a_planted_error_is_noticed(name, module, function, there, planted, monkeypatch):
    source = inspect.getsource(getattr(module, function))
    assert source.count(there) == 1, f"{function} holds {there!r} {source.count(there)} times"
    namespace = dict(vars(module))
    exec("from __future__ import annotations\n" + source.replace(there, planted), namespace)
    # Untied, tall, documents, one token twice: every term of every operation is felt.
    drawn = Sizes(seq=9, d_ff=17, vocab_size=6)
    assert all(check.passed for check in checks.run(CASES[name](drawn)))
    monkeypatch.setattr(module, function, namespace[function])
    assert not all(check.passed for check in checks.run(CASES[name](drawn)))


def test_every_operation_has_a_mutant():
    assert {name for name, *_ in MUTANTS} == set(CASES)


def test_a_difference_alone_notices_a_wrong_sign(monkeypatch):
    """The finite difference is a check of its own, not an echo of autograd's."""
    monkeypatch.setattr(swiglu, "backward", lambda dy, gate, up: (-dy * up * torch.sigmoid(gate), dy * gate))
    found = {check.name: check.passed for check in checks.run(CASES["swiglu"](Sizes()))}
    assert found["forward"]
    assert not found["finite difference"]


# The whole model, with weights by the same names, against two other implementations.

SHAPE = ModelShape(
    n_layers=2, d_model=18, n_heads=6, n_kv_heads=2, head_dim=6, d_ff=22, vocab_size=31, tie_embeddings=False,
    rope_theta=500.0, rope_scaling=RopeScaling(factor=4.0, original_context=16),
)  # fmt: skip


def weights_and_tokens(shape, seq=11):
    """Random float64 weights by the model's names, tokens and targets with some ignored."""
    generator = torch.Generator().manual_seed(4)
    names = {name: p.shape for name, p in model_llama.Llama(shape).named_parameters()}
    weights = {
        name: (1 + 0.1 * torch.randn(size, generator=generator, dtype=torch.float64))
        if name.endswith("norm.weight")
        else 0.3 * torch.randn(size, generator=generator, dtype=torch.float64)
        for name, size in names.items()
    }
    tokens = torch.randint(0, shape.vocab_size, (2, seq + 1), generator=generator)
    targets = tokens[:, 1:].clone()
    targets[0, 3] = cross_entropy.IGNORED
    return weights, tokens[:, :-1], targets


@pytest.fixture
def in_float64(monkeypatch):
    """yupana's Llama takes norms, rotation and frequencies in fp32; here in float64, so that 1e-10 can be asked."""
    monkeypatch.setattr(torch.Tensor, "float", torch.Tensor.double)
    monkeypatch.setattr(model_llama, "rope_frequencies", rope.frequencies)


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("documents", [True, False])
def test_whole_gradient_equals_our_models(in_float64, tied, documents):
    shape = ModelShape(**{**vars(SHAPE), "tie_embeddings": tied})
    weights, tokens, targets = weights_and_tokens(shape)
    ids = torch.tensor([[0] * 4 + [1] + [2] * 6, [0] * 11]) if documents else None
    model = model_llama.Llama(shape).double()
    model.load_state_dict(weights)
    expected = F.cross_entropy(model(tokens, ids).flatten(0, 1), targets.flatten())
    expected.backward()
    loss, gradients = llama.loss_and_gradients(weights, tokens, targets, shape, ids)
    assert loss.item() == pytest.approx(expected.item(), rel=1e-12)
    assert set(gradients) == set(weights)
    for name, parameter in model.named_parameters():
        assert checks.relative_error(gradients[name], parameter.grad) < 1e-10, name


def huggingface_llama(weights, shape, folder):
    """transformers' LlamaForCausalLM in float64 with these weights, through our export (split into q, k, v …)."""
    transformers = pytest.importorskip("transformers")
    huggingface.write(weights, shape, folder, dtype=torch.float32)
    return transformers.LlamaForCausalLM.from_pretrained(folder, dtype=torch.float64, attn_implementation="sdpa")


def by_huggingface_names(gradients, shape):
    """Our gradients under transformers' names: wqkv and w_gate_up cut into their parts."""
    return {
        theirs: piece
        for ours, parts in huggingface.tensor_layout(shape).items()
        for (theirs, _), piece in zip(parts, gradients[ours].split([size[0] for _, size in parts]), strict=True)
    }


def float64_norm_and_rotation(theirs, shape):
    """Put float64 in the two places where transformers insists on fp32, with torch's own RMSNorm."""
    for name, module in list(theirs.named_modules()):
        if type(module).__name__ == "LlamaRMSNorm":
            norm = torch.nn.RMSNorm(shape.d_model, shape.norm_eps, dtype=torch.float64)
            norm.weight = module.weight
            theirs.set_submodule(name, norm)

    class Rotation(torch.nn.Module):
        def forward(self, x, position_ids):
            frequency = rope.frequencies(shape.head_dim, shape.rope_theta, shape.rope_scaling)
            angles = position_ids[..., None].double() * torch.cat([frequency, frequency])
            return angles.cos(), angles.sin()

    theirs.model.rotary_emb = Rotation()


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize(("untouched", "tolerance"), [(True, 1e-5), (False, 1e-10)])
def test_whole_gradient_equals_transformers(tmp_path, tied, untouched, tolerance):
    """As it comes, to what its fp32 norms and rotation allow; with those two in float64, to 1e-10."""
    shape = ModelShape(**{**vars(SHAPE), "tie_embeddings": tied})
    weights, tokens, targets = weights_and_tokens(shape)
    weights = {name: w.float().double() for name, w in weights.items()}  # what a float32 file can hold
    theirs = huggingface_llama(weights, shape, tmp_path / "exported")
    if not untouched:
        float64_norm_and_rotation(theirs, shape)
    expected = F.cross_entropy(theirs(tokens).logits.flatten(0, 1), targets.flatten())
    expected.backward()
    loss, gradients = llama.loss_and_gradients(weights, tokens, targets, shape)
    assert loss.item() == pytest.approx(expected.item(), rel=tolerance)
    ours = by_huggingface_names(gradients, shape)
    compared = dict(theirs.named_parameters())
    assert set(ours) == set(compared)
    for name, parameter in compared.items():
        assert checks.relative_error(ours[name], parameter.grad) < tolerance, name


def test_tied_gradient_is_the_sum_of_two_paths():
    tied = ModelShape(**{**vars(SHAPE), "tie_embeddings": True})
    weights, tokens, targets = weights_and_tokens(tied)
    _, together = llama.loss_and_gradients(weights, tokens, targets, tied)
    _, apart = llama.loss_and_gradients(
        {**weights, "output.weight": weights["embedding.weight"].clone()}, tokens, targets, SHAPE
    )
    torch.testing.assert_close(
        together["embedding.weight"], apart["embedding.weight"] + apart["output.weight"], rtol=1e-12, atol=0
    )
    absent = sorted(set(range(31)) - set(tokens.flatten().tolist()))
    assert absent, "the sentence must leave out some of the vocabulary"
    assert not apart["embedding.weight"][absent].any()
    assert apart["output.weight"][absent].abs().min() > 0


# The optimisers' own subtleties.


@pytest.mark.parametrize(("rows", "columns"), [(12, 5), (5, 12), (7, 7)])
@pytest.mark.parametrize("match_adamw", [True, False])
def test_muon_equals_torchs_in_float64(rows, columns, match_adamw, monkeypatch):
    if not hasattr(torch.optim, "Muon"):
        pytest.skip("this torch has no Muon")
    monkeypatch.setattr(torch.Tensor, "bfloat16", torch.Tensor.clone)  # torch iterates in bf16; here in float64
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(rows, columns, generator=generator, dtype=torch.float64)
    parameter = torch.nn.Parameter(weight.clone())
    theirs = torch.optim.Muon(
        [parameter], lr=0.02, weight_decay=0.1, adjust_lr_fn="match_rms_adamw" if match_adamw else "original"
    )
    buffer = torch.zeros_like(weight)
    for _ in range(5):
        gradient = torch.randn(rows, columns, generator=generator, dtype=torch.float64)
        parameter.grad = gradient.clone()
        theirs.step()
        weight, buffer = muon.forward(weight, gradient, buffer, lr=0.02, match_adamw=match_adamw)
        assert checks.relative_error(weight, parameter.detach()) < 1e-10


def test_muon_brings_singular_values_near_one():
    matrix = torch.randn(40, 25, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    values = torch.linalg.svdvals(muon.orthogonalised(matrix))
    assert values.min() > 0.65
    assert values.max() < 1.25


def test_adamw_moves_by_lr_under_a_constant_gradient():
    weight, m, v = torch.zeros(3, dtype=torch.float64), torch.zeros(3).double(), torch.zeros(3).double()
    for step in range(1, 6):
        weight, m, v = adamw.forward(weight, torch.tensor([5.0, -1e-3, 20.0]).double(), m, v, step, lr=0.1, eps=0.0)
        weight = weight.clone()
    torch.testing.assert_close(weight.abs(), torch.full((3,), 0.1).double().mul(5), rtol=0.05, atol=0)


@given(limit=st.floats(0.01, 100), scale=st.floats(1e-3, 1e3), seed=st.integers(0, 100))
@settings(max_examples=30, deadline=None)
def test_clipping_shortens_and_keeps_the_direction(limit, scale, seed):
    generator = torch.Generator().manual_seed(seed)
    gradients = {n: scale * torch.randn(n, n + 1, generator=generator, dtype=torch.float64) for n in (2, 3)}
    clipped, norm = clip.forward(gradients, limit)
    flat, new = (torch.cat([g.flatten() for g in d.values()]) for d in (gradients, clipped))
    assert norm.item() == pytest.approx(flat.norm().item(), rel=1e-12)
    assert new.norm() <= min(limit, norm.item()) * (1 + 1e-12)
    assert F.cosine_similarity(flat, new, dim=0).item() == pytest.approx(1.0, abs=1e-12)


# Properties that need no reference.


@given(drawn=sizes, tile=st.integers(1, 9))
@settings(max_examples=30, deadline=None)
def test_any_tile_gives_the_same_attention(drawn, tile):
    x, seen = drawn.queries_keys_values(), attention.mask(drawn.seq, drawn.document_ids)
    out, normaliser = tiled_attention.forward(x["q"], x["k"], x["v"], seen, tile)
    whole, its = tiled_attention.forward(x["q"], x["k"], x["v"], seen, tile=drawn.seq)
    torch.testing.assert_close(out, whole, rtol=1e-11, atol=1e-12)
    torch.testing.assert_close(normaliser, its, rtol=1e-11, atol=1e-12)


def test_large_scores_do_not_overflow():
    """The maximum is taken out first: scores of a thousand are as good as scores of one."""
    x = torch.tensor([[1000.0, 999.0, -torch.inf]], dtype=torch.float64)
    assert softmax.forward(x)[0, 0].item() == pytest.approx(1 / (1 + 2.718281828459045**-1))
    assert cross_entropy.log_normaliser(x).item() == pytest.approx(1000 + 0.31326168751822286)
    q = torch.full((1, 1, 5, 2), 60.0, dtype=torch.float64)
    out, normaliser = tiled_attention.forward(q, q, q, attention.mask(5), tile=2)
    assert torch.isfinite(out).all()
    assert torch.isfinite(normaliser).all()


def test_no_gradient_reaches_another_document():
    drawn = Sizes(batch=1, seq=8, documents=(3, 5), ignored=0.0)
    x, seen = drawn.queries_keys_values(), attention.mask(8, drawn.document_ids)
    do = torch.zeros_like(x["q"])
    do[:, :, 5] = 1.0  # a token of the second document
    for gradient in attention.backward(do, x["q"], x["k"], x["v"], seen):
        assert not gradient[:, :, :3].any()
        assert not gradient[:, :, 6:].any()


# Bad input: the dimension, what was expected, what was found.

f = torch.zeros


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: linear.forward(f(2, 3), f(5, 4)), ["linear", "d_in", "4", "got 3"]),
        (lambda: linear.backward(f(2, 6), f(2, 4), f(5, 4)), ["linear", "d_out", "5", "got 6"]),
        (lambda: rmsnorm.forward(f(2, 3), f(4)), ["rmsnorm", "d_model", "4", "got 3"]),
        (lambda: embedding.forward(f(5, 4), torch.tensor([[5]])), ["embedding", "[0, 5)", "5 to 5"]),
        (lambda: embedding.forward(f(5, 4), torch.tensor([1])), ["embedding", "tokens", "2 dimensions", "got 1"]),
        (lambda: rope.forward(f(1, 1, 3, 4), rope.table(2, f(2))), ["rope", "seq", "must be 2", "got 3"]),
        (lambda: rope.frequencies(5, 1e4, None), ["rope", "head_dim", "even", "5"]),
        (lambda: attention.forward(f(1, 3, 2, 4), f(1, 2, 2, 4), f(1, 2, 2, 4), attention.mask(2)),
         ["attention", "n_heads (3)", "n_kv_heads (2)"]),
        (lambda: attention.forward(f(1, 2, 2, 4), f(1, 2, 2, 6), f(1, 2, 2, 6), attention.mask(2)),
         ["attention", "head_dim", "k", "must be 4", "got 6"]),
        (lambda: attention.forward(f(1, 2, 2, 4), f(1, 2, 2, 4), f(1, 2, 2, 4), attention.mask(3)),
         ["attention", "seen", "must be 2", "got 3"]),
        (lambda: tiled_attention.forward(f(1, 2, 2, 4), f(1, 2, 2, 4), f(1, 2, 2, 4), attention.mask(2), tile=0),
         ["tile", "at least 1", "0"]),
        (lambda: swiglu.forward(f(2, 3), f(2, 4)), ["swiglu", "d_ff", "3", "got 4"]),
        (lambda: residual.forward(f(1, 2, 3), f(1, 2, 4)), ["residual", "d_model", "must be 3", "got 4"]),
        (lambda: softmax.backward(f(3), f(4)), ["softmax", "4", "got 3"]),
        (lambda: cross_entropy.forward(f(2, 3), torch.tensor([0, 3])), ["targets", "[0, 3)", "0 to 3"]),
        (lambda: cross_entropy.forward(f(2, 3), torch.tensor([0])), ["targets", "tokens", "must be 2", "got 1"]),
        (lambda: linear_cross_entropy.forward_and_backward(f(2, 3), f(5, 3), torch.tensor([0, 1]), rows=0),
         ["rows", "at least 1"]),
        (lambda: llama.forward({}, torch.tensor([[0]]), SHAPE), ["llama", "embedding.weight"]),
        (lambda: adamw.forward(f(2), f(3), f(2), f(2), 1, 0.1), ["adamw", "gradient", "must be 2", "got 3"]),
        (lambda: adamw.forward(f(2), f(2), f(2), f(2), 0, 0.1), ["adamw", "step", "at least 1", "0"]),
        (lambda: muon.forward(f(2), f(2), f(2), 0.1), ["muon", "weight", "2 dimensions", "got 1"]),
        (lambda: clip.forward({"a": f(2)}, 0.0), ["clip", "positive", "0"]),
    ],
)  # fmt: skip
def test_shapes_that_do_not_fit_are_named(call, words):
    with pytest.raises(UserError) as refusal:
        call()
    for word in words:
        assert word in str(refusal.value)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_a_gradient_check_refuses_less_than_float64(dtype):
    case = checks.in_dtype(CASES["linear"](Sizes()), dtype)
    with pytest.raises(UserError, match=r"needs float64.*rounds every number"):
        checks.run(case)


def test_block_refuses_projections_that_do_not_fit():
    drawn = Sizes()
    weights = drawn.block_weights()
    weights["attention.wqkv.weight"] = weights["attention.wqkv.weight"][:-1]
    with pytest.raises(UserError, match="wqkv"):
        block.forward(drawn.random(2, 7, 10), weights, drawn.rope(), attention.mask(7))


def test_frequencies_equal_the_models():
    for shape, theta in itertools.product([None, RopeScaling()], [1e4, 5e5]):
        ours = rope.frequencies(64, theta, shape)
        theirs = model_llama.rope_frequencies(64, theta, shape)
        torch.testing.assert_close(ours.float(), theirs, rtol=1e-6, atol=0)
