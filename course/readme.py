"""Write README.md from nbs/index.ipynb: its Markdown cells, with picture paths made relative to the repository root."""

from pathlib import Path

import nbformat

from posetutor.core import write_atomic

ROOT = Path(__file__).resolve().parent.parent


def readme_text() -> str:
    """README.md as the index notebook says it."""
    notebook = nbformat.read(ROOT / "nbs" / "index.ipynb", as_version=4)
    text = "\n\n".join(cell.source.strip() for cell in notebook.cells if cell.cell_type == "markdown")
    return text.replace("](images/", "](nbs/images/").replace('src="images/', 'src="nbs/images/').replace("](../", "](").replace(".ipynb)", ".ipynb)") + "\n"


if __name__ == "__main__":
    print(write_atomic(ROOT / "README.md", readme_text()))
