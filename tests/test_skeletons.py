"""A skeleton, a record or a remap that is not what was meant is refused where it is built, not where it is used."""

import numpy as np
import pytest
import torch

from posetutor.core import refuses
from posetutor.skeletons import COCO_17, LSP_14, MPII_16, Poses, Record, Skeleton, estimate_sigmas, remap

GOOD = dict(name="clip", names=("left_tip", "right_tip", "hinge"), limbs=((0, 2), (1, 2)), flip_pairs=(("left_tip", "right_tip"),), sigmas=(0.05, 0.05, 0.03))


@pytest.mark.parametrize(
    "change, said",
    [
        (dict(names="abc"), "names must be a tuple of joint names"),
        (dict(limbs=((0, 1, 2),)), "limbs must be pairs of joint indices"),
        (dict(limbs=((0.5, 2),)), "limbs must be pairs of joint indices: 0.5 is no whole number"),
        (dict(limbs=((float("inf"), 2),)), "limbs must be pairs of joint indices"),
        (dict(flip_pairs=(("left_tip",),)), "flip_pairs must be pairs of joint names"),
        (dict(sigmas=("wide", 1, 1)), "sigmas must be numbers"),
        (dict(weights=(None, 1, 1)), "weights must be numbers"),
        (dict(upper=(0.5,)), "upper must be joint indices"),
    ],
)
def test_skeleton_names_the_field(change, said):
    refuses(lambda: Skeleton(**{**GOOD, **change}), contains=said)


def test_whole_numbers_that_a_file_writes_as_floats():
    assert Skeleton(**{**GOOD, "limbs": ((0.0, 2.0),), "upper": (np.int64(1), 2.0)}).limbs == ((0, 2),)
    assert Record(None, None, 1, (24.0, np.int32(36)), [], [], []).size == (24, 36)


@pytest.mark.parametrize("size", [(24,), (24, 36, 3), (24.5, 36), (0, 36), None, "ab"])
def test_record_size(size):
    refuses(lambda: Record(None, None, 1, size, [], [], []), contains="size must be (H, W) in whole px")


def test_remap_loses_no_joint_by_a_typing_error():
    xy, vis = np.ones((2, LSP_14.K, 2)), np.full((2, LSP_14.K), 2)
    neck = MPII_16.names.index("upper_neck")
    assert (remap(xy, vis, LSP_14, MPII_16, alias={"upper_neck": "neck"})[1][:, neck] == 2).all()
    refuses(lambda: remap(xy, vis, LSP_14, MPII_16, alias={"uper_neck": "neck"}), contains="got 'uper_neck', which is no such joint")
    refuses(lambda: remap(xy, vis, LSP_14, MPII_16, alias={"upper_neck": "nek"}), contains="got 'nek', which is no such joint")
    refuses(lambda: remap(xy, torch.tensor(vis), LSP_14, COCO_17), contains="got ndarray and Tensor")
    refuses(lambda: remap(xy.tolist(), vis.tolist(), LSP_14, COCO_17), contains="got list and list")


@pytest.mark.parametrize("area", [0.0, -1.0, np.inf, np.nan])
def test_areas_of_people_are_positive_and_finite(area):
    refuses(lambda: estimate_sigmas(np.zeros((2, 3, 4, 2)), np.array([1.0, area, 1.0])), contains="for person 1")


def test_one_joint():
    one = Skeleton("one", ("tip",), (), (), (0.1,))
    assert one.flip_index == (0,) and one.K == 1
    poses = Poses(np.zeros((2, 4)), np.ones((2, 1, 2)), np.ones((2, 1)), [0.2, 0.4], one)
    assert len(poses.to_coco(3)[1]["keypoints"]) == 3 and len(poses.select(poses.scores > 0.3)) == 1
