"""The API reference from the package's source alone: signatures and docstrings by syntax tree, nothing is imported."""

import ast
import json
import re
from dataclasses import dataclass, field
from pathlib import Path

SPECIAL = re.compile(r"([\\*_<>\[\]$#|~^])")


@dataclass
class Item:
    """One public name: kind is function, class, data, method, property or attribute."""

    kind: str
    name: str
    signature: str
    doc: str
    lines: tuple[int, int]
    decorators: tuple[str, ...] = ()
    members: list["Item"] = field(default_factory=list)


@dataclass
class Module:
    """One module: its name, its notebook (relative to nbs/) if it is exported from one, docstring, items and source text."""

    name: str
    notebook: str
    doc: str
    items: list[Item]
    source: str


def modules(package: Path) -> list[Module]:
    """The modules that notebooks export, in the order of their names; the tools written by hand are used through the command line."""
    found = []
    for path in sorted(package.rglob("*.py")):
        parts = path.relative_to(package.parent).with_suffix("").parts
        if path.name.startswith("_") or "notebooks" in parts:
            continue
        found.append(read_module(path.read_text(encoding="utf-8"), ".".join(parts)))
    return [m for m in found if m.items and m.notebook]


def read_module(source: str, name: str) -> Module:
    """One module from its source text."""
    tree = ast.parse(source)
    notebook = re.search(r"File to edit: (?:\.\./)*nbs/(\S+\.ipynb)", source)
    listed = next((ast.literal_eval(n.value) for n in tree.body if isinstance(n, ast.Assign) and ast.unparse(n.targets[0]) == "__all__"), None)
    items = [item for node in tree.body for item in _items(node) if (item.name in listed if listed is not None else not item.name.startswith("_"))]
    return Module(name, notebook[1] if notebook else "", ast.get_docstring(tree) or "", items, source)


def _items(node: ast.stmt) -> list[Item]:
    if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
        return [_function(node, "function")]
    if isinstance(node, ast.ClassDef):
        return [_class(node)]
    if isinstance(node, (ast.Assign, ast.AnnAssign)) and node.value is not None:
        targets = node.targets if isinstance(node, ast.Assign) else [node.target]
        names = [n.id for t in targets for n in ast.walk(t) if isinstance(n, ast.Name)]
        value = ast.unparse(node.value) if len(names) == 1 else ""
        return [Item("data", n, value if len(value) <= 90 else value[:87] + "...", "", (node.lineno, node.end_lineno or node.lineno)) for n in names if n != "__all__"]
    return []


def _first_line(node: ast.AST) -> int:
    return min([node.lineno, *(d.lineno for d in getattr(node, "decorator_list", []))])


def _function(node: ast.FunctionDef | ast.AsyncFunctionDef, kind: str) -> Item:
    decorators = tuple(ast.unparse(d) for d in node.decorator_list)
    arguments = node.args
    if kind == "method" and "staticmethod" not in decorators:
        positional = arguments.posonlyargs or arguments.args
        if positional:
            positional.pop(0)  # self or cls: the reader does not pass it
    returns = f" -> {ast.unparse(node.returns)}" if node.returns else ""
    kind = "property" if "property" in decorators else kind
    signature = returns.removeprefix(" -> ") if kind == "property" else f"({ast.unparse(arguments)}){returns}"
    return Item(kind, node.name, signature, ast.get_docstring(node) or "", (_first_line(node), node.end_lineno or node.lineno), decorators)


def _class(node: ast.ClassDef) -> Item:
    decorators = tuple(ast.unparse(d) for d in node.decorator_list)
    functions = [n for n in node.body if isinstance(n, (ast.FunctionDef, ast.AsyncFunctionDef))]
    fields = [n for n in node.body if isinstance(n, ast.AnnAssign) and isinstance(n.target, ast.Name)]
    start = next((f for f in functions if f.name == "__init__"), None)
    if start is not None:
        signature = _function(start, "method").signature.split(" -> ")[0]
    elif any("dataclass" in d for d in decorators):
        signature = "(" + ", ".join(ast.unparse(n) for n in fields if not ast.unparse(n.target).startswith("_")) + ")"
    else:
        signature = ""
    members = [_function(n, "method") for n in functions if not n.name.startswith("_") and ast.get_docstring(n)]
    return Item("class", node.name, signature, ast.get_docstring(node) or "", (_first_line(node), node.end_lineno or node.lineno), decorators, members)


def parameters(signature: str) -> list[str]:
    """Names of a signature's parameters."""
    try:
        arguments = ast.parse(f"def f{signature.split(' -> ')[0]}: pass").body[0].args  # type: ignore[attr-defined]
    except SyntaxError:
        return []
    return [a.arg for a in (*arguments.posonlyargs, *arguments.args, arguments.vararg, *arguments.kwonlyargs, arguments.kwarg) if a]


