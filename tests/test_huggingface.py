"""Beside `transformers`: the same logits, gradients and text; its folders read, ours loaded by it."""

import errno
import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from yupana import config
from yupana.errors import UserError
from yupana.model import huggingface
from yupana.model.generate import generate
from yupana.model.huggingface import TokenizerFile, read, tensor_layout, write
from yupana.model.huggingface_config import config_from_shape, shape_from_config
from yupana.model.llama import Llama
from yupana.model.shapes import ModelShape, RopeScaling

transformers = pytest.importorskip("transformers")
transformers.utils.logging.disable_progress_bar()

PLAIN = {"rope_type": "default", "rope_theta": 500_000.0}
SCALED = {
    "rope_type": "llama3", "rope_theta": 500_000.0, "factor": 32.0, "low_freq_factor": 1.0,
    "high_freq_factor": 4.0, "original_max_position_embeddings": 8192,
}  # fmt: skip
SHORT = {**SCALED, "factor": 8.0, "original_max_position_embeddings": 8}
ODD = {
    "vocab_size": 101, "hidden_size": 42, "intermediate_size": 17, "num_hidden_layers": 2,
    "num_attention_heads": 14, "num_key_value_heads": 7, "head_dim": 6,
}  # fmt: skip
SHAPE = ModelShape(
    n_layers=2, d_model=42, n_heads=14, n_kv_heads=7, head_dim=6, d_ff=17, vocab_size=101,
    rope_scaling=RopeScaling(),
)  # fmt: skip


def their_model(seed: int = 0, **sizes: Any) -> Any:
    """A LlamaForCausalLM with weights large enough that every part of it shows in the logits."""
    settings = {"rms_norm_eps": 1e-5, "max_position_embeddings": 131_072, "initializer_range": 0.2, **ODD, **sizes}
    torch.manual_seed(seed)
    model = transformers.LlamaForCausalLM(transformers.LlamaConfig(**settings)).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "norm" in name:
                parameter.normal_(1.0, 0.2)
    return model


def their_logits(folder: Path, tokens: torch.Tensor) -> torch.Tensor:
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    with torch.no_grad():
        return model(tokens).logits


def our_model(shape: ModelShape = SHAPE) -> Llama:
    model = Llama(shape)
    model.initialise(0)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(1.0, 0.2, generator=generator) if parameter.dim() == 1 else parameter.mul_(10)
    return model.eval()


def some_tokens(*size: int, vocab: int = 101) -> torch.Tensor:
    return torch.randint(0, vocab, size, generator=torch.Generator().manual_seed(1))


# Parity


@torch.no_grad()
@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("rope", [PLAIN, SCALED], ids=["plain", "scaled"])
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_logits_equal_theirs(tmp_path: Path, tied: bool, rope: dict[str, Any], attention: str) -> None:
    theirs = their_model(rope_parameters=rope, tie_word_embeddings=tied, attn_implementation=attention)
    theirs.save_pretrained(tmp_path)
    tokens = some_tokens(2, 40)
    torch.testing.assert_close(read(tmp_path)(tokens), theirs(tokens).logits, atol=1e-4, rtol=0)


@torch.no_grad()
@pytest.mark.parametrize("rope", [PLAIN, SCALED], ids=["plain", "scaled"])
def test_logits_equal_theirs_beyond_8192_positions(tmp_path: Path, rope: dict[str, Any]) -> None:
    # Sharp attention over wide heads: frequencies off by one unit in the last place already differ by 1e-3.
    theirs = their_model(
        rope_parameters=rope, num_hidden_layers=1, hidden_size=64, num_attention_heads=2, num_key_value_heads=1,
        head_dim=64, tie_word_embeddings=True,
    )  # fmt: skip
    theirs.save_pretrained(tmp_path)
    tokens = some_tokens(1, 8300)
    torch.testing.assert_close(read(tmp_path)(tokens), theirs(tokens).logits, atol=1e-4, rtol=0)


