"""Make the notebooks from their scripts, run them from top to bottom, and keep their outputs.

python notebooks/execute.py [NAME …]     all of them where none is named
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

import jupytext
import nbclient
import nbformat

FOLDER = Path(__file__).parent


def main() -> None:
    for name in sys.argv[1:] or sorted(path.stem for path in FOLDER.glob("*.py") if path.stem != "execute"):
        notebook = jupytext.read(FOLDER / f"{name}.py")
        with tempfile.TemporaryDirectory() as folder:  # nothing that it writes stays
            nbclient.NotebookClient(notebook, timeout=1800, resources={"metadata": {"path": folder}}).execute()
        for cell in (cell for cell in notebook.cells if cell.cell_type == "code"):
            cell.metadata.pop("execution", None)  # times of day: another run would differ in nothing else
            # What libraries warn of names this machine's folders, and is no part of the story.
            cell["outputs"] = [o for o in cell.get("outputs", []) if o.get("name") != "stderr"]
        nbformat.write(notebook, FOLDER / f"{name}.ipynb")
        print(f"{name}: {sum(len(cell.get('outputs', [])) for cell in notebook.cells)} outputs")


if __name__ == "__main__":
    main()
