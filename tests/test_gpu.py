"""The GPU's own paths beside their slow twins; skipped, with the reason, where there is no GPU."""

import pytest
import torch
from conftest import TINY

from yupana import config as configuration
from yupana.model.llama import Llama, attend, attention_mask
from yupana.model.shapes import ModelShape
from yupana.run import RunDirectory, open_run
from yupana.train import attention, fast
from yupana.train.begin import begin
from yupana.train.loss import full_cross_entropy, linear_cross_entropy

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="torch sees no GPU here"),
]


def relative(one, two):
    return ((one.float() - two.float()).norm() / two.float().norm()).item()


@pytest.fixture
def back_ends():
    """Put scaled_dot_product_attention's choice back as it was."""
    yield
    for enable in ("flash", "cudnn", "mem_efficient", "math"):
        getattr(torch.backends.cuda, f"enable_{enable}_sdp")(True)


@pytest.mark.parametrize("way", ["flash", "cudnn", "flex", "sdpa"])
@pytest.mark.parametrize("documents", [False, True])
def test_attention_equals_the_unfused_one(way, documents, back_ends):
    if documents and way in ("flash", "cudnn"):
        pytest.skip("documents are flex's or sdpa's")
    torch.manual_seed(0)
    q, k, v = (
        torch.randn(2, heads, 512, 64, device="cuda", dtype=torch.bfloat16, requires_grad=True) for heads in (8, 2, 2)
    )
    ids = torch.randint(0, 5, (2, 512), device="cuda").sort(1).values if documents else None
    positions = torch.arange(512, device="cuda")
    mask = attention_mask(positions, ids, cached=0)
    expected = attention.unfused_attention(q, k, v, mask)
    wanted = torch.autograd.grad(expected.sum(), (q, k, v))
    if way == "flex":
        mask = attention.flex_mask(positions, ids, 0)
        out = torch.compile(attention.flex_attention, dynamic=False)(q, k, v, mask)
    else:
        if way != "sdpa":
            attention.only_back_end(way)
        out = attend(q, k, v, mask)
    found = torch.autograd.grad(out.sum(), (q, k, v))
    assert relative(out, expected) < 0.01
    for one, two in zip(found, wanted, strict=True):
        assert relative(one, two) < 0.02


def test_chunked_loss_equals_full_logits():
    torch.manual_seed(0)
    h = torch.randn(3000, 256, device="cuda", dtype=torch.bfloat16)
    w = torch.randn(128_256, 256, device="cuda", dtype=torch.bfloat16) * 0.05
    targets, scale = torch.randint(0, 128_256, (3000,), device="cuda"), torch.tensor(1 / 3000, device="cuda")
    results = []
    for function in (full_cross_entropy, linear_cross_entropy):
        a, b = h.clone().requires_grad_(), w.clone().requires_grad_()
        loss = function(a, b, targets, scale)
        loss.backward()
        results.append((loss.detach(), a.grad, b.grad))
    for one, two in zip(*results, strict=True):
        assert relative(one, two) < 0.01


@pytest.mark.parametrize("recipe", ["tensorwise", "rowwise"])
def test_float8_stays_close_to_bf16(recipe):
    pytest.importorskip("torchao")
    shape = ModelShape(n_layers=2, d_model=512, n_heads=8, n_kv_heads=2, head_dim=64, d_ff=1024, vocab_size=1024)
    models = []
    for eighths in (False, True):
        model = Llama(shape).bfloat16().cuda()
        model.initialise(seed=3)
        if eighths:
            fast.multiply_in_float8(model, recipe, "cuda")
        models.append(model)
    tokens = torch.randint(0, 1024, (4, 256), device="cuda")
    plain, rounded = (model.hidden(tokens) for model in models)
    assert 0 < relative(rounded, plain) < 0.1


@pytest.mark.parametrize("settings", [[], ["--train.compile=block"], ["--train.compile=cuda-graphs"]])
def test_training_falls_and_repeats_bit_for_bit(tmp_path, corpus, settings):
    curves = []
    for name in ("a", "b"):
        shape = ["--model.d_model=64", "--model.head_dim=16", "--model.d_ff=128"]
        more = [f"--data.corpus={corpus}", "--train.device=cuda", "--train.steps=30", "--optim.lr=1e-2", *shape, *settings]
        begin(RunDirectory(tmp_path / name), None, None, [*TINY, *more])
        curves.append([r["loss"] for r in open_run(tmp_path / name).metrics() if "loss" in r])
    assert curves[0] == curves[1]
    assert curves[0][-1] < curves[0][0] - 1
    assert configuration.load(file=tmp_path / "a" / "run.yaml").train.device == "cuda"
