"""yupana pretrains Llama-family models and accounts for every FLOP.

In Python, what the commands do: `settings`, `pretrain`, `steps`, `open_run`, `explain`, `count`, `fit`, `plan`,
`tune_model`, and `YupanaCallback` for a `transformers` Trainer. Each is imported when it is first used (PEP 562), so
`import yupana` costs nothing.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from yupana.api import Run as Run
    from yupana.api import count as count
    from yupana.api import explain as explain
    from yupana.api import fit as fit
    from yupana.api import open_run as open_run
    from yupana.api import plan as plan
    from yupana.api import pretrain as pretrain
    from yupana.api import settings as settings
    from yupana.api import steps as steps
    from yupana.api import tune_model as tune_model
    from yupana.config import Config as Config
    from yupana.errors import UserError as UserError
    from yupana.tune.callback import YupanaCallback as YupanaCallback

_WHERE = {
    **dict.fromkeys(
        ["Run", "count", "explain", "fit", "open_run", "plan", "pretrain", "settings", "steps", "tune_model"], "yupana.api"
    ),
    "Config": "yupana.config",
    "UserError": "yupana.errors",
    "YupanaCallback": "yupana.tune.callback",
}

__all__ = ["__version__", *sorted(_WHERE)]


def __getattr__(name: str) -> Any:
    if name not in _WHERE:
        raise AttributeError(f"module 'yupana' has no attribute {name!r}")
    import importlib

    return getattr(importlib.import_module(_WHERE[name]), name)


def __dir__() -> list[str]:
    return __all__
