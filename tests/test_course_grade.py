"""The grader: every exercise of every chapter, bad answers of every kind, folders as teachers get them."""

import ast
import csv
import json
import os
import re
import sys
import time
from pathlib import Path

import pytest

from posetutor import cli
from posetutor.course import grade, guard
from posetutor.course.chapters import chapter_paths, load_cells, read
from posetutor.course.grade import Runner, Sheet
from posetutor.course.slicing import Program, parse
from posetutor.course.student import student_notebook, student_source

CHAPTERS = [p for p in chapter_paths() if read(p).exercises]
GAUSSIAN = next(p for p in CHAPTERS if p.stem == "21_gaussian")
MODES = [pytest.param(True, id="fork", marks=pytest.mark.skipif(not grade.CAN_FORK, reason="no fork here")), pytest.param(False, id="fresh")]


@pytest.fixture(scope="module")
def runner():
    with Runner(seconds=30, memory=2) as one:
        yield one


@pytest.fixture(scope="module")
def gaussian():
    return Sheet(read(GAUSSIAN))


def answers(*sources):
    return [{"id": n, "source": source, "helpers": [], "extra": []} for n, source in enumerate(sources)]


# --- the 48 exercises ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", CHAPTERS, ids=lambda p: p.stem)
def test_solutions_pass_and_gaps_fail_in_the_sliced_context(path, runner):
    sheet = Sheet(read(path))
    for exercise in sheet.chapter.exercises:
        solution = sheet.chapter.cells[exercise.answer_cell].source
        right, gap = runner.run(sheet.jobs[exercise.number], answers(solution, student_source(solution, exercise.number)))
        assert right["passed"], f"exercise {exercise.number}: {right['message']}"
        assert not gap["passed"] and gap["message"] == f"no answer yet (exercise {exercise.number}: write your answer here)"


@pytest.mark.parametrize("path", CHAPTERS, ids=lambda p: p.stem)
def test_checks_refuse_a_mistake_and_answer_in_numbers(path):
    sheet = Sheet(read(path))
    for number, job in sheet.jobs.items():
        mistakes = [s for s in job["check"] if "refuses(" in s and not s.startswith("def ")]
        assert any("check_" in m for m in mistakes), f"exercise {number}: no plausible mistake is refused"
        for source in [*job["check"], *(s for s in job["context"] if s.startswith("def check_"))]:
            for node in ast.walk(ast.parse(source)):
                if isinstance(node, ast.Assert):
                    values = [n for n in ast.walk(node.msg or node.test) if isinstance(n, ast.FormattedValue)]
                    assert values, f"exercise {number}: the message shows no numbers: {ast.unparse(node)}"


# --- bad answers ---------------------------------------------------------------------------------------------------

