"""The process that runs answers: `python -m posetutor.course.runner` reads jobs as JSON lines and writes results as JSON lines.

A job is one exercise: the statements of its context and of its check (ours), and the answers. Where the system can fork, the libraries are
loaded once, the context once a job, and every answer runs in a fork of its own; elsewhere (`--fresh`) one process serves one answer. Either
way the answer's names are put into the context's namespace after the answer has run, then the check runs there, and the verdict leaves
through a pipe under a random token; what the answer prints is no part of it. See `guard` for what an answer may do.
"""

import ast
import contextlib
import gc
import importlib
import io
import json
import os
import pkgutil
import random
import re
import secrets
import select
import shutil
import signal
import sys
import tempfile
import time
import traceback
from pathlib import Path

from posetutor.course import guard
from posetutor.course.slicing import parse

MOST_TEXT = 300
MOST_PRINTED = 2000


class Printed(io.TextIOBase):
    """Keeps the beginning of what is printed and drops the rest."""

    def __init__(self) -> None:
        super().__init__()
        self.text = ""

    def writable(self) -> bool:
        """Always."""
        return True

    def write(self, text: str) -> int:
        """Take note of the first characters."""
        if len(self.text) < MOST_PRINTED:
            self.text += str(text)[: MOST_PRINTED - len(self.text)]
        return len(text)


def load_libraries() -> None:
    """Import all of the package's modules, and with them the libraries of every chapter, so that forks find them loaded."""
    import posetutor

    for module in pkgutil.walk_packages(posetutor.__path__, "posetutor."):
        if not module.name.startswith(("posetutor.course", "posetutor.cli")):
            with contextlib.suppress(ImportError):
                importlib.import_module(module.name)
    torch = importlib.import_module("torch")
    torch.testing.assert_close(torch.zeros(1), torch.zeros(1))  # its first call loads half a second of modules
    _one_thread()


def _one_thread() -> None:
    if "torch" in sys.modules:
        sys.modules["torch"].set_num_threads(1)
    if "cv2" in sys.modules:
        sys.modules["cv2"].setNumThreads(1)


def _seed() -> None:
    random.seed(0)
    if "numpy" in sys.modules:
        sys.modules["numpy"].random.seed(0)
    if "torch" in sys.modules:
        sys.modules["torch"].manual_seed(0)


def run_context(job: dict) -> dict:
    """The namespace that the exercise's answer and check find. Prints of the context are dropped."""
    namespace: dict = {"__name__": "__main__", "__builtins__": __builtins__}
    _seed()
    with contextlib.redirect_stdout(Printed()), contextlib.redirect_stderr(Printed()):
        for source in job["context"]:
            exec(compile(source, "<context>", "exec"), namespace)
    _one_thread()
    return namespace


def one_line(text: object) -> str:
    """Anything as a short single line."""
    try:
        line = " ".join(str(text).split())
    except BaseException:  # a student's exception whose __str__ fails
        line = f"({type(text).__name__} without text)"
    return line if len(line) <= MOST_TEXT else line[: MOST_TEXT - 4] + " ..."


def judge(job: dict, answer: dict, context: dict, denied: list[str]) -> tuple[bool, str]:
    """Run one answer and its check; whether it passed, and what to say."""
    _seed()
    changed = guard.watch_functions(context)
    mine = dict(context)
    limit, mistake = f"needed more than {job['memory']:g} GB", False
    try:
        for source in answer["helpers"]:
            exec(compile(source, "<helper>", "exec"), mine)
        for node in parse(answer["source"]):
            try:
                exec(compile(ast.Module([node], []), "<answer>", "exec"), mine)
            except Exception as error:
                if isinstance(error, (MemoryError, NotImplementedError)) or denied or type(node).__name__ != "Expr":
                    raise
        missing = [name for name in job["names"] if name not in mine]
        if missing:
            return False, f"{', '.join(missing)} is not defined"
        for name in job["functions"]:
            if not callable(mine[name]):
                return False, f"wrong type: {name} is {type(mine[name]).__name__}, expected a function"
        if exchanged := changed(True):
            return False, f"the answer exchanges {exchanged}; write it without"
        context.update({name: mine[name] for name in job["names"]})
        for number, source in enumerate(job["check"]):
            mistake = "refuses(" in source and not source.startswith(("def ", "class ", "@"))
            exec(compile(source, f"<check {number}>", "exec"), context)
        exchanged = changed(False)
        return not exchanged, f"the answer exchanges {exchanged}; write it without" if exchanged else ""
    except MemoryError:
        return False, limit
    except SystemExit:
        return False, "ended Python (SystemExit)"
    except BaseException as error:
        if denied:
            return False, denied[0]
        text = one_line(error)
        if isinstance(error, NotImplementedError) and text.startswith("exercise "):
            return False, f"no answer yet ({text})"
        if "allocate memory" in text or "Insufficient memory" in text:
            return False, limit
        if mistake:
            return False, f"the check accepts a known mistake once this answer has run: {text}"
        return False, explain(error, job["check"])


