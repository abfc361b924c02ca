"""Collect every claim that a stored notebook shows into one table: course/claims.md and course/claims.json.

    python course/claims.py           # write both
    python course/claims.py --check   # say whether they are what the notebooks show

A claim is what `posetutor.core.claim` printed when the notebook ran: six aligned fields, wrapped at 110 columns. The notebooks are the only source;
nothing is typed in here.
"""

import argparse
import ast
import json
import re
import sys
from collections import Counter
from dataclasses import asdict, dataclass
from pathlib import Path

from posetutor.core import write_atomic
from posetutor.course.chapters import Chapter, Node, chapter_paths, read

ROOT = Path(__file__).resolve().parent.parent
TABLE, DATA = ROOT / "course" / "claims.md", ROOT / "course" / "claims.json"
FIELDS = ("claim", "source", "protocol", "expected", "measured", "verdict")
VERDICTS = ("holds", "holds in direction", "does not hold here")


@dataclass(frozen=True)
class ClaimRow:
    """One claim as a stored notebook shows it. `number` counts within the chapter from 1, `cell` is the notebook's cell id."""

    chapter: int
    notebook: str
    title: str
    number: int
    cell: str
    statement: str
    source: str
    protocol: str
    expected: str
    measured: str
    verdict: str
    why: str


def unwrap(lines: list[str]) -> str:
    """One paragraph from the lines that textwrap made of it; a word it broke after a hyphen is joined again."""
    text = lines[0]
    for line in lines[1:]:
        text += line if re.search(r"[^\W\d_]-$", text) else f" {line}"
    return text


def parse_output(text: str, where: str) -> list[dict[str, str]]:
    """The claims in one cell's printed text, as {field: text}. Raises ValueError naming `where` and the field that is missing or out of order."""
    found: list[dict[str, list[str]]] = []
    current: dict[str, list[str]] | None = None
    for line in text.splitlines():
        label = line[:10].rstrip()
        if label == "claim" and line[10:].strip():
            found.append(current := {})
        if current is None:
            continue
        if label in FIELDS and len(line) > 10:
            if label != FIELDS[min(len(current), len(FIELDS) - 1)] or label in current:
                raise ValueError(f"{where}: the printed claim has {label!r} where {FIELDS[min(len(current), 5)]!r} belongs; run the notebook again")
            current[label] = [line[10:].strip()]
        elif line.startswith(" " * 10) and line.strip() and current:
            current[next(reversed(current))].append(line.strip())
        else:
            current = None  # other text of the cell follows
    claims = [{label: unwrap(lines) for label, lines in entry.items()} for entry in found]
    for entry in claims:
        if tuple(entry) != FIELDS:
            raise ValueError(f"{where}: the printed claim {entry.get('claim', '')[:60]!r} lacks {[f for f in FIELDS if f not in entry]}; run the notebook again")
        if entry["verdict"].split(":")[0] not in VERDICTS:
            raise ValueError(f"{where}: the verdict {entry['verdict'][:60]!r} is none of {', '.join(VERDICTS)}")
    return claims


def calls(source: str) -> int:
    """How many times a cell calls `claim(...)` as a statement of its own; demonstrations inside `with` or a lambda do not count."""
    lines = [line for line in source.splitlines() if not line.lstrip().startswith(("%", "!"))]
    try:
        body = ast.parse("\n".join(lines)).body
    except SyntaxError:
        return 0
    return sum(isinstance(n, ast.Expr) and isinstance(n.value, ast.Call) and getattr(n.value.func, "id", "") == "claim" for n in body)


def printed(cell: Node) -> str:
    """What the cell wrote to the standard output."""
    return "".join(o.text for o in cell.get("outputs") or [] if o.output_type == "stream" and o.get("name") == "stdout")


