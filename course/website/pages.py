"""Write the source of the site: chapters as executed, claims, API, papers, glossary, routes. Sphinx turns it into pages; nothing here runs a notebook."""

import base64
import hashlib
import html
import json
import re
import shutil
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any

import claims as ledger
import yaml
from markdown_it import MarkdownIt
from mdit_py_plugins.dollarmath import dollarmath_plugin
from PIL import Image

from posetutor.course.chapters import Chapter, Node, chapter_paths, read

from . import api
from .mathml import to_mathml

ROOT = Path(__file__).resolve().parent.parent.parent
NBS = ROOT / "nbs"
PARTS = {"start": "Start", "data": "Data", "codecs": "Codecs", "scores": "Scores and losses", "nets": "Networks", "systems": "Systems", "ship": "Ship"}
INLINE = MarkdownIt("commonmark", {"html": True}).use(dollarmath_plugin, renderer=lambda text, options: to_mathml(text, display=bool(options.get("display_mode"))))
IMAGE_TYPES = {"image/png": "png", "image/jpeg": "jpg", "image/webp": "webp"}


@dataclass(frozen=True)
class Page:
    """A chapter and where its page lies ("2_codecs/21_gaussian")."""

    chapter: Chapter
    doc: str
    seconds: float | None
    executed: str | None

    @property
    def link(self) -> str:
        """Number and title as a link from the root of the site."""
        return f"[{self.chapter.number:02d} {escape(self.chapter.title)}](/{self.doc}.ipynb)"


def escape(text: str) -> str:
    """Plain text as Markdown."""
    return api.SPECIAL.sub(r"\\\1", text).replace("|", r"\|")


def load_pages() -> list[Page]:
    """All chapters with the run time and the date stored in their notebooks."""
    found = []
    for path in chapter_paths(NBS):
        facts = json.loads(path.read_text(encoding="utf-8"))["metadata"].get("posetutor", {})
        found.append(Page(read(path), path.relative_to(NBS).with_suffix("").as_posix(), facts.get("seconds"), facts.get("executed")))
    return found


def part_title(folder: str) -> str:
    """"2_codecs" -> "2 · Codecs"."""
    number, _, name = folder.partition("_")
    return f"{number} · {PARTS.get(name, name.capitalize())}"


def freshness(page: Page) -> str:
    """One line: how long the chapter ran and when; empty when its notebook does not say."""
    parts = [f"ran in {page.seconds:.0f} s of one core" if page.seconds is not None else "", f"executed {page.executed}" if page.executed else ""]
    return " · ".join(p for p in parts if p)


def chapter_facts(page: Page, rows: list[ledger.ClaimRow], papers: dict[str, dict[str, Any]]) -> str:
    """The lines under the title of a chapter: times, claims, notebook; module and papers."""
    mine = [row for row in rows if row.chapter == page.chapter.number]
    parts = [f"about {page.chapter.minutes} minutes" if page.chapter.minutes else "", freshness(page)]
    parts += [f'<a href="#claim-1">{len(mine)} claim{"s" * (len(mine) != 1)}</a>'] if mine else []
    parts += [f"{len(page.chapter.exercises)} exercises"] if page.chapter.exercises else []
    parts += [f'<a href="{Path(page.doc).name}.download.ipynb" download="{Path(page.doc).name}.ipynb">notebook</a>']
    export = re.search(r"`(posetutor\.[\w.]+)`", page.chapter.card.get("Exports", ""))
    places = [f'module <a href="../api/{export[1]}.html">{export[1]}</a>'] if export and ROOT.joinpath(*export[1].split(".")).with_suffix(".py").is_file() else []
    built = [p for p in papers.values() if cites(p, f"{page.chapter.card.get('Source', '')} {page.chapter.sentence}")]
    places += ["papers " + ", ".join(f'<a href="../papers/{p["key"]}.html">{p.get("short") or p["authors"][0].split()[-1]}</a>' for p in built)] if built else []
    return f'<p class="facts">{" · ".join(p for p in parts if p)}<br>{" · ".join(places)}</p>'


