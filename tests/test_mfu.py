"""The ladder and the waterfall: the parts sum to the step, the records are those of real runs."""

import json
import re

import pytest
from conftest import TINY
from hypothesis import given, settings
from hypothesis import strategies as st

from yupana.flops.count import flops_per_token
from yupana.flops.explain import explain
from yupana.flops.hardware import Peaks
from yupana.flops.ladder import climb, fault, levers, tolerance
from yupana.flops.operations import Sizes, step_operations
from yupana.flops.operations import muon as muon_update
from yupana.flops.waterfall import LEVERS, Event, by_shape, kind_of, lever, useful_flops, waterfall
from yupana.model.shapes import ModelShape

SHAPE = ModelShape()
NAMES = [
    "aten::mm", "aten::bmm", "aten::_fused_adamw_", "graph_0_cpp_fused_mul_silu_7", "aten::copy_", "something_else",
    "yupana.data", "## Call CompiledFxGraph f ##",
]  # fmt: skip


@pytest.mark.parametrize(
    ("name", "part"),
    [
        ("aten::mm", "matrix products"),
        ("nvjet_tst_128x256_64x4_2x1_v_bz_coopA_TNT", "matrix products"),
        ("sm90_xmma_gemm_bf16bf16_bf16f32_f32_tn_n_tilesize128x128x64", "matrix products"),
        ("aten::bmm", "attention"),
        ("void pytorch_flash::flash_fwd_kernel<Flash_fwd_kernel_traits<64>>", "attention"),
        ("cudnn_generated_fort_native_sdpa_sm90_flash_fprop_wgmma_f16", "attention"),
        ("graph_0_cpp_fused__softmax__unsafe_view_clone_masked_fill_tril_view_4", "attention"),
        ("graph_1_cpp_fused_amax_clamp_min_exp_expm1_gather_log_mul_ne_neg_scatter_sub_sum_0", "head and loss"),
        ("triton_red_fused_exp_gather_logsumexp_sub_1", "head and loss"),
        ("graph_0_cpp_fused__unsafe_view_add_mean_mul_pow_rsqrt_6", "norms"),
        ("graph_0_cpp_fused_add_div_expand_mul_pow_sum_view_10", "norms"),
        ("triton_poi_fused_mul_silu_silu_backward_split_0", "SwiGLU"),
        ("graph_0_cpp_fused__unsafe_view_add_cat_clone_mul_neg_slice_7", "rotary"),
        ("graph_0_cpp_fused_clone_slice_transpose_view_2", "attention"),
        ("graph_0_cpp_fused__unsafe_view_add_8", "residuals"),
        ("void at::native::(anonymous namespace)::multi_tensor_apply_kernel<FusedAdamMathFunctor>", "optimizer"),
        ("ncclDevKernel_AllGather_RING_LL", "communication"),
        ("Memcpy HtoD (Pinned -> Device)", "copies and casts"),
        ("aten::embedding_dense_backward", "embedding"),
        ("## Call CompiledFxGraph fmoqcw3egr7lsi47 ##", "host and gaps"),
        ("void a_kernel_nobody_has_heard_of<float>", "other elementwise"),
    ],
)
def test_kernels_of_cpu_and_gpu_fall_into_their_parts(name, part):
    assert kind_of(Event(name, 1.0)) == part


@given(
    events=st.lists(st.builds(Event, st.sampled_from(NAMES), st.floats(1e-6, 1.0)), max_size=30),
    slack=st.floats(0, 2.0),
    steps=st.integers(1, 5),
)
@settings(deadline=None)
def test_parts_sum_to_the_step_and_losses_to_what_mfu_leaves(events, slack, steps):
    wall = sum(e.seconds for e in events) + slack + 1e-3
    peak = 1e12
    parts = waterfall(events, events, wall, steps, SHAPE, 2, 64, peak, {})
    step = wall / steps
    assert sum(p.seconds for p in parts) == pytest.approx(step)
    useful = {p.name: p.useful_seconds for p in parts}
    if {"matrix products", "attention"} <= set(useful):
        mfu = 2 * 64 * flops_per_token(SHAPE, 64)["exact"] / step / peak
        assert mfu + sum(p.lost_seconds for p in parts) / step == pytest.approx(1)


