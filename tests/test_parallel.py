"""Many ranks: every layout trains the single process's model, and a checkpoint moves between all of them."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from conftest import TINY
from test_train import curve

from yupana import config as settings
from yupana.flops.communication import step_collectives
from yupana.flops.layout import layout_of
from yupana.run import RunDirectory, open_run
from yupana.train import checkpoint
from yupana.train.begin import begin
from yupana.train.exchange import export_run
from yupana.train.limits import setup

WORKER = Path(__file__).parent / "parallel_worker.py"
# Sizes that four ranks cannot share evenly: 302 rows of the embedding, 50 columns of w_down.
ODD = [*TINY, "--model.d_ff=50", "--model.vocab_size=302", "--train.precision=fp32", "--optim.schedule=constant"]
STEPS = ["--train.steps=20", "--checkpoint.every=20", "--checkpoint.keep=9", "--log.eval_every=20", "--log.eval_tokens=320"]
LAYOUTS = {
    2: {
        "fsdp 2": ["--parallel.fsdp=2"],
        "replicate 2": ["--parallel.replicate=2", "--parallel.fsdp=1"],
        "tp 2": ["--parallel.tp=2"],
        "cp 2": ["--parallel.cp=2"],
    },
    4: {
        "fsdp 4": [],
        "replicate 4": ["--parallel.replicate=4"],
        "replicate 2 fsdp 2": ["--parallel.replicate=2"],
        "fsdp 2 tp 2": ["--parallel.tp=2"],
        "replicate 2 tp 2": ["--parallel.replicate=2", "--parallel.tp=2"],
        "fsdp 2 cp 2": ["--parallel.cp=2"],
        "cp 2 tp 2": ["--parallel.cp=2", "--parallel.tp=2"],
    },
}
VARIANTS = {
    "plain": [],
    # An untied head, accumulation, and targets that count for nothing.
    "hard": ["--model.tie_embeddings=false", "--train.micro_batch=2", "--data.packing=documents"],
}
HARD = ("replicate 2 fsdp 2", "fsdp 2 tp 2", "fsdp 2 cp 2")  # layouts

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


def variant(layout):
    """Of the training that a layout does."""
    return "hard" if layout in HARD else "plain"


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

    def tasks(count):
        for layout, options in LAYOUTS[count].items():
            more = [*VARIANTS[variant(layout)], *options]
            yield {"do": "train", "run": str(folder / layout), "settings": [*base, *STEPS, *more]}

    def part(steps, *options):
        more = [f"--train.steps={steps}", *STEPS[1:], *options]
        return {"do": "train", "run": str(folder / "moved"), "settings": [*base, *more], "resume": True}

    answers = {}
    begin(RunDirectory(folder / "moved"), None, None, [*base, "--train.steps=6", *STEPS[1:]])
    again = {"run": str(folder / "plain"), "settings": [*base, *STEPS, "--parallel.tp=2"]}
    answers["two"] = work(
        folder, 2,
        [
            {"do": "differing", "settings": base, "by_rank": [[], ["--optim.lr=0.5"]]},
            {"do": "refused", "run": str(folder / "large"), "settings": [*base, "--model.d_ff=99999999998"]},
            {"do": "broken_disk", **again},
            {"do": "save_again", **again},
            part(11, "--parallel.tp=2"),
            *tasks(2),
        ],
    )  # fmt: skip
    background = {"do": "train", "run": str(folder / "background"), "settings": [*base, *STEPS, BACKGROUND]}
    steps = [
        {"do": "step", "run": str(folder / "step"), "settings": [*base, "--train.steps=1", *options, *more]}
        for options, more in counted_cases()
    ]
    moved = part(15, "--parallel.cp=2", "--parallel.tp=1")  # the run.yaml that is resumed says otherwise
    answers["steps"] = work(folder, 4, [*steps, moved, background, *tasks(4)])[: len(steps)]
    one = ["--parallel.cp=1", "--train.steps=20", *STEPS[1:]]
    begin(RunDirectory(folder / "moved"), None, None, [*base, *one], resume=True)
    return folder, answers


@pytest.mark.slow
@pytest.mark.parametrize("layout", [*LAYOUTS[2], *LAYOUTS[4]])
def test_every_layout_has_the_curve_of_one_process(trained, layout):
    folder, _ = trained
    close(folder / layout, folder / variant(layout))


@pytest.mark.slow
def test_a_run_moves_between_layouts(trained):
    """One process, then 2 ranks with tp, then 2 × 2 with cp, then one again: as if nothing had happened."""
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
        layout = layout_of(parallel.replicate, parallel.fsdp, parallel.cp, parallel.tp, 4)
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
    assert "rank 1 has another optim.lr than rank 0 (0.5, not 0.001)" in trained[1]["two"][0]


@pytest.mark.slow
def test_a_step_that_no_rank_can_hold_is_refused_before_it_begins(trained):
    told = trained[1]["two"][1]
    assert len(set(told)) == 1
    assert "GB on each rank (replicate 1 × fsdp 2 × tp 1)" in told[0]
    assert "not even one sequence fits: take more ranks" in told[0]


@pytest.mark.slow
def test_a_full_disk_on_one_rank_is_told_by_all(trained):
    told = trained[1]["two"][2]
    assert len(told) == 2
    assert all("disk is full" in text for text in told)
    assert checkpoint.problem(trained[0] / "plain" / "checkpoints" / "step_20") is None


@pytest.mark.slow
def test_rank_0_alone_keeps_the_run(trained):
    """One line a step and an evaluation, the layout in env.json and the settings as given in run.yaml."""
    run = open_run(trained[0] / "fsdp 4")
    assert [r["step"] for r in run.metrics() if "loss" in r] == list(range(1, 21))
    environment = json.loads(run.env_file.read_text())
    assert (environment["ranks"], environment["layout"]) == (4, {"replicate": 1, "fsdp": 4, "tp": 1, "cp": 1})
    assert settings.load(file=run.config_file).parallel.fsdp == -1


@pytest.mark.slow
def test_checkpoints_in_the_background_are_the_same(trained, tmp_path, corpus):
    """Bit for bit, from four ranks and from one, and so is the curve."""
    folder, _ = trained
    begin(RunDirectory(tmp_path / "one"), None, None, [*ODD, *STEPS, f"--data.corpus={corpus}", BACKGROUND])
    for background, at_once in ((folder / "background", folder / "fsdp 4"), (tmp_path / "one", folder / "plain")):
        assert curve(background) == curve(at_once)
        folders = [run / "checkpoints" / "step_20" for run in (background, at_once)]
        ours, theirs = (tensors(path) for path in folders)
        assert ours.keys() == theirs.keys()
        assert all(torch.equal(ours[name], theirs[name]) for name in ours)
        assert checkpoint.problem(folders[0]) is None
