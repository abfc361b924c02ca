"""The line of the last green run comes from a real test report, and a red one is never recorded."""

import importlib.util
import json
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
spec = importlib.util.spec_from_file_location("support", ROOT / "course" / "support.py")
support = importlib.util.module_from_spec(spec)
spec.loader.exec_module(support)


@pytest.fixture
def report(tmp_path, monkeypatch):
    """A function that writes a report, with the tool pointed at it."""
    monkeypatch.setattr(support, "REPORT", tmp_path / "tests.xml")
    monkeypatch.setattr(support, "SUPPORT", tmp_path / "support.json")
    return lambda **counts: support.REPORT.write_text(
        "<testsuites><testsuite name='pytest' " + " ".join(f'{k}="{v}"' for k, v in counts.items()) + "></testsuite></testsuites>"
    )


def test_green_run_is_recorded(report):
    report(tests=12, failures=0, errors=0, skipped=2)
    assert support.main() == 0
    facts = json.loads(support.SUPPORT.read_text())
    assert facts["summary"] == "10 passed, 2 skipped" and set(facts) == {"date", "summary", "python", "torch", "system"}


@pytest.mark.parametrize("counts", [{"failures": 1, "errors": 0}, {"failures": 0, "errors": 1}])
def test_red_run_is_refused(report, counts):
    report(tests=12, skipped=0, **counts)
    assert support.main() == 1 and not support.SUPPORT.exists()


def test_missing_report_is_named(report):
    with pytest.raises(FileNotFoundError, match="run `make test` first"):
        support.main()
