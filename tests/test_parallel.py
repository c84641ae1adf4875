"""Many ranks: every layout trains the single process's model, and a checkpoint moves between all of them."""

import json
import os
import re
import shlex
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import yaml
from conftest import TINY
from hypothesis import given
from hypothesis import settings as examples
from hypothesis import strategies as st
from test_train import curve

from yupana import config as settings
from yupana.errors import UserError
from yupana.flops.communication import step_collectives
from yupana.flops.layout import Layout, layout_of
from yupana.model.llama import Llama, initial
from yupana.model.shapes import ModelShape
from yupana.run import RunDirectory, open_run
from yupana.train import checkpoint
from yupana.train.begin import begin
from yupana.train.exchange import export_run
from yupana.train.launch import launched
from yupana.train.limits import setup
from yupana.train.loss import IGNORED, softmax_gradient
from yupana.train.ranks import Ranks
from yupana.train.shares import first_column, segments, whole_sizes
from yupana.train.vocabulary import cross_entropy_of_spread_logits

WORKER = Path(__file__).parent / "parallel_worker.py"
# Sizes that four ranks cannot share evenly: 302 rows of the embedding, 50 columns of w_down.
ODD = [*TINY, "--model.d_ff=50", "--model.vocab_size=302", "--train.precision=fp32", "--optim.schedule=constant"]
STEPS = ["--train.steps=20", "--checkpoint.every=20", "--checkpoint.keep=9", "--log.eval_every=20", "--log.eval_tokens=320"]
LAYOUTS = {
    2: {
        "fsdp 2": ["--parallel.fsdp=2"],
        "replicate 2": ["--parallel.replicate=2", "--parallel.fsdp=1"],
        "tp 2": ["--parallel.tp=2"],
    },
    4: {
        "fsdp 4": [],
        "replicate 4": ["--parallel.replicate=4"],
        "replicate 2 fsdp 2": ["--parallel.replicate=2"],
        "fsdp 2 tp 2": ["--parallel.tp=2"],
        "replicate 2 tp 2": ["--parallel.replicate=2", "--parallel.tp=2"],
    },
}
VARIANTS = {
    "plain": [],
    # An untied head, accumulation, and targets that count for nothing.
    "hard": ["--model.tie_embeddings=false", "--train.micro_batch=2", "--data.packing=documents"],
}
HARD = ("replicate 2 fsdp 2", "fsdp 2 tp 2")  # layouts

BACKGROUND = "--checkpoint.background=true"
HEAVY = ["--train.micro_batch=1", "--model.tie_embeddings=false"]


def work(folder, count, tasks):
    """Tasks done by `count` ranks together; their answers."""
    asked, answers = folder / f"tasks{count}.json", folder / f"answers{count}.json"
    asked.write_text(json.dumps(tasks))
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={count}"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [*command, WORKER, asked, answers], capture_output=True, text=True, check=False, env=environment, timeout=280
    )
    said = [line for line in done.stderr.splitlines() if line.startswith("[rank")]
    assert done.returncode == 0, "\n".join(said[-60:] or [done.stderr[-3000:]])
    return json.loads(answers.read_text())


def close(path, reference, tolerance=1e-5):
    """The two runs have the same curve: every figure of every step within `tolerance`, relatively."""
    ours, theirs = curve(path), curve(reference)
    assert len(ours) == len(theirs)
    for one, other in zip(ours, theirs, strict=True):
        assert one == pytest.approx(other, rel=tolerance), path


def counted_cases():
    """Every layout of four with accumulation and an untied head, and one in bf16."""
    return [(options, HEAVY) for options in LAYOUTS[4].values()] + [(["--parallel.tp=2"], ["--train.precision=bf16"])]


