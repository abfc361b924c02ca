"""Student copies: solutions replaced by gaps, and not one other byte changed."""

import ast
import json
import textwrap
from pathlib import Path

import pytest

from posetutor.course.chapters import BEGIN, END, chapter_paths, find_exercises, load_cells, read, tags
from posetutor.course.student import course_files, gap, student_notebook, student_source

CHAPTERS = chapter_paths()


def stored(cell):
    """A cell as it lies in the file."""
    return textwrap.indent(json.dumps(cell, indent=1, ensure_ascii=False), "  ", lambda line: True)


def signatures(source):
    """Each definition of a cell without its body, with its docstring."""
    tree = ast.parse(source)
    return [(n.name, ast.dump(n.args), ast.get_docstring(n)) for n in tree.body if isinstance(n, ast.FunctionDef)]


@pytest.mark.parametrize("path", CHAPTERS, ids=lambda p: p.stem)
class TestStudentCopy:
    def test_only_answers_and_outputs_differ(self, path):
        teacher = path.read_text(encoding="utf-8")
        student = student_notebook(teacher)
        cells, copies = json.loads(teacher)["cells"], json.loads(student)["cells"]
        touched = {n for e in read(path).exercises for n in (e.answer_cell, e.check_cell)}
        assert len(touched) >= 6 and len(cells) == len(copies)
        expected = teacher
        for number in touched:
            assert expected.count(stored(cells[number])) == 1
            expected = expected.replace(stored(cells[number]), stored(copies[number]))
        assert student.encode() == expected.encode(), "something besides the answer and check cells changed"
        for exercise in read(path).exercises:
            answer, check = (({**c, "source": None, "outputs": None} for c in (cells[n], copies[n])) for n in (exercise.answer_cell, exercise.check_cell))
            assert next(answer) == next(answer) and next(check) == next(check), "tags and ids stay"
            assert cells[exercise.check_cell]["source"] == copies[exercise.check_cell]["source"], "the checks and their mistakes stay"
            assert not copies[exercise.answer_cell]["outputs"] and not copies[exercise.check_cell]["outputs"]

    def test_gaps_are_valid_python_and_say_which_exercise(self, path):
        cells, copies = load_cells(path.read_text(encoding="utf-8")), load_cells(student_notebook(path.read_text(encoding="utf-8")))
        for exercise in find_exercises(cells):
            solution, answer = cells[exercise.answer_cell].source, copies[exercise.answer_cell].source
            assert signatures(answer) == signatures(solution), "names, arguments and docstrings stay"
            assert answer.count(gap(exercise.number)) == solution.count(BEGIN) >= 1
            for function in (n for n in ast.parse(answer).body if isinstance(n, ast.FunctionDef)):
                body = [n for n in function.body if not (isinstance(n, ast.Expr) and isinstance(n.value, ast.Constant))]
                assert [ast.unparse(n) for n in body] == [ast.unparse(ast.parse(gap(exercise.number)))], f"{function.name} still holds code"

    def test_exercises_are_tagged(self, path):
        cells = load_cells(path.read_text(encoding="utf-8"))
        exercises = find_exercises(cells)
        assert [e.number for e in exercises] == list(range(1, len(exercises) + 1)) and 3 <= len(exercises) <= 5
        for exercise in exercises:
            assert f"exercise-{exercise.number}" in tags(cells[exercise.answer_cell]) and f"check-{exercise.number}" in tags(cells[exercise.check_cell])
            assert 1 <= exercise.difficulty <= 3 and exercise.minutes >= 5
            assert cells[exercise.text_cell].source.count("<details><summary>Hint") == 3, f"exercise {exercise.number} needs three hints"


def test_several_blocks_and_odd_indentation():
    source = (
        f"def a(x):\n    if x:\n        {BEGIN}\n        y = 1\n\n        return y\n        {END}\n    return 0\n\n\ndef b():\n\t{BEGIN}\n\treturn 2\n\t{END}"
    )
    answer = student_source(source, 7)
    assert answer == f"def a(x):\n    if x:\n        {gap(7)}\n    return 0\n\n\ndef b():\n\t{gap(7)}"
    space = {}
    exec(answer, space)
    assert space["a"](0) == 0
    with pytest.raises(NotImplementedError, match="exercise 7: write your answer here"):
        space["b"]()


@pytest.mark.parametrize("source", ["def f():\n    return 1", f"def f():\n    {BEGIN}\n    return 1", f"def f():\n    {END}\n    {BEGIN}\n    return 1"])
def test_unpaired_marks_are_refused(source):
    with pytest.raises(ValueError, match="exercise 4: the marks"):
        student_source(source, 4)


def test_course_files_hide_solutions_only_from_students(tmp_path):
    student, teacher = dict(course_files()), dict(course_files(solutions=True))
    assert student.keys() == teacher.keys() and len([n for n in student if n.endswith(".ipynb")]) == len(CHAPTERS) + 1
    assert not [n for n, content in student.items() if BEGIN.encode() in content]
    for name, content in teacher.items():
        assert content == (Path(CHAPTERS[0]).parents[1] / name).read_bytes(), "the teacher's copy is the notebook itself"
    assert not [n for n in student if Path(n).name.startswith(("_", "."))]


def test_chapters_are_read_as_data():
    chapter = read(next(p for p in CHAPTERS if p.stem == "21_gaussian"))
    assert (chapter.number, chapter.stem, chapter.title) == (21, "21_gaussian", "Gaussian heatmaps")
    assert chapter.sentence.startswith("A joint becomes") and {1, 20} <= set(chapter.prerequisites) and 21 not in chapter.prerequisites
    assert {"Prerequisites", "Source", "Runs in", "Exports"} <= chapter.card.keys()
    assert [e.names for e in chapter.exercises] == [("mean_step_error",), ("encode_floor", "decode_floor"), ("log_vertex",)]
    assert chapter.minutes % 5 == 0 and chapter.minutes > sum(e.minutes for e in chapter.exercises)


@pytest.mark.parametrize(
    "text", ["", "{", "[]", "{}", '{"cells": 3}', '{"cells": [{"cell_type": "code"}]}', '{"cells": [{"cell_type": "code", "source": 5}]}', "[" * 100_000]
)
def test_no_notebook_is_refused(text):
    with pytest.raises(ValueError, match="notebook"):
        load_cells(text)


def test_odd_metadata_and_outputs_are_read():
    cells = load_cells(
        '{"cells": [{"cell_type": "code", "source": ["a\\n", "b"], "metadata": [], "outputs": [3, {"text": ["x"]}, {"data": 7}]}, {"cell_type": "raw", "source": ""}]}'
    )
    assert cells[0].source == "a\nb" and tags(cells[0]) == [] and cells[0].outputs[-2].text == "x"


def test_a_chapter_without_title_is_refused(tmp_path):
    (tmp_path / "21_x.ipynb").write_text('{"cells": [{"cell_type": "markdown", "source": "text"}]}')
    with pytest.raises(ValueError, match="21_x.ipynb.*'# title'"):
        read(tmp_path / "21_x.ipynb")
