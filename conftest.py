"""Make nbval check cleaned notebooks: it skips cells without an execution count, which is what nbdev_clean leaves."""

import re
from configparser import ConfigParser
from pathlib import Path

settings = ConfigParser(delimiters=["="])
settings.read(Path(__file__).parent / "settings.ini", encoding="utf-8")
SKIP_FLAGS = re.compile(r"^\s*#\|\s*(?:eval:\s*false|" + "|".join(settings["DEFAULT"]["tst_flags"].split()) + r")\b", re.MULTILINE)


def pytest_collection_modifyitems(items):
    """Run every code cell except those that `nbdev_test` skips, and leave the template alone."""
    items[:] = [item for item in items if not item.path.name.startswith("_")]
    for item in items:
        if type(item).__name__ == "IPyNbCell":
            item.cell.execution_count = item.cell.get("execution_count") or 1
            if SKIP_FLAGS.search(item.cell.source):
                item.options["skip"] = True
