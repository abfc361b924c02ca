"""Routes through the course: what a teacher reads, checks and hands out.

A route is a list of sessions in routes.yml. Here it is read, checked against the chapters (prerequisites, minutes, sections, exercises),
turned into a printable plan and packed, with student and teacher notebooks, slides and drawn pictures, into one reproducible zip. The
order of the whole course and the links between its chapters come from the same prerequisites.
"""

import heapq
import html
import io
import json
import os
import re
import tempfile
import zipfile
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from posetutor import __version__
from posetutor.core import write_atomic
from posetutor.course.chapters import PACKAGE, Chapter, chapter_paths, course_folder, read

OPTIONAL = re.compile(r"pictures use|code uses|figures from|\bhelps\b|none to read", re.IGNORECASE)
PARTS = ("all", "student", "teacher")
STUDENT_LIMIT_MB = 30


@dataclass(frozen=True)
class Part:
    """A piece of a session: sections or exercises of a chapter, something else to do, or a chapter that is only planned.

    minutes: as stated; None when missing. Planned parts are shown and never counted.
    """

    text: str
    minutes: int | None
    chapter: int | None = None
    sections: tuple[str, ...] = ()
    exercises: tuple[int, ...] = ()
    planned: bool = False


@dataclass(frozen=True)
class Session:
    """One meeting: its title, the minutes it lasts, what is done there, and what is done at home."""

    title: str
    minutes: int | None
    parts: tuple[Part, ...]
    homework: tuple[Part, ...] = ()


@dataclass(frozen=True)
class Route:
    """A way through the course. assumes: chapters whose content the students know, or use as a finished tool, with the reason."""

    name: str
    title: str
    audience: str
    minutes: int | None
    assumes: dict[int, str]
    sessions: tuple[Session, ...]

    @property
    def chapters(self) -> list[int]:
        """Numbers of the chapters in the order in which the route first meets them."""
        parts = [p for s in self.sessions for p in (*s.parts, *s.homework)]
        return list(dict.fromkeys(p.chapter for p in parts if p.chapter is not None and not p.planned))


# --- the chapters and their order ------------------------------------------------------------------------------------------------


def needed(chapter: Chapter) -> list[int]:
    """Chapters to be read before this one: the prerequisites of its header card without those it marks as mere tools or optional."""
    clauses = [c for c in chapter.card.get("Prerequisites", "").split(";") if not OPTIONAL.search(c)]
    text = re.sub(r"\]\([^)]*\)", "]", ";".join(clauses))
    return [n for n in chapter.prerequisites if re.search(rf"\b{n:02d}\b", text)]


def imported(chapter: Chapter, modules: dict[str, int]) -> list[int]:
    """Chapters whose exported module the cells of this one import. modules: name of a module below posetutor -> chapter."""
    found: dict[int, None] = {}
    for cell in chapter.cells:
        if cell.cell_type == "code":
            for name in re.findall(r"^\s*from posetutor\.([\w.]+) import", cell.source, re.MULTILINE):
                if name in modules and modules[name] != chapter.number:
                    found[modules[name]] = None
    return sorted(found)


def modules_of(chapters: Iterable[Chapter]) -> dict[str, int]:
    """Module that each chapter exports -> its number."""
    found = {}
    for chapter in chapters:
        for cell in chapter.cells:
            if cell.cell_type == "code" and (match := re.match(r"#\|\s*default_exp\s+([\w.]+)", cell.source)):
                found[match[1]] = chapter.number
    return found


