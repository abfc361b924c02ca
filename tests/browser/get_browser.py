"""Find a browser for the tests of this folder, or get one: `python tests/browser/get_browser.py`.

Tried in this order: POSETUTOR_CHROMIUM, chromium, chromium-browser or google-chrome of the PATH, the one that Playwright installed before;
then Debian's package (as root, or with sudo where it asks no password), then `playwright install chromium`. Prints what was found.
"""

import os
import shutil
import subprocess
import sys
from pathlib import Path

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")


def starts(path: str) -> bool:
    """Whether a browser of this path answers; some systems have a stub of that name that only advises to install it."""
    try:
        return subprocess.run([path, "--version"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, timeout=60).returncode == 0
    except (OSError, subprocess.TimeoutExpired):
        return False


def browser_path() -> str | None:
    """The browser to drive, None when there is none. Raises FileNotFoundError when POSETUTOR_CHROMIUM names none."""
    if wanted := os.environ.get("POSETUTOR_CHROMIUM"):
        if not starts(wanted):
            raise FileNotFoundError(f"POSETUTOR_CHROMIUM is {wanted}, which does not start; unset it or name a Chromium")
        return wanted
    return next(filter(starts, filter(None, map(shutil.which, NAMES))), None) or playwrights_own()


def playwrights_own() -> str | None:
    """The browser that `playwright install chromium` left, if any."""
    try:
        from playwright.sync_api import sync_playwright
    except ImportError:
        return None
    with sync_playwright() as playwright:
        path = playwright.chromium.executable_path
    return path if path and Path(path).is_file() else None


def install() -> None:
    """Try Debian's package, then Playwright's download; says what failed and goes on."""
    root = [] if hasattr(os, "geteuid") and os.geteuid() == 0 else ["sudo", "-n"]
    tries = [[*root, "apt-get", "update"], [*root, "apt-get", "install", "-y", "--no-install-recommends", "chromium"]] if shutil.which("apt-get") else []
    for command in [*tries, [sys.executable, "-m", "playwright", "install", "chromium"]]:
        if browser_path() is None:
            print("no browser yet:", " ".join(command[-4:]), flush=True)
            try:
                code = subprocess.run(command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, timeout=900, env={**os.environ, "DEBIAN_FRONTEND": "noninteractive"}).returncode
                print("done" if code == 0 else f"failed with exit code {code}")
            except (OSError, subprocess.TimeoutExpired) as error:
                print(f"failed: {error}")


def main() -> int:
    """0 with a browser, or when none is required (POSETUTOR_BROWSER other than "required"): the tests are then skipped."""
    try:
        if browser_path() is None:
            install()
        path = browser_path()
    except FileNotFoundError as error:
        print(error, file=sys.stderr)
        return 1
    print(f"browser: {path}" if path else "no browser could be had; install chromium by hand, or name one in POSETUTOR_CHROMIUM")
    return 0 if path or os.environ.get("POSETUTOR_BROWSER") != "required" else 1


if __name__ == "__main__":
    sys.exit(main())
