"""Every notebook with a live widget, in JupyterLab: it runs without an error, its controls obey the keyboard at once, it fits a zoomed or narrow window."""

import json
import os
import re
from pathlib import Path

import nbformat
import pytest
from labpage import LAYOUT, WATCH, LabNotebook, drive, percentile, tab_to

ROOT = Path(__file__).resolve().parents[2]
SHOWS_WIDGET = re.compile(r"\b(?:LivePicture|HeatmapLab|CropExplorer|ErrorBoundExplorer|interact|interactive|interactive_output)\(")
# lays the first slider over another control, wherever the two stand
COVER = """cell => {
  const slider = cell.querySelector('.widget-hslider'), from = slider.getBoundingClientRect();
  const other = [...cell.querySelectorAll('.widget-hslider, .widget-dropdown, .widget-checkbox')].find(c => c !== slider && !slider.contains(c) && !c.contains(slider));
  const to = other.getBoundingClientRect();
  slider.style.transform = `translate(${to.left - from.left}px, ${to.top - from.top}px)`;
}"""
LIMIT_MS, IMAGE_LIMIT_MS, MOVES, TRIES = 300, 50, 20, 3
WINDOWS = {"zoom_150": (1280, 720, 1.5), "narrow_420": (420, 800, 1.0)}


def has_widget(path: Path) -> bool:
    """Whether a chapter shows a live picture: by its tag, or by what its code calls."""
    cells = [cell for cell in nbformat.read(path, 4).cells if cell.cell_type == "code"]
    return any("widget" in cell.metadata.get("tags", []) or SHOWS_WIDGET.search(cell.source) for cell in cells)


CHAPTERS = [path.relative_to(ROOT / "nbs").as_posix() for path in sorted((ROOT / "nbs").rglob("[0-9]*_*.ipynb")) if has_widget(path)]


def p95(values: list[float]) -> float:
    """The 95th percentile, rounded."""
    return round(percentile(values, 0.95), 1)


class Session:
    """One notebook that has been run, with what the tests ask about it."""

    def __init__(self, page, server: tuple, path: str):
        self.page, self.stem = page, Path(path).stem
        self.lab = LabNotebook(page, server, path)
        self.lab.run_all()
        self.cells = self.lab.cells()
        self.live = [n for n, cell in enumerate(self.cells) if cell["live"]]
        for n in self.live:
            self.lab.cell(n).locator("img.widget-image, .posetutor-quiz").first.wait_for()
        self.pictures = [n for n in self.live if self.lab.cell(n).locator("img.widget-image").count()]
        self.quizzes = [n for n in self.live if n not in self.pictures]
        self.moves: dict[int, dict] = {}

    def name(self, index: int) -> str:
        """A name of a live cell for reports and files: chapter, and the class it shows or its number."""
        last = self.cells[index]["source"].strip().splitlines()[-1]
        return f"{self.stem}_{last[:-2] if re.fullmatch(r'[A-Za-z]+[(][)]', last) else f'cell{index:02d}'}"

    def picture(self, index: int):
        """The cell of a live picture, once the picture is there."""
        cell = self.lab.cell(index)
        self.page.wait_for_function("cell => { const i = cell.querySelector('img.widget-image'); return i && i.complete && i.naturalWidth > 0; }", arg=cell.element_handle())
        return cell


@pytest.fixture(scope="module", params=CHAPTERS, ids=lambda path: Path(path).stem)
def session(request, new_page, lab_server):
    """A notebook of the course, opened and run in the browser."""
    opened = Session(new_page(), lab_server, request.param)
    yield opened
    opened.lab.close()


def test_every_cell_runs_and_the_console_is_quiet(session):
    faults = {n: cell["errors"] for n, cell in enumerate(session.cells) if cell["errors"]}
    assert not faults, f"cells that failed: {faults}"
    assert not [n for n, cell in enumerate(session.cells) if cell["code"] and cell["source"].strip() and cell["count"] is None], "cells that did not run"
    session.page.watch.assert_quiet()


def test_live_views_are_tagged(session):
    """Slides, site and these tests find widgets by their tags; a tag on a cell without a view is stale."""
    tagged = [n for n, cell in enumerate(session.cells) if {"widget", "quiz"} & set(cell["tags"])]
    assert session.live == tagged and session.pictures


def test_every_control_obeys_the_keyboard(session):
    """Tab reaches each control, its keys change the picture, and the one picture is replaced in place: nothing grows, jumps or is drawn twice."""
    for index in session.pictures:
        cell = session.picture(index)
        session.moves[index] = seen = drive(session.page, cell)
        assert not seen["dead"], f"{session.name(index)}: keys changed nothing on {seen['dead']}"
        assert seen["pictures"] == [1] and seen["moved"] == 0, f"{session.name(index)}: {seen['pictures']} pictures at a time, {seen['moved']} replaced"
        assert len(seen["sizes"]) == 1 and len(seen["heights"]) == 1, f"{session.name(index)}: jumps through {seen['sizes']} and heights {seen['heights']} px"
        assert cell.locator("[role=alert]").count() == 0, cell.locator("[role=alert]").first.text_content()
    session.page.watch.assert_quiet()


