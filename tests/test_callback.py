"""YupanaCallback on a real transformers Trainer: its FLOPs against yupana's count and torch's own counter of products."""

import json
from types import SimpleNamespace

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

transformers = pytest.importorskip("transformers")
pytest.importorskip("accelerate")

from yupana.flops import count  # noqa: E402
from yupana.flops.hardware import best_rates  # noqa: E402
from yupana.model.huggingface_config import shape_from_config  # noqa: E402
from yupana.tune import callback as module  # noqa: E402
from yupana.tune import counting  # noqa: E402
from yupana.tune.callback import YupanaCallback  # noqa: E402

SEQ = 24
PEAK = 1e12


@pytest.fixture
def model():
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        vocab_size=97, hidden_size=32, intermediate_size=56, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, head_dim=8, max_position_embeddings=64, tie_word_embeddings=True,
        attn_implementation="eager",
    )  # fmt: skip
    return transformers.LlamaForCausalLM(config)


def rows(number, length=SEQ):
    ids = torch.randint(0, 97, (number, length), generator=torch.Generator().manual_seed(1))
    return [{"input_ids": row, "labels": row} for row in ids]


def trained(model, data, folder, *, collator=None, evaluation=None, wrap=None, explain=None, **settings):
    """Train with the callback; returns it and the trainer."""
    arguments = transformers.TrainingArguments(
        output_dir=str(folder), use_cpu=True, report_to=[], save_strategy="no", disable_tqdm=True,
        **{"logging_steps": 1, "per_device_train_batch_size": 2, "gradient_accumulation_steps": 2, "max_steps": 3,
           **settings},
    )  # fmt: skip
    callback = YupanaCallback(peak=PEAK, explain=explain)
    trainer = transformers.Trainer(
        model, arguments, train_dataset=data, eval_dataset=evaluation, data_collator=collator, callbacks=[callback]
    )
    if wrap is not None:
        wrap(trainer)
    trainer.train()
    return callback, trainer


class Clock:
    """A clock that only forward passes move: half a second in training, a hundred seconds in evaluation."""

    def __init__(self, model, monkeypatch):
        self.now = 1.0
        model.register_forward_pre_hook(self.tick)
        monkeypatch.setattr(module, "time", SimpleNamespace(perf_counter=lambda: self.now))

    def tick(self, model, _):
        self.now += 0.5 if model.training else 100.0


def test_mfu_is_yupanas_own_count(model, tmp_path, monkeypatch):
    Clock(model, monkeypatch)
    callback, trainer = trained(
        model, rows(12), tmp_path, evaluation=rows(2), eval_strategy="steps", eval_steps=1, per_device_eval_batch_size=2
    )
    flops = count.flops_per_token(shape_from_config(model.config.to_dict()), SEQ)
    assert [line["step"] for line in callback.history] == [1, 2, 3]
    for line in callback.history:
        rate = 2 * 2 * SEQ / (2 * 0.5)  # two micro-batches of two sequences in a second, whatever evaluation takes
        assert line["tokens_per_second"] == pytest.approx(rate, rel=1e-9)
        assert line["mfu"] == pytest.approx(rate * flops["palm"] / PEAK, rel=1e-9)
        assert line["mfu_exact"] == pytest.approx(rate * flops["exact"] / PEAK, rel=1e-9)
        assert line["memory_bytes"] > 1e6
        assert "padding_share" not in line
    logged = [line for line in trainer.state.log_history if "loss" in line]
    assert [line["mfu"] for line in logged] == [line["mfu"] for line in callback.history]


def test_lines_every_other_step_hold_the_tokens_of_both(model, tmp_path, monkeypatch):
    Clock(model, monkeypatch)
    callback, _ = trained(model, rows(16), tmp_path, logging_steps=2, max_steps=4)
    assert [line["tokens_per_second"] for line in callback.history] == pytest.approx([4 * SEQ, 4 * SEQ])


@pytest.mark.parametrize("adapted", ["nothing", "all-linear", "query and value"])
def test_flops_are_those_that_torch_executes(model, tmp_path, adapted):
    """torch counts every product that runs; eager attention computes its masked half, as the count `palm` has it."""
    if adapted != "nothing":
        peft = pytest.importorskip("peft")
        targets = "all-linear" if adapted == "all-linear" else ["q_proj", "v_proj", "o_proj", "down_proj"]
        model = peft.get_peft_model(model, peft.LoraConfig(r=3, target_modules=targets, task_type="CAUSAL_LM"))
    best_rates("cpu")  # once a process: the products that measure this machine are not the model's
    with FlopCounterMode(display=False) as counter:
        callback, _ = trained(model, rows(4), tmp_path, max_steps=1)
    line = callback.history[0]
    counted = line["mfu"] * PEAK / line["tokens_per_second"] * 4 * SEQ
    # Where only q and v have adapters, the first block's keys need no gradient: one product of scores fewer.
    spared = 2 * SEQ * 32 * 4 * SEQ if adapted == "query and value" else 0
    assert counted == pytest.approx(counter.get_total_flops() + spared, rel=1e-9)


