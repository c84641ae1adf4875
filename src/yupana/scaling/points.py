"""Points to fit: (parameters, tokens, FLOPs, loss) of finished runs, from a CSV file or from run directories."""

from __future__ import annotations

import csv
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from yupana.errors import UserError, did_you_mean

Array = Any  # a numpy array

# What a column of each quantity is usually called, best first; compared without case and punctuation.
KNOWN = {
    "n": ("n", "nparams", "params", "parameters", "numparams", "modelsize"),
    "tokens": ("tokens", "d", "trainingtokens", "ntokens", "numtokens", "tokensseen"),
    "flops": ("flops", "c", "computebudget", "compute", "trainingflops", "budget"),
    "loss": ("loss", "validationloss", "valloss", "testloss", "finalloss"),
    "unique": ("unique", "u", "uniquetokens"),
}
TOLD = {"n": "parameters", "tokens": "tokens", "flops": "FLOPs", "loss": "loss", "unique": "unique tokens"}
FEW_TOKENS, FEW_PARAMETERS = 1e4, 5000  # below these a column is in millions or billions
LARGE_LOSS = 14.0  # nats a token: uniform over a million words; above, it is a perplexity


@dataclass(frozen=True)
class Points:
    """Finished runs, one entry each: all arrays are [points]."""

    n: Array
    tokens: Array
    flops: Array
    loss: Array
    """Nats a token."""
    unique: Array | None = None
    """Distinct tokens, where text was repeated."""
    source: str = ""
    warnings: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.loss)

    def where(self, kept: Array) -> Points:
        """Only the points that `kept` (a mask or indices) selects."""
        unique = None if self.unique is None else self.unique[kept]
        return Points(self.n[kept], self.tokens[kept], self.flops[kept], self.loss[kept], unique, self.source, self.warnings)


def read(sources: Sequence[str | Path], columns: str | None = None, where: str | None = None) -> Points:
    """Points from one CSV file, or from run directories.

    `columns` maps quantities to columns, "n=N,flops=C,loss=val_loss"; names that are usual need no mapping. `where`
    keeps the rows with a value in a column, "config=base". Two of n, tokens and flops are enough (C = 6·N·D gives the
    third). Raises UserError for anything that is missing, not a number, or in the wrong unit.
    """
    paths = [Path(source) for source in sources]
    if all(path.is_dir() for path in paths):
        return from_runs(paths)
    if len(paths) != 1:
        raise UserError("give one CSV file, or run directories only")
    if not paths[0].is_file():
        raise UserError(f"{paths[0]} does not exist: give a CSV file or run directories")
    return _from_csv(paths[0], columns, where)


def from_runs(paths: Sequence[Path]) -> Points:
    """One point a run: all its parameters, its tokens, 6·N·D, and its last validation loss."""
    from yupana.run import open_run
    from yupana.scaling.runs import final_point

    rows = [final_point(open_run(path)) for path in paths]
    n, tokens, loss = (np.array([row[k] for row in rows], dtype=float) for k in ("n", "tokens", "loss"))
    return _checked(n, tokens, None, loss, None, f"{len(rows)} runs", [str(p) for p in paths])


def _from_csv(path: Path, columns: str | None, where: str | None) -> Points:
    with open(path, newline="", encoding="utf-8-sig") as file:
        try:
            reader = csv.DictReader(file)
            header = [name.strip() for name in reader.fieldnames or []]
            reader.fieldnames = header
            rows = list(reader)
        except (UnicodeDecodeError, csv.Error) as error:
            raise UserError(f"{path} is not a CSV file: {error}") from error
    if not rows:
        raise UserError(f"{path} holds no points: it needs a header and a line a run")
    if where:
        rows = _matching(rows, header, where, path)
    chosen = _choose(header, columns, path)
    values = {what: _numbers(rows, column, path) for what, column in chosen.items()}
    return _checked(
        values.get("n"), values.get("tokens"), values.get("flops"), values["loss"], values.get("unique"), str(path),
        [f"line {i + 2}" for i in range(len(rows))], chosen["loss"],
    )  # fmt: skip


def _matching(rows: list[dict[str, str]], header: list[str], where: str, path: Path) -> list[dict[str, str]]:
    column, _, value = where.partition("=")
    if column not in header or not value:
        raise UserError(f"--where takes COLUMN=VALUE with a column of {path} ({', '.join(header)}), got '{where}'")
    kept = [row for row in rows if row[column] == value]
    if not kept:
        there = sorted({row[column] or "" for row in rows})
        raise UserError(
            f"no line of {path} has {column}={value}{did_you_mean(value, there)}: there are {', '.join(there[:12])}"
        )
    return kept


def _choose(header: list[str], columns: str | None, path: Path) -> dict[str, str]:
    chosen: dict[str, str] = {}
    for pair in filter(None, (columns or "").split(",")):
        what, _, column = (part.strip() for part in pair.partition("="))
        if what not in KNOWN:
            raise UserError(f"--columns maps {', '.join(KNOWN)}, not '{what}'{did_you_mean(what, KNOWN)}")
        if column not in header:
            raise UserError(f"{path} has no column '{column}'{did_you_mean(column, header)}: it has {', '.join(header)}")
        chosen[what] = column
    plain = {re.sub(r"[^a-z]", "", name.lower()): name for name in reversed(header)}
    for what, usual in KNOWN.items():
        found = [plain[name] for name in usual if name in plain and plain[name] not in chosen.values()]
        if what not in chosen and found:
            chosen[what] = found[0]
    missing = [] if "loss" in chosen else ["loss"]
    if sum(what in chosen for what in ("n", "tokens", "flops")) < 2:
        missing += [what for what in ("n", "tokens", "flops") if what not in chosen]
    if missing:
        raise UserError(
            f"{path} has no column for {', '.join(TOLD[m] for m in missing)} (its columns: {', '.join(header)}): "
            f"map it with --columns {','.join(f'{m}=…' for m in missing)}; a loss and two of n, tokens, flops are needed"
        )
    bits = re.search(r"bit|bpb|bpc|ppl|perplex", chosen["loss"].lower())
    if bits:
        raise UserError(
            f"the loss column '{chosen['loss']}' of {path} is not in nats a token: multiply bits a token by ln 2 = "
            "0.6931, or take the logarithm of a perplexity"
        )
    return chosen


