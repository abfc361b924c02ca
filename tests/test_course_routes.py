"""Routes: the shipped ones hold, every kind of fault is named, links are up to date, and the zip is whole, small and reproducible."""

import io
import json
import re
import zipfile
from pathlib import Path

import pytest

from posetutor import cli
from posetutor.core import refuses
from posetutor.course import routes
from posetutor.course.chapters import Chapter, Exercise, Node, course_folder, read

CHAPTERS = routes.all_chapters()
SHIPPED = routes.load_routes()


@pytest.mark.parametrize("name", SHIPPED)
class TestShippedRoute:
    def test_holds(self, name):
        assert routes.route_faults(SHIPPED[name], CHAPTERS) == []

    def test_text_and_plan_show_every_session_and_never_count_what_is_planned(self, name):
        route = SHIPPED[name]
        text, plan = routes.route_text(route, CHAPTERS), routes.plan_html(route, CHAPTERS)
        planned = [p for s in route.sessions for p in s.parts if p.planned]
        assert "FAULT" not in text and all(s.title in text for s in route.sessions)
        assert plan.count("<section>") == len(route.sessions) and plan.count("<tr class=planned>") == len(planned)
        assert all(routes.part_minutes(p, CHAPTERS) == 0 for p in planned)
        assert sum(int(m) for m in re.findall(r"^ {5} *(\d+)  ", text, re.MULTILINE)) == route.minutes
        assert not re.search(r'(?:src|href)="(?:https?:)?//', plan)
        for number in route.chapters:
            assert CHAPTERS[number].path.name in plan

    def test_leaves_out_no_chapter_that_is_needed(self, name):
        route = SHIPPED[name]
        known = set(route.assumes) | set(route.chapters)
        assert all(need in known for number in route.chapters for need in routes.needed(CHAPTERS[number]))


def test_the_three_routes_of_the_course_and_a_single_class():
    assert set(SHIPPED) >= {"term", "codecs", "edge", "decoders"}
    assert 12 <= len(SHIPPED["term"].sessions) <= 15 and SHIPPED["decoders"].minutes == 90
    missing = set(CHAPTERS) - set(SHIPPED["term"].chapters) - {int(p.text.split()[0]) for s in SHIPPED["term"].sessions for p in s.parts if p.planned}
    assert not missing & {0, 1, 2, 10, 11, 12, 13, 14, 15, 20, 21, 30, 31, 41, 50, 64}, "the term visits every chapter of the first slice"


# --- a small course to break -----------------------------------------------------------------------------------------------------


def chapter(number, needs="none", sections=("1 · First", "The claim"), exercises=(10,), folder=Path("/course")):
    cells = [Node(cell_type="markdown", source="\n\n".join(f"## {s}\n\nText." for s in sections), metadata=Node())]
    made = [Exercise(n, f"E{n}", 1, minutes, 0, 0, 0, ()) for n, minutes in enumerate(exercises, 1)]
    numbers = [int(n) for n in re.findall(r"\b\d\d\b", needs)]
    return Chapter(folder / f"{number:02d}_c.ipynb", f"{number:02d}_c", number, f"Title {number}", "A sentence.", {"Prerequisites": needs}, cells, numbers, 40, made)


COURSE = {c.number: c for c in (chapter(1), chapter(2, "01 c"), chapter(3, "02 c; pictures use 09 viz"), chapter(4, exercises=(5, 20)))}
GOOD = """
routes:
  mine:
    title: Mine
    minutes: 60
    assumes:
      1: known from school
    sessions:
      - title: One
        minutes: 60
        parts:
          - {chapter: 2, sections: ["1", the claim], minutes: 40}
          - {chapter: 4, exercises: [1], minutes: 10}
          - do: a break
            minutes: 10
          - planned: 77 Not written
        homework:
          - {chapter: 4, exercises: [2]}
"""


def faults(text, tmp_path):
    path = tmp_path / "routes.yml"
    path.write_text(text, encoding="utf-8")
    return routes.route_faults(routes.load_routes(path)["mine"], COURSE)


