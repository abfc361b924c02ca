"""Slides of a chapter, made from its cells tagged `slide`: one HTML file that needs nothing else.

A tagged markdown cell gives a slide with its heading as title, its bold sentences (or its first two), its displayed equations, short
lists and tables; the whole text of the cell is the speaker's notes. A tagged code cell gives its stored picture, claim or printed lines;
with the tag `code` as well, its code. Nothing is shown that the notebook does not store, and no slide has more than twelve lines.
"""

import html
import io
import keyword
import math
import re
import tokenize
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path

from posetutor.core import write_atomic
from posetutor.course.chapters import Chapter, Node, chapter_paths, read
from posetutor.course.slides_page import HELP, PAGE, SCRIPT, STYLE
from posetutor.course.text import HOLE, fill, markdown, mathml, plain, protect, render_inline, render_markdown

LINES, WIDTH, CODE_WIDTH = 12, 70, 125
LIMIT_BYTES = 2_000_000
CLAIM_ROWS = ("claim", "source", "protocol", "expected", "measured", "verdict")
_RUN_IN = re.compile(r"\*\*[^*\n]{2,60}?[.:?]\*\*(?=\s)")
_NEXT_RUN_IN = re.compile(r"(?<=[.!?)])\s+(?=\*\*[A-Z][^*\n]{2,60}?[.:?]\*\*\s)")
_READING = re.compile(r"\*\*(?:further reading|read on|reading)\b|^#+ .*further reading|^further reading:", re.IGNORECASE | re.MULTILINE)
_SENTENCE = re.compile(r"(?<=[.!?])[\"”)*_]*\s+(?=[\"“(*_]*[A-Z0-9`\ue000])")
_SHORT_FORM = re.compile(r"\b(?:e\.g|i\.e|et al|cf|vs|fig|sec|eq|no|approx|resp|[A-Z])\.$", re.IGNORECASE)


@dataclass(frozen=True)
class Block:
    """A piece of a slide that is never divided: a sentence, an equation, an item, a picture."""

    kind: str
    html: str
    lines: int
    width: int = 0  # characters of the longest line of code or print
    aspect: float = 0.0  # width over height of a picture
    keep: bool = False  # stays on the slide of the next block: a lead-in and its equation, the items of one list


@dataclass(frozen=True)
class Slide:
    """One slide. cell is the number of the notebook cell it comes from, None for the first and the last ones."""

    title: str  # HTML
    blocks: tuple[Block, ...]
    notes: str = ""
    cell: int | None = None
    kind: str = "body"

    @property
    def lines(self) -> int:
        """Lines of text on the slide, the title included; a picture counts as none."""
        return wrapped(plain(self.title)) + sum(block.lines for block in self.blocks)


def wrapped(text: str, width: int = WIDTH) -> int:
    """Lines that a text of one paragraph takes."""
    return max(1, math.ceil(len(text) / width))


def equation_lines(formula: str) -> int:
    """Lines that a displayed formula takes: two a row, as fractions and sums are tall."""
    rows = 1 + formula.count(r"\\") if "\\begin" in formula else max(1, math.ceil(len(plain(mathml(formula, True))) / WIDTH))
    return 2 * rows


def sentences(paragraph: str) -> list[str]:
    """A paragraph of markdown cut into sentences; bold and code are never cut in two."""
    parts, start = [], 0
    for match in _SENTENCE.finditer(paragraph):
        piece = paragraph[start : match.start() + len(match[0]) - len(match[0].lstrip('"”)*_'))].strip()
        open_mark = piece.count("**") % 2 or piece.count("`") % 2 or piece.count("(") > piece.count(")")
        if open_mark or _SHORT_FORM.search(piece):
            continue
        parts.append(piece)
        start = match.end()
    return [p for p in [*parts, paragraph[start:].strip()] if p]


@dataclass
class _Piece:
    """A top-level block of markdown: its kind, and its source or its items."""

    kind: str  # text, equation, list, table, other
    source: str
    items: list[str] = field(default_factory=list)


