"""The parts of a page that are words and tables: figures, evaluations, the waterfall, settings, the machine."""

from __future__ import annotations

import html
import json
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import yaml

from yupana import config
from yupana.report.read import RunRecord, evaluated, read_json, total_steps
from yupana.run import STEP_PREDICTION, WATERFALL

SHOWN = (  # label, key of the summary, form, factor
    ("Validation loss", "val_loss", "{:.4f} nats a token", 1),
    ("Bits a byte", "val_bpb", "{:.4f}", 1),
    ("Training loss, last step", "loss", "{:.4f} nats a token", 1),
    ("Steps", "steps", "{:,}", 1),
    ("Tokens", "tokens", "{:,}", 1),
    ("FLOPs (exact)", "flops", "{:.3g}", 1),
    ("Tokens a second, median", "tokens_per_second", "{:,.0f}", 1),
    ("MFU (palm), median", "mfu", "{:.1f} %", 100),
    ("MFU (exact), median", "mfu_exact", "{:.1f} %", 100),
    ("Peak memory", "memory_bytes", "{:.2f} GB", 1e-9),
    ("Time", "seconds", "{:,.0f} s", 1),
    ("Precision", "precision", "{}", 1),
    ("Device", "device", "{}", 1),
    ("MFU is against", "peak_source", "{}", 1),
)


def state(record: RunRecord) -> str:
    """What a reader has to know about a run that is not whole; empty for a finished one."""
    last, total = (record.steps[-1]["step"] if record.steps else 0), total_steps(record.config)
    of = f" of {total:,}" if total else ""
    told = []
    if record.state == "training":
        told.append(f"Still training: step {last:,}{of} when this page was written.")
    elif record.state == "stopped":
        told.append(f"Stopped at step {last:,}{of}: yupana train --run {record.path} --resume goes on.")
    if not record.steps:
        told.append("No step is logged yet.")
    if record.broken_lines:
        lines = "1 line" if record.broken_lines == 1 else f"{record.broken_lines} lines"
        told.append(f"{lines} of metrics.jsonl cut off in the middle, and left out here.")
    return f'<p class="state" role="status">{html.escape(" ".join(told))}</p>' if told else ""


def tiles(figures: dict[str, Any]) -> str:
    """The run in figures."""
    cells = ""
    for label, key, form, factor in SHOWN:
        value = figures[key]
        if value is not None:
            shown = form.format(value if factor == 1 else value * factor)
            long = ' class="long"' if isinstance(value, str) and len(value) > 12 else ""
            cells += f"<div{long}><dt>{label}</dt><dd>{html.escape(shown)}</dd></div>"
    return f'<dl class="tiles">{cells}</dl>'


def table(heads: Sequence[str], rows: Iterable[Sequence[str]], numbers: Iterable[int] = (), wrap: bool = False) -> str:
    """An HTML table; columns `numbers` (from 0) are set as figures. Escapes everything."""
    right = set(numbers)
    marks = [' class="number"' if n in right else ' class="wrap"' if wrap else "" for n in range(len(heads))]
    head = "".join(f'<th scope="col"{m}>{html.escape(cell)}</th>' for m, cell in zip(marks, heads, strict=True))
    body = "".join(
        f"<tr>{''.join(f'<td{m}>{html.escape(c)}</td>' for m, c in zip(marks, row, strict=True))}</tr>" for row in rows
    )
    return f'<div class="scroll"><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>'


def source_table(sources: dict[str, dict[str, Any]]) -> str:
    """The sources of a mixture: shares, epochs, losses."""
    heads = ("source", "share of the tokens", "tokens", "of them different", "epochs", "loss, first → last", "bits a byte")
    rows = [
        (
            name,
            f"{100 * of['share']:.1f} %",
            f"{of['planned_tokens']:,}",
            f"{min(of['unique_tokens'], of['planned_tokens']):,}",
            f"{of['epochs']:.2f}",
            f"{_number(of['first_val_loss'], '.3f')} → {_number(of['val_loss'], '.3f')}",
            _number(of["val_bpb"], ".4f"),
        )
        for name, of in sources.items()
    ]
    return table(heads, rows, range(1, 7))