def details_html(source: str) -> str:
    """Markdown and formulas inside one-line <details> blocks rendered, since Markdown leaves the inside of HTML alone."""

    def render(match: re.Match) -> str:
        summary, body = match[1], match[2].strip()
        if re.match(r"\s*<(p|ul|ol|div|table|pre)\b", body):
            return match[0]
        return f"<details><summary>{summary}</summary>\n{INLINE.render(html.unescape(body) if '<' not in body else body).strip()}\n</details>"

    return re.sub(r"<details>\s*<summary>(.*?)</summary>((?:(?!\n\s*\n|<details>).)*?)</details>", render, source, flags=re.DOTALL)


def repository_links(source: str, page_folder: str, url: str) -> str:
    """Links to files outside nbs/ lead to the repository; links to chapters inside raw HTML lead to their pages."""

    def mend(match: re.Match) -> str:
        target = match[2]
        where = (NBS / page_folder / target.split("#")[0]).resolve()
        if target.startswith(("http:", "https:", "#", "mailto:", "attachment:")) or where.suffix == ".ipynb" and NBS in where.parents:
            return f"{match[1]}{target.split('#cell-id')[0]})"
        if NBS in where.parents and where.is_file():
            return match[0]  # a picture beside the notebooks
        pages = {"course/claims.md": "/claims.md", "course/glossary.yml": "/glossary.md", "course/papers.yml": "/papers/index.md", "course/routes.yml": "/routes.md"}
        inside = where.relative_to(ROOT).as_posix() if ROOT in where.parents else None
        return f"{match[1]}{pages.get(inside, f'{url}/blob/main/{inside}' if inside else target)})"

    source = re.sub(r"(\]\()([^)\s]+)\)", mend, source)
    return re.sub(r'(<a [^>]*href="(?!https?:)[^"]*)\.ipynb', r"\1.html", source)


def claim_html(row: ledger.ClaimRow) -> str:
    """One claim as a block of its own, in place of the printed lines."""
    verdict = f'<span class="verdict {row.verdict.replace(" ", "-")}">{row.verdict}</span>' + (f" {html.escape(row.why)}" if row.why else "")
    fields = [("Source", row.source), ("Protocol", row.protocol), ("Expected", row.expected), ("Measured", row.measured)]
    lines = "".join(f"<dt>{label}</dt><dd>{html.escape(text)}</dd>" for label, text in fields)
    return f'<section class="claim" id="claim-{row.number}"><p>{html.escape(row.statement)}</p><dl>{lines}<dt>Verdict</dt><dd>{verdict}</dd></dl></section>'


def picture_html(data: dict[str, str], folder: Path, prefix: str) -> str | None:
    """The figure of one output, its picture written to `folder`; None when the output shows none. The alternative text is the one stored with it."""
    markup = data.get("text/html", "")
    alt = re.search(r'<img[^>]*\balt="([^"]*)"', markup)
    inline = re.search(r'<img[^>]*\bsrc="data:(image/\w+);base64,([^"]+)"', markup)
    kind, payload = (inline[1], inline[2]) if inline else next(((k, data[k]) for k in IMAGE_TYPES if k in data), (None, None))
    if kind is None or payload is None or len(re.findall(r"<img\b", markup)) > 1:
        return None
    content = base64.b64decode(payload)
    name = f"{hashlib.sha256(content).hexdigest()[:16]}.{IMAGE_TYPES[kind]}"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / name).write_bytes(content)
    width, height = Image.open(BytesIO(content)).size
    shown = re.search(r"width:\s*(\d+)px", markup)
    style = f' style="width:{shown[1]}px"' if shown else ""
    return f'<img class="figure" src="{prefix}{name}" alt="{alt[1] if alt else ""}" width="{width}" height="{height}" loading="lazy"{style}>'


