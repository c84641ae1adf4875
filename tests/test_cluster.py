"""A step on many accelerators predicted: against counts by hand, published figures, and what must hold of any cluster.

That the collectives and their bytes are those of a real run is in test_parallel.py.
"""

import json
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from yupana.config import load
from yupana.errors import UserError
from yupana.flops.accelerators import accelerator
from yupana.flops.cluster import candidates, check_rank, cluster_step, layouts, rank_memory
from yupana.flops.communication import sent_share, step_collectives
from yupana.flops.interconnect import INTERCONNECTS, LATENCY, REACHED, Interconnect, interconnect
from yupana.flops.layout import Layout
from yupana.flops.memory import memory_bytes
from yupana.flops.predict import predict
from yupana.train.limits import cluster, setup

H100, LINKS = accelerator("h100"), INTERCONNECTS["h100-sxm"]
EIGHT = load("llama3.1-8b").model


def share(shape=EIGHT, seq_len=8192, micro=1, batch=1, precision="bf16"):
    return setup(shape, seq_len, micro, batch, precision, "cuda")


def ask(name, **more):
    arguments = {"seq_len": 8192, "micro_batch": 2, "global_batch": None, "precision": "bf16", "hardware": "h100"}
    arguments |= {"count": 8, "layout": None, "node": None, "link": None, "network": None} | more
    return cluster(load(name).model, **arguments)


def test_one_rank_is_the_prediction_for_one():
    alone, cluster_of_one = predict(share(), H100), cluster_step(share(), Layout(), H100, LINKS)
    assert cluster_of_one["communication"] == []
    for name in ("step_seconds", "tokens_per_second", "mfu"):
        assert cluster_of_one[name] == pytest.approx(alone[name], rel=1e-9)


def test_sharded_volume_by_hand():
    """8 030 261 248 parameters: each gathered forward, each block's again backward; reduced once in fp32."""
    found = {(c.name, c.what): c for c in step_collectives(share(), Layout(1, 8, 1))}
    around = 2 * 128_256 * 4096 + 4096
    weights = 8_030_261_248
    assert found["all_gather", "weights"].bytes == 2 * (2 * weights - around)
    assert found["all_gather", "weights"].count == 65
    assert found["reduce_scatter", "gradients"].bytes == 4 * weights
    hybrid = {(c.name, c.what): c for c in step_collectives(share(), Layout(4, 8, 1))}
    assert hybrid["all_reduce", "gradients"].bytes == 4 * weights // 8
    assert hybrid["all_gather", "weights"] == found["all_gather", "weights"]


def test_sequences_by_hand():
    """Two gathers and two scatters a layer in each direction, one more around them (2205.05198, §4.2.2), in bf16."""
    found = {(c.name, c.what): c for c in step_collectives(share(micro=2, batch=4), Layout(1, 1, 8))}
    stream = 2 * 8192 * 4096 * 2  # bytes
    for name in ("all_gather", "reduce_scatter"):
        assert found[name, "sequences"].count == 2 * (4 * 32 + 2)
        assert found[name, "sequences"].bytes == found[name, "sequences"].count * stream