@pytest.fixture(scope="module")
def trained(tmp_path_factory, corpus):
    """The same training in one process and in every layout; a run that has gone through many; gradients; refusals."""
    folder = tmp_path_factory.mktemp("parallel")
    base = [*ODD, f"--data.corpus={corpus}"]
    for name, more in VARIANTS.items():
        begin(RunDirectory(folder / name), None, None, [*base, *STEPS, *more])

    def tasks(count, variants):
        for layout, options in LAYOUTS[count].items():
            for variant in (v for v in variants if v == "plain" or layout in HARD):
                run = str(folder / f"{variant} {layout}")
                yield {"do": "train", "run": run, "settings": [*base, *STEPS, *VARIANTS[variant], *options]}

    def part(steps, *options, resume=True):
        more = [f"--train.steps={steps}", *STEPS[1:], *options]
        return {"do": "train", "run": str(folder / "moved"), "settings": [*base, *more], "resume": resume}

    answers = {}
    background = {"do": "train", "run": str(folder / "background"), "settings": [*base, *STEPS, BACKGROUND]}
    answers["four"] = work(
        folder, 4, [*tasks(4, VARIANTS), part(6, "--parallel.replicate=2", resume=False), background]
    )
    again = {"run": str(folder / "plain"), "settings": [*base, *STEPS, "--parallel.tp=2"]}
    answers["two"] = work(
        folder, 2,
        [
            *tasks(2, ["plain"]),
            part(11, "--parallel.tp=2"),
            {"do": "differing", "settings": base, "by_rank": [[], ["--optim.lr=0.5"]]},
            {"do": "broken_disk", **again},
            {"do": "save_again", **again},
        ],
    )  # fmt: skip
    one = ["--parallel.replicate=1", "--parallel.tp=1"]  # the run.yaml that is resumed says otherwise
    moved = [*base, "--train.steps=15", *STEPS[1:], *one]
    begin(RunDirectory(folder / "moved"), None, None, moved, resume=True)
    steps = [
        {"do": "step", "run": str(folder / "step"), "settings": [*base, "--train.steps=1", *options, *more]}
        for options, more in counted_cases()
    ]
    answers["steps"] = work(folder, 4, [part(20, "--parallel.tp=2"), *steps])[1:]
    return folder, answers


@pytest.mark.slow
@pytest.mark.parametrize(
    ("variant", "layout"),
    [("plain", name) for name in (*LAYOUTS[2], *LAYOUTS[4])]
    + [("hard", name) for name in HARD],
)
def test_every_layout_has_the_curve_of_one_process(trained, variant, layout):
    folder, _ = trained
    close(folder / f"{variant} {layout}", folder / variant)


@pytest.mark.slow
def test_a_run_moves_between_layouts(trained):
    """4 ranks in a 2 × 2 mesh, then 2 with tp, then one process, then 2 × 2 with tp: as if nothing had happened."""
    folder, _ = trained
    ours = {r["step"]: r["loss"] for r in curve(folder / "moved") if "loss" in r}
    theirs = {r["step"]: r["loss"] for r in curve(folder / "plain") if "loss" in r}
    assert ours == pytest.approx(theirs, rel=1e-5)


@pytest.mark.slow
def test_gradients_are_those_of_the_plain_model(trained):
    for *_, worst in trained[1]["steps"]:
        assert worst < 1e-5


@pytest.mark.slow
def test_communication_is_what_torch_counts(trained):
    """Number and bytes of every collective of a real step of four processes, in every layout."""
    for (options, more), (found, total, _) in zip(counted_cases(), trained[1]["steps"], strict=True):
        config = settings.load(None, None, [*ODD, *options, *more])
        parallel = config.parallel
        layout = layout_of(parallel.replicate, parallel.fsdp, parallel.tp, 4)
        rows = config.train.global_batch // layout.data
        precision, micro = config.train.precision, config.train.micro_batch or rows
        planned = setup(config.model, config.data.seq_len, micro, rows, precision, "cpu")
        predicted = {}
        for one in step_collectives(planned, layout):
            count, size = predicted.get(one.name, (0, 0))
            predicted[one.name] = (count + one.count, size + one.bytes)
        assert {name: tuple(figures) for name, figures in found.items()} == predicted, (layout, more)
        assert total == sum(count for count, _ in predicted.values())


