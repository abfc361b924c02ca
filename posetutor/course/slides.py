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
from functools import lru_cache
from pathlib import Path

from posetutor.core import write_atomic
from posetutor.course.chapters import Chapter, chapter_paths, read

LINES, WIDTH, CODE_WIDTH = 12, 70, 125
LIMIT_BYTES = 2_000_000
CLAIM_ROWS = ("claim", "source", "protocol", "expected", "measured", "verdict")
_PROTECTED = re.compile(r"```.*?```|`[^`\n]+`|\$\$(?P<display>.+?)\$\$|(?<![\\$\w])\$(?=\S)(?P<inline>[^$]+?)(?<=\S)\$(?![\d$])", re.DOTALL)
_HOLE = re.compile("\ue000(\\d+)\ue001")
_RUN_IN = re.compile(r"\*\*[^*\n]{2,60}?[.:?]\*\*(?=\s)")
_NEXT_RUN_IN = re.compile(r"(?<=[.!?)])\s+(?=\*\*[A-Z][^*\n]{2,60}?[.:?]\*\*\s)")
_READING = re.compile(r"\*\*(?:further reading|read on|reading)\b|#+ .*further reading", re.IGNORECASE)
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


def plain(text: str) -> str:
    """The characters a reader sees of a piece of HTML."""
    return re.sub(r"\s+", " ", html.unescape(re.sub(r"<[^>]+>", "", text))).strip()


def wrapped(text: str, width: int = WIDTH) -> int:
    """Lines that a text of one paragraph takes."""
    return max(1, math.ceil(len(text) / width))


# --- mathematics -----------------------------------------------------------------------------------------------------------------


@lru_cache(maxsize=4096)
def mathml(formula: str, display: bool = False) -> str:
    """A LaTeX formula as MathML, which browsers draw by themselves; ValueError when a part of it is not understood."""
    try:
        from latex2mathml.converter import convert
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError("slides need latex2mathml; type: pip install posetutor[course]") from error
    tag = re.search(r"\\tag\*?\{([^}]*)\}", formula)
    clean = re.sub(r"\\tag\*?\{[^}]*\}|\\(?:nonumber|notag)\b", "", formula).strip()
    for pattern, better in _EASIER:  # what the converter does not know, written in another way
        clean = pattern.sub(better, clean)
    parts = []
    for part in _split_wide(clean) if display else [clean]:
        try:
            parts.append(convert(part, display="block" if display else "inline"))
        except Exception as error:
            raise ValueError(f"the formula {formula.strip()!r} cannot be converted ({type(error).__name__}: {error}); write it with simpler LaTeX") from error
    result = "".join(parts)
    if left := re.findall(r"\\[A-Za-z]+|<mi>&</mi>|<mo ?/>", result):
        raise ValueError(f"the formula {formula.strip()!r} uses {', '.join(sorted(set(left)))}, which slides cannot draw; write it with simpler LaTeX")
    result = re.sub(r' xmlns="[^"]*"', "", result)
    result = re.sub(r'<(m[in]) mathvariant="([a-z-]+)">(\w)</\1>', _styled_letter, result)
    result = re.sub(r'(?:<mi mathvariant="normal">[A-Za-z]</mi>){2,}', lambda m: f"<mi>{plain(m[0])}</mi>", result)
    result = result.replace('<mtext mathvariant="monospace">', '<mtext style="font-family:monospace">')
    number = f'<span class="number">({html.escape(tag[1])})</span>' if tag else ""
    return f'<div class="equation"><div class="parts">{result}</div>{number}</div>' if display else result


