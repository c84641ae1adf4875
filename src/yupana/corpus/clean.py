"""Filters and near-duplicate removal before tokenising, as pipelines of datatrove, whose executors run them.

The rules are those that `yupana corpus explore` shows (quality.py), so that a corpus loses what exploring it said it
would; near-duplicates go last (near.py). A pipeline is cut into tasks; a finished task leaves a
mark, so that after a kill only unfinished ones run again. How many tasks there are decides the order of the documents,
and is part of what a corpus was asked to be; how many run at once is not.

    kept/      what the filters left, a file a task (JSON lines)
    unique/    what near-duplicate removal left of that
    removed/   every document that went: id, filter, reason, bytes, and how it began
    lines/     lines that went out of documents, counted by reason (c4-lines)
    skipped/   what could not be read, counted by reason
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import json
import os
import signal
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from yupana.corpus import executors, lines, near, quality
from yupana.corpus import words as w
from yupana.corpus.sources import Skipped, documents
from yupana.errors import UserError, did_you_mean
from yupana.files import write_json

FAMILIES = tuple(dict.fromkeys(rule.family for rule in quality.RULES))
NEAR = "near-duplicates"
LOOKED_AT = 4 << 20
"""Characters of a document that the rules look at, as in exploring."""
EXCERPT = 160


def check_filters(names: Sequence[str]) -> None:
    """Raise UserError for a filter that there is not, or that cannot work here."""
    for name in names:
        language = name.startswith("language:") and len(name) > len("language:")
        if name not in (*FAMILIES, lines.NAME) and not language:
            known = [*FAMILIES, lines.NAME, "language:en"]
            raise UserError(f"there is no filter '{name}'{did_you_mean(name, known)}: the filters are {', '.join(known)}")
        if language:
            _language_of("")
    if len(set(names)) < len(names):
        raise UserError("a filter is named twice: name each once")
    try:
        import datatrove  # noqa: F401
    except ImportError as error:
        raise UserError("filters and near-duplicate removal need datatrove: pip install 'yupana[corpus]'") from error


def clean(
    sources: Sequence[str],
    text_field: str,
    work: Path,
    filters: Sequence[str],
    near_duplicates: bool,
    tasks: int,
    workers: int | None,
    executor: str,
    told: Callable[[str], None],
) -> Path:
    """Filter `sources` in the folder `work`; returns the folder of JSON lines that is left.

    Called again after a kill, it goes on with the unfinished tasks. Raises UserError when nothing is left.
    """
    with _quiet(work / "log.txt"):

        def run(name: str, steps: list[Any], parts: int) -> None:
            executors.run(executor, steps, parts, workers, work / "marks" / name)

        told(f"filtering ({', '.join(filters)})" if filters else "reading")
        run("filter", _filters(list(sources), text_field, work, filters), tasks)
        kept = work / "kept"
        if near_duplicates:
            told("removing near-duplicates")
            gone = _Removed(work / "removed" / NEAR, NEAR)
            kept = near.deduplicate(kept, work, tasks, gone, run)
    if not any(path.stat().st_size for path in kept.glob("*.jsonl")):
        raise UserError(
            f"{', '.join(filters) or NEAR} leave no document of {', '.join(sources)} "
            f"({_counts(removed(work))}): use other filters, or look at them with yupana corpus explore"
        )
    return kept


def removed(work: Path) -> list[dict[str, Any]]:
    """Every document that went: {id, filter, reason, bytes, excerpt}, always in the same order."""
    return [
        json.loads(line)
        for path in sorted((work / "removed").glob("*/*.jsonl"))
        for line in path.read_text(encoding="utf-8").splitlines()
    ]


def skipped(work: Path) -> Skipped:
    """What could not be read."""
    total = Skipped()
    for path in sorted((work / "skipped").glob("*.json")):
        found = json.loads(path.read_text(encoding="utf-8"))
        for reason, count in found["counts"].items():
            total.counts[reason] = total.counts.get(reason, 0) + count
            total.first.setdefault(reason, found["first"][reason])
    return total


def summary(gone: Iterable[dict[str, Any]], examples: int = 3) -> list[dict[str, Any]]:
    """Documents and bytes that went, by filter and reason, with the first examples; the most bytes first."""
    by_reason: dict[tuple[str, str], dict[str, Any]] = {}
    for entry in gone:
        key = entry["filter"], entry["reason"]
        of = by_reason.setdefault(key, {"filter": key[0], "reason": key[1], "documents": 0, "bytes": 0, "examples": []})
        of["documents"] += 1
        of["bytes"] += entry["bytes"]
        if len(of["examples"]) < examples:
            of["examples"].append({"id": entry["id"], "excerpt": entry["excerpt"]})
    return sorted(by_reason.values(), key=lambda of: (-of["bytes"], of["filter"], of["reason"]))


def told_as_text(names: Sequence[str], cleaning: dict[str, Any]) -> str:
    """The report that lies in a corpus: what each filter removed, with examples."""
    kept, gone = cleaning["kept"], cleaning["removed"]
    told = [
        f"# What was removed from {', '.join(names)}",
        "",
        f"Filters, in this order: {', '.join([*cleaning['filters'], *([NEAR] if cleaning['near_duplicates'] else [])])}. "
        f"Kept: {kept['documents']:,} documents, {kept['bytes']:,} bytes. Every document that went is in "
        "removed.jsonl.gz.",
        "",
        "| filter | reason | documents | bytes |",
        "| --- | --- | ---: | ---: |",
        *(f"| {of['filter']} | {of['reason']} | {of['documents']:,} | {of['bytes']:,} |" for of in gone),
    ]
    for of in gone:
        told += ["", f"## {of['filter']}: {of['reason']}", ""]
        told += [f"- `{example['id']}`: {_code(example['excerpt'])}" for example in of["examples"]]
    if cleaning.get("lines"):
        told += ["", "## Lines taken out of documents", "", "| reason | lines | bytes |", "| --- | ---: | ---: |"]
        told += [f"| {of['reason']} | {of['lines']:,} | {of['bytes']:,} |" for of in cleaning["lines"]]
        told += ["", *(f"- {of['reason']}: {_code(example)}" for of in cleaning["lines"] for example in of["examples"])]
    return "\n".join(told) + "\n"


def _code(excerpt: str) -> str:
    return f"`{' '.join(excerpt.split()).replace('`', chr(39))}`"


def _filters(sources: list[str], text_field: str, work: Path, filters: Sequence[str]) -> list[Any]:
    """Read, every filter in turn, write."""
    from datatrove.pipeline.writers.jsonl import JsonlWriter

    steps = [_reader(sources, text_field, work / "skipped")]
    for number, name in enumerate(filters):
        gone = _Removed(work / "removed" / f"{number}", name)
        steps.append(lines.step(gone, work / "lines") if name == lines.NAME else _rule(name, gone))
    return [*steps, JsonlWriter(str(work / "kept"), compression=None)]


class _Removed:
    """Writes down the documents that one filter takes out; stands where datatrove expects its exclusion writer."""

    def __init__(self, folder: Path, name: str):
        self.folder, self.name = folder, name
        self.file: Any = None

    def __enter__(self) -> _Removed:
        return self

    def __exit__(self, *_: object) -> None:
        if self.file is not None:
            self.file.close()
            self.file = None

    def write(self, document: Any, rank: int = 0) -> None:
        """Called by datatrove for each document that goes."""
        if self.file is None:
            self.folder.mkdir(parents=True, exist_ok=True)
            self.file = open(self.folder / f"{rank:05d}.jsonl", "w", encoding="utf-8")  # noqa: SIM115 - until __exit__
        entry = {
            "id": document.id,
            "filter": self.name,
            "reason": document.metadata.get("filter_reason", "like a document that is kept"),
            "bytes": len(document.text.encode()),
            "excerpt": document.text[:EXCERPT],
        }
        self.file.write(json.dumps(entry, ensure_ascii=False) + "\n")


def _reader(sources: list[str], text_field: str, skipped_folder: Path) -> Any:
    from datatrove.data import Document
    from datatrove.pipeline.base import PipelineStep

    class Read(PipelineStep):
        """A task's part of the sources, read as everywhere in yupana."""

        type, name = "📖 - READER", "yupana sources"

        def run(self, data: Any, rank: int = 0, world_size: int = 1) -> Iterator[Document]:
            """Yield the documents of task `rank` of `world_size`."""
            found = Skipped()
            for name, text in documents(sources, text_field, found, part=(rank, world_size)):
                yield Document(text=text, id=name)
            skipped_folder.mkdir(parents=True, exist_ok=True)
            write_json(skipped_folder / f"{rank:05d}.json", {"counts": found.counts, "first": found.first})

    return Read()