def stage_outputs(cell: Node, rows: list[ledger.ClaimRow], figures: Path, prefix: str) -> list[dict[str, Any]]:
    """The stored outputs as the site shows them: pictures as files, claims as blocks, no live widgets."""
    staged: list[dict[str, Any]] = []
    for output in cell.get("outputs") or []:
        if output["output_type"] == "stream":
            text, mine = output["text"], [row for row in rows if row.cell == cell.get("id")]
            if mine and "claim     " in text:
                text = re.sub(r"(?m)^(?:claim|source|protocol|expected|measured|verdict) +\S.*\n(?: {10}.*\n?)*", "", text if text.endswith("\n") else text + "\n")
                staged.append(display("".join(claim_html(row) for row in mine)))
            if text.strip():
                staged.append({**output, "text": text})
        elif output["output_type"] in {"display_data", "execute_result"}:
            data = {k: v for k, v in output["data"].items() if "widget-view" not in k and k != "application/javascript"}
            picture = picture_html(data, figures, prefix)
            markup = picture or data.get("text/html")
            staged.append(display(markup) if markup else {**output, "data": data})
        else:
            staged.append(output)
    return staged


def display(markup: str) -> dict[str, Any]:
    """An output that holds HTML."""
    return {"output_type": "display_data", "metadata": {}, "data": {"text/html": markup}}


def stage_code(cell: Node, seen: bool) -> tuple[str, dict[str, Any]]:
    """Source and metadata of a code cell as shown: directives become classes, solutions and plain imports are folded."""
    source, tags = cell.source, list(cell.metadata.get("tags", []))
    if re.search(r"^#\|\s*export", source, re.MULTILINE):
        tags.append("exported")
    source = re.sub(r"^(?:#\|.*|# NBVAL_\w+)\n?", "", source, flags=re.MULTILINE).strip("\n")
    metadata: dict[str, Any] = {}
    lines = [line for line in source.splitlines() if line.strip() and not line.startswith("#")]
    if "### BEGIN SOLUTION" in source:
        tags.append("hide-input")
        metadata["mystnb"] = {"code_prompt_show": "Show the solution", "code_prompt_hide": "Hide the solution"}
    elif "quiz" in tags:
        tags.append("remove-input")
    elif not seen and lines and all(re.match(r"(import |from |[\s)\w,]+$)", line) for line in lines):
        tags.append("hide-input")
        metadata["mystnb"] = {"code_prompt_show": "Show the imports", "code_prompt_hide": "Hide the imports"}
    return source, {**metadata, "tags": tags}


def stage_chapter(page: Page, rows: list[ledger.ClaimRow], papers: dict[str, dict[str, Any]], out: Path, url: str) -> None:
    """Write one chapter's notebook for myst-nb, and the untouched notebook beside it."""
    folder, stem = Path(page.doc).parent.as_posix(), Path(page.doc).name
    notebook, mine, cells = json.loads((NBS / f"{page.doc}.ipynb").read_text(encoding="utf-8")), [r for r in rows if r.chapter == page.chapter.number], []
    for cell in page.chapter.cells:
        if "links" in (cell.metadata.get("tags") or []):
            continue  # the page has its own way to the next one
        if cell.cell_type == "markdown":
            source = repository_links(details_html(cell.source), folder, url)
            if not cells:
                sentence = re.match(r"# .+\n+(> .+(?:\n> .*)*)", source)
                source = f"# {page.chapter.number:02d} · {page.chapter.title}\n\n{sentence[1]}\n\n{chapter_facts(page, rows, papers)}\n{source[sentence.end() :]}"
            cells.append({"cell_type": "markdown", "metadata": {}, "source": source})
        elif cell.cell_type == "code":
            source, metadata = stage_code(cell, any("import" in c["source"] and c["cell_type"] == "code" and "def " in c["source"] for c in cells))
            outputs = stage_outputs(cell, mine, out / "_static" / "figures" / stem, f"../_static/figures/{stem}/")
            if source or outputs:
                cells.append({"cell_type": "code", "metadata": metadata, "source": source or "pass", "outputs": outputs, "execution_count": None})
    notebook["cells"] = [{**cell, "id": f"cell-{n:03d}"} for n, cell in enumerate(cells)]
    notebook["metadata"] = {"kernelspec": {"display_name": "python3", "language": "python", "name": "python3"}, "language_info": {"name": "python", "pygments_lexer": "ipython3"}}
    target = out / f"{page.doc}.ipynb"
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_text(json.dumps(notebook, ensure_ascii=False), encoding="utf-8")
    download = out / "_extra" / folder / f"{stem}.download.ipynb"
    download.parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(NBS / f"{page.doc}.ipynb", download)


