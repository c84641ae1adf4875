"""Every command and example of README, CONTRIBUTING, docs and --help runs: small, but really.

A page is gone through from top to bottom in a folder with what it speaks of (`desk`). Each command runs in a process of
its own, forked from one that has the libraries loaded. What differs from the page stands in tests/documented.py.
"""

import argparse
import csv
import functools
import glob
import importlib.metadata
import json
import math
import multiprocessing
import os
import re
import runpy
import shlex
import shutil
import sys
from pathlib import Path
from pydoc_data.topics import topics

import pytest
import yaml
from documented import AROUND, CHANGES, FILES, INSTEAD, PAGES, ROOT, SMALL, TUNED, changed, examples, help_examples

pytestmark = pytest.mark.slow

FOUND = {str(page.relative_to(ROOT)): examples(page) for page in PAGES} | {"--help": help_examples()}
LISTS = ("README.md", "--help")  # of commands that other pages explain
LIBRARIES = [
    "pytest", "torch.distributed.run", "trl.trainer.sft_trainer", "trl.trainer.dpo_trainer", "peft", "lm_eval.tasks",
    "matplotlib.figure", "yupana.cli", "yupana.corpus.explore", "yupana.anatomy.checks", "yupana.train.begin",
    "yupana.train.profile", "yupana.report.page", "yupana.tune.begin", "yupana.tune.text_loss",
]  # fmt: skip
TRAINER = """
import torch
from transformers import LlamaConfig, LlamaForCausalLM, TrainingArguments
model = LlamaForCausalLM(LlamaConfig(vocab_size=64, hidden_size=16, intermediate_size=32, num_hidden_layers=1,
                                     num_attention_heads=2, num_key_value_heads=1))
data = [{"input_ids": row, "labels": row} for row in torch.randint(0, 64, (8, 16))]
arguments = TrainingArguments(output_dir="trainer", max_steps=2, per_device_train_batch_size=4, logging_steps=1,
                              report_to=[], save_strategy="no", use_cpu=True)
"""


# --- one command ----------------------------------------------------------------------------------------------------


