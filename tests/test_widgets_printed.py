"""What a reader without a kernel has of the widgets: a stored picture of each, and a printed twin of at least three settings, in safe colours."""

import itertools
import json
import re
from pathlib import Path

import numpy as np
import pytest

from posetutor import widgets
from posetutor.viz import LEFT, RIGHT

ROOT = Path(__file__).resolve().parent.parent
# Machado, Oliveira and Fernandes 2009, severity 1, on linear RGB.
EYES = {
    "protanopia": [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998]],
    "deuteranopia": [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.011820, 0.042940, 0.968881]],
    "tritanopia": [[1.255528, -0.076749, -0.178779], [-0.078411, 0.930809, 0.147602], [0.004733, 0.691367, 0.303900]],
}
TO_XYZ = np.array([[0.4124564, 0.3575761, 0.1804375], [0.2126729, 0.7151522, 0.0721750], [0.0193339, 0.1191920, 0.9503041]])


def tagged(path: Path) -> list[dict]:
    """The code cells that show a live picture or its twin."""
    cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
    return [c for c in cells if c["cell_type"] == "code" and {"widget", "twin"} & set(c["metadata"].get("tags", []))]


CHAPTERS = [path for path in sorted((ROOT / "nbs").rglob("[0-9]*_*.ipynb")) if tagged(path)]


def html_of(cell: dict) -> str:
    return "".join("".join(output.get("data", {}).get("text/html", "")) for output in cell["outputs"])


def test_the_chapters_with_widgets_are_known():
    assert {path.stem for path in CHAPTERS} >= {"00_quickstart", "64_widgets"}


@pytest.mark.parametrize("path", CHAPTERS, ids=lambda path: path.stem)
def test_stored_widgets_are_pictures_and_have_twins(path):
    cells = tagged(path)
    live = [c for c in cells if "widget" in c["metadata"]["tags"]]
    twins = [c for c in cells if "twin" in c["metadata"]["tags"]]
    pictures = [c for c in live if "Quiz(" not in "".join(c["source"])]
    assert len(twins) >= len(live) - len([c for c in live if c in twins]), "a widget without a twin"
    for cell in pictures:
        assert any("image/png" in output.get("data", {}) for output in cell["outputs"]), f"cell {cell['id']}: no stored picture"
        assert not any("widget-view" in kind for output in cell["outputs"] for kind in output.get("data", {})), f"cell {cell['id']}: a view that is dead without its kernel"
    for cell in twins:
        html = html_of(cell)
        settings = re.search(r"Static twin at (\d+) settings", html)
        assert "<details>" in html or (settings and int(settings[1]) >= 3), f"cell {cell['id']}: a twin shows at least three settings"


def lab_color(color, eye) -> np.ndarray:
    """CIE Lab of an sRGB colour (hex, or 0..255) as an eye sees it."""
    rgb = np.array([int(color[n : n + 2], 16) for n in (1, 3, 5)] if isinstance(color, str) else color) / 255
    linear = np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)
    ratio = TO_XYZ @ np.clip(np.array(eye) @ linear, 0, 1) / TO_XYZ.sum(axis=1)
    f = np.where(ratio > (6 / 29) ** 3, np.cbrt(ratio), ratio * (29 / 6) ** 2 / 3 + 4 / 29)
    return np.array([116 * f[1] - 16, 500 * (f[0] - f[1]), 200 * (f[1] - f[2])])


@pytest.mark.parametrize("eye", EYES)
def test_colours_of_the_widgets_stay_apart(eye):
    """Ten times the just noticeable difference of 2.3, for curves as for left and right; red and green would fail."""

    def apart(one, two):
        return np.linalg.norm(lab_color(one, EYES[eye]) - lab_color(two, EYES[eye]))

    for one, two in [*itertools.combinations(widgets.CURVE_COLORS.values(), 2), (LEFT, RIGHT)]:
        assert apart(one, two) > 23
    assert eye == "tritanopia" or apart("#55a868", "#c44e52") < apart(LEFT, RIGHT)  # the usual green and red of plots
