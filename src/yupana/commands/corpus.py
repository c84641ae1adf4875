"""`yupana corpus …`: what there is, what is inside, and from text to token shards."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from yupana.commands.shared import add_command, add_group, print_result


def register(commands: Any) -> None:
    """Add the commands."""
    group = add_group(commands, "corpus", "the corpora Llamas are trained on; from text to token shards")
    c = add_command(group, "list", list_, "the corpora that Llama-class models are pretrained on")
    c.add_argument("names", nargs="*", metavar="NAME", help="everything about these (a table of all)")
    c.add_argument("--save", type=Path, metavar="FILE", help="draw the published mixtures (.png, .svg, .pdf)")
    c = add_command(group, "explore", explore, "look inside sources, side by side")
    c.add_argument("sources", nargs="+", metavar="SOURCE", help="files, folders, 'python', or hf:NAME")
    c.add_argument("--tokenizer", action="append", metavar="T", help="count tokens under it; may be given again "
                   "(llama3 where it is installed, else bytes)")  # fmt: skip
    c.add_argument("--sample", type=int, metavar="N", help="the first N documents of each (all; of hf: 10 000)")
    c.add_argument("--evaluation", action="append", default=[], metavar="SOURCE",
                   help="look for this evaluation text in the sources; may be given again")  # fmt: skip
    c.add_argument("--similarity", type=float, default=0.8, help="Jaccard similarity of near copies (0.8)")
    c.add_argument("--text_field", default="text", help="field or column that holds the text (text)")
    c.add_argument("--model", type=Path, metavar="RUN", help="the loss of this run on each source, and by position")
    c.add_argument("--out", type=Path, metavar="DIR", help="write explore.html, explore.png and explore.json there")
    c = add_command(group, "prepare", prepare, "token shards from text")
    c.add_argument("sources", nargs="+", metavar="SOURCE", help="files, folders, 'python', or hf:NAME")
    c.add_argument("--out", type=Path, required=True, metavar="DIR", help="folder of shards to make")
    c.add_argument("--tokenizer", default="bpe:4096", help="bytes, bpe:VOCAB, llama3, or a folder (bpe:4096)")
    c.add_argument("--val_fraction", type=float, default=0.01, help="share of documents held out (0.01)")
    c.add_argument("--text_field", default="text", help="field or column that holds the text (text)")
    c.add_argument("--filter", action="append", default=[], metavar="F", help="drop documents by the rules of gopher, "
                   "repetition, c4, fineweb, or language:en, or lines by c4-lines; may be given again")  # fmt: skip
    c.add_argument("--near_duplicates", action="store_true", help="keep one of documents that are nearly equal")
    c.add_argument("--tasks", type=int, default=16, help="parts that filtering is cut into (16)")
    c.add_argument("--workers", type=int, help="parts that run at once (the cores)")
    c.add_argument("--executor", default="local", metavar="E", help="where filtering runs: local, ray, or "
                   "slurm:partition=P,time=HH:MM:SS (local)")  # fmt: skip
    c = add_command(group, "packing", packing, "what each way of packing documents into sequences costs")
    c.add_argument("corpus", type=Path, metavar="CORPUS", help="a prepared corpus")
    c.add_argument("--seq_len", type=int, required=True, metavar="T", help="tokens of a sequence")
    c.add_argument("--overlap", type=int, metavar="N", help="tokens that windows overlap by (an eighth of T)")


def list_(arguments: argparse.Namespace) -> int:
    """`yupana corpus list`."""
    from yupana.corpus.known import as_dict, named

    entries = [as_dict(entry) for entry in named(arguments.names)]
    if arguments.save:
        from yupana.report.anatomy_plot import check_target
        from yupana.report.corpora_plot import save_mixtures

        check_target(arguments.save)
        save_mixtures(entries, arguments.save)
    from yupana.report.corpora_text import full_tables, list_table

    print_result(arguments, {"corpora": entries}, (full_tables if arguments.names else list_table)(entries))
    return 0


def explore(arguments: argparse.Namespace) -> int:
    """`yupana corpus explore`."""
    from yupana.corpus import explore as looking
    from yupana.report.bar import Bar
    from yupana.report.explore_page import check_folder, write_page
    from yupana.report.explore_text import explore_tables

    if arguments.out:
        check_folder(arguments.out)
    losses = _losses(arguments) if arguments.model else []
    with Bar() as bar:
        result = looking.explore(
            arguments.sources,
            arguments.tokenizer or [looking.default_tokenizer()],
            arguments.sample,
            arguments.evaluation,
            arguments.text_field,
            arguments.similarity,
            bar.tell,
        )
    for source, loss in zip(result["sources"], losses, strict=False):  # Ctrl-C leaves sources out
        source["model"] = loss
    if arguments.out:
        result["page"] = str(write_page(result, arguments.out))
    print_result(arguments, result, explore_tables(result))
    return 0


def _losses(arguments: argparse.Namespace) -> list[dict[str, Any]]:
    """What a run says of each source; first, because a run that cannot be read should not cost an exploration."""
    from yupana.train.by_position import losses

    return losses(arguments.model, arguments.sources, arguments.text_field, arguments.sample)


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
            filters=arguments.filter,
            near_duplicates=arguments.near_duplicates,
            tasks=arguments.tasks,
            workers=arguments.workers,
            executor=arguments.executor,
        )
    skipped = "".join(f", {count} skipped ({reason})" for reason, count in result["skipped"].items())
    removed = "".join(f"\n  removed {count:,}: {reason}" for reason, count in result["removed"].items())
    removed += "".join(f"\n  lines removed {count:,}: {reason}" for reason, count in result["removed_lines"].items())
    print_result(
        arguments,
        result,
        f"{result['path']}: {result['documents']:,} documents, {result['tokens']:,} tokens, "
        f"{result['bytes']:,} bytes{skipped}{removed}",
    )
    return 0


def packing(arguments: argparse.Namespace) -> int:
    """`yupana corpus packing`."""
    import numpy as np

    from yupana.corpus.packing import compare
    from yupana.corpus.shards import open_corpus
    from yupana.report.corpora_text import packing_table

    stream = open_corpus(arguments.corpus).split("train")
    lengths = np.diff([*stream.starts, stream.n_tokens])
    result = {
        "corpus": str(arguments.corpus),
        "seq_len": arguments.seq_len,
        "documents": stream.n_documents,
        "tokens": stream.n_tokens,
        "methods": compare(lengths, arguments.seq_len, arguments.overlap),
    }
    print_result(arguments, result, packing_table(result))
    return 0