@torch.no_grad()
@settings(max_examples=40, deadline=None)
@given(sizes=st.fixed_dictionaries({
    "num_hidden_layers": st.integers(1, 3),
    "groups": st.integers(1, 4),
    "num_key_value_heads": st.integers(1, 3),
    "head_dim": st.sampled_from([2, 4, 6, 10, 16]),
    "width_of_head": st.integers(1, 8),
    "intermediate_size": st.integers(1, 40),
    "vocab_size": st.integers(3, 60),
    "tie_word_embeddings": st.booleans(),
    "rope_parameters": st.sampled_from([PLAIN, SCALED, SHORT]),
    "seed": st.integers(0, 99),
}), seq=st.integers(1, 30))  # fmt: skip
def test_logits_equal_theirs_for_any_shape(
    tmp_path_factory: pytest.TempPathFactory, sizes: dict[str, Any], seq: int
) -> None:
    heads = sizes.pop("groups") * sizes["num_key_value_heads"]
    theirs = their_model(num_attention_heads=heads, hidden_size=heads * sizes.pop("width_of_head"), **sizes)
    folder = tmp_path_factory.mktemp("any")
    theirs.save_pretrained(folder)
    tokens = some_tokens(2, seq, vocab=sizes["vocab_size"])
    torch.testing.assert_close(read(folder)(tokens), theirs(tokens).logits, atol=1e-4, rtol=0)


@pytest.mark.parametrize("tied", [True, False])
def test_gradients_equal_theirs(tmp_path: Path, tied: bool) -> None:
    theirs = their_model(rope_parameters=SCALED, tie_word_embeddings=tied)
    theirs.save_pretrained(tmp_path)
    ours, tokens, targets = read(tmp_path), some_tokens(2, 30), some_tokens(2, 30).flip(0).flatten()
    torch.nn.functional.cross_entropy(ours(tokens).flatten(0, 1), targets).backward()
    torch.nn.functional.cross_entropy(theirs(tokens).logits.flatten(0, 1), targets).backward()
    expected = {name: parameter.grad for name, parameter in theirs.named_parameters()}
    compared = 0
    for name, parameter in ours.named_parameters():
        stacked = torch.cat([expected[part] for part, _ in tensor_layout(ours.shape)[name]])
        torch.testing.assert_close(parameter.grad, stacked, atol=1e-5, rtol=1e-4)
        compared += stacked.numel()
    assert compared == ours.shape.parameters


def test_greedy_text_equals_theirs(tmp_path: Path) -> None:
    theirs = their_model(rope_parameters=SCALED, bos_token_id=None, eos_token_id=None)
    theirs.save_pretrained(tmp_path)
    prompt = some_tokens(1, 7)
    expected = theirs.generate(prompt, attention_mask=torch.ones_like(prompt), do_sample=False, max_new_tokens=25)
    assert list(generate(read(tmp_path), prompt[0].tolist(), 25, temperature=0)) == expected[0, 7:].tolist()


# Export


