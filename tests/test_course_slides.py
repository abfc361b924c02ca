"""The slides of every chapter: whole, within the limits, self-contained, and honest about what they cannot show."""

import base64
import html
import json
import re
from html.parser import HTMLParser

import numpy as np
import pytest

from posetutor import cli
from posetutor.core import refuses
from posetutor.course import slides
from posetutor.course.chapters import chapter_paths, read
from posetutor.course.text import formulas, mathml, plain, render_markdown
from posetutor.viz import png_bytes

CHAPTERS = chapter_paths()
PIXEL = base64.b64encode(png_bytes(np.full((4, 10, 3), 200, np.uint8))).decode()


class Page(HTMLParser):
    """What a deck consists of: slides with their texts, pictures, sources of everything that is loaded."""

    def __init__(self, text):
        super().__init__()
        self.slides, self.loads, self.links, self.images, self.math, self.notes, self._skip, self._pre = [], [], [], [], 0, 0, 0, 0
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        attrs = dict(attrs)
        if tag == "section":
            self.slides.append({"label": attrs["aria-label"], "role": attrs.get("role"), "text": [], "lines": int(attrs["data-lines"])})
        if tag in {"img", "script", "link", "iframe", "audio", "video", "source", "object", "embed"}:
            self.loads += [attrs[k] for k in ("src", "href", "data", "srcset") if attrs.get(k)]
        if tag == "img":
            self.images.append(attrs)
        if tag == "a":
            self.links.append(attrs.get("href", ""))
        self.math += tag == "math"
        self.notes += tag == "aside"
        self._skip += tag in {"footer", "figcaption", "aside", "nav", "dialog", "script", "style"}
        self._pre += tag == "pre"
        if tag in {"p", "li", "h1", "h2", "h3", "dd", "tr", "pre"} or (tag == "div" and attrs.get("class") == "equation"):
            self._text("\n\t" if tag in {"tr", "pre"} else "\n")  # a tab: narrow letters, or columns

    def handle_endtag(self, tag):
        self._pre -= tag == "pre"
        self._skip -= tag in {"footer", "figcaption", "aside", "nav", "dialog", "script", "style"}

    def handle_data(self, data):
        self._text(data.replace("\n", "\n\t") if self._pre else data.replace("\n", " "))

    def _text(self, data):
        if self.slides and not self._skip:
            self.slides[-1]["text"].append(data)


@pytest.fixture(scope="module", params=CHAPTERS, ids=lambda p: p.stem)
def deck(request):
    chapter = read(request.param)
    return chapter, slides.deck(chapter), slides.render(chapter)