def _rule(name: str, gone: _Removed) -> Any:
    """The filter of that name, as datatrove's."""
    from datatrove.pipeline.filters.base_filter import BaseFilter

    judge = _language(name.removeprefix("language:")) if name.startswith("language:") else _family(name)

    class Rule(BaseFilter):
        """Keeps a document for which nothing is to be said against it."""

        def filter(self, doc: Any) -> bool | tuple[bool, str]:
            """True, or False and the reason."""
            reason = judge(doc.text[:LOOKED_AT])
            return (False, reason) if reason else True

    Rule.name = name
    return Rule(exclusion_writer=gone)


def _family(family: str) -> Callable[[str], str | None]:
    rules = [rule for rule in quality.RULES if rule.family == family]

    return lambda text: next((rule.told for rule in rules if rule.drops(_measured(text))), None)


@functools.lru_cache(maxsize=1)  # the next filter asks about the same text
def _measured(text: str) -> dict[str, float]:
    words = text.split()
    return quality.measures(text, words, w.hashes(words), quality.c4_lines(text)[1])


def _language(wanted: str) -> Callable[[str], str | None]:
    def judge(text: str) -> str | None:
        found = _language_of(text[:2000])
        return None if found == wanted else f"language {found}, not {wanted}"

    return judge


def _language_of(text: str) -> str:
    try:
        from py3langid import classify
    except ImportError as error:
        raise UserError("filtering by language needs py3langid: pip install 'yupana[corpus]'") from error
    return classify(text)[0]


def _counts(gone: list[dict[str, Any]]) -> str:
    return ", ".join(f"{of['documents']:,} {of['filter']}: {of['reason']}" for of in summary(gone)) or "there was none"


@contextlib.contextmanager
def _quiet(log: Path) -> Iterator[None]:
    """datatrove's own progress goes into a file, and its processes go when this one does, however it goes."""
    log.parent.mkdir(parents=True, exist_ok=True)
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    with open(log, "a", encoding="utf-8") as file, contextlib.redirect_stderr(file):
        from loguru import logger

        logger.remove()
        _watch_forks()
        _CLEANING.append(True)
        try:
            yield
        finally:
            _CLEANING.pop()


_CLEANING: list[bool] = []
"""Holds something while pipelines run."""


def _die_with_parent() -> None:
    """On Linux, a process forked for a pipeline gets SIGKILL when its parent ends: none writes beside a successor."""
    if _CLEANING and sys.platform == "linux":
        set_parent_death_signal = 1  # PR_SET_PDEATHSIG, prctl(2)
        ctypes.CDLL(None).prctl(set_parent_death_signal, signal.SIGKILL)


@functools.cache  # once a process
def _watch_forks() -> None:
    os.register_at_fork(after_in_child=_die_with_parent)
