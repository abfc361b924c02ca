"""The house rules of the exported code, read from its syntax trees: layers, devices, joint counts, signatures, docstrings.

Layers: exported code imports strictly downwards. Modules of one sub-package may import its `base` or `blocks`, or a module whose
chapter number is lower; other siblings never meet. A new module needs no entry here unless it opens a new layer.
"""

import ast
import json
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "posetutor"
LAYERS = {
    "core": 0,
    "skeletons": 1,
    "geometry": 1,
    "viz": 2,
    "data": 3,
    "train": 3,
    "codecs": 4,
    "metrics": 4,
    "nets": 5,
    "losses": 5,
    "systems": 6,
    "deploy": 7,
    "widgets": 7,
    "course": 7,
    "cli": 8,
}
SHARED = {"base", "blocks"}  # the modules of a sub-package that all its siblings may use
ONLY_IN = {  # heavy or optional libraries, and the modules whose job they are
    "matplotlib": {"viz", "widgets"},
    "ipywidgets": {"widgets"},
    "IPython": {"viz", "widgets"},
    "pycocotools": {"data.coco", "metrics.coco_eval"},
    "accelerate": {"train.engine"},
    "safetensors": {"train.engine", "nets.simple_baseline", "systems.topdown"},
    "onnx": {"deploy.export"},
}
MAY_PRINT = {("core", "claim"), ("viz", "_publish")}  # (module, function); the command line is exempt as a whole
PAPER = re.compile(r"\bet al\.|\barXiv\b|\bSource:")


def module_name(path: Path) -> str:
    return ".".join(path.relative_to(PACKAGE).with_suffix("").parts)


MODULES = {module_name(p): p for p in sorted(PACKAGE.rglob("*.py")) if p.name not in {"__init__.py", "_modidx.py"}}
TREES = {name: ast.parse(path.read_text(encoding="utf-8")) for name, path in MODULES.items()}
NOTEBOOKS = [p for p in sorted((ROOT / "nbs").rglob("*.ipynb")) if not any(part.startswith((".", "_")) for part in p.relative_to(ROOT / "nbs").parts)]


def chapter_numbers() -> dict[str, int]:
    """Module -> number of the notebook that owns it."""
    found = {}
    for path in NOTEBOOKS:
        match = re.search(r"#\| default_exp ([\w.]+)", path.read_text(encoding="utf-8"))
        if match and re.match(r"\d+_", path.name):
            found[match[1]] = int(path.name.split("_")[0])
    return found


NUMBERS = chapter_numbers()


def imported(tree: ast.Module, name: str) -> set[str]:
    """Modules of the package that a module imports anywhere, also inside functions."""
    here = ["posetutor", *name.split(".")[:-1]]
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = here[: len(here) - node.level + 1] if node.level else []
            whole = ".".join([*base, *(node.module or "").split(".")]).strip(".")
            found |= {f"{whole}.{alias.name}" if f"{whole}.{alias.name}".removeprefix("posetutor.") in MODULES else whole for alias in node.names}
    return {entry.removeprefix("posetutor.") for entry in found if entry.startswith("posetutor.")}


def layer_fault(importer: str, target: str, numbers: dict[str, int]) -> str | None:
    """Why one import breaks the layering, or None."""
    top, other = importer.split(".")[0], target.split(".")[0]
    if other not in LAYERS or top not in LAYERS:
        return f"{importer} imports {target}: {other if other not in LAYERS else top} has no layer"
    if LAYERS[other] < LAYERS[top]:
        return None
    if other == top and "." in importer and "." in target:
        if target.split(".")[-1] in SHARED and importer.split(".")[-1] not in SHARED:
            return None
        if importer in numbers and target in numbers and numbers[target] < numbers[importer]:
            return None
        if top == "course" and importer != target:  # hand-written tools without chapter numbers; test_tools_import_without_circles
            return None
        return f"{importer} imports its sibling {target}, which is neither base/blocks nor an earlier chapter"
    return f"{importer} (layer {LAYERS[top]}) imports {target} (layer {LAYERS[other]}): layers go strictly downwards"


def public_functions(tree: ast.Module):
    """(qualified name, node, is method) of every public function and method at the top of a module."""
    for node in tree.body:
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)) and not node.name.startswith("_"):
            yield node.name, node, False
        elif isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
            for entry in node.body:
                if isinstance(entry, (ast.FunctionDef, ast.AsyncFunctionDef)) and (not entry.name.startswith("_") or entry.name == "__init__"):
                    yield f"{node.name}.{entry.name}", entry, True