def of_chapter(chapter: Chapter) -> list[ClaimRow]:
    """The claims of one chapter. Raises ValueError naming notebook and cell when one was not run or cannot be read."""
    rows: list[ClaimRow] = []
    for index, cell in enumerate(chapter.cells):
        if cell.cell_type != "code":
            continue
        where, shown = f"{chapter.path.name}, cell {index}", []
        if calls(cell.source) or "\nclaim     " in f"\n{printed(cell)}":
            shown = parse_output(printed(cell), where)
        if len(shown) < calls(cell.source):
            raise ValueError(f"{where}: {calls(cell.source)} claims in the code, {len(shown)} in the stored output; run the notebook again")
        for entry in shown:
            verdict, _, why = entry["verdict"].partition(": ")
            texts = [entry[name] for name in FIELDS[:-1]]
            place = chapter.path.relative_to(chapter.path.parent.parent).as_posix()
            rows.append(ClaimRow(chapter.number, place, chapter.title, len(rows) + 1, cell.get("id", ""), *texts, verdict, why))
    return rows


def collect(paths: list[Path] | None = None) -> list[ClaimRow]:
    """All claims of the course in order (or of the notebooks given)."""
    return [row for path in paths or chapter_paths(ROOT / "nbs") for row in of_chapter(read(path))]


def counts(rows: list[ClaimRow]) -> dict[str, int]:
    """Verdict -> number of claims, every verdict named."""
    found = Counter(row.verdict for row in rows)
    return {verdict: found[verdict] for verdict in VERDICTS}


def summary(rows: list[ClaimRow]) -> str:
    """The counts as one sentence."""
    number = counts(rows)
    chapters = len({row.chapter for row in rows})
    return f"{len(rows)} claims in {chapters} chapters: {number['holds']} hold, {number['holds in direction']} hold in direction only, {number['does not hold here']} do not hold here."


def cell_text(text: str) -> str:
    """Text safe inside a cell of a Markdown table."""
    return re.sub(r"([\\|*_<>`\[\]$])", r"\\\1", text)


def markdown(rows: list[ClaimRow]) -> str:
    """course/claims.md."""
    lines = [
        "# Claims",
        "",
        f"**{summary(rows)}**",
        "",
        "Each line is a sentence of a paper (or of ours) that a chapter measures and asserts when it runs; a claim that does not hold here is kept, with the reason.",
        "The links lead to the cell. Written by `python course/claims.py` from the stored notebooks: do not edit.",
        "",
        "| chapter | claim | source | protocol | expected | measured | verdict |",
        "|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        link = f"../nbs/{row.notebook}"
        verdict = f"[{row.verdict}]({link}#cell-id={row.cell})" + (f": {cell_text(row.why)}" if row.why else "")
        texts = [cell_text(t) for t in (row.statement, row.source, row.protocol, row.expected, row.measured)]
        lines.append(f"| [{row.chapter:02d} {cell_text(row.title)}]({link}) | " + " | ".join(texts) + f" | {verdict} |")
    return "\n".join(lines) + "\n"


def data(rows: list[ClaimRow]) -> str:
    """course/claims.json."""
    return json.dumps({"counts": counts(rows), "claims": [asdict(row) for row in rows]}, indent=1, ensure_ascii=False) + "\n"


def write() -> str:
    """Write both files; returns the summary."""
    rows = collect()
    write_atomic(TABLE, markdown(rows))
    write_atomic(DATA, data(rows))
    return summary(rows)


def stale() -> list[str]:
    """The generated files that differ from what the notebooks show."""
    rows = collect()
    wanted = {TABLE: markdown(rows), DATA: data(rows)}
    return [p.relative_to(ROOT).as_posix() for p, text in wanted.items() if not p.is_file() or p.read_text(encoding="utf-8") != text]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--check", action="store_true", help="write nothing; fail when a file is not what the notebooks show")
    args = parser.parse_args()
    try:
        if not args.check:
            print(write())
            return 0
        old = stale()
    except ValueError as error:
        print(error, file=sys.stderr)
        return 1
    print(f"out of date: {', '.join(old)}; run python course/claims.py" if old else "the claims are what the notebooks show")
    return 1 if old else 0


if __name__ == "__main__":
    sys.exit(main())