def test_reaction_time(session, out):
    """From key press to the frame with the changed picture, and the widget's own share of it (the kernel's time from the move to the sent picture).

    A picture that follows while one drags is drawn without matplotlib; its own share has the strict limit, as a fixed 40 to 60 ms of the
    whole way are Jupyter's messages and the browser's frames. Other work may share the cores: the best of at most three tries counts.
    """
    table = []
    for index in session.pictures:
        cell = session.picture(index)
        own_limit = IMAGE_LIMIT_MS if cell.locator(".posetutor-live").count() else LIMIT_MS
        tries: list[dict] = []
        while len(tries) < TRIES and not any(p95(t["times"]) <= LIMIT_MS and p95(t["own"]) <= own_limit for t in tries):
            first = session.moves.get(index) if not tries else None
            tries.append(first or drive(session.page, cell))
        best = min(tries, key=lambda seen: (p95(seen["own"]) > own_limit, p95(seen["times"])))
        row = {"widget": session.name(index), "moves": len(best["times"]), "p50_ms": round(percentile(best["times"], 0.5), 1), "p95_ms": p95(best["times"]), "limit_ms": LIMIT_MS}
        table.append({**row, "own_p50_ms": percentile(best["own"], 0.5), "own_p95_ms": p95(best["own"]), "own_limit_ms": own_limit, "tries": len(tries)})
    file = out / "latency.json"
    kept = json.loads(file.read_text(encoding="utf-8"))["widgets"] if file.is_file() else []
    what = "ms from key press to the frame with the changed picture; own: ms in the kernel from the move to the sent picture; best of the tries"
    machine = {"cores": os.cpu_count(), "load": round(os.getloadavg()[0], 1) if hasattr(os, "getloadavg") else None}
    rows = [row for row in kept if row["widget"] not in {new["widget"] for new in table}] + table
    file.write_text(json.dumps({"what": what, "machine": machine, "widgets": rows}, indent=1) + "\n", encoding="utf-8")
    for row in table:
        whole, own = (f"p50 {row[p + 'p50_ms']:.0f}, p95 {row[p + 'p95_ms']:.0f} of {row[p + 'limit_ms']} ms" for p in ("", "own_"))
        print(f"\n{row['widget']:30} {row['moves']} moves: key to picture {whole}; in the kernel {own} (try {row['tries']})", end="")
    assert all(row["moves"] >= MOVES for row in table), table
    assert all(row["p95_ms"] <= row["limit_ms"] and row["own_p95_ms"] <= row["own_limit_ms"] for row in table), table


@pytest.mark.parametrize("window", WINDOWS)
def test_zoomed_or_narrow_window(session, out, window):
    """Nothing is cut or covered, and the controls still work."""
    session.lab.hide_sidebar()
    session.lab.window(*WINDOWS[window])
    try:
        for index in session.pictures + session.quizzes:
            cell = session.picture(index) if index in session.pictures else session.lab.cell(index)
            cell.locator(".jp-OutputArea").first.evaluate("area => area.scrollIntoView({block: 'start'})")
            session.page.screenshot(path=out / f"{session.name(index)}_{window}.png")
            faults = cell.evaluate(LAYOUT)
            assert not faults, f"{session.name(index)}: {faults}"
            slider = cell.locator(".noUi-handle")
            if slider.count():
                slider.first.focus()
                cell.evaluate(WATCH)
                for key in ("ArrowRight", "ArrowLeft"):  # one of them moves it, wherever it stands
                    session.page.keyboard.press(key)
                session.page.wait_for_function("() => window.watched.shown > 0")
                assert len(session.page.evaluate("() => window.watched.stop()")["sizes"]) == 1
    finally:
        session.lab.window(1280, 720)


def test_the_look_at_the_window_sees_a_cut_picture_and_a_covered_control(session):
    """The check of the test above can fail."""
    cell = session.picture(session.pictures[0])
    style = "(cell, [selector, css]) => { cell.querySelector(selector).style.cssText += css; }"
    assert not cell.evaluate(LAYOUT)
    cell.evaluate(style, ["img.widget-image", "min-width: 3000px;"])
    assert any("the pane" in fault for fault in cell.evaluate(LAYOUT))
    cell.evaluate(style, ["img.widget-image", "min-width: auto;"])
    cell.evaluate(COVER)
    assert any("covers" in fault for fault in cell.evaluate(LAYOUT))
    cell.evaluate(style, [".widget-hslider", "transform: none;"])
    assert not cell.evaluate(LAYOUT)


def test_quiz_by_keyboard(session):
    """Tab reaches each option, Space chooses it, the answer is judged and explained, and the score follows."""
    if not session.quizzes:
        pytest.skip(f"{session.stem} has no quiz")
    page, cell = session.page, session.lab.cell(session.quizzes[-1])
    groups = cell.locator(".widget-radio-box")
    said = cell.locator("[role=status]")
    score = said.last
    assert groups.count() >= 5
    groups.first.locator("input").first.focus()
    for number in range(groups.count()):
        options, status = groups.nth(number).locator("input"), said.nth(number)
        right = None
        for option in range(options.count()):
            tab_to(page, options.nth(option))
            page.keyboard.press("Space")
            page.wait_for_function("([cell, count]) => cell.querySelectorAll('[role=status]').length === count", arg=[cell.element_handle(), number + 2])
            if right is None:
                right = 0 if "Right" in status.inner_text() else "abcdef".index(re.search(r"The answer is ([a-f])\.", status.inner_text())[1])
            verdict = "Right" if option == right else "Not quite"
            page.wait_for_function("([cell, n, verdict]) => cell.querySelectorAll('[role=status]')[n].innerText.includes(verdict)", arg=[cell.element_handle(), number, verdict])
            assert options.nth(option).is_checked() and groups.nth(number).locator("input:checked").count() == 1
            assert len(status.inner_text()) > 30, "an answer is explained"
        assert f"of {number + 1}" in score.inner_text(), score.inner_text()
    session.page.watch.assert_quiet()
