"""Where the numbers of the course come from: every score in its text resolves to a record, a published table or a cell that computes it.

    python course/records.py      # name each number that resolves to nothing

A number of ours from a recorded run (`course/runs/NAME.json`) is shown in one of two ways:

* by a cell that loads the record and prints a line `RECORDED date on device, N s of training, revision R`, followed by `name: number` pairs;
* in prose as `0.596 (run topdown_lesson: AP)`: the number, the record's name, the metric.

Both are compared with the record at the precision printed. A sentence that speaks of a FULL, LESSON or recorded run may show AP, AR, PCK or pixels in no other way.
Other scores in prose (AP, AR, PCK) must be quoted in `course/papers.yml` for that chapter, stand in the chapter's own cells or outputs, or be a fraction with its value, `81/101 = 0.802`.
"""

import ast
import re
import sys
from functools import cache
from pathlib import Path

import yaml

from posetutor.core import RunRecord
from posetutor.course.chapters import Chapter, Node, chapter_paths, read

ROOT = Path(__file__).resolve().parent.parent
RUNS = ROOT / "course" / "runs"
NUMBER = r"(?:\d+(?:\.\d+)?|\.\d+)"
NAME = r"(?:m?AP(?:50|75|_[ML])?|AR(?:50|75|_[ML])?|PCKh?(?:@\d*\.?\d+)?)(?![\w@]|\.\d)"
LINK = r"(?:,? (?:of|is|about|above|below|over|under|to|from|was)| ?[=≈:<>])*"
FIGURE = re.compile(rf"(?<![\w.]){NAME}{LINK} ?\**(?P<after>{NUMBER})(?![\w.]*\w|/)|(?<![\w./])(?P<before>{NUMBER}(?:(?:,| and| to) (?:{NUMBER}))*)\** ?{NAME}")
PIXELS = re.compile(rf"(?<![\w.])(?P<px>{NUMBER}) ?(?:px|pixels?)\b")
FRACTION = re.compile(rf"(\d+)\s*/\s*(\d+)\s*=\s*({NUMBER})")
RUN = re.compile(rf"(?P<number>{NUMBER})(?P<percent> ?%)?(?: AP| AR| px)? \(run (?P<name>\w+): (?P<metric>\w+)\)")
OWN = re.compile(r"\bFULL\b|\bLESSON\b|\b[Rr]ecorded (?:\w+ )?(?:run|lesson|training)\b|\(run \w+")
HEADER = re.compile(r"^RECORDED (?P<date>\d{4}-\d\d-\d\d) on (?P<device>.+?), (?P<seconds>\d+) s\b.*\brevision (?P<revision>\S+)$")
PAIR = re.compile(rf"['\"]?(?P<name>\w+)['\"]?\s*[:=]\s*(?P<number>-?(?:{NUMBER}))(?![\w.])")


def load(folder: Path = RUNS) -> dict[str, RunRecord]:
    """All records by name. Raises ValueError naming a file that is no record, or whose name is not its own."""
    records = {path.stem: RunRecord.load(path) for path in sorted(folder.glob("*.json"))}
    for stem, record in records.items():
        if record.name != stem or not record.date or not record.versions or not record.seconds > 0:
            raise ValueError(f"{stem}.json: the record is called {record.name!r} and must state its date, versions and seconds")
    return records


@cache
def published() -> dict[int, frozenset[str]]:
    """Chapter number -> scores that course/papers.yml quotes for it."""
    papers = yaml.safe_load((ROOT / "course" / "papers.yml").read_text(encoding="utf-8"))
    found: dict[int, set[str]] = {}
    for paper in papers.values():
        for quote in paper.get("quoted", []):
            found.setdefault(quote["chapter"], set()).update(str(v) for v in quote["values"])
    return {number: frozenset(values) for number, values in found.items()}


def agrees(printed: str, value: float | None) -> bool:
    """Whether `printed` is `value` rounded to the digits printed; a percentage or points out of 100 count as well."""
    if not isinstance(value, (int, float)):
        return False
    digits = len(printed.partition(".")[2])
    return any(abs(float(printed) - scale * value) <= 0.5 * 10**-digits + 1e-9 for scale in ((1, 100) if abs(value) <= 1 < float(printed) else (1,)))


def sentences(text: str) -> list[str]:
    """The text cut where a statement ends; a full stop inside a number is none."""
    return [s.replace("\n", " ").strip() for s in re.split(r"(?<=[.;!?])[\s*)]+(?!\d)|\n\s*\n|\n(?=[-|*#>])", text) if s.strip()]


