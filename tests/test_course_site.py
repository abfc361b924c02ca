"""The site's parts: formulas, API pages, papers, glossary, staged chapters, and a checker that sees what is wrong with a built page."""

import importlib.metadata
import json
import os
import re
import sys
import time
import xml.etree.ElementTree as xml
from dataclasses import replace
from pathlib import Path

import pytest

from posetutor.core import refuses
from posetutor.course.chapters import Node, chapter_paths, read

ROOT = Path(__file__).resolve().parent.parent
SITE = ROOT / "_out" / "site"
sys.path.insert(0, str(ROOT / "course"))

pytest.importorskip("latex2mathml")
pytest.importorskip("mdit_py_plugins")
import claims
from markdown_it import MarkdownIt
from mdit_py_plugins.amsmath import amsmath_plugin
from mdit_py_plugins.dollarmath import dollarmath_plugin
from website import api, check, logo, pages
from website.mathml import prepare, to_mathml

PNG = "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg=="


@pytest.fixture(scope="module")
def papers():
    return pages.load_papers()


@pytest.fixture(scope="module")
def modules():
    return api.modules(ROOT / "posetutor")


# formulas


def formulas(path):
    parser = MarkdownIt("commonmark", {"html": True}).enable("table").use(dollarmath_plugin).use(amsmath_plugin)

    def walk(tokens):
        for token in tokens:
            if "math" in token.type:
                yield token.content, "block" in token.type or token.type == "amsmath"
            yield from walk(token.children or [])

    for cell in read(path).cells:
        if cell.cell_type == "markdown":
            yield from walk(parser.parse(pages.details_html(cell.source)))


@pytest.mark.parametrize("path", chapter_paths(ROOT / "nbs"), ids=lambda p: p.stem)
def test_every_formula_becomes_mathml(path):
    for latex, display in formulas(path):
        root = xml.fromstring(re.search(r"<math.*</math>", to_mathml(latex, display=display), re.DOTALL)[0])
        assert root.tag.endswith("math") and root.get("alttext")
        assert not {"double-struck", "bold", "script"} & {e.get("mathvariant") for e in root.iter()}, "browsers ignore mathvariant"


def test_formulas_keep_number_letters_and_text():
    numbered = to_mathml(r"x = \frac{1}{2} \tag{3b}", display=True)
    assert '<span class="equation-number">(3b)</span>' in numbered and "tag" not in re.sub(r'alttext="[^"]*"', "", numbered)
    assert "<mi>ℝ</mi>" in to_mathml(r"\mathbb R") and "<mn>𝟙</mn>" in to_mathml(r"\mathbb 1") and "ℒ" in to_mathml(r"\mathcal L") and "𝐱" in to_mathml(r"\mathbf x")
    assert "num_keypoints" in to_mathml(r"\texttt{num\_keypoints}") and ">arg\u2009max<" in to_mathml(r"\operatorname*{arg\,max}_i")
    assert ">arg\u2009max<" in to_mathml(r"\hat k = \arg\max (K \circledast C)")
    assert "<mtext>atan2</mtext>" in to_mathml(r"\operatorname{atan2}(y, x)") and "<msup>" not in to_mathml("w' + x''") and "<msub><mrow><mi>p</mi><mo" in to_mathml("p'_{k}")
    assert prepare(r"\Big\lfloor x \Big\rfloor \tag{2}") == (r"\lfloor x \rfloor", "2")


@pytest.mark.parametrize("latex, said", [(r"\nonsense{x}", "unknown command \\nonsense"), (r"\begin{tikz}x\end{tikz}", "unknown environment tikz"), (r"\frac{1}{", "cannot be converted")])
def test_unknown_formulas_are_refused(latex, said):
    refuses(lambda: to_mathml(latex), contains=said)


# API


