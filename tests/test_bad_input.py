"""Bad input through the command line: exit code 2, one clear sentence, no traceback, nothing left half-written."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from conftest import TINY

from yupana.corpus.prepare import prepare

pytestmark = pytest.mark.slow


def refused(done: subprocess.CompletedProcess, *words: str) -> None:
    """The process ended with one sentence that holds all these words."""
    assert done.returncode == 2, done.stderr
    assert "Traceback" not in done.stderr
    sentence = [line for line in done.stderr.splitlines() if line.startswith("yupana: ")]
    assert len(sentence) == 1
    assert done.stderr.rstrip().endswith(sentence[0])
    for word in words:
        assert word in sentence[0]


def train(yupana, run: Path, corpus: Path, *more: str, **options):
    """`yupana train` of a tiny model."""
    return yupana("train", "7m", "--run", run, *TINY, "--data.corpus", corpus, "--train.steps=4", *more, **options)


@pytest.mark.parametrize(
    ("setting", "words"),
    [
        ("--optim.lrr=1", ["unknown setting 'optim.lrr'", "did you mean 'optim.lr'"]),
        ("--lr=1", ["unknown setting 'lr'", "did you mean 'optim.lr'"]),
        ("--optim.lr=fast", ["optim.lr must be a number", "got fast"]),
        ("--train.precision=fp7", ["train.precision must be one of", "bf16-lean", "got fp7"]),
        ("--train.steps=1.5", ["train.steps must be a whole number"]),
        ("--train.tokens=100", ["train.steps", "train.tokens", "both are given"]),
        ("--model.n_layers=-1", ["model.n_layers must be at least 1", "-1"]),
        ("--data.seq_len=0", ["data.seq_len must be at least 1", "0"]),
        ("--model.n_kv_heads=3", ["n_heads (4)", "n_kv_heads (3)"]),
        ("--model.vocab_size=200", ["model.vocab_size (200)", "smaller than the tokenizer's", "--model.vocab_size"]),
        ("--data.seq_len=1000000", ["seq_len", "1000000", "tokens"]),
        ("--train.device=cuda", ["no GPU", "--train.device cpu"]),
        ("--data.corpus=nowhere", ["nowhere", "does not exist"]),
        ("--data.tokenizer=bpe:zero", ["bpe:zero"]),
        ("--model.n_heads=5 --model.n_kv_heads=5 --checkpoint.export=true", ["multiple of model.n_heads", "export"]),
    ],
)
def test_settings_that_do_not_fit(yupana, tmp_path, corpus, text_folder, setting, words):
    source = text_folder if "tokenizer" in setting else corpus
    environment = {"CUDA_VISIBLE_DEVICES": ""} if "cuda" in setting else {}
    done = train(yupana, tmp_path / "run", source, *setting.split(), env=_with(environment))
    refused(done, *words)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("model: 3", ["model in", "section"]),
        ("- a", ["holds no settings", "model, data, train"]),
        ("model:\n  n_layers: [", ["not valid YAML", "line"]),
        ("moddel:\n  n_layers: 2", ["unknown setting 'moddel.n_layers'", "did you mean 'model.n_layers'"]),
        (b"\x00\xff\xfe", ["cannot be read as text"]),
        (None, ["does not exist"]),
    ],
)
def test_configuration_files_that_are_wrong(yupana, tmp_path, content, words):
    file = tmp_path / "run.yaml"
    if content is not None:
        file.write_bytes(content if isinstance(content, bytes) else content.encode())
    refused(yupana("train", "7m", "--config", file, "--run", tmp_path / "run"), *words)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["train", "8m"], ["no preset '8m'", "7m"]),
        (["train"], ["name a preset", "llama3.2-1b"]),
        (["train", "--resume"], ["nothing to resume", "runs/run"]),
        (["trian"], ["trian", "train"]),
        (["sample", "nowhere"], ["nowhere is not a run directory"]),
        (["export", "nowhere"], ["nowhere is not a run directory"]),
        (["report", "nowhere"], ["nowhere is not a run directory"]),
        (["import", "nowhere", "--run", "r"], ["nowhere"]),
        (["flops", "count", "llama3.2-1"], ["no model", "llama3.2-1b"]),
        (["flops", "count", "7m", "--seq_len", "-5"], ["seq_len", "-5"]),
        (["flops", "count", "7m", "--sequence", "5"], ["unknown argument '--sequence'"]),
        (["corpus", "prepare", "nowhere.txt", "--out", "c"], ["nowhere.txt", "does not exist"]),
        (["corpus", "prepare", "python", "--out", "c", "--val_fraction", "2"], ["val_fraction", "2"]),
        (["corpus", "prepare", "python"], ["--out"]),
    ],
)
def test_commands_that_are_wrong(yupana, tmp_path, arguments, words):
    refused(yupana(*arguments, cwd=tmp_path), *words)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("name", "content", "word"),
    [
        ("empty.txt", b"", "empty"),
        ("blank.txt", b" \n\n ", "no documents"),
        ("binary.txt", bytes(range(256)) * 20, "binary"),
        ("latin.txt", "Wörter, die nicht in UTF-8 stehen".encode("latin-1"), "UTF-8"),
        ("rows.jsonl", b'{"text"\n{"text"', "JSON"),
        ("field.jsonl", b'{"content": "a"}\n', "'text'"),
        ("torn.txt.gz", b"\x1f\x8b\x08\x00torn", "gz"),
    ],
)
def test_text_that_cannot_be_read(yupana, tmp_path, name, content, word):
    file = tmp_path / name
    file.write_bytes(content)
    refused(yupana("corpus", "prepare", file, "--out", tmp_path / "corpus", "--tokenizer", "bytes"), name, word)
    assert [path.name for path in tmp_path.iterdir()] == [name]


@pytest.mark.parametrize("damage", ["truncated", "altered", "missing", "manifest"])
def test_damaged_shards(yupana, tmp_path, corpus, damage):
    bad = tmp_path / "corpus"
    shutil.copytree(corpus, bad)
    shard = next(bad.glob("train*.bin"))
    if damage == "truncated":
        shard.write_bytes(shard.read_bytes()[:-2])
    elif damage == "altered":
        tokens = np.fromfile(shard, dtype="<u2")
        tokens[100] += 1
        tokens.tofile(shard)
    elif damage == "missing":
        shard.unlink()
    else:
        (bad / "corpus.json").write_text("{")
    refused(train(yupana, tmp_path / "run", bad), "corpus.json" if damage == "manifest" else shard.name)
    assert not (tmp_path / "run").exists()


def test_resuming_what_began_otherwise(yupana, tmp_path, corpus, text_folder):
    run = tmp_path / "run"
    done = train(yupana, run, corpus, "--json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["step"] == 4
    before = _content(run)
    other = tmp_path / "other"
    prepare([str(text_folder)], other, "bytes", val_fraction=0.3)
    bpe = tmp_path / "bpe"
    prepare([str(text_folder)], bpe, "bpe:300", val_fraction=0.1)
    for change, words in {
        f"--data.corpus={other}": ["another corpus"],
        f"--data.corpus={bpe}": ["another corpus"],
        "--data.seq_len=16": ["another sequence length", "32, now 16"],
        "--model.n_layers=3": ["another architecture"],
    }.items():
        refused(yupana("train", "--run", run, "--resume", change), *words)
    refused(yupana("train", "7m", "--run", run), "already holds a run", "--resume")
    assert _content(run) == before


def test_full_disk(yupana, tmp_path, corpus):
    """No file of this process may grow beyond 20 kB: the checkpoint does not fit."""
    limit = "import resource, runpy, signal, sys; signal.signal(signal.SIGXFSZ, signal.SIG_IGN);"
    limit += "resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000));"
    limit += "sys.argv[0] = 'yupana'; runpy.run_module('yupana', run_name='__main__')"
    command = ["train", "7m", "--run", tmp_path / "run", *TINY, "--data.corpus", corpus, "--train.steps=4"]
    done = subprocess.run(
        [sys.executable, "-c", limit, *map(str, command)], capture_output=True, text=True, check=False
    )
    refused(done, "step_4")
    folder = tmp_path / "run" / "checkpoints"
    assert not [path for path in folder.iterdir() if (path / "manifest.json").exists()]


def _with(variables: dict[str, str]) -> dict[str, str]:
    import os

    return {**os.environ, **variables}


def _content(folder: Path) -> dict[str, bytes]:
    return {str(p): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file() and p.name != ".lock"}
