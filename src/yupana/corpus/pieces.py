"""A long text in pieces that are tokenised one by one, with the tokens of the whole.

Byte-level tokenizers first split a text into words and never join two. Both ways of splitting used here (GPT-2's and
Llama 3's) always split between a line end and a character that is no white space, and between a letter and a space
that a letter follows: there a text is cut. Only where nothing of the kind comes for long (mebi-characters of digits, or of
a script without spaces, on one line) is it cut anyway, so that memory is bounded: the tokens still give the text back.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

PIECE = 1 << 20
"""Characters of a piece at most, where the text can be cut; a token takes about 100 bytes while it is made."""
FORCED = 4
"""Pieces: a text is cut at so many of them, whatever is there."""
_NEAR_END = 4096
_CUT = re.compile(r"(?<=\n)(?=\S)|(?<=[A-Za-z])(?= [A-Za-z])")


def pieces(text: str, longest: int = PIECE) -> Iterator[str]:
    """The text in pieces of at most `longest` characters; up to FORCED times as long where it cannot well be cut."""
    begin = 0
    while len(text) - begin > longest:
        cut = _last_cut(text, begin, begin + longest)
        if cut is None:
            end = min(len(text), begin + FORCED * longest)
            after = _CUT.search(text, begin + longest, end)
            cut = after.start() if after else end
        yield text[begin:cut]
        begin = cut
    if begin < len(text) or not text:
        yield text[begin:]


def _last_cut(text: str, begin: int, end: int) -> int | None:
    """The last place after `begin` and up to `end` where the text can be cut; looked for near the end first."""
    for start in (max(begin + 1, end - _NEAR_END), begin + 1):
        found = [match.start() for match in _CUT.finditer(text, start, min(len(text), end + 2)) if match.start() <= end]
        if found:
            return found[-1]
    return None
