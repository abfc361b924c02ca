"""Photographs in stored outputs: only those whose licence allows it, each named in NOTICE with its licence."""

import json
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
NOTICE = (ROOT / "NOTICE").read_text(encoding="utf-8")
LISTED = dict(re.findall(r"^- COCO (\d+), (CC BY|CC BY-SA), Flickr \d+$", NOTICE, re.MULTILINE))
NOTEBOOKS = sorted(p for p in (ROOT / "nbs").rglob("*.ipynb") if not any(part.startswith((".", "_")) for part in p.relative_to(ROOT / "nbs").parts))
READS_PHOTOGRAPHS = re.compile(r"local_set\(|CocoKeypoints\(folder / \"coco_mini\"|real\[")
SHOWS_PICTURES = re.compile(r"\.load\(\)|photo_sheet\(|picture\(")


def code_cells(path: Path) -> list[dict]:
    return [c for c in json.loads(path.read_text(encoding="utf-8"))["cells"] if c["cell_type"] == "code"]


def printed(cell: dict) -> str:
    return "".join("".join(o.get("text", "")) for o in cell["outputs"] if o["output_type"] == "stream")


def has_picture(cell: dict) -> bool:
    return any("image/png" in o.get("data", {}) for o in cell["outputs"])


def test_notice_lists_photographs() -> None:
    assert len(LISTED) >= 5


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: p.stem)
def test_every_photograph_shown_is_listed(path: Path) -> None:
    for number, cell in enumerate(code_cells(path)):
        for image, licence in re.findall(r"COCO (\d+) \(([^)]+)\)", printed(cell)):
            assert LISTED.get(image) == licence, f"{path.name}, code cell {number}: COCO {image} ({licence}) is shown but not listed so in NOTICE"


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: p.stem)
def test_pictures_of_photographs_name_them(path: Path) -> None:
    for number, cell in enumerate(code_cells(path)):
        source = "".join(cell["source"])
        if has_picture(cell) and READS_PHOTOGRAPHS.search(source) and SHOWS_PICTURES.search(source):
            assert "shareable(" in source, f"{path.name}, code cell {number}: shows photographs without choosing by licence (posetutor.data.coco.shareable)"
            drawn_only = "skipped" in printed(cell)
            assert drawn_only or "photographs: COCO" in printed(cell), f"{path.name}, code cell {number}: names no photograph and licence"