def waterfall(path: Path) -> str:
    """Where the MFU went, as `flops explain` left it in the run: a bar for each part; empty where it did not run."""
    found = read_json(path / WATERFALL)
    if not isinstance(found, dict):
        return ""
    level, rows = 1.0, f"{_bar('peak', 'whole', 0, 1)}<td class='number'></td><td class='number'>100.0 %</td><td></td>"
    rows = f"<tr>{rows}</tr>"
    for part in found["parts"]:
        if abs(part["lost_share"]) < 0.001:
            continue
        level -= part["lost_share"]
        rows += (
            f"<tr>{_bar(part['name'], 'lost', level, part['lost_share'])}<td class='number'>{_seconds(part['seconds'])}</td>"
            f"<td class='number'>−{100 * part['lost_share']:.1f} %</td><td>{html.escape(part['lever'])}</td></tr>"
        )
    exact, palm = found["mfu"]["exact"], found["mfu"]["palm"]
    rows += (
        f"<tr>{_bar('MFU, exact', 'left', 0, exact)}<td></td>"
        f"<td class='number'><b>{100 * exact:.1f} %</b></td><td>palm: {100 * palm:.1f} %</td></tr>"
    )
    told = f"A profiled step of {_seconds(found['step_seconds'])}, against {found['peak'] / 1e12:,.4g} TFLOP/s"
    heads = "<th>part</th><th></th><th class='number'>time</th><th class='number'>of the peak</th><th>lever</th>"
    return (
        f"<h2 id='waterfall'>Where the MFU went</h2><p class='told'>{told} ({html.escape(found['peak_source'])}); "
        f"yupana flops explain measured it.</p><div class='scroll'><table class='bars'><tr>{heads}</tr>{rows}</table></div>"
    )


def predicted(record: RunRecord, figures: dict[str, Any], sentence: str) -> str:
    """Predicted beside measured: the loss (scaling predict) and the step (flops predict); empty where neither is there."""
    step = read_json(record.path / STEP_PREDICTION)
    parts = f"<p>{html.escape(sentence)}</p>" if sentence else ""
    if isinstance(step, dict) and figures["tokens_per_second"]:
        tokens = step["global_batch"] * step["seq_len"]
        pairs = (
            ("seconds a step", step["step_seconds"], tokens / figures["tokens_per_second"], "{:,.4g}"),
            ("tokens a second", step["tokens_per_second"], figures["tokens_per_second"], "{:,.0f}"),
            ("MFU (palm), %", 100 * step["mfu"]["palm"], 100 * (figures["mfu"] or 0), "{:.1f}"),
            ("peak memory, GB", step["memory_bytes"]["total"] / 1e9, (figures["memory_bytes"] or 0) / 1e9, "{:.2f}"),
        )
        rows = [(name, f.format(p), f.format(m), f"{100 * (p / m - 1):+.1f} %" if m else "—") for name, p, m, f in pairs]
        rates = f"{step['hardware']}, {re.sub(r'T[0-9]{2}:[0-9:+.]+', '', step['rates'])}"  # the day is enough
        parts += f"<p class='told'>The step by yupana flops predict ({html.escape(rates)}), beside the run's median.</p>"
        parts += table(("", "predicted", "measured", "prediction off by"), rows, (1, 2, 3))
    return f"<h2 id='predicted'>Predicted and measured</h2>{parts}" if parts else ""


def evaluations(path: Path) -> str:
    """What `yupana eval` found, as tables."""
    found, parts = evaluated(path), ""
    if found.texts:
        losses = ("nats a token", "95 % interval", "bits a byte", "95 % interval")
        rows = [
            (
                found.label(text), which,
                _number(of["nll_per_token"], ".4f"), _interval(of["nll_interval"]),
                _number(of["bits_per_byte"], ".4f"), _interval(of["bits_per_byte_interval"]),
                f"{of['tokens']:,}", f"{of['documents']:,}",
            )
            for (which, text), of in found.texts.items()
        ]  # fmt: skip
        parts += table(("text", "checkpoint", *losses, "tokens", "documents"), rows, range(2, 8))
    if found.tasks:
        heads = ("task", "metric", "checkpoint", "value", "standard error", "documents")
        shown = [
            (task, metric, which, _number(value, ".4f"), _number(error, ".4f"), f"{documents:,}" if documents else "—")
            for (which, task, metric), (value, error, documents) in found.tasks.items()
        ]
        parts += f"<h3>Tasks of lm-evaluation-harness</h3>{table(heads, shown, range(3, 6))}"
    return f"<h2 id='evaluations'>Evaluations</h2>{parts}" if parts else ""