def test_keys_and_values_by_hand():
    """Eight key and value heads of 128 a token, of whole sequences, once forward and once back in each of 32 blocks."""
    found = {(c.name, c.what): c for c in step_collectives(share(micro=2, batch=4), Layout(1, 4, 2, 8))}
    for name in ("all_gather", "reduce_scatter"):
        assert found[name, "keys and values"].count == 2 * 32
        assert found[name, "keys and values"].bytes == 2 * 32 * (2 * 8192) * 2 * (8 // 2) * 128 * 2
    assert found["all_gather", "weights"].count == 2 * 65  # shared among 4 × 8
    stream = 2 * 8192 // 8 * 4096 * 2
    assert found["all_gather", "sequences"].bytes == 2 * 2 * 65 * stream


def test_shared_sequences_share_the_memory_of_long_ones():
    """Eight ranks that share a sequence of 131 072 tokens hold little more than one of 16 384."""
    long, short = share(seq_len=131_072), share(seq_len=16_384)
    shared, alone = rank_memory(long, Layout(cp=8)), rank_memory(short, Layout(fsdp=8))
    keys = 32 * 131_072 * 2 * 8 * 128 * 2
    assert shared["total"] - alone["total"] == keys


def test_a_rank_that_cannot_hold_its_share_is_told_before_it_begins():
    with pytest.raises(UserError, match=r"on each rank \(replicate 1 × fsdp 8 × tp 1\), and H100 has 80.0 GB.*fits is 1$"):
        check_rank(share(micro=8, batch=8), Layout(fsdp=8), 80e9, "H100")
    check_rank(share(), Layout(fsdp=8), 80e9, "H100")


def test_ring_and_rates():
    assert sent_share("all_gather", 4) == sent_share("reduce_scatter", 4) == 0.75
    assert sent_share("all_reduce", 4) == 1.5
    assert LINKS.rate(Layout(1, 8, 1), "shards") == REACHED * 450e9
    assert LINKS.rate(Layout(1, 64, 1), "shards") == REACHED * 400e9  # eight network cards a machine
    assert LINKS.rate(Layout(1, 8, 8), "shards") == REACHED * 50e9  # one member a machine
    assert LINKS.rate(Layout(8, 8, 1), "replicate") == REACHED * 50e9
    assert LINKS.rate(Layout(1, 8, 8), "tp") == REACHED * 450e9
    assert LINKS.seconds(Layout(1, 8, 1), "shards", 36e9, 10) == pytest.approx(36e9 / (REACHED * 450e9) + 10 * LATENCY)


@settings(deadline=None, max_examples=40)
@given(
    st.sampled_from(layouts(EIGHT, 8192, 64, 8)), st.integers(1, 4), st.floats(5, 2000), st.floats(1, 400), st.floats(1, 9)
)
def test_better_links_never_slow_a_step(layout, accumulation, link, network, better):
    links = Interconnect(8, link * 1e9, network * 1e9, "given")
    planned = share(batch=accumulation)
    slow = cluster_step(planned, layout, H100, links)
    for faster in (replace(links, inside=better * links.inside), replace(links, across=better * links.across)):
        assert cluster_step(planned, layout, H100, faster)["step_seconds"] <= slow["step_seconds"] * (1 + 1e-12)
    assert slow["step_seconds"] >= slow["compute_seconds"]
    for part in slow["communication"]:
        assert part["seen_seconds"] >= 0
    assert sum(part["bytes"] for part in slow["communication"]) > 0


@settings(deadline=None, max_examples=40)
@given(st.sampled_from(layouts(EIGHT, 8192, 32, 8)))
def test_memory_is_shared(layout):
    """More ranks to share with never cost memory; copies neither cost nor save; alone it is near predict's own."""
    one = rank_memory(share(), layout)
    twice = rank_memory(share(), replace(layout, fsdp=2 * layout.fsdp))
    if layout.fsdp > 1:  # the first division brings gathered blocks with it
        assert twice["total"] < one["total"]
    assert rank_memory(share(), replace(layout, replicate=2 * layout.replicate)) == one
    assert twice["optimizer"] < one["optimizer"]


def test_memory_of_one_rank_is_near_the_walked_one():
    for name, micro in (("llama3.2-1b", 4), ("llama3.2-3b", 1)):
        planned = share(load(name).model, 2048, micro, micro)
        assert rank_memory(planned, Layout())["total"] == pytest.approx(memory_bytes(planned)["total"], rel=0.12)


def test_recommended_is_among_the_fastest_that_fit():
    for name, count in (("llama3.1-8b", 8), ("llama3.1-8b", 64), ("llama3.2-1b", 8)):
        result = ask(name, count=count)
        assert result["recommended"]
        assert result["fits"]
        best = max(c["tokens_per_second"] for c in result["candidates"] if c["layout"]["cp"] == 1)
        assert result["tokens_per_second"] >= 0.99 * best
        assert Layout(**result["layout"]).ranks == count
        assert all(c["memory_bytes"] <= 0.95 * 80e9 for c in result["candidates"])


def test_sequences_are_cut_where_they_are_too_long_for_a_rank():
    assert ask("llama3.2-1b", seq_len=131_072, micro_batch=1)["layout"] == {"replicate": 1, "fsdp": 2, "tp": 1, "cp": 4}


def test_published_figures_are_in_reach():
    """torchtitan, 8 and 128 H100 (500 W, 2.4 TB/s), Llama 3.1-8B, 2 sequences of 8 192 a rank: 6 667 and 6 514 tokens/s.

    They recompute a part, on slower cards: a prediction for the full card without that must lie above, and within two
    times; the loss from 8 to 128 cards, 2.3 %, must be of the same size.
    """
    rates = {}
    for count, published in ((8, 6667), (128, 6514)):
        planned = share(micro=2, batch=2)
        rates[count] = cluster_step(planned, Layout(1, count, 1), H100, LINKS)["tokens_per_second"] / count
        assert published < rates[count] < 2 * published
    assert abs(1 - rates[128] / rates[8]) < 0.06


@pytest.mark.parametrize(
    ("more", "words"),
    [
        ({"hardware": "h1000"}, "no data-sheet peak"),
        ({"hardware": "cpu"}, "name one with --hardware"),
        ({"hardware": "l40s"}, "no links are known for l40s"),
        ({"layout": Layout(1, 2, 4), "global_batch": 3}, r"must be a multiple of train.micro_batch \(2\)"),
        ({"layout": Layout(1, 1, 16), "count": 16}, r"parallel.tp \(16\) must divide model.n_kv_heads \(8\)"),
        ({"count": 2, "precision": "fp32"}, "no layout of 2 h100-sxm holds"),
        ({"layout": Layout(8, 1, 1), "must_fit": True}, "the largest that fits is 0"),
        ({"network": -1.0}, "--network must be positive"),
    ],
)
def test_bad_input(more, words):
    with pytest.raises(UserError, match=words):
        ask("llama3.1-8b", **more)


def test_links_may_be_given():
    assert interconnect("l40s", 4, 32, 12.5) == Interconnect(4, 32e9, 12.5e9, "given")
    assert interconnect("h100-sxm", network=25).across == 25e9


def test_candidates_keep_the_global_batch():
    for result in candidates(share(micro=4, batch=4), 16, H100, LINKS, 64):
        assert result["global_batch"] == 64
        assert 64 % (result["micro_batch"] * result["layout"]["replicate"] * result["layout"]["fsdp"]) == 0


def test_commands(yupana):
    arguments = ["flops", "predict", "llama3.1-8b", "--seq_len", "8192", "--micro_batch", "2", "--hardware", "h100"]
    done = yupana(*arguments, "--count", "64", "--json")
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    assert {"step_seconds", "tokens_per_second", "mfu", "memory_bytes"} <= set(result)
    assert {"layout", "communication", "candidates"} <= set(result)
    assert {"total", "weights", "gradients", "optimizer", "activations"} <= set(result["memory_bytes"])
    table = yupana(*arguments, "--count", "64", "--tp", "8")
    assert "replicate 1 × fsdp 8 × tp 8" in table.stdout
    assert "A prediction" in table.stdout
    wrong = yupana(*arguments, "--count", "64", "--tp", "3")
    assert wrong.returncode == 2
    assert "64 ranks are no multiple of parallel.replicate × parallel.cp × parallel.tp (1 × 1 × 3)" in wrong.stderr
