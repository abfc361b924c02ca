"""Formulas as MathML, which every present browser draws by itself: no script and no network. A Sphinx extension, and the font that goes with it."""

import html
import logging
import re
from collections.abc import Iterable
from io import BytesIO
from pathlib import Path
from typing import Any

from latex2mathml.converter import convert

FENCES = r"lfloor|rfloor|lceil|rceil|langle|rangle|lvert|rvert|lVert|rVert"
ENVIRONMENTS = {"cases", "matrix", "pmatrix", "bmatrix", "vmatrix", "array", "aligned", "align", "align*", "gathered", "split", "smallmatrix"}
PRIME = re.compile(r"<msup>(<m([io])[^>]*>[^<]*</m\2>)<m[io]>(&#x0203[2-4];)</m[io]></msup>")  # the font's prime is raised already: beside, not above
PRIMED = re.compile(r"<msubsup>(<m[io][^>]*>[^<]*</m[io]>)((?:<mrow>(?:(?!<mrow>).)*?</mrow>)|<m[ino]>[^<]*</m[ino]>)<m[io]>(&#x0203[2-4];)</m[io]></msubsup>")
STYLES = {  # mathvariant -> code points of A, a, 0 and the letters that Unicode keeps elsewhere
    "bold": (0x1D400, 0x1D41A, 0x1D7CE, {}),
    "script": (0x1D49C, 0x1D4B6, None, dict(zip("BEFHILMRego", "ℬℰℱℋℐℒℳℛℯℊℴ", strict=True))),
    "fraktur": (0x1D504, 0x1D51E, None, dict(zip("CHIRZ", "ℭℌℑℜℨ", strict=True))),
    "double-struck": (0x1D538, 0x1D552, 0x1D7D8, dict(zip("CHNPQRZ", "ℂℍℕℙℚℝℤ", strict=True))),
}


def prepare(latex: str) -> tuple[str, str]:
    """The formula as the converter understands it, and its number (the text of \\tag, or "")."""
    tags = re.findall(r"\\tag\{([^}]*)\}", latex)
    latex = re.sub(r"\\tag\{[^}]*\}|\\label\{[^}]*\}|\\nonumber", "", latex)
    latex = re.sub(rf"\\[bB]ig+[lrm]?\s*\\({FENCES})\b", r"\\\1", latex)  # fences grow by themselves in MathML
    latex = re.sub(r"\\(?:texttt|text|mathrm)\{[^{}]*\}", lambda m: m[0].replace(r"\_", "_"), latex)
    latex = re.sub(r"\\arg\s*\\(max|min)\b", r"\\operatorname*{arg\\,\1}", latex)
    latex = re.sub(r"\\arg\b", r"\\operatorname{arg}", latex)
    latex = re.sub(r"\\operatorname\*?\{[^{}]*\}", lambda m: m[0].replace(r"\,", "\u2009").replace(r"\_", "_"), latex)
    latex = re.sub(r"\\operatorname\{([^{}]*[^A-Za-z{}\u2009][^{}]*)\}", r"\\text{\1}", latex)  # atan2: the converter knows names of letters only
    latex = latex.replace("psmallmatrix", "pmatrix")
    return re.sub(r"\\\\\[[\d.]+\s*\w+\]", r"\\\\ ", latex).strip(), ", ".join(tags)


def styled(match: re.Match) -> str:
    """A letter of a special alphabet as the character Unicode has for it; browsers ignore mathvariant."""
    start, style, text, end = match[1], match[2], html.unescape(match[3]), match[4]
    if style not in STYLES:
        return f'{start}{" mathvariant=" + chr(34) + "normal" + chr(34) if style == "normal" else ""}>{match[3]}{end}'
    capital, small, digit, elsewhere = STYLES[style]

    def one(letter: str) -> str:
        if letter in elsewhere:
            return elsewhere[letter]
        for first, base in (("A", capital), ("a", small), ("0", digit)):
            if base and 0 <= ord(letter) - ord(first) < (10 if first == "0" else 26):
                return chr(base + ord(letter) - ord(first))
        return letter

    return f"{start}>{''.join(map(one, text))}{end}"


