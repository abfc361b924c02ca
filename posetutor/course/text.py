"""Markdown and LaTeX as HTML and MathML, without a network: for the slides and the printable plan of a route."""

import html
import re
from functools import lru_cache
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from markdown_it import MarkdownIt

PROTECTED = re.compile(r"```.*?```|`[^`\n]+`|\$\$(?P<display>.+?)\$\$|(?<![\\$\w])\$(?=\S)(?P<inline>[^$]+?)(?<=\S)\$(?![\d$])", re.DOTALL)
HOLE = re.compile("\ue000(\\d+)\ue001")


def plain(text: str) -> str:
    """The characters a reader sees of a piece of HTML."""
    return re.sub(r"\s+", " ", html.unescape(re.sub(r"<[^>]+>", "", text))).strip()


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
    result = result.replace(r"\_", "_").replace("<mo>&#x02016;</mo>", '<mo stretchy="false">&#x02016;</mo>').replace("<mo>.</mo><mo>.</mo>", "<mo>..</mo>")
    result = result.replace('<mtext mathvariant="monospace">', '<mtext style="font-family:monospace">')
    number = f'<span class="number">({html.escape(tag[1])})</span>' if tag else ""
    return f'<div class="equation"><div class="parts">{result}</div>{number}</div>' if display else result


_EASIER = [
    (re.compile(r"\\[bB]igg?[lrm]?\s*(?=\\[lr](?:floor|ceil|vert|Vert|angle)\b)"), ""),
    (re.compile(r"\\\\\[[^\]]*\]"), r"\\\\"),
    (re.compile(r"psmallmatrix"), "pmatrix"),
    (re.compile(r"\\arg\s*\\(max|min)(?![a-z])"), r"\\operatorname*{arg\\,\1}"),
    (re.compile(r"\\operatorname\*\{(arg\\,[a-z]+)\}(?!_)"), r"\\mathrm{\1}"),
    (re.compile(r"\\arg(?![a-z])"), r"\\mathrm{arg}"),
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
    if len(re.sub(r"\\[a-zA-Z]+", "x", formula)) < 60:
        return [formula]
    parts, depth, start = [], 0, 0
    for match in re.finditer(r"\\q?quad|\\begin|\\end|\\left(?![a-z])|\\right(?![a-z])|(?<!\\)[{}]", formula):
        if match[0] in {"{", "\\begin", "\\left"}:
            depth += 1
        elif match[0] in {"}", "\\end", "\\right"}:
            depth -= 1
        elif depth == 0:
            parts.append(formula[start : match.start()])
            start = match.end()
    return [p.strip() for p in [*parts, formula[start:]] if p.strip()]


def formulas(source: str) -> list[tuple[str, bool]]:
    """Every formula of a markdown source, with whether it is displayed."""
    found = PROTECTED.finditer(source)
    return [(m["display"] or m["inline"], m["display"] is not None) for m in found if m["display"] or m["inline"]]


@lru_cache(maxsize=1)
def markdown() -> "MarkdownIt":
    """The reader of Markdown, made once. Raises ModuleNotFoundError with the command that installs it."""
    try:
        from markdown_it import MarkdownIt
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError("slides need markdown-it-py; type: pip install posetutor[course]") from error
    return MarkdownIt("commonmark", {"html": False}).enable("table")


def protect(source: str) -> tuple[str, list[tuple[str, bool]]]:
    """Take the formulas out of a markdown source, so that markdown leaves their stars and underscores alone."""
    kept: list[tuple[str, bool]] = []

    def take(match: re.Match) -> str:
        formula = match["display"] or match["inline"]
        if not formula:
            return match[0]
        kept.append((formula, match["display"] is not None))
        hole = f"\ue000{len(kept) - 1}\ue001"
        return f"\n\n{hole}\n\n" if match["display"] else hole

    return PROTECTED.sub(take, source), kept


def fill(text: str, kept: list[tuple[str, bool]]) -> str:
    """Put the formulas back, as MathML, and unlink what leads to other notebooks."""
    text = re.sub(r'<a href="(?!https?:)[^"]*">(.*?)</a>', r"\1", text, flags=re.DOTALL)
    text = text.replace('<a href="http', '<a rel="noopener" target="_blank" href="http')
    text = re.sub(r"<img[^>]*>", "", text)
    text = HOLE.sub(lambda m: mathml(*kept[int(m[1])]), text)
    return re.sub(r"<p>\s*(<div class=\"equation\">.*?</div>)\s*</p>", r"\1", text, flags=re.DOTALL)


def render_markdown(source: str) -> str:
    """Markdown with formulas as HTML."""
    text, kept = protect(source)
    return fill(markdown().render(text), kept)


def render_inline(source: str) -> str:
    """One sentence of markdown with formulas as HTML, without a paragraph around it."""
    text, kept = protect(source)
    return fill(markdown().renderInline(text.strip()), kept)