@pytest.fixture
def tokenizer(tmp_path: Path) -> TokenizerFile:
    """A byte-level BPE that begins each text with <|begin_of_text|>, as Llama 3's does."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers

    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    bpe.train_from_iterator(["the quick brown fox jumps over the lazy dog"] * 4, trainers.BpeTrainer(
        vocab_size=280, special_tokens=["<|begin_of_text|>", "<|end_of_text|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False,
    ))  # fmt: skip
    bpe.post_processor = processors.TemplateProcessing(
        single="<|begin_of_text|> $A", special_tokens=[("<|begin_of_text|>", 0)]
    )
    bpe.save(str(tmp_path / "bpe.json"))
    return TokenizerFile(tmp_path / "bpe.json", bos="<|begin_of_text|>", eos="<|end_of_text|>")


@torch.no_grad()
@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("scaling", [None, RopeScaling(factor=8.0, original_context=64)])
def test_transformers_loads_an_export(
    tmp_path: Path, tokenizer: TokenizerFile, tied: bool, scaling: RopeScaling | None
) -> None:
    from tokenizers import Tokenizer

    shape = ModelShape(1, 42, 14, 7, 6, 17, 300, tie_embeddings=tied, rope_scaling=scaling)
    ours, folder = our_model(shape), tmp_path / "export"
    write(ours, shape, folder, dtype=torch.float32, tokenizer=tokenizer, max_position_embeddings=512)

    text = "The quick brown fox , naïve — 😀 \n\t  jumps .<|end_of_text|>"
    theirs = transformers.AutoTokenizer.from_pretrained(folder)
    ids = Tokenizer.from_file(str(tokenizer.path)).encode(text).ids
    assert theirs(text)["input_ids"] == ids
    assert theirs.decode(ids[1:]) == text
    assert (theirs.bos_token_id, theirs.eos_token_id, theirs.model_max_length) == (0, 1, 512)

    tokens = torch.tensor([ids * 3])
    model = transformers.AutoModelForCausalLM.from_pretrained(folder)
    torch.testing.assert_close(model(tokens).logits, ours(tokens), atol=1e-4, rtol=0)
    assert model.dtype == torch.float32
    assert (model.generation_config.bos_token_id, model.generation_config.eos_token_id) == (0, 1)
    assert ("lm_head.weight" in load_file(folder / "model.safetensors")) is not tied


@torch.no_grad()
def test_a_sharded_export_loads_in_both(tmp_path: Path) -> None:
    ours, tokens = our_model(), some_tokens(1, 20)
    write(ours.state_dict(), SHAPE, tmp_path / "export", dtype=torch.float32, max_shard_bytes=20_000)
    assert len(list((tmp_path / "export").glob("model-*.safetensors"))) > 3
    assert not (tmp_path / "export/model.safetensors").exists()
    torch.testing.assert_close(their_logits(tmp_path / "export", tokens), ours(tokens), atol=1e-4, rtol=0)
    assert torch.equal(read(tmp_path / "export")(tokens), ours(tokens))


def test_the_default_export_is_bf16_and_readable_by_others(tmp_path: Path) -> None:
    write(our_model(), SHAPE, tmp_path / "export")
    assert {p.dtype for p in read(tmp_path / "export").parameters()} == {torch.bfloat16}
    assert {p.dtype for p in read(tmp_path / "export", dtype=torch.float32).parameters()} == {torch.float32}
    modes = {path.stat().st_mode for path in (tmp_path / "export").iterdir()}
    assert len(modes) == 1
    assert sorted(path.name for path in tmp_path.iterdir()) == ["export"]


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
@pytest.mark.parametrize("shard_bytes", [5_000_000_000, 20_000, 5_000, 1])
def test_a_round_trip_gives_the_same_bytes(tmp_path: Path, tied: bool, dtype: torch.dtype, shard_bytes: int) -> None:
    theirs = their_model(rope_parameters=SCALED, tie_word_embeddings=tied).to(dtype)
    theirs.save_pretrained(tmp_path / "theirs", max_shard_size=shard_bytes)
    ours = read(tmp_path / "theirs")
    write(ours, ours.shape, tmp_path / "ours", dtype=dtype, max_shard_bytes=shard_bytes)
    files = sorted(path.name for path in (tmp_path / "theirs").glob("model*"))
    assert files == sorted(path.name for path in (tmp_path / "ours").glob("model*"))
    for file in files:
        a, b = (tmp_path / "theirs" / file).read_bytes(), (tmp_path / "ours" / file).read_bytes()
        assert a == b if file.endswith(".safetensors") else json.loads(a) == json.loads(b)


def test_writing_over_something(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder, ours = tmp_path / "export", our_model()
    folder.mkdir()
    write(ours, SHAPE, folder, max_shard_bytes=5_000)  # an empty folder is as good as none
    with pytest.raises(UserError, match="export is not empty"):
        write(ours, SHAPE, folder)
    write(ours, SHAPE, folder, overwrite=True)
    assert sorted(path.name for path in folder.iterdir()) == [
        "config.json", "generation_config.json", "model.safetensors",
    ]  # fmt: skip
    monkeypatch.chdir(folder)
    write(ours, SHAPE, ".", overwrite=True)
    (folder / "notes.txt").write_text("mine")
    with pytest.raises(UserError, match=r"notes\.txt"):
        write(ours, SHAPE, folder, overwrite=True)
    with pytest.raises(UserError, match="is a file"):
        write(ours, SHAPE, folder / "notes.txt")
    assert [path.name for path in tmp_path.iterdir()] == ["export"]


def test_a_full_disk_leaves_nothing_half_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(our_model(), SHAPE, tmp_path / "old")
    before = (tmp_path / "old/model.safetensors").read_bytes()

    def full(*_: object, **__: object) -> None:
        raise SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")

    monkeypatch.setattr(huggingface, "save_file", full)
    for folder in (tmp_path / "new", tmp_path / "old"):
        with pytest.raises(UserError, match=f"{folder}.*the disk is full"):
            write(our_model(), SHAPE, folder, overwrite=True)
    assert [path.name for path in tmp_path.iterdir()] == ["old"]
    assert (tmp_path / "old/model.safetensors").read_bytes() == before


def test_an_earlier_export_comes_back_when_the_new_one_cannot_take_its_place(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(our_model(), SHAPE, tmp_path / "old")
    rename = os.rename

    def refuse_new(source: Path, target: Path) -> None:
        if source.suffix == ".tmp":
            raise PermissionError(errno.EACCES, "Permission denied")
        rename(source, target)

    monkeypatch.setattr(os, "rename", refuse_new)
    with pytest.raises(UserError, match="old: permission is denied"):
        write(our_model(), SHAPE, tmp_path / "old", overwrite=True)
    assert [path.name for path in tmp_path.iterdir()] == ["old"]
    read(tmp_path / "old")


def test_an_export_refuses_what_does_not_fit(tmp_path: Path, tokenizer: TokenizerFile) -> None:
    state, folder = our_model().state_dict(), tmp_path / "export"
    big = ModelShape(1, 42, 14, 7, 6, 17, 300)
    not_one = tmp_path / "not.json"
    not_one.write_text('{"model": {"vocab": [1]}}')
    narrow = ModelShape(1, 10, 3, 3, 6, 17, 101)
    cases: list[tuple[Any, ModelShape, dict[str, Any], str]] = [
        ({**state, "extra.weight": state["norm.weight"]}, SHAPE, {}, r"extra\.weight"),
        ({k: v for k, v in state.items() if k != "norm.weight"}, SHAPE, {}, r"norm\.weight"),
        ({**state, "norm.weight": torch.ones(3)}, SHAPE, {}, r"norm\.weight.*\[3\]"),
        (state, SHAPE, {"tokenizer": tokenizer}, r"bpe\.json.*279.*vocab_size is 101"),
        (our_model(big), big, {"tokenizer": TokenizerFile(tokenizer.path, eos="<|end_of_txt|>")}, "end_of_text"),
        (our_model(big), big, {"tokenizer": TokenizerFile(tmp_path / "none.json")}, r"none\.json"),
        (our_model(big), big, {"tokenizer": TokenizerFile(not_one)}, r"not\.json"),
        (our_model(narrow), narrow, {}, r"d_model \(10\).*n_heads \(3\)"),
    ]
    for weights, shape, options, named in cases:
        with pytest.raises(UserError, match=named):
            write(weights, shape, folder, **options)
        assert not folder.exists()


# config.json

META_1B = {
    "architectures": ["LlamaForCausalLM"], "attention_bias": False, "attention_dropout": 0.0,
    "bos_token_id": 128000, "eos_token_id": 128001, "head_dim": 64, "hidden_act": "silu", "hidden_size": 2048,
    "initializer_range": 0.02, "intermediate_size": 8192, "max_position_embeddings": 131072, "mlp_bias": False,
    "model_type": "llama", "num_attention_heads": 32, "num_hidden_layers": 16, "num_key_value_heads": 8,
    "pretraining_tp": 1, "rms_norm_eps": 1e-05,
    "rope_scaling": {
        "factor": 32.0, "high_freq_factor": 4.0, "low_freq_factor": 1.0,
        "original_max_position_embeddings": 8192, "rope_type": "llama3",
    },
    "rope_theta": 500000.0, "tie_word_embeddings": True, "torch_dtype": "bfloat16",
    "transformers_version": "4.45.0.dev0", "use_cache": True, "vocab_size": 128256,
}  # fmt: skip


def test_the_published_config_is_the_preset() -> None:
    shape = config.load("llama3.2-1b").model
    assert shape_from_config(META_1B) == shape
    written = config_from_shape(shape, torch.bfloat16, 128000, 128001, 131072)
    assert written == {k: v for k, v in META_1B.items() if k not in ("pretraining_tp", "transformers_version")}


def test_every_style_of_config_is_read() -> None:
    old = {k: v for k, v in META_1B.items() if k not in ("head_dim", "num_key_value_heads", "tie_word_embeddings")}
    shape = shape_from_config({**old, "rope_scaling": None, "rope_theta": None, "rms_norm_eps": None})
    assert (shape.head_dim, shape.n_kv_heads, shape.tie_embeddings) == (64, 32, False)
    assert (shape.rope_theta, shape.rope_scaling, shape.norm_eps) == (10_000.0, None, 1e-6)

    scaled = {"factor": 8, "high_freq_factor": 4, "low_freq_factor": 1, "original_max_position_embeddings": 64}
    without = {k: v for k, v in META_1B.items() if not k.startswith("rope")}
    for rope in (
        {"rope_theta": 7.0, "rope_scaling": {"type": "llama3", **scaled}},
        {"rope_theta": 7.0, "rope_scaling": {"rope_type": "llama3", **scaled}},
        {"rope_theta": 7.0, "rope_parameters": {"rope_type": "llama3", **scaled}},
        {"rope_theta": 9.0, "rope_parameters": {"rope_type": "llama3", "rope_theta": 7.0, **scaled}},
    ):
        shape = shape_from_config({**without, **rope})
        assert (shape.rope_theta, shape.rope_scaling) == (7.0, RopeScaling(8.0, 1.0, 4.0, 64))


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"architectures": ["MistralForCausalLM"]}, "MistralForCausalLM"),
        ({"architectures": None, "model_type": "qwen2"}, "qwen2"),
        ({"attention_bias": True}, "attention_bias"),
        ({"mlp_bias": True}, "mlp_bias"),
        ({"hidden_act": "gelu"}, "gelu"),
        ({"quantization_config": {"quant_method": "fp8"}}, "quantization_config"),
        ({"rope_scaling": {"rope_type": "yarn", "factor": 4.0}}, "yarn"),
        ({"rope_parameters": {"rope_type": "linear", "factor": 4.0}}, "linear"),
        ({"rope_parameters": {"full_attention": {"rope_type": "default"}}}, "full_attention"),
        ({"rope_scaling": "llama3"}, "rope_scaling"),
        ({"partial_rotary_factor": 0.5}, "partial_rotary_factor"),
        ({"rope_scaling": {"rope_type": "llama3", "factor": 4.0}}, "low_freq_factor"),
        ({"hidden_size": None}, "hidden_size"),
        ({"hidden_size": "wide"}, "hidden_size.*'wide'"),
        ({"vocab_size": True}, "vocab_size"),
        ({"num_attention_heads": 0}, "num_attention_heads"),
        ({"num_hidden_layers": 1.5}, "num_hidden_layers"),
        ({"num_key_value_heads": 7}, "n_kv_heads"),
        ({"rms_norm_eps": float("nan")}, "rms_norm_eps"),
        ({"tie_word_embeddings": "yes"}, "tie_word_embeddings"),
    ],
)
def test_a_config_that_is_not_a_llama_is_refused(change: dict[str, Any], named: str) -> None:
    with pytest.raises(UserError, match=named):
        shape_from_config({**META_1B, **change})


# Folders that are not whole


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A good export in three shards or more."""
    write(our_model(), SHAPE, tmp_path / "export", dtype=torch.float32, max_shard_bytes=20_000)
    return tmp_path / "export"


