"""To and from the Hugging Face hub: a run's model with its card, private unless told otherwise."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from yupana.errors import UserError
from yupana.files import sha256_of

PATTERN = re.compile(r"[\w.-]+/[\w.-]+")
RECORDS = ("run.yaml", "metrics.jsonl", "report.png")
"""What goes beside the model. env.json and report.html stay here: they describe this machine."""
FETCHED = ["*.json", "*.jsonl", "*.safetensors", "*.jinja", "*.yaml", "*.md"]  # no pickles


def push(
    run_path: Path, repository: str, *, public: bool, licence: str | None, which: str, dry_run: bool
) -> dict[str, Any]:
    """Send a run's model, tokenizer, card and records; returns `{"repository", "private", "files", "url"}`.

    `dry_run` touches no network: it makes every file and says what would be sent. Files that the hub has already are
    not sent again, so a push that broke off goes on. Raises UserError without a login, without network, and where the
    repository is public and that was not asked for.
    """
    if not PATTERN.fullmatch(repository):
        raise UserError(f"'{repository}' is no repository: write NAME/MODEL, such as ada/llama-40m")
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        _gather(run_path, folder, repository, licence, which)
        files = [
            {"path": path.name, "bytes": path.stat().st_size, "sha256": sha256_of(path)} for path in sorted(folder.iterdir())
        ]
        result: dict[str, Any] = {"repository": repository, "private": not public, "files": files, "url": None}
        if dry_run:
            return {**result, "card": (folder / "README.md").read_text()}
        return {**result, "url": _send(folder, repository, public)}


def pull(repository: str, out: Path) -> dict[str, Any]:
    """Fetch a model into `out`, going on where an earlier pull broke off. Raises UserError."""
    if not PATTERN.fullmatch(repository):
        raise UserError(f"'{repository}' is no repository: write NAME/MODEL, such as HuggingFaceTB/SmolLM2-135M")
    hub = _library()
    with _plain_errors(repository):
        hub.snapshot_download(repository, local_dir=str(out), allow_patterns=FETCHED)
    files = [path for path in sorted(out.iterdir()) if path.is_file()]
    return {"path": str(out), "files": [path.name for path in files], "bytes": sum(path.stat().st_size for path in files)}


def _gather(run_path: Path, folder: Path, repository: str, licence: str | None, which: str) -> None:
    """Every file of the repository, in one folder."""
    from yupana.report.card import model_card
    from yupana.report.page import write_report
    from yupana.report.read import read_run
    from yupana.run import open_run
    from yupana.train import checkpoint
    from yupana.train.exchange import export_run

    run = open_run(run_path)
    if checkpoint.complete(run):
        export_run(run.path, folder / "model", which, "bfloat16")
        for path in (folder / "model").iterdir():
            shutil.move(str(path), folder / path.name)
        (folder / "model").rmdir()
    elif run.export.is_dir():
        for path in run.export.iterdir():
            shutil.copyfile(path, folder / path.name)
    else:
        raise UserError(f"{run_path} has neither a checkpoint nor an export/: there is no model to push")
    write_report(run)
    for name in RECORDS:
        if (run.path / name).is_file():
            shutil.copyfile(run.path / name, folder / name)
    card = model_card(read_run(run), repository, licence, picture=(folder / "report.png").is_file())
    (folder / "README.md").write_text(card)


def _send(folder: Path, repository: str, public: bool) -> str:
    hub = _library()
    if hub.get_token() is None:
        raise UserError("you are not logged in to the hub: run hf auth login (the token is read from there only)")
    interface = hub.HfApi()
    with _plain_errors(repository):
        interface.create_repo(repository, private=not public, exist_ok=True)
        if not public and not interface.repo_info(repository).private:
            raise UserError(
                f"{repository} exists and is public, and a push is private unless --public is given: add --public, or "
                "choose another name"
            )
        interface.upload_folder(repo_id=repository, folder_path=str(folder), commit_message="A run of yupana")
    return f"{interface.endpoint}/{repository}"


def _library() -> Any:
    try:
        import huggingface_hub
    except ImportError:
        raise UserError("the hub needs huggingface_hub: pip install 'yupana[hf]'") from None
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    return huggingface_hub


@contextlib.contextmanager
def _plain_errors(repository: str) -> Iterator[None]:
    """What can go wrong with a hub, in one sentence."""
    from huggingface_hub import errors

    try:
        yield
    except UserError:
        raise
    except errors.OfflineModeIsEnabled:
        raise UserError("the hub is switched off here (HF_HUB_OFFLINE): unset it") from None
    except errors.RepositoryNotFoundError:
        raise UserError(f"the hub has no model {repository}, or it is private and you have no right to it") from None
    except errors.HfHubHTTPError as error:
        status = error.response.status_code if error.response is not None else "no"
        refused = ": your login has no right to it (hf auth whoami)" if status in (401, 403) else ""
        raise UserError(f"the hub refused {repository} (status {status}){refused}") from error
    except Exception as error:
        if isinstance(error, OSError) or type(error).__module__.startswith(("httpx", "requests")):
            raise UserError(f"the hub cannot be reached for {repository}: {' '.join(str(error).split())[:120]}") from error
        raise