def course_order(chapters: Iterable[Chapter]) -> list[Chapter]:
    """All chapters, each after those it needs, otherwise by number. Raises ValueError naming the chapters of a cycle."""
    by_number = {c.number: c for c in chapters}
    open_needs = {n: {m for m in needed(c) if m in by_number} for n, c in by_number.items()}
    ready, order = [n for n, needs in open_needs.items() if not needs], []
    heapq.heapify(ready)
    while ready:
        number = heapq.heappop(ready)
        order.append(by_number[number])
        for other, needs in open_needs.items():
            if number in needs:
                needs.discard(number)
                if not needs:
                    heapq.heappush(ready, other)
    if len(order) < len(by_number):
        left = {n: needs for n, needs in open_needs.items() if needs}
        at, path = min(left), []
        while at not in path:
            path.append(at)
            at = min(n for n in left[at] if n in left)
        circle = [*path[path.index(at) :], at]
        raise ValueError(f"chapters {' -> '.join(f'{n:02d}' for n in circle)} need each other; mend the row Prerequisites of one of their header cards")
    return order


def headings(chapter: Chapter) -> list[str]:
    """The titles of a chapter's sections."""
    texts = [re.sub(r"```.*?```", "", c.source, flags=re.DOTALL) for c in chapter.cells if c.cell_type == "markdown"]
    return [h for text in texts for h in re.findall(r"^## (.+?)\s*$", text, re.MULTILINE)]


def find_section(chapter: Chapter, wanted: str) -> str | None:
    """The heading that a route means by "3" (its number) or by its first words; None when there is none."""
    key = wanted.strip().lower()
    for heading in headings(chapter):
        low = heading.lower()
        number = re.match(r"(?:step )?(\d+)\s?[·.:]\s*(.*)", low)
        if (number and key == number[1]) or (not key.isdigit() and (low.startswith(key) or (number and number[2].startswith(key)))):
            return heading
    return None


# --- reading and checking --------------------------------------------------------------------------------------------------------


def routes_path() -> Path:
    """routes.yml beside the notebooks of an installed wheel, or in course/ of a checkout."""
    for path in (course_folder() / "routes.yml", PACKAGE.parent / "course" / "routes.yml"):
        if path.is_file():
            return path
    raise FileNotFoundError("routes.yml is missing from this installation; reinstall posetutor")


def all_chapters(folder: Path | None = None) -> dict[int, Chapter]:
    """Every chapter by number."""
    return {c.number: c for c in map(read, chapter_paths(folder))}


def load_routes(path: Path | None = None) -> dict[str, Route]:
    """The routes of a file by name. Raises ValueError naming route, session and part when something is not of the expected form."""
    try:
        import yaml
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError("routes need PyYAML; type: pip install posetutor[course]") from error
    path = path or routes_path()
    try:
        data = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    except yaml.YAMLError as error:
        raise ValueError(f"{path}: not readable as YAML ({' '.join(str(error).split())})") from None
    routes = data.get("routes") if isinstance(data, dict) else None
    if not isinstance(routes, dict) or not routes:
        raise ValueError(f"{path}: there must be an entry 'routes' with one entry for each route")
    return {str(name): _route(str(name), entry) for name, entry in routes.items()}


def _route(name: str, entry: Any) -> Route:
    where = f"route {name}"
    _known(entry, {"title", "for", "minutes", "assumes", "sessions"}, where)
    for key in ("title", "sessions"):
        if not entry.get(key):
            raise ValueError(f"{where}: '{key}' is missing")
    assumes = entry.get("assumes") or {}
    if not isinstance(assumes, dict) or not all(isinstance(n, int) for n in assumes):
        raise ValueError(f"{where}: 'assumes' must list chapter numbers, each with a reason, such as '2: used as a finished tool'")
    if not isinstance(entry["sessions"], list):
        raise ValueError(f"{where}: 'sessions' must be a list")
    sessions = [_session(s, f"{where}, session {n}") for n, s in enumerate(entry["sessions"], 1)]
    return Route(name, str(entry["title"]), str(entry.get("for", "")), _minutes(entry, where), {n: str(why) for n, why in assumes.items()}, tuple(sessions))


def _session(entry: Any, where: str) -> Session:
    _known(entry, {"title", "minutes", "parts", "homework"}, where)
    if not entry.get("title") or not isinstance(entry.get("parts"), list) or not entry["parts"]:
        raise ValueError(f"{where}: a session needs a 'title' and a list of 'parts'")
    where = f"{where} ({entry['title']})"
    parts = tuple(_part(p, f"{where}, part {n}") for n, p in enumerate(entry["parts"], 1))
    homework = tuple(_part(p, f"{where}, homework {n}") for n, p in enumerate(entry.get("homework") or [], 1))
    return Session(str(entry["title"]), _minutes(entry, where), parts, homework)