def _pieces(text: str) -> Iterator[_Piece]:
    tokens, depth, opened = markdown().parse(text), 0, 0
    lines = text.split("\n")
    for n, token in enumerate(tokens):
        if depth == 0:
            opened = n
        depth += token.nesting
        if depth:
            continue
        first = tokens[opened]
        source = "\n".join(lines[first.map[0] : first.map[1]]) if first.map else ""
        if first.type == "paragraph_open":
            content = tokens[opened + 1].content.replace("\n", " ")
            yield from (_Piece("text", part) for part in _NEXT_RUN_IN.split(content))
        elif first.type in {"bullet_list_open", "ordered_list_open"}:
            items = [t.content.replace("\n", " ") for t in tokens[opened:n] if t.type == "inline" and t.level == first.level + 3]
            yield _Piece("list" if first.type.startswith("bullet") else "steps", source, items)
        elif first.type == "table_open":
            yield _Piece("table", source, [t.content for t in tokens[opened:n] if t.type == "inline"])
        elif first.type not in {"heading_open", "hr"}:
            yield _Piece("other", source)


def first_heading(source: str) -> tuple[str | None, str]:
    """Title and text of the section of a markdown source that goes on the slide: that of its first heading.

    The title is None, and the text that before any heading, when there is no heading or an equation or table stands before it.
    """
    fenced = re.sub(r"```.*?```", lambda m: " " * len(m[0]), source, flags=re.DOTALL)
    headings = list(re.finditer(r"^#{1,6}[ \t]+(.+?)[ \t#]*$", fenced, re.MULTILINE))
    before = source[: headings[0].start()] if headings else source
    if not headings or re.search(r"\$\$|^\|", before, re.MULTILINE):
        return None, before
    end = headings[1].start() if len(headings) > 1 else len(source)
    return headings[0][1], source[headings[0].end() : end]


def last_heading(source: str) -> str | None:
    """The heading under which the next cell stands; one that says no more than "the naive version" does not count."""
    fenced = re.sub(r"```.*?```", "", source, flags=re.DOTALL)
    found = re.findall(r"^#{1,6}[ \t]+(.+?)[ \t#]*$", fenced, re.MULTILINE)
    found = [h for h in found if h.lower() not in {"the naive version", "the exported version", "the code"}]
    return found[-1] if found else None


def _item(source: str, whole: bool) -> str:
    """A list item, whole or shortened to its bold heading and first sentence."""
    if whole:
        return source
    parts = sentences(source)
    head = _RUN_IN.match(source)
    if head and plain(render_inline(parts[0])).rstrip(".:?") == plain(render_inline(head[0])).rstrip(".:?"):
        parts = [" ".join(parts[:2]), *parts[2:]]
    return parts[0]


def _closed(source: str) -> str:
    """A sentence that announced something left in the notes ends with a full stop."""
    return re.sub(r"[:,;]\s*$", ".", source)


def markdown_blocks(source: str) -> list[Block]:
    """What of a markdown section stands on the slide, in the order of the text.

    Sentences: those with a bold phrase, the lead-in of each displayed equation, and the first ones of the first paragraph.
    """
    text, kept = protect(source)
    if match := _READING.search(text):
        text = text[: match.start()]
    pieces = list(_pieces(text))

    def displayed(piece: _Piece | None) -> re.Match | None:
        hole = HOLE.fullmatch(piece.source.strip()) if piece is not None and piece.kind == "text" else None
        return hole if hole and kept[int(hole[1])][1] else None

    after = [*pieces[1:], None]
    cut = [(n, s) for n, p in enumerate(pieces) if p.kind == "text" and not displayed(p) and not _RUN_IN.match(p.source) for s in sentences(p.source)]
    chosen = {k for k, (_, s) in enumerate(cut) if any(len(phrase) >= 12 for phrase in re.findall(r"\*\*(.+?)\*\*", s))}
    chosen = set(sorted(chosen)[:2])
    for k, (n, sentence) in enumerate(cut):
        if displayed(after[n]) and (k + 1 == len(cut) or cut[k + 1][0] != n):
            chosen |= {k - 1, k} if len(sentence) < 25 and k and cut[k - 1][0] == n else {k}
    opening = [k for k, (n, _) in enumerate(cut) if n == 0]
    for k in opening:  # two sentences, or more while they fill less than two lines; one when others are chosen already
        if k and (sum(len(cut[c][1]) for c in chosen) > 2 * WIDTH or (len(chosen) > 2 and k == 1)) and not (k == 1 and len(chosen) == 1):
            break
        chosen.add(k)
    blocks: list[Block] = []
    for n, piece in enumerate(pieces):
        announced = displayed(after[n]) or (after[n] is not None and after[n].kind in {"list", "steps", "table"})
        if hole := displayed(piece):
            formula = kept[int(hole[1])][0]
            blocks.append(Block("equation", mathml(formula, True), equation_lines(formula)))
        elif piece.kind == "text" and _RUN_IN.match(piece.source):
            short, last = _item(piece.source, whole=False), sentences(piece.source)[-1]
            if announced and not short.endswith(last):
                short = f"{short} {last}"
            blocks.append(_sentence(short if announced else _closed(short), kept, keep=bool(announced), name="runin"))
        elif piece.kind == "text":
            own = [k for k in range(len(cut)) if cut[k][0] == n]
            for group in _runs([k for k in own if k in chosen]):
                last = bool(announced) and group[-1] == own[-1]
                said = " ".join(cut[k][1] for k in group)
                blocks.append(_sentence(said if last else _closed(said), kept, keep=last))
        elif piece.kind in {"list", "steps"}:
            blocks += _list_blocks(piece, kept)
        elif piece.kind == "table":
            blocks += _table_blocks(piece, kept)
    return blocks


