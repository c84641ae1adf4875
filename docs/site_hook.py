"""What the site does to the pages, which are written to be read in the repository as they are.

Formulas become MathML, which browsers draw by themselves; a link to a file outside docs/ becomes its name, since a site
holds no source.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

CODE = re.compile(r"(^```.*?^```$|`[^`\n]+`)", re.M | re.S)
MATH = re.compile(r"\$\$(?P<block>.+?)\$\$|(?<![\w\\$])\$(?P<inline>[^$\s](?:[^$\n]*[^$\s])?|[^$\s])\$(?!\w)", re.S)
OUTSIDE = re.compile(r"\[(?P<text>[^\]]+)\]\((?:\.\./)+(?P<path>[^)\s]+)\)")


def on_config(config: Any) -> Any:
    """Every page of results/ under "Measured", by its own title."""
    pages = sorted(Path(config["docs_dir"], "results").glob("*.md"))
    config["nav"] = [*config["nav"], {"Measured": [f"results/{page.name}" for page in pages]}]
    return config


def on_page_markdown(markdown: str, **_: Any) -> str:
    """A page's text before mkdocs reads it."""
    markdown = OUTSIDE.sub(lambda m: f"{m['text']} ({m['path']})" if m["path"] not in m["text"] else m["text"], markdown)
    parts = CODE.split(markdown)  # code stands at the odd places
    return "".join(part if n % 2 else MATH.sub(_mathml, part) for n, part in enumerate(parts))


def _mathml(found: re.Match[str]) -> str:
    from latex2mathml.converter import convert

    if found["block"]:
        return f"\n<div>{convert(found['block'].strip(), display='block')}</div>\n"
    return f"<span>{convert(found['inline'])}</span>"  # a line that begins with <math> would be a block
