"""Looking inside a run: the figures are right, the run stays the same bit for bit, and off means off."""

import html
import math

import pytest
import torch
from conftest import TINY

from yupana import config
from yupana.anatomy import attention as by_hand
from yupana.config import OptimConfig
from yupana.errors import UserError
from yupana.model.llama import Llama, rope_table, rotate
from yupana.model.shapes import ModelShape
from yupana.report.page import write_report
from yupana.run import RunDirectory, open_run
from yupana.train import health, optimizer
from yupana.train.begin import begin

SHAPE = ModelShape(n_layers=3, d_model=24, n_heads=4, n_kv_heads=2, head_dim=8, d_ff=40, vocab_size=70)


def train(path, corpus, *more, resume=False):
    return begin(RunDirectory(path), None, None, [*TINY, f"--data.corpus={corpus}", *more], resume=resume)


def looks(path):
    return {record["step"]: record["health"] for record in open_run(path).metrics() if "health" in record}


def losses(path):
    keys = ("step", "loss", "grad_norm", "val_loss")
    return [{k: r[k] for k in keys if k in r} for r in open_run(path).metrics() if "health" not in r]


@pytest.mark.parametrize("more", [(), ("--train.precision=bf16", "--data.packing=documents", "--train.micro_batch=2")])
def test_a_run_that_is_looked_into_stays_the_same_bit_for_bit(tmp_path, corpus, more):
    train(tmp_path / "off", corpus, "--train.steps=9", *more)
    train(tmp_path / "on", corpus, "--train.steps=9", "--log.anatomy_every=3", *more)
    assert losses(tmp_path / "on") == losses(tmp_path / "off")
    assert looks(tmp_path / "off") == {}
    assert list(looks(tmp_path / "on")) == [3, 6, 9]


def test_the_parts_gradients_make_up_the_whole(tmp_path, corpus):
    train(tmp_path / "run", corpus, "--train.steps=4", "--log.anatomy_every=2")
    whole = {r["step"]: r["grad_norm"] for r in open_run(tmp_path / "run").metrics() if "grad_norm" in r}
    for step, parts in looks(tmp_path / "run").items():
        assert set(parts) == {"embedding", "layers.0", "layers.1", "norm"}
        together = math.sqrt(sum(part["gradient_norm"] ** 2 for part in parts.values()))
        assert together == pytest.approx(whole[step], rel=1e-5)
        for name, part in parts.items():
            assert 0 < part["update_ratio"] < 1
            assert ("attention_entropy" in part) == name.startswith("layers.")


def test_resuming_writes_each_look_once(tmp_path, corpus):
    more = ("--log.anatomy_every=2", "--checkpoint.every=2")
    train(tmp_path / "run", corpus, "--train.steps=4", *more)
    whole = looks(tmp_path / "run")
    (open_run(tmp_path / "run").checkpoints / "step_4" / "manifest.json").unlink()
    train(tmp_path / "run", corpus, "--train.steps=4", *more, resume=True)
    assert looks(tmp_path / "run") == whole
    assert sum("health" in record for record in open_run(tmp_path / "run").metrics()) == 2


@pytest.mark.parametrize("precision", ["fp32", "bf16", "bf16-lean"])
def test_update_and_weight_are_those_of_the_step(precision):
    model = Llama(SHAPE)
    model.initialise(1)
    model.to(torch.float32 if precision == "fp32" else torch.bfloat16)
    ours = optimizer.build(model, precision, OptimConfig(clip=0.0), seed=0)
    for parameter in model.parameters():
        parameter.grad = torch.randn_like(parameter)
    ours.collect()
    before = {name: w.detach().double().clone() for name, w in ours.updated.items()}
    gradients = {name: w.grad.double().clone() for name, w in ours.updated.items()}
    watched = health.Health(model, ours)
    ours.step(0, 1e-3)
    figures = watched.figures(torch.randint(0, 70, (1, 16)), None)
    for part, found in figures.items():
        names = [name for name in before if health.part_of(name) == part]
        moved = torch.cat([(ours.updated[n].detach().double() - before[n]).flatten() for n in names]).norm()
        weight = torch.cat([before[n].flatten() for n in names]).norm()
        assert found["update_ratio"] == pytest.approx((moved / weight).item(), rel=1e-3)
        assert found["weight_norm"] == pytest.approx(weight.item(), rel=1e-3)
        gradient = torch.cat([gradients[n].flatten() for n in names]).norm()
        assert found["gradient_norm"] == pytest.approx(gradient.item(), rel=1e-3)


