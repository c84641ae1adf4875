"""What several test files share: real text, a small corpus, and runs small enough to train in a second."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["WANDB_MODE"] = "offline"

SHARED_TEXT = Path(__file__).parents[2] / "shared" / "data" / "text"

TINY = [
    "--model.n_layers=2", "--model.d_model=32", "--model.n_heads=4", "--model.n_kv_heads=2", "--model.head_dim=8",
    "--model.d_ff=48", "--model.vocab_size=300", "--data.seq_len=32", "--train.global_batch=8", "--train.device=cpu",
    "--optim.warmup_steps=3", "--log.eval_tokens=2048", "--train.compile=off",
]  # fmt: skip


@pytest.fixture(scope="session", autouse=True)
def own_cache(tmp_path_factory):
    """Measured peaks and prepared corpora of the tests stay out of the user's cache; measured once a session."""
    if "XDG_CACHE_HOME" not in os.environ:
        os.environ["XDG_CACHE_HOME"] = str(tmp_path_factory.mktemp("cache"))


@pytest.fixture(scope="session")
def text_folder(tmp_path_factory):
    """Real prose and code: the shared English text where it is, else modules of the Python library."""
    folder = tmp_path_factory.mktemp("text")
    import textwrap as module

    library = Path(module.__file__).parent
    for name in ("textwrap.py", "argparse.py", "heapq.py", "json/decoder.py", "string.py", "bisect.py", "shlex.py"):
        (folder / (name.replace("/", "-") + ".txt")).write_text((library / name).read_text())
    return folder


@pytest.fixture(scope="session")
def corpus(text_folder, tmp_path_factory):
    """A corpus of bytes from `text_folder`."""
    from yupana.corpus.prepare import prepare

    out = tmp_path_factory.mktemp("corpora") / "bytes"
    prepare([str(text_folder)], out, "bytes", val_fraction=0.1)
    return out


@pytest.fixture
def yupana():
    """Run the command line in its own process; returns the finished process."""

    def call(*arguments, **options):
        command = [sys.executable, "-m", "yupana", *map(str, arguments)]
        return subprocess.run(command, capture_output=True, text=True, check=False, **options)

    return call
