"""Grade a folder of student notebooks: only the answers come from them, context and check come from the course's own notebooks.

    posetutor grade FOLDER [--out grades.csv] [--chapter 21] [--seconds 20] [--memory 2]

FOLDER holds one folder a student (with notebooks of any name, or a whole copy of the course) or files such as 21_gaussian_alice.ipynb. A
chapter is recognised by its cells, else by its file name; an answer by its cell's tag, else by the names it must define. Helper functions
and imports that a student put into new cells are taken along when the answer needs them. See `guard` for what an answer may do.
"""

import ast
import builtins
import csv
import functools
import io
import json
import os
import queue
import re
import secrets
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

from posetutor.core import write_atomic
from posetutor.course.chapters import Chapter, Exercise, Node, chapter_paths, course_folder, load_cells, read, tags
from posetutor.course.runner import fault
from posetutor.course.slicing import DEFINITIONS, Program, statements
from posetutor.course.student import student_source

COLUMNS = ("student", "chapter", "exercise", "passed", "message", "seconds")
MOST_BYTES = 50 * 2**20
CONTEXT_SECONDS = 300
CAN_FORK = hasattr(os, "fork") and sys.platform != "darwin"  # macOS libraries do not survive a fork


@dataclass
class Row:
    """One line of the table; `printed` is the beginning of what the answer printed and stays out of it."""

    student: str
    chapter: str
    exercise: int | str
    passed: bool
    message: str
    seconds: float = 0.0
    printed: str = ""


