"""Commands and links in README and docs are real; the site builds; the walk runs from top to bottom; tabs complete."""

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from documented import PAGES, ROOT, blocks, changed, examples, help_examples

import yupana as package
from yupana.cli import _under, parser
from yupana.config import settings
from yupana.tune.config import Tuning

LINKED = sorted({*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")})


def commands():
    """The words of every yupana command in the pages and in --help, with what tests/documented.py changes."""
    found = [(page.name, example) for page in PAGES for example in examples(page)]
    found += [("--help", example) for example in help_examples()]
    for where, example in found:
        words = shlex.split(changed(example.text, set())) if example.kind == "sh" else []
        if words[:1] == ["yupana"]:
            yield pytest.param(words[1:], id=f"{where}: {example.text[7:67]}")


@pytest.mark.parametrize("words", list(commands()))
def test_a_documented_command_exists_with_its_options(words):
    arguments, rest = parser().parse_known_args(words)
    known = {key for key, _, _ in settings(*([Tuning] if arguments.command == "tune" else []))}
    if rest:
        assert getattr(arguments, "takes_settings", False), f"unknown argument {rest[0]}"
    for word in rest:
        if word.startswith("--"):
            assert word[2:].split("=")[0] in known, f"unknown setting {word}"


def test_every_command_shows_an_example_of_itself():
    lacking = [command.prog for command in _under(parser()) if "examples:" not in (command.epilog or "")]
    assert lacking == ["yupana completion"]  # whose description is one


def prose(page):
    """A page's text without its code."""
    return re.sub(r"^```.*?^```$|`[^`\n]*`", "", page.read_text(), flags=re.M | re.S)


def anchors(page):
    """Where #… can lead on a page, as GitHub names headings."""
    heads = re.findall(r"^#+ (.+)$", re.sub(r"^```.*?^```$", "", page.read_text(), flags=re.M | re.S), re.M)
    return {re.sub(r"[^\w\- ]", "", head.strip().lower()).replace(" ", "-") for head in heads}


@pytest.mark.parametrize("page", LINKED, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_anchors_and_pictures_lead_somewhere(page):
    found = re.findall(r"\]\(([^)\s]+)\)|(?:src|href)=\"([^\"]+)\"", prose(page))
    for target in (link or attribute for link, attribute in found):
        if target.startswith(("http://", "https://", "mailto:", "data:")):
            continue
        name, _, anchor = target.partition("#")
        file = (page.parent / name).resolve() if name else page
        assert file.exists(), f"{page.name} links to {target}"
        assert not anchor or anchor in anchors(file), f"{page.name} links to {target}: no such heading"


def test_the_site_has_every_page_and_no_other():
    listed = re.findall(r": ([\w/.-]+\.md)", (ROOT / "mkdocs.yml").read_text())
    assert sorted(listed) == sorted(page.name for page in (ROOT / "docs").glob("*.md")), "mkdocs.yml: nav"


@pytest.mark.slow
def test_the_site_is_built_without_a_complaint_and_asks_nobody(tmp_path):
    pytest.importorskip("material")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "-q", "--site-dir", str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    pages = {path.name: path.read_text() for path in tmp_path.rglob("*.html")}
    assert "<math" in pages["math.html"]
    assert not re.search(r"\$\$|\\bar\{", re.sub(r"<(code|annotation).*?</\1>", "", pages["math.html"], flags=re.S))
    for name, text in pages.items():
        assert not re.search(r"<(script|img|iframe|link[^>]+stylesheet)[^>]+(src|href)=.?https?:", text), name


@pytest.mark.slow
def test_the_walk_runs_from_top_to_bottom(tmp_path):
    pytest.importorskip("trl")
    pytest.importorskip("pandas")
    place = tmp_path / "bin"
    place.mkdir()
    for name, call in (("yupana", f'exec {sys.executable} -m yupana "$@"'), ("python", f'exec {sys.executable} "$@"')):
        (place / name).write_text(f"#!/bin/sh\n{call}\n")
        (place / name).chmod(0o755)
    env = {**os.environ, "PATH": f"{place}:{os.environ['PATH']}", "PYTHONPATH": str(Path(package.__file__).parents[1])}
    shown = []
    for language, text in blocks(ROOT / "docs" / "walk.md", ("sh", "python")):
        command = ["bash", "-e", "-c", text] if language == "sh" else [sys.executable, "-c", text]
        done = subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, text=True, check=False)
        assert done.returncode == 0, f"{text}\n{done.stderr[-3000:]}"
        shown.append(done.stdout)
    assert (tmp_path / "runs/walk/report.html").is_file()
    assert (tmp_path / "runs/tuned/adapter/adapter_model.safetensors").is_file()
    assert "It is" in shown[-1]  # the tuned model answers as it was taught
    assert len(shown) == 9


def test_tabs_complete_commands_groups_and_settings(yupana):
    script = yupana("completion", "bash").stdout

    def completed(*words):
        tried = f"{script}\nCOMP_WORDS=({' '.join(map(shlex.quote, words))})\nCOMP_CWORD={len(words) - 1}\n_yupana\n"
        done = subprocess.run(["bash", "-c", tried + 'echo "${COMPREPLY[@]}"'], capture_output=True, text=True, check=True)
        return done.stdout.split()

    assert completed("yupana", "tr") == ["train"]
    assert completed("yupana", "scaling", "p") == ["predict", "plan"]
    assert completed("yupana", "scaling", "plan", "--har") == ["--hardware"]
    assert completed("yupana", "train", "--optim.l") == ["--optim.lr"]
    assert completed("yupana", "tune", "--lora.ra") == ["--lora.rank"]
    assert "llama3.2-1b" in completed("yupana", "train", "ll")
    wrong = yupana("completion", "bsh")
    assert wrong.returncode == 2
    assert "did you mean 'bash'" in wrong.stderr
