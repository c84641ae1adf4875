"""What a machine can do: the measurement, the file, and the rates between those that were measured."""

import dataclasses
import json
import math
import time

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from yupana.errors import UserError
from yupana.flops import limits as kept
from yupana.flops.bench import SMALL, Bench
from yupana.flops.limits import LAYOUTS, AttentionRate, Limits, Machine, ProductRate
from yupana.flops.measure import measure, product
from yupana.train.kernels import kernels


@pytest.fixture(scope="module")
def measured():
    """A small measurement of this machine, with the step's kernels as they are without compilation."""
    told = []
    limits = measure("cpu", ("float32", "bfloat16"), kernels("cpu", compiled=False), lambda *t: told.append(t), SMALL)
    shares = [share for _, share in told]
    assert shares == sorted(shares)
    assert shares[-1] == 1.0
    return limits


def test_everything_that_a_prediction_needs_is_measured(measured):
    for dtype in ("float32", "bfloat16"):
        assert {r.layout for r in measured.products if r.dtype == dtype} == set(LAYOUTS)
        assert {r.seq_len for r in measured.attention if r.dtype == dtype} == set(SMALL.seq_lens)
        kinds = {(r.kind, r.pass_) for r in measured.kernels if r.dtype == dtype}
        both = {(kind, p) for kind in ("rmsnorm", "rope", "swiglu", "cross_entropy", "final_norm", "embedding")
                for p in ("forward", "backward")}  # fmt: skip
        assert kinds >= both | {("adamw", "backward"), ("add", "forward"), ("copy", "forward")}
    assert measured.machine.memory_bytes > 1 << 30
    assert measured.runtime_bytes > 50e6  # torch alone is larger


def test_rates_agree_with_a_stopwatch_of_ones_own(measured):
    a, b = torch.randn(128, 128), torch.randn(128, 128)
    seconds = []
    for _ in range(50):
        start = time.perf_counter()
        a @ b
        seconds.append(time.perf_counter() - start)
    own = 2 * 128**3 / min(seconds)
    assert own / 5 < measured.product_rate("float32", "dgrad", 128, 128, 128) < 5 * own


@pytest.mark.parametrize("layout", LAYOUTS)
def test_products_of_each_layout_are_the_products_they_say(layout):
    room = [torch.randn(64 * 64) for _ in range(3)]
    m, n, k = 8, 16, 32
    out = product(room, layout, m, n, k)()
    left, right = room[0][: m * k], room[1][: k * n]
    a = left.view(k, m).T if layout == "wgrad" else left.view(m, k)
    b = right.view(n, k).T if layout == "forward" else right.view(k, n)
    torch.testing.assert_close(out.double(), a.double() @ b.double(), rtol=1e-4, atol=1e-4)


def test_the_best_of_several_rounds_counts():
    calls, order = [0, 0], []

    def slow(which):
        calls[which] += 1
        order.append(which)
        time.sleep(0.03 if calls[which] == 2 else 0.006)  # 1 warms up; 2 meets a busy machine

    bench = Bench("cpu", ("float32",), SMALL, lambda *_: None)
    bench.patience = -1  # visits are not made again
    best = bench.best("x", [bench.plain(lambda: slow(0)), bench.plain(lambda: slow(1))], 0.3)
    assert all(0.006 <= seconds < 0.03 for (seconds,) in best)
    assert order[4:8] == [0, 1, 0, 1]  # interleaved


def test_a_short_call_is_repeated_within_a_visit():
    bench, calls = Bench("cpu", ("float32",), SMALL, lambda *_: None), []
    bench.visit(bench.plain(lambda: calls.append(time.sleep(0.0002))))
    assert len(calls) > 3


def test_a_disturbed_visit_is_made_again(monkeypatch):
    from yupana.flops import bench as module

    waits = iter([0.0, 1.0, 1.0, 1.0])  # a second in line during the first visit, none during the next
    monkeypatch.setattr(module, "waited", lambda: next(waits))
    seconds = iter([(0.5,), (0.1,), (0.01,)])
    bench = Bench("cpu", ("float32",), SMALL, lambda *_: None)
    assert bench.visit(lambda: next(seconds)) == (0.1,)


def test_the_faster_of_two_sweeps_counts(measured):
    half = [dataclasses.replace(row, flops_per_second=row.flops_per_second / 2) for row in measured.products]
    slower = dataclasses.replace(measured, products=half, launch_seconds=2 * measured.launch_seconds)
    assert slower.best_of(measured) == measured == measured.best_of(slower)


def limits_of(products):
    machine = Machine("cpu", "a processor", 2, "2.13", "2026-11-24", 1 << 34)
    return Limits(machine, 1e-6, 1e-4, 1 << 28, products=products)


SIDES = (64, 512, 4096)


@given(st.data())
@settings(max_examples=60, deadline=None)
def test_interpolated_rates_lie_between_their_neighbours(data):
    rates = st.floats(1e9, 1e12)
    grid = [ProductRate("float32", "forward", m, n, k, data.draw(rates)) for m in SIDES for n in SIDES for k in SIDES]
    limits = limits_of(grid)
    for row in grid[::5]:
        assert limits.product_rate("float32", "forward", row.m, row.n, row.k) == pytest.approx(row.flops_per_second)
    at = [data.draw(st.integers(1, 20000)) for _ in range(3)]
    clamped = [min(max(side, 64), 4096) for side in at]
    near = [r.flops_per_second for r in grid if all(
        abs(math.log(have / want, 8)) < 1.0001 for have, want in zip((r.m, r.n, r.k), clamped, strict=True))]  # fmt: skip
    got = limits.product_rate("float32", "forward", *at)
    assert min(near) * 0.999 <= got <= max(near) * 1.001
    assert got == pytest.approx(limits.product_rate("float32", "forward", *clamped))


