"""Static slices of a notebook: the statements that given names need, found from the bytecode's names without running anything.

A statement is kept when it binds a needed name, or changes the object behind it: by an assignment to an index or attribute, or by a call
that stands alone (`folder.mkdir()`, `fill(folder)`, `register("a", f)` where register assigns into it). Names inside functions are looked up as they are at the time of the call. What a
slice cannot see: objects changed by a function whose result is assigned, and names built at run time. So every slice the grader uses
is run by the tests.
"""

import ast
import dis
import functools
import re
import types
from dataclasses import dataclass

from posetutor.course.chapters import Node

LOADS = {"LOAD_NAME", "LOAD_GLOBAL", "LOAD_FROM_DICT_OR_GLOBALS"}
STORES = {"STORE_NAME", "STORE_GLOBAL", "DELETE_NAME"}
CHANGES_NOTHING = re.compile(r"print|show\w*|display|claim|refuses|assert_\w+|check_\w+")
DEFINITIONS = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)
SEEDS = {"seed", "manual_seed"}
NOT_RUN = re.compile(r"^\s*#\|\s*(?:eval:\s*false|cuda|slow)\b", re.MULTILINE)


@dataclass(frozen=True)
class Statement:
    """One top-level statement: the names it binds, those whose objects it assigns into or changes by a call that stands alone, those it
    reads at once, and those its functions read when they are called. A function: the global names it assigns into; called: the function
    that stands alone."""

    node: ast.stmt
    binds: frozenset[str]
    assigns_into: frozenset[str]
    calls: frozenset[str]
    now: frozenset[str]
    later: frozenset[str]
    enters: frozenset[str] = frozenset()
    called: str = ""

    @property
    def source(self) -> str:
        """The statement as one piece of code, without comments."""
        return ast.unparse(self.node)


def without_magics(source: str) -> str:
    """IPython's %magic, !shell and ?help lines turned into comments; all else, line numbers included, as it was."""
    return re.sub(r"^([ \t]*)([%!?].*)$", lambda m: f"{m[1]}pass  # {m[2]}" if m[1] else f"# {m[2]}", source, flags=re.MULTILINE)


def parse(source: str) -> list[ast.stmt]:
    """The statements of a code cell; IPython lines are dropped where they stand in the way. Raises SyntaxError."""
    try:
        return _tree(source)
    except SyntaxError:
        return _tree(without_magics(source))


def _tree(source: str) -> list[ast.stmt]:
    try:
        return ast.parse(source).body
    except (ValueError, RecursionError, MemoryError) as error:  # null bytes; nesting without end
        raise SyntaxError(f"unreadable ({error or type(error).__name__})") from None


def statement(node: ast.stmt) -> Statement:
    """What one statement binds, changes and reads."""
    code = compile(ast.Module([node], []), "<cell>", "exec")
    binds, now, later = set(), set(), set()
    _names(code, binds, now, later)
    into = {n.target.id for n in ast.walk(node) if isinstance(n, ast.AugAssign) and isinstance(n.target, ast.Name)} & binds
    calls, called = set(), ""
    for inner in _not_in_functions(node):
        if isinstance(inner, (ast.Subscript, ast.Attribute)) and isinstance(inner.ctx, (ast.Store, ast.Del)):
            into |= _roots(inner.value)
        elif isinstance(inner, ast.Expr):
            value = inner.value.elt if isinstance(inner.value, ast.ListComp) else inner.value
            calls |= _changed_by(value) if isinstance(value, ast.Call) else set()
            called = getattr(getattr(value, "func", None), "id", "")
    return Statement(node, frozenset(binds), frozenset(into), frozenset(calls), frozenset(now), frozenset(later), frozenset(_enters(node)), called)


@functools.lru_cache(4096)
def statements(source: str) -> tuple[Statement, ...]:
    """The statements of a code cell; kept, because the exercises of a chapter share their cells. Raises SyntaxError."""
    return tuple(statement(node) for node in parse(source))


