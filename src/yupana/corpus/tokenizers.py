"""Tokenizers: bytes, a byte-level BPE trained here, Llama 3's own, or any tokenizer.json: all become one thing.

bytes        a token a byte
bpe:VOCAB    byte-level BPE trained on the corpus, VOCAB entries with the specials
llama3       Llama 3's, from the installed `llama-models` package
a folder     one with a tokenizer.json, or that file itself

The thing is a `tokenizers.Tokenizer` saved as tokenizer.json. Text is only ever text: a document that spells out
"<|end_of_text|>" gets the bytes of those characters, never the special token.
"""

from __future__ import annotations

import base64
import contextlib
import hashlib
import importlib.util
import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from yupana.errors import UserError, did_you_mean
from yupana.files import cache_folder, write_atomically

CACHED = 1
"""Of the way in which Llama 3's tokenizer is made; another number makes it anew."""
BOS, EOS = "<|begin_of_text|>", "<|end_of_text|>"

LLAMA3_PATTERN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+"
    r"|\s+(?!\S)|\s+"
)
"""How Llama 3 cuts text into words before merging; a word is never merged with its neighbour."""

LLAMA3_SPECIALS = [
    BOS,
    EOS,
    "<|reserved_special_token_0|>",
    "<|reserved_special_token_1|>",
    "<|finetune_right_pad_id|>",
    "<|step_id|>",
    "<|start_header_id|>",
    "<|end_header_id|>",
    "<|eom_id|>",
    "<|eot_id|>",
    "<|python_tag|>",
    "<|image|>",
    *(f"<|reserved_special_token_{number}|>" for number in range(2, 246)),
]
"""Ids 128 000 … 128 255, in Meta's order (llama-models 0.3.0)."""


def _byte_characters() -> list[str]:
    """The printable character that stands for each byte: itself where it is one, else one from U+0100 on (GPT-2)."""
    printable = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    others = (chr(0x100 + number) for number in range(256))
    return [chr(byte) if byte in printable else next(others) for byte in range(256)]


_SPELLING = dict(enumerate(_byte_characters()))


def load(spec: str, texts: Iterable[str] = ()) -> Any:
    """The tokenizer that `spec` names, as a `tokenizers.Tokenizer`; `texts` are what a bpe is trained on.

    Raises UserError for a spec that names none, a missing package, and a file that is no tokenizer.
    """
    identity(spec)
    if spec == "bytes":
        made = _bytes()
    elif spec.startswith("bpe:"):
        made = _trained(_bpe_size(spec), texts)
    elif spec == "llama3":
        made = _llama3()
    else:
        return from_file(_json_file(spec))
    return _only_text(made)


def from_file(path: str | Path) -> Any:
    """The tokenizer in a tokenizer.json. Raises UserError when it is none."""
    from tokenizers import Tokenizer

    try:
        tokenizer = Tokenizer.from_file(str(path))
    except Exception as error:  # the library raises plain Exception
        raise UserError(
            f"{path} is not a tokenizer.json of the tokenizers library ({' '.join(str(error).split())[:100]})"
        ) from error
    tokenizer.no_padding()
    tokenizer.no_truncation()
    return _only_text(tokenizer)


def identity(spec: str) -> str:
    """What tells this tokenizer from others before it is made. Raises UserError for a spec that names none."""
    if spec.startswith("bpe:"):
        return f"bpe:{_bpe_size(spec)}"
    if spec in ("bytes", "llama3"):
        return spec
    return hashlib.sha256(_json_file(spec).read_bytes()).hexdigest()


def bos_and_eos(tokenizer: Any, spec: str) -> tuple[int, int]:
    """The ids that begin and end a document. Raises UserError when a foreign tokenizer says neither."""
    names = (BOS, EOS)
    if tokenizer.token_to_id(BOS) is None or tokenizer.token_to_id(EOS) is None:
        beside = _json_file(spec).with_name("tokenizer_config.json")
        config = json.loads(beside.read_text(encoding="utf-8")) if beside.is_file() else {}
        named = [config.get(f"{which}_token") for which in ("bos", "eos")]
        names = tuple(name["content"] if isinstance(name, dict) else name for name in named)  # type: ignore[assignment]
    ids = [None if name is None else tokenizer.token_to_id(name) for name in names]
    if ids[1] is None:
        raise UserError(
            f"the tokenizer {spec} has neither {EOS} nor an eos_token in a tokenizer_config.json beside it: "
            "documents could not be told apart; use another tokenizer"
        )
    return ids[1] if ids[0] is None else ids[0], ids[1]  # some have one token for both ends


