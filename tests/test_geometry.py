"""Geometry refuses what would cut another crop in silence, and names the argument as the caller wrote it."""

import numpy as np
import pytest
import torch

from posetutor.core import refuses
from posetutor.geometry import crop_from_hm, crop_matrix, flip_maps, flip_points, flip_vis, hm_from_crop, invert, pad_boxes, transform_points, warp_crop

IMAGE = np.random.default_rng(0).integers(0, 256, (40, 50, 3), dtype=np.uint8)
MATRIX = crop_matrix(torch.tensor([[5.0, 6.0, 20.0, 24.0]]), (32, 24), rotation=20.0)[0]


@pytest.mark.parametrize("wrong", [MATRIX.T, torch.tensor([[1.0, 0, 0], [0, 1, 0], [0.1, 0, 1]]), torch.diag(torch.tensor([1.0, 1.0, 0.0]))], ids=["transposed", "perspective", "last row 0"])
def test_only_affine_maps_cut_and_move(wrong):
    for call in (lambda: warp_crop(IMAGE, wrong, (32, 24)), lambda: invert(wrong), lambda: transform_points(wrong, torch.zeros(2, 2))):
        refuses(call, contains="matrix must have the last row 0, 0, 1")


def test_a_view_of_the_image_is_cut_like_its_copy():
    view = IMAGE[::2, ::-1]
    assert np.array_equal(warp_crop(view, MATRIX, (32, 24)), warp_crop(view.copy(), MATRIX, (32, 24)))


def test_sizes_are_named_as_the_caller_named_them():
    for call, name in ((hm_from_crop, "size_hm"), (crop_from_hm, "size_hm")):
        refuses(lambda call=call: call(torch.zeros(1, 2), (256, 192), (64, 1)), contains=f"{name} must be (H, W)")
    refuses(lambda: crop_from_hm(torch.zeros(1, 2), (256, 1), (64, 48)), contains="size_crop must be (H, W)")


@pytest.mark.parametrize("index", [None, "abc", [[0, 1], [2]]])
def test_a_flip_index_of_another_kind(index):
    for call in (lambda: flip_points(torch.zeros(1, 3, 2), 10, index), lambda: flip_vis(torch.zeros(1, 3), index), lambda: flip_maps(torch.zeros(1, 3, 4, 4), index)):
        refuses(call, contains="flip_index must be 3 joint numbers")


def test_texts_are_no_numbers():
    refuses(lambda: pad_boxes(torch.ones(1, 4), "0.75"), contains="aspect must be a positive finite number, got '0.75'")
    refuses(lambda: crop_matrix(torch.ones(2, 4), (8, 8), rotation="45"), contains="rotation must be a number or (2,)")


def test_one_joint_and_nobody():
    assert flip_points(torch.tensor([[[2.0, 3.0]]]), 10, (0,)).tolist() == [[[7.0, 3.0]]]
    assert flip_points(torch.zeros(0, 3, 2), 10, (0, 2, 1)).shape == (0, 3, 2) and crop_matrix(torch.zeros(0, 4), (8, 8)).shape == (0, 3, 3)