def to_mathml(latex: str, *, display: bool = False) -> str:
    """MathML of one formula, with its LaTeX as the alternative text. Raises ValueError when a command or environment is not understood."""
    body, tag = prepare(latex)
    unknown = set(re.findall(r"\\begin\{([^}]*)\}", body)) - ENVIRONMENTS
    if unknown:
        raise ValueError(f"the formula {latex.strip()[:80]!r} has the unknown environment {unknown.pop()}")
    try:
        markup = convert(body, display="block" if display else "inline")
    except Exception as error:
        raise ValueError(f"the formula {latex.strip()[:80]!r} cannot be converted ({type(error).__name__}: {error})") from error
    left = re.findall(r"\\[A-Za-z]+|\\.", html.unescape(markup))
    if left:
        raise ValueError(f"the formula {latex.strip()[:80]!r} has the unknown command {left[0]}")
    if "<mo />" in markup:
        raise ValueError(f"the formula {latex.strip()[:80]!r} has an operator that came out empty")
    markup = re.sub(PRIMED, r'<msub><mrow>\1<mo lspace="0" rspace="0">\3</mo></mrow>\2</msub>', markup)
    markup = re.sub(PRIME, r'<mrow>\1<mo lspace="0" rspace="0">\3</mo></mrow>', markup)
    markup = re.sub(r'<mtext mathvariant="monospace"', '<mtext class="code"', markup)
    markup = re.sub(r'(<m[inot]\w*) mathvariant="([\w-]+)">([^<]*)(</)', styled, markup)
    markup = re.sub(r"<mo([^>]*)>(&#x0007C;|\|)</mo>", r'<mo\1 lspace="0" rspace="0">|</mo>', markup)  # a bar is a fence, not an operator
    markup = markup.replace('width="negativethinmathspace"', 'width="-0.167em"').replace('<mspace linebreak="newline" />', "")
    markup = markup.replace("<math ", f'<math alttext="{html.escape(body, quote=True)}" ', 1)
    if not display:
        return markup
    number = f'<span class="equation-number">({html.escape(tag)})</span>' if tag else ""
    return f'<div class="equation">{markup}{number}</div>'


def font_file() -> Path:
    """STIX Two Math (SIL Open Font License) as the package ziamath carries it."""
    import ziamath

    return Path(ziamath.__file__).parent / "fonts" / "STIXTwoMath-Regular.ttf"


def font_for(pages: Iterable[str]) -> bytes:
    """A WOFF of STIX Two Math with the glyphs that the formulas of some HTML pages need, stretchy forms included."""
    from fontTools import subset

    logging.getLogger("fontTools").setLevel(logging.WARNING)
    used = {c for page in pages for formula in re.findall(r"<math\b.*?</math>", page, re.DOTALL) for c in html.unescape(re.sub(r"<[^>]*>", "", formula))}
    used |= set(map(chr, range(0x20, 0x7F))) | set(map(chr, range(0x1D434, 0x1D468))) | set(map(chr, range(0x1D6FC, 0x1D71C))) | {"ℎ", "−", "′", "√", "‖", "⌊", "⌋", "⌈", "⌉"}
    used |= {chr(ord(c) - 0x3B1 + 0x1D6FC) for c in used if "α" <= c <= "ω"}  # a single letter is drawn in italics
    options = subset.Options(flavor="woff", layout_features=["*"], notdef_outline=True, name_IDs=[0, 1, 2, 13, 14])
    font = subset.load_font(str(font_file()), options)
    cutter = subset.Subsetter(options)
    cutter.populate(unicodes=[ord(c) for c in used])
    cutter.subset(font)
    out = BytesIO()
    subset.save_font(font, out, options)
    return out.getvalue()


def _inline(self: Any, node: Any) -> None:
    from docutils import nodes

    self.body.append(to_mathml(node.astext()))
    raise nodes.SkipNode


def _block(self: Any, node: Any) -> None:
    from docutils import nodes

    self.body.append(to_mathml(node.astext(), display=True))
    raise nodes.SkipNode


def setup(app: Any) -> dict[str, bool]:
    """Register the renderer under the name "mathml"."""
    app.add_html_math_renderer("mathml", (_inline, None), (_block, None))
    return {"parallel_read_safe": True, "parallel_write_safe": True}
