"""A real browser and a real JupyterLab for the tests of this folder: `make test-browser`. The plain test run leaves the folder out.

Without a browser (get_browser.py says which are looked for) the tests fail when POSETUTOR_BROWSER is "required" and are skipped with the
reason otherwise.
Screenshots, console logs and latency.json are left in _out/browser.
"""

import json
import os
import re
import secrets
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

import pytest
from get_browser import browser_path

from posetutor.course.lab import copy_course

ROOT = Path(__file__).resolve().parents[2]
OUT = ROOT / "_out" / "browser"
FLAGS = [
    "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking", "--disable-component-update", "--disable-sync",
    "--host-resolver-rules=MAP * ~NOTFOUND , EXCLUDE 127.0.0.1",  # nothing leaves this machine
]  # fmt: skip
LOOPBACK = {"127.0.0.1", "localhost", ""}
NOISE = re.compile(r"favicon|ResizeObserver loop|Download the React DevTools")  # console errors that touch nobody


class Watch:
    """A page's console errors, uncaught exceptions and requests that would have left this machine."""

    def __init__(self, page):
        self.page, self.log, self.errors, self.strangers = page, [], [], []
        page.on("console", self._console)
        page.on("pageerror", lambda error: self._keep("uncaught", str(error)))
        page.on("request", self._request)

    def _console(self, message) -> None:
        self.log.append(f"{message.type}: {message.text}")
        if message.type == "error" and not NOISE.search(f"{message.text} {message.location.get('url', '')}"):
            self.errors.append(f"{message.text} ({message.location.get('url', '')})")

    def _keep(self, kind: str, text: str) -> None:
        self.log.append(f"{kind}: {text}")
        if not NOISE.search(text):
            self.errors.append(f"{kind}: {text}")

    def _request(self, request) -> None:
        url = urlsplit(request.url)
        if url.scheme not in {"data", "blob", "about", "file"} and (url.hostname or "") not in LOOPBACK:
            self.strangers.append(request.url)

    def assert_quiet(self) -> None:
        """Fail when the page complained or asked another machine for something since the last call."""
        errors, strangers = list(self.errors), list(self.strangers)
        self.errors.clear()
        self.strangers.clear()
        assert not errors, f"browser console: {errors[:5]}"
        assert not strangers, f"the page asked another machine for {strangers[:5]}"


def pytest_sessionstart(session) -> None:
    """Forget what earlier runs left."""
    for old in (*OUT.glob("*.png"), *OUT.glob("*.log"), *OUT.glob("*.json")):
        old.unlink()


@pytest.fixture(scope="session")
def out() -> Path:
    """The folder of screenshots and measurements."""
    OUT.mkdir(parents=True, exist_ok=True)
    return OUT


@pytest.fixture(scope="session")
def browser() -> Iterator:
    """The browser, started once."""
    required = os.environ.get("POSETUTOR_BROWSER") == "required"
    give_up = pytest.fail if required else pytest.skip
    try:
        from playwright.sync_api import Error, sync_playwright
    except ImportError:
        give_up("the browser tests need Playwright; type: pip install playwright")
    try:
        path = browser_path()
    except FileNotFoundError as error:
        pytest.fail(str(error))
    if path is None:
        give_up("no browser to drive; type: python tests/browser/get_browser.py")
    with sync_playwright() as playwright:
        try:
            engine = playwright.chromium.launch(executable_path=path, args=FLAGS, timeout=120_000)
        except Error as error:
            give_up(f"{path} does not start: {str(error).strip().splitlines()[0]}")
        yield engine
        engine.close()


@pytest.fixture(scope="session")
def new_page(browser) -> Iterator:
    """Call it for a page with its own context, 1280 x 720 unless said otherwise; `page.watch` keeps what went wrong."""
    contexts = []

    def make(width: int = 1280, height: int = 720, **options):
        context = browser.new_context(viewport={"width": width, "height": height}, reduced_motion="reduce", **options)
        contexts.append(context)
        page = context.new_page()
        page.set_default_timeout(60_000)
        page.set_default_navigation_timeout(120_000)
        page.watch = Watch(page)
        return page

    make.contexts = contexts
    yield make
    for context in contexts:
        context.close()


