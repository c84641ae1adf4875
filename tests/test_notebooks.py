"""The notebooks run from top to bottom in a fresh kernel, and their two forms say the same.

llama1b and mfu, which take minutes and print seconds, run once; that their losses come again is test_train.py's.
"""

from pathlib import Path

import pytest
from conftest import TINY

NOTEBOOKS = Path(__file__).parents[1] / "notebooks"
TRAINING = f"""
from yupana.run import RunDirectory
from yupana.train.begin import begin
begin(RunDirectory("run"), "7m", None, {[*TINY, "--train.steps=30", "--log.eval_every=10"]} + ["--data.corpus=CORPUS"])
"""
WITHOUT_CLOCK = ("corpora", "scaling_laws", "transformer_math")  # what they print is the same whenever they run
NAMES = sorted(path.stem for path in NOTEBOOKS.glob("*.ipynb"))


@pytest.mark.parametrize("name", NAMES)
def test_pair_is_in_step(name):
    jupytext = pytest.importorskip("jupytext")
    script, notebook = (jupytext.read(NOTEBOOKS / f"{name}{ending}") for ending in (".py", ".ipynb"))
    assert [(c.cell_type, c.source) for c in script.cells] == [(c.cell_type, c.source) for c in notebook.cells]


@pytest.mark.parametrize("name", NAMES)
def test_the_first_cell_installs_and_sees_to_the_order(name):
    jupytext = pytest.importorskip("jupytext")
    first = next(cell for cell in jupytext.read(NOTEBOOKS / f"{name}.py").cells if cell.cell_type == "code")
    assert '"pip", "install"' in first.source
    assert "in_order()" in first.source


@pytest.mark.slow
def test_a_cell_run_out_of_order_says_so():
    nbformat = pytest.importorskip("nbformat")
    nbclient = pytest.importorskip("nbclient")
    cells = [
        "from yupana import notebook\nnotebook.in_order()",
        "print(run.path)",
        "def show():\n    return console",
        "show()",
        "import json\njson.dumps(absent=nothing)",
        "exec('missing', {})",  # not a name of this notebook
    ]
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(source) for source in cells])
    nbclient.NotebookClient(notebook, allow_errors=True, timeout=120).execute()
    told = ["".join(o.get("evalue", "") for o in cell.outputs) for cell in notebook.cells]
    for cell, name in ((1, "run"), (3, "console"), (4, "nothing")):
        assert told[cell].startswith(f"'{name}' is not there yet: a cell above this one makes it. Run the notebook from")
    assert told[0] == told[2] == ""
    assert told[5] == "name 'missing' is not defined"


@pytest.mark.slow
def test_training_shows_one_line_that_moves_on_in_a_notebook(corpus, tmp_path):
    nbformat = pytest.importorskip("nbformat")
    nbclient = pytest.importorskip("nbclient")
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(TRAINING.replace("CORPUS", str(corpus)))])
    nbclient.NotebookClient(notebook, timeout=120, resources={"metadata": {"path": str(tmp_path)}}).execute()
    shown = [o.data["text/plain"] for o in notebook.cells[0].outputs if "data" in o]
    moving = [text for text in shown if "━" in text or "…" in text]
    assert len(moving) == 1
    assert moving[0].startswith(f"{24 * '━'}  step     30/30  loss ")
    assert len([text for text in shown if "validation loss" in text]) == 4  # these stay


def run(name, folder):
    """A notebook as it is after it ran from top to bottom in a fresh kernel."""
    nbformat = pytest.importorskip("nbformat")
    nbclient = pytest.importorskip("nbclient")
    folder.mkdir()
    notebook = nbformat.read(NOTEBOOKS / f"{name}.ipynb", as_version=4)
    nbclient.NotebookClient(notebook, timeout=900, resources={"metadata": {"path": str(folder)}}).execute()
    return [output for cell in notebook.cells for output in cell.get("outputs", [])]


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_notebook_runs_in_order(name, tmp_path):
    outputs = run(name, tmp_path / "once")
    pictures = [o.data["image/png"] for o in outputs if "image/png" in o.get("data", {})]
    assert pictures, "the notebook shows no picture"
    if name in WITHOUT_CLOCK:
        told = printed(outputs)
        assert len(told) > 500
        assert printed(run(name, tmp_path / "twice")) == told


def printed(outputs):
    """What the cells printed; where one output ends and the next begins is up to the kernel."""
    return "".join(o.text for o in outputs if o.get("name") == "stdout")