def test_attention_with_narrower_heads_takes_as_long_for_a_score():
    row = AttentionRate("float32", 64, 512, 8e10, 1.6e11)
    limits = dataclasses.replace(limits_of([]), attention=[row])
    assert limits.attention_rate("float32", "forward", 64, 100) == 8e10
    assert limits.attention_rate("float32", "forward", 48, 512) == pytest.approx(6e10)
    assert limits.attention_rate("float32", "backward", 128, 512) == 1.6e11


def test_the_peak_is_that_of_large_products():
    cubes = ((64, 3e11), (1024, 2e11), (2048, 1e11))
    rows = [ProductRate("float32", "wgrad", side, side, side, rate) for side, rate in cubes]
    assert limits_of(rows).peak("float32") == 2e11
    assert limits_of(rows[:1]).peak("float32") == 3e11


def test_a_missing_corner_is_filled_by_its_neighbour():
    grid = [ProductRate("float32", "forward", m, n, 64, 1e9 * m) for m in (64, 512) for n in (64, 512) if m * n < 512**2]
    assert limits_of(grid).product_rate("float32", "forward", 512, 512, 64) == 64e9


def test_saved_limits_load_the_same(measured, tmp_path):
    kept.save(measured, tmp_path / "deep" / "limits.json")
    assert kept.load(tmp_path / "deep" / "limits.json") == measured


def test_the_better_of_two_measurements_is_kept(measured):
    row = measured.products[0]
    newer = limits_of([dataclasses.replace(row, flops_per_second=1e15)])
    both = measured.best_of(newer)
    assert len(both.products) == len(measured.products)
    assert both.product_rate(row.dtype, row.layout, row.m, row.n, row.k) == 1e15
    assert both.attention == measured.attention
    assert both.machine == newer.machine
    assert both.disturbed == 0


def change(content, path, value):
    *way, last = path
    for key in way:
        content = content[key]
    if value is KeyError:
        del content[last]
    else:
        content[last] = value


@pytest.mark.parametrize(
    ("path", "value", "told"),
    [
        (["products", 3, "flops_per_second"], -1.0, r"products\[3\].flops_per_second .* must be positive"),
        (["products", 0, "flops_per_second"], 0, r"products\[0\].flops_per_second .* must be positive"),
        (["products", 0, "flops_per_second"], 1e18, r"products\[0\].flops_per_second .* no machine does that"),
        (["products", 0, "flops_per_second"], "fast", r"products\[0\].flops_per_second .* must be a number, got \"fast\""),
        (["products", 0, "flops_per_second"], float("nan"), r"products\[0\].flops_per_second .* must be a number"),
        (["products", 0, "m"], 12.5, r"products\[0\].m .* must be a whole number"),
        (["products", 0, "layout"], "sideways", r"products\[0\].layout .* one of forward, dgrad, wgrad"),
        (["kernels", 1, "bytes_per_second"], 1e15, r"kernels\[1\].bytes_per_second .* no machine does that"),
        (["kernels", 1, "pass"], True, r"kernels\[1\].pass .* must be text"),
        (["attention", 0, "backward"], None, r"attention\[0\].backward .* must be a number"),
        (["attention", 0, "head_dim"], KeyError, r"attention\[0\].head_dim is missing"),
        (["machine", "memory_bytes"], -5, r"machine.memory_bytes .* must be positive"),
        (["machine", "threads"], True, r"machine.threads .* must be a whole number"),
        (["launch_seconds"], 60, r"launch_seconds .* no machine does that"),
        (["products"], {}, r"products .* must be a list"),
        (["products"], [], r"products .* has no forward rate for float32"),
        (["machine"], [], r"machine .* must be an object"),
        (["prodcts"], [], r"unknown field prodcts .*did you mean 'products'"),
    ],
)
def test_a_wrong_file_is_refused_with_the_field(measured, tmp_path, path, value, told):
    content = json.loads(json.dumps(kept.as_dict(measured)))
    change(content, path, value)
    (tmp_path / "l.json").write_text(json.dumps(content))
    with pytest.raises(UserError, match=told):
        kept.load(tmp_path / "l.json")


@pytest.mark.parametrize(("text", "told"), [(None, "does not exist"), ("{", "not valid JSON"), ("[1]", "must be an object")])
def test_a_file_that_is_no_limits_file_is_refused(tmp_path, text, told):
    if text is not None:
        (tmp_path / "l.json").write_text(text)
    with pytest.raises(UserError, match=told):
        kept.load(tmp_path / "l.json")


def test_another_machine_or_torch_has_another_file():
    machines = [("x", 2, "2.13"), ("y", 2, "2.13"), ("x", 4, "2.13"), ("x", 2, "2.14")]
    assert len({kept.default_file("cpu", *machine) for machine in machines}) == 4


def test_collectives_are_measured_where_there_are_ranks(tmp_path):
    import torch.distributed as dist

    from yupana.flops.measure import collective_rates

    bench = Bench("cpu", ("float32",), SMALL, lambda *_: None)
    assert collective_rates(bench) == []
    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    try:
        rates = collective_rates(bench)
    finally:
        dist.destroy_process_group()
    assert {r.name for r in rates} == {"all_reduce", "all_gather", "reduce_scatter"}
    assert all(r.bytes_per_second > 0 for r in rates)