def printed_faults(text: str, records: dict[str, RunRecord], where: str) -> list[str]:
    """Faults of the RECORDED blocks in what a cell printed: a header that is no record's, a number that is not the record's."""
    faults, record = [], None
    for line in text.splitlines():
        header = HEADER.match(line)
        if line.startswith("RECORDED"):
            record = None
            fits = [r for r in records.values() if header and r.date[:10] == header["date"] and r.revision == header["revision"] and r.device == header["device"]]
            if len(fits) != 1 or not agrees(header["seconds"], fits[0].seconds):
                faults.append(f"{where}: no record of course/runs was made like this: {line}")
            else:
                record = fits[0]
        elif not line.strip():
            record = None
        elif record is not None:
            pairs = {m["name"]: m["number"] for m in PAIR.finditer(line)}
            faults += [f"{where}: {record.name} has no metric {name} that prints as {n}" for name, n in pairs.items() if not agrees(n, record.metrics.get(name))]
            loose = set(re.findall(rf"(?<![\w.])(?:{NUMBER})(?![\w.])", PAIR.sub("", line)))
            faults += [f"{where}: the number {n} under the record of {record.name} has no name: {line}" for n in sorted(loose) if "recorded" not in line]
    return faults


def prose_faults(text: str, records: dict[str, RunRecord], where: str, *, shown: frozenset[str] = frozenset(), quoted: frozenset[str] = frozenset()) -> list[str]:
    """Scores in a text that resolve to nothing. shown: numbers in the chapter's own cells; quoted: numbers of published tables."""
    faults = []
    for sentence in sentences(text):
        for quote in RUN.finditer(sentence):
            record = records.get(quote["name"])
            value = record.metrics.get(quote["metric"]) if record else None
            if not agrees(quote["number"], value):
                faults.append(f"{where}: {quote[0]}: {'the record says ' + format(value, '.6g') if isinstance(value, float) else 'no such record or metric'}")
        own, rest = bool(OWN.search(sentence)), RUN.sub("", sentence)
        fractions = {value for a, b, value in FRACTION.findall(rest) if float(b) and agrees(value, float(a) / float(b))}
        figures = [n for m in FIGURE.finditer(rest) for n in re.findall(NUMBER, m["after"] or m["before"]) if m["after"] or "." in n]
        figures += [m["px"] for m in PIXELS.finditer(rest)] if own else []
        known = fractions if own else fractions | shown | quoted
        faults += [f"{where}: {n} resolves to no {'record' if own else 'record, published table or cell'}: {sentence[:150]}" for n in figures if n not in known]
    return faults


def strings(source: str) -> list[str]:
    """The texts inside a code cell: its string literals, and the comments."""
    try:
        tree = ast.parse("\n".join(line for line in source.splitlines() if not line.startswith(("%", "!"))))
    except SyntaxError:
        return []
    return [n.value for n in ast.walk(tree) if isinstance(n, ast.Constant) and isinstance(n.value, str)] + re.findall(r"#\s*(.*)$", source, re.MULTILINE)


def code_numbers(cells: list[Node]) -> frozenset[str]:
    """The numbers a reader sees computed in a chapter: literals of its code and what its cells printed."""
    texts = [c.source for c in cells if c.cell_type == "code"]
    texts += [o.get("text", "") for c in cells for o in c.get("outputs") or [] if o.output_type == "stream"]
    return frozenset(re.findall(rf"(?<![\w.])(?:{NUMBER})(?!\w)", "\n".join(texts)))


def chapter_faults(chapter: Chapter, records: dict[str, RunRecord]) -> list[str]:
    """Faults of one notebook: Markdown, texts in code and stored outputs."""
    shown, quoted, faults = code_numbers(chapter.cells), published().get(chapter.number, frozenset()), []
    for index, cell in enumerate(chapter.cells):
        where = f"{chapter.path.name}, cell {index}"
        if cell.cell_type == "markdown":
            faults += prose_faults(cell.source, records, where, shown=shown, quoted=quoted)
        elif cell.cell_type == "code":
            for text in strings(cell.source):
                faults += prose_faults(text, records, where, shown=shown, quoted=quoted)
            output = "".join(o.text for o in cell.get("outputs") or [] if o.output_type == "stream")
            faults += printed_faults(output, records, where)
            loads = "course/runs" in cell.source and "load(" in cell.source and "print(" in cell.source
            if loads and "RECORDED" not in output and "no recorded" not in output and "recorded run: none" not in output:
                faults.append(f"{where}: the cell loads a recorded run, but prints no line RECORDED ...")
    return faults


def course_faults() -> list[str]:
    """Faults of all chapters, of the documents at the top of the repository and of the package's docstrings."""
    records = load()
    faults = [fault for path in chapter_paths(ROOT / "nbs") for fault in chapter_faults(read(path), records)]
    for path in sorted(ROOT.glob("*.md")):
        faults += prose_faults(path.read_text(encoding="utf-8"), records, path.name)
    for path in [ROOT / "posetutor" / "cli.py", *sorted((ROOT / "posetutor" / "course").glob("*.py")), *sorted((ROOT / "course").glob("*.py"))]:
        if path.name != "records.py":  # its own examples
            for text in strings(path.read_text(encoding="utf-8")):
                faults += prose_faults(text, records, path.relative_to(ROOT).as_posix())
    return faults


if __name__ == "__main__":
    found = course_faults()
    print("\n".join(found) or "every score resolves")
    sys.exit(bool(found))