_EASIER = [
    (re.compile(r"\\[bB]igg?[lrm]?\s*(?=\\[lr](?:floor|ceil|vert|Vert|angle)\b)"), ""),
    (re.compile(r"\\\\\[[^\]]*\]"), r"\\\\"),
    (re.compile(r"psmallmatrix"), "pmatrix"),
    (re.compile(r"\\operatorname\{([A-Za-z]*\d\w*)\}"), r"\\mathrm{\1}"),
    (re.compile(r"\\operatorname\*\{((?:[^{}]|\\,)+)\}_\{([^{}]*)\}"), lambda m: rf"\underset{{{m[2]}}}{{\mathrm{{{m[1]}}}}}"),
]
_ALPHABETS = {"double-struck": (0x1D538, 0x1D552, 0x1D7D8), "script": (0x1D49C, 0x1D4B6, None), "bold": (0x1D400, 0x1D41A, 0x1D7CE)}
_OUTSIDE = {"𝔺": "ℂ", "𝔿": "ℍ", "𝕅": "ℕ", "𝕇": "ℙ", "𝕈": "ℚ", "𝕉": "ℝ", "𝕑": "ℤ", "𝒝": "ℬ", "𝒠": "ℰ", "𝒡": "ℱ", "𝒣": "ℋ", "𝒤": "ℐ", "𝒧": "ℒ", "𝒨": "ℳ", "𝒭": "ℛ"}


def _styled_letter(match: re.Match) -> str:
    """A letter of another alphabet as its own character, because browsers ignore mathvariant."""
    name, style, letter = match[1], match[2], match[3]
    starts = _ALPHABETS.get(style)
    if not starts or not letter.isascii():
        return match[0]
    start, first = (starts[2], "0") if letter.isdigit() else (starts[0], "A") if letter.isupper() else (starts[1], "a")
    if start is None:
        return match[0]
    char = chr(start + ord(letter) - ord(first))
    return f'<{name} mathvariant="normal">{_OUTSIDE.get(char, char)}</{name}>'


def _split_wide(formula: str) -> list[str]:
    r"""The parts between the \qquad of a formula, so that a narrow slide can put them on two lines; only outside braces and environments."""
    if len(re.sub(r"\\[a-zA-Z]+", "x", formula)) < 60 or "\\begin" in formula or "\\left" in formula:
        return [formula]
    parts, depth, start = [], 0, 0
    for match in re.finditer(r"\\qquad|\\quad|[{}]", formula):
        if match[0] in "{}":
            depth += 1 if match[0] == "{" else -1
        elif depth == 0:
            parts.append(formula[start : match.start()])
            start = match.end()
    return [p.strip() for p in [*parts, formula[start:]] if p.strip()]


def equation_lines(formula: str) -> int:
    """Lines that a displayed formula takes: two a row, as fractions and sums are tall."""
    rows = 1 + formula.count(r"\\") if "\\begin" in formula else max(1, math.ceil(len(plain(mathml(formula, True))) / WIDTH))
    return 2 * rows


def formulas(source: str) -> list[tuple[str, bool]]:
    """Every formula of a markdown source, with whether it is displayed."""
    found = _PROTECTED.finditer(source)
    return [(m["display"] or m["inline"], m["display"] is not None) for m in found if m["display"] or m["inline"]]


# --- markdown --------------------------------------------------------------------------------------------------------------------


@lru_cache(maxsize=1)
def _markdown():
    try:
        from markdown_it import MarkdownIt
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError("slides need markdown-it-py; type: pip install posetutor[course]") from error
    return MarkdownIt("commonmark", {"html": False}).enable("table")


def _protect(source: str) -> tuple[str, list[tuple[str, bool]]]:
    """Take the formulas out of a markdown source, so that markdown leaves their stars and underscores alone."""
    kept: list[tuple[str, bool]] = []

    def take(match: re.Match) -> str:
        formula = match["display"] or match["inline"]
        if not formula:
            return match[0]
        kept.append((formula, match["display"] is not None))
        hole = f"\ue000{len(kept) - 1}\ue001"
        return f"\n\n{hole}\n\n" if match["display"] else hole

    return _PROTECTED.sub(take, source), kept


def _fill(text: str, kept: list[tuple[str, bool]]) -> str:
    """Put the formulas back, as MathML, and unlink what leads to other notebooks."""
    text = re.sub(r'<a href="(?!https?:)[^"]*">(.*?)</a>', r"\1", text, flags=re.DOTALL)
    text = text.replace('<a href="http', '<a rel="noopener" target="_blank" href="http')
    text = re.sub(r"<img[^>]*>", "", text)
    text = _HOLE.sub(lambda m: mathml(*kept[int(m[1])]), text)
    return re.sub(r"<p>\s*(<div class=\"equation\">.*?</div>)\s*</p>", r"\1", text, flags=re.DOTALL)


