"""The guard around a student's answer: what a process that runs one may still do.

It is made for a class, against accidents and pranks, and is no sandbox for attackers: the answer runs in a Python process of the teacher's
user, may read what that user may read, and code that works against CPython itself can get past the audit hook.

- Everywhere (audit hook): no writing, deleting, renaming outside the answer's own folder, no network, no other process, no C library.
  Python reports such calls itself, however they are spelled; what a C++ library writes by its own means is not reported.
- Linux with Landlock: the kernel refuses every write outside the folder, C++ libraries included, every program start, and TCP.
- POSIX: limits of memory (what the process holds already, plus the limit) and of the size of a file.
- Time is watched from outside, by the process that started this one. On Windows nothing limits memory.
"""

import builtins
import ctypes
import math
import os
import struct
import sys
import types
from collections.abc import Callable, Mapping
from pathlib import Path

MAX_FILE = 64 * 2**20
PATH_EVENTS = {  # event -> what the answer tried
    "os.remove": "delete a file", "os.rmdir": "delete a folder", "shutil.rmtree": "delete a folder", "os.rename": "rename a file",
    "os.mkdir": "make a folder", "os.link": "link a file", "os.symlink": "link a file", "os.truncate": "cut a file", "os.chmod": "change a file's rights",
    "os.chown": "change a file's owner", "os.utime": "change a file's date", "os.setxattr": "change a file", "os.removexattr": "change a file",
    "os.chflags": "change a file's rights", "os.mkfifo": "make a pipe", "os.mknod": "make a file", "shutil.move": "move a file",
}  # fmt: skip
EVENTS = {
    "subprocess.Popen": "start a program", "os.system": "start a program", "os.exec": "start a program", "os.posix_spawn": "start a program",
    "os.spawn": "start a program", "os.startfile": "start a program", "os.startfile/2": "start a program", "pty.spawn": "start a program",
    "os.fork": "start a process", "os.forkpty": "start a process", "_winapi.CreateProcess": "start a program", "_posixsubprocess.fork_exec": "start a program",
    "os.kill": "stop a process", "os.killpg": "stop a process", "signal.pthread_kill": "stop a thread", "ctypes.dlopen": "load a C library",
    "ctypes.dlsym": "load a C function", "ctypes.call_function": "call a C function", "resource.setrlimit": "change a limit", "resource.prlimit": "change a limit",
    "webbrowser.open": "open a browser", "ftplib.connect": "use the network", "urllib.Request": "use the network", "sqlite3.connect": "open a database",
}  # fmt: skip
WRITE_FLAGS = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND


def install_hook(folders: list[Path], denied: list[str]) -> None:
    """Refuse from now on, in this process, all that the module's docstring lists; what was refused is added to `denied`.

    There is no way back: an audit hook cannot be removed.
    """
    allowed = tuple(os.path.realpath(f) for f in folders)
    realpath, separator, null = os.path.realpath, os.sep, os.path.realpath(os.devnull)

    def inside(path: object) -> bool:
        if isinstance(path, int) or path is None:  # an open file: its opening was looked at
            return True
        place = realpath(os.fsdecode(path))
        return place == null or any(place == folder or place.startswith(folder + separator) for folder in allowed)

    def refuse(event: str, what: str) -> None:
        said = f"tried to {what} ({event})"
        denied.append(said)
        raise PermissionError(said)

    def hook(event: str, given: tuple) -> None:
        if event == "open":
            path, mode, flags = given
            writes = isinstance(flags, int) and flags & WRITE_FLAGS or isinstance(mode, str) and set(mode) & set("wax+")
            if writes and not inside(path):
                refuse(event, f"write the file {Path(os.fsdecode(path)).name}")
        elif event in PATH_EVENTS:
            places = [p for p in given[:2] if isinstance(p, (str, bytes, os.PathLike))]
            if not all(map(inside, places)):
                refuse(event, PATH_EVENTS[event])
        elif event in EVENTS:
            refuse(event, EVENTS[event])
        elif event.startswith("socket.") and event != "socket.gethostname":
            refuse(event, "use the network")
        elif event.startswith(("winreg.", "msvcrt.")):
            refuse(event, "change the system")

    sys.addaudithook(hook)


