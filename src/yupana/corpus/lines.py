"""C4's removal of lines, as a pass of datatrove's: a document keeps the lines that C4 keeps (quality.c4_line).

What went is counted by reason, with the first examples, a file a task. A document of which no line is left is dropped.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from yupana.corpus import quality
from yupana.files import write_json

NAME = "c4-lines"
EXAMPLES, EXCERPT = 3, 160


def kept(text: str, gone: dict[str, dict[str, Any]]) -> str:
    """The lines that C4 keeps, one under the other; the others are counted in `gone`: {reason: lines, bytes, examples}."""
    keep = []
    for line in filter(None, map(str.strip, text.splitlines())):
        reason = quality.c4_line(line)
        if reason is None:
            keep.append(line)
            continue
        of = gone.setdefault(reason, {"lines": 0, "bytes": 0, "examples": []})
        of["lines"] += 1
        of["bytes"] += len(line.encode())
        if len(of["examples"]) < EXAMPLES:
            of["examples"].append(line[:EXCERPT])
    return "\n".join(keep)


def step(removed: Any, folder: Path) -> Any:
    """The pass; `removed` writes down the documents of which nothing is left, `folder` gets the counts."""
    from datatrove.pipeline.base import PipelineStep

    class Lines(PipelineStep):
        """Takes lines out of documents, one by one."""

        type, name = "✂️ - LINES", NAME

        def run(self, data: Any, rank: int = 0, world_size: int = 1) -> Iterator[Any]:
            """Yield the documents of task `rank` with the lines that stay."""
            gone: dict[str, dict[str, Any]] = {}
            with removed as writer:
                for document in data:
                    text = kept(document.text, gone)
                    if text:
                        document.text = text
                        yield document
                    else:
                        document.metadata["filter_reason"] = "no line is left"
                        writer.write(document, rank)
            folder.mkdir(parents=True, exist_ok=True)
            write_json(folder / f"{rank:05d}.json", gone)

    return Lines()


def counted(folder: Path) -> list[dict[str, Any]]:
    """Lines and bytes that went by reason, with the first examples; the most bytes first."""
    total: dict[str, dict[str, Any]] = {}
    for path in sorted(folder.glob("*.json")):
        for reason, found in json.loads(path.read_text(encoding="utf-8")).items():
            of = total.setdefault(reason, {"reason": reason, "lines": 0, "bytes": 0, "examples": []})
            of["lines"] += found["lines"]
            of["bytes"] += found["bytes"]
            of["examples"] += found["examples"][: EXAMPLES - len(of["examples"])]
    return sorted(total.values(), key=lambda of: (-of["bytes"], of["reason"]))