def render_markdown(source: str) -> str:
    """Markdown with formulas as HTML."""
    text, kept = _protect(source)
    return _fill(_markdown().render(text), kept)


def render_inline(source: str) -> str:
    """One sentence of markdown with formulas as HTML, without a paragraph around it."""
    text, kept = _protect(source)
    return _fill(_markdown().renderInline(text.strip()), kept)


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
    tokens, depth, opened = _markdown().parse(text), 0, 0
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
    """Title and text of the first section of a markdown source; without a heading, None and everything."""
    fenced = re.sub(r"```.*?```", lambda m: " " * len(m[0]), source, flags=re.DOTALL)
    headings = list(re.finditer(r"^#{1,6}[ \t]+(.+?)[ \t#]*$", fenced, re.MULTILINE))
    if not headings:
        return None, source
    end = headings[1].start() if len(headings) > 1 else len(source)
    return headings[0][1], source[headings[0].end() : end]


def last_heading(source: str) -> str | None:
    """The heading under which the next cell stands."""
    fenced = re.sub(r"```.*?```", "", source, flags=re.DOTALL)
    found = re.findall(r"^#{1,6}[ \t]+(.+?)[ \t#]*$", fenced, re.MULTILINE)
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
    text, kept = _protect(source)
    if match := _READING.search(text):
        text = text[: match.start()]
    pieces = list(_pieces(text))

    def displayed(piece: _Piece | None) -> re.Match | None:
        hole = _HOLE.fullmatch(piece.source.strip()) if piece is not None and piece.kind == "text" else None
        return hole if hole and kept[int(hole[1])][1] else None

    after = [*pieces[1:], None]
    cut = [(n, s) for n, p in enumerate(pieces) if p.kind == "text" and not displayed(p) and not _RUN_IN.match(p.source) for s in sentences(p.source)]
    chosen = [k for k, (_, s) in enumerate(cut) if re.search(r"\*\*[^*]{12,}\*\*", s)][:2]
    chosen += [k for k, (n, _) in enumerate(cut) if displayed(after[n]) and (k + 1 == len(cut) or cut[k + 1][0] != n)]
    for k, (n, _) in enumerate(cut):  # the opening: two sentences, or more while they fill less than two lines
        if n != cut[0][0] or (k > 1 and sum(len(cut[c][1]) for c in set(chosen)) > 2 * WIDTH) or (k == 1 and len(set(chosen)) > 2):
            break
        chosen.append(k)
    blocks: list[Block] = []
    for n, piece in enumerate(pieces):
        announced = displayed(after[n]) or (after[n] is not None and after[n].kind in {"list", "steps", "table"})
        if hole := displayed(piece):
            formula = kept[int(hole[1])][0]
            blocks.append(Block("equation", mathml(formula, True), equation_lines(formula)))
        elif piece.kind == "text" and _RUN_IN.match(piece.source):
            short = _item(piece.source, whole=False)
            whole = announced and short == piece.source
            blocks.append(_sentence(short if whole else _closed(short), kept, keep=bool(whole), name="runin"))
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
    shown = _fill(_markdown().renderInline(source), kept)
    return Block("text", f'<p class="{name}">{shown}</p>' if name else f"<p>{shown}</p>", wrapped(plain(shown)), keep=keep)


def _list_blocks(piece: _Piece, kept: list) -> list[Block]:
    """One block an item; long items shrink to their heading and first sentence, long lists stay in the notes."""
    items = [item for item in piece.items if not _READING.match(item)]
    if not items or len(items) > 10:
        return []

    def render(item: str, whole: bool) -> str:
        return _fill(_markdown().renderInline(_item(item, whole)), kept)

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
    rendered = _fill(_markdown().render(piece.source), kept)
    rows = [re.findall(r"<t[hd][^>]*>(.*?)</t[hd]>", row, re.DOTALL) for row in re.findall(r"<tr>(.*?)</tr>", rendered, re.DOTALL)]
    columns = max((len(row) for row in rows), default=0)
    if not columns:
        return []
    need = [max(len(plain(row[c])) if c < len(row) else 0 for row in rows) + 3 for c in range(columns)]
    given = [max(6, n * WIDTH * 1.2 / max(sum(need), WIDTH * 1.2)) for n in need]
    lines = sum(max(wrapped(plain(cell), max(6, int(given[c]))) for c, cell in enumerate(row)) for row in rows)
    return [Block("table", rendered, lines)] if lines <= LINES - 2 else []


