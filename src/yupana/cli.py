"""The commands: parse, call, print. Every part is imported where it is used, so that --help answers at once."""

from __future__ import annotations

import argparse
import json
import os
import sys
from pathlib import Path
from typing import Any

from yupana import __version__
from yupana.errors import UserError

EXAMPLES = """examples:
  yupana train 7m --run runs/demo                    train the demo on the Python library's own source
  yupana train --run runs/demo --resume              go on after a stop
  yupana train 40m --run runs/a --optim.lr 1e-3      any setting: --section.key value (see train --help)
  yupana corpus prepare books/ --out corpora/books --tokenizer bpe:8192
  yupana sample runs/demo --prompt "def "
  yupana export runs/demo --out exported/            a folder that transformers loads
  yupana flops count llama3.2-1b --seq_len 4096
  yupana report runs/demo
"""


def main(argv: list[str] | None = None) -> int:
    """Run a command. Exit codes: 0 done, 2 the input is wrong (one sentence), 1 anything else."""
    try:
        arguments, rest = _parser().parse_known_args(argv)
        if rest and arguments.call is not train:
            raise UserError(f"unknown argument '{rest[0]}': see yupana {arguments.command} --help")
        arguments.overrides = rest
        return arguments.call(arguments)
    except UserError as error:
        print(f"yupana: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("yupana: stopped", file=sys.stderr)
        return 1
    except BrokenPipeError:  # `yupana … | head`
        sys.stderr.close()
        return 1


def train(arguments: argparse.Namespace) -> int:
    """`yupana train`."""
    if arguments.help:
        return _train_help()
    from yupana.train import host

    host.keep_memory()  # before torch allocates anything
    from yupana.run import RunDirectory
    from yupana.train.begin import begin
    from yupana.train.interrupt import Interrupted

    run = RunDirectory(arguments.run)
    try:
        last = begin(run, arguments.preset, arguments.config, arguments.overrides, resume=arguments.resume)
    except Interrupted as stopped:
        print(f"yupana: {stopped}", file=sys.stderr)
        return 1
    _finish(run, last, as_json=arguments.json)
    return 0


def _finish(run: Any, last: dict[str, Any], *, as_json: bool) -> None:
    """After training: the table, a sample, the report."""
    from yupana.files import write_atomically
    from yupana.report.page import write_report
    from yupana.report.text import run_table
    from yupana.train.sample import sample_text

    sample = sample_text(run.path)
    write_atomically(run.path / "sample.txt", sample)
    page = write_report(run)
    if as_json:
        print(json.dumps(last))
        return
    _show(run_table(run))
    print(f"\nA sample:\n{sample}\n")
    print(
        f"Report: {page}" if page else "No report: pip install 'yupana[report]', then yupana report " + str(run.path)
    )


def sample(arguments: argparse.Namespace) -> int:
    """`yupana sample`."""
    from yupana.train.sample import sample_text

    text = sample_text(
        Path(arguments.run),
        prompt=arguments.prompt,
        tokens=arguments.tokens,
        temperature=arguments.temperature,
        top_k=arguments.top_k,
        seed=arguments.seed,
        which=arguments.checkpoint,
    )
    _print(arguments, {"prompt": arguments.prompt, "text": text}, text)
    return 0


def export(arguments: argparse.Namespace) -> int:
    """`yupana export`."""
    from yupana.train.exchange import export_run

    result = export_run(Path(arguments.run), arguments.out, arguments.checkpoint, arguments.dtype)
    _print(arguments, result, f"wrote {result['path']}: {result['parameters']:,} parameters, {result['dtype']}")
    return 0


def import_(arguments: argparse.Namespace) -> int:
    """`yupana import`."""
    from yupana.train.exchange import import_folder

    result = import_folder(Path(arguments.folder), Path(arguments.run))
    _print(arguments, result, f"imported {result['parameters']:,} parameters into {result['run']}")
    return 0


def report(arguments: argparse.Namespace) -> int:
    """`yupana report`."""
    from yupana.report.page import write_report
    from yupana.report.text import run_table, summaries
    from yupana.run import open_run

    runs = [open_run(path) for path in arguments.runs]
    pages = [write_report(run) for run in runs]
    if arguments.json:
        print(json.dumps({"runs": [{**s, "report": str(p)} for s, p in zip(summaries(runs), pages, strict=True)]}))
        return 0
    _show(run_table(*runs))
    for page in pages:
        print(f"Report: {page}" if page else "No pages: pip install 'yupana[report]'")
    return 0


def flops_count(arguments: argparse.Namespace) -> int:
    """`yupana flops count`."""
    from yupana.flops.count import breakdown, flops_per_token
    from yupana.named import shape_of
    from yupana.report.text import flops_table

    shape = shape_of(arguments.model)
    counts = flops_per_token(shape, arguments.seq_len)
    parts = breakdown(shape, arguments.seq_len)
    if arguments.json:
        print(
            json.dumps(
                {
                    "model": arguments.model,
                    "seq_len": arguments.seq_len,
                    "parameters": shape.parameters,
                    "matmul_parameters": shape.matmul_parameters,
                    "flops_per_token": counts,
                    "parts": [{"name": n, "parameters": p, "palm": f} for n, p, f in parts],
                }
            )
        )
        return 0
    _show(flops_table(arguments.model, shape, arguments.seq_len))
    return 0


def corpus_prepare(arguments: argparse.Namespace) -> int:
    """`yupana corpus prepare`."""
    from yupana.corpus.prepare import prepare
    from yupana.report.text import PrepareProgress

    with PrepareProgress() as progress:
        result = prepare(
            arguments.sources,
            arguments.out,
            arguments.tokenizer,
            val_fraction=arguments.val_fraction,
            text_field=arguments.text_field,
            progress=progress,
        )
    skipped = "".join(f", {count} skipped ({reason})" for reason, count in result["skipped"].items())
    _print(
        arguments,
        result,
        f"{result['path']}: {result['documents']:,} documents, {result['tokens']:,} tokens, "
        f"{result['bytes']:,} bytes{skipped}",
    )
    return 0


def _train_help() -> int:
    from yupana.config import preset_names, settings
    from yupana.report.text import settings_table

    _parser().parse_args(["train", "--usage"]).usage_printer()
    print(f"\nPresets: {', '.join(preset_names())}\n\nSettings (in a YAML file, or as --section.key value):")
    _show(settings_table(settings()))
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="yupana",
        description="Pretrain Llama-family models and account for every FLOP.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--version", action="version", version=f"yupana {__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")

    def add(name: str, call: Any, told: str, to: Any = commands, **options: Any) -> argparse.ArgumentParser:
        command = to.add_parser(name, help=told, description=told, allow_abbrev=False, **options)
        command.set_defaults(call=call)
        command.add_argument("--json", action="store_true", help="print one JSON object")
        return command

    c = add("train", train, "train a model; ends with a report and a sample", add_help=False)
    c.add_argument(
        "preset", nargs="?", metavar="PRESET", help="the settings to start from, such as 7m or llama3.2-1b"
    )
    c.add_argument("--config", type=Path, metavar="FILE", help="YAML settings, on top of the preset")
    c.add_argument("--run", type=Path, metavar="DIR", default=Path("runs/run"), help="run directory (runs/run)")
    c.add_argument("--resume", action="store_true", help="go on with the run in DIR")
    c.add_argument("-h", "--help", action="store_true", help="show this and every setting")
    c.add_argument("--usage", action="store_true", help=argparse.SUPPRESS)
    c.set_defaults(usage_printer=c.print_help)

    c = add("sample", sample, "text from a run's checkpoint")
    c.add_argument("run", metavar="RUN")
    c.add_argument("--prompt", default="", help="text to continue; empty starts a new document")
    c.add_argument("--tokens", type=int, default=200, help="tokens to write at most (200)")
    c.add_argument("--temperature", type=float, default=0.8, help="0 takes the likeliest token (0.8)")
    c.add_argument("--top_k", type=int, default=50, help="sample among so many; 0: all (50)")
    c.add_argument("--seed", type=int, default=0)
    c.add_argument("--checkpoint", default="last", help="last, best or a step")

    c = add("export", export, "write a Hugging Face folder that transformers loads")
    c.add_argument("run", metavar="RUN")
    c.add_argument("--out", type=Path, help="folder to write (RUN/export)")
    c.add_argument("--checkpoint", default="last", help="last, best or a step")
    c.add_argument("--dtype", choices=["bfloat16", "float32"], default="bfloat16")

    c = add("import", import_, "begin a run from a Hugging Face folder's weights")
    c.add_argument("folder", metavar="FOLDER")
    c.add_argument("--run", required=True, metavar="DIR", help="run directory to make")

    c = add("report", report, "a page and plots from run directories")
    c.add_argument("runs", nargs="+", metavar="RUN")

    flops = commands.add_parser("flops", help="count FLOPs", allow_abbrev=False)
    group = flops.add_subparsers(dest="flops_command", required=True, metavar="COMMAND")
    c = add("count", flops_count, "FLOPs and parameters of a model, by part, in both conventions", to=group)
    c.add_argument("model", metavar="MODEL", help="a preset, a run.yaml, a run directory or a Hugging Face folder")
    c.add_argument("--seq_len", type=int, default=2048, help="tokens in a sequence (2048)")

    corpus = commands.add_parser("corpus", help="from text to token shards", allow_abbrev=False)
    group = corpus.add_subparsers(dest="corpus_command", required=True, metavar="COMMAND")
    c = add("prepare", corpus_prepare, "token shards from text", to=group)
    c.add_argument("sources", nargs="+", metavar="SOURCE", help="files, folders, 'python', or hf:NAME")
    c.add_argument("--out", type=Path, required=True, metavar="DIR", help="folder of shards to make")
    c.add_argument("--tokenizer", default="bpe:4096", help="bytes, bpe:VOCAB, llama3, or a folder (bpe:4096)")
    c.add_argument("--val_fraction", type=float, default=0.01, help="share of documents held out (0.01)")
    c.add_argument("--text_field", default="text", help="field or column that holds the text (text)")
    return parser


class _Parser(argparse.ArgumentParser):
    """argparse, with its complaints as a UserError in one sentence."""

    def error(self, message: str) -> Any:
        raise UserError(f"{message}: see {self.prog} --help")


def _print(arguments: argparse.Namespace, result: dict[str, Any], text: str) -> None:
    print(json.dumps(result, default=str) if arguments.json else text)


def _show(renderable: Any) -> None:
    from rich.console import Console

    Console(width=None if sys.stdout.isatty() else int(os.environ.get("COLUMNS", 120))).print(renderable)