def _part(entry: Any, where: str) -> Part:
    _known(entry, {"chapter", "sections", "exercises", "minutes", "do", "planned"}, where)
    kinds = [k for k in ("chapter", "do", "planned") if k in entry]
    if len(kinds) != 1 and kinds != ["chapter", "do"]:
        raise ValueError(f"{where}: a part is one of 'chapter: 21', 'do: what is done', 'planned: 23 DARK'")
    minutes = _minutes(entry, where)
    if "planned" in entry:
        return Part(str(entry["planned"]), minutes, planned=True)
    if "chapter" not in entry:
        return Part(str(entry["do"]), minutes)
    if not isinstance(entry["chapter"], int):
        raise ValueError(f"{where}: chapter must be a number, got {entry['chapter']!r}")
    lists = {}
    for key in ("sections", "exercises"):
        lists[key] = entry.get(key, [])
        if not isinstance(lists[key], list):
            raise ValueError(f"{where}: '{key}' must be a list, got {lists[key]!r}")
    if not all(isinstance(n, int) for n in lists["exercises"]):
        raise ValueError(f"{where}: exercises are numbers, got {lists['exercises']!r}")
    return Part(str(entry.get("do", "")), minutes, entry["chapter"], tuple(map(str, lists["sections"])), tuple(lists["exercises"]))


def _known(entry: Any, keys: set[str], where: str) -> None:
    if not isinstance(entry, dict):
        raise ValueError(f"{where}: expected entries such as {', '.join(sorted(keys))}, got {entry!r}")
    if foreign := sorted(map(str, set(entry) - keys)):
        raise ValueError(f"{where}: unknown entry {foreign[0]!r}; known are {', '.join(sorted(keys))}")


def _minutes(entry: dict, where: str) -> int | None:
    minutes = entry.get("minutes")
    if minutes is not None and (not isinstance(minutes, int) or isinstance(minutes, bool) or minutes <= 0):
        raise ValueError(f"{where}: minutes must be a whole number above 0, got {minutes!r}")
    return minutes


def part_minutes(part: Part, chapters: dict[int, Chapter]) -> int | None:
    """Minutes of a part: as stated, else those of its exercises or of the whole chapter; None when they cannot be known."""
    if part.planned:
        return 0
    chapter = chapters.get(part.chapter) if part.chapter is not None else None
    if part.minutes is not None or chapter is None or part.sections:
        return part.minutes
    return _exercise_minutes(part, chapter) if part.exercises else chapter.minutes


def _exercise_minutes(part: Part, chapter: Chapter) -> int:
    return sum(e.minutes for e in chapter.exercises if e.number in part.exercises)


def route_faults(route: Route, chapters: dict[int, Chapter]) -> list[str]:
    """Everything that is wrong with a route, one clear line each; empty when all is well."""
    faults = []
    for number in route.assumes:
        if number not in chapters:
            faults.append(f"assumes chapter {number:02d}, which does not exist; chapters are {_list(chapters)}")
    seen, total = set(route.assumes), 0
    for n, session in enumerate(route.sessions, 1):
        where = f"session {n} ({session.title})"
        used = 0
        for part in (*session.parts, *session.homework):
            faults += [f"{where}: {fault}" for fault in _part_faults(part, chapters, seen)]
            if part.chapter in chapters:
                seen.add(part.chapter)
        for part in session.parts:
            used += part_minutes(part, chapters) or 0
        if session.minutes is None:
            faults.append(f"{where}: its minutes are missing; the parts add up to {used}")
        elif used != session.minutes:
            faults.append(f"{where}: the parts add up to {used} minutes, but {session.minutes} are stated")
        total += session.minutes or 0
    if route.minutes is None:
        faults.append(f"its minutes are missing; the sessions add up to {total}")
    elif route.minutes != total:
        faults.append(f"the sessions add up to {total} minutes, but {route.minutes} are stated")
    return [f"route {route.name}: {fault}" if fault.startswith(("assumes", "its", "the")) else f"route {route.name}, {fault}" for fault in faults]


