"""What a reader sees in the stored notebooks: parts of a chapter, sizes, outputs, alternative texts."""

import json
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
CHAPTERS = sorted((ROOT / "nbs").rglob("[0-9]*_*.ipynb"))
ALT = re.compile(r'<img[^>]*\balt="([^"]*)"')


def cells(path, kind):
    return [c for c in json.loads(path.read_text(encoding="utf-8"))["cells"] if c["cell_type"] == kind]


def text(source):
    return source if isinstance(source, str) else "".join(source)


def outputs(path):
    return [(n, o) for n, c in enumerate(cells(path, "code")) for o in c["outputs"]]


def test_all_chapters_of_the_first_slice_are_there():
    numbers = [int(p.name[:2]) for p in CHAPTERS]
    assert numbers == sorted(set(numbers))
    assert set(numbers) >= {0, 1, 2, 10, 11, 12, 13, 14, 15, 20, 21, 30, 31, 41, 50, 64}


@pytest.mark.parametrize("path", CHAPTERS, ids=lambda p: p.stem)
class TestChapter:
    def test_anatomy(self, path):
        markdown = [text(c["source"]) for c in cells(path, "markdown")]
        joined = "\n".join(markdown)
        assert re.match(r"# .+\n+> .+", markdown[0]), "a title, then one > sentence"
        for part in ("claim", "exercises", "summary"):
            assert re.search(rf"^#+ .*{part}", joined, re.IGNORECASE | re.MULTILINE), f"no section on {part}"
        assert len(joined.split()) >= 800
        assert joined.count("<details>") >= 3, "each exercise has hints in <details>"
        code = "\n".join(text(c["source"]) for c in cells(path, "code"))
        assert code.count("### BEGIN SOLUTION") == code.count("### END SOLUTION") >= 2
        assert "claim(" in code, "the claim is measured and asserted"

    def test_outputs_are_stored_short_and_without_errors(self, path):
        stored = outputs(path)
        assert any("image/png" in o.get("data", {}) for _, o in stored), "no stored picture"
        assert not [n for n, o in stored if o["output_type"] == "error"]
        for number, cell in enumerate(cells(path, "code")):
            lines = sum(text(o["text"]).count("\n") for o in cell["outputs"] if o["output_type"] == "stream")
            assert lines <= 20, f"code cell {number} prints {lines} lines"

    def test_size(self, path):
        assert path.stat().st_size < 600_000

    def test_pictures_have_alternative_texts(self, path):
        for number, output in outputs(path):
            data = output.get("data", {})
            if "image/png" in data or "image/jpeg" in data:
                alts = ALT.findall(text(data.get("text/html", "")))
                assert alts and all(len(alt) >= 20 for alt in alts), f"code cell {number}: a picture without alternative text"

    def test_no_widget_metadata_without_state(self, path):
        widgets = json.loads(path.read_text(encoding="utf-8"))["metadata"].get("widgets", {})
        assert all("state" in value for value in widgets.values())

    def test_no_absolute_path_is_stored(self, path):
        assert not re.search(r"(?<![\w.])/(?:root|home|work|tmp)/\w", path.read_text(encoding="utf-8"))


def test_readme_is_the_index():
    import sys

    sys.path.insert(0, str(ROOT / "course"))
    from readme import readme_text

    assert (ROOT / "README.md").read_text(encoding="utf-8") == readme_text(), "run `make readme`"


def test_links_of_the_readme_lead_somewhere():
    for target in re.findall(r"\]\((?!https?:|#)([^)]+)\)", (ROOT / "README.md").read_text(encoding="utf-8")):
        assert (ROOT / target).exists(), target