RIGHT = "return delta**2 + (0.5 - delta) ** 2"
PASSES = "passes"
CASES = {
    "right": (f"def mean_step_error(delta):\n    {RIGHT}", PASSES),
    "wrong, in numbers": ("def mean_step_error(delta):\n    return delta", "no step is argmax, mean 1/4; you gave 0.0"),
    "endless loop": ("def mean_step_error(delta):\n    while True:\n        pass", "took longer than 3 s"),
    "endless loop in C": ("def mean_step_error(delta):\n    return sum(iter(int, 1))", "took longer than 3 s"),
    "20 GB list": ("def mean_step_error(delta):\n    return [0] * int(20e9 / 8)", "needed more than 1 GB"),
    "20 GB array": ("import numpy as np\ndef mean_step_error(delta):\n    return np.ones(int(20e9 / 8)).mean()", "needed more than 1 GB"),
    "20 GB tensor": ("def mean_step_error(delta):\n    return torch.ones(int(20e9 / 4)).mean()", "needed more than 1 GB"),
    "20 GB in pieces": ("import numpy as np\nkept = []\ndef mean_step_error(delta):\n    while True:\n        kept.append(np.empty(10_000_000))", "needed more than 1 GB"),
    "delete": (f"import os\ndef mean_step_error(delta):\n    os.remove(VICTIM)\n    {RIGHT}", "tried to delete a file (os.remove)"),
    "delete at once": (f"import os; os.remove(VICTIM)\ndef mean_step_error(delta):\n    {RIGHT}", "tried to delete a file (os.remove)"),
    "delete, caught": (f"from pathlib import Path\ndef mean_step_error(delta):\n    try:\n        Path(VICTIM).unlink()\n    except OSError:\n        pass\n    {RIGHT}", "passed, but tried to delete a file (os.remove)"),
    "delete by pathlib": (f"from pathlib import Path\nPath(VICTIM).unlink()\ndef mean_step_error(delta):\n    {RIGHT}", "tried to delete a file"),
    "delete a tree": (f"import shutil\nshutil.rmtree(FOLDER)\ndef mean_step_error(delta):\n    {RIGHT}", "tried to delete a folder (shutil.rmtree)"),
    "rename": (f"import os\nos.rename(VICTIM, VICTIM + '2')\ndef mean_step_error(delta):\n    {RIGHT}", "tried to rename a file (os.rename)"),
    "overwrite": (f"open(VICTIM, 'w').write('gone')\ndef mean_step_error(delta):\n    {RIGHT}", "tried to write the file victim.txt (open)"),
    "overwrite by os.open": (f"import os\nos.open(VICTIM, os.O_WRONLY | os.O_TRUNC)\ndef mean_step_error(delta):\n    {RIGHT}", "tried to write the file victim.txt (open)"),
    "a relative way out": (f"open('../../../../../../../../..' + VICTIM, 'a')\ndef mean_step_error(delta):\n    {RIGHT}", "tried to write the file victim.txt (open)"),
    "link out": (f"import os\nos.symlink(FOLDER, 'here')\nopen('here/victim.txt', 'w')\ndef mean_step_error(delta):\n    {RIGHT}", "tried to "),
    "program": (f"import subprocess\nsubprocess.run(['ls'])\ndef mean_step_error(delta):\n    {RIGHT}", "tried to start a program (subprocess.Popen)"),
    "shell": (f"import os\nos.system('true')\ndef mean_step_error(delta):\n    {RIGHT}", "tried to start a program (os.system)"),
    "network": (f"import socket\nsocket.create_connection(('192.0.2.1', 80))\ndef mean_step_error(delta):\n    {RIGHT}", "tried to use the network (socket."),
    "C library": (f"import ctypes\nctypes.CDLL(None).exit(0)\ndef mean_step_error(delta):\n    {RIGHT}", "tried to load a C library (ctypes.dlopen)"),
    "kill": (f"import os\nos.kill(os.getppid(), 9)\ndef mean_step_error(delta):\n    {RIGHT}", "tried to stop a process (os.kill)"),
    "writes in its own folder": (f"open('notes.txt', 'w').write('mine')\nimport os, tempfile\nos.remove('notes.txt'); tempfile.mkdtemp()\ndef mean_step_error(delta):\n    {RIGHT}", PASSES),
    "syntax error": ("def mean_step_error(delta):\n    x = 1\n    return delta**2 +", "syntax error in line 3: invalid syntax"),
    "null byte": ("def mean_step_error(delta):\n    return '\0'", "syntax error"),
    "cut off": ("def mean_step_error(delta):", "syntax error in line 1"),
    "text": ("def mean_step_error(delta):\n    return 'half'", "wrong type: unsupported operand type(s) for -: 'str' and 'float'"),
    "nothing": ("def mean_step_error(delta):\n    delta**2", "does the answer return its result?"),
    "tensor": (f"def mean_step_error(delta):\n    delta = torch.tensor(delta, dtype=torch.float64)\n    {RIGHT}", PASSES),
    "a number, no function": ("mean_step_error = 0.25", "wrong type: mean_step_error is float, expected a function"),
    "too few arguments": (f"def mean_step_error():\n    delta = 0\n    {RIGHT}", "wrong arguments: mean_step_error() takes 0 positional arguments but 1 was given"),
    "own error": ("def mean_step_error(delta):\n    return 1 / 0", "ZeroDivisionError: division by zero (line 2 of the answer)"),
    "undefined": ("def mean_step_error(delta):\n    return square(delta)", "NameError: name 'square' is not defined (line 2 of the answer)"),
    "another name": (f"def mean_error(delta):\n    {RIGHT}", "mean_step_error is not defined"),
    "SystemExit": ("def mean_step_error(delta):\n    raise SystemExit(0)", "ended Python (SystemExit)"),
    "exit at once": (f"def mean_step_error(delta):\n    {RIGHT}\nexit()", "ended Python (SystemExit)"),
    "os._exit": ("import os\ndef mean_step_error(delta):\n    os._exit(0)", "ended Python before the check was done (exit code 0)"),
    "crash": ("import faulthandler\ndef mean_step_error(delta):\n    faulthandler._sigsegv()", "crashed Python (SIG"),
    "recursion": ("def mean_step_error(delta):\n    return mean_step_error(delta)", "RecursionError: maximum recursion depth exceeded"),
    "sleeping thread": (f"import threading, time\nthreading.Thread(target=time.sleep, args=(600,)).start()\ndef mean_step_error(delta):\n    {RIGHT}", PASSES),
    "prints a little": (f"def mean_step_error(delta):\n    print('delta is', delta)\n    {RIGHT}", PASSES),
    "prints a lot": (f"def mean_step_error(delta):\n    for _ in range(3000):\n        print('x' * 1000)\n    {RIGHT}", PASSES),
    "prints without end": ("def mean_step_error(delta):\n    while True:\n        print('x' * 1000)", "took longer than 3 s"),
    "prints a verdict": ("import os, sys\ndef mean_step_error(delta):\n    for fd in range(64):\n        try:\n            os.write(fd, b'{\"id\": 0, \"passed\": true, \"message\": \"\", \"seconds\": 0}\\n')\n        except OSError:\n            pass\n    return 0", "no step is argmax"),
    "its own check": ("def mean_step_error(delta):\n    return 1\ndef check_step(fn):\n    pass\ndef refuses(*a, **k):\n    pass", "no step is argmax"),
    "exchanged abs": ("import builtins\nbuiltins.abs = lambda x: 0\ndef mean_step_error(delta):\n    return (delta - 0.25) ** 2", "the answer exchanges builtins.abs"),
    "exchanged in the call": ("import torch\ndef mean_step_error(delta):\n    torch.rand = torch.zeros\n    return 1", "no step is argmax"),
    "exchanged library": ("import posetutor.core\nposetutor.core.seed_generator = None\ndef mean_step_error(delta):\n    return 1", "the answer exchanges posetutor.core.seed_generator"),
    "exchanged code": ("import numpy as np\nseed_generator.__code__ = (lambda *a: None).__code__\ndef mean_step_error(delta):\n    return 1", "the answer exchanges seed_generator"),
    "error without text": ("class Odd(Exception):\n    def __str__(self):\n        raise ValueError\ndef mean_step_error(delta):\n    raise Odd", "Odd: (Odd without text)"),
    "a call that fails beside the answer": (f"def mean_step_error(delta):\n    {RIGHT}\ncheck_step(mean_step_error)\nprint(undefined)", PASSES),
    "magics": (f"%timeit 1 + 1\n!ls\ndef mean_step_error(delta):\n    {RIGHT}", PASSES),
    "gap left below": (f"def mean_step_error(delta):\n    {RIGHT}\n    raise NotImplementedError('exercise 1: write your answer here')", PASSES),
}  # fmt: skip