def _runs(numbers: list[int]) -> list[list[int]]:
    """Numbers in order, cut where one is missing."""
    runs: list[list[int]] = []
    for number in numbers:
        if runs and runs[-1][-1] == number - 1:
            runs[-1].append(number)
        else:
            runs.append([number])
    return runs


def _sentence(source: str, kept: list, keep: bool = False, name: str = "") -> Block:
    shown = fill(markdown().renderInline(source), kept)
    return Block("text", f'<p class="{name}">{shown}</p>' if name else f"<p>{shown}</p>", wrapped(plain(shown)), keep=keep)


def _list_blocks(piece: _Piece, kept: list) -> list[Block]:
    """One block an item; long items shrink to their heading and first sentence, long lists stay in the notes."""
    items = [item for item in piece.items if not _READING.match(item)]
    if not items or len(items) > 10:
        return []

    def render(item: str, whole: bool) -> str:
        return fill(markdown().renderInline(_item(item, whole)), kept)

    whole = sum(wrapped(plain(render(item, True)), WIDTH - 3) for item in items) <= 8
    shown = [render(item, whole) for item in items]
    start = re.match(r"\s*(\d+)", piece.source)
    tags = [
        f'<ol start="{int(start[1]) + n}"><li>{text}</li></ol>' if piece.kind == "steps" and start else f"<ul><li>{text}</li></ul>"
        for n, text in enumerate(shown)
    ]
    lines = [wrapped(plain(text), WIDTH - 3) for text in shown]
    together = sum(lines) <= LINES - 4
    return [Block("item", tag, count, keep=together and n < len(tags) - 1) for n, (tag, count) in enumerate(zip(tags, lines, strict=True))]


def _table_blocks(piece: _Piece, kept: list) -> list[Block]:
    rendered = fill(markdown().render(piece.source), kept)
    rows = [re.findall(r"<t[hd][^>]*>(.*?)</t[hd]>", row, re.DOTALL) for row in re.findall(r"<tr>(.*?)</tr>", rendered, re.DOTALL)]
    columns = max((len(row) for row in rows), default=0)
    if not columns:
        return []
    need = [max(len(plain(row[c])) if c < len(row) else 0 for row in rows) + 3 for c in range(columns)]
    given = [max(6, n * WIDTH * 1.2 / max(sum(need), WIDTH * 1.2)) for n in need]
    lines = sum(max(wrapped(plain(cell), max(6, int(given[c]))) for c, cell in enumerate(row)) for row in rows)
    return [Block("table", rendered, lines)] if lines <= LINES - 2 else []


# --- code cells ------------------------------------------------------------------------------------------------------------------