def toctree(entries: list[str], *options: str) -> str:
    """A hidden table of contents."""
    return "\n".join(["```{toctree}", ":hidden:", *options, "", *entries, "```"])


def home(pages: list[Page], rows: list[ledger.ClaimRow], sections: list[str], url: str) -> str:
    """The first page: nbs/index.ipynb with the numbers of the course under its title."""
    cells = json.loads((NBS / "index.ipynb").read_text(encoding="utf-8"))["cells"]
    texts = ["".join(c["source"]) for c in cells if c["cell_type"] == "markdown"]
    first, rest = texts[0].partition("\n")[0], texts[0].partition("\n")[2]
    exercises = sum(len(p.chapter.exercises) for p in pages)
    strip = f'<p class="facts">{len(pages)} chapters · {exercises} exercises · <a href="claims.html">{ledger.summary(rows)[:-1]}</a></p>'
    texts[0] = f"{first}\n\n{strip}\n{rest}"
    body = repository_links(details_html("\n\n".join(texts)), "", url)
    return f"{body}\n\n{toctree(sections)}\n"


def card(page: Page) -> str:
    """Title, sentence and times of a chapter for a list."""
    sentence = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", page.chapter.sentence)
    times = " · ".join(t for t in (f"about {page.chapter.minutes} minutes" if page.chapter.minutes else "", freshness(page)) if t)
    return f"{page.link}\n: {sentence}<br><small>{times}</small>\n"


def course_pages(pages: list[Page], out: Path) -> None:
    """The page of the whole course, and one for each part."""
    folders = list(dict.fromkeys(Path(p.doc).parent.as_posix() for p in pages))
    lines = ["# Course", "", "Each chapter derives one topic, shows it in pictures, measures its paper's claim and exports the code it explains.", ""]
    for folder in folders:
        inside = [p for p in pages if Path(p.doc).parent.as_posix() == folder]
        cards = [card(p) for p in inside]
        text = "\n".join([f"# {part_title(folder)}", "", *cards, toctree([f"{Path(p.doc).name}.ipynb" for p in inside])])
        (out / folder / "index.md").write_text(text + "\n", encoding="utf-8")
        lines += [f"## [{part_title(folder)}](/{folder}/index.md)", "", *cards]
    lines.append(toctree([f"{folder}/index" for folder in folders]))
    (out / "course.md").write_text("\n".join(lines) + "\n", encoding="utf-8")


def verdict_link(row: ledger.ClaimRow, doc: str) -> str:
    """The verdict as a link to the block that shows the claim; doc: path of the chapter's page without ending."""
    return f'<span class="verdict {row.verdict.replace(" ", "-")}"><a href="{doc}.html#claim-{row.number}">{row.verdict}</a></span>'


def claims_page(pages: list[Page], rows: list[ledger.ClaimRow]) -> str:
    """All claims, chapter by chapter, each verdict a link to the cell that measures it."""
    lines = ["# Claims", "", f"**{ledger.summary(rows)}**", ""]
    lines += ["A claim is one sentence of a paper, or of ours, that a chapter measures and asserts whenever it runs. A claim that does not hold here is kept, with the reason.", ""]
    for page in pages:
        mine = [row for row in rows if row.chapter == page.chapter.number]
        if not mine:
            continue
        lines += [f"## {page.link}", "", "| claim | expected | measured | verdict |", "|---|---|---|---|"]
        for row in mine:
            verdict = verdict_link(row, page.doc) + (f": {escape(row.why)}" if row.why else "")
            about = f"<small>Source: {escape(row.source)}. Protocol: {escape(row.protocol)}.</small>"
            lines.append(f"| {escape(row.statement)}<br>{about} | {escape(row.expected)} | {escape(row.measured)} | {verdict} |")
        lines.append("")
    return "\n".join(lines) + "\n"


# papers