def begin(way, text, folder, told):
    """In a process of its own: run one example in `folder`; what it prints goes to the file `told`."""
    written = os.open(told, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(written, 1)
    os.dup2(written, 2)
    os.chdir(folder)
    sys.path.insert(0, str(folder))
    if way.startswith("refused"):
        os.environ["PATH"] = ""  # where there is a cluster, nothing is sent to it
    if way == "python":
        return exec(compile(text, "example", "exec"), {"__name__": "__main__"})
    program, *words = (one for word in shlex.split(text) for one in (sorted(glob.glob(word)) if "*" in word else [word]))
    sys.argv = [program, *words]
    if way == "fewer sizes":
        from yupana.flops import bench, measure

        measure.measure = functools.partial(measure.measure, effort=bench.SMALL)
    if program == "yupana":
        from yupana.cli import main

        sys.exit(main(words))
    if program == "torchrun":
        from torch.distributed.run import main

        sys.exit(main(words))
    if program == "python":
        return script(words, only_arguments=way == "arguments")
    if way == "syntax":
        os.execvp("sh", ["sh", "-n", str(ROOT / words[0])])
    if way == "dry":
        os.execvp("make", ["make", "-C", str(ROOT), "-n", *words])
    raise AssertionError(f"{text}: not a program that a documented command may begin with")


def script(words, only_arguments):
    """A script of benchmarks/; or only as far as its arguments, which have to be those that it takes."""
    sys.argv = words
    sys.path.insert(0, str(ROOT / "benchmarks"))
    if not only_arguments:
        runpy.run_path(str(ROOT / words[0]), run_name="__main__")
        return
    parse = argparse.ArgumentParser.parse_args

    def stop(self, *given):
        parse(self, *given)
        os._exit(0)

    argparse.ArgumentParser.parse_args = stop
    runpy.run_path(str(ROOT / words[0]), run_name="__main__")
    sys.exit(f"{words[0]} never asked for its arguments")


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """Run an example in a folder: (exit code, what it printed)."""
    for library in ("trl", "lm_eval", "datatrove"):
        pytest.importorskip(library)
    told = tmp_path_factory.mktemp("told") / "told"
    processes = multiprocessing.get_context("forkserver")
    processes.set_forkserver_preload(LIBRARIES)

    def call(way, text, folder):
        process = processes.Process(target=begin, args=(way, text, folder, told))
        process.start()
        process.join(120)
        if process.is_alive():
            process.kill()
            return "too long", told.read_text()
        return process.exitcode, told.read_text()

    return call


# --- what the pages speak of ----------------------------------------------------------------------------------------


MADE = [  # by these commands, which the pages need not run again
    "yupana corpus prepare books/ --out corpora/books --tokenizer bpe:300",
    *(f"yupana corpus prepare {of}/ --out corpora/{of} --tokenizer corpora/books" for of in ("web", "code", "mathematics")),
    f"yupana train 7m --run runs/demo {SMALL} --data.corpus=corpora/books",
    "yupana export runs/demo",
    "yupana scaling fit points.csv --out fits/mine",
    "yupana scaling predict besiroglu --config runs/demo/run.yaml --far --out prediction.json",
    f"yupana tune runs/demo --data.train chat.jsonl --run runs/tuned {TUNED}",
]


@pytest.fixture(scope="module")
def desk(run, tmp_path_factory):
    """A folder with texts, corpora, runs, conversations and points, all small."""
    folder = tmp_path_factory.mktemp("desk")
    texts = list(topics.values())
    for name, part in (
        ("books/a", texts[:12]),
        ("books/b", texts[12:24]),
        ("mathematics/c", texts[24:30]),
        ("mathematics/d", texts[30:36]),
    ):
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / f"{name}.txt").write_text("\n\n".join(part))
    (folder / "web").mkdir()
    (folder / "web/pages.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    (folder / "code").mkdir()
    for module in ("textwrap", "heapq"):
        shutil.copy(Path(os.__file__).with_name(f"{module}.py"), folder / "code")
    for name in ("wikitext2_valid", "wikitext2_test", "tinyshakespeare", "held-out"):
        shutil.copy(folder / "books/a.txt", folder / f"{name}.txt")
    ask = [("What colour is the sky?", "Blue."), ("What colour is snow?", "White."), ("And coal?", "Black.")] * 4
    lines(folder / "chat.jsonl", [{"prompt": q, "completion": a} for q, a in ask])
    lines(folder / "pairs.jsonl", [{"prompt": q, "chosen": a, "rejected": "No."} for q, a in ask])
    lines(folder / "my_task.jsonl", [{"question": q, "choices": [a, "No."], "answer": 0} for q, a in ask])
    (folder / "tune.yaml").write_text("data: {train: chat.jsonl}\n")
    (folder / "trainer.py").write_text(TRAINER)
    points(folder)
    for example in (e for found in FOUND.values() for e in found if e.kind == "yaml"):
        name, _ = file_of(example)
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text(changed(example.text, set()).replace("/data/", f"{folder}/"))
    for command in MADE:
        code, told = run("sh", command, folder)
        assert code == 0, f"{command}\n{told}"
    shutil.copy(folder / "runs/demo/run.yaml", folder)
    for name in "abc":
        shutil.copytree(folder / "runs/demo", folder / "runs" / name)
    for layers in (1, 2, 3):
        for steps in (1_000, 2_000, 4_000):
            swept(folder, layers, steps)
    return folder


def swept(folder, layers, steps):
    """A finished run of a sweep, without the training."""
    run = folder / f"runs/swept/{layers}-{steps}"
    run.mkdir(parents=True)
    settings = yaml.safe_load((folder / "run.yaml").read_text())
    settings["model"]["n_layers"], settings["train"]["steps"] = layers, steps
    (run / "run.yaml").write_text(yaml.safe_dump(settings))
    tokens = steps * settings["train"]["global_batch"] * settings["data"]["seq_len"]
    loss = 1.5 + 9 / (8_000 * layers) ** 0.3 + 20 / tokens**0.35
    lines(run / "metrics.jsonl", [{"step": steps, "tokens": tokens, "val_loss": loss, "val_bpb": loss}])


def file_of(example):
    """Where a reader would keep a block of YAML, and a command that takes it; every such block has its place in FILES."""
    return next(value for start, value in FILES.items() if example.text.startswith(start))


def lines(file, rows):
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))