SOURCE = '''"""One sentence on it (Doe, 2001)."""
# File to edit: ../nbs/2_codecs/99_demo.ipynb.
__all__ = ["LIMIT", "shift", "Box"]
LIMIT = 3

def _private(): ...

def shift(xy: Tensor, by: float = 0.5, *, wrap: bool = False) -> Tensor:
    """Move points_here by <a> step.

    xy: (N, 2) px. by: how far, in px; wrap: whether it
    returns at the border. Returns (N, 2) px.
    Cost: one pass. Raises ValueError naming xy.

    Plain *text* between.

    Source: Doe 2001, sec. 2. Deviates: rounds `xy` never.
    """

@dataclass(frozen=True)
class Box:
    """A box. width: px."""

    width: float = 1.0

    def area(self, scale: float) -> float:
        """Its area. scale: a factor."""

    def _hidden(self): ...
'''


def test_module_is_read_without_importing_it():
    module = api.read_module(SOURCE, "posetutor.demo")
    assert [(i.kind, i.name) for i in module.items] == [("data", "LIMIT"), ("function", "shift"), ("class", "Box")]
    assert module.notebook == "2_codecs/99_demo.ipynb"
    assert module.items[1].signature == "(xy: Tensor, by: float=0.5, *, wrap: bool=False) -> Tensor"
    assert module.items[2].signature == "(width: float = 1.0)" and [m.name for m in module.items[2].members] == ["area"]
    assert module.items[2].members[0].signature == "(scale: float) -> float", "self is not the reader's"
    start, end = api.tags(module)["shift"][1:]
    lines = SOURCE.splitlines()[start - 1 : end]
    assert lines[0].startswith("def shift") and lines[-1].strip() == '"""'


def test_docstring_is_cut_into_its_parts():
    module = api.read_module(SOURCE, "posetutor.demo")
    head, parts = api.split_doc(module.items[1].doc, api.parameters(module.items[1].signature))
    assert head == "Move points_here by <a> step."
    assert parts == [
        ("xy", "(N, 2) px."),
        ("by", "how far, in px"),
        ("wrap", "whether it returns at the border."),
        ("Returns", "(N, 2) px."),
        ("Cost", "one pass."),
        ("Raises", "ValueError naming xy."),
        ("", "Plain *text* between."),
        ("Source", "Doe 2001, sec. 2."),
        ("Deviates", "rounds `xy` never."),
    ]
    text = api.docstring(module.items[1].doc, ["xy", "by", "wrap"])
    assert r"points\_here by \<a\>" in text and r"Plain \*text\*" in text and "`xy`\n: (N, 2) px." in text and "Source\n: Doe 2001" in text and "rounds `xy` never" in text.replace("Rounds", "rounds")


def test_every_public_name_of_the_package_has_an_entry(modules):
    found = {m.name: {i.name for i in m.items} for m in modules}
    assert len(found) >= 14
    for module in modules:
        listed = re.search(r"__all__ = \[(.*?)\]", module.source, re.DOTALL)
        assert found[module.name] >= set(re.findall(r"'(\w+)'", listed[1])), module.name
        text = api.page(module, "[chapter](x)")
        assert all(re.search(rf"\{{py:\w+\}} {i.name}\b", text) for i in module.items) and "[chapter](x)" in text
        assert (ROOT / "nbs" / module.notebook).is_file()


# chapters


def staged(tmp_path, *cells, seconds=None, executed=None):
    first = Node(cell_type="markdown", source="# Old title\n> One sentence.\n\n| | |\n|---|---|\n| **Source** | Xiao et al., ECCV 2018 |", metadata=Node())
    chapter = replace(read(chapter_paths(ROOT / "nbs")[0]), cells=[first, *cells], title="Quickstart", card={"Source": "Xiao et al., ECCV 2018"})
    page = pages.Page(chapter, "0_start/00_quickstart", seconds, executed)
    rows = claims.of_chapter(chapter)
    pages.stage_chapter(page, rows, pages.load_papers(), tmp_path, "https://example.org/repo")
    return json.loads((tmp_path / "0_start" / "00_quickstart.ipynb").read_text(encoding="utf-8"))["cells"]


def code(source, *outputs, tags=()):
    return Node(cell_type="code", source=source, metadata=Node(tags=list(tags)), outputs=[Node(o) for o in outputs], id="cell-001")


