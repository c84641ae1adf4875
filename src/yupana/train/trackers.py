"""TensorBoard, Weights & Biases and Trackio, beside the run directory. A tracker that fails never stops training."""

from __future__ import annotations

import contextlib
import os
import sys
import uuid
from collections.abc import Callable
from typing import Any

from yupana.config import Config, as_dict
from yupana.errors import UserError
from yupana.files import write_atomically
from yupana.run import RunDirectory


class Trackers:
    """The trackers that the configuration asks for, under the same metric names as metrics.jsonl."""

    def __init__(self, config: Config, run: RunDirectory, *, active: bool = True) -> None:
        self.config, self.run, self.active = config, run, active
        self.logs: dict[str, Callable[[dict[str, Any]], None]] = {}
        self.closes: list[Callable[[], None]] = []

    def __enter__(self) -> Trackers:
        log = self.config.log
        wanted = {"TensorBoard": log.tensorboard, "Weights & Biases": log.wandb, "Trackio": log.trackio}
        opens = {
            "TensorBoard": self._open_tensorboard,
            "Weights & Biases": self._open_wandb,
            "Trackio": self._open_trackio,
        }
        for name in (name for name, on in wanted.items() if on and self.active):
            try:
                opens[name]()
            except UserError:
                raise
            except Exception as error:
                print(f"{name} failed and is left out of this run: {error}", file=sys.stderr)
        return self

    def __exit__(self, *_: object) -> None:
        for close in self.closes:
            try:
                close()
            except Exception as error:
                print(f"a tracker could not be closed: {error}", file=sys.stderr)

    def log(self, record: dict[str, Any]) -> None:
        """Send one object of metrics."""
        for name, send in list(self.logs.items()):
            try:
                send(record)
            except Exception as error:
                print(f"{name} failed and is switched off for this run: {error}", file=sys.stderr)
                del self.logs[name]

    def _open_tensorboard(self) -> None:
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError:
            raise UserError("log.tensorboard needs TensorBoard: pip install 'yupana[track]'") from None
        writer = SummaryWriter(str(self.run.path / "tensorboard"))

        def send(record: dict[str, Any]) -> None:
            for name, value in record.items():
                if name != "step":
                    writer.add_scalar(name, value, record["step"])

        self.logs["TensorBoard"] = send
        self.closes.append(writer.close)

    def _open_wandb(self) -> None:
        try:
            import wandb
        except ImportError:
            raise UserError("log.wandb needs Weights & Biases: pip install 'yupana[track]'") from None
        mode = os.environ.get("WANDB_MODE") or ("online" if wandb.login(prompt=False) else "offline")
        session = wandb.init(
            project="yupana",
            id=self._identity("wandb_id"),
            name=self.run.path.name,
            dir=str(self.run.path),
            config=as_dict(self.config),
            mode=mode,  # type: ignore[arg-type]
            resume="allow",
        )
        self.logs["Weights & Biases"] = lambda record: session.log(record, step=record["step"])
        self.closes.append(session.finish)

    def _open_trackio(self) -> None:
        try:
            import trackio
        except ImportError:
            raise UserError("log.trackio needs Trackio: pip install 'yupana[track]'") from None
        with contextlib.redirect_stdout(sys.stderr):  # its greeting
            session = trackio.init(
                project="yupana",
                name=f"{self.run.path.name}-{self._identity('trackio_id')}",
                config=as_dict(self.config),
                resume="allow",
                auto_log_gpu=False,
                auto_log_cpu=False,
            )
        self.logs["Trackio"] = lambda record: session.log(
            {name: value for name, value in record.items() if name != "step"}, step=record["step"]
        )
        self.closes.append(self._close_trackio(trackio.finish))

    @staticmethod
    def _close_trackio(finish: Callable[[], None]) -> Callable[[], None]:
        def close() -> None:
            with contextlib.redirect_stdout(sys.stderr):
                finish()

        return close

    def _identity(self, file_name: str) -> str:
        """The same id when a run is resumed, so that its curve goes on."""
        file = self.run.path / file_name
        if not file.is_file():
            write_atomically(file, uuid.uuid4().hex[:8])
        return file.read_text()
