"""Pictures of poses and maps: every precision that a network hands over, and settings that would draw nonsense."""

import numpy as np
import pytest
import torch
from torch.testing import assert_close

from posetutor.core import refuses
from posetutor.skeletons import COCO_17
from posetutor.viz import CYCLE, GROUPS, draw_marks, draw_pose, heatmap_rgb, mark, new_axes, overlay_heatmap, palette_png, plot_skeleton

GROUND = np.full((60, 50, 3), 128, np.uint8)
POINTS = torch.arange(34, dtype=torch.float32).view(17, 2) + 5


def luminance(color):
    c = np.array([int(color[n : n + 2], 16) for n in (1, 3, 5)]) / 255
    return np.where(c <= 0.04045, c / 12.92, ((c + 0.055) / 1.055) ** 2.4) @ [0.2126, 0.7152, 0.0722]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_precisions_of_a_network_are_drawn_alike(dtype):
    """numpy has no bfloat16: the maps of a mixed-precision network were refused with a TypeError."""
    maps = torch.eye(6)
    assert (heatmap_rgb(maps.to(dtype)) == heatmap_rgb(maps)).all()
    assert (overlay_heatmap(GROUND, maps.to(dtype)) == overlay_heatmap(GROUND, maps)).all()
    assert (draw_pose(GROUND, POINTS.to(dtype), torch.ones(17, dtype=dtype), COCO_17) == draw_pose(GROUND, POINTS, torch.ones(17), COCO_17)).all()
    assert (draw_marks(GROUND, POINTS.to(dtype), "truth") == draw_marks(GROUND, POINTS, "truth")).all()
    _, ax = new_axes()
    plot_skeleton(ax, POINTS.to(dtype), torch.ones(17, dtype=dtype), COCO_17)
    assert_close(torch.as_tensor(mark(ax, POINTS.to(dtype), "estimate").get_offsets().data).float(), POINTS)


def test_lists_of_whole_numbers_are_points():
    assert (draw_marks(GROUND, [15, 10], "truth") == draw_marks(GROUND, (15.0, 10.0), "truth")).all()


@pytest.mark.parametrize("settings", [dict(alpha=1.5), dict(alpha=-0.1), dict(alpha=float("nan")), dict(thickness=0), dict(thickness=-3), dict(thickness=float("nan")), dict(thickness=float("inf"))])
def test_impossible_settings_of_a_drawn_pose_are_refused(settings):
    refuses(lambda: draw_pose(GROUND, POINTS, torch.ones(17), COCO_17, **settings), contains="alpha must be between 0 and 1 and thickness positive")


def test_every_line_colour_reaches_three_to_one_on_white():
    assert min(1.05 / (luminance(color) + 0.05) for color in (*CYCLE, *GROUPS)) >= 3


def test_palettes_have_16_to_256_colours():
    for colors in (2, 1000):
        refuses(lambda colors=colors: palette_png(GROUND, colors=colors), contains="colors must be between 16 and 256")
