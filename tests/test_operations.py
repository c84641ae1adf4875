"""FLOPs and bytes of each operation: torch's counter on the hand-written functions, and the tensors they touch."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils.flop_counter import FlopCounterMode

from yupana.anatomy import (
    adamw,
    attention,
    cross_entropy,
    embedding,
    linear,
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
from yupana.config import load
from yupana.flops import operations
from yupana.flops.by_name import operations_of
from yupana.flops.count import flops_per_token
from yupana.flops.operations import Sizes, step_operations
from yupana.model.llama import Llama
from yupana.model.shapes import ModelShape

FP32 = Sizes.of("fp32")

shapes = st.builds(
    lambda kv, groups, head, **rest: ModelShape(n_heads=kv * groups, n_kv_heads=kv, head_dim=2 * head, **rest),
    kv=st.integers(1, 3), groups=st.integers(1, 3), head=st.integers(1, 5), n_layers=st.integers(1, 3),
    d_model=st.integers(2, 20), d_ff=st.integers(1, 20), vocab_size=st.integers(2, 40), tie_embeddings=st.booleans(),
)  # fmt: skip


def counted(call) -> int:
    """FLOPs of a call's matrix products, by torch."""
    with FlopCounterMode(display=False) as counter:
        call()
    return counter.get_total_flops()


def moved(*tensors) -> int:
    """Bytes of tensors, each once."""
    return sum(t.numel() * t.element_size() for t in tensors)


def draw(*size):
    return torch.randn(*size)


@given(tokens=st.integers(1, 30), inner=st.integers(1, 30), outer=st.integers(1, 30))
@settings(max_examples=20, deadline=None)
def test_linear(tokens, inner, outer):
    operation = operations.linear("w", 1, tokens, inner, outer, FP32)
    x, w, dy = draw(1, tokens, inner), draw(outer, inner), draw(1, tokens, outer)
    assert counted(lambda: linear.forward(x, w)) == operation.forward.flops == 2 * tokens * inner * outer
    assert counted(lambda: linear.backward(dy, x, w)) == operation.backward.flops == 4 * tokens * inner * outer
    assert operation.forward.bytes == moved(x, w, linear.forward(x, w))
    dx, dw = linear.backward(dy, x, w)
    assert operation.backward.bytes == moved(dy, w, dx) + moved(dy, x, dw)