def samples(record: RunRecord) -> str:
    """How the model went on from one held-out passage as it learnt (log.samples), and what it wrote at the end."""
    parts = ""
    if record.samples:
        rows = [(f"{s['step']:,}", f"{s['tokens'] / 1e6:,.2f} M", s["sample"]["text"]) for s in record.samples]
        prompt = html.escape(record.samples[-1]["sample"]["prompt"])
        told = f"<p class='told'>After each checkpoint, the passage</p><pre>{prompt}</pre><p class='told'>goes on with</p>"
        texts = table(("step", "tokens", "text"), rows, (0, 1))
        parts += f"<h2>Samples over time</h2>{told}<div class='samples'>{texts}</div>"
    if record.sample:
        parts += f"<h2>A sample</h2><pre>{html.escape(record.sample)}</pre>"
    return parts


def settings_changed(record: RunRecord) -> str:
    """The settings that differ from the preset whose model this is, or else from the defaults."""
    preset, base = _nearest(record.config)
    known = flat(record.config)
    rows = [(key, was, known[key]) for key, was in base.items() if key in known and known[key] != was]
    heads = ("setting", f"preset {preset}" if preset else "default", "this run")
    if not base:
        return ""
    same = f"<p>All settings are those of {'preset ' + preset if preset else 'the defaults'}.</p>"
    return table(heads, rows, wrap=True) if rows else same


def folded(title: str, content: Any) -> str:
    """YAML, folded away."""
    text = html.escape(yaml.safe_dump(content, sort_keys=False, allow_unicode=True))
    return f"<details><summary>{html.escape(title)}</summary><pre>{text}</pre></details>"


ENVIRONMENT = (
    ("device", "device"), ("precision", "precision"), ("compiled", "compiled"), ("threads", "threads"), ("world", "ranks"),
    ("python", "Python"), ("torch", "torch"), ("transformers", "transformers"), ("numpy", "numpy"),
    ("yupana", "yupana"), ("git_revision", "git revision"), ("platform", "platform"),
)  # fmt: skip


def environment(env: dict[str, Any]) -> str:
    """The machine, the versions and the data, in short; env.json has the rest."""
    rows = [(label, str(env[key])) for key, label in ENVIRONMENT if env.get(key) is not None]
    rows += [
        (f"corpus {corpus.get('name', '')}".strip(), f"{corpus['path']}, hash {corpus['hash'][:12]}…")
        for corpus in env.get("corpora", [])
    ]
    return table(("", ""), rows, wrap=True)


def flat(tree: dict[str, Any], above: str = "") -> dict[str, str]:
    """{"optim.lr": "0.001", …} of a configuration, as one would type it."""
    found: dict[str, str] = {}
    for key, value in tree.items():
        if isinstance(value, dict) and above == "":
            found |= flat(value, f"{key}.")
        else:
            found[above + key] = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    return found


def _nearest(found: dict[str, Any]) -> tuple[str | None, dict[str, str]]:
    """The preset with this model and its settings; else the defaults; nothing for another command's settings."""
    if "fast" not in found:
        return None, {}
    for name in config.preset_names():
        given = yaml.safe_load(config.preset_path(name).read_text())["model"]
        if all(found["model"].get(key) == value for key, value in given.items()):
            return name, flat(config.as_dict(config.load(name)))
    return None, flat(config.as_dict(config.Config()))


def _bar(name: str, kind: str, left: float, width: float) -> str:
    style = f"margin-left:{100 * max(0.0, left):.2f}%;width:{100 * max(0.0, width):.2f}%"
    return f"<td class='label'>{html.escape(name)}</td><td class='bar'><div class='{kind}' style='{style}'></div></td>"


def _seconds(value: float) -> str:
    return f"{value:,.3g} s" if value >= 1 else f"{1e3 * value:,.3g} ms"


def _number(value: float | None, form: str) -> str:
    return "—" if value is None else format(value, form)


def _interval(pair: list[float] | None) -> str:
    return "—" if pair is None else f"{pair[0]:.4f} … {pair[1]:.4f}"