def prepared(source, victim):
    return source.replace("VICTIM", repr(str(victim))).replace("FOLDER", repr(str(victim.parent)))


@pytest.fixture(scope="module")
def verdicts(gaussian, tmp_path_factory):
    """All cases in one go, with the seconds it took and the file that must survive."""
    if not grade.CAN_FORK:
        pytest.skip("no fork here")
    victim = tmp_path_factory.mktemp("teacher") / "victim.txt"
    victim.write_text("precious")
    sources = [prepared(source, victim) for source, _ in CASES.values()]
    with Runner(seconds=3, memory=1) as one:
        return dict(zip(CASES, one.run(gaussian.jobs[1], answers(*sources)))), victim


@pytest.mark.parametrize("name", CASES)
def test_each_answer_gets_its_verdict(verdicts, name):
    if name in ("20 GB list", "20 GB array", "20 GB tensor", "20 GB in pieces") and not sys.platform.startswith("linux"):
        pytest.skip("no memory limit here")
    result, wanted = verdicts[0][name], CASES[name][1]
    if wanted == PASSES or wanted.startswith("passed"):
        assert result["passed"] and result["message"] == ("" if wanted == PASSES else wanted), result
    else:
        assert not result["passed"] and wanted in result["message"], result
    assert "\n" not in result["message"] and len(result["message"]) <= 400


