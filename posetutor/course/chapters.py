"""The chapters as data: header card, exercises, quiz and minutes, read from the notebooks with the standard library alone."""

import ast
import json
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

PACKAGE = Path(__file__).resolve().parent.parent
EXERCISE = re.compile(r"^### Exercise (\d+) · (.+?) \(([●○]{3}), (\d+) minutes?\)\s*$", re.MULTILINE)
BEGIN, END = "### BEGIN SOLUTION", "### END SOLUTION"
WORDS_A_MINUTE, MINUTES_A_PICTURE = 150, 1.5


class Node(dict):
    """A JSON object whose keys are attributes too, as nbformat's notebook nodes are."""

    def __getattr__(self, name: str) -> Any:
        try:
            return self[name]
        except KeyError:
            raise AttributeError(name) from None


@dataclass(frozen=True)
class Exercise:
    """One exercise; the three cells are indices into `Chapter.cells`, `names` is what the answer cell defines."""

    number: int
    title: str
    difficulty: int
    minutes: int
    text_cell: int
    answer_cell: int
    check_cell: int
    names: tuple[str, ...]


@dataclass(frozen=True)
class Question:
    """One quiz question as written in the notebook; `answer` is the index of the right option."""

    text: str
    options: tuple[str, ...]
    answer: int
    why: str


@dataclass
class Chapter:
    """One numbered notebook. `card` holds the rows of the header table by their bold name, as Markdown."""

    path: Path
    stem: str
    number: int
    title: str
    sentence: str
    card: dict[str, str]
    cells: list[Node]
    prerequisites: list[int]
    minutes: int
    exercises: list[Exercise] = field(default_factory=list)
    quiz: list[Question] = field(default_factory=list)


def course_folder() -> Path:
    """The folder of the course notebooks: package data of an installed wheel, or nbs/ of a checkout."""
    for folder in (PACKAGE / "notebooks", PACKAGE.parent / "nbs"):
        if (folder / "index.ipynb").is_file():
            return folder
    raise FileNotFoundError("the course notebooks are missing from this installation; reinstall posetutor")


def chapter_paths(folder: Path | None = None) -> list[Path]:
    """The numbered notebooks below a folder (default: the course's), by their number."""
    folder = folder or course_folder()
    found = [p for p in folder.rglob("[0-9]*_*.ipynb") if not any(part.startswith((".", "_")) for part in p.relative_to(folder).parts)]
    return sorted(found, key=lambda p: (int(p.stem.split("_")[0]), p.as_posix()))


def load_cells(text: str) -> list[Node]:
    """The cells of a notebook's JSON, with multi-line strings joined. Raises ValueError when it is not a version 4 notebook."""
    try:
        notebook = json.loads(text, object_hook=Node)
    except (json.JSONDecodeError, RecursionError) as error:
        raise ValueError(f"damaged notebook (no JSON: {error})") from None
    cells = notebook.get("cells") if isinstance(notebook, dict) else None
    if not isinstance(cells, list) or not all(isinstance(c, dict) and "cell_type" in c and isinstance(c.get("source"), (str, list)) for c in cells):
        raise ValueError("not a Jupyter notebook of version 4")
    for cell in cells:
        cell["source"] = _joined(cell["source"])
        cell["metadata"] = cell["metadata"] if isinstance(cell.get("metadata"), dict) else Node()
        if cell.cell_type == "code":
            cell["outputs"] = [_output(o) for o in cell["outputs"] if isinstance(o, dict)] if isinstance(cell.get("outputs"), list) else []
    return cells


def _output(output: Node) -> Node:
    data = output.get("data") if isinstance(output.get("data"), dict) else {}
    joined = {"data": Node({kind: _joined(v) if isinstance(v, list) else v for kind, v in data.items()})} if "data" in output else {}
    return Node({**output, **joined, **({"text": _joined(output["text"])} if isinstance(output.get("text"), list) else {})})


def _joined(source: str | list[str]) -> str:
    return source if isinstance(source, str) else "".join(map(str, source))


def tags(cell: Node) -> list[str]:
    """The cell's tags; an unreadable list counts as none."""
    found = cell.metadata.get("tags")
    return [t for t in found if isinstance(t, str)] if isinstance(found, list) else []


