"""`yupana eval`: losses against transformers, intervals against a known error, the harness against choices by hand."""

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import TINY

from yupana.errors import UserError
from yupana.tune import text_loss
from yupana.tune.harness import run_tasks

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def run(tmp_path_factory, corpus):
    from yupana.run import RunDirectory
    from yupana.train.begin import begin

    path = tmp_path_factory.mktemp("runs") / "tiny"
    settings = [*TINY, "--train.steps=20", "--optim.lr=3e-3", f"--data.corpus={corpus}", "--checkpoint.export=true"]
    begin(RunDirectory(path), "7m", None, settings)
    return path


@pytest.fixture(scope="module")
def folder(run, tmp_path_factory):
    """The run as `transformers` has it, in fp32."""
    from yupana.train.exchange import export_run

    out = tmp_path_factory.mktemp("export") / "model"
    export_run(run, out, "last", "float32")
    return out


@pytest.fixture(scope="module")
def lines(tmp_path_factory):
    """Two files of documents, one a line."""
    place = tmp_path_factory.mktemp("texts")
    for name, words in (("prose", "the quick brown fox naïvely jumps"), ("code", "def f(x): return x + 1")):
        documents = [{"text": " ".join([words] * (1 + i % 7))} for i in range(12)]
        (place / f"{name}.jsonl").write_text("".join(json.dumps(d, ensure_ascii=False) + "\n" for d in documents))
    return [str(place / "prose.jsonl"), str(place / "code.jsonl")]


def test_loss_of_a_file_is_that_of_transformers(yupana, run, folder, lines):
    transformers = pytest.importorskip("transformers")
    done = yupana("eval", run, "--text", *lines, "--json")
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    model = transformers.AutoModelForCausalLM.from_pretrained(folder)
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    nats = tokens = size = 0
    for file in lines:
        for line in Path(file).read_text().splitlines():
            text = json.loads(line)["text"]
            ids = [tokenizer.bos_token_id, *tokenizer(text, add_special_tokens=False)["input_ids"], tokenizer.eos_token_id]
            size += len(text.encode())
            for start in range(0, len(ids) - 1, 32):  # windows of data.seq_len tokens
                window = torch.tensor([ids[start : start + 33]])
                with torch.no_grad():
                    loss = model(window, labels=window).loss
                nats, tokens = nats + loss.item() * (window.shape[1] - 1), tokens + window.shape[1] - 1
    assert result["tokens"] == tokens
    assert result["bytes"] == size
    assert result["nll_per_token"] == pytest.approx(nats / tokens, rel=1e-4)
    assert result["bits_per_byte"] == pytest.approx(nats / math.log(2) / size, rel=1e-4)
    assert [d["name"] for d in result["domains"]] == lines
    assert sum(d["tokens"] for d in result["domains"]) == tokens
    for each in [result, *result["domains"]]:
        assert each["nll_interval"][0] < each["nll_per_token"] < each["nll_interval"][1]
    kept = json.loads((run / "evaluations.json").read_text())
    assert kept[-1]["nll_per_token"] == result["nll_per_token"]
    assert "95 % interval" in yupana("eval", run, "--text", *lines).stdout


def test_a_folder_gives_what_its_run_gives(run, folder, lines):
    of_run = text_loss.text_loss(text_loss.open_reader(run), lines, seq_len=48)
    of_folder = text_loss.text_loss(text_loss.open_reader(folder), lines, seq_len=48)
    assert of_folder["nll_per_token"] == pytest.approx(of_run["nll_per_token"], rel=1e-5)
    assert of_folder["tokens"] == of_run["tokens"]


def test_intervals_hold_the_truth_as_often_as_they_say():
    """Documents with known error: 95 % intervals over documents hold the true loss in about 95 of 100 draws."""
    generator = np.random.default_rng(3)
    held = 0
    for _ in range(200):
        tokens = generator.integers(20, 60, size=40).astype(float)
        nats = tokens * (3.0 + 0.5 * generator.standard_normal(40))
        sums = np.stack([nats, tokens, 4 * tokens], axis=1)
        low, high = text_loss._figures(sums, text_loss._resampled(sums, generator))["nll_interval"]
        held += low < 3.0 < high
    assert 178 <= held <= 199  # 95 % of 200, give or take three standard errors


def test_one_document_has_no_interval(run, tmp_path):
    (tmp_path / "one.txt").write_text("alone")
    result = text_loss.text_loss(text_loss.open_reader(run), [str(tmp_path / "one.txt")])
    assert result["nll_interval"] is None
    assert result["tokens"] == len("alone") + 1  # and the end


def test_a_local_task_is_scored_as_by_hand(folder, tmp_path):
    """A task of one's own, its data in a file: no network. Accuracy against the likelier choice by hand."""
    pytest.importorskip("lm_eval")
    transformers = pytest.importorskip("transformers")
    asked = [
        {"question": "import", "choices": [" os", " zqx"], "answer": 0},
        {"question": "def f(", "choices": ["qqq", "x)"], "answer": 1},
        {"question": "return", "choices": [" 0", " ~~"], "answer": 1},
        {"question": "for i in", "choices": [" @@@@", " range"], "answer": 1},
    ]
    (tmp_path / "code.jsonl").write_text("".join(json.dumps(row) + "\n" for row in asked))
    (tmp_path / "code.yaml").write_text(
        "task: tiny_code\ndataset_path: json\ndataset_kwargs:\n  data_files:\n"
        f"    test: {tmp_path / 'code.jsonl'}\ntest_split: test\noutput_type: multiple_choice\n"
        'doc_to_text: "{{question}}"\ndoc_to_choice: "{{choices}}"\ndoc_to_target: answer\ntarget_delimiter: ""\n'
        "metric_list:\n  - metric: acc\n"
    )
    model = transformers.AutoModelForCausalLM.from_pretrained(folder)
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)

    def likelihood(context, choice):
        before = tokenizer(context, add_special_tokens=True)["input_ids"]
        after = tokenizer(choice, add_special_tokens=False)["input_ids"]
        with torch.no_grad():
            logs = model(torch.tensor([before + after])).logits[0].log_softmax(-1)
        return sum(logs[len(before) + i - 1, token].item() for i, token in enumerate(after))

    right = 0
    for row in asked:
        scores = [likelihood(row["question"], choice) for choice in row["choices"]]
        right += scores.index(max(scores)) == row["answer"]
    found = run_tasks(str(folder), ["tiny_code"], tmp_path)
    assert found["tiny_code"]["acc"] == pytest.approx(right / 4)
    assert found["tiny_code"]["samples"] == 4
    with pytest.raises(UserError, match=r"there is no task 'tinycode' \(did you mean 'tiny_code'\?\)"):
        run_tasks(str(folder), ["tinycode"], tmp_path)
    with pytest.raises(UserError, match=r"did you mean 'hellaswag'"):
        run_tasks(str(folder), ["hellaswagg"])


def test_bad_input_ends_in_one_sentence(yupana, run, tmp_path):
    for arguments, told in (
        ((run,), "there is nothing to evaluate on"),
        ((tmp_path, "--text", "x.txt"), "is no model"),
        ((run, "--text", tmp_path / "none.txt"), "none.txt"),
        ((run, "--text", __file__, "--seq_len", 1), "--seq_len must be at least 2"),
    ):
        done = yupana("eval", *arguments)
        assert done.returncode == 2, done.stderr
        assert told in done.stderr
        assert "Traceback" not in done.stderr