def _part_faults(part: Part, chapters: dict[int, Chapter], seen: set[int]) -> Iterator[str]:
    if part.planned:
        return
    if part.chapter is not None and part.chapter not in chapters:
        yield f"there is no chapter {part.chapter:02d}; chapters are {_list(chapters)}. One that is still to be written is listed as 'planned:'"
        return
    if part_minutes(part, chapters) is None:
        yield f"minutes are missing for {describe(part, chapters)}"
    if part.chapter is None:
        return
    chapter = chapters[part.chapter]
    for section in part.sections:
        if find_section(chapter, section) is None:
            yield f"chapter {chapter.stem} has no section {section!r}; it has {'; '.join(headings(chapter))}"
    for exercise in part.exercises:
        if exercise not in {e.number for e in chapter.exercises}:
            yield f"chapter {chapter.stem} has no exercise {exercise}; it has {len(chapter.exercises)}"
    if part.minutes is not None and part.exercises and part.minutes < _exercise_minutes(part, chapter):
        yield f"{describe(part, chapters)} gets {part.minutes} minutes, but its exercises alone take {_exercise_minutes(part, chapter)}"
    for number in needed(chapter):
        if number not in seen:
            name = chapters[number].title if number in chapters else "not written yet"
            yield f"chapter {chapter.stem} needs {number:02d} ({name}); put it earlier, or list it under 'assumes' with the reason"


def _list(chapters: dict[int, Chapter]) -> str:
    return ", ".join(f"{n:02d}" for n in sorted(chapters))


def route_notes(route: Route, chapters: dict[int, Chapter]) -> list[str]:
    """What a teacher should know although nothing is wrong: tools that come from elsewhere, and planned chapters that exist by now."""
    notes, modules, met = [], modules_of(chapters.values()), set(route.chapters) | set(route.assumes)
    tools = sorted({n for c in route.chapters if c in chapters for n in imported(chapters[c], modules)} - met)
    if tools:
        notes.append("used as finished tools, without their chapters: " + ", ".join(f"{n:02d} {chapters[n].title}" for n in tools))
    for part in (p for s in route.sessions for p in (*s.parts, *s.homework) if p.planned):
        number = re.match(r"(\d+)\b", part.text)
        if number and int(number[1]) in chapters:
            notes.append(f"chapter {number[1]} is listed as planned and exists by now; write it as 'chapter: {int(number[1])}'")
    return notes


def find_route(name: str, chapters: dict[int, Chapter], routes: dict[str, Route] | None = None) -> Route:
    """The route of that name. Raises ValueError when there is none or it has faults."""
    routes = routes if routes is not None else load_routes()
    if name not in routes:
        raise ValueError(f"there is no route {name!r}; the routes are {', '.join(routes)}")
    if faults := route_faults(routes[name], chapters):
        more = f" (and {len(faults) - 1} more; type: posetutor routes {name})" if len(faults) > 1 else ""
        raise ValueError(faults[0] + more)
    return routes[name]


# --- words for people ------------------------------------------------------------------------------------------------------------


def hours(minutes: int) -> str:
    """Minutes as 45 min or 3 h 30 min."""
    whole, rest = divmod(minutes, 60)
    return f"{minutes} min" if not whole else f"{whole} h" + (f" {rest} min" if rest else "")


def extent(route: Route) -> str:
    """How long a route is, in words."""
    count = len(route.sessions)
    return f"{count} session{'s' if count != 1 else ''}, {hours(route.minutes or 0)}"


