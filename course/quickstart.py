"""Run the quickstart notebook, print its score table and leave one self-contained HTML page.

    python course/quickstart.py                      # drawn figures, no data needed
    python course/quickstart.py --data my_folder     # a folder with COCO keypoint JSON files and the images they name
"""

import argparse
import os
import sys
from pathlib import Path

import nbformat
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError
from nbconvert import HTMLExporter
from traitlets.config import Config

ROOT = Path(__file__).resolve().parent.parent
NOTEBOOK = ROOT / "nbs" / "0_start" / "00_quickstart.ipynb"


def self_contained_html(notebook) -> str:
    """The executed notebook as one page that asks nothing from the network."""
    config = Config()
    config.HTMLExporter.embed_images = True
    config.HTMLExporter.mathjax_url = ""
    config.HTMLExporter.require_js_url = ""
    config.HTMLExporter.jquery_url = ""
    config.HTMLExporter.mermaid_js_url = ""
    return HTMLExporter(config=config).from_notebook_node(notebook)[0]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, help="folder with COCO keypoint JSON files and images (default: drawn figures)")
    parser.add_argument("--out", type=Path, default=ROOT / "_out" / "quickstart.html")
    args = parser.parse_args()
    if args.data is not None:
        if not args.data.is_dir():
            print(f"quickstart: {args.data} is not a folder; give one that holds COCO keypoint JSON files and their images", file=sys.stderr)
            return 2
        os.environ["POSETUTOR_QUICKSTART_DATA"] = str(args.data.resolve())
    os.environ.setdefault("POSETUTOR_STATIC", "1")  # a page has no kernel: store pictures of the widgets
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    print(f"running {NOTEBOOK.relative_to(ROOT)} (about a minute on two cores)", flush=True)
    try:
        NotebookClient(notebook, timeout=1800, kernel_name="python3", resources={"metadata": {"path": str(NOTEBOOK.parent)}}).execute()
    except CellExecutionError as error:
        last = [line for line in str(error).strip().splitlines() if line.strip()][-1]
        print(f"quickstart: a cell failed: {last}", file=sys.stderr)
        return 1
    for cell in notebook.cells:
        if "scores" in cell.metadata.get("tags", []):
            print("".join(o.get("text", "") for o in cell.outputs if o.output_type == "stream"), end="")
    from posetutor.core import write_atomic

    write_atomic(args.out, self_contained_html(notebook))
    print(f"page: {args.out}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
