"""Geometry against the official implementations of HRNet, UDP and mmpose (arrays described in tests/data)."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.testing import assert_close

from posetutor import geometry as g

DATA = Path(__file__).parent / "data"
MATRIX_ATOL, POINT_ATOL = 2e-3, 1e-3  # the official matrices are solved from float32 points, a few hundred px away


def load(name: str) -> tuple[dict, dict]:
    with np.load(DATA / f"{name}.npz", allow_pickle=False) as file:
        arrays = {key: file[key] for key in file.files}
    return arrays, json.loads(arrays.pop("params").item())


@pytest.fixture(scope="module")
def transforms() -> tuple[dict, dict]:
    return load("transforms")


@pytest.fixture(scope="module")
def flips() -> tuple[dict, dict]:
    return load("flips")


def window(center: np.ndarray, scale: np.ndarray, pixel_std: float = 200.0) -> torch.Tensor:
    """HRNet's centre and scale as one box (1, 4) x, y, w, h."""
    side = scale.astype(np.float64) * pixel_std
    return torch.tensor(np.concatenate([center - side / 2, side]))[None]


def cases(arrays: dict):
    for row in range(len(arrays["in_center"])):
        width, height = (int(v) for v in arrays["in_output_size"][row])
        yield row, window(arrays["in_center"][row], arrays["in_scale"][row]), (height, width), float(arrays["in_rot"][row])


def test_biased_matrix_and_points_equal_hrnet(transforms):
    arrays, _ = transforms
    for row, box, size, rotation in cases(arrays):
        matrix = g.crop_matrix(box, size, rotation=rotation, mapping="biased")
        assert_close(matrix[0, :2].numpy(), arrays["out_hrnet_fwd"][row], atol=MATRIX_ATOL, rtol=0)
        assert_close(g.invert(matrix)[0, :2].numpy(), arrays["out_hrnet_inv"][row], atol=MATRIX_ATOL, rtol=0)
        points = g.transform_points(matrix, torch.tensor(arrays["in_points"][row])[None])
        assert_close(points[0].numpy(), arrays["out_hrnet_points"][row], atol=POINT_ATOL, rtol=0)
        assert_close(matrix[0, :2].numpy(), arrays["out_mm_warp"][row], atol=MATRIX_ATOL, rtol=0)


def test_unit_points_equal_udp_when_the_angle_changes_sign(transforms):
    arrays, _ = transforms
    for row, box, size, rotation in cases(arrays):
        matrix = g.crop_matrix(box, size, rotation=-rotation, mapping="unit")
        ours = g.transform_points(matrix, torch.tensor(arrays["in_points"][row])[None])[0].numpy()
        official = arrays["out_udp_points"][row]
        assert_close(ours, official, atol=POINT_ATOL, rtol=0)  # also the last row, a window of another aspect
        assert_close(g.invert(matrix)[0, :2].numpy(), arrays["out_udp_warp_dst2src"][row].astype(float), atol=MATRIX_ATOL, rtol=1e-6)


def test_rotation_signs_of_hrnet_and_udp_are_opposite(transforms):
    arrays, _ = transforms
    turned = [case for case in cases(arrays) if abs(case[3]) > 1]
    assert turned
    for row, box, size, rotation in turned:
        same = g.transform_points(g.crop_matrix(box, size, rotation=rotation), torch.tensor(arrays["in_points"][row])[None])
        assert np.abs(same[0].numpy() - arrays["out_udp_points"][row]).max() > 1


def test_way_back_from_heatmaps(transforms):
    arrays, _ = transforms
    for row, box, size, _ in cases(arrays):
        points = torch.tensor(arrays["in_hm_points"][row])[None]
        for mapping, name in (("biased", "out_hrnet_transform_preds"), ("unit", "out_udp_transform_preds")):
            back = g.transform_points(g.invert(g.crop_matrix(box, size, mapping=mapping)), points)
            assert_close(back[0].numpy(), arrays[name][row], atol=POINT_ATOL, rtol=0)