def test_run_time_and_date_stand_on_the_page_when_the_notebook_has_them(tmp_path):
    with_facts = staged(tmp_path, seconds=41.6, executed="2026-11-21")[0]["source"]
    assert with_facts.startswith("# 00 · Quickstart\n\n> One sentence.") and "ran in 42 s of one core · executed 2026-11-21" in with_facts
    assert '<a href="../papers/xiao2018.html">Simple Baselines</a>' in with_facts and "| **Source** |" in with_facts
    without = staged(tmp_path)[0]["source"]
    assert "ran in" not in without and "executed" not in without
    assert (tmp_path / "_extra" / "0_start" / "00_quickstart.download.ipynb").read_bytes() == (ROOT / "nbs" / "0_start" / "00_quickstart.ipynb").read_bytes()


def test_pictures_become_files_with_their_text(tmp_path):
    bundle = {"text/html": f'<img alt="a drawn person &amp; a box" style="width:300px" src="data:image/png;base64,{PNG}">', "image/png": PNG, "text/plain": "x"}
    cell = staged(tmp_path, code("show()", dict(output_type="display_data", data=bundle, metadata={})))[1]
    markup = cell["outputs"][0]["data"]["text/html"]
    assert 'alt="a drawn person &amp; a box"' in markup and 'width="1"' in markup and "width:300px" in markup and "base64" not in markup
    assert (tmp_path / "0_start" / re.search(r'src="([^"]+)"', markup)[1]).resolve().is_file()
    widget = {"application/vnd.jupyter.widget-view+json": {}, "text/plain": "Box()"}
    cell = staged(tmp_path, code("box", dict(output_type="display_data", data=widget, metadata={})))[1]
    assert list(cell["outputs"][0]["data"]) == ["text/plain"]


def test_directives_go_solutions_fold_claims_become_blocks(tmp_path):
    printed = "claim     2 < 3\nsource    Xiao et al. 2018\nprotocol  none\nexpected  1\nmeasured  1\nverdict   does not hold here: too\n          small\nmore 7\n"
    cells = staged(
        tmp_path,
        code("#| default_exp demo"),
        code("#| export\n# NBVAL_CHECK_OUTPUT\nimport torch"),
        code("#| export\ndef f():\n    return 1"),
        code("def g():\n    ### BEGIN SOLUTION\n    return 2\n    ### END SOLUTION"),
        code("claim('2 < 3')", dict(output_type="stream", name="stdout", text=printed)),
        Node(cell_type="markdown", source="links", metadata=Node(tags=["links"])),
    )[1:]
    assert [c["source"].splitlines()[0] for c in cells] == ["import torch", "def f():", "def g():", "claim('2 < 3')"]
    assert [c["metadata"]["tags"] for c in cells] == [["exported", "hide-input"], ["exported"], ["hide-input"], []]
    assert cells[2]["metadata"]["mystnb"]["code_prompt_show"] == "Show the solution"
    block, rest = cells[3]["outputs"]
    assert 'id="claim-1"' in block["data"]["text/html"] and "2 &lt; 3" in block["data"]["text/html"] and "verdict does-not-hold-here" in block["data"]["text/html"]
    assert rest["text"] == "more 7\n"


def test_hints_are_rendered_and_links_lead_into_the_site():
    hint = pages.details_html("<details><summary>Hint 1</summary>Use `a &lt; b` and $x^2$.</details>")
    assert "<code>a &lt; b</code>" in hint and "<math" in hint and "<summary>Hint 1</summary>" in hint
    assert pages.details_html("<details><summary>H</summary><p>ready</p></details>").count("<p>") == 1
    text = "[a](../2_codecs/21_gaussian.ipynb) [b](../../tests/conftest.py) [c](../../course/claims.md) [d](https://x.org) [e](#part)"
    assert pages.repository_links(text, "0_start", "URL") == "[a](../2_codecs/21_gaussian.ipynb) [b](URL/blob/main/tests/conftest.py) [c](/claims.md) [d](https://x.org) [e](#part)"
    assert pages.repository_links('<a href="x.ipynb#a">', "0_start", "URL") == '<a href="x.html#a">'