def limit_memory(gigabytes: float) -> bool:
    """Let this process map so much more than it holds now, and write no large file. False where the system has no such limit."""
    try:
        import resource
    except ImportError:  # Windows
        return False
    resource.setrlimit(resource.RLIMIT_FSIZE, (MAX_FILE, MAX_FILE))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    try:
        pages = int(Path("/proc/self/statm").read_text().split()[0])
    except OSError:  # macOS: neither /proc nor an enforced RLIMIT_AS
        return False
    size = pages * resource.getpagesize() + int(gigabytes * 2**30)
    resource.setrlimit(resource.RLIMIT_AS, (size, size))
    return True


def restrict_writes(folders: list[Path]) -> int:
    """Ask the Linux kernel (Landlock) to refuse writes outside the folders, program starts and TCP; returns its version, 0 without it.

    Must be called before the audit hook, which refuses C functions. It holds for this thread and whatever it starts.
    """
    if not sys.platform.startswith("linux"):
        return 0
    libc = ctypes.CDLL(None, use_errno=True)
    create, add, restrict = 444, 445, 446  # the numbers are the same on all architectures
    version = libc.syscall(create, None, 0, 1)
    if version < 1:
        return 0
    execute, write_file = 1 << 0, 1 << 1
    remove_and_make = sum(1 << n for n in range(4, 13))
    rights = execute | write_file | remove_and_make | (1 << 13 if version >= 2 else 0) | (1 << 14 if version >= 3 else 0)
    rules = struct.pack("QQ", rights, 0b11) if version >= 4 else struct.pack("Q", rights)
    ruleset = libc.syscall(create, rules, len(rules), 0)
    if ruleset < 0:
        return 0
    try:
        for place, granted in [*((f, rights & ~execute) for f in folders), (Path(os.devnull), rights & (write_file | 1 << 14))]:
            fd = os.open(place, os.O_RDONLY | getattr(os, "O_CLOEXEC", 0))
            rule = struct.pack("=Qi", granted, fd)
            failed = libc.syscall(add, ruleset, 1, rule, 0)
            os.close(fd)
            if failed:
                return 0
        no_new_privileges = 38
        if libc.prctl(no_new_privileges, 1, 0, 0, 0) or libc.syscall(restrict, ruleset, 0):
            return 0
    finally:
        os.close(ruleset)
    return version


def watch_functions(namespace: Mapping[str, object]) -> Callable[[bool], str | None]:
    """Remember the functions of the libraries and of the notebook; the returned function names the first that was exchanged, or None.

    The returned function takes `notebook`: whether to look at the namespace as well, or at libraries only.
    """
    places: list[tuple[str, Mapping[str, object]]] = [("", namespace), ("builtins", vars(builtins)), ("math", vars(math))]
    for name, module in list(sys.modules.items()):
        top = name.split(".")[0]
        if isinstance(module, types.ModuleType) and (
            name in {"numpy", "torch", "torch.testing", "numpy.testing", "numpy.linalg", "cv2", "os"} or top == "posetutor"
        ):
            places.append((name, vars(module)))
    torch = sys.modules.get("torch")
    places += [("torch.Tensor", vars(torch.Tensor))] if torch else []
    kept = []
    for label, place in places:
        for name, value in list(place.items()):
            if callable(value) and not name.startswith("__"):
                kept.append((label, place, name, value, getattr(value, "__code__", None)))
                if isinstance(value, type) and getattr(value, "__module__", "").startswith(("posetutor", "__main__")):
                    kept += [(value.__name__, vars(value), n, v, getattr(v, "__code__", None)) for n, v in list(vars(value).items()) if callable(v)]

    def changed(notebook: bool) -> str | None:
        for label, place, name, value, code in kept:
            if place is namespace and not notebook:
                continue
            if place.get(name) is not value or getattr(value, "__code__", None) is not code:
                return f"{label}.{name}".lstrip(".")
        return None

    return changed