def pictures(cell: Node) -> list[Block]:
    """The stored pictures of a code cell, with their alternative texts."""
    found = []
    for output in cell.get("outputs", []):
        data = output.get("data", {})
        images = re.findall(r"<img\b[^>]*>", _text(data.get("text/html", "")))
        for image in images or []:
            alt, src = (re.search(rf'\b{name}="([^"]*)"', image) for name in ("alt", "src"))
            source = src[1] if src and src[1].startswith("data:image/") else _data_uri(data)
            if source:
                found.append(_picture(source, html.unescape(alt[1]) if alt else ""))
        if not images and (source := _data_uri(data)):
            found.append(_picture(source, ""))
    return found


def _text(value) -> str:
    return value if isinstance(value, str) else "".join(value)


def _data_uri(data) -> str | None:
    for kind in ("image/png", "image/jpeg"):
        if kind in data:
            return f"data:{kind};base64," + re.sub(r"\s", "", _text(data[kind]))
    return None


def _picture(source: str, alt: str) -> Block:
    import base64

    from PIL import Image

    try:
        width, height = Image.open(io.BytesIO(base64.b64decode(source.split(",", 1)[1]))).size
    except (OSError, ValueError):
        raise ValueError(f"the stored picture {alt[:40]!r} cannot be read; run the cell again") from None
    image = f'<img src="{source}" alt="{html.escape(alt, quote=True)}" width="{width}" height="{height}" style="--w:{width}">'
    return Block("picture", image, 0, aspect=width / height, width=len(alt))


def claims_printed(cell: Node) -> list[dict[str, str]]:
    """The claims that a code cell printed, as rows by name."""
    found: list[dict[str, str]] = []
    row = None
    for line in printed(cell).splitlines():
        label = re.match(rf"({'|'.join(CLAIM_ROWS)})\s+(\S.*)", line)
        if label:
            if label[1] == "claim":
                found.append({})
            if found:
                row = label[1]
                found[-1][row] = label[2].strip()
        elif row and line.startswith(" " * 4) and found:
            found[-1][row] += " " + line.strip()
        else:
            row = None
    return [claim for claim in found if {"claim", "verdict"} <= set(claim)]


def printed(cell: Node) -> str:
    """The text that a code cell wrote to its standard output."""
    return "".join(_text(o["text"]) for o in cell.get("outputs", []) if o.get("output_type") == "stream" and o.get("name", "stdout") == "stdout")


def verdict_mark(verdict: str) -> str:
    """A sign beside the words, so that the verdict does not rest on colour."""
    kind = "no" if verdict.startswith("does not") else "direction" if "direction" in verdict[:20] else "yes"
    return f'<span class="verdict {kind}"><span aria-hidden="true">{ {"yes": "✓", "direction": "↗", "no": "✗"}[kind] }</span> {html.escape(verdict)}</span>'


def claim_blocks(claim: dict[str, str]) -> list[Block]:
    """Statement, what was expected, what came out, verdict; the protocol too when there is room."""
    blocks = [Block("statement", f"<p>{html.escape(claim['claim'])}</p>", wrapped(claim["claim"]))]
    rows = [name for name in ("protocol", "expected", "measured", "verdict") if name in claim]
    need = {name: wrapped(claim[name], WIDTH - 10) for name in rows}
    if blocks[0].lines + sum(need.values()) > LINES - 1:
        rows.remove("protocol")
    for name in rows:
        text = verdict_mark(claim[name]) if name == "verdict" else html.escape(claim[name])
        blocks.append(Block("row", f"<dl><dt>{name}</dt><dd>{text}</dd></dl>", need[name]))
    return blocks


def shown_code(source: str) -> str:
    """The code of a cell without directives, imports and all but the first line of docstrings."""
    source = re.sub(r"^(?:#\||# NBVAL).*\n?|^%.*\n?", "", source, flags=re.MULTILINE)
    source = re.sub(r'("""[^"\n]+?)\n.*?"""', r'\1"""', source, flags=re.DOTALL)
    lines = [line.rstrip() for line in source.splitlines() if line.strip() and not re.match(r"(?:from|import)\s", line)]
    return "\n".join(lines)