def describe(part: Part, chapters: dict[int, Chapter]) -> str:
    """A part in words: chapter, sections, exercises."""
    if part.planned:
        return f"planned: {part.text}"
    chapter = chapters.get(part.chapter) if part.chapter is not None else None
    if chapter is None:
        return part.text or f"chapter {part.chapter:02d}"
    words = f"{chapter.number:02d} {chapter.title}"
    if part.sections:
        words += ": " + "; ".join(find_section(chapter, s) or s for s in part.sections)
    if part.exercises:
        words += f"{',' if part.sections else ':'} exercise{'s' if len(part.exercises) > 1 else ''} {', '.join(map(str, part.exercises))}"
    return words + (f" ({part.text})" if part.text else "")


def route_text(route: Route, chapters: dict[int, Chapter]) -> str:
    """The route as lines of text, with what is wrong and what to know at the end."""
    lines = [f"{route.name}: {route.title} ({extent(route)})"]
    for n, session in enumerate(route.sessions, 1):
        lines.append(f"{n:3}. {session.title} ({session.minutes} min)")
        for part in session.parts:
            time = "   -" if part.planned else f"{part_minutes(part, chapters) or 0:4}"
            lines.append(f"     {time}  {describe(part, chapters)}")
        lines += [f"     home  {describe(part, chapters)} ({part_minutes(part, chapters)} min)" for part in session.homework]
    lines += [f"assumed: {n:02d} {chapters[n].title}: {why}" for n, why in route.assumes.items() if n in chapters]
    lines += [f"note: {note}" for note in route_notes(route, chapters)]
    lines += [f"FAULT {fault}" for fault in route_faults(route, chapters)]
    return "\n".join(lines)


# --- links between the chapters --------------------------------------------------------------------------------------------------


def links(order: Sequence[Chapter], folder: Path) -> dict[str, str]:
    """Stem -> the line that leads to the chapters before and after it, and to the map of the course."""
    lines = {}
    for n, chapter in enumerate(order):
        here = chapter.path.parent

        def lead(other: Chapter, here: Path = here) -> str:
            return f"[{other.number:02d} · {other.title}]({Path(os.path.relpath(other.path, here)).as_posix()})"

        index = Path(os.path.relpath(folder / "index.ipynb", here)).as_posix()
        line = [f"Previous: {lead(order[n - 1])}"] if n else []
        line += [f"Next: {lead(order[n + 1])}"] if n + 1 < len(order) else []
        lines[chapter.stem] = " · ".join([*line, f"[Map of the course]({index})"])
    return lines


def linked(text: str, line: str) -> str:
    """A notebook's JSON with the line in its last cell, which has the tag `links`; unchanged when it is there already."""
    notebook = json.loads(text)
    cells = [c for c in notebook["cells"] if "links" not in c.get("metadata", {}).get("tags", [])]
    cell = {"cell_type": "markdown", "id": f"cell-{len(cells):03d}", "metadata": {"tags": ["links"]}, "source": [line]}
    if notebook["cells"] and {**notebook["cells"][-1], "id": ""} == {**cell, "id": ""} and len(notebook["cells"]) == len(cells) + 1:
        return text
    notebook["cells"] = [*cells, cell]
    return json.dumps(notebook, indent=1, ensure_ascii=False) + "\n"


def write_links(folder: Path | None = None) -> list[str]:
    """Bring the last line of every chapter up to date; returns the stems of the chapters that were changed."""
    folder = folder or course_folder()
    order, changed = course_order(all_chapters(folder).values()), []
    wanted = links(order, folder)
    for chapter in order:
        text = chapter.path.read_text(encoding="utf-8")
        if (new := linked(text, wanted[chapter.stem])) != text:
            write_atomic(chapter.path, new)
            changed.append(chapter.stem)
    return changed


# --- the printable plan ----------------------------------------------------------------------------------------------------------