def explain(error: BaseException, check: list[str]) -> str:
    """One line on a failed answer: the assertion's own text, or the error and its line in the answer."""
    text, name = one_line(error), type(error).__name__
    if isinstance(error, SyntaxError):
        return f"syntax error in line {error.lineno}: {one_line(error.msg)}" if error.lineno else f"syntax error: {text}"
    frames = traceback.extract_tb(error.__traceback__)
    if isinstance(error, AssertionError):
        return text or f"the check failed: {_failed_line(frames, check)}"
    mine = [f.lineno for f in frames if f.filename == "<answer>"]
    where = f" (line {mine[-1]} of the answer)" if mine else ""
    if isinstance(error, TypeError) and re.search(r"positional argument|keyword argument", text):
        name = "wrong arguments"
    elif isinstance(error, (TypeError, AttributeError)) and not (frames and frames[-1].filename == "<answer>"):
        name = "wrong type"
    return f"{name}: {text}{where}{'; does the answer return its result?' if 'NoneType' in text and not mine else ''}"


def _failed_line(frames: list, check: list[str]) -> str:
    """The line of the check's source in which a failure without a text of its own happened."""
    for frame in reversed(frames):
        if found := re.fullmatch(r"<check (\d+)>", frame.filename):
            return one_line(check[int(found[1])].splitlines()[frame.lineno - 1])
    return "an assertion without text"


def run_guarded(job: dict, answer: dict, context: dict, folder: Path, shared: Path) -> dict:
    """Run one answer in this process, which is good for nothing else afterwards."""
    start, printed, denied = time.perf_counter(), Printed(), []
    try:
        with contextlib.redirect_stdout(printed), contextlib.redirect_stderr(printed):
            for source in answer["extra"]:
                exec(compile(source, "<context>", "exec"), context)
            os.chdir(folder)
            tempfile.tempdir = str(folder)
            os.environ["TMPDIR"] = str(folder)
            guard.restrict_writes([folder, shared])
            guard.limit_memory(job["memory"])
            guard.install_hook([folder, shared], denied)
            passed, message = judge(job, answer, context, denied)
    except BaseException as error:
        passed, message = False, f"{type(error).__name__}: {one_line(error)}"
    note = f"passed, but {denied[0]}" if passed and denied else message
    return {"id": answer["id"], "passed": passed, "message": note, "seconds": time.perf_counter() - start, "printed": printed.text}


# --- with fork: libraries once, context once, one fork an answer ---------------------------------------------------


class Child:
    """One answer that is running in a fork."""

    def __init__(self, job: dict, answer: dict, context: dict, work: Path, shared: Path, close: list[int]):
        self.answer, self.start, self.got = answer, time.perf_counter(), b""
        self.token = secrets.token_hex(16).encode()
        self.folder = work / f"answer_{answer['id']}"
        self.folder.mkdir()
        self.pipe, write = os.pipe()
        self.pid = os.fork()
        if self.pid == 0:
            token = self.token
            try:
                os.setsid()
                for fd in [self.pipe, *close]:
                    os.close(fd)
                nothing = os.open(os.devnull, os.O_RDWR)
                for fd in (0, 1, 2):
                    os.dup2(nothing, fd)
                del self.token
                result = run_guarded(job, answer, context, self.folder, shared)
                os.write(write, token + json.dumps(result).encode() + b"\n")
            finally:
                os._exit(0)
        os.close(write)

    def read(self) -> bool:
        """Take what came; True when the answer is over."""
        piece = os.read(self.pipe, 65536)
        self.got += piece
        return not piece or self.result() is not None

    def result(self) -> dict | None:
        """The verdict, when it has come whole."""
        _, found, rest = self.got.partition(self.token)
        line, whole, _ = rest.partition(b"\n")
        return json.loads(line) if found and whole else None

    def end(self) -> dict | None:
        """Stop all that the answer left, and give its verdict."""
        for kill, number in ((os.killpg, self.pid), (os.kill, self.pid)):
            with contextlib.suppress(ProcessLookupError, PermissionError):
                kill(number, signal.SIGKILL)
        _, status = os.waitpid(self.pid, 0)
        os.close(self.pipe)
        shutil.rmtree(self.folder, ignore_errors=True)
        return self.result() or {"status": status}


