"""`yupana completion`: the words that a shell offers after a tab, read off the parser itself."""

from __future__ import annotations

import argparse
from typing import Any

from yupana.errors import UserError, did_you_mean

BASH = """\
_yupana() {{
    local typed="${{COMP_WORDS[COMP_CWORD]}}" command="${{COMP_WORDS[1]}}" within="${{COMP_WORDS[2]}}" words=""
    if [ "$COMP_CWORD" -eq 1 ]; then
        words="{commands}"
    else
        case "$command $within" in
{nested}
            *) case "$command" in
{plain}
            esac ;;
        esac
    fi
    COMPREPLY=($(compgen -W "$words" -- "$typed"))
    [ ${{#COMPREPLY[@]}} -eq 0 ] && COMPREPLY=($(compgen -f -- "$typed"))
}}
complete -o filenames -F _yupana yupana
"""
SHELLS = {
    "bash": ("{script}", 'eval "$(yupana completion bash)"', "~/.bashrc"),
    "zsh": ("autoload -U +X bashcompinit && bashcompinit\n{script}", 'eval "$(yupana completion zsh)"', "~/.zshrc"),
}


def register(commands: Any) -> None:
    """Add the command."""
    told = "print what a shell needs to complete commands and settings"
    how = "\n".join(f"  {line:40} in {file}" for _, line, file in SHELLS.values())
    c = commands.add_parser(
        "completion", help=told, description=told, epilog=f"Put this line into your shell's file:\n{how}",
        formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False,
    )  # fmt: skip
    c.add_argument("shell", metavar="SHELL", help=" or ".join(SHELLS))
    c.set_defaults(call=completion)


def completion(arguments: argparse.Namespace) -> int:
    """`yupana completion`."""
    from yupana.cli import parser

    if arguments.shell not in SHELLS:
        near = did_you_mean(arguments.shell, SHELLS)
        raise UserError(f"there is no completion for '{arguments.shell}'{near}: there is one for {', '.join(SHELLS)}")
    words = words_of(parser())
    top = [name.split()[0] for name in words]
    cases = {True: [], False: []}  # type: dict[bool, list[str]]
    for name, options in words.items():
        cases[" " in name].append(f"            '{name}') words=\"{' '.join(options)}\" ;;")
    script = BASH.format(
        commands=" ".join(dict.fromkeys(top)), nested="\n".join(cases[True]), plain="\n".join(cases[False])
    )
    print(SHELLS[arguments.shell][0].format(script=script), end="")
    return 0


def words_of(parser: argparse.ArgumentParser) -> dict[str, list[str]]:
    """What may follow each command, such as "train" or "flops count": options, settings, or commands of the group."""
    found: dict[str, list[str]] = {}
    for name, command in _commands(parser).items():
        inner = _commands(command)
        found[name] = [*inner, *_options(command)]
        for within, deeper in inner.items():
            found[f"{name} {within}"] = _options(deeper)
    for name, settings in (("train", _train_settings), ("tune", _tune_settings)):
        found[name] += settings()
    return found


def _commands(parser: argparse.ArgumentParser) -> dict[str, argparse.ArgumentParser]:
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            return dict(action.choices)
    return {}


def _options(parser: argparse.ArgumentParser) -> list[str]:
    return [option for action in parser._actions for option in action.option_strings if option.startswith("--")]


def _train_settings() -> list[str]:
    from yupana.config import preset_names, settings

    return [*preset_names(), *(f"--{key}" for key, _, _ in settings())]


def _tune_settings() -> list[str]:
    from yupana.config import settings
    from yupana.tune.config import Tuning

    return [f"--{key}" for key, _, _ in settings(Tuning)]