def highlighted(code: str) -> str:
    """Python with words of the language, strings, numbers and comments marked; plain text when it is no Python."""
    marks = {tokenize.STRING: "s", tokenize.NUMBER: "m", tokenize.COMMENT: "c"}
    marks |= {getattr(tokenize, name): "s" for name in ("FSTRING_START", "FSTRING_MIDDLE", "FSTRING_END") if hasattr(tokenize, name)}
    lines, out, at = code.splitlines(keepends=True), [], (1, 0)

    def between(start: tuple[int, int], end: tuple[int, int]) -> str:
        if start[0] == end[0]:
            return lines[start[0] - 1][start[1] : end[1]] if start[0] <= len(lines) else ""
        return "".join([lines[start[0] - 1][start[1] :], *lines[start[0] : end[0] - 1], lines[end[0] - 1][: end[1]] if end[0] <= len(lines) else ""])

    try:
        for token in tokenize.generate_tokens(io.StringIO(code).readline):
            out.append(html.escape(between(at, token.start), quote=False))
            text = html.escape(between(token.start, token.end), quote=False)
            mark = "k" if token.type == tokenize.NAME and keyword.iskeyword(token.string) else marks.get(token.type)
            out.append(f'<span class="{mark}">{text}</span>' if mark and text else text)
            at = token.end
    except (tokenize.TokenError, IndentationError, SyntaxError, IndexError):
        return html.escape(code, quote=False)
    return "".join(out).rstrip()


def _fixed_width(kind: str, text: str, shown: str) -> Block:
    longest = max((len(line) for line in text.splitlines()), default=0)
    lines = sum(max(1, math.ceil(len(line) / CODE_WIDTH)) for line in text.splitlines())
    return Block(kind, f'<pre class="{kind}" tabindex="0" style="--cols:{max(44, min(longest, CODE_WIDTH))}"><code>{shown}</code></pre>', lines, width=longest)


# --- from a chapter to slides ----------------------------------------------------------------------------------------------------


def _tags(cell) -> set[str]:
    return set(cell.get("metadata", {}).get("tags", []))


def body_slides(chapter: Chapter) -> list[Slide]:
    """The slides of the tagged cells, in order. Raises ValueError naming chapter and cell when something cannot be shown."""
    slides: list[Slide] = []
    heading, open_cell = chapter.title, -2  # the cell whose slide a picture may still join
    for n, cell in enumerate(chapter.cells):
        markdown = cell["cell_type"] == "markdown"
        if "slide" not in _tags(cell):
            heading = (markdown and last_heading(cell["source"])) or heading
            continue
        try:
            if markdown:
                title, section = first_heading(cell["source"])
                made = _markdown_slides(title or heading, section, cell["source"], n)
                _check(made)
                heading = last_heading(cell["source"]) or heading
                open_cell = n
            else:
                made = _code_slides(chapter, heading, n)
                _check(made)
                if slides and _only_code_between(chapter, open_cell, n) and _fits_under(slides[-1], made[0]):
                    slides[-1] = replace(slides[-1], blocks=slides[-1].blocks + made[0].blocks, notes=slides[-1].notes + made[0].notes)
                    made = made[1:]
                open_cell = -2
        except ValueError as error:
            raise ValueError(f"chapter {chapter.stem}, cell {n}: {error}") from None
        slides += made
    if not slides:
        raise ValueError(f"chapter {chapter.stem}: no cell has the tag slide, so there is nothing to show; tag 8 to 16 cells")
    return slides


def _only_code_between(chapter: Chapter, text: int, picture: int) -> bool:
    """Whether a picture follows its text directly, or after untagged code that prepares it."""
    between = chapter.cells[text + 1 : picture]
    return text >= 0 and all(c["cell_type"] == "code" and "slide" not in _tags(c) for c in between)


def _check(slides: list[Slide]) -> None:
    for slide in slides or [Slide("", ())]:
        if not slide.blocks:
            raise ValueError("the cell has the tag slide, but no sentence, equation, list, stored picture or printed line to show; run it or remove the tag")
        if slide.lines > LINES:
            raise ValueError(f"the slide {plain(slide.title)!r} has {slide.lines} lines, at most {LINES} are allowed; shorten it, or remove the tag slide")


def _fits_under(text: Slide, more: Slide) -> bool:
    """Whether a picture, code or print may join the slide of the text before it."""
    if more.blocks[0].kind == "picture":
        return all(b.kind in {"text", "item"} for b in text.blocks) and sum(b.lines for b in text.blocks) <= 5
    return more.blocks[0].kind in {"code", "print"} and text.lines + more.blocks[0].lines < LINES


