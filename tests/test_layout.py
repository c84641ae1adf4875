"""Layouts without any other process: what does not fit, whose share is what, commands and files of the documentation."""

import re
import shlex
import subprocess
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import yaml
from conftest import TINY
from hypothesis import given
from hypothesis import settings as examples
from hypothesis import strategies as st

from yupana import config as settings
from yupana.corpus.shards import open_corpus
from yupana.errors import UserError
from yupana.flops.layout import Layout, layout_of
from yupana.model.llama import Llama, initial
from yupana.model.shapes import ModelShape
from yupana.run import RunDirectory
from yupana.train.begin import open_mixture
from yupana.train.launch import launched
from yupana.train.loss import IGNORED, softmax_gradient
from yupana.train.ranks import Ranks
from yupana.train.session import fits
from yupana.train.shares import first_column, segments, whole_sizes
from yupana.train.vocabulary import cross_entropy_of_spread_logits


@pytest.mark.parametrize(
    ("given_settings", "words"),
    [
        (["--parallel.fsdp=3"], ["train.global_batch (8)", "3 groups of ranks", "take 9"]),
        (["--parallel.tp=4"], ["parallel.tp (4) must divide model.n_kv_heads (2)"]),
        (["--parallel.tp=2", "--data.seq_len=31"], ["parallel.tp (2) must divide data.seq_len (31)"]),
        (["--parallel.tp=2", "--model.d_ff=49"], ["parallel.tp (2) must divide model.d_ff (49)"]),
        (["--parallel.fsdp=2", "--train.micro_batch=8"], ["train.global_batch (8)", "train.micro_batch (8)", "take 16"]),
        (["--parallel.cp=2", "--data.seq_len=30"], ["2 × parallel.cp (4) must divide data.seq_len (30)"]),
        (["--parallel.cp=2", "--parallel.tp=4", "--model.n_kv_heads=4", "--data.seq_len=36"], ["(36), shared by 2 ranks"]),
        (["--parallel.pp=2"], ["parallel.pp is 2", "no pipeline parallelism"]),
        (["--parallel.fsdp=0"], ["parallel.fsdp must be at least 1, got 0"]),
    ],
)
def test_layouts_that_do_not_fit(tmp_path, given_settings, words):
    with pytest.raises(UserError) as told:
        launched(RunDirectory(tmp_path / "run"), None, None, [*TINY, *given_settings], resume=False)
    for word in words:
        assert word in str(told.value)
    assert not (tmp_path / "run").exists()


def test_held_out_text_shorter_than_a_window_must_be_shared_too(corpus):
    config = settings.load(None, None, [*TINY, "--data.seq_len=65536", f"--data.corpus={corpus}"])
    mixture = open_mixture(config)
    held_out = open_corpus(corpus).split("val").n_tokens - 1
    tp = next(tp for tp in (2, 3, 5, 7) if held_out % tp)
    words = rf"parallel.tp \({tp}\) must divide the {held_out:,} held-out tokens of .*larger val_fraction"
    with pytest.raises(UserError, match=words):
        fits(config, mixture, Layout(tp=tp))
    fits(config, mixture, Layout(fsdp=2))


@pytest.mark.parametrize(
    ("sizes", "ranks", "words"),
    [
        ((1, -1, 1, 3), 4, "4 ranks are no multiple"),
        ((1, -1, 3, 1), 4, "4 ranks are no multiple"),
        ((2, 2, 2, 1), 4, "one of 8 ranks, but 4 are running"),
        ((1, 2, 1, 1), 1, "but 1 is running"),
    ],
)
def test_world_sizes_that_do_not_factor(sizes, ranks, words):
    with pytest.raises(UserError, match=words):
        layout_of(*sizes, ranks)


@pytest.mark.parametrize(
    ("more", "words"),
    [
        (["--train.compile=model"], "train.compile is model"),
        (["--train.compile=block"], "train.compile is block"),
        (["--log.anatomy_every=2"], "log.anatomy_every"),
        (["--optim.name=muon"], "muon, which needs whole matrices"),
        (["--fast.loss=full"], "fast.loss is full"),
        (["--fast.projections=separate"], "fast.projections is separate"),
        (["--fast.attention=blocked"], "fast.attention is blocked"),
    ],
)
def test_paths_that_a_layout_does_not_have(more, words):
    from yupana.train.parallel import check_paths

    config = settings.load(None, None, [*TINY, *more])
    with pytest.raises(UserError, match=words):
        check_paths(config, Layout(1, 2, 2, 2), config.train.compile)
    check_paths(config, Layout(), config.train.compile)