def _numbers(rows: list[dict[str, str]], column: str, path: Path) -> Array:
    values = []
    for i, row in enumerate(rows):
        text = (row[column] or "").strip()
        try:
            value = float(text)
        except ValueError:
            raise UserError(f"line {i + 2} of {path}: '{text}' in column {column} is not a number") from None
        if not (np.isfinite(value) and value > 0):
            raise UserError(f"line {i + 2} of {path}: {column} must be positive and finite, got {text}")
        values.append(value)
    return np.array(values)


def _checked(
    n: Array | None, tokens: Array | None, flops: Array | None, loss: Array, unique: Array | None,
    source: str, names: list[str], loss_name: str = "loss",
) -> Points:  # fmt: skip
    warnings = []
    _check_size("n", n, FEW_PARAMETERS, source)
    _check_size("tokens", tokens, FEW_TOKENS, source)
    if loss.min() <= 0:
        raise UserError(f"{names[int(loss.argmin())]} of {source}: the loss must be positive, got {loss.min():g}")
    if loss.max() > LARGE_LOSS:
        raise UserError(
            f"{names[int(loss.argmax())]} of {source}: a {loss_name} of {loss.max():g} is no loss in nats a token; is it "
            "a perplexity (take its logarithm)?"
        )
    if n is not None and tokens is not None and flops is not None:
        warnings += _check_flops(n, tokens, flops, source, names)
    if flops is None:
        assert n is not None
        assert tokens is not None
        flops = 6 * n * tokens
    if n is None:
        assert tokens is not None
        n = flops / (6 * tokens)
    tokens = flops / (6 * n) if tokens is None else tokens
    _check_size("n", n, FEW_PARAMETERS, source)
    _check_size("tokens", tokens, FEW_TOKENS, source)
    if not 1e-2 < np.median(tokens / n) < 1e6:
        raise UserError(
            f"{source} has {np.median(tokens / n):.2g} tokens a parameter (median): check the units of its columns (plain "
            "numbers, FLOPs and not PF-days)"
        )
    points = Points(n, tokens, flops, loss, unique, source)
    kept = _first_of_each(points)
    if len(kept) < len(points):
        warnings.append(f"{len(points) - len(kept)} points stood there more than once and count once")
    points = points.where(kept)
    return Points(points.n, points.tokens, points.flops, points.loss, points.unique, source, tuple(warnings))


def _check_size(what: str, values: Array | None, least: float, source: str) -> None:
    if values is None or np.median(values) >= least:
        return
    raise UserError(
        f"{TOLD[what]} in {source} have the median {np.median(values):g}: they look like millions or billions; give "
        f"plain numbers (1.5e9, not 1.5)"
    )


def _check_flops(n: Array, tokens: Array, flops: Array, source: str, names: list[str]) -> list[str]:
    ratio = flops / (6 * n * tokens)
    middle = float(np.median(ratio))
    for power, word in ((1e9, "billions"), (1e6, "millions"), (1e12, "trillions"), (1e3, "thousands")):
        if 0.3 < middle / power < 3.5:
            raise UserError(
                f"FLOPs in {source} are {middle:.2g} times 6·N·D: one of the columns is in {word}; give plain numbers"
            )
    if not 1 / 3 < middle < 3:
        raise UserError(
            f"FLOPs in {source} are {middle:.2g} times 6·N·D (median): they do not belong to these parameters and "
            "tokens; leave one of the three columns out, or correct it"
        )
    far = np.abs(np.log(ratio / middle))
    if far.max() > np.log(3):
        i = int(far.argmax())
        raise UserError(
            f"{names[i]} of {source}: its FLOPs are {ratio[i]:.2g} times 6·N·D where the others have {middle:.2g}: "
            "correct it or leave it out"
        )
    if abs(middle - 1) > 0.05 or far.max() > np.log(1.2):
        return [
            f"FLOPs are {ratio.min():.2f} to {ratio.max():.2f} times 6·N·D: N or C is counted in another convention "
            "(embeddings, head, attention); the fit uses N, D and C as given"
        ]
    return []


def _first_of_each(points: Points) -> Array:
    rows = np.stack([points.n, points.tokens, points.flops, points.loss], axis=1)
    return np.sort(np.unique(rows, axis=0, return_index=True)[1])


def budgets(points: Points, width: float = 0.1) -> Array:
    """Which budget each point belongs to, [points]: a new one where sorted log-FLOPs jump by more than `width`."""
    order = np.argsort(points.flops)
    jumps = np.diff(np.log(points.flops[order])) > width
    labels = np.empty(len(points), dtype=int)
    labels[order] = np.concatenate([[0], np.cumsum(jumps)])
    return labels