def divided(title: str, blocks: list[Block], notes: str, cell: int | None, kind: str = "body") -> list[Slide]:
    """Blocks on as many slides as they need, none over the limit of lines, none left with a single line of text."""
    room = LINES - wrapped(plain(title) + " (2 of 2)")
    units: list[list[Block]] = []
    for block in blocks:
        joined = units and units[-1][-1].keep and sum(b.lines for b in units[-1]) + block.lines <= room
        units[-1].append(block) if joined else units.append([block])
    total = sum(b.lines for b in blocks)
    parts = 1 if total <= LINES - wrapped(plain(title)) else max(2, math.ceil(total / room))
    while True:
        groups: list[list[Block]] = [[]]
        for unit in units:
            used, more = sum(b.lines for b in groups[-1]), sum(b.lines for b in unit)
            full = parts > 1 and (used + more > room or (used + more / 2 > total / parts and len(groups) < parts))
            if groups[-1] and full:
                groups.append([])
            groups[-1] += unit
        if len(groups) <= parts or parts > len(units):
            break
        parts += 1
    if len(groups) == 1:
        return [Slide(title, tuple(groups[0]), notes, cell, kind)]
    return [Slide(f'{title} <span class="part">({n} of {len(groups)})</span>', tuple(group), notes, cell, kind) for n, group in enumerate(groups, 1)]


def _markdown_slides(title: str, section: str, source: str, cell: int) -> list[Slide]:
    blocks = markdown_blocks(section)
    body = re.sub(r"\A\s*#{1,6}[ \t].*\n", "", source)
    shown = " ".join(plain(b.html) for b in blocks)
    notes = render_markdown(body)
    return divided(render_inline(title), blocks, notes if len(plain(notes)) > len(shown) + 20 else "", cell)


def _code_slides(chapter: Chapter, heading: str, n: int) -> list[Slide]:
    """Code, picture, claim and print of one cell, each on its own slide."""
    cell, title = chapter.cells[n], render_inline(heading)
    if "### BEGIN SOLUTION" in cell["source"]:
        raise ValueError("the cell holds the solution of an exercise and must not have the tag slide")
    slides = []
    if "code" in _tags(cell):
        code = shown_code(cell["source"])
        slides.append(Slide(title, (_fixed_width("code", code, highlighted(code)),), cell=n))
    for picture in pictures(cell):
        if picture.width < 20:
            raise ValueError("a picture without an alternative text of at least 20 characters; draw it with posetutor.viz.show")
        slides.append(Slide(title, (picture,), cell=n))
    claims = claims_printed(cell)
    for claim in claims:
        notes = "".join(f"<p><b>{name}</b> {html.escape(claim[name])}</p>" for name in ("source", "protocol") if name in claim)
        slides.append(Slide(title, tuple(claim_blocks(claim)), notes, n, "claim"))
    if not claims and not any(b.kind == "picture" for s in slides for b in s.blocks) and printed(cell).strip():
        text = printed(cell).strip("\n").rstrip()
        slides.append(Slide(title, (_fixed_width("print", text, html.escape(text, quote=False)),), cell=n))
    around = _text_around(chapter, n)
    return [replace(s, notes=s.notes + (around if k == 0 else "")) for k, s in enumerate(slides)]


def _text_around(chapter: Chapter, n: int) -> str:
    """The untagged text directly before and after a code cell, up to the next heading: what to say about it."""
    found = []
    for k in (n - 1, n + 1):
        cell = chapter.cells[k] if 0 < k < len(chapter.cells) else None
        if cell is not None and cell["cell_type"] == "markdown" and "slide" not in _tags(cell):
            source = cell["source"]
            if k < n:
                source = re.split(r"^#{1,6}[ \t].*$", source, flags=re.MULTILINE)[-1]
            else:
                source = re.split(r"^#{1,6}[ \t].*$", source, maxsplit=1, flags=re.MULTILINE)[0]
            if source.strip():
                found.append(render_markdown(source))
    return "".join(found)