def plan_html(route: Route, chapters: dict[int, Chapter], *, solutions: bool = True) -> str:
    """The plan of a route as one HTML page for paper and screen. solutions: whether it stands beside the teacher's notebooks."""
    from posetutor.course.text import render_inline

    def li(items: Iterable[str]) -> str:
        return "".join(f"<li>{item}</li>" for item in items)

    blocks = []
    for n, session in enumerate(route.sessions, 1):
        rows = []
        for part in session.parts:
            time = '<span class="planned">planned</span>' if part.planned else f"{part_minutes(part, chapters)} min"
            words = html.escape(part.text) if part.planned else _with_bold_name(render_inline(describe(part, chapters)), part, chapters)
            rows.append(f'<tr{" class=planned" if part.planned else ""}><td>{time}</td><td>{words}</td></tr>')
        used = list(dict.fromkeys(p.chapter for p in (*session.parts, *session.homework) if p.chapter in chapters))
        goals = [render_inline(_goal(chapters[c])) for c in used if _goal(chapters[c])]
        exercises = [_exercise_row(chapters[p.chapter], e, home) for home, ps in ((False, session.parts), (True, session.homework)) for p in ps for e in p.exercises]
        homework = [f"{render_inline(describe(p, chapters))} ({part_minutes(p, chapters)} min)" for p in session.homework]
        files = [f"<code>{html.escape(_relative(chapters[c]))}</code>" + (f' · slides <a href="slides/{chapters[c].stem}.html">{chapters[c].stem}.html</a>' if solutions else "") for c in used]
        blocks.append(
            f"<section><h2>{n}. {html.escape(session.title)} <small>{session.minutes} min</small></h2>"
            + (f"<h3>Goals</h3><ul>{li(goals)}</ul>" if goals else "")
            + f"<h3>In the room</h3><table>{''.join(rows)}</table>"
            + (f"<h3>At home</h3><ul>{li(homework)}</ul>" if homework else "")
            + (f"<h3>Exercises</h3><table>{''.join(exercises)}</table>" if exercises else "")
            + (f"<h3>Open</h3><ul>{li(files)}</ul></section>" if files else "</section>")
        )
    assumed = [f"{num:02d} {html.escape(chapters[num].title)}: {html.escape(why)}" for num, why in route.assumes.items() if num in chapters]
    overview = "".join(f"<tr><td>{n}</td><td>{html.escape(s.title)}</td><td>{s.minutes} min</td></tr>" for n, s in enumerate(route.sessions, 1))
    notes = [html.escape(note) for note in route_notes(route, chapters) if note.startswith("used")]
    return _PLAN.format(
        title=html.escape(route.title),
        audience=html.escape(route.audience),
        extent=extent(route),
        overview=overview,
        assumed=f"<h2>Assumed</h2><ul>{li([*assumed, *notes])}</ul>" if assumed or notes else "",
        install=_INSTALL_TEACHER if solutions else _INSTALL_STUDENT,
        sessions="\n".join(blocks),
        version=html.escape(__version__),
    )


def _with_bold_name(words: str, part: Part, chapters: dict[int, Chapter]) -> str:
    if part.chapter not in chapters:
        return words
    chapter = chapters[part.chapter]
    name = html.escape(f"{chapter.number:02d} {chapter.title}", quote=False)
    return words.replace(name, f"<b>{name}</b>", 1)


def _goal(chapter: Chapter) -> str:
    learn = next((text for name, text in chapter.card.items() if name.startswith("You will")), "").removeprefix("to ").strip()
    return re.sub(r"[a-z]", lambda m: m[0].upper(), learn, count=1)


def _exercise_row(chapter: Chapter, number: int, home: bool) -> str:
    from posetutor.course.text import render_inline

    found = next((e for e in chapter.exercises if e.number == number), None)
    if found is None:
        return ""
    stars = "●" * found.difficulty + "○" * (3 - found.difficulty)
    return f'<tr><td>{chapter.number:02d}.{number}</td><td>{render_inline(found.title)}{" (home)" if home else ""}</td><td aria-label="difficulty {found.difficulty} of 3">{stars}</td><td>{found.minutes} min</td></tr>'


def _relative(chapter: Chapter) -> str:
    return f"{chapter.path.parent.name}/{chapter.path.name}"