def test_padded_boxes_equal_hrnet(transforms):
    arrays, params = transforms
    boxes = torch.tensor(arrays["in_boxes"])
    centre = boxes[:, :2] + boxes[:, 2:] / 2
    ours = g.pad_boxes(boxes, params["aspect"], 1.25)
    plain = g.pad_boxes(boxes, params["aspect"], 1.0)
    quirk = torch.isclose(centre[:, :1], torch.tensor(-1.0, dtype=centre.dtype))  # their code skips the padding there
    expected = torch.tensor(arrays["out_cs_scale"].astype(float)) * params["pixel_std"]
    assert quirk.sum() == 1
    assert_close(torch.where(quirk, plain[:, 2:], ours[:, 2:]), expected, atol=POINT_ATOL, rtol=0)
    assert_close(ours[:, :2] + ours[:, 2:] / 2, torch.tensor(arrays["out_cs_center"].astype(float)), atol=POINT_ATOL, rtol=0)


@pytest.mark.parametrize("mapping, sign, name", [("biased", 1, "hrnet"), ("unit", -1, "udp")])
def test_warped_image(transforms, mapping, sign, name):
    arrays, params = transforms
    cx, cy, sw, sh, rotation, width, height = arrays["in_warp_params"]
    box = window(np.array([cx, cy]), np.array([sw, sh]), params["pixel_std"])
    matrix = g.crop_matrix(box, (int(height), int(width)), rotation=sign * float(rotation), mapping=mapping)[0]
    crop = g.warp_crop(arrays["in_img"], matrix, (int(height), int(width)))
    assert np.abs(crop.astype(int) - arrays[f"out_warp_{name}"]).max() <= 1
    assert np.abs(crop - arrays[f"out_warp_{name}_exact"]).max() <= 0.51 + 2e-3 * 255


def test_flipped_maps_and_points_are_exact(flips):
    arrays, params = flips
    index, width = tuple(params["flip_index"]), params["image_width"]
    maps = torch.tensor(arrays["in_heatmaps"])
    for shift, names in ((0, ("out_flip_back", "out_mm_heatmap")), (1, ("out_flip_back_shift", "out_mm_heatmap_shift"))):
        for name in names:
            assert torch.equal(g.flip_maps(maps, index, shift=shift), torch.tensor(arrays[name]))
    vis = torch.tensor(arrays["in_vis"][None, :, 0])
    assert torch.equal(g.flip_vis(vis, index)[0], torch.tensor(arrays["out_vis"][:, 0]))
    flipped = g.flip_points(torch.tensor(arrays["in_joints"][None, :, :2]), width, index)[0]
    official = torch.tensor(arrays["out_joints"][:, :2])
    labelled = torch.tensor(arrays["out_vis"][:, 0]) > 0  # the official code moves the others to (0, 0)
    assert torch.equal(flipped[labelled], official[labelled])


def test_normalised_flips(flips):
    arrays, params = flips
    width, index = params["image_width"], tuple(params["flip_index"])
    size = (width, width)
    unit = torch.tensor(arrays["in_norm_coords"])
    plain = g.flip_points(unit * width, width, index) / width  # x / w frame: mirroring costs the shift 1 / w
    assert_close(plain[..., 0], torch.tensor(arrays["out_mm_coords_shift"])[..., 0], atol=1e-12, rtol=0)
    edges = g.to_unit(g.flip_points(g.from_unit(2 * unit - 1, size), width, index), size)  # edges frame: 1 - x exactly
    assert_close((edges[..., 0] + 1) / 2, torch.tensor(arrays["out_mm_coords"])[..., 0], atol=1e-12, rtol=0)


def test_box_iou(flips):
    arrays, _ = load("box_iou")
    a, b = (torch.tensor(arrays[f"in_box{n}"]).double() for n in (1, 2))
    corner = [torch.cat([c[:, :2] - c[:, 2:] / 2, c[:, 2:]], dim=-1) for c in (a, b)]
    assert_close(g.box_iou(*corner).diagonal(), torch.tensor(arrays["out_iou"]).double(), atol=1e-5, rtol=0)