def test_nothing_outside_was_touched_and_prints_are_cut(verdicts):
    results, victim = verdicts
    assert victim.read_text() == "precious" and [p.name for p in victim.parent.iterdir()] == ["victim.txt"]
    assert results["prints a little"]["printed"].startswith("delta is 0.0")
    assert 1000 < len(results["prints a lot"]["printed"]) <= 2000


@pytest.mark.skipif(not grade.CAN_FORK, reason="no fork here")
def test_libraries_written_in_c_cannot_write_outside(gaussian, tmp_path):
    place = tmp_path / "picture.png"
    source = f"import cv2, numpy as np\nok = cv2.imwrite({str(place)!r}, np.zeros((4, 4), np.uint8))\nhere = cv2.imwrite('here.png', np.zeros((4, 4), np.uint8))\ndef mean_step_error(delta):\n    return [ok, here]"
    with Runner(seconds=20) as one:
        (result,) = one.run(gaussian.jobs[1], answers(source))
    if sys.platform.startswith("linux") and _landlock():
        assert not place.exists()
    assert not result["passed"]


def _landlock():
    """Whether this kernel has Landlock, asked in another process because the answer to the question cannot be undone."""
    pid = os.fork()
    if pid == 0:
        os._exit(0 if guard.restrict_writes([Path("/tmp")]) else 1)
    return os.waitpid(pid, 0)[1] == 0


FRESH = ["right", "wrong, in numbers", "endless loop", "20 GB tensor", "delete", "overwrite", "SystemExit", "os._exit", "syntax error", "sleeping thread", "prints a verdict"]


def test_the_way_without_fork_gives_the_same_verdicts(gaussian, tmp_path):
    victim = tmp_path / "victim.txt"
    victim.write_text("precious")
    with Runner(seconds=6, memory=1, fork=False) as one:
        results = one.run(gaussian.jobs[1], answers(*(prepared(CASES[name][0], victim) for name in FRESH)))
    for name, result in zip(FRESH, results):
        wanted = CASES[name][1].replace("3 s", "6 s").replace("exit code 0", "")
        if name != "20 GB tensor" or sys.platform.startswith("linux"):
            assert result["passed"] == (wanted == PASSES) and (wanted == PASSES or wanted.rstrip("()") in result["message"]), (name, result)
    assert victim.read_text() == "precious"


@pytest.mark.skipif(not grade.CAN_FORK, reason="no fork here")
def test_one_answer_cannot_spoil_the_files_of_the_next(runner):
    sheet = Sheet(read(next(p for p in CHAPTERS if p.stem == "12_coco")))
    solution = sheet.chapter.cells[sheet.chapter.exercises[1].answer_cell].source
    spoiler = "import shutil\nshutil.rmtree(folder)\n" + solution
    first, second, third = runner.run(sheet.jobs[2], answers(solution, spoiler, solution))
    assert first["passed"] and not second["passed"] and third["passed"], (first, second, third)