def _card(chapter: Chapter, start: str) -> str:
    """The row of the header card whose name starts so."""
    return next((value for name, value in chapter.card.items() if name.lower().startswith(start)), "")


def title_slide(chapter: Chapter) -> Slide:
    """Title, the sentence under it, what one will learn, minutes."""
    blocks = [_classed("sentence", render_inline(chapter.sentence))]
    if learn := _card(chapter, "you will"):
        blocks.append(_classed("learn", f"<b>You will learn to</b> {render_inline(learn.removeprefix('to '))}"))
    facts = [f"{chapter.minutes} minutes", f"{len(chapter.exercises)} exercises"]
    if before := _card(chapter, "prerequisites"):
        facts.append(f"prerequisites: {render_inline(before)}")
    blocks.append(_classed("facts", " · ".join(facts)))
    notes = f"<p><b>Source</b> {render_inline(_card(chapter, 'source'))}</p>" if _card(chapter, "source") else ""
    return Slide(render_inline(chapter.title), tuple(blocks), notes, kind="title")


def _classed(name: str, text: str) -> Block:
    return Block("text", f'<p class="{name}">{text}</p>', wrapped(plain(text)))


def closing_slides(chapter: Chapter) -> list[Slide]:
    """What the chapter found, what to do next, what to read: the verdicts of all claims, the exercises, the reading list."""
    found = [claim for cell in chapter.cells if cell["cell_type"] == "code" for claim in claims_printed(cell)]
    claims = [f"<ul><li>{html.escape(claim['claim'])} {verdict_mark(short_verdict(claim['verdict']))}</li></ul>" for claim in found]
    exercises = []
    for exercise in chapter.exercises:
        stars = "●" * exercise.difficulty + "○" * (3 - exercise.difficulty)
        text = f'{render_inline(exercise.title)} <span class="stars" aria-label="difficulty {exercise.difficulty} of 3">{stars}</span> {exercise.minutes} minutes'
        exercises.append(f'<ol start="{exercise.number}"><li>{text}</li></ol>')
    reading = [f"<ul><li>{text}</li></ul>" for text in further_reading(chapter)]
    sections = [("What we found", claims), ("Exercises", exercises), ("Further reading", reading)]
    slides: list[Slide] = []
    waiting: list[tuple[str, list[Block]]] = []  # sections that may share a slide
    for title, items in [(t, [Block("item", item, wrapped(plain(item), WIDTH - 3)) for item in i]) for t, i in sections if i]:
        lines = 1 + sum(b.lines for b in items) + sum(1 + sum(b.lines for b in blocks) for _, blocks in waiting)
        if waiting and lines + 1 > LINES:
            slides += _closing(waiting)
            waiting = []
        waiting.append((title, items))
    return slides + (_closing(waiting) if waiting else [])


def _closing(sections: list[tuple[str, list[Block]]]) -> list[Slide]:
    """One slide for several short sections, or as many as one section needs."""
    if len(sections) == 1:
        return divided(sections[0][0], sections[0][1], "", None, "closing")
    blocks = [b for title, items in sections for b in (Block("text", f"<h3>{title}</h3>", 1), *items)]
    titles = [title if n == 0 else title.lower() for n, (title, _) in enumerate(sections)]
    return [Slide(", ".join(titles), tuple(blocks), "", None, "closing")]


def short_verdict(verdict: str) -> str:
    """The verdict without its explanation."""
    return verdict.split(":", 1)[0]


def further_reading(chapter: Chapter) -> list[str]:
    """The entries of the chapter's reading list as HTML, at most eight."""
    for cell in reversed(chapter.cells):
        if cell["cell_type"] == "markdown" and (match := _READING.search(cell["source"])):
            text = re.sub(r"\A\*\*[^*]*\*\*[.:]?|\A#+.*|\A[Ff]urther reading:", "", cell["source"][match.start() :]).strip()
            text = re.split(r"\n#|\n\s*\n(?![-*\d])", text)[0]
            items = re.split(r"^\s*(?:[-*]|\d+\.)\s+", text, flags=re.MULTILINE)[1:]
            items = items or (text.split(" · ") if " · " in text else re.split(r"(?<=\d{4})[.;]\s+|;\s+", text.replace("\n", " ")))
            return [render_inline(" ".join(item.split()).rstrip(".") + ".") for item in items if item.strip()][:8]
    return []


