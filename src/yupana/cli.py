"""The command line: which commands there are (commands/), and how a failure ends."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator

from yupana import __version__
from yupana.commands import anatomy, completion, corpus, doctor, evaluate, flops, hub, runs, scaling, train, tune
from yupana.commands.shared import Parser
from yupana.errors import UserError

COMMANDS = (train, tune, evaluate, runs, hub, corpus, flops, scaling, anatomy, doctor, completion)  # in the order of --help

EXAMPLES = """examples:
  yupana train 7m --run runs/demo                    train the demo on the Python library's own source
  yupana train --run runs/demo --resume              go on after a stop
  yupana train 40m --run runs/a --optim.lr 1e-3      any setting: --section.key value (see train --help)
  yupana tune runs/demo --data.train chat.jsonl --run runs/tuned    LoRA on the assistant's tokens
  yupana corpus explore books/ code/ --out looks/    what is inside, side by side
  yupana corpus prepare books/ --out corpora/books --tokenizer bpe:8192
  yupana eval runs/demo --text held-out.txt          nats a token and bits a byte, with intervals
  yupana sample runs/demo --prompt "def "
  yupana export runs/demo --out exported/            a folder that transformers loads
  yupana flops count llama3.2-1b --seq_len 4096
  yupana flops predict llama3.2-1b --seq_len 2048 --micro_batch 8 --hardware h100
  yupana anatomy attention                           its formulas, cost and check; alone: the whole step
  yupana scaling plan --hardware h100 --count 8 --hours 24 --mfu 0.45
  yupana report runs/demo
  yupana push runs/demo ada/llama-7m --dry_run       every file and the card; without --dry_run: sent, private
  yupana doctor                                      what works on this machine
"""

MORE_EXAMPLES = """
  yupana corpus list llama1 slimpajama               sizes, mixture, licence, source
  yupana corpus packing corpora/books --seq_len 2048   what fitting documents into sequences costs
  yupana flops limits                                what this machine can do, in under a minute
  yupana flops explain runs/demo --save waterfall.png   where the lost MFU went
  yupana flops ladder 7m --save ladder.png --write best.yaml   from naive to best, one lever at a time
  yupana scaling fit points.csv --out fits/mine      a law from finished runs, with its uncertainty
  yupana scaling predict fits/mine --config runs/demo/run.yaml --out prediction.json
  yupana scaling predict prediction.json --run runs/demo   beside the run, during and after it
  yupana scaling sweep sweep.yaml --dry              every run of a grid, and what the rest costs
  yupana import exported/ --run runs/imported        then: yupana train --run runs/imported --resume …
  yupana pull ada/llama-7m --out pulled/
"""
"""Of commands that have none above; each stands in its command's own --help."""


def main(argv: list[str] | None = None) -> int:
    """Run a command. Exit codes: 0 done, 2 the input is wrong (one sentence), 1 anything else."""
    try:
        arguments, rest = parser().parse_known_args(argv)
        if rest and not getattr(arguments, "takes_settings", False):
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


def parser() -> argparse.ArgumentParser:
    """The whole command line."""
    parser = Parser(
        prog="yupana",
        description="Pretrain Llama-family models and account for every FLOP.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--version", action="version", version=f"yupana {__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for group in COMMANDS:
        group.register(commands)
    for command in _under(parser):
        lines = [line for line in (EXAMPLES + MORE_EXAMPLES).splitlines() if line.strip().startswith(f"{command.prog} ")]
        if lines:
            command.epilog = "\n".join(["examples:", *lines])
            command.formatter_class = argparse.RawDescriptionHelpFormatter
    return parser


def _under(parser: argparse.ArgumentParser) -> Iterator[argparse.ArgumentParser]:
    """The commands of a parser, and theirs."""
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for command in action.choices.values():
                yield command
                yield from _under(command)