# --- the zip ---------------------------------------------------------------------------------------------------------------------


def zip_files(route: Route, chapters: dict[int, Chapter], part: str = "all") -> dict[str, bytes]:
    """Everything a zip of a route holds, by name. part: "student" (no solutions, no slides), "teacher" or "all"."""
    from posetutor.course.slides import render
    from posetutor.course.student import course_files

    if part not in PARTS:
        raise ValueError(f"part must be one of {', '.join(PARTS)}, got {part!r}")
    files: dict[str, bytes] = {}
    data = drawn_sample()
    if part in ("all", "student"):
        prefix = "student/" if part == "all" else ""
        files |= {prefix + name: content for name, content in course_files(solutions=False) if not name.endswith(".yml")}
        files |= {f"{prefix}data/{name}": content for name, content in data.items()}
        files[f"{prefix}plan.html"] = plan_html(route, chapters, solutions=False).encode("utf-8")
    if part in ("all", "teacher"):
        files |= {f"teacher/{name}": content for name, content in course_files(solutions=True) if not name.endswith(".yml")}
        files |= {f"teacher/data/{name}": content for name, content in data.items()}
        files |= {f"slides/{chapters[n].stem}.html": render(chapters[n]).encode("utf-8") for n in route.chapters}
        files["plan.html"] = plan_html(route, chapters, solutions=True).encode("utf-8")
    if part == "all":
        files["student.zip"] = packed({name.removeprefix("student/"): content for name, content in files.items() if name.startswith("student/")})
        files = {name: content for name, content in files.items() if not name.startswith("student/")}
    return files