def test_a_context_that_fails_is_reported_for_each_answer(gaussian):
    for fork in (True, False) if grade.CAN_FORK else (False,):
        with Runner(seconds=5, fork=fork) as one:
            results = one.run({**gaussian.jobs[1], "context": ["1 / 0"]}, answers("x = 1", "x = 2"))
            assert [r["message"] for r in results] == ["the course's own context failed: ZeroDivisionError: division by zero"] * 2
            if fork:  # and the server is still good for the next
                assert one.run(gaussian.jobs[1], answers(CASES["right"][0]))[0]["passed"]


# --- folders -------------------------------------------------------------------------------------------------------


def solved(*, without=(), tagged=True, changes=None):
    """A student's notebook of chapter 21 with all solutions in, except the exercises in `without`; JSON."""
    chapter, notebook = read(GAUSSIAN), json.loads(student_notebook(GAUSSIAN.read_text(encoding="utf-8")))
    for exercise in chapter.exercises:
        cell = notebook["cells"][exercise.answer_cell]
        if exercise.number not in without:
            cell["source"] = (changes or {}).get(exercise.number) or re.sub(r"^ *### (BEGIN|END) SOLUTION\n?", "", chapter.cells[exercise.answer_cell].source, flags=re.MULTILINE)
    if not tagged:
        for cell in notebook["cells"]:
            cell["metadata"] = {}
    return notebook


def put(path, notebook):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(notebook if isinstance(notebook, str) else json.dumps(notebook), encoding="utf-8")


def code_cell(source):
    return {"cell_type": "code", "id": "new", "metadata": {}, "outputs": [], "execution_count": 3, "source": source}


def test_a_class_hands_in(tmp_path, capsys):
    folder, table = tmp_path / "class", tmp_path / "grades.csv"
    answer = {e.number: e.answer_cell for e in read(GAUSSIAN).exercises}
    put(folder / "alice" / "21_gaussian.ipynb", solved())
    put(folder / "21_gaussian_bob.ipynb", student_notebook(GAUSSIAN.read_text(encoding="utf-8")))
    put(folder / "carol" / "2_codecs" / "21_gaussian.ipynb", solved(changes={2: "def encode_floor(xy_hm, size, sigma):\n    return render_gaussian(xy_hm.floor(), size, sigma"}))
    put(folder / "carol" / "0_start" / "00_quickstart.ipynb", "{}")
    put(folder / "carol" / ".ipynb_checkpoints" / "21_gaussian-checkpoint.ipynb", solved())

    shuffled = solved(tagged=False)  # an unknown name, no tags, cells in another order
    shuffled["cells"] = shuffled["cells"][:3] + shuffled["cells"][:2:-1]
    put(folder / "dan" / "homework final (2).ipynb", shuffled)

    torn = solved()
    del torn["cells"][answer[2]]
    put(folder / "eve" / "21_gaussian.ipynb", torn)

    put(folder / "fred" / "21_gaussian.ipynb", json.dumps(solved())[:5000])
    put(folder / "gina" / "21_gaussian.pdf", "no notebook")
    put(folder / "henry" / "21_notes.ipynb", '{"cells": "none"}')
    put(folder / "=cmd()" / "21_gaussian.ipynb", solved(without=(1, 2, 3)))

    helped = solved(changes={1: "def mean_step_error(delta):\n    return square(delta) + square(HALF - delta)", 2: "def encode_floor(xy_hm, size, sigma):\n    return render_gaussian(xy_hm.floor(), size, sigma)"})
    helped["cells"].insert(answer[1], code_cell("import math\n\ndef square(x):\n    return math.pow(x, 2)\n\nHALF = 1 / 2\nraise ValueError('never run')"))
    helped["cells"].insert(5, code_cell("def decode_floor(heatmaps):\n    xy, score = decode_argmax(heatmaps)\n    return xy + 0.5, score\n\nrender_gaussian = None"))
    put(folder / "ida" / "21_gaussian.ipynb", helped)

    assert cli.main(["grade", str(folder), "--out", str(table), "--chapter", "21", "--seconds", "30"]) == 0
    with table.open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    assert list(rows[0]) == ["student", "chapter", "exercise", "passed", "message", "seconds"]
    got = {(r["student"], r["exercise"]): (r["passed"], r["message"]) for r in rows}
    good, none = ("1", ""), "no answer yet (exercise {0}: write your answer here)"
    assert [got["alice", n] for n in "123"] == [good] * 3 == [got["dan", n] for n in "123"] == [got["ida", n] for n in "123"]
    assert [got["bob", n] for n in "123"] == [("0", none.format(n)) for n in "123"] == [got["'=cmd()", n] for n in "123"]
    assert got["carol", "1"] == good == got["carol", "3"] and got["carol", "2"][1].startswith("syntax error in line 2")
    assert got["eve", "1"] == good == got["eve", "3"] and got["eve", "2"] == ("0", "exercise 2: cell not found: was it deleted?")
    assert got["fred", ""][1].startswith("fred/21_gaussian.ipynb: damaged notebook (no JSON")
    assert got["gina", ""][1] == "gina/21_gaussian.pdf: not a notebook; hand in the .ipynb file"
    assert got["henry", ""][1] == "henry/21_notes.ipynb: not a Jupyter notebook of version 4"
    assert len(got) == len(rows) == 7 * 3 + 3
    said = capsys.readouterr().out
    assert "13 of 21 answers of 10 students passed; 3 files could not be graded" in said and str(table) in said


