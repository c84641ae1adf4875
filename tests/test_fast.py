"""Every fast path beside its slow twin: the same numbers, and one sentence where a machine does not have it."""

import copy
import json

import pytest
import torch
from conftest import TINY
from hypothesis import given, settings
from hypothesis import strategies as st

from yupana import config as configuration
from yupana.anatomy import adamw, muon
from yupana.config import OptimConfig
from yupana.errors import UserError
from yupana.model.llama import Attention, Llama, attend, attention_mask
from yupana.model.shapes import ModelShape
from yupana.run import RunDirectory, open_run
from yupana.train import attention, fast, optimizer
from yupana.train.begin import begin
from yupana.train.loss import full_cross_entropy, linear_cross_entropy
from yupana.train.prefetch import Prefetch

SHAPE = ModelShape(n_layers=2, d_model=32, n_heads=4, n_kv_heads=2, head_dim=8, d_ff=48, vocab_size=61)


def tiny(*settings):
    return configuration.load(None, None, [*TINY, "--train.steps=4", *settings])


def gradients(model, tokens):
    """Loss and every gradient of `model` with its logits' squares as the loss."""
    model.zero_grad()
    loss = model(tokens).square().mean()
    loss.backward()
    return [loss.detach(), *(p.grad.clone() for p in model.parameters())]


def same(model, other, **tolerance):
    tokens = torch.randint(0, SHAPE.vocab_size, (3, 19), generator=torch.Generator().manual_seed(1))
    for one, two in zip(gradients(model, tokens), gradients(other, tokens), strict=True):
        torch.testing.assert_close(one, two, **tolerance)


@pytest.fixture
def model():
    model = Llama(SHAPE).double()
    model.initialise(seed=3)
    return model


@given(
    kv=st.integers(1, 3), groups=st.integers(1, 3), seq=st.integers(1, 300), half=st.integers(1, 9),
    documents=st.booleans(), seed=st.integers(0, 1000),
)  # fmt: skip
@settings(max_examples=30, deadline=None)
@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")
def test_every_attention_gives_what_torchs_does(kv, groups, seq, half, documents, seed):
    g = torch.Generator().manual_seed(seed)
    q, k, v = (torch.randn(2, heads, seq, 2 * half, generator=g, dtype=torch.float64) for heads in (kv * groups, kv, kv))
    ids = torch.randint(0, 4, (2, seq), generator=g).sort(1).values if documents else None
    mask = attention_mask(torch.arange(seq), ids, cached=0)
    expected = attend(q, k, v, mask)
    tolerance = {"rtol": 1e-5, "atol": 1e-6}  # the softmax is in fp32
    torch.testing.assert_close(attention.unfused_attention(q, k, v, mask), expected, **tolerance)
    torch.testing.assert_close(attention.blocked_causal_attention(q, k, v, mask), expected, **tolerance)
    if groups in (1, 2):
        flex = attention.flex_mask(torch.arange(seq), ids, 0)
        torch.testing.assert_close(attention.flex_attention(q, k, v, flex), expected, **tolerance)


def test_separate_projections_change_nothing(model):
    other = copy.deepcopy(model)
    fast.separate_projections(other)
    same(model, other)


def test_recomputing_blocks_changes_not_a_bit(model):
    other = copy.deepcopy(model)
    fast.recompute_blocks(other)
    same(model, other, rtol=0, atol=0)


@pytest.mark.slow
@pytest.mark.parametrize(("how", "share"), [("block", 1.0), ("block", 0.5), ("model", 1.0)])
def test_compiling_changes_only_rounding(model, how, share):
    torch._dynamo.reset()
    model = model.float()
    other = copy.deepcopy(model)
    fast.compile_model(other, how, share)
    same(model, other, rtol=1e-4, atol=1e-7)


def test_full_and_chunked_loss_agree():
    g = torch.Generator().manual_seed(0)
    hidden, weight = torch.randn(50, 16, generator=g), torch.randn(61, 16, generator=g)
    targets, scale = torch.randint(0, 61, (50,), generator=g), torch.tensor(0.02)
    results = []
    for function in (full_cross_entropy, linear_cross_entropy):
        h, w = hidden.clone().requires_grad_(), weight.clone().requires_grad_()
        loss = function(h, w, targets, scale)
        loss.backward()
        results.append((loss.detach(), h.grad, w.grad))
    torch.testing.assert_close(*results)