def escape(text: str) -> str:
    """Plain text as Markdown; `code` stays code, arrows and lone line breaks stay text."""
    parts = re.split(r"(`[^`\n]+`)", text)
    return "".join(part if part.startswith("`") and part.endswith("`") and len(part) > 2 else SPECIAL.sub(r"\\\1", part) for part in parts)


def split_doc(doc: str, names: list[str]) -> tuple[str, list[tuple[str, str]]]:
    """The first line of a docstring, and its other parts as (label, text): a parameter's name, Returns, Raises, Source, Deviates, Cost or "" for plain text.

    Our docstrings are plain sentences (`x: tensor or array. spec: one word per axis.`); a part starts where a sentence starts with a parameter's name and a
    colon, or with one of the fixed words.
    """
    head, _, rest = doc.partition("\n")
    parts: list[tuple[str, str]] = []
    for block in re.split(r"\n\s*\n", rest.strip("\n")):
        if block.startswith("    ") or re.match(r"\s+\S", block):
            parts.append(("code", block))
            continue
        text = re.sub(r"\s*\n\s*", " ", block.strip())
        any_name = "|".join(re.escape(n) for n in sorted(names, key=len, reverse=True)) or r"(?!)"
        start = re.compile(rf"(?:(?<=[.;)] )|^)(?:(?P<names>(?:\*{{0,2}}(?:{any_name})(?:, | and |/)?)+): |(?P<word>(?:Returns?|Yields|Raises|Costs?)\b(?= )|(?:Source|Deviates|Cost|Accuracy):)\s?)")
        last, label = 0, ""
        for m in start.finditer(text):
            if text[last : m.start()].strip():
                parts.append((label, text[last : m.start()].strip().rstrip(";")))
            label = m["names"] or m["word"].rstrip(":")
            last = m.end()
        if text[last:].strip():
            parts.append((label, text[last:].strip()))
    return head.strip(), parts


LABELS = {"Return": "Returns", "Costs": "Cost"}


def docstring(doc: str, names: list[str]) -> str:
    """A docstring as Markdown: lead sentence, then its parts as a list of definitions."""
    head, parts = split_doc(doc, names)
    lines, fields = [escape(head)], []
    for label, text in parts:
        if label == "code":
            lines += ["", "```", *[line[4:] if line.startswith("    ") else line for line in text.splitlines()], "```"]
        elif not label:
            lines += ["", escape(text)]
        else:
            word = LABELS.get(label, label)
            known = word in {"Returns", "Yields", "Raises", "Source", "Deviates", "Cost", "Accuracy"}
            fields += ["", word if known else re.sub(r"[\w*]+", lambda m: m[0] if m[0] == "and" else f"`{m[0]}`", word.strip()), f": {escape(text[:1].upper() + text[1:])}"]
    return "\n".join([*lines, "", *fields]).strip()


def directive(item: Item, module: str, depth: int = 0) -> str:
    """The Sphinx directive of one item, members nested."""
    fence = ":" * (6 - depth)
    kind = item.kind
    options = [f":module: {module}"] if depth == 0 else []
    head = item.name
    if kind == "property":
        options += [f":type: {json.dumps(item.signature, ensure_ascii=False)}"] if item.signature else []
    elif kind == "data":
        options += [f":value: {json.dumps(item.signature, ensure_ascii=False)}"] if item.signature else []
    else:
        head += item.signature
        options += [f":{d}:" for d in ("classmethod", "staticmethod") if d in item.decorators]
    body = docstring(item.doc, parameters(item.signature)) if item.doc else ""
    inner = "\n\n".join(directive(m, module, depth + 1) for m in item.members)
    return "\n".join([f"{fence}{{py:{kind}}} {head}", *options, "", body, "", inner, fence])


def page(module: Module, chapter: str) -> str:
    """The page of one module. chapter: Markdown link to the notebook it is derived in."""
    lead = escape(module.doc.split("\n\n")[0].replace("\n", " "))
    origin = f"Derived, tested and shown in chapter {chapter}."
    blocks = [directive(item, module.name) for item in module.items]
    return "\n\n".join([f"# {escape(module.name)}", lead, origin, *blocks]) + "\n"


def tags(module: Module) -> dict[str, tuple[str, int, int]]:
    """Where each item stands in the source, as sphinx.ext.viewcode wants it."""
    found = {}
    for item in module.items:
        found[item.name] = ("class" if item.kind == "class" else "def" if item.kind == "function" else "other", *item.lines)
        found |= {f"{item.name}.{m.name}": ("def", *m.lines) for m in item.members}
    return found
