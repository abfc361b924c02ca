"""Build the course's site from the executed notebooks: _out/site, without network, no notebook is run.

    python course/build_site.py                 # stage, build, check
    python course/build_site.py --check         # check the site that is there: alternative texts, links, nothing from the net, search
    python course/build_site.py --check FOLDER  # another folder
"""

import argparse
import os
import shutil
import sys
import time
from configparser import ConfigParser
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
SITE, STAGE = ROOT / "_out" / "site", ROOT / "_out" / "site_source"
MISSING = "the site needs sphinx, myst-nb, pydata-sphinx-theme, latex2mathml and ziamath; type: pip install -e .[dev]"


def build(out: Path = SITE, stage_folder: Path = STAGE) -> int:
    """Write the pages' source and run Sphinx on it; warnings are errors. Returns Sphinx's exit code."""
    try:
        from sphinx.cmd.build import build_main
        from website import logo, mathml, pages
    except ImportError as error:
        print(f"{MISSING} ({error})", file=sys.stderr)
        return 2
    settings = ConfigParser(delimiters=["="])
    settings.read(ROOT / "settings.ini", encoding="utf-8")
    for folder in (out, stage_folder):
        shutil.rmtree(folder, ignore_errors=True)
    stage_folder.mkdir(parents=True)
    chapters = pages.stage(stage_folder, settings["DEFAULT"]["git_url"])
    (stage_folder / "_static" / "logo.svg").write_text(logo.logo_svg(), encoding="utf-8")
    here = Path(__file__).parent / "website"
    for name in ("course.css", "course.js"):
        shutil.copyfile(here / name, stage_folder / "_static" / name)
    shutil.copyfile(here / "conf.py", stage_folder / "conf.py")
    os.environ["POSETUTOR_SITE_ROOT"] = str(ROOT)
    print(f"{len(chapters)} chapters staged", flush=True)
    code = build_main(["-b", "html", "-q", "-W", "--keep-going", "-j", str(min(2, os.cpu_count() or 1)), "-d", str(stage_folder / "_doctrees"), str(stage_folder), str(out)])
    for leftover in (".buildinfo", "objects.inv", "_static/webpack-macros.html"):  # of use to Sphinx alone
        (out / leftover).unlink(missing_ok=True)
    shutil.rmtree(out / "_sources", ignore_errors=True)
    (out / "_static" / "math.woff").write_bytes(mathml.font_for(p.read_text(encoding="utf-8") for p in out.rglob("*.html")))
    return code


def check(folder: Path) -> int:
    """Print every fault of a built site; 0 when there is none."""
    from website.check import site_faults

    try:
        faults = site_faults(folder)
    except FileNotFoundError as error:
        print(error, file=sys.stderr)
        return 1
    print("\n".join(faults) if faults else f"{sum(1 for _ in folder.rglob('*.html'))} pages: texts for pictures, links, search and offline use are in order")
    return 1 if faults else 0


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--check", nargs="?", const=SITE, type=Path, metavar="FOLDER", help="check a built site and build nothing")
    args = parser.parse_args()
    if args.check:
        return check(args.check)
    start = time.perf_counter()
    code = build()
    print(f"built in {time.perf_counter() - start:.0f} s: _out/site/index.html" if code == 0 else "the site was not built cleanly", flush=True)
    return code or check(SITE)


if __name__ == "__main__":
    sys.exit(main())