def deck(chapter: Chapter) -> list[Slide]:
    """All slides of a chapter. Raises ValueError naming chapter and cell when one has more than twelve lines."""
    slides = [title_slide(chapter), *body_slides(chapter), *closing_slides(chapter)]
    try:
        _check(slides)
    except ValueError as error:
        raise ValueError(f"chapter {chapter.stem}: {error}") from None
    return slides


# --- HTML ------------------------------------------------------------------------------------------------------------------------


def _body(slide: Slide) -> str:
    """The blocks of a slide; a tall picture stands beside its text, a wide one below."""
    text = [b for b in slide.blocks if b.kind != "picture"]
    images = [b for b in slide.blocks if b.kind == "picture"]
    shown = "".join(b.html for b in text)
    shown = re.sub(r'</ul><ul>|</ol><ol start="\d+">', "", shown)
    if not images:
        return f'<div class="text">{shown}</div>'
    image = images[0]
    alt = re.search(r'alt="([^"]*)"', image.html)[1]
    caption = "" if text else f'<figcaption aria-hidden="true">{alt}</figcaption>'
    figure = f"<figure>{image.html}{caption}</figure>"
    if not text:
        return figure
    return f'<div class="{"beside" if image.aspect < 1.7 else "above"}"><div class="text">{shown}</div>{figure}</div>'


def render(chapter: Chapter) -> str:
    """The slides of a chapter as one HTML page without any reference to the outside."""
    slides, name = deck(chapter), html.escape(plain(render_inline(chapter.title)))
    sections = []
    for n, slide in enumerate(slides, 1):
        notes = slide.notes or "<p>No notes for this slide.</p>"
        title = f"<h1>{slide.title}</h1>" if slide.kind == "title" else f"<h2>{slide.title}</h2>"
        spacious = slide.kind != "title" and all(b.kind != "picture" for b in slide.blocks)
        size = (" airy" if slide.lines <= 6 else " wide" if slide.lines <= 9 else "") if spacious else ""
        label = html.escape(plain(slide.title), quote=True)
        cell = "" if slide.cell is None else f' data-cell="{slide.cell}"'
        sections.append(
            f'<section class="slide {slide.kind}{size}" id="s{n}" data-lines="{slide.lines}"{cell} role="group" aria-roledescription="slide" aria-label="{n} of {len(slides)}: {label}">'
            f'<div class="inner">{title}{_body(slide)}<footer aria-hidden="true"><span>posetutor · {name}</span><span>{n} / {len(slides)}</span></footer></div></section>'
            f'<aside class="notes" aria-label="Notes for slide {n}">{notes}</aside>'
        )
    return PAGE.format(title=name, style=STYLE, slides="\n".join(sections), help=HELP, script=SCRIPT)


def write_slides(chapters: Iterable[str] | None = None, out: Path = Path("slides")) -> list[Path]:
    """Write the slides of chapters, named by number or stem ("21", "21_gaussian"; none: all), into a folder; returns the files.

    Raises ValueError for an unknown chapter, for a slide with more than twelve lines and for a page over 2 MB.
    """
    written = []
    for path in named_chapters(chapters):
        page = render(read(path)).encode("utf-8")
        if len(page) >= LIMIT_BYTES:
            raise ValueError(f"chapter {path.stem}: its slides take {len(page) / 1e6:.1f} MB, at most 2 MB are allowed; store smaller pictures")
        written.append(write_atomic(Path(out) / f"{path.stem}.html", page))
    return written


def named_chapters(names: Iterable[str] | None = None) -> list[Path]:
    """Notebooks by number, stem or path, in the order given; all chapters without names."""
    known = chapter_paths()
    if not (names := list(names or [])):
        return known
    by_name = {p.stem: p for p in known} | {p.stem.split("_")[0]: p for p in known}
    by_name |= {str(int(number)): p for number, p in by_name.items() if number.isdigit()}
    found = []
    for name in names:
        key = Path(str(name)).stem
        if key not in by_name:
            raise ValueError(f"there is no chapter {str(name)!r}; the chapters are {', '.join(p.stem for p in known)}")
        found.append(by_name[key])
    return found
