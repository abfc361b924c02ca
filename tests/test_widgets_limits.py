"""What live pictures and their computing functions refuse, and how the printed twin is laid out and captioned."""

import ipywidgets
import numpy as np
import pytest

from posetutor import widgets
from posetutor.data.figures import draw_crop


def grey(side, shade, kind, dotted):
    """A square of a side that changes from setting to setting."""
    return np.full((side, side + 200, 3), shade, np.uint8), "a square"


@pytest.fixture
def lab():
    controls = {
        "side": ipywidgets.IntSlider(value=8, min=4, max=40, description="size (px)"),
        "shade": ipywidgets.FloatSlider(value=40, min=0, max=255),
        "kind": ipywidgets.SelectionSlider(options=[("one", 1), ("two or more", 2)], value=2, description="how many"),
        "dotted": ipywidgets.Checkbox(value=False, description="dotted"),
    }
    return widgets.LivePicture(controls, grey, "A grey square whose size follows a slider", photo=False)


@pytest.mark.parametrize(
    "name, value, words",
    [("side", 12, "size (px) 12"), ("shade", 2.50, "shade 2.5"), ("kind", 2, "how many two or more"), ("dotted", True, "dotted on"), ("dotted", False, "dotted off")],
)
def test_captions_speak_as_the_controls_do(lab, name, value, words):
    assert widgets._caption(lab.controls[name], name, value) == words


@pytest.mark.parametrize("columns, rows", [(1, 3), (2, 2), (3, 1), (5, 1)])
def test_twins_hold_pictures_of_different_sizes(lab, columns, rows):
    sheet = widgets.static_twin(lab, [{"side": 8}, {"side": 20}, {"side": 40, "kind": 1}], columns=columns, show=False)
    assert sheet.shape == (rows * (26 + 40 + 8), columns * (240 + 8), 3) and sheet.dtype == np.uint8


@pytest.mark.parametrize("columns", [0, -1, 1.5, None])
def test_columns_are_counted(lab, columns):
    with pytest.raises(ValueError, match="columns must be a whole number"):
        widgets.static_twin(lab, [{"side": 8}] * 3, columns=columns, show=False)


@pytest.mark.parametrize("stride", [0, -4, 100])
def test_strides_leave_a_map(stride):
    with pytest.raises(ValueError, match="stride must be at least 1 and leave a map"):
        widgets.compute_crop(draw_crop(3, size=(160, 120)), stride=stride)
    with pytest.raises(ValueError, match="stride must be at least 1 and leave a map"):
        widgets.compute_heatmap((9.0, 9.0), size=(160, 120), stride=stride)


def test_a_crop_of_one_cell_has_no_ruler():
    with pytest.raises(ValueError, match="2 x 2 cells"):
        widgets.compute_heatmap((1.0, 1.0), size=(4, 4))


@pytest.mark.parametrize("options", [{"points": 0}, {"trials": 0, "noise": 0.1}])
def test_means_need_places(options):
    with pytest.raises(ValueError, match="points and trials must be at least 1"):
        widgets.compute_errors(**options)