def untyped(node: ast.FunctionDef, method: bool) -> list[str]:
    """Arguments (and "return") of a signature without annotation."""
    arguments = node.args
    listed = [*arguments.posonlyargs, *arguments.args]
    static = any(isinstance(d, ast.Name) and d.id == "staticmethod" for d in node.decorator_list)
    listed = listed[1:] if method and not static else listed
    listed += [*arguments.kwonlyargs, *filter(None, (arguments.vararg, arguments.kwarg))]
    missing = [a.arg for a in listed if a.annotation is None]
    return missing + (["return"] if node.returns is None and node.name != "__init__" else [])


def docstring_lines(tree: ast.AST) -> set[int]:
    """Lines of all docstrings, which may name anything."""
    lines = set()
    for node in ast.walk(tree):
        if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)) and ast.get_docstring(node) is not None:
            first = node.body[0]
            lines |= set(range(first.lineno, first.end_lineno + 1))
    return lines


def foreign_literals(tree: ast.Module, wanted) -> list[tuple[int, object]]:
    """(line, value) of constants outside docstrings for which wanted(value) is true."""
    doc = docstring_lines(tree)
    exponents = {id(n.right) for n in ast.walk(tree) if isinstance(n, ast.BinOp) and isinstance(n.op, (ast.Pow, ast.LShift))}
    constants = [n for n in ast.walk(tree) if isinstance(n, ast.Constant) and n.lineno not in doc and id(n) not in exponents]
    return [(n.lineno, n.value) for n in constants if wanted(n.value)]


def is_cuda(value: object) -> bool:
    return isinstance(value, str) and re.fullmatch(r"cuda(:\d+)?", value) is not None


def is_seventeen(value: object) -> bool:
    return type(value) in (int, float) and value == 17


# --- the rules -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", MODULES)
def test_imports_go_strictly_downwards(name):
    faults = [fault for target in sorted(imported(TREES[name], name)) if (fault := layer_fault(name, target, NUMBERS))]
    assert not faults, "\n".join(faults)


def test_tools_import_without_circles():
    import graphlib

    tools = {name: {t for t in imported(TREES[name], name) if t.startswith("course.")} for name in MODULES if name.startswith("course.")}
    assert {"course.chapters", "course.grade"} <= set(graphlib.TopologicalSorter(tools).static_order())


@pytest.mark.parametrize("name", MODULES)
def test_libraries_stay_where_their_job_is(name):
    for node in ast.walk(TREES[name]):
        names = [a.name for a in node.names] if isinstance(node, ast.Import) else [node.module or ""] if isinstance(node, ast.ImportFrom) and not node.level else []
        for library in {entry.split(".")[0] for entry in names} & set(ONLY_IN):
            assert name in ONLY_IN[library], f"{name} line {node.lineno} imports {library}, whose place is {sorted(ONLY_IN[library])}"


@pytest.mark.parametrize("name", MODULES)
def test_no_star_import_and_no_print(name):
    tree = TREES[name]
    assert not [n for n in ast.walk(tree) if isinstance(n, ast.ImportFrom) and any(a.name == "*" for a in n.names)]
    if name == "cli":
        return
    quiet = [node for node in tree.body if (name, getattr(node, "name", None)) not in MAY_PRINT]
    lines = [n.lineno for top in quiet for n in ast.walk(top) if isinstance(n, ast.Call) and isinstance(n.func, ast.Name) and n.func.id == "print"]
    assert not lines, f"{name} prints in lines {lines}"


@pytest.mark.parametrize("name", MODULES)
def test_cuda_is_named_in_one_place(name):
    tree = TREES[name]
    chooser = next((n for n in tree.body if name == "core" and isinstance(n, ast.FunctionDef) and n.name == "device"), None)
    allowed = set(range(chooser.lineno, chooser.end_lineno + 1)) if chooser else set()
    assert not [(line, value) for line, value in foreign_literals(tree, is_cuda) if line not in allowed], "use core.device()"


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: p.stem)
def test_notebooks_do_not_name_cuda(path):
    for number, cell in enumerate(json.loads(path.read_text(encoding="utf-8"))["cells"]):
        source = "".join(cell["source"])
        exported = "#| export" in source and path.stem == "02_core"
        assert cell["cell_type"] != "code" or exported or not re.search(r"""["']cuda(:\d+)?["']""", source), f"{path.name} cell {number}: use core.device()"