def canonical(tokenizer: Any) -> bytes:
    """The tokenizer.json of a tokenizer: the same bytes for the same tokenizer."""
    return tokenizer.to_str(pretty=False).encode()


def token_bytes(tokenizer: Any) -> np.ndarray:
    """UTF-8 bytes that each token stands for, uint16 [vocab]; specials 0."""
    byte_level = any(b'"ByteLevel"' in part.__getstate__() for part in (tokenizer.decoder, tokenizer.pre_tokenizer) if part)
    vocab = tokenizer.get_vocab(with_added_tokens=True)
    lengths = np.zeros(max(vocab.values()) + 1, dtype=np.uint16)
    for token, number in vocab.items():
        if byte_level:  # each character of the entry is one byte
            lengths[number] = len(token)
        elif len(token) == 6 and token.startswith("<0x"):  # SentencePiece's spelling of one byte
            lengths[number] = 1
        else:
            lengths[number] = len(token.replace("▁", " ").encode())
    for number, added in tokenizer.get_added_tokens_decoder().items():
        lengths[number] = 0 if added.special else len(added.content.encode())
    return lengths


def ranks(tokenizer: Any, spec: str = "") -> dict[bytes, int] | None:
    """The ranks with which tiktoken gives the ids of this tokenizer; None where no ranks do.

    They do for Llama 3's and every other one that cuts words as it does, takes a whole word that is an entry as it is, and
    merges every pair of entries that makes an entry, in the order of what is made.
    """
    from tokenizers import Tokenizer, models

    if spec == "llama3":  # made of them
        return dict(_llama3_ranks())
    empty = _llama3_words(Tokenizer(models.BPE(ignore_merges=True)))
    described, wanted = (json.loads(each.to_str()) for each in (tokenizer, empty))
    vocab, merges = (described["model"].pop(part, None) for part in ("vocab", "merges"))
    wanted["model"] = {key: value for key, value in wanted["model"].items() if key not in ("vocab", "merges")}
    if any(described[part] != wanted[part] for part in ("normalizer", "pre_tokenizer", "model")):
        return None
    byte_of = {character: byte for byte, character in enumerate(_byte_characters())}
    if not all(added["special"] for added in described["added_tokens"]) or not byte_of.keys() >= set("".join(vocab)):
        return None
    found = {bytes(byte_of[character] for character in token): rank for token, rank in vocab.items()}
    return found if [list(merge) for merge in _spelled_merges(found)] == merges else None


def _only_text(tokenizer: Any) -> Any:
    tokenizer.encode_special_tokens = True
    return tokenizer


def _bytes() -> Any:
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers

    vocab = {character: byte for byte, character in enumerate(_byte_characters())}
    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    tokenizer.decoder = decoders.ByteLevel()
    return _with_specials(tokenizer, [BOS, EOS])


def _trained(size: int, texts: Iterable[str]) -> Any:
    """A byte-level BPE of exactly `size` entries; too little text leaves reserved ones, as Llama 3 has them."""
    from tokenizers import Tokenizer, models, pre_tokenizers, trainers

    tokenizer = _llama3_words(Tokenizer(models.BPE()))
    trainer = trainers.BpeTrainer(
        vocab_size=size - 2, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False
    )
    tokenizer.train_from_iterator(iter(texts), trainer)
    missing = size - 2 - tokenizer.get_vocab_size()
    reserved = [f"<|reserved_special_token_{number}|>" for number in range(missing)]
    return _with_specials(tokenizer, [BOS, EOS, *reserved])