def test_only_the_answer_is_taken(gaussian):
    cells = load_cells(json.dumps(solved()))
    exercise = gaussian.chapter.exercises[1]
    cells[10]["source"] = "render_gaussian = None"
    source = grade.find_answer(cells, exercise)
    helpers, extra = grade.helpers_for(source, cells, gaussian, exercise)
    assert helpers == [] and extra == [], "a changed cell of ours is no helper"
    helpers, extra = grade.helpers_for(source + "\nquantisation = decode_quarter_offset", cells, gaussian, exercise)
    assert helpers == [] and any("def decode_quarter_offset" in s for s in extra), "other functions of our notebook are there for an answer"


def test_a_copied_answer_cell_counts_once(gaussian):
    cells = load_cells(json.dumps(solved()))
    place = gaussian.chapter.exercises[0].answer_cell
    cells.insert(place, cells[place].__class__(cells[place], source=student_source(gaussian.chapter.cells[place].source, 1)))
    assert "delta**2" in grade.find_answer(cells, gaussian.chapter.exercises[0]), "the last one is what ran last"
    cells[place]["source"] = cells[place + 1]["source"] = "# moved my answer"
    assert "moved" in grade.find_answer(cells, gaussian.chapter.exercises[0])
    cells.append(cells[place].__class__(cells[place], source="def mean_step_error(delta):\n    return 4", metadata={}))
    assert grade.find_answer(cells, gaussian.chapter.exercises[0]).endswith("return 4")


def test_bad_arguments_are_refused_in_one_line(tmp_path, capsys):
    (tmp_path / "empty").mkdir()
    put(tmp_path / "one" / "21_gaussian.ipynb", "{}")
    for arguments, said in (
        ([str(tmp_path / "nowhere")], "is no folder"),
        ([str(tmp_path / "empty")], "holds no notebook"),
        ([str(tmp_path / "one"), "--chapter", "99"], "there is no chapter 99"),
        ([str(tmp_path / "one"), "--seconds", "0"], "must be positive"),
        ([str(tmp_path / "one"), "--memory", "nan"], "must be positive"),
        ([str(tmp_path / "one"), "--out", str(tmp_path)], "must be a file"),
        ([str(tmp_path / "one"), "--out", str(tmp_path / "no" / "grades.csv")], "folder that exists"),
    ):
        assert cli.main(["grade", *arguments]) == 2
        error = capsys.readouterr().err.strip()
        assert said in error and "\n" not in error


