"""Remember a green test run: what `posetutor doctor` and the README's support line show.

    make test && python course/support.py

Reads _out/tests.xml, which `make test` leaves, and writes posetutor/assets/support.json. A run with a failure or an error is refused.
"""

import json
import platform
import sys
import xml.etree.ElementTree as ElementTree
from datetime import datetime, timezone
from importlib.metadata import version
from pathlib import Path

from posetutor.core import write_atomic

ROOT = Path(__file__).resolve().parent.parent
REPORT, SUPPORT = ROOT / "_out" / "tests.xml", ROOT / "posetutor" / "assets" / "support.json"


def read_report(path: Path) -> dict[str, int]:
    """Counts of passed, failed and skipped tests in a JUnit report. Raises FileNotFoundError when `make test` has left none."""
    if not path.is_file():
        raise FileNotFoundError(f"no test report at {path}: run `make test` first")
    suites = list(ElementTree.parse(path).getroot().iter("testsuite"))
    tests, failed, skipped = (sum(int(suite.get(key, 0)) for suite in suites for key in keys) for keys in (("tests",), ("failures", "errors"), ("skipped",)))
    return {"passed": tests - failed - skipped, "failed": failed, "skipped": skipped}


def main() -> int:
    counts = read_report(REPORT)
    if counts["failed"] or not counts["passed"]:
        print(f"not recorded: {counts['failed']} tests failed, {counts['passed']} passed", file=sys.stderr)
        return 1
    facts = {
        "date": datetime.fromtimestamp(REPORT.stat().st_mtime, timezone.utc).date().isoformat(),
        "summary": f"{counts['passed']} passed, {counts['skipped']} skipped",
        "python": platform.python_version(),
        "torch": version("torch"),
        "system": platform.system(),
    }
    write_atomic(SUPPORT, json.dumps(facts, indent=1) + "\n")
    print(f"recorded: {facts['summary']} on {facts['date']}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