@dataclass
class Sheet:
    """A course chapter as the grader needs it: the texts of its cells, and for each exercise the job without answers."""

    chapter: Chapter
    own: set[str] = field(default_factory=set)
    programs: dict[int, Program] = field(default_factory=dict)
    kept: dict[int, set[int]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        cells = self.chapter.cells
        self.own = {_bare(c.source) for c in cells} | {_bare(student_source(cells[e.answer_cell].source, e.number)) for e in self.chapter.exercises}

    @functools.cached_property
    def jobs(self) -> dict[int, dict]:
        """The job of each exercise by its number, sliced from the notebook."""
        return {e.number: self._job(e) for e in self.chapter.exercises}

    def _job(self, exercise: Exercise) -> dict:
        cells, number = self.chapter.cells, exercise.number
        before = Program([c for c in cells[: exercise.answer_cell] if "quiz" not in tags(c)])
        end = len(before.statements)
        whole = Program([])
        whole.statements = list(before.statements)
        answer = whole.add(cells[exercise.answer_cell].source)
        check = whole.add(cells[exercise.check_cell].source)
        needed = whole.needed_by({n for n in check if _checks(whole.statements[n].node)})
        functions = [s.node.name for s in (whole.statements[n] for n in answer) if isinstance(s.node, DEFINITIONS)]
        self.programs[number], self.kept[number] = before, {n for n in needed if n < end}
        return {
            "exercise": number, "names": list(exercise.names), "functions": functions,
            "context": [before.statements[n].source for n in sorted(self.kept[number])],
            "check": [whole.statements[n].source for n in check if n in needed],
        }  # fmt: skip

    def program(self, number: int) -> Program:
        """Our statements before an exercise's answer."""
        return self.jobs and self.programs[number]

    def extra(self, number: int, names: set[str]) -> list[str]:
        """Statements of our notebook that these names need beyond the exercise's context."""
        program = self.program(number)
        return [program.statements[n].source for n in sorted(program.needed(names) - self.kept[number])]


def _bare(source: str) -> str:
    return "\n".join(line.rstrip() for line in source.strip().splitlines())


def _checks(node: ast.stmt) -> bool:
    """Whether a statement of a check cell judges something, by an assert or a call of a check."""
    if isinstance(node, DEFINITIONS):
        return False
    calls = {getattr(n.func, "id", "") for n in ast.walk(node) if isinstance(n, ast.Call)}
    return isinstance(node, ast.Assert) or any(name == "refuses" or name.startswith("check_") for name in calls)


# --- finding notebooks and answers ---------------------------------------------------------------------------------


def student_of(path: Path, folder: Path, chapters: Iterable[Chapter]) -> str:
    """Who handed a file in: the first folder's name; in a copy of the course, or for a file without further name, the folder's own."""
    parts = path.relative_to(folder).parts
    course = {c.path.relative_to(course_folder()).parts[0] for c in chapters}
    if len(parts) > 1:
        return folder.resolve().name if parts[0] in course else parts[0]
    rest = path.stem
    for chapter in chapters:
        rest = rest.replace(chapter.stem, " ")
    return rest.strip(" _-.()") or folder.resolve().name


def chapter_of(path: Path, cells: list[Node], sheets: list[Sheet]) -> Sheet | None:
    """The chapter most of whose cells are in the notebook, else the one that the file's name holds."""
    sources = {_bare(c.source) for c in cells if c.source.strip()}
    best = max(sheets, key=lambda s: len(sources & s.own), default=None)
    if best and len(sources & best.own) >= 5:
        return best
    return by_name(path, sheets)


def by_name(path: Path, sheets: list[Sheet]) -> Sheet | None:
    """The chapter whose stem, or whose number at a place of its own, is in the file's name."""
    named = [s for s in sheets if s.chapter.stem in path.stem]
    numbered = [s for s in sheets if re.search(rf"(?<!\d){s.chapter.number:02d}(?!\d)", path.stem)]
    return next(iter(named or (numbered if len(numbered) == 1 else [])), None)


def _defines(source: str, names: Iterable[str]) -> set[str]:
    return {name for name in names if re.search(rf"^(?:async\s+)?(?:def|class)\s+{name}\b|^{name}\s*(?::[^=]+)?=(?!=)", source, re.MULTILINE)}


def find_answer(cells: list[Node], exercise: Exercise) -> str | None:
    """The source of an answer: the tagged cell that defines its names, else the last cells that do; None when there is none."""
    code = [c for c in cells if c.cell_type == "code"]
    tagged = [c for c in code if f"exercise-{exercise.number}" in tags(c)]
    found = [c for c in tagged if _defines(c.source, exercise.names) == set(exercise.names)]
    if found:
        return found[-1].source
    others = [c for c in code if not any(t.startswith("check-") for t in tags(c))]
    chosen: list[Node] = []
    for name in exercise.names:
        holders = [c for c in tagged or others if _defines(c.source, [name])] or [c for c in others if _defines(c.source, [name])]
        if not holders:
            return tagged[-1].source if tagged else None
        if not any(c is holders[-1] for c in chosen):
            chosen.append(holders[-1])
    return "\n".join(c.source if c in tagged else _only(c.source, exercise.names) for c in cells if any(c is one for one in chosen))


def _only(source: str, names: Iterable[str]) -> str:
    """The statements of a cell that bind the names, on the lines where they are; all of a cell that cannot be read."""
    try:
        kept = [s.node for s in statements(source) if s.binds & set(names)]
    except SyntaxError:
        return source
    spans = [range(min([n.lineno, *(d.lineno for d in getattr(n, "decorator_list", []))]), n.end_lineno + 1) for n in kept]
    return "\n".join(line if any(number in span for span in spans) else "" for number, line in enumerate(source.splitlines(), 1))


def helpers_for(source: str, cells: list[Node], sheet: Sheet, exercise: Exercise) -> tuple[list[str], list[str]]:
    """What an answer needs: (statements from cells the student added, statements of our notebook beyond the context)."""
    answer = statements(source)
    added = Program([])
    for cell in cells:
        if (
            cell.cell_type == "code"
            and _bare(cell.source) not in sheet.own
            and cell.source != source
            and not any(t.startswith(("exercise-", "check-")) for t in tags(cell))
        ):
            try:
                added.add(cell.source)
            except (SyntaxError, RecursionError):
                continue
    ours = {name for s in sheet.program(exercise.number).statements for name in s.binds} | set(vars(builtins))
    wanted = {name for s in answer for name in s.now | s.later} - ours
    places = sorted(added.needed(wanted))
    taken = [added.statements[n] for n in places if not (added.statements[n].binds & ours)]
    names = {name for s in [*answer, *taken] for name in s.now | s.later}
    return [s.source for s in taken], sheet.extra(exercise.number, names - set(exercise.names))


# --- running -------------------------------------------------------------------------------------------------------


class Runner:
    """Runs jobs in processes of their own: in forks of a server that has loaded the libraries, or in one fresh process an answer."""

    def __init__(self, *, seconds: float = 20.0, memory: float = 2.0, at_once: int | None = None, fork: bool = CAN_FORK):
        self.limits = {"seconds": seconds, "memory": memory, "at_once": at_once or max(1, min(4, os.cpu_count() or 1))}
        self.fork, self._server = fork, None

    def __enter__(self) -> "Runner":
        self._folder = tempfile.TemporaryDirectory(prefix="grade_", ignore_cleanup_errors=True)
        return self

    def __exit__(self, *exception: object) -> None:
        if self._server:
            self._server.stop()
        self._folder.cleanup()

    def run(self, job: dict, answers: list[dict]) -> list[dict]:
        """The results of an exercise's answers, in their order; every answer gets one."""
        found = {r["id"]: r for r in (self._forked(job, answers) if self.fork else self._fresh(job, answers))}
        return [found.get(a["id"]) or fault(a["id"], "could not be run: the grader's own process ended") for a in answers]

    def _forked(self, job: dict, answers: list[dict]) -> Iterator[dict]:
        if self._server is None or not self._server.alive():
            self._server = _Process()
            self._server.read(CONTEXT_SECONDS)
        folder = tempfile.mkdtemp(dir=self._folder.name)
        self._server.send({**job, **self.limits, "folder": folder, "answers": answers})
        patience = CONTEXT_SECONDS
        while True:
            line = self._server.read(patience)
            if line is None:
                self._server.stop()
                self._server = None
                return
            if "fault" in line:
                yield from (fault(a["id"], f"the course's own context failed: {line['fault']}") for a in answers)
            elif "done" in line:
                return
            else:
                patience = 60 + 2 * self.limits["seconds"]
                yield line

    def _fresh(self, job: dict, answers: list[dict]) -> list[dict]:
        with ThreadPoolExecutor(self.limits["at_once"]) as pool:
            return list(pool.map(lambda answer: self._alone(job, answer), answers))

    def _alone(self, job: dict, answer: dict) -> dict:
        token = secrets.token_hex(16)
        process = _Process("--fresh")
        start = time.perf_counter()
        try:
            process.send({**job, **self.limits, "folder": tempfile.mkdtemp(dir=self._folder.name), "answers": [answer], "token": token})
            line = process.read(CONTEXT_SECONDS)
            if line is None or "fault" in line:
                return fault(answer["id"], f"the course's own context failed: {(line or {}).get('fault', 'no answer from its process')}")
            start = time.perf_counter()
            while (left := start + self.limits["seconds"] - time.perf_counter()) > 0:
                line = process.read(left)
                if line is None:
                    break
                if line.pop("token", None) == token:
                    return line
            spent = time.perf_counter() - start
            late = spent >= self.limits["seconds"]
            return fault(
                answer["id"], f"took longer than {self.limits['seconds']:g} s" if late else f"ended Python before the check was done ({process.code()})", spent
            )
        finally:
            process.stop()


class _Process:
    """A runner process; its lines are read by a thread, so that waiting for one can end."""

    def __init__(self, *options: str):
        environment = {k: v for k, v in os.environ.items() if k != "POSETUTOR_DATA"}
        environment |= {"OMP_NUM_THREADS": "1", "MPLBACKEND": "agg", "PYTHONDONTWRITEBYTECODE": "1", "PYTHONIOENCODING": "utf-8", "PYTHONHASHSEED": "0"}
        own_group = {"start_new_session": True} if os.name == "posix" else {}
        command = [sys.executable, "-m", "posetutor.course.runner", *options]
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, env=environment, **own_group)
        self.lines: queue.Queue[bytes | None] = queue.Queue()
        threading.Thread(target=self._listen, daemon=True).start()

    def _listen(self) -> None:
        for line in self.process.stdout:
            self.lines.put(line)
        self.lines.put(None)

    def alive(self) -> bool:
        return self.process.poll() is None

    def send(self, message: dict) -> None:
        try:
            self.process.stdin.write(json.dumps(message).encode() + b"\n")
            self.process.stdin.flush()
        except OSError:  # it has ended: read() says so
            pass

    def read(self, seconds: float) -> dict | None:
        """The next line; None after so many seconds, or when the process has ended."""
        end = time.perf_counter() + seconds
        while True:
            try:
                line = self.lines.get(timeout=max(0.0, end - time.perf_counter()))
            except queue.Empty:
                return None
            if line is None:
                return None
            try:
                message = json.loads(line)
            except ValueError:  # an answer found the descriptor; only whole lines of ours count
                continue
            if isinstance(message, dict):
                return message

    def code(self) -> str:
        """How the process ended."""
        number = self.process.wait(timeout=10)
        return signal.Signals(-number).name if number < 0 else f"exit code {number}"

    def stop(self) -> None:
        if os.name == "posix":
            try:
                os.killpg(self.process.pid, signal.SIGKILL)
            except (ProcessLookupError, PermissionError):
                pass
        self.process.kill()
        self.process.wait()
        self.process.stdin.close()