@pytest.mark.parametrize("kernel", ["fused", "foreach", "loop"])
@pytest.mark.parametrize("clip", [0.0, 0.05, 100.0])
def test_adamw_kernels_clip_and_step_as_torch_does(model, kernel, clip):
    model = model.float()
    reference = copy.deepcopy(model)
    optim = OptimConfig(lr=1e-2, clip=clip)
    ours = optimizer.TorchOptimizer(model, optim, masters=False, kernel=kernel)
    decayed = [p for p in reference.parameters() if p.ndim >= 2]
    plain = [p for p in reference.parameters() if p.ndim < 2]
    theirs = torch.optim.AdamW(
        [{"params": decayed, "weight_decay": 0.1}, {"params": plain, "weight_decay": 0.0}], lr=1e-2, betas=(0.9, 0.95)
    )
    for step in range(3):
        tokens = torch.randint(0, SHAPE.vocab_size, (2, 9), generator=torch.Generator().manual_seed(step))
        model(tokens).square().mean().backward()
        norm = ours.step(step, 1e-2)
        reference(tokens).square().mean().backward()
        if clip:
            expected = torch.nn.utils.clip_grad_norm_(reference.parameters(), clip)
            torch.testing.assert_close(norm, expected, rtol=1e-5, atol=1e-8)
        theirs.step()
        theirs.zero_grad()
    for one, two in zip(model.parameters(), reference.parameters(), strict=True):
        torch.testing.assert_close(one, two, rtol=1e-5, atol=1e-6)


def test_muon_steps_the_blocks_matrices_as_derived_by_hand(model):
    model = model.float()
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    ours = optimizer.TorchOptimizer(model, OptimConfig(name="muon", lr=1e-2, clip=0.0), masters=False)
    torch.manual_seed(0)
    model(torch.randint(0, SHAPE.vocab_size, (2, 9))).square().mean().backward()
    gradient = {name: p.grad.clone() for name, p in model.named_parameters()}
    ours.step(0, 1e-2)
    for name, parameter in model.named_parameters():
        if parameter.ndim == 2 and name.startswith("layers."):
            zero = torch.zeros_like(parameter)
            expected, _ = muon.forward(before[name], gradient[name], zero, 1e-2, match_adamw=True)
            limit = 0.35  # torch turns in bf16; a lost sign or term gives 1 and more
        else:
            limit = 1e-3
            zero, decay = torch.zeros_like(parameter), 0.1 if parameter.ndim == 2 else 0.0
            expected, *_ = adamw.forward(
                before[name], gradient[name], zero, zero, 1, 1e-2, betas=(0.9, 0.95), weight_decay=decay
            )
        moved, wanted = parameter.detach() - before[name], expected - before[name]
        assert ((moved - wanted).norm() / wanted.norm()).item() < limit


def test_muon_resumes_bit_for_bit(tmp_path, corpus):
    def run(name, *more, resume=False):
        start = [*TINY, f"--data.corpus={corpus}", "--optim.name=muon", "--train.steps=8", "--checkpoint.every=4"]
        begin(RunDirectory(tmp_path / name), None, None, [*start, *more], resume=resume)
        return [r["loss"] for r in open_run(tmp_path / name).metrics() if "loss" in r]

    whole = run("whole")
    run("parts")
    (tmp_path / "parts" / "checkpoints" / "step_8" / "manifest.json").unlink()
    assert run("parts", resume=True) == whole
    assert whole[-1] < whole[0]