@pytest.mark.slow
def test_a_checkpoint_says_the_same_whoever_wrote_it(trained, tmp_path):
    """The last checkpoint of one process, read and written again by two ranks with tp: tensors and export are equal."""
    run = open_run(trained[0] / "plain")
    first, again = run.checkpoints / "step_20", run.checkpoints / "step_21"
    assert len(list(again.glob("*.safetensors"))) == 2
    assert tensors(first).keys() == tensors(again).keys()
    for name, tensor in tensors(first).items():
        assert torch.equal(tensor, tensors(again)[name]), name
    for step in ("20", "21"):
        export_run(run.path, tmp_path / step, step, "float32")
    files = sorted(path.name for path in (tmp_path / "20").iterdir())
    assert files == sorted(path.name for path in (tmp_path / "21").iterdir())
    for name in files:
        assert (tmp_path / "20" / name).read_bytes() == (tmp_path / "21" / name).read_bytes(), name


def tensors(folder):
    """Every tensor of a checkpoint, put together from its pieces without DCP."""
    from safetensors import safe_open

    pieces = {}
    for path in sorted(folder.glob("*.safetensors")):
        with safe_open(path, framework="pt") as file:
            about = json.loads(file.metadata()["DCP_SHARDING_INFO"])
            for name in file.keys():  # noqa: SIM118 - it is no dictionary
                pieces.setdefault(name, []).append((about[name]["saved_offsets"], file.get_tensor(name)))
    found = {}
    for name, parts in pieces.items():
        size = [max(o[d] + t.shape[d] for o, t in parts) for d in range(parts[0][1].ndim)]
        whole = torch.full(size, float("nan"))
        for offset, tensor in parts:
            whole[tuple(slice(o, o + n) for o, n in zip(offset, tensor.shape, strict=True))] = tensor
        assert not whole.isnan().any(), name
        found[name] = whole
    return found


@pytest.mark.slow
def test_ranks_that_differ_refuse_to_begin(trained):
    assert "rank 1 has another optim.lr than rank 0 (0.5, not 0.001)" in trained[1]["two"][4]


@pytest.mark.slow
def test_a_full_disk_on_one_rank_is_told_by_all(trained):
    told = trained[1]["two"][5]
    assert len(told) == 2
    assert all("disk is full" in text for text in told)
    assert checkpoint.problem(trained[0] / "plain" / "checkpoints" / "step_20") is None


@pytest.mark.slow
def test_rank_0_alone_keeps_the_run(trained):
    """One line a step and an evaluation, the layout in env.json and the settings as given in run.yaml."""
    run = open_run(trained[0] / "plain fsdp 4")
    assert [r["step"] for r in run.metrics() if "loss" in r] == list(range(1, 21))
    environment = json.loads(run.env_file.read_text())
    assert (environment["ranks"], environment["layout"]) == (4, {"replicate": 1, "fsdp": 4, "tp": 1})
    assert settings.load(file=run.config_file).parallel.fsdp == -1


@pytest.mark.slow
def test_checkpoints_in_the_background_are_the_same(trained, tmp_path, corpus):
    """Bit for bit, from four ranks and from one, and so is the curve."""
    folder, _ = trained
    begin(RunDirectory(tmp_path / "one"), None, None, [*ODD, *STEPS, f"--data.corpus={corpus}", BACKGROUND])
    for background, at_once in ((folder / "background", folder / "plain fsdp 4"), (tmp_path / "one", folder / "plain")):
        assert curve(background) == curve(at_once)
        folders = [run / "checkpoints" / "step_20" for run in (background, at_once)]
        ours, theirs = (tensors(path) for path in folders)
        assert ours.keys() == theirs.keys()
        assert all(torch.equal(ours[name], theirs[name]) for name in ours)
        assert checkpoint.problem(folders[0]) is None


# --- one command on one machine, signals, hangs ------------------------------------------------------------------


