"""The predicted tables of docs/scale-out.md, as Markdown: nothing is measured, no accelerator is needed.

    python benchmarks/scale_out_tables.py
"""

from __future__ import annotations

from typing import Any

from yupana.config import load
from yupana.flops.layout import Layout
from yupana.train.limits import cluster

CASES = (  # preset, seq_len, sequences a rank at most, numbers of H100
    ("llama3.2-1b", 4096, 8, (8, 64, 512)),
    ("llama3.2-1b", 131072, 1, (8,)),
    ("llama3.1-8b", 8192, 2, (8, 16, 64, 128, 256, 512)),
)


def main() -> None:
    """Print them."""
    print("| model | H100s | layout recommended | micro-batch | tokens/s | a card | MFU | communication seen | GB a rank |")
    print("| --- | --- | --- | --- | --- | --- | --- | --- | --- |")
    for preset, seq_len, micro_batch, counts in CASES:
        for count in counts:
            print(row(preset, predicted(preset, seq_len, micro_batch, count, None)))
    print("\n| layout of 64 H100s, llama3.1-8b | tokens/s | MFU | communication seen | GB a rank |")
    print("| --- | --- | --- | --- | --- |")
    for layout in (Layout(1, 64, 1), Layout(8, 8, 1), Layout(1, 32, 2), Layout(1, 8, 8)):
        result = predicted("llama3.1-8b", 8192, 2, 64, layout)
        print(f"| {layout} | {' | '.join(figures(result))} |")


def predicted(preset: str, seq_len: int, micro_batch: int, count: int, layout: Layout | None) -> dict[str, Any]:
    """A step of bf16 with fp32 masters."""
    return cluster(
        load(preset).model, seq_len, micro_batch, None, "bf16",
        hardware="h100", count=count, layout=layout, node=None, link=None, network=None,
    )  # fmt: skip


def row(preset: str, result: dict[str, Any]) -> str:
    """A line of the first table."""
    rate, mfu, seen, memory = figures(result)
    card = f"{result['tokens_per_second'] / result['ranks']:,.0f}"
    name = f"{preset}, {result['seq_len']:,} tokens"
    cells = (name, result["ranks"], Layout(**result["layout"]), result["micro_batch"], rate, card, mfu, seen, memory)
    return f"| {' | '.join(map(str, cells))} |"


def figures(result: dict[str, Any]) -> tuple[str, str, str, str]:
    """Tokens a second, MFU, what communication adds to the step, memory."""
    seen = 1 - result["compute_seconds"] / result["step_seconds"]
    memory = f"{result['memory_bytes']['total'] / 1e9:.0f}{'' if result['fits'] else ' (does not fit)'}"
    return f"{result['tokens_per_second']:,.0f}", f"{result['mfu']['palm']:.0%}", f"{seen:.1%}", memory


if __name__ == "__main__":
    main()
