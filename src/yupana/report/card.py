"""The model card of a run: what it was trained on, for how long, how well, from its own records alone."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from yupana.report.read import RunRecord
from yupana.report.text import summary


def model_card(record: RunRecord, name: str, licence: str | None = None, *, picture: bool = False) -> str:
    """README.md of a model repository. What was not measured is not mentioned: no energy without a meter."""
    figures = summary(record)
    head = ["---", "library_name: transformers", "pipeline_tag: text-generation"]
    head += [f"license: {licence}"] if licence else []
    head += [f"base_model: {base}"] if (base := _base(record)) else []
    head += ["tags:", "- llama", "- yupana", "---"]
    rows = "\n".join(f"| {label} | {value} |" for label, value in _rows(record, figures))
    curve = "\n## Curves\n\n![loss, learning rate, gradient norm, throughput and MFU](report.png)\n" if picture else ""
    return "\n".join(head) + f"""

# {name}

{_sentence(record, figures)}

| | |
| --- | --- |
{rows}
{curve}
## Use

```python
from transformers import AutoModelForCausalLM, AutoTokenizer

model = AutoModelForCausalLM.from_pretrained("{name}")
tokenizer = AutoTokenizer.from_pretrained("{name}")
```

`run.yaml` starts the same training again; `metrics.jsonl` holds every logged step. FLOPs and MFU are counted in two
conventions: palm (6·N + 12·L·d·T a token) and exact (causal attention at half).
"""


def _sentence(record: RunRecord, figures: dict[str, Any]) -> str:
    millions = f"{(figures['parameters'] or 0) / 1e6:,.1f} million parameters"
    if "base" in record.env:
        return f"A Llama of {millions}, fine-tuned with [yupana](https://pypi.org/project/yupana)."
    return f"A Llama of {millions}, pretrained with [yupana](https://pypi.org/project/yupana)."


def _base(record: RunRecord) -> str | None:
    """The base where it is a hub name; a folder of somebody's disk says nothing to others."""
    base = record.env.get("base")
    return base if base and not Path(base).exists() and base.count("/") == 1 else None


def _rows(record: RunRecord, figures: dict[str, Any]) -> list[tuple[str, str]]:
    env, rows = record.env, []
    if "corpora" in env:
        corpora = [f"{Path(c['path']).name} (weight {c['weight']:g}, {c['hash'][:12]})" for c in env["corpora"]]
        rows.append(("data", "; ".join(corpora)))
    if "conversations" in env:
        rows.append(("data", f"{env['conversations']:,} conversations, {env['held_out']:,} held out"))
    if "trained_parameters" in env:
        rows.append(("trained parameters", f"{env['trained_parameters']:,}"))
    rows.append(("tokens", f"{figures['tokens']:,}"))
    per_token = env.get("flops_per_token")
    if per_token:
        flops = ", ".join(f"{figures['tokens'] * each:.3g} ({name})" for name, each in per_token.items())
        rows.append(("FLOPs", flops))
    forms = (
        ("held-out loss", "val_loss", "{:.4f} nats a token", 1),
        ("bits per byte", "val_bpb", "{:.4f}", 1),
        ("MFU (palm), median", "mfu", "{:.1f} %", 100),
        ("MFU (exact), median", "mfu_exact", "{:.1f} %", 100),
        ("MFU is against", "peak_source", "{}", None),
        ("tokens per second, median", "tokens_per_second", "{:,.0f}", 1),
        ("precision", "precision", "{}", None),
        ("device", "device", "{}", None),
        ("time", "seconds", "{:,.0f} s", 1),
    )
    for label, key, form, scale in forms:
        value = figures.get(key)
        if value is not None:
            rows.append((label, form.format(value if scale is None else value * scale)))
    for evaluation in _evaluations(record.path):
        for domain in evaluation.get("domains", []):
            rows.append((f"bits per byte, {Path(domain['name']).name}", f"{domain['bits_per_byte']:.4f}"))
        for task, found in evaluation.get("tasks", {}).items():
            told = ", ".join(f"{k} {v:.4f}" for k, v in found.items() if not k.endswith("_stderr") and k != "samples")
            rows.append((f"task {task}", told))
    return rows


def _evaluations(path: Path) -> list[dict[str, Any]]:
    """What `yupana eval` kept, the newest alone."""
    file = path / "evaluations.json"
    return json.loads(file.read_text())[-1:] if file.is_file() else []