def test_whose_file_it_is(tmp_path):
    chapters = [read(GAUSSIAN)]
    for name, student in {
        "alice/21_gaussian.ipynb": "alice", "alice/week 2/x.ipynb": "alice", "21_gaussian_bob.ipynb": "bob", "carol-21_gaussian.ipynb": "carol",
        "21_gaussian.ipynb": "class", "2_codecs/21_gaussian.ipynb": "class", "dan/2_codecs/21_gaussian.ipynb": "dan", "王/21_gaussian.ipynb": "王",
    }.items():  # fmt: skip
        assert grade.student_of(tmp_path / "class" / name, tmp_path / "class", chapters) == student


# --- slices --------------------------------------------------------------------------------------------------------


def kept(needed, *cells):
    program = Program([])
    for cell in cells:
        program.add(cell)
    return [program.statements[n].source for n in sorted(program.needed(set(needed)))]


def test_a_slice_holds_what_is_needed_and_nothing_else():
    cells = ["import math, os\nx = 1\nslow = [x for x in range(9)]", "def f(a):\n    return g(a) + x", "def g(a):\n    return math.pi * a", "print(slow)", "y = f(2)"]
    assert kept({"y"}, *cells) == ["import math, os", "x = 1", "def f(a):\n    return g(a) + x", "def g(a):\n    return math.pi * a", "y = f(2)"]
    assert kept({"slow"}, *cells) == ["slow = [x for x in range(9)]"]
    assert kept({"nothing"}, *cells) == []


@pytest.mark.parametrize(
    "change, needed",
    [
        ("a[0] = 5", True), ("a += [1]", True), ("a.append(2)", True), ("fill(a)", True), ("a.b.c = 3", True), ("del a[0]", True),
        ("for i in range(3):\n    a.append(i)", True), ("[a.append(i) for i in range(2)]", True),
        ("print(a)", False), ("b = len(a)", False), ("assert a", False), ("show(a)", False), ("refuses(lambda: a.append(1))", False), ("check_all(a)", False), ("b.append(a.copy())", False),
    ],
)  # fmt: skip
def test_changes_of_an_object_are_kept(change, needed):
    assert (len(kept({"a"}, "a = [1, 2]\nb = []", change)) > 1) == needed


def test_calls_of_a_function_that_enters_into_a_table_are_kept():
    cells = ["table = {}", "def enter(name, value):\n    table[name] = value", 'enter("a", 1)\nprint("b")', "def look(table):\n    table[0] = 1", "look({})", "n = len(table)"]
    assert kept({"n"}, *cells) == ["table = {}", cells[1], "enter('a', 1)", "n = len(table)"]


def test_a_name_bound_again_is_taken_as_it_is_then():
    assert kept({"z"}, "x = 1", "y = x", "x = 2", "z = y") == ["x = 1", "y = x", "z = y"]
    assert kept({"f"}, "x = 1", "def f():\n    return x", "x = 2") == ["def f():\n    return x", "x = 2"]
    assert kept({"y"}, "x = 1", "def f():\n    return x", "y = f()", "x = 2") == ["x = 1", "def f():\n    return x", "y = f()"]


def test_code_that_stops_a_parser_is_a_syntax_error():
    for source in ("(" * 5000, "-" * 100_000 + "1", "x = '\0'", "if x:\n%magic\n"):
        try:
            parse(source)
        except SyntaxError:
            continue
        assert source.startswith("if")


def test_waiting_for_a_process_that_ended_does_not_hang():
    process = grade._Process("--fresh")
    process.stop()
    start = time.perf_counter()
    assert process.read(30) is None and time.perf_counter() - start < 10