@pytest.mark.slow
def test_sigterm_to_the_launcher_saves_once_and_leaves_no_process(tmp_path, corpus):
    command = [sys.executable, "-m", "yupana", "train", "--run", str(tmp_path / "run"), *TINY, "--parallel.fsdp=2"]
    command += [f"--data.corpus={corpus}", "--train.steps=100000", "--checkpoint.every=100000"]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    metrics = tmp_path / "run" / "metrics.jsonl"
    while process.poll() is None and not (metrics.is_file() and '"loss"' in metrics.read_text()):
        time.sleep(0.02)
    ranks = children(process.pid)
    assert len(ranks) == 2
    process.terminate()
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 1
    assert errors.count("saved at step") == 1
    assert len(checkpoint.complete(open_run(tmp_path / "run"))) == 1
    assert not any(Path(f"/proc/{pid}").exists() for pid in ranks)


@pytest.mark.slow
def test_a_rank_that_hangs_is_named(tmp_path, corpus):
    script = tmp_path / "hanging.py"
    script.write_text(HANGING)
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", "--", script]
    command += ["train", "--run", str(tmp_path / "run"), *TINY, f"--data.corpus={corpus}", "--parallel.timeout=6"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 1
    said = [line for line in done.stderr.splitlines() if line.startswith("yupana: no step for 6 s since step 3 of")]
    assert len(said) == 1, done.stderr
    assert "rank 1 hangs in hanging.py" in said[0] or "rank 1 hangs in loop.py" in said[0]
    assert "rank 0" not in said[0]
    assert "rank 0: waits for the others" in done.stderr


HANGING = """
import os, sys, time
from yupana.train import loop
from yupana.cli import main
whole, taken = loop.forward_backward, iter(range(1000000))
def hanging(session, parts):
    while next(taken) >= 3 and os.environ["RANK"] == "1":
        time.sleep(0.1)
    return whole(session, parts)
loop.forward_backward = hanging
sys.exit(main(sys.argv[1:]))
"""


def children(pid):
    """The processes that a process has started."""
    found = []
    for task in Path(f"/proc/{pid}/task").iterdir():
        found += [int(child) for child in (task / "children").read_text().split()]
    return found


# --- without any other process -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("given_settings", "words"),
    [
        (["--parallel.fsdp=3"], ["train.global_batch (8)", "3 groups of ranks", "take 9"]),
        (["--parallel.tp=4"], ["parallel.tp (4) must divide model.n_kv_heads (2)"]),
        (["--parallel.tp=2", "--data.seq_len=31"], ["parallel.tp (2) must divide data.seq_len (31)"]),
        (["--parallel.tp=2", "--model.d_ff=49"], ["parallel.tp (2) must divide model.d_ff (49)"]),
        (["--parallel.fsdp=2", "--train.micro_batch=8"], ["train.global_batch (8)", "train.micro_batch (8)", "take 16"]),
        (["--parallel.cp=2"], ["parallel.cp is 2", "no context parallelism"]),
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


@pytest.mark.parametrize(
    ("sizes", "ranks", "words"),
    [
        ((1, -1, 3), 4, "4 ranks are no multiple"),
        ((2, 4, 1), 4, "one of 8 ranks, but 4 are running"),
        ((1, 2, 1), 1, "but 1 is running"),
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
    ],
)
def test_paths_that_a_layout_does_not_have(more, words):
    from yupana.train.parallel import check_paths

    config = settings.load(None, None, [*TINY, *more])
    with pytest.raises(UserError, match=words):
        check_paths(config, Layout(1, 2, 2), config.train.compile)
    check_paths(config, Layout(), config.train.compile)


@examples(deadline=None)
@given(
    st.integers(1, 3), st.integers(1, 7), st.sampled_from([1, 2]), st.integers(1, 40), st.integers(2, 9), st.booleans()
)
def test_the_shares_of_all_ranks_are_the_whole_model_once(replicate, fsdp, tp, half_ff, vocab, tied):
    """Putting together what each rank holds gives every parameter whole, each number from exactly one share."""
    shape = ModelShape(2, 6, 4, 2, 4, 2 * half_ff, 2 * vocab, tied)
    layout = Layout(replicate, fsdp, tp)
    for name, size in whole_sizes(shape).items():
        whole, seen = initial(name, size, 3), torch.zeros(size, dtype=torch.int32)
        rebuilt = torch.full(size, float("nan"))
        for rank in range(fsdp * tp):
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