@given(
    batch=st.integers(1, 3), kv=st.integers(1, 3), group=st.integers(1, 3), tile=st.integers(1, 4),
    tiles=st.integers(1, 5), head_dim=st.integers(1, 6),
)  # fmt: skip
@settings(max_examples=30, deadline=None)
def test_attention(batch, kv, group, tile, tiles, head_dim):
    """In full, twice the causal half; in tiles of s, (seq + s) / seq of it; the scores computed again never count."""
    seq, heads = tile * tiles, kv * group
    operation = operations.attention(1, batch, seq, heads, kv, head_dim, FP32)
    q, do = draw(batch, heads, seq, head_dim), draw(batch, heads, seq, head_dim)
    k, v = draw(batch, kv, seq, head_dim), draw(batch, kv, seq, head_dim)
    seen = attention.mask(seq)
    scores = counted(lambda: attention.probabilities(q, k, seen))
    assert scores == 2 * batch * heads * seq * seq * head_dim
    assert counted(lambda: attention.forward(q, k, v, seen)) == 2 * operation.forward.flops == 2 * scores
    again = counted(lambda: attention.backward(do, q, k, v, seen)) - scores
    assert again == 2 * operation.backward.flops == 4 * scores

    out, normaliser = tiled_attention.forward(q, k, v, seen, tile)
    tiled = counted(lambda: tiled_attention.forward(q, k, v, seen, tile))
    assert tiled * seq == operation.forward.flops * (seq + tile)
    tiled_back = counted(lambda: tiled_attention.backward(do, q, k, v, seen, out, normaliser, tile))
    assert (tiled_back - tiled // 2) * seq == operation.backward.flops * (seq + tile)

    gradients = tiled_attention.backward(do, q, k, v, seen, out, normaliser, tile)
    along = (do * out).sum(-1)
    assert operation.forward.bytes == moved(q, k, v, out, normaliser)
    assert operation.backward.bytes == moved(q, k, v, out, do, normaliser, along, *gradients)


def test_bytes_are_those_of_the_tensors_touched():
    tokens, d, ff, vocab = 12, 10, 14, 33
    x, dy, w, ids = draw(tokens, d), draw(tokens, d), draw(d), torch.randint(0, vocab, (1, tokens))

    o = operations.rmsnorm("norm", 1, tokens, d, FP32)
    assert o.forward.bytes == moved(x, w, rmsnorm.forward(x, w))
    assert o.backward.bytes == moved(dy, x, w, *rmsnorm.backward(dy, x, w))

    turned, rotation = draw(1, 2, tokens, 6), rope.table(tokens, rope.frequencies(6, 100.0, None, torch.float32))
    o = operations.rope(1, tokens, 12, FP32)
    assert o.forward.bytes == o.backward.bytes == moved(turned, rope.forward(turned, rotation))  # the table is small

    o = operations.residual("attention", 1, tokens, d, FP32)
    assert o.forward.bytes == moved(x, dy, residual.forward(x[None], dy[None]))
    assert o.backward.bytes == moved(x, dy, x + dy)  # the branch's gradient joins the stream's

    gate, up, dacted = (draw(tokens, ff) for _ in range(3))
    o = operations.swiglu(1, tokens, ff, FP32)
    assert o.forward.bytes == moved(gate, up, swiglu.forward(gate, up))
    assert o.backward.bytes == moved(dacted, gate, up, *swiglu.backward(dacted, gate, up))

    table = draw(vocab, d)
    o = operations.embedding(vocab, tokens, d, FP32)
    assert o.forward.bytes == moved(ids, table[ids], embedding.forward(table, ids))
    rows_read_and_written = 2 * moved(table[ids])
    zeroed = moved(embedding.backward(dy[None], table, ids))
    assert o.backward.bytes == moved(ids, dy) + rows_read_and_written + zeroed

    logits, targets = draw(tokens, vocab), ids[0]
    o = operations.cross_entropy(tokens, vocab, FP32)
    assert o.forward.bytes == moved(logits, targets)
    assert o.backward.bytes == moved(logits, targets, cross_entropy.backward(1.0, logits, targets))

    o = operations.softmax(tokens, vocab, FP32)
    y = softmax.forward(logits)
    assert o.forward.bytes == moved(logits, y)
    assert o.backward.bytes == moved(logits, y, softmax.backward(logits, y))

    gradient, m, v = (draw(vocab, d) for _ in range(3))
    o = operations.adamw(table.numel(), FP32)
    update = adamw.forward(table, gradient, m, v.abs(), 1, 0.1)
    assert o.backward.bytes == moved(gradient) + moved(gradient, table, m, v, *update)  # the norm reads it first
    with_masters = operations.adamw(table.numel(), Sizes(2, 2, 4, 4, masters=True))
    assert with_masters.backward.bytes == o.backward.bytes + moved(table.bfloat16())
    assert operations.clip(table.numel(), FP32).bytes == 3 * moved(gradient)


@given(shape=shapes)
@settings(max_examples=20, deadline=None)
def test_muon(shape):
    d, q, kv, ff = shape.d_model, shape.q_width, shape.kv_width, shape.d_ff
    matrices = [(q, d), (kv, d), (kv, d), (d, q), (ff, d), (ff, d), (d, ff)]
    by_torch = sum(counted(lambda size=size: muon.orthogonalised(draw(*size))) for size in matrices)
    assert operations.muon(shape, FP32).flops == shape.n_layers * by_torch
    closed = sum(5 * (4 * min(s) ** 2 * max(s) + 2 * min(s) ** 3) for s in matrices)
    assert operations.muon(shape, FP32).flops == shape.n_layers * closed


@given(shape=shapes, batch=st.integers(1, 3), seq=st.integers(1, 9))
@settings(max_examples=20, deadline=None)
def test_the_hand_written_step_costs_what_is_counted(shape, batch, seq):
    """torch's counter on the whole hand-written gradient: `palm`, and the scores computed once more."""
    model = Llama(shape)
    model.initialise(0)
    weights = {name: p.detach() for name, p in model.named_parameters()}
    tokens = torch.randint(0, shape.vocab_size, (batch, seq))
    by_torch = counted(lambda: llama.loss_and_gradients(weights, tokens, tokens, shape))
    again = 2 * shape.n_layers * batch * shape.q_width * seq * seq
    assert by_torch - again == batch * seq * flops_per_token(shape, seq)["palm"]


@given(shape=shapes, batch=st.integers(1, 5), seq=st.integers(1, 99))
@settings(max_examples=50, deadline=None)
def test_a_steps_operations_sum_to_the_count(shape, batch, seq):
    """Exactly, at odd lengths too."""
    step = step_operations(shape, batch, seq)
    assert sum(o.flops for o in step) == batch * seq * flops_per_token(shape, seq)["exact"]
    blocks = operations.block(shape, shape.n_layers, batch, seq, Sizes())
    assert [o for o in step if o.part in {b.part for b in blocks}] == blocks


@pytest.mark.parametrize("name", CASES)
def test_every_operation_of_anatomy_has_a_cost(name):
    shape = load("7m").model
    found = operations_of(name, shape, 4, 256)
    assert found
    assert all(o.bytes > 0 for o in found)
    products = {"linear", "attention", "tiled_attention", "linear_cross_entropy", "block", "llama", "muon"}
    assert (sum(o.flops for o in found) > 0) == (name in products)


def test_block_times_layers_is_the_model_without_ends():
    shape = load("llama3.2-1b").model
    of_block, of_model = (sum(o.flops for o in operations_of(n, shape, 2, 512)) for n in ("block", "llama"))
    head = 6 * 2 * 512 * shape.vocab_size * shape.d_model
    assert of_model == shape.n_layers * of_block + head