class TestDeck:
    def test_8_to_16_cells_tell_the_story(self, deck):
        chapter, made, _ = deck
        tagged = [n for n, c in enumerate(chapter.cells) if "slide" in c.metadata.get("tags", [])]
        assert 8 <= len(tagged) <= 16
        assert {s.cell for s in made if s.cell is not None} <= set(tagged)
        assert any(b.kind == "picture" for s in made[:4] for b in s.blocks), "the idea picture comes first"
        assert made[0].kind == "title" and made[-1].kind == "closing"
        assert any(s.kind == "claim" for s in made), "a claim is on a slide of its own"

    def test_at_most_12_lines(self, deck):
        _, made, page = deck
        assert all(0 < s.lines <= 12 for s in made)
        for slide in Page(page).slides:  # counted a second time, from what the page shows
            rows = [line for line in "".join(slide["text"]).split("\n") if line.strip()]
            assert sum(-(-len(" ".join(row.split())) // (125 if row.startswith("\t") else 72)) for row in rows) <= 12, slide["label"]

    def test_self_contained_and_small(self, deck):
        _, _, page = deck
        found = Page(page)
        assert len(page.encode()) < 2_000_000
        assert found.loads and all(load.startswith("data:") for load in found.loads)
        assert all(link.startswith("https://") for link in found.links), "a link leads to a paper, never to a file that is not there"
        assert not re.search(r"url\((?!data:)|@import|fetch\(|XMLHttpRequest|WebSocket", page)

    def test_pictures_have_alternative_texts(self, deck):
        for image in Page(deck[2]).images:
            assert len(image.get("alt", "")) >= 20

    def test_accessible(self, deck):
        _, made, page = deck
        found = Page(page)
        assert len(found.slides) == len(made) == found.notes
        assert all(s["role"] == "group" and s["label"].startswith(f"{n} of {len(made)}: ") for n, s in enumerate(found.slides, 1))
        assert '<html lang="en">' in page and 'aria-live="polite"' in page and "prefers-color-scheme:dark" in page and "@media print" in page

    def test_all_mathematics_of_the_tagged_cells_is_converted(self, deck):
        chapter, _, page = deck
        wanted = 0
        for cell in chapter.cells:
            if cell.cell_type == "markdown":
                for formula, display in formulas(cell.source):
                    assert "<math" in mathml(formula, display)  # the untagged ones too: they are the notes of pictures
                    wanted += "slide" in cell.metadata.get("tags", [])
        assert wanted == 0 or Page(page).math > 0
        text = re.sub(r"<(script|style|code|pre)\b.*?</\1>", "", page, flags=re.DOTALL)
        assert not re.search(r"\\(?:frac|sigma|mathbb|text|tag|sum|left|hat)\b|\$\$|\ue000", text)

    def test_no_solution_is_shown(self, deck):
        chapter, _, page = deck
        assert "BEGIN SOLUTION" not in page
        for exercise in chapter.exercises:
            body = chapter.cells[exercise.answer_cell].source.split("### BEGIN SOLUTION", 1)[1].split("### END SOLUTION")[0]
            first = max((line.strip() for line in body.splitlines()), key=len)
            assert len(first) < 12 or html.escape(first, quote=False) not in page

    def test_closing_slides_have_claims_exercises_and_reading(self, deck):
        chapter, made, _ = deck
        text = plain("".join(s.title + "".join(b.html for b in s.blocks) for s in made if s.kind == "closing"))
        for exercise in chapter.exercises:
            assert plain(slides.render_inline(exercise.title)) in text
            assert "●" * exercise.difficulty + "○" * (3 - exercise.difficulty) in text
        for cell in chapter.cells:
            for claim in slides.claims_printed(cell) if cell.cell_type == "code" else []:
                assert plain(html.escape(claim["claim"])) in text
        assert len(slides.further_reading(chapter)) >= 2


def notebook(tmp_path, *cells):
    """A chapter of these cells: ("markdown", source, tags) or ("code", source, tags, outputs)."""
    head = "# 90 · A test\n> One sentence.\n\n| | |\n|---|---|\n| **You will learn to** | test |\n| **Prerequisites** | none |"
    made = [{"cell_type": "markdown", "id": "cell-000", "metadata": {}, "source": head}]
    for kind, source, tags, *outputs in cells:
        cell = {"cell_type": kind, "id": f"cell-{len(made):03d}", "metadata": {"tags": tags}, "source": source}
        made.append(cell if kind == "markdown" else cell | {"execution_count": None, "outputs": outputs[0] if outputs else []})
    path = tmp_path / "90_test.ipynb"
    path.write_text(json.dumps({"cells": made, "metadata": {}, "nbformat": 4, "nbformat_minor": 5}), encoding="utf-8")
    return read(path)


def stream(text):
    return [{"output_type": "stream", "name": "stdout", "text": text}]


def picture(alt):
    return [{"output_type": "display_data", "metadata": {}, "data": {"image/png": PIXEL, "text/html": f'<img alt="{alt}" src="data:image/png;base64,{PIXEL}">', "text/plain": alt}}]


ALT = "A red line that falls from one to zero"


def texts(chapter):
    return [plain("".join(b.html for b in s.blocks)) for s in slides.body_slides(chapter)]


def test_a_markdown_cell_gives_title_sentences_equations_and_lists(tmp_path):
    source = """## 3 · The rule

First sentence here. Second one, e.g. with a short form. A third that nobody needs on the wall, because it is long and says little, as third sentences do.

The middle paragraph holds **the one thing to remember**, and more. It leads to

$$ a = \\frac{b}{2} \\tag{7} $$

- short
- items

1. ten
2. steps"""
    (slide,) = slides.body_slides(notebook(tmp_path, ("markdown", source, ["slide"])))
    text = plain("".join(b.html for b in slide.blocks))
    assert plain(slide.title) == "3 · The rule"
    assert "First sentence here." in text and "the one thing to remember, and more. It leads to" in text
    assert [b.kind for b in slide.blocks].count("equation") == 1 and "(7)" in text and "short" in text and "steps" in text
    assert "nobody needs" not in text and "nobody needs" in plain(slide.notes)
    (slide,) = slides.body_slides(notebook(tmp_path, ("markdown", source.split("\n\nThe middle")[0], ["slide"])))
    assert plain(slide.blocks[0].html).startswith("First sentence here. Second one, e.g. with a short form.")


def test_a_picture_joins_the_text_before_it_and_takes_its_heading(tmp_path):
    chapter = notebook(tmp_path, ("markdown", "## Look\n\nAt this. And that.", ["slide"]), ("code", "x = 1", []), ("code", "draw()", ["slide"], picture(ALT)), ("code", "again()", ["slide"], picture(ALT)))
    first, second = slides.body_slides(chapter)
    assert [b.kind for b in first.blocks] == ["text", "picture"] and [b.kind for b in second.blocks] == ["picture"]
    assert first.title == second.title == "Look"
    assert f'<figcaption aria-hidden="true">{ALT}</figcaption>' in slides.render(chapter)


def test_long_sections_are_divided_and_nothing_is_lost(tmp_path):
    equations = "\n\n".join(f"Number {n} is\n\n$$ x_{{{n}}} = {n} $$" for n in range(9))
    made = slides.body_slides(notebook(tmp_path, ("markdown", f"## Many\n\n{equations}", ["slide"])))
    assert len(made) > 1 and all(s.lines <= 12 for s in made) and "(1 of " in made[0].title
    assert sum(b.kind == "equation" for s in made for b in s.blocks) == 9
    for s in made:  # a lead-in never parts from its equation
        assert s.blocks[-1].kind == "equation"


def test_code_is_shown_without_its_clutter(tmp_path):
    source = '#| export\nimport os\n\ndef f(x):\n    """One line.\n\n    x: more.\n    """\n    return x < 2  # why'
    (slide,) = slides.body_slides(notebook(tmp_path, ("code", source, ["slide", "code"])))
    assert plain(slide.blocks[0].html) == 'def f(x): """One line.""" return x < 2 # why'
    assert '<span class="k">def</span>' in slide.blocks[0].html and "import os" not in slide.blocks[0].html


def test_claims_prints_and_the_sign_of_a_verdict(tmp_path):
    said = "claim     It is so\nsource    nobody\nprotocol  one run\nexpected  1\nmeasured  2\nverdict   does not hold here: it\n          is two\n"
    chapter = notebook(tmp_path, ("markdown", "## The claim\n\nSo.", []), ("code", "claim()", ["slide"], stream(said)), ("code", "print()", ["slide"], stream("a  1\nb  2\n")))
    claim, printed = slides.body_slides(chapter)
    assert claim.kind == "claim" and "✗" in claim.blocks[-1].html and "is two" in claim.blocks[-1].html and "nobody" in claim.notes
    assert "a  1\nb  2" in printed.blocks[0].html
    assert "✓" in slides.verdict_mark("holds") and "↗" in slides.verdict_mark("holds in direction: less")


@pytest.mark.parametrize(
    ("cell", "said"),
    [
        (("code", "x = [\n" + "    1,\n" * 13 + "]", ["slide", "code"]), "16 lines, at most 12"),
        (("code", "print()", ["slide"], stream("line\n" * 12)), "13 lines, at most 12"),
        (("code", "draw()", ["slide"], picture("short")), "alternative text"),
        (("code", "draw()", ["slide"], [{"output_type": "display_data", "data": {"image/png": "AAAA"}}]), "cannot be read"),
        (("code", "x = 1", ["slide"]), "no sentence, equation, list, stored picture or printed line"),
        (("code", "def f():\n    ### BEGIN SOLUTION\n    return 1\n    ### END SOLUTION", ["slide", "code"]), "solution of an exercise"),
        (("markdown", "## Bad\n\nSee\n\n$$ \\weirdmacro{x} $$", ["slide"]), "weirdmacro"),
    ],
)
def test_what_cannot_be_shown_is_refused_with_chapter_and_cell(tmp_path, cell, said):
    chapter = notebook(tmp_path, ("markdown", "## Title\n\nText.", []), cell)
    refuses(lambda: slides.deck(chapter), contains=said)
    refuses(lambda: slides.deck(chapter), contains="chapter 90_test, cell 2")


def test_a_chapter_without_tags_is_refused(tmp_path):
    refuses(lambda: slides.deck(notebook(tmp_path, ("markdown", "## Title\n\nText.", []))), contains="chapter 90_test: no cell has the tag slide")


def test_a_page_over_the_limit_is_refused_and_nothing_is_written(tmp_path, monkeypatch):
    monkeypatch.setattr(slides, "LIMIT_BYTES", 1000)
    refuses(lambda: slides.write_slides(["02"], tmp_path), contains="02_core: its slides take")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("formula", "parts"),
    [
        (r"\mathbb E|u|", "𝔼"),
        (r"\mathcal L", "ℒ"),
        (r"\mathbf x", "𝐱"),
        (r"\operatorname*{arg\,max}_{i} H", "<munder>"),
        (r"\hat k=\arg\max (K\circledast C)", "<mi>arg</mi>"),
        (r"\arg\min_{x} f", "<munder>"),
        (r"p=\Big\lfloor\frac{k-1}{2}\Big\rfloor", "⌊"),
        (r"\begin{cases}a & b\\[2mm] c & d\end{cases}", "<mtable>"),
        (r"\mathrm{OKS}", "<mi>OKS</mi>"),
        (r"\texttt{num\_keypoints}", "num_keypoints"),
    ],
)
def test_formulas_that_the_converter_alone_does_not_draw(formula, parts):
    assert parts in html.unescape(mathml(formula, True))


def test_wide_formulas_may_break_at_their_gaps():
    wide = r"a = \frac{b + c + d + e + f}{g + h} \qquad \text{and something said in words beside it} \qquad k = 2"
    assert mathml(wide, True).count("<math") == 3 and mathml(r"a \qquad b", True).count("<math") == 1


def test_dollars_in_code_are_no_formulas():
    assert formulas("`$a$` costs 5$ and $x$ and\n```\n$$y$$\n```") == [("x", False)]
    assert "<math" not in render_markdown("`$a$`")


def test_sentences_keep_bold_and_short_forms_whole():
    assert slides.sentences("One, e.g. this. **Two. Still two.** Three (see Fig. 1. Or 2). Four et al. Five.") == ["One, e.g. this.", "**Two. Still two.**", "Three (see Fig. 1. Or 2).", "Four et al. Five."]


def test_command_line(tmp_path, capsys):
    assert cli.main(["slides", "21", "1", "02_core", "--out", str(tmp_path)]) == 0
    assert sorted(p.name for p in tmp_path.iterdir()) == ["01_geometry.html", "02_core.html", "21_gaussian.html"]
    assert cli.main(["slides", "99", "--out", str(tmp_path)]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and "no chapter '99'" in error and "21_gaussian" in error
    (tmp_path / "file").write_text("x")
    assert cli.main(["slides", "21", "--out", str(tmp_path / "file")]) == 2


def test_the_same_notebook_gives_the_same_bytes(tmp_path):
    a, b = (slides.write_slides(["02"], tmp_path / name)[0].read_bytes() for name in "ab")
    assert a == b