# --- grading -------------------------------------------------------------------------------------------------------


@dataclass
class _Paper:
    """A handed-in notebook that was recognised."""

    student: str
    sheet: Sheet
    cells: list[Node]
    note: str = ""


def collect(folder: Path, sheets: list[Sheet], chapter: int | None = None) -> tuple[list[_Paper], list[Row]]:
    """The readable notebooks below a folder, and a row for each file that is none."""
    papers, rows = [], []
    known = {p.name for p in course_folder().rglob("*")}
    chapters = [s.chapter for s in sheets]
    students: dict[str, bool] = {}
    for path in sorted(folder.rglob("*")):
        relative = path.relative_to(folder)
        if not path.is_file() or any(part.startswith(".") for part in relative.parts):
            continue
        student = student_of(path, folder, chapters)
        students.setdefault(student, False)
        sheet = by_name(path, sheets)
        if path.suffix != ".ipynb":
            if sheet and path.name not in known:
                rows.append(Row(student, sheet.chapter.stem, "", False, f"{relative.as_posix()}: not a notebook; hand in the .ipynb file"))
            continue
        students[student] = True
        try:
            if path.stat().st_size > MOST_BYTES:
                raise ValueError(f"larger than {MOST_BYTES // 2**20} MB; clear the outputs")
            cells = load_cells(path.read_text(encoding="utf-8-sig"))
            sheet = chapter_of(path, cells, sheets)
        except (ValueError, OSError) as error:
            if chapter is None or sheet is None or sheet.chapter.number == chapter:
                rows.append(Row(student, sheet.chapter.stem if sheet else "", "", False, f"{relative.as_posix()}: {error}"))
            continue
        if sheet is None:
            if path.name not in known:
                rows.append(Row(student, "", "", False, f"{relative.as_posix()}: not recognised as a chapter of the course"))
        elif chapter in (None, sheet.chapter.number):
            papers.append(_Paper(student, sheet, cells, relative.as_posix()))
    rows += [Row(name, "", "", False, "handed in no notebook") for name, any_ in students.items() if not any_ and name not in {r.student for r in rows}]
    counts: dict[tuple, int] = {}
    for paper in papers:
        key = (paper.student, paper.sheet.chapter.stem)
        counts[key] = counts.get(key, 0) + 1
    for paper in papers:
        paper.note = f" [{paper.note}]" if counts[paper.student, paper.sheet.chapter.stem] > 1 else ""
    return papers, rows


