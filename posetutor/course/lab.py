"""`posetutor lab`: a student copy of the course that is brought up to date without ever overwriting the student's work."""

import hashlib
import importlib.util
import itertools
import json
import os
import subprocess
import sys
from pathlib import Path

from posetutor.core import write_atomic
from posetutor.course.student import course_files

MANIFEST = ".posetutor.json"
FIRST = "0_start/00_quickstart.ipynb"


def read_manifest(folder: Path) -> dict[str, str]:
    """Name -> hash of every file as it was delivered; empty for a new folder or a manifest that cannot be read."""
    try:
        found = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return {k: v for k, v in found.items() if isinstance(v, str)} if isinstance(found, dict) else {}


def copy_course(target: Path, *, solutions: bool = False) -> list[str]:
    """Copy the course to `target`; a file the reader changed is kept, and the newer version is put beside it.

    A newer version that was put beside earlier, and changed since, is kept as well. Returns the messages to print.
    Raises NotADirectoryError when `target` is a file.
    """
    if target.exists() and not target.is_dir():
        raise NotADirectoryError(f"{target} is a file; give the name of a folder for the course")
    messages, delivered = [], read_manifest(target)
    for name, content in course_files(solutions=solutions):
        new, here = _digest(content), _digest_of(target / name)
        if here in (None, delivered.get(name)):
            if here != new:
                write_atomic(target / name, content)
        elif here != new and delivered.get(name) != new:
            beside = _name_beside(target, name, new, delivered)
            write_atomic(target / beside, content)
            delivered[beside] = new
            messages.append(f"kept your {name}; the new version is {beside}")
        delivered[name] = new
    write_atomic(target / MANIFEST, json.dumps(delivered, indent=1))
    return messages + [f"the course{' with solutions' if solutions else ''} is in {target}"]


def _name_beside(target: Path, name: str, new: str, delivered: dict[str, str]) -> str:
    """A name such as chapter.new.ipynb that is free, or holds what was delivered there."""
    stem, suffix = name.rsplit(".", 1)
    names = (f"{stem}.new{number or ''}.{suffix}" for number in itertools.count())
    return next(n for n in names if _digest_of(target / n) in (None, new, delivered.get(n)))


def where_stopped(folder: Path) -> str | None:
    """Name of the notebook the student changed last, or None when every one is as it was delivered."""
    changed = []
    for name, digest in read_manifest(folder).items():
        if name.endswith(".ipynb") and _digest_of(folder / name) not in (None, digest):
            changed.append(((folder / name).stat().st_mtime_ns, name))
    return max(changed)[1] if changed else None


def _digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def _digest_of(path: Path) -> str | None:
    return _digest(path.read_bytes()) if path.is_file() else None


def open_lab(folder: Path, notebook: str) -> int:
    """Start JupyterLab in the folder with one notebook open; returns its exit code. Root, the usual user of a container, is let in."""
    if importlib.util.find_spec("jupyterlab") is None:
        raise ModuleNotFoundError("JupyterLab is not installed; type: pip install jupyterlab")
    folder = folder.resolve()
    command = [sys.executable, "-m", "jupyterlab", str(folder / notebook), f"--notebook-dir={folder}"]
    if hasattr(os, "geteuid") and os.geteuid() == 0:
        command.append("--allow-root")
    return subprocess.run(command).returncode