@pytest.mark.parametrize("name", [m for m in MODULES if m != "skeletons"])
def test_the_number_of_joints_comes_from_the_skeleton(name):
    assert not foreign_literals(TREES[name], is_seventeen), f"{name} holds the literal 17: take K from the skeleton or the data"


@pytest.mark.parametrize("name", MODULES)
def test_public_signatures_are_typed(name):
    missing = [f"{label}: {', '.join(gaps)}" for label, node, method in public_functions(TREES[name]) if (gaps := untyped(node, method))]
    assert not missing, "\n".join(missing)


@pytest.mark.parametrize("name", MODULES)
def test_public_callables_have_docstrings(name):
    tree = TREES[name]
    classes = [n for n in tree.body if isinstance(n, ast.ClassDef) and not n.name.startswith("_")]
    silent = [n.name for n in classes if not ast.get_docstring(n)]
    silent += [label for label, node, method in public_functions(tree) if node.name not in ("__init__", "forward") and not ast.get_docstring(node)]
    assert not silent, f"{name} without docstring: {silent}"


@pytest.mark.parametrize("name", MODULES)
def test_papers_are_named_under_source(name):
    """A docstring that names a paper does it under `Source:` or `Deviates:`, as STYLE's fixed six parts ask."""
    bad = []
    nodes = [(n.name, n) for n in TREES[name].body if isinstance(n, (ast.FunctionDef, ast.ClassDef)) and not n.name.startswith("_")]
    for label, node in nodes:
        doc = ast.get_docstring(node) or ""
        if PAPER.search(doc) and not re.search(r"\b(Source|Deviates):", doc):
            bad.append(label)
    assert not bad, f"{name}: {bad} name a paper, but not under Source:"


METHODS = [m for m in MODULES if m.split(".")[0] in ("codecs", "metrics", "losses", "nets", "systems") and m.split(".")[-1] not in SHARED]


@pytest.mark.parametrize("name", METHODS)
def test_modules_that_implement_papers_say_which(name):
    docs = [ast.get_docstring(n) or "" for n in ast.walk(TREES[name]) if isinstance(n, (ast.FunctionDef, ast.ClassDef))]
    assert any("Source:" in doc for doc in docs), f"{name}: no docstring says Source:"


# --- the rules catch what they are for -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    "importer, target, allowed",
    [
        ("codecs.dark", "geometry", True),
        ("codecs.dark", "codecs.base", True),
        ("codecs.dark", "codecs.gaussian", True),
        ("codecs.gaussian", "codecs.dark", False),
        ("codecs.base", "codecs.gaussian", False),
        ("codecs.dark", "nets.hrnet", False),
        ("nets.hrnet", "codecs.dark", True),
        ("nets.hrnet", "losses.oks", False),
        ("metrics.oks", "codecs.base", False),
        ("skeletons", "geometry", False),
        ("geometry", "core", True),
        ("core", "viz", False),
        ("train.engine", "data.coco", False),
        ("widgets", "cli", False),
        ("widgets", "course.grade", False),
        ("cli", "course.grade", True),
        ("course.grade", "course.chapters", True),
        ("course.grade", "cli", False),
        ("systems.topdown", "nets.hrnet", True),
    ],
)
def test_layer_rule(importer, target, allowed):
    numbers = {"codecs.base": 20, "codecs.gaussian": 21, "codecs.dark": 23}
    assert (layer_fault(importer, target, numbers) is None) == allowed


def test_rules_find_planted_faults():
    tree = ast.parse(
        'def f(x, *, n: int = 17):\n    """Ours, as in Sun et al. 2019."""\n    from ..nets.hrnet import HRNet\n    return x.to("cuda:1")\n'
        "class A:\n    def g(self, y: int):\n        return 17.0\n"
    )
    assert imported(tree, "codecs.dark") == {"nets.hrnet"}
    assert [line for line, _ in foreign_literals(tree, is_seventeen)] == [1, 7]
    assert [value for _, value in foreign_literals(tree, is_cuda)] == ["cuda:1"]
    assert {label: untyped(node, method) for label, node, method in public_functions(tree)} == {"f": ["x", "return"], "A.g": ["return"]}
    assert not foreign_literals(ast.parse("chunk = 2**17 + (1 << 17)"), is_seventeen)  # a size in bytes is no joint count
    assert not foreign_literals(ast.parse('def f() -> str:\n    """Not "cuda", not 17."""\n    return "cudart"\n'), is_cuda)