def grade(
    folder: Path, *, chapter: int | None = None, seconds: float = 20.0, memory: float = 2.0, fork: bool = CAN_FORK, at_once: int | None = None
) -> list[Row]:
    """Grade all notebooks below a folder; one row an exercise and notebook, and one for every file that could not be read.

    folder: see the module. chapter: number of the only chapter wanted. seconds, memory (GB): limits of one answer.
    Raises FileNotFoundError for a missing or empty folder, ValueError for limits that are not positive or an unknown chapter.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise FileNotFoundError(f"{folder} is no folder; give the folder of the students' notebooks")
    if not (0 < seconds < 1e6 and 0 < memory < 1e6):
        raise ValueError(f"the limits must be positive, got {seconds} seconds and {memory} GB")
    sheets = [Sheet(read(p)) for p in chapter_paths()]
    numbers = [s.chapter.number for s in sheets]
    if chapter is not None and chapter not in numbers:
        raise ValueError(f"there is no chapter {chapter}; the course has {', '.join(map(str, numbers))}")
    papers, rows = collect(folder, sheets, chapter)
    if not papers and not rows:
        raise FileNotFoundError(f"{folder} holds no notebook{f' of chapter {chapter}' if chapter is not None else ''}")
    with Runner(seconds=seconds, memory=memory, fork=fork, at_once=at_once) as runner:
        for sheet in sheets:
            mine = [p for p in papers if p.sheet is sheet]
            for exercise in sheet.chapter.exercises if mine else ():
                rows += grade_exercise(sheet, exercise, mine, runner)
    order = {s.chapter.stem: n for n, s in enumerate(sheets)}
    return sorted(rows, key=lambda r: (r.student, order.get(r.chapter, -1), r.exercise if r.exercise != "" else 0))


def grade_exercise(sheet: Sheet, exercise: Exercise, papers: list[_Paper], runner: Runner) -> list[Row]:
    """Rows of one exercise for all notebooks of its chapter."""
    rows, answers = {}, []
    for number, paper in enumerate(papers):
        source = find_answer(paper.cells, exercise)
        row = Row(paper.student, sheet.chapter.stem, exercise.number, False, "")
        rows[number] = row
        if source is None:
            row.message = f"exercise {exercise.number}: cell not found: was it deleted?"
        elif len(source) > 200_000:
            row.message = f"the answer cell is too long ({len(source)} characters)"
        else:
            try:
                helpers, extra = helpers_for(source, paper.cells, sheet, exercise)
            except SyntaxError as error:
                row.message = f"syntax error in line {error.lineno}: {error.msg}" if error.lineno else f"syntax error: {error.msg}"
            except RecursionError:
                row.message = "syntax error: nested too deeply"
            else:
                answers.append({"id": number, "source": source, "helpers": helpers, "extra": extra})
    for result in runner.run(sheet.jobs[exercise.number], answers) if answers else ():
        row = rows[result["id"]]
        row.passed, row.message, row.seconds, row.printed = bool(result["passed"]), str(result["message"]), float(result["seconds"]), str(result["printed"])
    for number, row in rows.items():
        row.message += papers[number].note
    return list(rows.values())


def _plain(value: object) -> object:
    """A text that no spreadsheet takes for a formula."""
    return f"'{value}" if isinstance(value, str) and value.startswith(("=", "+", "-", "@", "\t", "\r")) else value


def write_csv(rows: Iterable[Row], path: Path) -> None:
    """Write the table at once or not at all; `passed` is 1 or 0."""
    text = io.StringIO()
    table = csv.writer(text, lineterminator="\n")
    table.writerow(COLUMNS)
    for row in rows:
        table.writerow([_plain(v) for v in (row.student, row.chapter, row.exercise, int(row.passed), row.message, f"{row.seconds:.2f}")])
    write_atomic(path, text.getvalue())


def summary(rows: list[Row]) -> str:
    """One line: how many answers of how many students passed."""
    answers = [r for r in rows if r.exercise != ""]
    unread = len(rows) - len(answers)
    students = len({r.student for r in rows})
    note = f"; {_count(unread, 'file')} could not be graded" if unread else ""
    return f"{sum(r.passed for r in answers)} of {_count(len(answers), 'answer')} of {_count(students, 'student')} passed{note}"


def _count(number: int, what: str) -> str:
    return f"{number} {what}{'s' if number != 1 else ''}"