def test_a_good_route_has_no_faults(tmp_path):
    assert faults(GOOD, tmp_path) == []


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("chapter: 2,", "chapter: 99,", "session 1 (One): there is no chapter 99; chapters are 01, 02, 03, 04"),
        ("chapter: 2,", "chapter: 3,", "chapter 03_c needs 02 (Title 2); put it earlier, or list it under 'assumes'"),
        ("1: known", "4: known", "chapter 02_c needs 01 (Title 1)"),
        ("1: known", "8: known", "assumes chapter 08, which does not exist"),
        ('["1", the claim]', '["1", Nowhere]', "chapter 02_c has no section 'Nowhere'; it has 1 · First; The claim"),
        ("exercises: [1], ", "exercises: [7], ", "chapter 04_c has no exercise 7; it has 2"),
        ("the claim], minutes: 40}", "the claim]}", "minutes are missing for 02 Title 2: 1 · First; The claim"),
        ("exercises: [1], minutes: 10", "exercises: [2], minutes: 10", "gets 10 minutes, but its exercises alone take 20"),
        ("minutes: 40}", "minutes: 35}", "session 1 (One): the parts add up to 55 minutes, but 60 are stated"),
        ("        minutes: 60\n", "", "session 1 (One): its minutes are missing; the parts add up to 60"),
        ("    minutes: 60\n    assumes", "    minutes: 90\n    assumes", "the sessions add up to 60 minutes, but 90 are stated"),
        ("    minutes: 60\n    assumes", "    assumes", "route mine: its minutes are missing; the sessions add up to 60"),
    ],
)
def test_each_fault_is_named(tmp_path, old, new, said):
    assert GOOD.count(old) == 1, old
    found = faults(GOOD.replace(old, new), tmp_path)
    assert any(said in fault for fault in found), found
    assert all(fault.startswith("route mine") and "\n" not in fault for fault in found)


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("    title: Mine\n", "", "route mine: 'title' is missing"),
        ("planned: 77", "plan: 77", "route mine, session 1 (One), part 4: unknown entry 'plan'"),
        ("minutes: 40", "minutes: forty", "part 1: minutes must be a whole number above 0, got 'forty'"),
        ("minutes: 40", "minutes: -5", "minutes must be a whole number above 0, got -5"),
        ("chapter: 2,", "chapter: two,", "chapter must be a number, got 'two'"),
        ('["1", the claim]', "everything", "'sections' must be a list, got 'everything'"),
        ("exercises: [1], ", "exercises: [one], ", "exercises are numbers"),
        ("- do: a break", "- sections: [x]", "a part is one of"),
        ("      - title: One\n", "      - titel: One\n", "session 1: unknown entry 'titel'"),
        ("1: known from school", "- school", "'assumes' must list chapter numbers"),
        ("routes:", "paths:", "there must be an entry 'routes'"),
        ("routes:", "routes: [", "not readable as YAML"),
    ],
)
def test_a_file_of_another_form_is_refused_in_one_line(tmp_path, old, new, said):
    refuses(lambda: faults(GOOD.replace(old, new, 1), tmp_path), contains=said)


def test_optional_prerequisites_are_no_prerequisites():
    assert routes.needed(COURSE[3]) == [2]
    assert routes.needed(chapter(5, "none to read; the code uses `core` (chapter 02)")) == [] and routes.needed(chapter(5, "02 core, 21 Gaussian; 01 geometry helps")) == [2, 21]


def test_order_puts_what_is_needed_first_and_names_a_circle():
    made = [chapter(1), chapter(2, "03 c"), chapter(3), chapter(4, "02 c, 03 c")]
    assert [c.number for c in routes.course_order(made)] == [1, 3, 2, 4]
    circle = [chapter(1), chapter(2, "04 c"), chapter(3, "02 c"), chapter(4, "03 c"), chapter(5, "04 c")]
    refuses(lambda: routes.course_order(circle), contains="chapters 02 -> 04 -> 03 -> 02 need each other")
    order = [c.number for c in routes.course_order(CHAPTERS.values())]
    assert sorted(order) == sorted(CHAPTERS) and order[0] == 0