def load_papers() -> dict[str, dict[str, Any]]:
    """course/papers.yml, each entry with a compiled pattern `finds`."""
    papers = yaml.safe_load((ROOT / "course" / "papers.yml").read_text(encoding="utf-8"))
    for key, paper in papers.items():
        patterns = list(paper.get("cited_as", []))
        if paper.get("kind", "paper") == "paper" and paper.get("by_name", True):
            surname = re.escape(paper["authors"][0].split()[-1])
            patterns.append(rf"(?<!\w){surname}(?: et al\.|,| and\b| &|'s\b|:| )[^.;()]{{0,150}}?\b{paper['year']}\b")
        patterns.append(re.escape(paper["title"].split(":")[0]) + r"\b")
        if "arxiv" in paper:
            patterns.append(re.escape(paper["arxiv"]))
        paper["finds"] = re.compile("|".join(f"(?:{p})" for p in patterns))
        paper["key"] = key
    return papers


def plain(text: str) -> str:
    """The text without emphasis, quotes and initials of names."""
    return re.sub(r"\b[A-Z]\. ?(?=[A-Z])", "", re.sub(r"[*_\"]", "", text))


def cites(paper: dict[str, Any], text: str) -> bool:
    """Whether a text cites the paper."""
    text = plain(text)
    return any(not (paper.get("not_if") and re.search(paper["not_if"], text[m.start() : m.end() + 12])) for m in paper["finds"].finditer(text))


def uncited(text: str, papers: dict[str, dict[str, Any]]) -> list[str]:
    """Citations (author and year) in a text that are no paper's of the list."""
    text = plain(text)
    spans = [m.span() for paper in papers.values() for m in paper["finds"].finditer(text)]
    wanted = re.finditer(r"[A-Z][\w-]+(?: et al\.|(?:, [A-Z][\w-]+)*,? (?:and|&) [A-Z][\w-]+)[^;.()]{0,100}?\b(?:19|20)\d\d\b", text)
    return [m[0] for m in wanted if not any(a < m.end() and m.start() < b for a, b in spans)]


def doc_sources(modules: list[api.Module]) -> list[tuple[api.Module, api.Item, str]]:
    """(module, item, text) of every docstring part that names a source."""
    found = []
    for module in modules:
        for item in module.items:
            for part in (item, *item.members):
                text = " ".join(t for label, t in api.split_doc(part.doc, [])[1] if label in {"Source", "Deviates"})
                if text:
                    found.append((module, part, text))
    return found


def bibtex(key: str, paper: dict[str, Any]) -> str:
    """A BibTeX entry of what the list knows."""
    kind = "misc" if paper["venue"] == "arXiv" or paper.get("kind", "paper") != "paper" else "article" if re.search(r"\d|Journal|IEEE|IJCV|Distill", paper["venue"]) else "inproceedings"
    lines = [f"@{kind}{{{key},", f"  author = {{{' and '.join(paper['authors'])}}},", f"  title = {{{paper['title']}}},"]
    lines += [f"  {'journal' if kind == 'article' else 'booktitle'} = {{{paper['venue']}}},"] if kind != "misc" else []
    lines += [f"  year = {{{paper['year']}}},"] if "year" in paper else []
    lines += [f"  eprint = {{{paper['arxiv']}}},", "  archiveprefix = {arXiv},"] if "arxiv" in paper else []
    return "\n".join([*lines, "}"])


def paper_line(paper: dict[str, Any]) -> str:
    """Authors, venue, year."""
    authors = ", ".join(paper["authors"][:8]) + (" and others" if len(paper["authors"]) > 8 else "")
    return ". ".join(p for p in (escape(authors), escape(paper["venue"]) + (f" {paper['year']}" if "year" in paper and str(paper["year"]) not in paper["venue"] else "")) if p) + "."