def defined_names(source: str) -> tuple[str, ...]:
    """Functions, classes and variables that a cell defines at its top level. Raises SyntaxError."""
    names: dict[str, None] = {}
    for node in ast.parse(source).body:
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
            names[node.name] = None
        elif isinstance(node, (ast.Assign, ast.AnnAssign)):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            names.update({n.id: None for t in targets for n in ast.walk(t) if isinstance(n, ast.Name) and isinstance(n.ctx, ast.Store)})
    return tuple(names)


def find_exercises(cells: list[Node], where: str = "notebook") -> list[Exercise]:
    """The exercises in order. Raises ValueError naming an exercise whose answer or check cell is missing."""
    found = []
    for text_cell, cell in enumerate(cells):
        heading = EXERCISE.search(cell.source) if cell.cell_type == "markdown" else None
        if not heading:
            continue
        number = int(heading[1])
        code = [n for n in range(text_cell + 1, len(cells)) if cells[n].cell_type == "code"]
        answer = _first(cells, code, f"exercise-{number}", BEGIN)
        check = _first(cells, [n for n in code if answer is not None and n > answer], f"check-{number}", "check_")
        if answer is None or check is None:
            raise ValueError(f"{where}: exercise {number} has no {'answer' if answer is None else 'check'} cell")
        found.append(Exercise(number, heading[2], heading[3].count("●"), int(heading[4]), text_cell, answer, check, defined_names(cells[answer].source)))
    return found


def _first(cells: list[Node], candidates: list[int], tag: str, mark: str) -> int | None:
    """The tagged cell, else the first that holds the mark."""
    tagged = [n for n in candidates if tag in tags(cells[n])]
    return next(iter(tagged or [n for n in candidates if mark in cells[n].source]), None)


def find_quiz(cells: list[Node]) -> list[Question]:
    """The questions of the quiz cell, read without running it; empty when the chapter has none."""
    for cell in cells:
        if cell.cell_type == "code" and "quiz" in tags(cell):
            calls = [n for n in ast.walk(ast.parse(cell.source)) if isinstance(n, ast.Call) and getattr(n.func, "id", "") == "Question"]
            return [_question(call) for call in calls]
    return []


def _question(call: ast.Call) -> Question:
    given = dict(zip(("text", "options", "answer", "why"), call.args)) | {k.arg: k.value for k in call.keywords}
    values = {name: ast.literal_eval(node) for name, node in given.items()}
    return Question(values["text"], tuple(values["options"]), values["answer"], values["why"])


def header_card(cells: list[Node]) -> dict[str, str]:
    """Rows of the header table by their bold name, first letter upper case ("Prerequisites", "Runs in", ...)."""
    for cell in cells[:4]:
        rows = re.findall(r"^\| \*\*(.+?)\*\* \| (.*?) \|\s*$", cell.source, re.MULTILINE) if cell.cell_type == "markdown" else []
        if rows:
            return {name[0].upper() + name[1:]: text for name, text in rows}
    return {}


def reading_minutes(cells: list[Node]) -> float:
    """Minutes to read the text and to look at the stored pictures."""
    words = sum(len(c.source.split()) for c in cells if c.cell_type == "markdown")
    pictures = sum("image/png" in o.get("data", {}) or "image/jpeg" in o.get("data", {}) for c in cells for o in c.get("outputs", []))
    return words / WORDS_A_MINUTE + MINUTES_A_PICTURE * pictures


def read(path: Path) -> Chapter:
    """One chapter as data. Raises ValueError naming the notebook when a part is missing or damaged."""
    path = Path(path)
    try:
        cells = load_cells(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path.name}: {error}") from None
    head = re.match(r"# (.+?)\s*\n+> (.+?)\s*(?:\n|$)", cells[0].source if cells else "")
    number = re.match(r"(\d+)_", path.stem)
    if not head or not number:
        raise ValueError(f"{path.name}: a chapter is named NN_topic.ipynb and starts with '# title' and a '> sentence'")
    card = header_card(cells)
    text = re.sub(r"\]\([^)]*\)", "]", card.get("Prerequisites", ""))
    prerequisites = [int(n) for n in dict.fromkeys(re.findall(r"\b\d{2}\b", text)) if int(n) != int(number[1])]
    exercises = find_exercises(cells, path.name)
    minutes = 5 * round((reading_minutes(cells) + sum(e.minutes for e in exercises)) / 5)
    title = re.sub(r"^\d+ · ", "", head[1])
    return Chapter(path, path.stem, int(number[1]), title, head[2], card, cells, prerequisites, minutes, exercises, find_quiz(cells))