def test_cleaning_keeps_the_run_time():
    from configparser import ConfigParser

    clean = pytest.importorskip("nbdev.clean")
    settings = ConfigParser(delimiters=["="])
    settings.read(ROOT / "settings.ini", encoding="utf-8")
    notebook = clean.AttrDict(cells=[], metadata=dict(posetutor=dict(seconds=1.5, executed="2026-11-21"), kernelspec={}, vscode={})) if hasattr(clean, "AttrDict") else None
    if notebook is None:
        pytest.skip("nbdev's notebook type moved")
    clean.clean_nb(notebook, allowed_metadata_keys=settings["DEFAULT"]["allowed_metadata_keys"].split())
    assert notebook["metadata"]["posetutor"] == dict(seconds=1.5, executed="2026-11-21") and "vscode" not in notebook["metadata"]


# papers and glossary


def test_every_citation_of_a_source_row_a_claim_or_a_docstring_is_in_the_list(papers, modules):
    texts = {p.stem: read(p).card.get("Source", "") for p in chapter_paths(ROOT / "nbs")}
    texts |= {f"claim {r.chapter}.{r.number}": r.source for r in claims.collect()}
    texts |= {f"{m.name}.{i.name}": text for m, i, text in pages.doc_sources(modules)}
    missing = {where: found for where, text in texts.items() if (found := pages.uncited(text, papers))}
    assert not missing, f"add to course/papers.yml: {missing}"


def test_citations_are_told_apart(papers):
    def found(text):
        return [key for key, paper in papers.items() if pages.cites(paper, text)]

    assert found("Huang et al. 2020 (AID) and its code") == ["huang2020aid"]
    assert found("Huang et al. 2020, section 3") == ["huang2020udp"]
    assert found("Sun et al., *Integral Human Pose Regression*, 2018") == ["sun2018"]
    assert found("K. Sun et al., CVPR 2019, arXiv 1902.09212") == ["sun2019"]
    assert found("Loshchilov & Hutter 2019 (AdamW)") == ["loshchilov2019"]
    assert found("Lin, Chen, Yan, *Network in Network*, 2014") == []
    assert found("B. Xiao, H. Wu, Y. Wei, *Simple things*, ECCV 2018") == ["xiao2018"]
    assert pages.uncited("Nobody and Noone 2011", papers) == ["Nobody and Noone 2011"] and pages.uncited("Xiao et al. 2018; own", papers) == []


def test_papers_are_whole_and_used(papers, modules):
    everything = "\n".join([c.source for p in chapter_paths(ROOT / "nbs") for c in read(p).cells if c.cell_type == "markdown"] + [t for *_, t in pages.doc_sources(modules)] + [r.source for r in claims.collect()])
    for key, paper in papers.items():
        assert paper["authors"] and paper["title"] and paper["venue"]
        assert pages.cites(paper, everything), f"{key} is cited nowhere"
        if paper.get("kind", "paper") == "paper":
            assert re.fullmatch(r"[a-z]+\d{4}\w*", key) and str(paper["year"]) in key and re.fullmatch(r"\d{4}\.\d{4,5}", paper.get("arxiv", "0000.00000"))
            assert f"@{'misc' if paper['venue'] == 'arXiv' else ''}" in pages.bibtex(key, paper) and paper["title"] in pages.bibtex(key, paper)


def test_glossary():
    entries = pages.load_glossary()
    assert len(entries) >= 80 and len({e["term"] for e in entries}) == len(entries) and len({pages.slug(e["term"]) for e in entries}) == len(entries)
    for entry in entries:
        assert re.search(r"[\u4e00-\u9fff]", entry["zh"]) or entry["zh"] == "Anchor", entry
        assert entry["definition"][0].isupper() and entry["definition"].endswith(".") and entry["definition"].count(". ") == 0, entry
        assert all(isinstance(n, int) for n in entry.get("chapters", []))
    text = pages.glossary_page(pages.load_pages())
    assert '<span lang="zh">热图、热力图</span>' in text and "[21](/2_codecs/21_gaussian.ipynb)" in text and "](None" not in text