def test_float8_is_for_the_blocks_and_close_to_bf16():
    pytest.importorskip("torchao")
    torch.manual_seed(0)
    shape = ModelShape(n_layers=2, d_model=64, n_heads=4, n_kv_heads=2, head_dim=16, d_ff=96, vocab_size=61)
    model = Llama(shape).bfloat16()
    model.initialise(seed=3)
    other = copy.deepcopy(model)
    fast.multiply_in_float8(other, "tensorwise", "cpu", emulate=True)
    assert [n for n, _ in model.named_parameters()] == [n for n, _ in other.named_parameters()]
    eighths = {name for name, module in other.named_modules() if type(module).__name__ == "Float8Linear"}
    assert len(eighths) == 4 * shape.n_layers
    assert all(name.startswith("layers.") for name in eighths)
    tokens = torch.randint(0, 61, (2, 32))
    plain, rounded = model.hidden(tokens).float(), other.hidden(tokens).float()
    difference = ((plain - rounded).norm() / plain.norm()).item()
    assert 0 < difference < 0.1


@pytest.mark.parametrize(
    "setting",
    [
        "fast.attention=unfused", "fast.attention=blocked", "fast.projections=separate", "fast.loss=full",
        "fast.adamw=loop", "fast.adamw=foreach", "fast.recompute=block", "fast.overlap=false", "fast.allocator=system",
    ],
)  # fmt: skip
def test_a_slow_twin_trains_the_same_curve(tmp_path, corpus, setting):
    curves = {}
    for name, more in (("fast", []), ("slow", [f"--{setting}"])):
        begin(
            RunDirectory(tmp_path / name), None, None,
            [*TINY, f"--data.corpus={corpus}", "--train.steps=8", "--train.precision=fp32", *more],
        )  # fmt: skip
        curves[name] = [r["loss"] for r in open_run(tmp_path / name).metrics() if "loss" in r]
    assert curves["slow"] == pytest.approx(curves["fast"], rel=1e-5)


@pytest.mark.parametrize(
    ("setting", "words"),
    [
        ("fast.attention=flash", ["fast.attention is flash", "GPU"]),
        ("fast.attention=flex", ["fast.attention is flex", "GPU"]),
        ("fast.float8=rowwise", ["fast.float8 is rowwise", "CPU", "--fast.float8 off"]),
        ("train.compile=cuda-graphs", ["cuda-graphs", "GPU"]),
        ("train.precision=tf32", ["tf32", "fp32"]),
        ("fast.recompute=selective", ["selective", "train.compile"]),
        ("fast.attention=flsh", ["fast.attention must be one of", "flash"]),
    ],
)
def test_what_this_machine_does_not_have_is_refused(tmp_path, corpus, setting, words):
    more = [f"--data.corpus={corpus}", "--train.steps=4", f"--{setting}"]
    with pytest.raises(UserError) as refusal:
        begin(RunDirectory(tmp_path / "run"), None, None, [*TINY, *more])
    for word in words:
        assert word in str(refusal.value)
    assert not (tmp_path / "run" / "run.yaml").exists()


def test_the_default_attention_on_a_cpu_is_by_dtype_and_length():
    blocked = attention.blocked_causal_attention
    for dtype, seq_len, way in (("bfloat16", 256, blocked), ("bfloat16", 4096, attend), ("float32", 256, attend)):
        model = Llama(SHAPE).to(getattr(torch, dtype))
        attention.choose(model, "auto", "cpu", compiled=True, seq_len=seq_len, packing="stream")
        assert {m.attend for m in model.modules() if isinstance(m, Attention)} == {way}


@given(total=st.integers(1, 20), start=st.integers(0, 19), ahead=st.booleans())
def test_prefetching_reads_each_step_once_and_in_order(total, start, ahead):
    read = []
    with Prefetch(lambda step: read.append(step) or step * step, total, ahead) as batches:
        for step in range(start, total):
            assert batches(step) == step * step
    assert read == list(range(start, total))


def test_prefetching_passes_an_error_on():
    def read(step):
        raise UserError(f"no batch {step}")

    with Prefetch(read, 5, ahead=True) as batches, pytest.raises(UserError, match="no batch 0"):
        batches(0)


def test_settings_are_written_into_the_run(tmp_path, corpus):
    begin(RunDirectory(tmp_path / "run"), None, None, [*TINY, f"--data.corpus={corpus}", "--train.steps=2"])
    assert configuration.load(file=tmp_path / "run" / "run.yaml").fast == tiny().fast
    assert json.loads((tmp_path / "run" / "env.json").read_text())["compiled"] == "off"
