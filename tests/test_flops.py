"""FLOPs: our closed form against torch's counter on the real model, and against published figures."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from yupana import config
from yupana.config import load
from yupana.errors import UserError
from yupana.flops.count import breakdown, flops_per_token
from yupana.flops.operations import step_operations
from yupana.model.llama import Llama
from yupana.model.shapes import ModelShape


def counted(shape: ModelShape, batch: int, seq: int) -> int:
    """Forward and backward of the real model, counted by torch, with attention as plain matrix products."""
    model = Llama(shape)
    tokens = torch.randint(0, shape.vocab_size, (batch, seq))
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        model(tokens).float().square().mean().backward()
    return counter.get_total_flops()


shapes = st.builds(
    lambda kv, groups, head, **rest: ModelShape(n_heads=kv * groups, n_kv_heads=kv, head_dim=2 * head, **rest),
    kv=st.integers(1, 3),
    groups=st.integers(1, 3),
    head=st.integers(1, 12),
    n_layers=st.integers(1, 3),
    d_model=st.integers(2, 40),
    d_ff=st.integers(1, 50),
    vocab_size=st.integers(2, 90),
    tie_embeddings=st.booleans(),
)


@given(shape=shapes, batch=st.integers(1, 3), seq=st.integers(1, 20))
@settings(max_examples=25, deadline=None)
def test_palm_equals_torchs_counter(shape, batch, seq):
    assert counted(shape, batch, seq) == flops_per_token(shape, seq)["palm"] * batch * seq


@given(shape=shapes, seq=st.integers(1, 4096))
def test_breakdown_sums_to_the_whole(shape, seq):
    parts = breakdown(shape, seq)
    assert sum(parameters for _, parameters, _ in parts) == shape.parameters
    assert sum(flops for _, _, flops in parts) == flops_per_token(shape, seq)["palm"]


def test_exact_takes_half_of_attention():
    shape = config.load("llama3.2-1b").model
    counts = flops_per_token(shape, 4096)
    assert counts["palm"] - counts["exact"] == 6 * 16 * 2048 * 4096
    assert counts["exact"] - 6 * shape.matmul_parameters == 6 * 16 * 2048 * 4096


def test_gpt3_sized_published_figure():
    """PaLM's appendix B gives GPT-3 (96 layers, d 12288, seq 2048) 6·N + 12·L·d·T with N = 175 B."""
    shape = ModelShape(
        n_layers=96, d_model=12288, n_heads=96, n_kv_heads=96, head_dim=128, d_ff=4 * 12288 * 2 // 3, vocab_size=50257
    )
    palm = flops_per_token(shape, 2048)["palm"]
    assert palm == pytest.approx(6 * 175e9 + 12 * 96 * 12288 * 2048, rel=0.01)


def test_sequence_length_is_checked():
    with pytest.raises(UserError, match="seq_len"):
        flops_per_token(ModelShape(), 0)


@pytest.mark.parametrize("preset", ["7m", "190m", "llama3.2-1b", "llama3.1-8b"])
@pytest.mark.parametrize(("batch", "seq_len"), [(1, 2048), (3, 256)])
def test_operations_of_a_step_sum_to_the_count(preset, batch, seq_len):
    shape = load(preset).model
    operations = step_operations(shape, batch, seq_len)
    assert sum(o.flops for o in operations) == batch * seq_len * flops_per_token(shape, seq_len)["exact"]