def paper_pages(pages: list[Page], rows: list[ledger.ClaimRow], modules: list[api.Module], papers: dict[str, dict[str, Any]], out: Path) -> None:
    """A page for each paper that leads to its chapters, claims and functions, and their list."""
    sources, used = doc_sources(modules), []
    for key, paper in papers.items():
        built = [p for p in pages if cites(paper, p.chapter.card.get("Source", "")) or cites(paper, p.chapter.sentence)]
        named = [p for p in pages if p not in built and any(cites(paper, c.source) for c in p.chapter.cells if c.cell_type == "markdown")]
        mine = [r for r in rows if cites(paper, r.source)]
        functions = [(m, i) for m, i, text in sources if cites(paper, text)]
        if not (built or named or mine or functions):
            continue
        used.append((key, paper, built + named, mine, functions))
        heading = f"{paper['short']}: {paper['title']}" if paper.get("short") and paper["short"] not in paper["title"] else paper["title"]
        lines = [f"# {escape(heading)}", "", paper_line(paper), ""]
        lines += [f"arXiv [{paper['arxiv']}](https://arxiv.org/abs/{paper['arxiv']})", ""] if "arxiv" in paper else []
        for title, group in (("Chapters built on it", built), ("Chapters that mention it", named)):
            lines += [f"## {title}", "", *[f"- {p.link}" for p in group], ""] if group else []
        if mine:
            docs = {p.chapter.number: p.doc for p in pages}
            lines += ["## Claims measured here", ""]
            lines += [f"- {escape(r.statement)} {verdict_link(r, f'../{docs[r.chapter]}')}" for r in mine] + [""]
        if paper.get("quoted"):
            numbers = {p.chapter.number: p for p in pages}
            lines += ["## Published scores that a chapter quotes", ""]
            lines += [f"- {', '.join(map(str, q['values']))} ({escape(q['place'])}; {escape(q['protocol'])}) in {numbers[q['chapter']].link}" for q in paper["quoted"] if q["chapter"] in numbers] + [""]
        if functions:
            lines += ["## Functions that follow it", "", *[f"- {{py:obj}}`{m.name}.{_qualified(m, i)}`" for m, i in functions], ""]
        lines += ["## BibTeX", "", "```bibtex", bibtex(key, paper), "```"] if paper.get("kind", "paper") == "paper" else []
        (out / "papers" / f"{key}.md").write_text("\n".join(lines) + "\n", encoding="utf-8")
    lines = ["# Papers and documents", "", "What the chapters, the claims and the docstrings cite. Each page leads to the places.", "", "| | title | chapters | claims | functions |", "|---|---|---|---|---|"]
    for key, paper, chapters, mine, functions in sorted(used, key=lambda u: (u[1].get("kind", "paper") != "paper", -len(u[2]), u[0])):
        links = " ".join(f"[{p.chapter.number:02d}](/{p.doc}.ipynb)" for p in sorted(chapters, key=lambda p: p.chapter.number))
        lines.append(f"| {escape(paper.get('short', ''))} | [{escape(paper['title'])}]({key}.md)<br><small>{paper_line(paper)}</small> | {links} | {len(mine) or ''} | {len(functions) or ''} |")
    text = "\n".join([*lines, "", toctree([key for key, *_ in used])])
    (out / "papers" / "index.md").write_text(text + "\n", encoding="utf-8")


def _qualified(module: api.Module, part: api.Item) -> str:
    owner = next((i.name for i in module.items if part in i.members), None)
    return f"{owner}.{part.name}" if owner else part.name


# API, glossary, routes


def api_pages(pages: list[Page], modules: list[api.Module], out: Path) -> None:
    """A page for each module and their list."""
    chapters = {f"{p.doc}.ipynb": p for p in pages}
    lines = ["# API reference", "", "Read from the package's source: signatures, docstrings, and the chapter that derives each module.", "", "| module | | chapter |", "|---|---|---|"]
    for module in modules:
        link = chapters[module.notebook].link if module.notebook in chapters else ""
        (out / "api" / f"{module.name}.md").write_text(api.page(module, link), encoding="utf-8")
        lines.append(f"| [{escape(module.name)}]({module.name}.md) | {escape(module.doc.partition(chr(10))[0])} | {link} |")
    (out / "api" / "index.md").write_text("\n".join([*lines, "", toctree([m.name for m in modules])]) + "\n", encoding="utf-8")