def test_notes_name_tools_and_planned_chapters_that_exist():
    route = SHIPPED["decoders"]
    assert "30 OKS" in routes.route_notes(route, CHAPTERS)[0]
    plan = routes.Route("x", "X", "", 1, {}, (routes.Session("S", 1, (routes.Part("21 Gaussian", None, planned=True),)),))
    assert routes.route_notes(plan, CHAPTERS) == ["chapter 21 is listed as planned and exists by now; write it as 'chapter: 21'"]


# --- links -----------------------------------------------------------------------------------------------------------------------


def test_links_of_the_chapters_are_up_to_date_and_lead_somewhere():
    folder = course_folder()
    wanted = routes.links(routes.course_order(CHAPTERS.values()), folder)
    for c in CHAPTERS.values():
        last = c.cells[-1]
        assert last.source == wanted[c.stem] and last.metadata.get("tags") == ["links"], f"{c.stem}: run python course/links.py"
        for target in re.findall(r"\]\(([^)]+)\)", last.source):
            assert (c.path.parent / target).is_file(), f"{c.stem}: {target}"


def test_writing_links_adds_one_cell_once_and_moves_with_the_order(tmp_path):
    for number, needs in ((1, "none"), (2, "03 c"), (3, "none")):
        head = f"# {number:02d} · T{number}\n> S.\n\n| | |\n|---|---|\n| **Prerequisites** | {needs} |"
        cells = [{"cell_type": "markdown", "id": "cell-000", "metadata": {}, "source": [head]}, {"cell_type": "code", "id": "cell-001", "metadata": {}, "source": ["1"], "outputs": [], "execution_count": None}]
        (tmp_path / f"part{number}").mkdir()
        (tmp_path / f"part{number}" / f"{number:02d}_c.ipynb").write_text(json.dumps({"cells": cells, "metadata": {}, "nbformat": 4, "nbformat_minor": 5}))
    assert routes.write_links(tmp_path) == ["01_c", "03_c", "02_c"] and routes.write_links(tmp_path) == []
    path = tmp_path / "part3" / "03_c.ipynb"
    made = read(path)
    assert len(made.cells) == 3
    assert made.cells[-1].source == "Previous: [01 · T1](../part1/01_c.ipynb) · Next: [02 · T2](../part2/02_c.ipynb) · [Map of the course](../index.ipynb)"
    second = tmp_path / "part2" / "02_c.ipynb"
    second.write_text(second.read_text().replace("03 c", "none"))
    assert set(routes.write_links(tmp_path)) == {"01_c", "02_c", "03_c"} and len(read(path).cells) == 3


# --- the zip ---------------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def packed(tmp_path_factory):
    path, sizes = routes.write_zip("decoders", tmp_path_factory.mktemp("zip") / "decoders.zip")
    return path, sizes


def inside(content):
    archive = zipfile.ZipFile(io.BytesIO(content))
    assert archive.testzip() is None
    return {name: archive.read(name) for name in archive.namelist()}


def test_zip_holds_what_a_class_needs(packed):
    files = inside(packed[0].read_bytes())
    assert {"plan.html", "student.zip", "slides/21_gaussian.html", "slides/23_dark.html", "teacher/index.ipynb", "teacher/2_codecs/21_gaussian.ipynb"} <= set(files)
    student = inside(files["student.zip"])
    assert {"plan.html", "index.ipynb", "2_codecs/21_gaussian.ipynb", "data/drawn/annotations/person_keypoints_train.json"} <= set(student)
    assert {n for n in student if n.endswith(".ipynb")} == {n.removeprefix("teacher/") for n in files if n.endswith(".ipynb")}
    assert b"student.zip" in files["plan.html"] and b"student.zip" not in student["plan.html"] and b"slides/" not in student["plan.html"]


def test_student_part_is_small_and_without_solutions(packed):
    student = inside(packed[0].read_bytes())["student.zip"]
    assert len(student) < 30e6
    for name, content in inside(student).items():
        if name.endswith(".ipynb"):
            source = "\n".join("".join(c["source"]) for c in json.loads(content)["cells"])
            assert "BEGIN SOLUTION" not in source, name
            number = re.match(r"\d+", Path(name).name)
            for exercise in CHAPTERS[int(number[0])].exercises if number else []:
                assert f"exercise {exercise.number}: write your answer here" in source
    assert "### BEGIN SOLUTION" in inside(packed[0].read_bytes())["teacher/2_codecs/21_gaussian.ipynb"].decode()