def fault(number: int, message: str, seconds: float = 0.0) -> dict:
    """The result of an answer that gave none."""
    return {"id": number, "passed": False, "message": message, "seconds": seconds, "printed": ""}


def ended(status: int) -> str:
    """What a process that ended without a verdict did."""
    if os.WIFSIGNALED(status):
        return f"crashed Python ({signal.Signals(os.WTERMSIG(status)).name})"
    return f"ended Python before the check was done (exit code {os.WEXITSTATUS(status)})"


def serve_job(job: dict, out: int) -> None:
    """Run all answers of one exercise, some at a time, and write one line for each."""
    work = Path(job["folder"])
    shared = work / "context"
    shared.mkdir()
    os.chdir(shared)
    tempfile.tempdir = str(shared)
    context = run_context(job)
    listing, spare = _listing(shared), work / "spare"
    if listing:  # the context left files that answers may touch: one answer at a time, and everything back in place after it
        shutil.copytree(shared, spare)
    gc.collect()
    gc.freeze()
    waiting, running = list(reversed(job["answers"])), []
    while waiting or running:
        while waiting and len(running) < (1 if listing else job["at_once"]):
            running.append(Child(job, waiting.pop(), context, work, shared, [out, *(c.pipe for c in running)]))
        now = time.perf_counter()
        patience = max(0.0, min(child.start + job["seconds"] - now for child in running))
        ready = {fd for fd in select.select([c.pipe for c in running], [], [], patience)[0]}
        for child in list(running):
            late = time.perf_counter() - child.start >= job["seconds"]
            if not (child.pipe in ready and child.read()) and not late:
                continue
            running.remove(child)
            spent, found = time.perf_counter() - child.start, child.end()
            if "status" in found:
                message = f"took longer than {job['seconds']:g} s" if late else ended(found["status"])
                found = fault(child.answer["id"], message, spent)
            _send(out, found)
            if listing and _listing(shared) != listing:
                shutil.rmtree(shared, ignore_errors=True)
                shutil.copytree(spare, shared)
                listing = _listing(shared)


def _listing(folder: Path) -> list[tuple]:
    return sorted((str(p), p.stat().st_size, p.stat().st_mtime_ns) for p in folder.rglob("*") if p.is_file())


def _send(out: int, message: dict) -> None:
    data = json.dumps(message).encode() + b"\n"
    while data:
        data = data[os.write(out, data) :]


def serve(out: int) -> None:
    """Read jobs from standard input until it ends; each runs in a fork, so that its context is gone afterwards."""
    load_libraries()
    _send(out, {"ready": True})
    for line in sys.stdin:
        job = json.loads(line)
        pid = os.fork()
        if pid == 0:
            try:
                serve_job(job, out)
            except BaseException as error:
                _send(out, {"fault": f"{type(error).__name__}: {one_line(error)}"})
            finally:
                os._exit(0)
        os.waitpid(pid, 0)
        _send(out, {"done": True})


# --- without fork: one process, one answer -------------------------------------------------------------------------


def serve_fresh(out: int) -> None:
    """Read one job with one answer, and run it in this process."""
    job = json.loads(sys.stdin.readline())
    token, work = job.pop("token"), Path(job["folder"])
    shared, folder = work / "context", work / "answer"
    shared.mkdir()
    folder.mkdir()
    os.chdir(shared)
    tempfile.tempdir = str(shared)
    try:
        context = run_context(job)
    except BaseException as error:
        _send(out, {"fault": f"{type(error).__name__}: {one_line(error)}"})
        return
    _send(out, {"ready": True})
    result = run_guarded(job, job["answers"][0], context, folder, shared)
    _send(out, {"token": token, **result})


def main() -> None:
    """Keep the real output for results, and give everything else the null device."""
    out = os.dup(1)
    nothing = os.open(os.devnull, os.O_RDWR)
    os.dup2(nothing, 1)
    os.dup2(nothing, 2)
    sys.dont_write_bytecode = True
    if "--fresh" in sys.argv[1:]:
        serve_fresh(out)
        os._exit(0)
    serve(out)


if __name__ == "__main__":
    main()
