"""`posetutor lab`: copies the student course, never overwrites what was changed, and remembers where one stopped."""

import json
import os

import pytest

from posetutor import cli
from posetutor.course import lab, student


def notebook(text):
    return json.dumps({"cells": [{"cell_type": "markdown", "metadata": {}, "source": [text]}], "metadata": {}, "nbformat": 4, "nbformat_minor": 5})


@pytest.fixture
def course(tmp_path, monkeypatch):
    """A small course; returns its source folder and a folder to copy it to."""
    source = tmp_path / "source"
    (source / "0_start").mkdir(parents=True)
    for name in ("index.ipynb", "0_start/00_quickstart.ipynb", "0_start/01_geometry.ipynb"):
        (source / name).write_text(notebook("old"))
    (source / "_template.ipynb").write_text("hidden")
    monkeypatch.setattr(student, "course_folder", lambda: source)
    return source, tmp_path / "mine"


def holds(path, word):
    return json.loads(path.read_text(encoding="utf-8"))["cells"][0]["source"] == [word]


def test_untouched_copies_are_brought_up_to_date(course):
    source, mine = course
    assert lab.copy_course(mine) == [f"the course is in {mine}"]
    assert not (mine / "_template.ipynb").exists()
    (source / "index.ipynb").write_text(notebook("new"))
    assert lab.copy_course(mine) == [f"the course is in {mine}"]
    assert holds(mine / "index.ipynb", "new")
    (mine / "index.ipynb").unlink()
    lab.copy_course(mine)
    assert holds(mine / "index.ipynb", "new"), "a deleted notebook comes back"


def test_changed_files_are_kept_beside_every_newer_version(course):
    source, mine = course
    lab.copy_course(mine)
    (mine / "index.ipynb").write_text(notebook("my work"))
    assert len(lab.copy_course(mine)) == 1, "nothing new, nothing to say"
    (source / "index.ipynb").write_text(notebook("newer"))
    assert lab.copy_course(mine)[0] == "kept your index.ipynb; the new version is index.new.ipynb"
    assert holds(mine / "index.ipynb", "my work") and holds(mine / "index.new.ipynb", "newer")
    assert len(lab.copy_course(mine)) == 1, "told once"
    (source / "index.ipynb").write_text(notebook("newest"))
    assert "index.new.ipynb" in lab.copy_course(mine)[0]
    assert holds(mine / "index.new.ipynb", "newest"), "an untouched .new is replaced"
    (mine / "index.new.ipynb").write_text(notebook("my work in the new one"))
    (source / "index.ipynb").write_text(notebook("fourth"))
    assert "index.new1.ipynb" in lab.copy_course(mine)[0]
    assert holds(mine / "index.new.ipynb", "my work in the new one") and holds(mine / "index.new1.ipynb", "fourth") and holds(mine / "index.ipynb", "my work")


@pytest.mark.parametrize("manifest", ["not json", "[]", '{"index.ipynb": 3}', None])
def test_a_lost_manifest_loses_no_work(course, manifest):
    source, mine = course
    lab.copy_course(mine)
    (mine / "index.ipynb").write_text(notebook("my work"))
    (mine / lab.MANIFEST).unlink()
    if manifest is not None:
        (mine / lab.MANIFEST).write_text(manifest)
    assert "kept your index.ipynb" in lab.copy_course(mine)[0]
    assert holds(mine / "index.ipynb", "my work") and holds(mine / "index.new.ipynb", "old")


def test_it_remembers_the_notebook_changed_last(course):
    source, mine = course
    lab.copy_course(mine)
    assert lab.where_stopped(mine) is None
    os.utime(mine / "index.ipynb", (2e9, 2e9))
    assert lab.where_stopped(mine) is None, "a newer date alone is no work"
    for name, date in (("0_start/01_geometry.ipynb", 1.5e9), ("0_start/00_quickstart.ipynb", 1.4e9)):
        (mine / name).write_text(notebook("my work"))
        os.utime(mine / name, (date, date))
    lab.copy_course(mine)
    assert lab.where_stopped(mine) == "0_start/01_geometry.ipynb"
    (mine / "0_start/01_geometry.ipynb").unlink()
    assert lab.where_stopped(mine) == "0_start/00_quickstart.ipynb"


def test_the_command_says_and_opens_where_one_stopped(course, monkeypatch, capsys):
    source, mine = course
    opened = []
    monkeypatch.setattr(lab, "open_lab", lambda folder, name: opened.append(name) or 0)
    assert cli.main(["lab", str(mine)]) == 0
    assert "start with 0_start/00_quickstart.ipynb" in capsys.readouterr().out
    (mine / "0_start/01_geometry.ipynb").write_text(notebook("my work"))
    assert cli.main(["lab", str(mine)]) == 0
    assert "you stopped at 0_start/01_geometry.ipynb" in capsys.readouterr().out
    assert opened == ["0_start/00_quickstart.ipynb", "0_start/01_geometry.ipynb"]
    assert cli.main(["lab", str(mine), "--no-open"]) == 0 and len(opened) == 2


def test_jupyterlab_starts_in_the_folder(course, monkeypatch):
    source, mine = course
    lab.copy_course(mine)
    commands = []
    monkeypatch.setattr(lab.subprocess, "run", lambda command: commands.append(command) or type("Done", (), {"returncode": 0}))
    monkeypatch.chdir(mine.parent)
    monkeypatch.setattr(lab.importlib.util, "find_spec", lambda name: object())
    opened = [str(mine.resolve() / lab.FIRST), f"--notebook-dir={mine.resolve()}"]
    for user, allowed in ((1000, []), (0, ["--allow-root"])):
        monkeypatch.setattr(lab.os, "geteuid", lambda user=user: user, raising=False)
        assert lab.open_lab(lab.Path("mine"), lab.FIRST) == 0
        assert commands[-1][3:] == opened + allowed
    monkeypatch.setattr(lab.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ModuleNotFoundError, match="pip install jupyterlab"):
        lab.open_lab(mine, lab.FIRST)


def test_solutions_on_demand(tmp_path, capsys):
    assert cli.main(["lab", str(tmp_path / "student"), "--no-open"]) == 0
    assert cli.main(["lab", str(tmp_path / "teacher"), "--no-open", "--solutions"]) == 0
    assert "with solutions" in capsys.readouterr().out
    ours = "2_codecs/21_gaussian.ipynb"
    assert "BEGIN SOLUTION" not in (tmp_path / "student" / ours).read_text(encoding="utf-8")
    assert "BEGIN SOLUTION" in (tmp_path / "teacher" / ours).read_text(encoding="utf-8")


def test_a_file_in_the_way_is_refused_in_one_line(tmp_path, capsys):
    (tmp_path / "file").write_text("x")
    assert cli.main(["lab", str(tmp_path / "file"), "--no-open"]) == 2
    assert capsys.readouterr().err.strip().endswith("is a file; give the name of a folder for the course")