def test_logo_is_a_picture_with_a_text():
    root = xml.fromstring(logo.logo_svg())
    assert root.get("aria-label") and len(list(root.iter("{http://www.w3.org/2000/svg}line"))) >= 12


# the checker


GOOD = '<html lang="en"><head><link rel="stylesheet" href="a.css"></head><body id="top"><img src="p.png" alt="a person"><a href="b.html#there">b</a><script src="s.js"></script></body></html>'


@pytest.fixture
def site(tmp_path):
    for name, text in {"index.html": GOOD, "b.html": '<html lang="en"><p id="there"></p></html>', "search.html": "<html lang='en'></html>", "a.css": "body{background:url(p.png)}", "p.png": "", "s.js": ""}.items():
        (tmp_path / name).write_text(text)
    (tmp_path / "searchindex.js").write_text('Search.setIndex({"docnames": ["index", "b"]})')
    return tmp_path


def test_a_good_site_passes(site):
    assert check.site_faults(site) == []


@pytest.mark.parametrize(
    "name, old, new, said",
    [
        ("index.html", ' alt="a person"', "", "picture without alternative text"),
        ("index.html", 'alt="a person"', 'alt=" "', "picture without alternative text"),
        ("index.html", "s.js", "https://cdn.example.org/s.js", "from the net"),
        ("index.html", "a.css", "//fonts.example.org/a.css", "from the net"),
        ("index.html", '<body id="top">', '<body style="background:url(http://x.org/a.png)">', "from the net"),
        ("index.html", "b.html#there", "c.html", "c.html leads nowhere"),
        ("index.html", "b.html#there", "b.html#elsewhere", "a place that the page does not have"),
        ("index.html", "b.html#there", "#elsewhere", "a place that the page does not have"),
        ("index.html", "b.html#there", "/b.html", "starts at the root of the server"),
        ("index.html", 'lang="en"', "", "does not state its language"),
        ("index.html", "<script", "<script>import('https://x.org/m.js')</script><script", "a script names https://x.org"),
        ("a.css", "p.png", "https://x.org/f.woff", "loads https://x.org/f.woff from the net"),
        ("a.css", "p.png", "f.woff", "f.woff, which is not there"),
        ("a.css", "body", "@import 'https://x.org/x.css';body", "from the net"),
        ("searchindex.js", '"b"', '"c"', "b.html is not in the search index"),
        ("searchindex.js", "Search", "Other", "searchindex.js is missing"),
    ],
)
def test_the_checker_sees(site, name, old, new, said):
    text = (site / name).read_text()
    assert old in text
    (site / name).write_text(text.replace(old, new, 1))
    faults = check.site_faults(site)
    assert any(said in fault for fault in faults), faults


def test_no_site_is_said(tmp_path):
    refuses(lambda: check.site_faults(tmp_path), contains="make site", error=FileNotFoundError)


# the built site


@pytest.mark.skipif(not os.environ.get("POSETUTOR_SITE") and not (SITE / "index.html").is_file(), reason="no site built: make site, or POSETUTOR_SITE=1 to build one here")
def test_built_site(tmp_path):
    """The whole site: built here with POSETUTOR_SITE=1, else the one that `make site` left."""
    folder = SITE
    if os.environ.get("POSETUTOR_SITE"):
        import build_site

        start, folder = time.process_time(), tmp_path / "site"
        assert build_site.build(folder, tmp_path / "source") == 0
        assert time.process_time() - start < 300
    assert check.site_faults(folder) == []
    chapters = [p for p in folder.rglob("[0-9]*_*.html")]
    assert len(chapters) >= 16 and all("<math" in p.read_text(encoding="utf-8") for p in chapters if "21_gaussian" in p.name)
    assert not any("MathJax" in p.read_text(encoding="utf-8") for p in folder.rglob("*.html"))
    assert sum(1 for _ in (folder / "papers").glob("*.html")) >= 40
    assert importlib.metadata.version("sphinx")
