"""Write README.md from nbs/index.ipynb (Markdown cells; links and pictures made relative to the repository root), and its picture.

    python course/readme.py             # README.md
    python course/readme.py --picture   # also draw nbs/images/result.png with the shipped weights
"""

import re
import sys
from pathlib import Path

import nbformat

from posetutor.core import write_atomic

ROOT = Path(__file__).resolve().parent.parent
PICTURE = ROOT / "nbs" / "images" / "result.png"


def readme_text() -> str:
    """README.md as the index notebook says it."""
    notebook = nbformat.read(ROOT / "nbs" / "index.ipynb", as_version=4)
    text = "\n\n".join(cell.source.strip() for cell in notebook.cells if cell.cell_type == "markdown")
    text = re.sub(r"\]\((?!https?:|#|\.\./)", "](nbs/", text)
    return text.replace("](../", "](") + "\n"


if __name__ == "__main__":
    if "--picture" in sys.argv:
        from result_picture import result_picture

        print(write_atomic(PICTURE, result_picture()))
    print(write_atomic(ROOT / "README.md", readme_text()))
