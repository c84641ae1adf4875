"""The forward pass, generation and initialisation by themselves; beside `transformers`: test_huggingface.py."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from yupana import config
from yupana.errors import UserError
from yupana.model.generate import choose, generate
from yupana.model.llama import INIT_STD, Cache, Llama
from yupana.model.shapes import ModelShape, RopeScaling

SHAPE = ModelShape(
    n_layers=2, d_model=42, n_heads=14, n_kv_heads=7, head_dim=6, d_ff=17, vocab_size=101,
    rope_scaling=RopeScaling(original_context=16),
)  # fmt: skip
PUBLISHED = {"llama3.2-1b": 1_235_814_400, "llama3.2-3b": 3_212_749_824, "llama3.1-8b": 8_030_261_248}


def sharp_model(shape: ModelShape = SHAPE, seed: int = 0) -> Llama:
    """A model whose weights are large enough for attention to choose: mistakes in it show in the logits."""
    model = Llama(shape)
    model.initialise(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() == 2:
                parameter.mul_(15)
    return model.eval()


def some_tokens(*size: int, vocab: int = SHAPE.vocab_size) -> torch.Tensor:
    return torch.randint(0, vocab, size, generator=torch.Generator().manual_seed(1))


@torch.no_grad()
@settings(max_examples=15, deadline=None)
@given(lengths=st.lists(st.integers(1, 12), min_size=1, max_size=5))
def test_a_packed_row_equals_each_document_alone(lengths: list[int]) -> None:
    model = sharp_model()
    documents = some_tokens(sum(lengths)).split(lengths)
    ids = torch.cat([torch.full((length,), number) for number, length in enumerate(lengths)])
    packed = model(torch.cat(documents)[None], document_ids=ids[None])[0].split(lengths)
    for alone, together in zip(documents, packed, strict=True):  # RoPE is relative: where a document starts is lost
        torch.testing.assert_close(together, model(alone[None])[0], atol=1e-4, rtol=0)


@torch.no_grad()
def test_rows_of_a_batch_have_their_own_documents() -> None:
    model, tokens = sharp_model(), some_tokens(2, 10)
    ids = torch.tensor([[0] * 10, [0] * 4 + [1] * 6])
    logits = model(tokens, document_ids=ids)
    torch.testing.assert_close(logits[0], model(tokens[:1])[0], atol=1e-4, rtol=0)
    torch.testing.assert_close(logits[1, 4:], model(tokens[1:, 4:])[0], atol=1e-4, rtol=0)


@torch.no_grad()
def test_no_token_sees_a_later_one() -> None:
    model, tokens = sharp_model(), some_tokens(1, 12)
    changed = tokens.clone()
    changed[0, 7:] = (changed[0, 7:] + 1) % SHAPE.vocab_size
    before, after = model(tokens)[0], model(changed)[0]
    torch.testing.assert_close(after[:7], before[:7], atol=1e-5, rtol=0)
    assert not torch.allclose(after[7:], before[7:], atol=1e-2)


@torch.no_grad()
@pytest.mark.parametrize("pieces", [[24], [1] * 24, [10, 1, 1, 5, 7]])
def test_a_cache_gives_the_same_logits(pieces: list[int]) -> None:
    model, tokens = sharp_model(), some_tokens(3, 24)
    cache = Cache(SHAPE, batch=3, room=24, like=model.output_weight)
    logits = torch.cat([model(piece, cache=cache) for piece in tokens.split(pieces, dim=1)], dim=1)
    torch.testing.assert_close(logits, model(tokens), atol=1e-4, rtol=0)


@torch.no_grad()
def test_generation_is_the_likeliest_token_each_time_and_stops() -> None:
    model, prompt = sharp_model(), [5, 6, 7]
    tokens = list(prompt)
    for _ in range(12):
        tokens.append(int(model(torch.tensor([tokens]))[0, -1].argmax()))
    expected = tokens[3:]
    assert list(generate(model, prompt, 12, temperature=0)) == expected
    stop = expected[4]
    assert list(generate(model, prompt, 12, temperature=0, stop=[stop])) == expected[: expected.index(stop)]


def test_sampling_is_a_function_of_the_seed_and_stays_in_the_top_k() -> None:
    model = sharp_model()
    first, again, other = (list(generate(model, [1], 20, temperature=2.0, seed=seed)) for seed in (0, 0, 1))
    assert first == again != other
    logits = torch.randn(50, generator=torch.Generator().manual_seed(0))
    generator = torch.Generator().manual_seed(0)
    drawn = {choose(logits, 5.0, 3, generator) for _ in range(200)}
    assert drawn == set(logits.topk(3).indices.tolist())


@pytest.mark.parametrize(
    ("prompt", "settings", "named"),
    [
        ([], {}, "prompt"),
        ([1], {"max_tokens": 0}, "max_tokens"),
        ([1], {"temperature": -1.0}, "temperature"),
        ([1], {"top_k": -1}, "top_k"),
    ],
)
def test_generation_refuses(prompt: list[int], settings: dict[str, float], named: str) -> None:
    with pytest.raises(UserError, match=named):
        list(generate(sharp_model(), prompt, **{"max_tokens": 1, **settings}))


def test_initial_weights_are_normal_and_each_its_own() -> None:
    shape = ModelShape(n_layers=2, d_model=64, n_heads=4, n_kv_heads=2, head_dim=16, d_ff=128, vocab_size=512,
                       tie_embeddings=False)  # fmt: skip
    model = Llama(shape)
    model.initialise(seed=0)
    matrices = {name: p.detach() for name, p in model.named_parameters() if p.dim() == 2}
    assert all((p == 1).all() for p in model.parameters() if p.dim() == 1)
    for name, matrix in matrices.items():
        error = INIT_STD / math.sqrt(matrix.numel())  # of the mean; of the standard deviation, 1/√2 of it
        assert abs(matrix.mean()) < 5 * error, name
        assert abs(matrix.std() - 0.02) < 5 * error, name
    starts = {tuple(matrix.flatten()[:8].tolist()) for matrix in matrices.values()}
    assert len(starts) == len(matrices)  # equal shapes included: layer 0 and 1, embedding and head


def test_initial_weights_are_a_function_of_the_seed_alone() -> None:
    first, again, other, half = Llama(SHAPE), Llama(SHAPE), Llama(SHAPE), Llama(SHAPE).bfloat16()
    torch.manual_seed(1)
    first.initialise(3)
    torch.manual_seed(2)
    again.initialise(3)
    other.initialise(4)
    half.initialise(3)
    for a, b, c, d in zip(*(m.parameters() for m in (first, again, other, half)), strict=True):
        assert torch.equal(a, b)
        assert torch.equal(a.bfloat16(), d)
        assert a.dim() == 1 or not torch.equal(a, c)


@pytest.mark.parametrize("preset", PUBLISHED)
def test_published_sizes(preset: str) -> None:
    shape = config.load(preset).model
    with torch.device("meta"):
        model = Llama(shape)
    assert shape.parameters == PUBLISHED[preset]
    assert sum(parameter.numel() for parameter in model.parameters()) == PUBLISHED[preset]


@settings(max_examples=25, deadline=None)
@given(
    n_layers=st.integers(1, 3), d_model=st.integers(1, 20), groups=st.integers(1, 3), n_kv_heads=st.integers(1, 3),
    half_head=st.integers(1, 5), d_ff=st.integers(1, 20), vocab_size=st.integers(1, 20), tied=st.booleans(),
)  # fmt: skip
def test_counted_parameters_are_the_models(
    n_layers: int, d_model: int, groups: int, n_kv_heads: int, half_head: int, d_ff: int, vocab_size: int, tied: bool
) -> None:
    shape = ModelShape(n_layers, d_model, groups * n_kv_heads, n_kv_heads, 2 * half_head, d_ff, vocab_size, tied)
    model = Llama(shape)
    assert shape.parameters == sum(parameter.numel() for parameter in model.parameters())
    assert model(torch.zeros(2, 3, dtype=torch.long)).shape == (2, 3, vocab_size)


@pytest.mark.parametrize(
    "sizes",
    [
        {"n_layers": 0}, {"d_model": -1}, {"n_heads": 4, "n_kv_heads": 3}, {"head_dim": 7}, {"vocab_size": 0},
        {"rope_theta": 0.0}, {"norm_eps": 0.0},
    ],
)  # fmt: skip
def test_shapes_refuse(sizes: dict[str, float]) -> None:
    with pytest.raises(UserError, match=f"model.{next(iter(sizes))}"):
        ModelShape(**sizes)


@pytest.mark.parametrize("sizes", [{"factor": 0.0}, {"high_freq_factor": 1.0}, {"original_context": 0}])
def test_rope_scaling_refuses(sizes: dict[str, float]) -> None:
    with pytest.raises(UserError, match=next(iter(sizes))):
        RopeScaling(**sizes)