def change_tensors(file: Path, **tensors: torch.Tensor | None) -> None:
    """Store a safetensors file again with tensors changed, added or (None) removed; `__` stands for a dot."""
    changed = load_file(file) | {name.replace("__", "."): tensor for name, tensor in tensors.items()}
    save_file({name: t.clone() for name, t in changed.items() if t is not None}, file)


def test_a_folder_that_is_not_whole_is_refused(folder: Path) -> None:
    def broken(name: str) -> Path:
        copy = folder.with_name(name)
        shutil.copytree(folder, copy)
        return copy

    second = next(path.name for path in folder.glob("model-00002-of-*.safetensors"))
    last = max(path.name for path in folder.glob("model-*.safetensors"))
    index = "model.safetensors.index.json"

    def refuses(folder: Path, named: str) -> None:
        with pytest.raises(UserError, match=named):
            read(folder)

    refuses(folder / "nowhere", "nowhere is not a folder")
    (broken("a") / "config.json").unlink()
    refuses(folder.with_name("a"), r"config\.json cannot be read")
    (broken("b") / "config.json").write_text("{")
    refuses(folder.with_name("b"), r"config\.json is not valid JSON")
    (broken("c") / "config.json").write_text("[]")
    refuses(folder.with_name("c"), r"config\.json holds no JSON object")
    (broken("d") / index).unlink()
    refuses(folder.with_name("d"), r"neither model\.safetensors nor")
    (broken("e") / index).write_text('{"weight_map": {"x": 1}}')
    refuses(folder.with_name("e"), "weight_map")
    (broken("f") / second).unlink()
    refuses(folder.with_name("f"), f"{second} is missing")
    (broken("g") / second).write_bytes((folder / second).read_bytes()[:-10])
    refuses(folder.with_name("g"), f"{second} is damaged")
    (broken("h") / second).write_bytes(b"\xff" * 100)
    refuses(folder.with_name("h"), f"{second} is damaged")
    (broken("i") / second).write_bytes(b"")
    refuses(folder.with_name("i"), f"{second} is damaged")
    change_tensors(broken("j") / last, model__norm__weight=None)
    refuses(folder.with_name("j"), r"model\.norm\.weight is missing")
    change_tensors(broken("k") / last, model__norm__weight=torch.ones(41))
    refuses(folder.with_name("k"), rf"model\.norm\.weight in .*{last} has the shape \[41\], .*\[42\]")
    change_tensors(broken("l") / last, model__norm__bias=torch.ones(42))
    refuses(folder.with_name("l"), r"model\.norm\.bias .*did you mean 'model\.norm\.weight'")
    change_tensors(broken("m") / last, model__norm__weight=torch.ones(42, dtype=torch.int8))
    refuses(folder.with_name("m"), r"model\.norm\.weight .*stored as I8")
    change_tensors(broken("n") / last, lm_head__weight=torch.zeros(101, 42))
    refuses(folder.with_name("n"), r"lm_head\.weight .*differ")


@torch.no_grad()
def test_a_tied_head_stored_twice_and_old_constants_are_read(folder: Path) -> None:
    last = max(folder.glob("model-*.safetensors"))
    weight = our_model().embedding.weight.clone()
    inv_freq = {"model__layers__0__self_attn__rotary_emb__inv_freq": torch.ones(3)}
    change_tensors(last, lm_head__weight=weight, **inv_freq)
    assert torch.equal(read(folder)(some_tokens(1, 9)), our_model()(some_tokens(1, 9)))


def test_mixed_precision_is_read_as_the_widest(tmp_path: Path) -> None:
    write(our_model(), SHAPE, tmp_path / "export")
    change_tensors(tmp_path / "export/model.safetensors", model__norm__weight=torch.full((42,), 1.001))
    model = read(tmp_path / "export")
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}
    assert (model.norm.weight == 1.001).all()