@examples(deadline=None, max_examples=50)
@given(
    st.integers(1, 3), st.integers(1, 5), st.sampled_from([1, 2]), st.sampled_from([1, 2]), st.integers(1, 40),
    st.integers(2, 9), st.booleans(),
)  # fmt: skip
def test_the_shares_of_all_ranks_are_the_whole_model_once(replicate, fsdp, tp, cp, half_ff, vocab, tied):
    """Putting together what each rank holds gives every parameter whole, each number from exactly one share."""
    shape = ModelShape(2, 6, 4, 2, 4, 2 * half_ff, 2 * vocab, tied)
    layout = Layout(replicate, fsdp, tp, cp)
    for name, size in whole_sizes(shape).items():
        whole, seen = initial(name, size, 3), torch.zeros(size, dtype=torch.int32)
        rebuilt = torch.full(size, float("nan"))
        for rank in range(fsdp * cp * tp):
            ranks = Ranks(rank, layout.ranks, layout)
            column = first_column(name, size, ranks)
            width = () if len(size) == 1 else (size[1] // (tp if name.endswith(("wo.weight", "w_down.weight")) else 1),)
            for part in segments(name, size, shape, ranks):
                here = (slice(part.in_parameter, part.in_parameter + part.rows),)
                here += tuple(slice(c, c + w) for c, w in zip(column, width, strict=True))
                rebuilt[here], seen[here] = whole[here], seen[here] + 1
        alike = tp if name.endswith("norm.weight") else 1
        assert torch.equal(rebuilt, whole)
        assert (seen == alike).all()


def test_initial_values_are_the_plain_models():
    shape = ModelShape(n_layers=1, vocab_size=32)
    model = Llama(shape)
    model.initialise(5)
    for name, parameter in model.named_parameters():
        assert torch.equal(parameter, initial(name, parameter.shape, 5))


@pytest.mark.parametrize("file", ["scale-out.md", "scale-out/train.slurm", "scale-out/skypilot.yaml"])
def test_documented_commands_are_understood(file):
    """torchrun's own parser takes every documented command apart as it is meant, and yupana's takes the rest."""
    from torch.distributed.run import parse_args

    from yupana.cli import parser

    text = (Path(__file__).parents[1] / "docs" / file).read_text().replace("\\\n", " ")
    commands = [line for line in text.splitlines() if "torchrun" in line and "-- yupana train" in line]
    assert commands
    for command in commands:
        words = shlex.split(re.sub(r"\$\([^)]*\)|\$\{?\w+[^\s}\"]*\}?", "8", command.split("torchrun", 1)[1]))
        asked = parse_args(words)
        assert asked.module
        assert asked.training_script == "yupana"
        arguments = parser().parse_args(asked.training_script_args)
        assert (arguments.command, arguments.resume) == ("train", True)


def test_documented_files_are_valid():
    folder = Path(__file__).parents[1] / "docs" / "scale-out"
    subprocess.run(["bash", "-n", folder / "train.slurm"], check=True)
    task = yaml.safe_load((folder / "skypilot.yaml").read_text())
    assert {"resources", "num_nodes", "setup", "run", "workdir", "file_mounts", "envs", "name"} == set(task)
    subprocess.run(["bash", "-n"], input=task["run"], text=True, check=True)


@pytest.fixture
def group_of_one():
    """A process group with nobody else in it."""
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield dist.group.WORLD
    dist.destroy_process_group()


def test_spread_cross_entropy_is_the_whole_one(group_of_one):
    """Alone in its group a rank has the whole vocabulary: the arithmetic is that of the chunked loss."""
    for seed in range(50):
        generator = torch.Generator().manual_seed(seed)
        logits = 9 * torch.randn(1 + seed % 5, 1 + seed % 6, generator=generator)
        targets = torch.randint(0, logits.shape[1], logits.shape[:1], generator=generator)
        targets[0] = IGNORED
        scale = torch.tensor(0.3)
        loss, gradient = cross_entropy_of_spread_logits(logits, targets, scale, first=0, group=group_of_one)
        expected = softmax_gradient(logits, targets, scale)
        torch.testing.assert_close(loss, expected[0])
        torch.testing.assert_close(gradient, expected[1])
