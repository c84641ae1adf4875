"""Whether Llama 3's ids are the same however they are made: a command of corpus.py."""

from __future__ import annotations

import random
from typing import Any


def llama3_of_its_authors() -> Any:
    """The tokenizer in the class that comes with the models (package llama-models)."""
    from llama_models.llama3.tokenizer import Tokenizer

    return Tokenizer.get_instance()


def same(texts: list[str], strings: int, seed: int) -> dict[str, Any]:
    """Ids of varied strings three ways: as preparing makes them, as Llama 3's authors do, and as the tokenizers library.

    A third are pieces of the texts cut anywhere, a third mixtures of scripts, spaces, digits, emoji and marks, a third
    random bytes read as UTF-8, or pieces of the texts with bytes broken.
    """
    import numpy as np

    from yupana.corpus import tokenizers
    from yupana.corpus.encode import Encoder

    theirs, ours = llama3_of_its_authors(), tokenizers.load("llama3")
    text = "".join(texts)
    generator, seen, different, tokens = random.Random(seed), 0, {"authors": 0, "library": 0}, 0
    with Encoder("llama3", ours, np.dtype("<u4")) as encoder:
        while seen < strings:
            batch = [varied(text, generator) for _ in range(min(20_000, strings - seen))]
            library = ours.encode_batch_fast(batch, add_special_tokens=False)
            for (one, found), other in zip(encoder.stream(batch), library, strict=True):
                ids = found.tolist()
                different["authors"] += ids != theirs.encode(one, bos=False, eos=False)
                different["library"] += ids != other.ids
                tokens += len(ids)
            seen += len(batch)
    return {"strings": seen, "tokens": tokens, "different_from": different, "through_tiktoken": encoder.fast is not None}


RANGES = [
    (0x20, 0x7F), (0x20, 0x7F), (0xA0, 0x250), (0x300, 0x370), (0x370, 0x530), (0x590, 0x700), (0x900, 0xE00),
    (0xE00, 0x1200), (0x2000, 0x2070), (0x20A0, 0x2400), (0x3000, 0x3100), (0x4E00, 0x9FFF), (0xAC00, 0xD7A4),
    (0x1F300, 0x1FAFF), (0, 0xD800), (0xE000, 0x110000),
]  # fmt: skip
"""Of code points: ASCII twice, accents, marks, Greek and Cyrillic, Hebrew and Arabic, Indic, Thai to Ethiopic, spaces and
signs, kana, Han, Hangul, emoji, anything."""
BITS = [
    "'ll", "'S", " 's", "\r\n", "\n\n\n", "\t\t", "   ", "\u3000", "\u2028", "\u200d", "👩\u200d👩\u200d👧", "🇵🇪",
    "<|eot_id|>", "<|begin_of_text|>", "1234567", "٣٤", "½", "\u212a", "ſ", "İ", "\0", "\ufffd", "...", "=" * 9, "https://",
    "e\u0301",
]  # fmt: skip


def varied(text: str, generator: random.Random) -> str:
    """A string of up to about 100 characters of one of the three kinds."""
    kind, length = generator.random(), int(100 * generator.random() ** 2) + 1
    begin = generator.randrange(len(text))
    if kind < 0.33:
        return text[begin : begin + length]
    if kind < 0.66:
        made = ""
        while len(made) < length:
            low, high = generator.choice(RANGES)
            made += "".join(chr(generator.randrange(low, high)) for _ in range(generator.randrange(1, 6)))
            made += generator.choice(BITS) if generator.random() < 0.4 else ""
        return made
    if kind < 0.9:
        broken = bytearray(text[begin : begin + length].encode())
        for _ in range(1 + len(broken) // 20):
            broken[generator.randrange(len(broken))] = generator.randrange(256)
        return broken.decode(errors="replace")
    return generator.randbytes(length).decode(errors="replace")