def test_the_result_is_scaled_to_an_unprofiled_step():
    events = [Event("aten::mm", 2.0, ((64, 32), (32, 16))), Event("aten::bmm", 1.0), Event("aten::copy_", 0.5)]
    peaks = Peaks("cpu", "float32", 1e9, None, "measured")
    result = explain(events, events, 2, 4.0, 2.0, SHAPE, 1, 64, peaks, {})
    assert result["step_seconds"] == 1.0
    assert result["profiler_overhead"] == pytest.approx(1.0)
    seconds = {part["name"]: part["seconds"] for part in result["parts"]}
    assert seconds == pytest.approx(
        {"matrix products": 0.5, "attention": 0.25, "copies and casts": 0.125, "host and gaps": 0.125}
    )
    assert result["products"][0] == pytest.approx(
        {"m": 64, "k": 32, "n": 16, "count": 0.5, "seconds": 0.5, "share_of_peak": 64 * 32 * 16 / 0.5 / 1e9,
         "lost_seconds": 0.5 - 64 * 32 * 16 / 1e9}
    )  # fmt: skip


def test_products_done_twice_are_recomputation_and_muons_the_optimizers():
    useful = useful_flops(step_operations(SHAPE, 2, 64))["matrix products"]
    muon = muon_update(SHAPE, Sizes.of("fp32")).flops
    assert muon > 0

    def parts(flops, settings):
        event = Event("aten::mm", 3.0, ((1, flops // 2), (flops // 2, 1)))
        return {p.name: p for p in waterfall([event], [event], 3.0, 1, SHAPE, 2, 64, 1e12, settings)}

    plain = parts(useful, {})
    assert plain["matrix products"].seconds == 3.0
    assert "recomputation" not in plain
    twice = parts(useful * 3 // 2, {})
    assert twice["matrix products"].seconds == pytest.approx(2.0)
    assert twice["recomputation"].seconds == twice["recomputation"].lost_seconds == pytest.approx(1.0)
    assert parts(useful + muon, {"optim.name": "muon"})["optimizer"].seconds == pytest.approx(3 * muon / (useful + muon))


def test_a_lever_that_is_pulled_is_named_no_more():
    assert lever("norms", {}).startswith("train.compile block; ")
    assert "train.compile" not in lever("norms", {"train.compile": "model"})
    assert "float8" not in lever("matrix products", {"fast.float8": "impossible"})
    best = {
        "train.compile": "max-autotune", "train.micro_batch": "whole", "train.precision": "bf16", "fast.adamw": "fused",
        "fast.projections": "fused", "fast.loss": "chunked", "fast.overlap": "true", "fast.allocator": "keep",
        "fast.float8": "impossible", "cuda-graphs": "impossible",
    }  # fmt: skip
    for part in LEVERS:  # something is always left, if only a wider model
        assert re.fullmatch("((?!compile|fused|chunked|micro).)+", lever(part, best)), part


def test_products_are_grouped_by_their_sizes():
    events = [Event("aten::mm", s, ((8, 4), (4, 2))) for s in (1.0, 3.0)] + [Event("aten::mm", 1.0, ((2, 2), (2, 2)))]
    rows = by_shape(events, 2, 1e3)
    assert [(r["m"], r["k"], r["n"], r["count"], r["seconds"]) for r in rows] == [(8, 4, 2, 1.0, 2.0), (2, 2, 2, 0.5, 0.5)]


def test_what_is_added_to_and_what_is_written_are_no_factors():
    events = [
        Event("aten::mm", 1.0, ((8, 4), (4, 2), (8, 2))),
        Event("aten::addmm", 1.0, ((2,), (8, 4), (4, 2))),
        Event("aten::addmm_", 1.0, ((8, 2), (8, 4), (4, 2))),
    ]
    assert [(r["m"], r["k"], r["n"], r["count"]) for r in by_shape(events, 1, 1e3)] == [(8, 4, 2, 3.0)]


@pytest.mark.slow
@pytest.mark.parametrize("how", ["off", "block"])
def test_the_profiled_products_are_those_that_are_counted(tmp_path, corpus, yupana, how):
    arguments = [*TINY, f"--data.corpus={corpus}", f"--train.compile={how}", "--train.precision=fp32", "--train.steps=4"]
    run = tmp_path / "run"
    assert yupana("train", "7m", "--run", run, *arguments, "--train.tokens=null").returncode == 0
    done = yupana("flops", "explain", run, "--steps", "2", "--json")
    assert done.returncode == 0, done.stderr
    seen = sum(2 * row["m"] * row["k"] * row["n"] * row["count"] for row in json.loads(done.stdout)["products"])
    matmul_weights = 2 * (32 * (32 + 2 * 16) + 32 * 32 + 3 * 32 * 48) + 32 * 300  # Q, K, V; out; gate, up, down; head
    assert seen == 6 * matmul_weights * 8 * 32


@pytest.mark.slow
def test_a_ladder_climbs_keeps_what_helps_and_goes_on_after_a_stop(tmp_path, corpus):
    few = [lever for lever in levers(2, 8) if lever.name.split()[0] in ("fp32,", "Q,", "AdamW", "float8", "micro-batch")]
    seen = []
    model = [*TINY, f"--data.corpus={corpus}"]
    rungs = climb(model, 6, tmp_path, "cpu", few, lambda what, share: seen.append(share))
    assert [r["name"] for r in rungs] == [lever.name for lever in few if lever.on != "cuda"]
    assert seen == [n / len(rungs) for n in range(len(rungs) + 1)]
    assert rungs[0]["loss_difference"] == 0
    for number, rung in enumerate(rungs):
        assert abs(rung["loss_difference"]) < 1e-3
        assert 0 < rung["mfu_exact"] < rung["mfu"]
        record = (tmp_path / f"rung_{number:02d}" / "run.yaml").read_text()
        assert "attention: unfused" in record
    marks = [(tmp_path / f"rung_{n:02d}" / "metrics.jsonl").stat().st_mtime_ns for n in range(len(rungs))]
    again = climb(model, 6, tmp_path, "cpu", few)
    assert [r["tokens_per_second"] for r in again] == [r["tokens_per_second"] for r in rungs]
    assert marks == [(tmp_path / f"rung_{n:02d}" / "metrics.jsonl").stat().st_mtime_ns for n in range(len(rungs))]


@pytest.mark.slow
def test_every_rung_keeps_the_loss_over_200_steps(tmp_path, corpus):
    rungs = climb([*TINY, f"--data.corpus={corpus}", "--optim.lr=5e-3"], 200, tmp_path, "cpu", levers(2, 8))
    ran = [rung for rung in rungs if "loss" in rung]
    assert len(ran) >= 14, rungs
    assert ran[0]["loss"] < 4.5  # it has learnt: an untrained model is at ln 300 = 5.7
    for rung in ran:
        assert abs(rung["loss_difference"]) <= rung["tolerance"], rung
    assert {rung["tolerance"] for rung in ran} == {0.001, 0.03}


def test_a_rung_that_loses_loss_or_time_is_let_go_of():
    settings = {"train.precision": "fp32"}
    assert tolerance(settings) == 0.001
    assert tolerance(settings | {"fast.float8": "rowwise"}) == tolerance({"train.precision": "bf16"}) == 0.03
    best = {"tokens_per_second": 100.0}
    rung = {"tokens_per_second": 150.0, "loss_difference": 0.0005, "tolerance": 0.001}
    assert fault(rung, None) == fault(rung, best) == ""
    assert fault(rung | {"tokens_per_second": 90.0}, best) == "slower"
    for difference in (0.002, -0.002, float("nan")):
        assert fault(rung | {"loss_difference": difference}, best) == "loss beyond ± 0.001"


@pytest.mark.slow
def test_explain_and_ladder_through_the_command_line(tmp_path, corpus, yupana):
    arguments = [*TINY, f"--data.corpus={corpus}", "--train.steps=4", "--fast.recompute=block"]
    run = tmp_path / "run"
    trained = yupana("train", "7m", "--run", run, *arguments, "--train.tokens=null", "--explain")
    assert trained.returncode == 0, trained.stderr
    assert "One step:" in trained.stdout
    seen = json.loads((run / "waterfall.json").read_text())
    assert seen["mfu"]["exact"] + sum(p["lost_share"] for p in seen["parts"]) == pytest.approx(1, abs=0.02)
    done = yupana("flops", "explain", run, "--steps", "3", "--save", tmp_path / "fall.png", "--json")
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    assert sum(p["seconds"] for p in result["parts"]) == pytest.approx(result["step_seconds"], rel=0.02)
    assert result["mfu"]["exact"] + sum(p["lost_share"] for p in result["parts"]) == pytest.approx(1, abs=0.02)
    assert all(p["lever"] for p in result["parts"])
    seconds = {p["name"]: p["seconds"] for p in result["parts"]}
    blocks, head = 2 * (32 * (32 + 2 * 16 + 32) + 3 * 32 * 48), 300 * 32  # weights: forward once more in the blocks
    again = seconds["recomputation"] / (seconds["recomputation"] + seconds["matrix products"])
    assert again == pytest.approx(2 * blocks / (6 * (blocks + head) + 2 * blocks))
    assert (tmp_path / "fall.png").stat().st_size > 10_000
    assert json.loads((run / "waterfall.json").read_text()) == result

    refused = yupana("flops", "explain", tmp_path / "nowhere")
    assert refused.returncode == 2
    assert "is no configuration" in refused.stderr
    refused = yupana("flops", "ladder", "7m", "--micro_batch", "3")
    assert refused.returncode == 2
    assert "multiple of both micro-batches" in refused.stderr