def load_glossary() -> list[dict[str, Any]]:
    """course/glossary.yml in the order of the English terms."""
    entries = yaml.safe_load((ROOT / "course" / "glossary.yml").read_text(encoding="utf-8"))
    return sorted(entries, key=lambda e: e["term"].lower())


def slug(term: str) -> str:
    """Anchor of a term."""
    return re.sub(r"\W+", "-", term.lower()).strip("-")


def glossary_page(pages: list[Page]) -> str:
    """The English-Chinese glossary."""
    numbers = {p.chapter.number: p for p in pages}
    entries = load_glossary()
    lines = ["# Glossary · 术语表", "", f"{len(entries)} terms, with the Chinese words that the literature uses.", "", "| term | 中文 | meaning | chapters |", "|---|---|---|---|"]
    for entry in entries:
        links = " ".join(f"[{n:02d}](/{numbers[n].doc}.ipynb)" for n in entry.get("chapters", []) if n in numbers)
        lines.append(f'| <span id="term-{slug(entry["term"])}">**{escape(entry["term"])}**</span> | <span lang="zh">{escape(entry["zh"])}</span> | {escape(entry["definition"])} | {links} |')
    return "\n".join(lines) + "\n"


def routes_page(pages: list[Page]) -> str | None:
    """The routes of course/routes.yml, session by session, or None when there are none."""
    if not (ROOT / "course" / "routes.yml").is_file():
        return None
    from posetutor.course import routes

    docs, chapters = {p.chapter.number: p.doc for p in pages}, {p.chapter.number: p.chapter for p in pages}

    def line(part: Any) -> str:
        minutes, text = routes.part_minutes(part, chapters), escape(routes.describe(part, chapters))
        number = f"{part.chapter:02d}" if part.chapter in docs and not part.planned else ""
        text = text.replace(number, f"[{number}](/{docs[part.chapter]}.ipynb)", 1) if number and number in text else text
        return text + (f" <small>({routes.hours(minutes)})</small>" if minutes else "")

    lines = ["# Routes", "", "Ways through the course, with the minutes of every session. `posetutor zip NAME` packs one: notebooks for students and teacher, slides, pictures and the plan.", ""]
    for route in routes.load_routes().values():
        lines += [f"## {escape(route.title)}", "", escape(route.audience), "", f"{routes.extent(route)} · `posetutor zip {route.name} --out {route.name}.zip`", ""]
        lines += ["| | session | in the room | at home |", "|---|---|---|---|"]
        for n, session in enumerate(route.sessions, 1):
            room, home = ("<br>".join(map(line, parts)) for parts in (session.parts, session.homework))
            lines.append(f"| {n} | **{escape(session.title)}**<br><small>{routes.hours(session.minutes) if session.minutes else ''}</small> | {room} | {home} |")
        lines.append("")
    return "\n".join(lines) + "\n"


def stage(out: Path, url: str) -> list[Page]:
    """Write the whole source of the site into an empty folder; returns the chapters."""
    for folder in ("api", "papers", "_static", "_extra"):
        (out / folder).mkdir(parents=True, exist_ok=True)
    pages, rows, modules = load_pages(), ledger.collect(), api.modules(ROOT / "posetutor")
    papers = load_papers()
    for page in pages:
        stage_chapter(page, rows, papers, out, url)
    for picture in [p for p in NBS.rglob("*") if p.suffix in {".png", ".jpg", ".svg"} and not any(part.startswith((".", "_")) for part in p.relative_to(NBS).parts)]:
        (out / picture.relative_to(NBS)).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(picture, out / picture.relative_to(NBS))
    course_pages(pages, out)
    (out / "claims.md").write_text(claims_page(pages, rows), encoding="utf-8")
    paper_pages(pages, rows, modules, papers, out)
    api_pages(pages, modules, out)
    (out / "glossary.md").write_text(glossary_page(pages), encoding="utf-8")
    sections, routes = ["course", "API <api/index>", "claims", "Papers <papers/index>", "Glossary <glossary>"], routes_page(pages)
    if routes:
        (out / "routes.md").write_text(routes, encoding="utf-8")
        sections.insert(1, "routes")
    (out / "index.md").write_text(home(pages, rows, sections, url), encoding="utf-8")
    return pages
