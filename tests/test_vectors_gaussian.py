"""Gaussian heatmaps against numbers computed with the official HRNet and mmpose code (tests/data/*.npz)."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.testing import assert_close

from posetutor.codecs.gaussian import GaussianCodec, decode_argmax, decode_quarter_offset, render_gaussian, target_weight, weighted_mse

DATA = Path(__file__).parent / "data"


def load(name):
    with np.load(DATA / f"{name}.npz", allow_pickle=False) as z:
        arrays = {key: z[key] for key in z.files if key != "params"}
        return {k: torch.from_numpy(v) if v.dtype.kind in "fiub" else v for k, v in arrays.items()}, json.loads(z["params"].item())


@pytest.mark.parametrize("sigma", [2, 3])
def test_targets_equal_hrnet(sigma):
    z, params = load("targets_hrnet")
    (width, height), (image_width, _) = params["heatmap_size"], params["image_size"]
    stride = image_width // width
    xy, vis = z["in_joints"][None] / stride, z["in_vis"][None].long()
    maps = render_gaussian(xy, (height, width), float(sigma), rounded="trunc", truncate=3)
    weight = target_weight(xy, vis, (height, width), float(sigma), variant="hrnet")
    labelled = weight[0] > 0  # the official code leaves the maps of the others at zero
    assert_close(weight[0, :, None].float(), z[f"out_gauss_s{sigma}_weight"])
    assert_close(maps[0][labelled].float(), z[f"out_gauss_s{sigma}"][labelled], rtol=0, atol=1e-6)


def test_codec_official_equals_hrnet():
    z, params = load("targets_hrnet")
    width, height = params["image_size"]
    codec = GaussianCodec.official((height, width))
    targets = codec.encode(z["in_joints"][None].float(), z["in_vis"][None].long())
    used = targets.weight[0] > 0
    assert_close(targets.weight[0, :, None], z["out_gauss_s2_weight"])
    assert_close(targets.maps[0][used], z["out_gauss_s2"][used], rtol=0, atol=1e-6)


def test_joint_weights_equal_hrnet():
    z, params = load("targets_hrnet")
    width, height = params["heatmap_size"]
    weight = target_weight(z["in_joints"][None] / 4, z["in_vis"][None].long(), (height, width), 2.0, variant="hrnet", joint_weights=z["in_joint_weight"][:, 0])
    assert_close(weight[0, :, None].float(), z["out_weight_joint"])


def test_quarter_offset_equals_hrnet():
    common, _ = load("decode_common")
    z, _ = load("decode_quarter")
    maps = common["in_heatmaps"].float()
    xy, score = decode_quarter_offset(maps, variant="hrnet")
    assert torch.equal(xy, z["out_quarter_hm"])
    assert torch.equal(score[..., None], z["out_maxval"])
    positive = score > 0
    assert torch.equal(decode_argmax(maps)[0][positive], z["out_argmax"][positive])


def test_quarter_offset_back_to_the_image_equals_hrnet():
    common, params = load("decode_common")
    z, _ = load("decode_quarter")
    xy = decode_quarter_offset(common["in_heatmaps"].float(), variant="hrnet")[0].double()
    half = torch.tensor([params["W"] / 2, params["H"] / 2])
    scale = 200 * common["in_scale"][:, :1].double() / params["W"]
    image = (xy - half) * scale[:, None] + common["in_center"][:, None].double()
    assert_close(image.float(), z["out_quarter_img"], rtol=0, atol=2e-3)


def test_targets_equal_mmpose_msra():
    z, params = load("mm_msra")
    (width, height), sigma = params["heatmap_size"], params["sigma"]
    xy, vis = z["in_joints"] / 4, z["in_vis"].long()
    weight = target_weight(xy, vis, (height, width), sigma, variant="hrnet")
    used = weight[0] > 0
    assert_close(weight, z["out_msra_weight"])
    maps = render_gaussian(xy, (height, width), sigma, rounded="trunc", truncate=3)
    assert_close(maps[0][used], z["out_msra_target"][used], rtol=0, atol=1e-6)


def test_unrounded_targets_equal_mmpose():
    z, params = load("mm_msra")
    (width, height), channels = params["heatmap_size"], [0, 1, 2, 5, 8, 11, 14, 16]
    maps = render_gaussian(z["in_joints"] / 4, (height, width), params["sigma"])[0, channels]
    used = z["out_dark_weight"][0, channels] > 0
    assert_close(maps[used], z["out_dark_target"][used], rtol=0, atol=1e-6)


def test_quarter_offset_equals_mmpose_away_from_the_first_cells():
    common, params = load("decode_common")
    z, _ = load("mm_msra")
    maps = common["in_heatmaps"].float()
    peak, score = decode_argmax(maps)
    xy, _ = decode_quarter_offset(maps, variant="axis")
    same_rule = (score > 0)[..., None] & (peak != 1) & (peak > 0).all(-1, keepdim=True)  # mmpose holds index 1, and both axes at index 0
    assert_close((xy * 4)[same_rule], z["out_msra_decoded"][same_rule], rtol=0, atol=1e-3)
    assert_close(score, z["out_msra_score"])


def test_weighted_mse_equals_hrnet_and_mmpose():
    z, _ = load("loss_heatmap")
    weight = z["in_weight"][..., 0]
    for variant, with_weight, gradient in (("hrnet", "out_mse", "grad_mse"), ("mmpose", "out_mm_mse", "grad_mm_mse")):
        pred = z["in_output"].clone().requires_grad_()
        loss = weighted_mse(pred, z["in_target"], weight, variant=variant)
        loss.backward()
        assert_close(loss.detach(), z[with_weight], rtol=1e-6, atol=0)
        assert_close(pred.grad, z[gradient], rtol=0, atol=1e-6)
    assert_close(weighted_mse(z["in_output"], z["in_target"]), z["out_mse_noweight"], rtol=1e-6, atol=0)