def _names(code: types.CodeType, binds: set[str], now: set[str], later: set[str], *, top: bool = True) -> None:
    """Sort the global names of compiled code: stored, read at once, read in functions."""
    for instruction in dis.get_instructions(code):
        if instruction.opname in LOADS:
            now.add(instruction.argval)
        elif instruction.opname in STORES and (top or instruction.opname == "STORE_GLOBAL"):
            binds.add(instruction.argval)
    for inner in code.co_consts:
        if isinstance(inner, types.CodeType):
            at_once = inner.co_name in {"<listcomp>", "<setcomp>", "<dictcomp>", "<genexpr>"} or not inner.co_flags & 0x1  # a class body is not "optimised"
            _names(inner, binds, now if at_once else later, later, top=False)


def _not_in_functions(node: ast.AST):
    yield node
    if not isinstance(node, (*DEFINITIONS, ast.Lambda)):
        for child in ast.iter_child_nodes(node):
            yield from _not_in_functions(child)


def _roots(node: ast.AST) -> set[str]:
    return {n.id for n in ast.walk(node) if isinstance(n, ast.Name)}


def _changed_by(call: ast.Call) -> set[str]:
    """Names whose objects a call standing alone may change: the receiver of a method, and arguments given by name."""
    name = call.func.attr if isinstance(call.func, ast.Attribute) else getattr(call.func, "id", "")
    if CHANGES_NOTHING.fullmatch(name):
        return set()
    receiver = _roots(call.func.value) if isinstance(call.func, ast.Attribute) else set()
    return receiver | {a.id for a in [*call.args, *(k.value for k in call.keywords)] if isinstance(a, ast.Name)}


def _enters(node: ast.stmt) -> set[str]:
    """Global names whose objects a function assigns into (`REGISTRY[name] = value`)."""
    if not isinstance(node, ast.FunctionDef):
        return set()
    code = next(c for c in compile(ast.Module([node], []), "<cell>", "exec").co_consts if isinstance(c, types.CodeType) and c.co_name == node.name)
    targets = [n.value for n in ast.walk(node) if isinstance(n, ast.Subscript) and isinstance(n.ctx, ast.Store)]
    return {t.id for t in targets if isinstance(t, ast.Name)} - {*code.co_varnames, *code.co_cellvars}


def _seeds(node: ast.stmt) -> bool:
    return isinstance(node, ast.Expr) and isinstance(node.value, ast.Call) and getattr(node.value.func, "attr", "") in SEEDS


class Program:
    """The statements of code cells in order."""

    def __init__(self, cells: list[Node]):
        self.statements: list[Statement] = []
        for cell in cells:
            if cell.cell_type == "code" and not NOT_RUN.search(cell.source):
                self.add(cell.source)

    def add(self, source: str) -> range:
        """Append a cell; returns the places of its statements."""
        start = len(self.statements)
        self.statements += statements(source)
        return range(start, len(self.statements))

    def needed(self, names: set[str], before: int | None = None) -> set[int]:
        """Places of all statements that the names need, as they are just before a place (default: the end)."""
        self._start()
        for name in names:
            self._require(name, len(self.statements) if before is None else before)
        return {place for place, _ in self._seen}

    def needed_by(self, places: set[int]) -> set[int]:
        """The statements at the places, and all that they need."""
        self._start()
        for place in places:
            self._visit(place, place)
        return {place for place, _ in self._seen}

    def _start(self) -> None:
        self._seen: set[tuple[int, int]] = set()
        self._enters = {s.node.name: s.enters for s in self.statements if s.enters}

    def _require(self, name: str, before: int) -> None:
        bound = next((n for n in range(before - 1, -1, -1) if name in self.statements[n].binds - self.statements[n].assigns_into), None)
        if bound is None:
            return
        self._visit(bound, before)
        origin = self.statements[bound].node
        imported, defined = isinstance(origin, (ast.Import, ast.ImportFrom)), isinstance(origin, DEFINITIONS)
        for place in range(bound + 1, before):
            found = self.statements[place]
            changed = name in found.assigns_into and not imported or name in found.calls and not (imported or defined)
            changed = changed or name in self._enters.get(found.called, ())
            if changed or imported and name in found.calls and _seeds(found.node):
                self._visit(place, before)

    def _visit(self, place: int, use: int) -> None:
        if (place, use) in self._seen:
            return
        self._seen.add((place, use))
        found = self.statements[place]
        for name in found.now:
            self._require(name, place)
        for name in found.later:
            self._require(name, use)
            if not isinstance(found.node, DEFINITIONS):
                self._require(name, place)
