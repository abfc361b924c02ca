"""The modules are exactly what the notebooks export."""

import re
import shutil
from pathlib import Path

import pytest
from nbdev.export import nb_export

ROOT = Path(__file__).resolve().parent.parent
HAND_WRITTEN = {"__init__.py", "cli.py", "_modidx.py"}
TOOLS = "course/"  # the subpackage of teacher's and student's tools is written by hand as well


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    """All notebooks exported into an empty package."""
    folder = tmp_path_factory.mktemp("export")
    shutil.copytree(ROOT / "nbs", folder / "nbs", ignore=shutil.ignore_patterns(".*"))
    (folder / "posetutor").mkdir()
    shutil.copy(ROOT / "settings.ini", folder)
    for path in sorted((folder / "nbs").rglob("[0-9]*.ipynb")):
        nb_export(path, lib_path=folder / "posetutor")
    return folder / "posetutor"


def test_modules_equal_their_notebooks(exported):
    fresh = {p.relative_to(exported).as_posix() for p in exported.rglob("*.py")} - HAND_WRITTEN
    kept = {p.relative_to(ROOT / "posetutor").as_posix() for p in (ROOT / "posetutor").rglob("*.py") if p.name not in HAND_WRITTEN}
    kept = {name for name in kept if not name.startswith(TOOLS)}
    fresh = {name for name in fresh if Path(name).name not in HAND_WRITTEN}
    assert fresh == kept
    differing = [name for name in sorted(kept) if (exported / name).read_text() != (ROOT / "posetutor" / name).read_text()]
    assert not differing, f"run `python course/build_notebook.py --no-exec --all`: {differing}"


def test_one_notebook_owns_one_module():
    for path in sorted((ROOT / "nbs").rglob("[0-9]*.ipynb")):
        name = path.stem.split("_", 1)[1]
        text = path.read_text(encoding="utf-8")
        exported = re.search(r"#\| default_exp ([\w.]+)", text)
        if exported:
            assert exported[1].split(".")[-1] == name, f"{path.name} must export the module {name}"