def points(folder):
    """Points of a known law, and curves of a constant and a falling learning rate."""
    rows = []
    for budget in (1e18, 3e18, 1e19, 3e19, 1e20):
        for share in (0.2, 0.4, 0.7, 1.0, 1.5, 2.5, 5.0):
            n = share * 0.6 * budget**0.45
            rows.append((n, budget, 1.8 + 480 / n**0.35 + 2100 / (budget / (6 * n)) ** 0.37))
    for name in ("points", "chinchilla_epoch", "llama3_isoflop"):
        table(folder / f"{name}.csv", ("n_params", "flops", "loss"), rows)
    falling = [3e-4 * (0.55 + 0.45 * math.cos(math.pi * step / 240)) for step in range(240)]
    for name, rates in (
        ("constant_24000", [3e-4] * 240),
        ("cosine_24000", falling),
        ("wsdcon_9", [3e-4] * 120 + [9e-5] * 120),
    ):
        curve, area = [], 0.0
        for step, rate in enumerate(rates):
            area += rate
            curve.append((100 * step + 100, rate, 2.6 + 0.4 * (100 * area) ** -0.5 - 300 * (rates[0] - rate)))
        table(folder / f"{name}.csv", ("step", "lr", "loss"), curve)


def table(file, names, rows):
    with open(file, "w", newline="") as out:
        csv.writer(out).writerows([names, *rows])


# --- the tests ------------------------------------------------------------------------------------------------------


def test_the_tables_have_nothing_that_no_page_needs():
    used, ways = set(), set()
    found = [example for of_place in FOUND.values() for example in of_place]
    commands = [e.text for e in found if e.kind == "sh"] + [file_of(e)[1] for e in found if e.kind == "yaml"]
    for text in (changed(text, used) for text in commands):
        ways |= {where for where in INSTEAD if re.search(where, text)}
    for text in (e.text for e in found if e.kind == "yaml"):
        changed(text, used)
    assert not [CHANGES[n] for n in set(range(len(CHANGES))) - used]
    assert ways == set(INSTEAD)
    for table, kind in ((FILES, "yaml"), (AROUND, "python")):
        assert {start for start in table for e in found if e.kind == kind and e.text.startswith(start)} == set(table)


@pytest.fixture(scope="module")
def done():
    """(way, command) of all that has run, with the place where it did."""
    return {("sh", command): "desk" for command in MADE}


@pytest.mark.parametrize("place", [place for place, found in FOUND.items() if found])
def test_the_page_does_what_it_says(place, run, desk, done, tmp_path):
    folder = tmp_path / "desk"
    shutil.copytree(desk, folder)
    commands = []
    for example in FOUND[place]:
        if example.kind == "yaml":
            _, command = file_of(example)
            commands += [("sh", command)] if command else []
        elif example.kind == "python":
            around = next((value for start, value in AROUND.items() if example.text.startswith(start)), ("", ""))
            commands.append(("python", "\n".join([around[0], example.text, around[1]])))
        else:
            commands.append(("sh", example.text))
    for kind, text in dict.fromkeys(commands):
        text = changed(text, set()) if kind == "sh" else text
        way = next((way for where, (_, way) in INSTEAD.items() if kind == "sh" and re.search(where, text)), kind)
        where, writes = done.get((way, text)), re.search(r"--(out|run)\b", text)
        if where == "desk" or (where and (not writes or place in LISTS)):
            continue  # it has run, and nothing that follows here needs what it wrote
        do(way, text, run, folder)
        done[way, text] = place


def do(way, text, run, folder):
    """Run one, and see that it did what a reader would expect of it."""
    if way == "nothing":
        return
    if way == "extras":
        assert set(re.findall(r"\[(\w+)\]", text)) <= set(importlib.metadata.metadata("yupana").get_all("Provides-Extra"))
    elif way == "is there":
        _, file, _, name, *_ = text.split()
        assert re.search(rf"^def test_\w*{name}", (ROOT / file).read_text(), re.M), text
    else:
        code, told = run(way, text, folder)
        if way.startswith("refused: "):
            assert (code, told.count("\n")) == (2, 1), f"{text}\n{told}"
            assert way.removeprefix("refused: ") in told.lower(), f"{text}\n{told}"
        else:
            assert code == 0, f"{text}\n{told[-4000:]}"