@pytest.mark.parametrize("documents", [False, True])
def test_activations_and_attention_against_hooks_and_anatomy(documents):
    model = Llama(SHAPE)
    model.initialise(1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(8.0 if parameter.ndim == 2 else 1.0)
    tokens = torch.randint(0, 70, (1, 20), generator=torch.Generator().manual_seed(0))
    ids = torch.tensor([[0] * 7 + [1] + [2] * 12]) if documents else None
    streams, inputs = [], []
    for layer in model.layers:
        layer.register_forward_hook(lambda module, given, out: streams.append(out.detach()))
        layer.attention.register_forward_hook(lambda module, given, out: inputs.append(given[0].detach()))
    model.hidden(tokens, ids)
    found = health.probe(model, tokens, ids)
    seen = by_hand.mask(20, ids)
    for layer, stream, x, figures in zip(model.layers, streams, inputs, found, strict=False):
        assert figures["activation_rms"] == pytest.approx(stream.square().mean().sqrt().item(), rel=1e-5)
        q, k, _ = layer.attention.wqkv(x).detach().split(layer.attention.widths, dim=-1)
        rope = rope_table(SHAPE, torch.arange(20))
        q, k = (rotate(part.view(1, 20, -1, 8), rope).transpose(1, 2).double() for part in (q, k))
        p = by_hand.probabilities(q, k, seen)
        entropy = -torch.where(p > 0, p * p.log(), 0.0).sum(-1).mean()
        assert figures["attention_entropy"] == pytest.approx(entropy.item(), rel=1e-4)
        scores = by_hand.grouped(q, k) @ k[:, :, None].transpose(-1, -2) / 8**0.5
        assert figures["attention_max"] == pytest.approx(scores[seen[:, :, None].expand_as(scores)].max().item(), rel=1e-4)


def test_the_report_draws_it(tmp_path, corpus):
    pytest.importorskip("matplotlib")
    more = ("--log.anatomy_every=2", "--log.samples=true", "--checkpoint.every=2")
    train(tmp_path / "run", corpus, "--train.steps=4", *more)
    page = write_report(open_run(tmp_path / "run"))
    assert "Inside, layer by layer" in page.read_text()
    assert (tmp_path / "run" / "health.png").read_bytes().startswith(b"\x89PNG")
    train(tmp_path / "off", corpus, "--train.steps=4")
    assert "Inside, layer by layer" not in write_report(open_run(tmp_path / "off")).read_text()
    lines = [open_run(tmp_path / name).metrics() for name in ("run", "off")]
    samples = [(line["step"], line["sample"]) for line in lines[0] if "sample" in line]
    assert [step for step, _ in samples] == [2, 4]
    assert len({sample["prompt"] for _, sample in samples}) == 1
    for _, sample in samples:
        assert sample["text"]
        assert html.escape(sample["text"]) in page.read_text()
    training = [[line["loss"] for line in run if "loss" in line] for run in lines]
    assert training[0] == training[1]


def test_samples_need_checkpoints():
    for setting in ("--checkpoint.background=true", "--checkpoint.every=0"):
        with pytest.raises(UserError, match=r"log\.samples reads each checkpoint"):
            config.load("7m", overrides=["--log.samples=true", setting])


def test_what_is_not_finite_is_null():
    model = Llama(SHAPE)
    model.initialise(1)
    ours = optimizer.build(model, "fp32", OptimConfig(), seed=0)
    for parameter in model.parameters():
        parameter.grad = torch.full_like(parameter, torch.nan)
    watched = health.Health(model, ours)
    figures = watched.figures(torch.zeros(1, 4, dtype=torch.long), None)
    assert all(part["gradient_norm"] is None for part in figures.values())


def test_a_step_between_looks_is_a_positive_number(tmp_path, corpus):
    with pytest.raises(UserError, match=r"log.anatomy_every must be at least 1, got 0"):
        train(tmp_path / "run", corpus, "--train.steps=4", "--log.anatomy_every=0")
