"""Student copies: the course notebooks with the solutions taken out and nothing else changed."""

import json
import re
from collections.abc import Iterator
from pathlib import Path

from posetutor.course.chapters import BEGIN, END, course_folder, find_exercises, load_cells

BLOCK = re.compile(rf"^([ \t]*){BEGIN}[^\n]*\n.*?^[ \t]*{END}[^\n]*$", re.MULTILINE | re.DOTALL)
COURSE_FILES = {".ipynb", ".png", ".jpg"}


def gap(number: int) -> str:
    """The statement that stands in place of a solution."""
    return f'raise NotImplementedError("exercise {number}: write your answer here")'


def student_source(source: str, number: int) -> str:
    """An answer cell with each solution block replaced by one `raise` at the block's indentation."""
    text, blocks = BLOCK.subn(lambda block: block[1] + gap(number), source)
    if not blocks or BEGIN in text or END in text:
        raise ValueError(f"exercise {number}: the marks '{BEGIN}' and '{END}' must come in pairs, each on a line of its own")
    return text


def student_notebook(text: str) -> str:
    """The student copy of a notebook, JSON to JSON: gaps for solutions, no stored output under answers and checks."""
    notebook = json.loads(text)
    for exercise in find_exercises(load_cells(text)):
        answer, check = notebook["cells"][exercise.answer_cell], notebook["cells"][exercise.check_cell]
        answer["source"] = student_source("".join(answer["source"]), exercise.number).splitlines(keepends=True)
        for cell in (answer, check):
            cell["outputs"], cell["execution_count"] = [], None
    return json.dumps(notebook, indent=1, ensure_ascii=False) + "\n"


def course_files(*, solutions: bool = False, folder: Path | None = None) -> Iterator[tuple[str, bytes]]:
    """(relative name, content) of every file that a student (or, with solutions, a teacher) gets, in order of the names."""
    folder = folder or course_folder()
    for path in sorted(folder.rglob("*")):
        relative = path.relative_to(folder)
        if not path.is_file() or path.suffix not in COURSE_FILES or any(part.startswith((".", "_")) for part in relative.parts):
            continue
        content = path.read_bytes()
        if path.suffix == ".ipynb" and not solutions:
            try:
                content = student_notebook(content.decode("utf-8")).encode("utf-8")
            except ValueError as error:
                raise ValueError(f"{relative.as_posix()}: {error}") from None
        yield relative.as_posix(), content
