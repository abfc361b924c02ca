"""Seconds to grade a class: 200 student notebooks of one chapter, one exercise of it, from reading the files to the rows.

    python bench/bench_grade.py [--answers 200] [--chapter 21] [--exercise 2] [--out bench/results/bench_grade.json]

Of every ten notebooks five hold the solution, two the empty gap, one a syntax error, one an answer of the wrong type and one a wrong
number; one answer in the class never ends and waits for the time limit (20 s). The aim is 120 seconds on two cores.
"""

import argparse
import json
import os
import tempfile
import time
from pathlib import Path

from posetutor.course.chapters import chapter_paths, read
from posetutor.course.grade import Runner, Sheet, collect, grade_exercise
from posetutor.course.student import student_notebook

AIM = 120.0


def answer_of(number: int, solution: str, gap: str, names: tuple[str, ...]) -> str:
    """The answer cell of one student."""
    signatures = [f"def {name}(*args, **options):\n" for name in names]
    if number == 7:
        return "\n".join(s + "    while True:\n        pass\n" for s in signatures)
    kinds = {5: gap, 6: gap, 7: solution + "\n    return (", 8: "\n".join(s + "    return 'text'\n" for s in signatures), 9: "\n".join(s + "    return 0.123\n" for s in signatures)}
    return kinds.get(number % 10, solution)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--answers", type=int, default=200)
    parser.add_argument("--chapter", type=int, default=21)
    parser.add_argument("--exercise", type=int, default=2)
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    chapter = next(c for c in map(read, chapter_paths()) if c.number == args.chapter)
    exercise = next(e for e in chapter.exercises if e.number == args.exercise)
    solution = chapter.cells[exercise.answer_cell].source
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        notebook = json.loads(student_notebook(chapter.path.read_text(encoding="utf-8")))
        gap = "".join(notebook["cells"][exercise.answer_cell]["source"])
        for number in range(args.answers):
            notebook["cells"][exercise.answer_cell]["source"] = answer_of(number, solution, gap, exercise.names)
            (folder / f"{chapter.stem}_student{number:03d}.ipynb").write_text(json.dumps(notebook), encoding="utf-8")
        start = time.perf_counter()
        sheets = [Sheet(read(p)) for p in chapter_paths()]
        papers, unread = collect(folder, sheets, args.chapter)
        sheet = next(s for s in sheets if s.chapter.number == args.chapter)
        collected = time.perf_counter() - start
        with Runner() as runner:
            rows = grade_exercise(sheet, exercise, papers, runner)
        seconds = time.perf_counter() - start
    assert not unread and len(rows) == args.answers
    right = sum(r.passed for r in rows)
    assert right == sum(answer_of(n, solution, gap, exercise.names) == solution for n in range(args.answers)), "a verdict is wrong"
    report = {
        "chapter": chapter.stem, "exercise": args.exercise, "answers": len(rows), "passed": right, "seconds": round(seconds, 1), "reading_seconds": round(collected, 1),
        "cores": os.cpu_count(), "load_before": [round(v, 1) for v in os.getloadavg()] if hasattr(os, "getloadavg") else None,
    }  # fmt: skip
    print(f"{chapter.stem} exercise {args.exercise}: {len(rows)} answers graded in {seconds:.1f} s ({collected:.1f} s of it reading), {right} passed; aim {AIM:.0f} s")
    if args.out:
        args.out.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