@pytest.fixture
def open_page(new_page) -> Iterator:
    """Like `new_page`, for pages that are closed after the test."""
    pages = []

    def make(*args, **options):
        pages.append(new_page(*args, **options))
        return pages[-1]

    yield make
    for page in pages:
        page.context.close()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item, call):
    """After a failure, leave a screenshot and the console log of every open page."""
    report = yield
    make = getattr(item, "funcargs", {}).get("new_page")
    if report.failed and make is not None:
        OUT.mkdir(parents=True, exist_ok=True)
        name = re.sub(r"\W+", "_", item.name).strip("_")
        for number, page in enumerate(page for context in make.contexts for page in context.pages):
            try:
                page.screenshot(path=OUT / f"FAILED_{name}_{number}.png", timeout=10_000)
                (OUT / f"FAILED_{name}_{number}.log").write_text("\n".join(page.watch.log[-200:]) + "\n", encoding="utf-8")
                report.sections.append(("browser", f"screenshot and console log in _out/browser/FAILED_{name}_{number}.*"))
            except Exception as error:  # the report of the failure matters more than its picture
                report.sections.append(("browser", f"no screenshot: {error}"))
    return report


def free_port() -> int:
    """A TCP port of the loopback address that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@pytest.fixture(scope="session")
def lab_server(browser, tmp_path_factory) -> Iterator[tuple[str, str, Path]]:
    """JupyterLab on loopback over the copy that `posetutor lab` makes (with solutions): its address, its token, the copy's folder. The checkout is not touched."""
    home = tmp_path_factory.mktemp("lab")
    course = home / "course"
    copy_course(course, solutions=True)
    folders = {name: home / name.lower() for name in ("JUPYTER_CONFIG_DIR", "JUPYTER_RUNTIME_DIR", "JUPYTERLAB_SETTINGS_DIR", "JUPYTERLAB_WORKSPACES_DIR", "IPYTHONDIR")}
    config = folders["JUPYTER_CONFIG_DIR"] / "labconfig"
    config.mkdir(parents=True)
    (config / "page_config.json").write_text(json.dumps({"disabledExtensions": {"@jupyterlab/apputils-extension:announcements": True}}), encoding="utf-8")
    environment = {k: v for k, v in os.environ.items() if k not in {"POSETUTOR_STATIC", "MPLBACKEND"}} | {name: str(folder) for name, folder in folders.items()}
    if environment.get("POSETUTOR_DATA"):
        environment["POSETUTOR_DATA"] = str(Path(environment["POSETUTOR_DATA"]).resolve())
    port, token = free_port(), secrets.token_hex(16)
    command = [
        sys.executable, "-m", "jupyterlab", "--no-browser", "--allow-root", "--ServerApp.ip=127.0.0.1", f"--ServerApp.port={port}", "--ServerApp.port_retries=0",
        f"--IdentityProvider.token={token}", f"--ServerApp.root_dir={course}", "--LabApp.expose_app_in_browser=True", "--LabApp.news_url=None",
        "--LabApp.check_for_updates_class=jupyterlab.NeverCheckForUpdate", "--LabApp.extension_manager=readonly",
    ]  # fmt: skip
    address, log = f"http://127.0.0.1:{port}", home / "server.log"
    with log.open("wb") as stream:
        server = subprocess.Popen(command, cwd=course, env=environment, stdout=stream, stderr=subprocess.STDOUT)
    try:
        deadline = time.monotonic() + 90
        while True:
            try:
                urllib.request.urlopen(f"{address}/api/status?token={token}", timeout=5).close()
                break
            except OSError as error:
                if server.poll() is not None or time.monotonic() > deadline:
                    pytest.fail(f"JupyterLab did not start ({error}):\n{log.read_text(errors='replace')[-2000:]}")
                time.sleep(0.2)
        yield address, token, course
    finally:
        server.terminate()
        try:
            server.wait(20)
        except subprocess.TimeoutExpired:
            server.kill()
        OUT.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(log, OUT / "jupyter.log")
