"""Read the built site as a browser does: alternative texts, links, anchors, nothing from the net, a search index that knows every page."""

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

LOADS = {"script": "src", "img": "src", "iframe": "src", "source": "src", "video": "src", "audio": "src", "embed": "src", "object": "data", "track": "src"}
LINK_LOADS = {"stylesheet", "icon", "shortcut", "preload", "modulepreload", "manifest", "prefetch", "apple-touch-icon"}


@dataclass
class PageFacts(HTMLParser):
    """What one page shows and loads."""

    loads: list[str] = field(default_factory=list)
    links: list[str] = field(default_factory=list)
    anchors: set[str] = field(default_factory=set)
    no_alt: list[str] = field(default_factory=list)
    scripts: list[str] = field(default_factory=list)
    formulas: int = 0
    language: str = ""
    in_script: bool = False

    def __post_init__(self) -> None:
        super().__init__()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = {name: value or "" for name, value in attrs}
        self.anchors |= {given[name] for name in ("id", "name") if given.get(name)}
        if tag == "html":
            self.language = given.get("lang", "")
        if LOADS.get(tag) in given:
            self.loads.append(given[LOADS[tag]])
        self.loads += [part.strip().split()[0] for part in given.get("srcset", "").split(",") if part.strip()]
        self.loads += re.findall(r"url\(['\"]?([^'\")]+)", given.get("style", ""))
        if tag == "link" and LINK_LOADS & set(given.get("rel", "").split()):
            self.loads.append(given.get("href", ""))
        if tag in {"a", "area"} and "href" in given:
            self.links.append(given["href"])
        if tag == "img" and len(given.get("alt", "").strip()) < 3:
            self.no_alt.append(given.get("src", "")[:80])
        if tag == "svg" and given.get("role") == "img" and not given.get("aria-label") and given.get("aria-hidden") != "true":
            self.no_alt.append("<svg>")
        self.formulas += tag == "math"
        self.in_script = tag == "script"

    def handle_endtag(self, tag: str) -> None:
        self.in_script = False

    def handle_data(self, data: str) -> None:
        if self.in_script:
            self.scripts.append(data)


def outside(target: str) -> bool:
    """Whether a target leaves the site."""
    return bool(re.match(r"(?:[a-z][a-z0-9+.-]*:)?//|(?:https?|ftp|ws):", target, re.IGNORECASE))


def read_page(path: Path) -> PageFacts:
    """The facts of one HTML file."""
    facts = PageFacts()
    facts.feed(path.read_text(encoding="utf-8"))
    return facts


def style_faults(folder: Path) -> Iterator[str]:
    """Style sheets that load something from the net, or a file that is not there."""
    for path in sorted(folder.rglob("*.css")):
        text = re.sub(r"/\*.*?\*/", "", path.read_text(encoding="utf-8", errors="replace"), flags=re.DOTALL)
        for target in re.findall(r"url\(\s*['\"]?([^'\")]+)", text) + re.findall(r"@import\s+['\"]([^'\"]+)", text):
            if target.startswith("data:") or target.startswith("#"):
                continue
            if outside(target):
                yield f"{path.relative_to(folder)}: loads {target} from the net"
            elif not (path.parent / unquote(urlsplit(target).path)).is_file():
                yield f"{path.relative_to(folder)}: loads {target}, which is not there"


def search_faults(folder: Path, pages: list[str]) -> Iterator[str]:
    """The search index must exist as a script (pages opened as files cannot fetch) and know every page with text."""
    path = folder / "searchindex.js"
    text = path.read_text(encoding="utf-8") if path.is_file() else ""
    found = re.match(r"Search\.setIndex\((.*)\)\s*$", text, re.DOTALL)
    if not found:
        yield "searchindex.js is missing or is no index"
        return
    names = set(json.loads(found[1]).get("docnames", []))
    generated = ("search", "genindex", "py-modindex", "_modules/")
    for page in pages:
        if page not in names and not page.startswith(generated):
            yield f"{page}.html is not in the search index"
    if not (folder / "search.html").is_file():
        yield "search.html is missing"


def site_faults(folder: Path) -> list[str]:
    """Everything wrong with a built site, one line each. Raises FileNotFoundError when there is none."""
    if not (folder / "index.html").is_file():
        raise FileNotFoundError(f"no site in {folder.name}/: build it with `make site`")
    pages = {path: read_page(path) for path in sorted(folder.rglob("*.html"))}
    faults = []
    for path, facts in pages.items():
        name = path.relative_to(folder).as_posix()
        faults += [f"{name}: a picture without alternative text: {src}" for src in facts.no_alt]
        faults += [f"{name}: loads {target} from the net" for target in facts.loads if outside(target)]
        faults += [f"{name}: a script names {host}" for text in facts.scripts for host in re.findall(r"(?:import|fetch|src)\W{1,6}(https?://[\w.]+)", text)]
        faults += [] if facts.language else [f"{name}: the page does not state its language"]
        for target in [t for t in facts.loads + facts.links if t and not outside(t)]:
            parts = urlsplit(target)
            if parts.scheme in {"data", "mailto", "javascript"}:
                continue
            if parts.path.startswith("/"):
                faults.append(f"{name}: {target} starts at the root of the server and breaks when the page is opened as a file")
                continue
            goal = (path.parent / unquote(parts.path)).resolve() if parts.path else path.resolve()
            if goal.is_dir():
                goal = goal / "index.html"
            if not goal.is_file():
                faults.append(f"{name}: {target} leads nowhere")
            elif parts.fragment and goal.suffix == ".html":
                known = pages.get(folder / goal.relative_to(folder.resolve())) if folder.resolve() in goal.parents else None
                if known is not None and unquote(parts.fragment) not in known.anchors:
                    faults.append(f"{name}: {target} names a place that the page does not have")
    faults += style_faults(folder)
    faults += search_faults(folder, [p.relative_to(folder).with_suffix("").as_posix() for p in pages])
    return faults