def drawn_sample(count: int = 48) -> dict[str, bytes]:
    """A small COCO keypoint data set of drawn people, by file name: three quarters to train on, the rest to test on."""
    from posetutor.data.figures import export_coco, figures

    with tempfile.TemporaryDirectory() as folder:
        for name, start, number in (("train", 0, count * 3 // 4), ("val", 100_000, count // 4)):
            export_coco(figures(number, start=start), folder, name)
        root = Path(folder)
        return {f"drawn/{p.relative_to(root).as_posix()}": p.read_bytes() for p in sorted(root.rglob("*")) if p.is_file()}


def packed(files: dict[str, bytes]) -> bytes:
    """A zip whose bytes depend on names and contents alone: sorted, with one fixed date and fixed rights."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name in sorted(files):
            info = zipfile.ZipInfo(name, date_time=(1980, 1, 1, 0, 0, 0))
            info.external_attr, info.create_system = 0o644 << 16, 3
            info.compress_type = zipfile.ZIP_STORED if name.endswith((".jpg", ".png", ".zip")) else zipfile.ZIP_DEFLATED
            archive.writestr(info, files[name], compresslevel=6)
    return buffer.getvalue()


def write_zip(name: str, out: Path, part: str = "all") -> tuple[Path, dict[str, int]]:
    """Pack a route into a file, in one step; returns its path and the bytes of each part of it.

    Raises ValueError for an unknown route or one with faults, and when what a student gets is over 30 MB.
    """
    out = Path(out)
    if out.is_dir() or out.suffix.lower() != ".zip":
        raise ValueError(f"--out must name a .zip file, got {out}")
    chapters = all_chapters()
    files = zip_files(find_route(name, chapters), chapters, part)
    content = packed(files)
    student = len(files["student.zip"]) if part == "all" else len(content)
    if part != "teacher" and student > STUDENT_LIMIT_MB * 1e6:
        raise ValueError(f"the student part has {student / 1e6:.0f} MB, at most {STUDENT_LIMIT_MB} MB are allowed; store smaller pictures in the notebooks")
    sizes: dict[str, int] = {}
    for path, data in files.items():
        top = path.split("/")[0] if part != "student" else "student"
        sizes[top] = sizes.get(top, 0) + len(data)
    return write_atomic(out, content), sizes


_INSTALL_STUDENT = """<h2>Before the first session</h2><ol>
<li>Python 3.10 or newer on your laptop, and: <code>pip install posetutor jupyterlab</code></li>
<li><code>posetutor doctor</code> prints one green line for each part of the installation, and says what to do about the others.</li>
<li>Unpack this zip, open a shell in its folder and type <code>jupyter lab</code>. Nothing of the course needs a network from here on.</li>
<li><code>data/drawn</code> holds drawn people with exact joints as a COCO data set, for trying things out.</li>
</ol>"""

_INSTALL_TEACHER = """<h2>Before the first session</h2><ol>
<li>Install what the students install, and the tools for slides and grading: <code>pip install "posetutor[course]" jupyterlab</code>, then <code>posetutor doctor</code>.</li>
<li>Hand out <code>student.zip</code>: the notebooks without solutions, drawn pictures, and the students' version of this plan. It tells them what to install.</li>
<li>Open <code>slides/*.html</code> in any browser, without a network: arrows page, <code>n</code> shows notes, <code>s</code> opens them in a window of their own, <code>?</code> lists all keys.</li>
<li>In the room, run the notebooks in <code>teacher/</code> with <code>jupyter lab</code>; live pictures work offline and at 150 % zoom. Each has a printed twin.</li>
</ol>
<h2>Afterwards</h2><p>Put the students' notebooks into a folder, one folder a student, and type <code>posetutor grade answers --out grades.csv</code>.
The table names student, exercise, result and reason. Answers run one by one with limits of time and memory, and nothing leaves the machine.</p>"""

_PLAN = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; img-src data:; style-src 'unsafe-inline'">
<meta name="color-scheme" content="light dark">
<link rel="icon" href="data:,">
<title>{title}</title>
<style>
:root{{--ink:#1b2430;--soft:#566373;--line:#d5dbe2;--accent:#0072b2;--paper:#fff;--panel:#f3f6f9}}
@media (prefers-color-scheme:dark){{:root{{--ink:#e8edf2;--soft:#a3b0bd;--line:#37424e;--accent:#6cbcf0;--paper:#14181d;--panel:#1f262e}}}}
body{{font:1rem/1.45 system-ui,-apple-system,"Segoe UI",Roboto,"Noto Sans",Arial,sans-serif;color:var(--ink);background:var(--paper);max-width:52rem;margin:2rem auto;padding:0 1.2rem}}
h1{{color:var(--accent);line-height:1.15;margin-bottom:.2em}}h2{{color:var(--accent);font-size:1.25rem;margin:1.6em 0 .4em}}h2 small{{color:var(--soft);font-weight:400}}
h3{{font-size:.95rem;color:var(--soft);margin:.9em 0 .2em}}
table{{border-collapse:collapse;width:100%}}td{{border-bottom:1px solid var(--line);padding:.28em .8em .28em 0;vertical-align:top}}td:first-child{{white-space:nowrap;width:5.5rem;color:var(--soft)}}
a{{color:var(--accent)}}ul,ol{{margin:.2em 0;padding-left:1.3em}}code{{font-family:ui-monospace,Consolas,"DejaVu Sans Mono",monospace;font-size:.88em;background:var(--panel);padding:.05em .3em;border-radius:.25em}}
.planned,.planned td{{color:var(--soft);font-style:italic}}footer{{color:var(--soft);font-size:.85rem;margin-top:2em}}
@page{{size:A4;margin:16mm}}
@media print{{:root{{--ink:#000;--soft:#444;--line:#bbb;--accent:#004c78;--paper:#fff;--panel:#eee}}body{{font-size:10pt;margin:0;max-width:none;padding:0}}section{{break-inside:avoid}}h2,h3{{break-after:avoid}}}}
</style>
</head>
<body>
<main>
<h1>{title}</h1>
<p>{audience}</p>
<p><b>{extent}.</b> Rows marked <span class="planned">planned</span> are chapters still to be written; no time is counted for them.</p>
<table>{overview}</table>
{install}
{assumed}
{sessions}
</main>
<footer>Made by posetutor {version}.</footer>
</body>
</html>
"""
