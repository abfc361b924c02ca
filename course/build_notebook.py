"""Export, execute and clean notebooks in place, so that what is stored is what the code does.

    python course/build_notebook.py nbs/2_codecs/21_gaussian.ipynb
    python course/build_notebook.py --from draft.md nbs/2_codecs/21_gaussian.ipynb   # jupytext Markdown draft -> notebook first
    python course/build_notebook.py --all

For each notebook: export its module, run every cell in a fresh kernel whose working directory is the notebook's folder, store the
outputs, clean the metadata, and print seconds, size, words, cells, pictures and whatever breaks the course's limits.
"""

import argparse
import datetime
import os
import resource
import subprocess
import sys
from pathlib import Path

import nbformat
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError
from nbdev.export import nb_export

ROOT = Path(__file__).resolve().parent.parent
MAX_KB, MAX_OUTPUT_LINES, MAX_SECONDS = 600, 20, 60
KERNEL = {"kernelspec": {"display_name": "python3", "language": "python", "name": "python3"}}


def notebooks() -> list[Path]:
    """The course's notebooks in order, without the template and checkpoints."""
    found = sorted((ROOT / "nbs").rglob("*.ipynb"))
    return [p for p in found if not any(part.startswith((".", "_")) for part in p.relative_to(ROOT / "nbs").parts)]


def from_markdown(draft: Path, path: Path) -> None:
    """Turn a jupytext Markdown draft into the notebook `path`."""
    import jupytext

    notebook = jupytext.read(draft, fmt="md")
    notebook.metadata = nbformat.from_dict(KERNEL)
    for number, cell in enumerate(notebook.cells):
        cell["id"] = f"cell-{number:03d}"
    path.parent.mkdir(parents=True, exist_ok=True)
    nbformat.write(notebook, path)


def output_lines(cell) -> int:
    """Lines of text a reader sees under the cell."""
    texts = [o.get("text", "") for o in cell.get("outputs", []) if o.output_type == "stream"]
    texts += [o.data["text/plain"] for o in cell.get("outputs", []) if "text/html" not in o.get("data", {}) and "text/plain" in o.get("data", {})]
    return sum(text.count("\n") + 1 for text in texts if text)


def report(path: Path, seconds: float) -> list[str]:
    """Print one line of facts about the stored notebook; return the limits it breaks."""
    notebook = nbformat.read(path, as_version=4)
    code = [c for c in notebook.cells if c.cell_type == "code"]
    words = sum(len(c.source.split()) for c in notebook.cells if c.cell_type == "markdown")
    pictures = sum("image/png" in o.get("data", {}) for c in code for o in c.get("outputs", []))
    size = path.stat().st_size // 1024
    print(f"{path.relative_to(ROOT)}: {seconds:.1f} s of one core, {size} kB, {words} words, {len(notebook.cells)} cells, {pictures} pictures")
    faults = [f"cell {n}: {output_lines(c)} lines of output" for n, c in enumerate(notebook.cells) if c.cell_type == "code" and output_lines(c) > MAX_OUTPUT_LINES]
    faults += [f"{size} kB is over {MAX_KB} kB"] if size > MAX_KB else []
    faults += [f"{seconds:.0f} s of one core is over {MAX_SECONDS} s"] if seconds > MAX_SECONDS else []
    return faults


def processor_seconds() -> float:
    """Processor time of all ended child processes: what a notebook costs on one core, whatever else the machine does meanwhile."""
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


def build(path: Path, execute: bool = True) -> bool:
    """Export, execute, store and clean one notebook; True when it ran and keeps the limits."""
    nb_export(path, lib_path=ROOT / "posetutor")
    if not execute:
        return True
    notebook = nbformat.read(path, as_version=4)
    start = processor_seconds()
    try:
        NotebookClient(notebook, timeout=900, kernel_name="python3", store_widget_state=False, resources={"metadata": {"path": str(path.parent)}}).execute()
    except CellExecutionError as error:
        bad = next((n for n, c in enumerate(notebook.cells) if any(o.output_type == "error" for o in c.get("outputs", []))), "?")
        print(f"{path.relative_to(ROOT)}: cell {bad} failed\n{str(error)[-2500:]}", file=sys.stderr)
        return False
    seconds = processor_seconds() - start
    notebook.metadata.pop("language_info", None)
    notebook.metadata["posetutor"] = {"seconds": round(seconds, 1), "executed": datetime.date.today().isoformat()}  # the site's run time and freshness
    nbformat.write(notebook, path)
    subprocess.run([sys.executable, "-c", "from nbdev.clean import nbdev_clean; import sys; nbdev_clean(fname=sys.argv[1])", str(path)], check=True, cwd=ROOT)
    faults = report(path, seconds)
    for fault in faults:
        print(f"  LIMIT {fault}", file=sys.stderr)
    return not faults


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("notebooks", nargs="*", type=Path)
    parser.add_argument("--from", dest="draft", type=Path, help="jupytext Markdown draft of the one notebook named")
    parser.add_argument("--all", action="store_true", help="every notebook of the course, in order")
    parser.add_argument("--no-exec", action="store_true", help="export only")
    args = parser.parse_args()
    paths = notebooks() if args.all else [p.resolve() for p in args.notebooks]
    if not paths or (args.draft and len(paths) != 1):
        parser.error("name the notebooks to build (exactly one with --from), or use --all")
    if args.draft:
        from_markdown(args.draft, paths[0])
    os.environ.setdefault("PYTHONHASHSEED", "0")
    os.environ.setdefault("POSETUTOR_STATIC", "1")  # store the picture of a widget, not a view that is dead without its kernel
    good = all([build(p, execute=not args.no_exec) for p in paths])
    if not args.no_exec:
        import claims

        try:
            print(claims.write())
        except ValueError as error:
            print(error, file=sys.stderr)
            good = False
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