def test_the_head_counts_for_labelled_tokens(model, tmp_path, monkeypatch):
    Clock(model, monkeypatch)
    data = [{**row, "labels": torch.where(torch.arange(SEQ) < 6, -100, row["labels"])} for row in rows(4)]
    callback, _ = trained(model, data, tmp_path, max_steps=1)
    shape = shape_from_config(model.config.to_dict())
    flops = 4 * SEQ * count.flops_per_token(shape, SEQ)["palm"] - 4 * 6 * 6 * 97 * 32
    assert callback.history[0]["mfu"] == pytest.approx(flops / 1.0 / PEAK, rel=1e-9)


def test_padding_is_no_token(model, tmp_path, monkeypatch):
    Clock(model, monkeypatch)

    def pad(parts):
        longest = max(len(part) for part in parts)
        ids = torch.zeros(len(parts), longest, dtype=torch.long)
        mask = torch.zeros_like(ids)
        for row, part in enumerate(parts):
            ids[row, : len(part)], mask[row, : len(part)] = part, 1
        return {"input_ids": ids, "attention_mask": mask, "labels": ids.masked_fill(mask == 0, -100)}

    data = [torch.arange(1, length + 1) for length in (4, 16)]
    callback, _ = trained(model, data, tmp_path, collator=pad, gradient_accumulation_steps=1, max_steps=1)
    line = callback.history[0]
    assert line["tokens_per_second"] == pytest.approx(20 / 0.5)
    assert line["padding_share"] == pytest.approx(12 / 32)
    shape = shape_from_config(model.config.to_dict())
    flops = sum(length * count.flops_per_token(shape, length)["palm"] for length in (4, 16))
    assert line["mfu_exact"] < line["mfu"]
    assert line["mfu"] == pytest.approx(flops / 0.5 / PEAK, rel=1e-9)


def test_packed_documents_attend_within_themselves():
    positions = torch.tensor([[0, 1, 2, 0, 1, 0, 1, 2, 3, 4]])
    labelled = torch.tensor(6)
    assert counting.tokens_of([counting.Batch(1, 10, None, positions, labelled)]) == ([3, 2, 5], 10, 6)
    assert counting.tokens_of([counting.Batch(2, 5, None, torch.arange(5)[None])]) == ([5, 5], 10, 10)


def test_recomputation_counts_for_nothing(model, tmp_path, monkeypatch):
    Clock(model, monkeypatch)
    plain, _ = trained(model, rows(4), tmp_path, max_steps=1)
    again, _ = trained(model, rows(4), tmp_path, max_steps=1, gradient_checkpointing=True)
    assert again.history[0]["mfu"] == pytest.approx(plain.history[0]["mfu"], rel=1e-9)


def test_a_mixture_of_experts_has_no_mfu_and_trains_on(tmp_path, capsys):
    config = transformers.MixtralConfig(
        vocab_size=97, hidden_size=32, intermediate_size=32, num_hidden_layers=1, num_attention_heads=4,
        num_key_value_heads=2, num_local_experts=2, num_experts_per_tok=1,
    )  # fmt: skip
    callback, _ = trained(transformers.MixtralForCausalLM(config), rows(4), tmp_path, max_steps=1)
    assert callback.history[0]["tokens_per_second"] > 0
    assert "mfu" not in callback.history[0]
    assert "mixture of experts" in capsys.readouterr().err


def test_trackers_see_the_figures_when_it_is_added_first(model, tmp_path):
    seen = []

    class Tracker(transformers.TrainerCallback):
        def on_log(self, args, state, control, logs=None, **_):
            seen.append(dict(logs))

    def rewire(trainer):
        trainer.callback_handler.callbacks.insert(1, Tracker())
        trainer.remove_callback(YupanaCallback)
        YupanaCallback.add_to(trainer, peak=PEAK)

    trained(model, rows(4), tmp_path, max_steps=1, wrap=rewire)
    assert seen[0]["mfu"] > 0
    assert "mfu" not in seen[-1]  # the summary at the end is no step


def test_a_step_is_explained_and_its_parts_sum_up(model, tmp_path):
    callback, _ = trained(model, rows(16), tmp_path, max_steps=4, explain=3)
    found = json.loads((tmp_path / "waterfall.json").read_text())
    assert found == json.loads(json.dumps(callback.waterfall))
    assert sum(part["share"] for part in found["parts"]) == pytest.approx(1)
    assert sum(part["lost_share"] for part in found["parts"]) + found["mfu"]["exact"] == pytest.approx(1)
    products = {(row["m"], row["k"], row["n"]): row["count"] for row in found["products"]}
    assert products[2 * SEQ, 32, 97] == 2  # the head, forward: two micro-batches
    flops = 4 * SEQ * count.flops_per_token(shape_from_config(model.config.to_dict()), SEQ)["palm"]
    assert found["mfu"]["palm"] == pytest.approx(flops / found["step_seconds"] / found["peak"])


def test_what_cannot_be_explained_is_said(model, tmp_path, capsys):
    model.model.embed_tokens.weight.requires_grad_(False)
    callback, _ = trained(model, rows(16), tmp_path, max_steps=3, explain=2)
    assert callback.waterfall == {}
    assert "no waterfall, because it needs all weights trained" in capsys.readouterr().err
    assert len(callback.history) == 3
