"""Who may import whom, and how fast the program answers."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import yupana

SOURCE = Path(yupana.__file__).parent
FOUNDATION = {"errors", "files", "config"}
ALLOWED = {
    "model": {"model", "errors", "files"},
    "anatomy": {"anatomy", "errors"},
    "flops": {"flops", "model.shapes", "run", "errors", "files"},  # run: the ladder reads its rungs' records
    "corpus": {"corpus", *FOUNDATION},
    "train": {"train", "model", "corpus", "flops", "run", "yupana", *FOUNDATION},
    "tune": {"tune", "train", "model", "corpus", "flops", "run", "yupana", *FOUNDATION},
    "scaling": {"scaling", "flops", "run", "model.shapes", "train.schedule", *FOUNDATION},
    "report": {"report", "run", "flops", "model.shapes", "scaling.compare", *FOUNDATION},
}
HEAVY = {"transformers", "trl", "peft", "datasets", "wandb", "matplotlib", "pyarrow", "tensorboard"}
SUBCLASSES = {"tune/callback.py", "tune/trainer.py"}  # what they define inherits from transformers' and TRL's classes


def imports(path: Path, *, top_level: bool = False) -> list[str]:
    tree = ast.parse(path.read_text())
    nodes = tree.body if top_level else ast.walk(tree)
    found = []
    for node in nodes:
        if isinstance(node, ast.Import):
            found += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module:
            found += [f"{node.module}.{alias.name}" for alias in node.names]
    return found


@pytest.mark.parametrize("part", sorted(p.name for p in SOURCE.iterdir() if p.name in ALLOWED))
def test_parts_import_only_what_they_may(part):
    for path in (SOURCE / part).rglob("*.py"):
        for name in imports(path):
            if name.split(".")[0] != "yupana":
                continue
            target = name.removeprefix("yupana").removeprefix(".") or "yupana"
            allowed = any(target == rule or target.startswith(rule + ".") for rule in ALLOWED[part])
            assert allowed or target == "__version__", f"{path.relative_to(SOURCE)} imports {name}"


def test_model_needs_only_torch_and_safetensors():
    allowed = {"yupana", "torch", "safetensors", *sys.stdlib_module_names}
    for path in (SOURCE / "model").rglob("*.py"):
        assert {name.split(".")[0] for name in imports(path)} <= allowed, path


def test_anatomy_needs_only_torch():
    allowed = {"yupana", "torch", *sys.stdlib_module_names}
    for path in (SOURCE / "anatomy").rglob("*.py"):
        assert {name.split(".")[0] for name in imports(path)} <= allowed, path


def test_anatomys_operations_use_no_autograd():
    """Only the checks may: the operations are the derivations."""
    for path in (SOURCE / "anatomy").rglob("*.py"):
        if path.stem not in ("checks", "cases", "references"):
            text = path.read_text()
            assert not any(word in text for word in ("requires_grad", "autograd.", "backward()", "nn.functional")), path


def test_heavy_libraries_are_imported_where_they_are_used():
    for path in SOURCE.rglob("*.py"):
        if str(path.relative_to(SOURCE)) in SUBCLASSES:
            continue
        found = {name.split(".")[0] for name in imports(path, top_level=True)}
        assert not found & HEAVY, f"{path.relative_to(SOURCE)} imports {found & HEAVY} at its top"


def test_help_needs_no_torch():
    code = "import sys; from yupana.cli import main; sys.argv = ['yupana', '--help']\n"
    code += "try: main()\nexcept SystemExit: pass\n"
    code += "assert not {'torch', 'numpy', 'rich', 'jsonargparse'} & set(sys.modules), 'a heavy import in --help'"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "yupana train 7m" in done.stdout


def test_reading_a_run_needs_no_torch():
    code = "import sys, yupana.run, yupana.report.read, yupana.report.text; assert 'torch' not in sys.modules"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
