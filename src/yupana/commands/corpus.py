"""`yupana corpus …`: from text to token shards."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from yupana.commands.shared import add_command, add_group, print_result


def register(commands: Any) -> None:
    """Add the commands."""
    group = add_group(commands, "corpus", "from text to token shards")
    c = add_command(group, "prepare", prepare, "token shards from text")
    c.add_argument("sources", nargs="+", metavar="SOURCE", help="files, folders, 'python', or hf:NAME")
    c.add_argument("--out", type=Path, required=True, metavar="DIR", help="folder of shards to make")
    c.add_argument("--tokenizer", default="bpe:4096", help="bytes, bpe:VOCAB, llama3, or a folder (bpe:4096)")
    c.add_argument("--val_fraction", type=float, default=0.01, help="share of documents held out (0.01)")
    c.add_argument("--text_field", default="text", help="field or column that holds the text (text)")


def prepare(arguments: argparse.Namespace) -> int:
    """`yupana corpus prepare`."""
    from yupana.corpus import prepare as corpus
    from yupana.corpus.progress import PrepareProgress

    with PrepareProgress() as progress:
        result = corpus.prepare(
            arguments.sources,
            arguments.out,
            arguments.tokenizer,
            val_fraction=arguments.val_fraction,
            text_field=arguments.text_field,
            progress=progress,
        )
    skipped = "".join(f", {count} skipped ({reason})" for reason, count in result["skipped"].items())
    print_result(
        arguments,
        result,
        f"{result['path']}: {result['documents']:,} documents, {result['tokens']:,} tokens, "
        f"{result['bytes']:,} bytes{skipped}",
    )
    return 0