# --- code cells ------------------------------------------------------------------------------------------------------------------


def pictures(cell) -> list[Block]:
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

    width, height = Image.open(io.BytesIO(base64.b64decode(source.split(",", 1)[1]))).size
    image = f'<img src="{source}" alt="{html.escape(alt, quote=True)}" width="{width}" height="{height}" style="--w:{width}">'
    return Block("picture", image, 0, aspect=width / height, width=len(alt))


def claims_printed(cell) -> list[dict[str, str]]:
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


def printed(cell) -> str:
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
                heading = last_heading(cell["source"]) or heading
                open_cell = n
            else:
                made = _code_slides(chapter, heading, n)
                if open_cell == n - 1 and slides and len(made) == 1 and _fits_beside(slides[-1], made[0]):
                    slides[-1] = replace(slides[-1], blocks=slides[-1].blocks + made[0].blocks[:1], notes=slides[-1].notes + made[0].notes)
                    made = []
            _check(made)
        except ValueError as error:
            raise ValueError(f"chapter {chapter.stem}, cell {n}: {error}") from None
        slides += made
    if not slides:
        raise ValueError(f"chapter {chapter.stem}: no cell has the tag slide, so there is nothing to show; tag 8 to 16 cells")
    return slides


def _check(slides: Iterable[Slide]) -> None:
    for slide in slides:
        if not slide.blocks:
            raise ValueError("the cell has the tag slide, but no sentence, equation, list, stored picture or printed line to show; run it or remove the tag")
        if slide.lines > LINES:
            raise ValueError(f"the slide {plain(slide.title)!r} has {slide.lines} lines, at most {LINES} are allowed; shorten it, or remove the tag slide")


def _fits_beside(text: Slide, picture: Slide) -> bool:
    """Whether a picture may join the slide of the text before it."""
    only_text = all(b.kind in {"text", "item"} for b in text.blocks) and sum(b.lines for b in text.blocks) <= 5
    return only_text and picture.blocks[0].kind == "picture"


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
    return [Slide(f'{title} <span class="part">({n} of {len(groups)})</span>', tuple(group), notes if n == 1 else "", cell, kind) for n, group in enumerate(groups, 1)]


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
    return next((value for name, value in chapter.card.items() if name.lower().startswith(start)), "")


def title_slide(chapter: Chapter) -> Slide:
    """Title, the sentence under it, what one will learn, minutes."""
    blocks = [_classed("sentence", render_inline(chapter.sentence))]
    if learn := _card(chapter, "you will learn"):
        blocks.append(_classed("learn", f"<b>You will learn to</b> {render_inline(learn)}"))
    facts = [f"{chapter.minutes} minutes", f"{len(chapter.exercises)} exercises"]
    if before := _card(chapter, "prerequisites"):
        facts.append(f"builds on {render_inline(before)}")
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
            text = re.sub(r"\A#*[^\n*]*\*\*[^*]*\*\*[.:]?|\A#+.*", "", cell["source"][match.start() :]).strip()
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
        size = "" if slide.kind == "title" or any(b.kind == "picture" for b in slide.blocks) else " airy" if slide.lines <= 6 else " wide" if slide.lines <= 9 else ""
        label = html.escape(plain(slide.title), quote=True)
        cell = "" if slide.cell is None else f' data-cell="{slide.cell}"'
        sections.append(
            f'<section class="slide {slide.kind}{size}" id="s{n}" data-lines="{slide.lines}"{cell} role="group" aria-roledescription="slide" aria-label="{n} of {len(slides)}: {label}">'
            f'<div class="inner">{title}{_body(slide)}<footer aria-hidden="true"><span>posetutor · {name}</span><span>{n} / {len(slides)}</span></footer></div></section>'
            f'<aside class="notes" aria-label="Notes for slide {n}">{notes}</aside>'
        )
    return _PAGE.format(title=name, style=_STYLE, slides="\n".join(sections), help=_HELP, script=_SCRIPT)


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


_PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'unsafe-inline'">
<meta name="color-scheme" content="light dark">
<link rel="icon" href="data:,">
<title>{title}</title>
<style>{style}</style>
</head>
<body>
<main aria-roledescription="slides" aria-label="{title}">
{slides}
</main>
<nav aria-label="Slides">
<button type="button" data-do="previous" aria-label="Previous slide" title="Previous slide (left arrow)">◀</button>
<button type="button" data-do="next" aria-label="Next slide" title="Next slide (right arrow)">▶</button>
<button type="button" data-do="overview" aria-label="Overview" title="Overview (o)">▦</button>
<button type="button" data-do="notes" aria-label="Notes" title="Notes (n)">✎</button>
<button type="button" data-do="help" aria-label="Help" title="Help (?)">?</button>
</nav>
<dialog id="help" aria-label="Keys">{help}</dialog>
<div id="progress" aria-hidden="true"></div>
<p id="say" role="status" aria-live="polite"></p>
<script>{script}</script>
</body>
</html>
"""

_HELP = """<h2>Keys</h2><table>
<tr><th scope="row">→ ↓ Space Page down</th><td>next slide</td></tr>
<tr><th scope="row">← ↑ Page up</th><td>previous slide</td></tr>
<tr><th scope="row">Home, End</th><td>first, last slide</td></tr>
<tr><th scope="row">n</th><td>notes under the slide</td></tr>
<tr><th scope="row">s</th><td>notes, clock and next title in a window of their own</td></tr>
<tr><th scope="row">o</th><td>overview; arrows and Enter choose</td></tr>
<tr><th scope="row">f</th><td>full screen</td></tr>
<tr><th scope="row">+ − 0</th><td>larger, smaller, usual text</td></tr>
<tr><th scope="row">?</th><td>this help; Escape closes it</td></tr>
</table><p>Print (Ctrl+P) puts one slide on each page.</p><form method="dialog"><button>Close</button></form>"""

_STYLE = """
:root{--paper:#fff;--ink:#1b2430;--soft:#566373;--line:#d5dbe2;--accent:#0072b2;--warm:#b34700;--good:#00694b;--panel:#f3f6f9;--zoom:1}
@media (prefers-color-scheme:dark){:root{--paper:#14181d;--ink:#e8edf2;--soft:#a3b0bd;--line:#37424e;--accent:#6cbcf0;--warm:#f4a261;--good:#5fd3a8;--panel:#1f262e}}
*{box-sizing:border-box}
html,body{margin:0;height:100%;background:var(--paper);color:var(--ink)}
body{font-family:system-ui,-apple-system,"Segoe UI",Roboto,"Noto Sans","Helvetica Neue",Arial,sans-serif;line-height:1.38}
.slide{container-type:size;width:100vw;height:100vh;height:100dvh;overflow:hidden;background:var(--paper);color:var(--ink);position:relative}
.inner{font-size:max(13px,calc(min(2.15cqw,3.82cqh)*var(--zoom)));height:100%;display:flex;flex-direction:column;padding:1.15em 2.1em .3em;overflow:auto}
h1,h2{margin:0 0 .55em;line-height:1.18;font-weight:650;letter-spacing:-.01em;text-wrap:balance}
h2{font-size:1.5em;color:var(--accent)}
h2 .part{font-size:.6em;font-weight:400;color:var(--soft);white-space:nowrap}
h1{font-size:2.15em;color:var(--accent)}
h3{margin:.5em 0 .35em;font-size:1em;color:var(--soft)}h3:first-child{margin-top:0}
p{margin:0 0 .62em}
.text{flex:1 1 auto;min-height:0;display:flex;flex-direction:column}
.text>*{flex:none}
.inner>.text::before{content:"";flex:1 1 0}.inner>.text::after{content:"";flex:2 1 0}
.airy .text{font-size:1.2em}.wide .text{font-size:1.08em}
ul,ol{margin:0 0 .5em;padding-left:1.25em}
li{margin-bottom:.32em}
li::marker{color:var(--accent)}
.runin{padding-left:.8em;border-left:.16em solid var(--accent)}
a{color:var(--accent)}
code{font-family:ui-monospace,"Cascadia Mono",Menlo,Consolas,"DejaVu Sans Mono",monospace;font-size:.9em}
math{font-family:"Latin Modern Math","STIX Two Math","Cambria Math","DejaVu Math TeX Gyre",math;font-size:1.06em}
.equation{display:flex;align-items:center;justify-content:center;gap:1em;margin:.15em 0 .7em;overflow-x:auto;overflow-y:hidden;padding:.1em 0}
.equation .parts{flex:1 1 auto;min-width:0;display:flex;flex-wrap:wrap;justify-content:center;align-items:center;gap:.45em 2.2em}
.equation math{margin:0}
.equation .number{color:var(--soft);font-size:.85em}
pre{margin:0 0 .6em;background:var(--panel);border-radius:.4em;padding:.8em 1em;overflow:auto;line-height:1.42;white-space:pre-wrap;overflow-wrap:anywhere;
 font-size:min(.92em,calc(40em/(var(--cols)*.605)));color:var(--ink)}
pre code{font-size:1em}
.k{color:var(--accent);font-weight:600}.s{color:var(--good)}.m{color:var(--warm)}.c{color:var(--soft);font-style:italic}
table{border-collapse:collapse;margin:0 0 .7em;font-size:.88em}
th,td{padding:.25em .8em .25em 0;text-align:left;vertical-align:top;border-bottom:1px solid var(--line)}
th{color:var(--soft);font-weight:600}
figure{margin:0;flex:1 1 0;min-height:0;min-width:0;display:flex;flex-direction:column;align-items:center;justify-content:center;gap:.5em}
figure img{flex:0 1 auto;min-height:0;min-width:0;max-width:100%;width:calc(var(--w)*2.2px);height:auto;max-height:100%;object-fit:contain;background:#fff;border-radius:.3em;padding:.25em}
figcaption{flex:none;color:var(--soft);font-size:.74em;max-width:60em;text-align:center;line-height:1.3;padding-bottom:.4em;text-wrap:balance}
.above{flex:1 1 0;min-height:0;display:flex;flex-direction:column}
.above .text{flex:none;padding-bottom:.3em}
.beside{flex:1 1 0;min-height:0;display:grid;grid-template-columns:minmax(0,5fr) minmax(0,6fr);grid-template-rows:minmax(0,1fr);gap:1.4em}
.beside figure{height:100%}
.title .inner{background:linear-gradient(90deg,var(--accent) 0 .5em,transparent .5em)}
.title .inner{padding-left:3.2em}
.title h1{margin-top:1.6em;margin-bottom:0}
.title .sentence{font-size:1.08em}
.title .learn{padding-top:.5em}
.facts{color:var(--soft);font-size:.85em}
.claim .text>p{font-size:1.15em;font-weight:600;border-left:.16em solid var(--warm);padding-left:.7em}
dl{display:grid;grid-template-columns:6em 1fr;margin:.15em 0 .35em}
dt{color:var(--soft)}dd{margin:0}
.verdict{font-weight:650;white-space:normal}.verdict.yes{color:var(--good)}.verdict.direction{color:var(--accent)}.verdict.no{color:var(--warm)}
.stars{color:var(--warm);letter-spacing:.08em}
footer{flex:none;display:flex;justify-content:space-between;color:var(--soft);font-size:.55em;padding:.3em 0 .35em}
.notes{display:none}
nav{position:fixed;right:.5rem;bottom:1.9rem;display:flex;gap:.2rem;opacity:0;transition:opacity .15s}
nav:hover,nav:focus-within,body.mouse nav{opacity:1}
nav button,dialog button{font:inherit;font-size:1rem;min-width:2.2rem;min-height:2.2rem;color:var(--ink);background:var(--panel);border:1px solid var(--line);border-radius:.4rem;cursor:pointer}
:focus-visible{outline:3px solid var(--warm);outline-offset:2px}
#progress{position:fixed;left:0;bottom:0;height:3px;background:var(--accent);width:0}
#say{position:absolute;width:1px;height:1px;overflow:hidden;clip-path:inset(50%)}
dialog{background:var(--paper);color:var(--ink);border:1px solid var(--line);border-radius:.6rem;padding:1rem 1.6rem;max-height:92vh;overflow:auto}
dialog::backdrop{background:#0008}
@media screen{
.live .slide{display:none}.live .slide.on{display:block}
.with-notes .slide{height:62vh}
.with-notes .slide.on+.notes{display:block;height:38vh;overflow:auto;padding:.8rem 2rem 2.5rem;background:var(--panel);border-top:2px solid var(--line);font-size:1.05rem;max-width:none}
.overview{overflow:auto}
.overview main{display:grid;grid-template-columns:repeat(auto-fill,minmax(min(19rem,46vw),1fr));gap:1rem;padding:1rem}
.overview .slide{display:block;width:auto;height:auto;aspect-ratio:16/9;border:1px solid var(--line);border-radius:.4rem;cursor:pointer}
.overview .slide.on{outline:4px solid var(--accent)}
.overview .inner{font-size:min(2.15cqw,3.82cqh);overflow:hidden}
.overview .slide .inner{pointer-events:none}
}
@media screen and (max-width:640px){.beside{display:flex;flex-direction:column}.inner{padding-left:1.1em;padding-right:1.1em}.live .slide.on .inner{font-size:max(15px,min(2.15cqw,3.82cqh))}figure{flex:none}}
@media (prefers-reduced-motion:reduce){*{transition:none!important}}
@media print{
@page{size:297mm 167mm;margin:0}
:root{--paper:#fff;--ink:#1b2430;--soft:#566373;--line:#d5dbe2;--accent:#0072b2;--warm:#b34700;--good:#00694b;--panel:#f3f6f9}
html,body{height:auto}*{print-color-adjust:exact;-webkit-print-color-adjust:exact}
.slide{display:block!important;width:297mm;height:166.5mm;break-after:page;break-inside:avoid}
.inner{font-size:6.1mm}
nav,dialog,#progress,#say,.notes{display:none!important}
}
"""

_SCRIPT = r"""
(() => {
  const slides = [...document.querySelectorAll('.slide')], body = document.body, help = document.getElementById('help');
  let at = 0, zoom = 1, speaker = null, started = Date.now(), hide = 0;
  const wanted = () => Math.min(slides.length, Math.max(1, parseInt(location.hash.slice(1), 10) || 1)) - 1;
  const title = n => slides[n] ? slides[n].getAttribute('aria-label') : 'the end';
  function tell() {
    if (!speaker || speaker.closed) return;
    const d = speaker.document;
    d.title = title(at);
    d.getElementById('now').textContent = title(at);
    d.getElementById('next').textContent = 'Next: ' + title(at + 1);
    d.getElementById('notes').innerHTML = slides[at].nextElementSibling.innerHTML;
    d.getElementById('notes').scrollTop = 0;
  }
  function show(n, quiet) {
    at = Math.min(slides.length - 1, Math.max(0, n));
    slides.forEach((s, k) => { s.classList.toggle('on', k === at); s.querySelector('.inner').scrollTop = 0; });
    history.replaceState(null, '', '#' + (at + 1));
    document.getElementById('progress').style.width = 100 * (at + 1) / slides.length + '%';
    if (!quiet) document.getElementById('say').textContent = title(at);
    if (body.classList.contains('overview')) slides[at].scrollIntoView({block: 'nearest'});
    tell();
  }
  function openSpeaker() {
    speaker = window.open('', 'posetutor-notes', 'width=760,height=640');
    if (!speaker) return;
    const d = speaker.document;
    d.body.innerHTML = '<style>:root{color-scheme:light dark}body{font:1.15rem/1.5 system-ui,sans-serif;margin:1.2rem;color:CanvasText;background:Canvas}' +
      '#bar{display:flex;justify-content:space-between;gap:1rem}#now{font-weight:650}#next{opacity:.75}.equation{display:flex;justify-content:center;gap:1em;margin:.6em}</style>' +
      '<div id="bar"><span id="now"></span><span id="clock"></span></div><p id="next"></p><hr><div id="notes"></div>';
    started = Date.now();
    d.addEventListener('keydown', key);
    tell();
  }
  setInterval(() => {
    if (!speaker || speaker.closed) return;
    const s = Math.floor((Date.now() - started) / 1000);
    speaker.document.getElementById('clock').textContent = new Date().toTimeString().slice(0, 5) + '  +' + Math.floor(s / 60) + ':' + String(s % 60).padStart(2, '0');
  }, 1000);
  const columns = () => body.classList.contains('overview') ? slides.filter(s => s.offsetTop === slides[0].offsetTop).length : 1;
  const act = {
    next: () => show(at + 1), previous: () => show(at - 1), first: () => show(0), last: () => show(slides.length - 1),
    down: () => show(at + columns()), up: () => show(at - columns()),
    notes: () => body.classList.toggle('with-notes'), speaker: openSpeaker,
    overview: () => { body.classList.toggle('overview'); body.classList.remove('with-notes'); show(at); },
    full: () => document.fullscreenElement ? document.exitFullscreen() : document.documentElement.requestFullscreen(),
    help: () => help.open ? help.close() : help.showModal(),
    larger: () => scale(zoom * 1.1), smaller: () => scale(zoom / 1.1), usual: () => scale(1),
    choose: () => { if (body.classList.contains('overview')) act.overview(); else show(at + 1); }
  };
  function scale(z) { zoom = Math.min(2.5, Math.max(.6, z)); document.documentElement.style.setProperty('--zoom', zoom); }
  const keys = {ArrowRight: 'next', ArrowLeft: 'previous', ArrowDown: 'down', ArrowUp: 'up', ' ': 'next', PageDown: 'next', PageUp: 'previous', Home: 'first', End: 'last',
    Enter: 'choose', n: 'notes', s: 'speaker', o: 'overview', f: 'full', '?': 'help', '+': 'larger', '=': 'larger', '-': 'smaller', '0': 'usual'};
  function key(event) {
    if (event.ctrlKey || event.metaKey || event.altKey) return;
    const onButton = event.target.closest && event.target.closest('button,a');
    if (onButton && (event.key === ' ' || event.key === 'Enter')) return;
    if (help.open && event.key !== '?') return;
    if (event.key === 'Escape' && body.classList.contains('overview')) return act.overview();
    const name = event.key === ' ' && event.shiftKey ? 'previous' : keys[event.key.length === 1 ? event.key.toLowerCase() : event.key];
    if (name) { event.preventDefault(); act[name](); }
  }
  document.addEventListener('keydown', key);
  document.querySelectorAll('nav button').forEach(b => b.addEventListener('click', () => { act[b.dataset.do](); }));
  slides.forEach((s, k) => s.addEventListener('click', () => { if (body.classList.contains('overview')) { show(k); act.overview(); } }));
  let touch = null;
  document.addEventListener('touchstart', e => { touch = e.changedTouches[0]; }, {passive: true});
  document.addEventListener('touchend', e => {
    if (!touch || body.classList.contains('overview')) return;
    const dx = e.changedTouches[0].clientX - touch.clientX, dy = e.changedTouches[0].clientY - touch.clientY;
    if (Math.abs(dx) > 60 && Math.abs(dx) > 2 * Math.abs(dy)) show(at + (dx < 0 ? 1 : -1));
  }, {passive: true});
  document.addEventListener('mousemove', () => { body.classList.add('mouse'); clearTimeout(hide); hide = setTimeout(() => body.classList.remove('mouse'), 1500); });
  window.addEventListener('hashchange', () => show(wanted()));
  body.classList.add('live');
  show(wanted(), true);
})();
"""