def test_drawn_sample_is_a_good_data_set(packed, tmp_path):
    from posetutor.data.coco import check_dataset

    zipfile.ZipFile(io.BytesIO(inside(packed[0].read_bytes())["student.zip"])).extractall(tmp_path)
    root = tmp_path / "data" / "drawn"
    for name, count in (("train", 36), ("val", 12)):
        assert check_dataset(root / "annotations" / f"person_keypoints_{name}.json", root / name) == []
        assert len(list((root / name).iterdir())) == count


def test_zip_is_reproducible_and_replaced_in_one_step(packed, tmp_path, monkeypatch):
    path, _ = packed
    again, _ = routes.write_zip("decoders", tmp_path / "again.zip")
    assert again.read_bytes() == path.read_bytes()
    assert {i.date_time for i in zipfile.ZipFile(path).infolist()} == {(1980, 1, 1, 0, 0, 0)}
    monkeypatch.setattr(routes, "packed", lambda files: 1 / 0)
    refuses(lambda: routes.write_zip("decoders", again), error=ZeroDivisionError)
    assert again.read_bytes() == path.read_bytes() and [p.name for p in tmp_path.iterdir()] == ["again.zip"]


def test_packing_depends_on_names_and_contents_alone():
    a, b = routes.packed({"x": b"1", "y.png": b"2"}), routes.packed({"y.png": b"2", "x": b"1"})
    assert a == b != routes.packed({"x": b"1", "y.png": b"3"})


def test_a_student_part_over_the_limit_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(routes, "STUDENT_LIMIT_MB", 0.1)
    monkeypatch.setattr(routes, "drawn_sample", dict)
    refuses(lambda: routes.write_zip("decoders", tmp_path / "x.zip", "student"), contains="the student part has")
    assert list(tmp_path.iterdir()) == []


def test_command_line(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(routes, "drawn_sample", dict)
    assert cli.main(["routes"]) == 0
    listed = capsys.readouterr().out
    assert all(name in listed for name in SHIPPED) and "FAULT" not in listed
    assert cli.main(["routes", "decoders"]) == 0 and "90 min" in capsys.readouterr().out
    assert cli.main(["zip", "decoders", "--part", "student", "--out", str(tmp_path / "s.zip")]) == 0
    assert "plan.html" in zipfile.ZipFile(tmp_path / "s.zip").namelist() and "s.zip" in capsys.readouterr().out
    for command, said in (
        (["routes", "nothing"], "there is no route 'nothing'; the routes are term"),
        (["zip", "nothing"], "there is no route 'nothing'"),
        (["zip", "decoders", "--out", str(tmp_path)], "must name a .zip file"),
        (["zip", "decoders", "--out", str(tmp_path / "x.tar")], "must name a .zip file"),
    ):
        assert cli.main(command) == 2
        error = capsys.readouterr().err
        assert error.count("\n") == 1 and said in error


def test_a_route_with_faults_is_shown_but_not_packed(tmp_path, capsys, monkeypatch):
    bad = tmp_path / "routes.yml"
    bad.write_text(GOOD.replace("chapter: 2, sections: [\"1\", the claim]", "chapter: 50, sections: [The claim]").replace("chapter: 4", "chapter: 30"), encoding="utf-8")
    monkeypatch.setattr(routes, "routes_path", lambda: bad)
    assert cli.main(["routes", "mine"]) == 1
    assert "FAULT route mine, session 1 (One): chapter 50_topdown needs 13" in capsys.readouterr().out
    assert cli.main(["routes"]) == 1 and "faults" in capsys.readouterr().out
    assert cli.main(["zip", "mine", "--out", str(tmp_path / "x.zip")]) == 2
    assert "posetutor routes mine" in capsys.readouterr().err and not (tmp_path / "x.zip").exists()