def _llama3() -> Any:
    """Llama 3's tokenizer, from the cache where it was made before: making it takes a second or two."""
    import tokenizers
    from tokenizers import Tokenizer, models

    made_of = f"{hashlib.sha256(_llama3_file().read_bytes()).hexdigest()} {tokenizers.__version__} {CACHED}"
    cached = cache_folder() / f"llama3-{hashlib.sha256(made_of.encode()).hexdigest()[:16]}.tokenizer"
    with contextlib.suppress(OSError):
        digest, _, written = cached.read_bytes().partition(b"\n")
        if digest.decode(errors="replace") == hashlib.sha256(written).hexdigest():
            return Tokenizer.from_str(written.decode())
    ranks = dict(_llama3_ranks())
    vocab = {_spelled(token): rank for token, rank in ranks.items()}
    merges = _spelled_merges(ranks)
    tokenizer = _llama3_words(Tokenizer(models.BPE(vocab=vocab, merges=merges, ignore_merges=True)))
    tokenizer = _with_specials(tokenizer, LLAMA3_SPECIALS)
    with contextlib.suppress(OSError, UserError):  # a cache is no duty
        written = canonical(tokenizer)
        cached.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(cached, hashlib.sha256(written).hexdigest().encode() + b"\n" + written)
    return tokenizer


def _llama3_file() -> Path:
    package = importlib.util.find_spec("llama_models")  # finding is not importing: that would load torch
    places = [Path(place, "llama3", "tokenizer.model") for place in (package and package.submodule_search_locations) or []]
    path = next((place for place in places if place.is_file()), None)
    if path is None:
        raise UserError("the llama3 tokenizer needs the llama-models package: pip install 'yupana[corpus]'")
    return path


def _llama3_ranks() -> Iterator[tuple[bytes, int]]:
    for line in _llama3_file().read_bytes().splitlines():
        if line:
            token, rank = line.split()
            yield base64.b64decode(token), int(rank)


def _merges(ranks: dict[bytes, int]) -> Iterator[tuple[bytes, bytes]]:
    """Every pair of entries that makes an entry, by the rank of what it makes.

    tiktoken joins whichever neighbours make the entry of lowest rank, however that entry was first learnt; so all of
    its splits are merges, not the one that training made.
    """
    for token in sorted(ranks, key=ranks.__getitem__):
        splits = [(token[:at], token[at:]) for at in range(1, len(token)) if token[:at] in ranks and token[at:] in ranks]
        if len(splits) > 1:
            splits.sort(key=lambda pair: (ranks[pair[0]], ranks[pair[1]]))
        yield from splits


def _spelled_merges(ranks: dict[bytes, int]) -> list[tuple[str, str]]:
    spelled = {token: _spelled(token) for token in ranks}
    return [(spelled[left], spelled[right]) for left, right in _merges(ranks)]


def _spelled(token: bytes) -> str:
    """A printable character for each byte, as a tokenizer.json spells entries."""
    return token.decode("latin-1").translate(_SPELLING)


def _llama3_words(tokenizer: Any) -> Any:
    """Cut text as Llama 3 does, then spell its bytes as characters."""
    from tokenizers import Regex, decoders, pre_tokenizers

    words = pre_tokenizers.Split(Regex(LLAMA3_PATTERN), behavior="isolated")
    spelling = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([words, spelling])
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer


def _with_specials(tokenizer: Any, names: list[str]) -> Any:
    """Add the specials after the vocabulary; encoding with add_special_tokens begins a text with BOS, as Llama 3's."""
    from tokenizers import AddedToken, processors

    tokenizer.add_special_tokens([AddedToken(name, special=True, normalized=False) for name in names])
    bos = (BOS, tokenizer.token_to_id(BOS))
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{BOS} $A", pair=f"{BOS} $A {BOS}:1 $B:1", special_tokens=[bos]
    )
    return tokenizer


def _bpe_size(spec: str) -> int:
    size = spec.removeprefix("bpe:").replace("_", "")
    if not size.isascii() or not size.isdigit():
        raise UserError(f"the tokenizer '{spec}' has no size: write bpe:VOCAB, for example bpe:4096")
    if int(size) < 258:
        raise UserError(f"the tokenizer '{spec}' is too small: 256 bytes and 2 specials make 258 entries at least")
    return int(size)


def _json_file(spec: str) -> Path:
    path = Path(spec)
    if path.is_dir() and not (path / "tokenizer.json").is_file():
        raise UserError(f"the folder {spec} has no tokenizer.json: name one that has, or bytes, bpe:VOCAB or llama3")
    path = path / "tokenizer.json" if path.is_dir() else path
    if not path.is_file():
        raise UserError(
            f"there is no tokenizer '{spec}'{did_you_mean(spec, ['bytes', 'bpe:4096', 'llama3'])}: "
            "give bytes, bpe:VOCAB, llama3, or a folder with a tokenizer.json"
        )
    return path
