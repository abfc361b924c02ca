"""UDP's Gaussian and combined codes against numbers computed with the official UDP code and both generations of mmpose (tests/data/*.npz)."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.testing import assert_close

from posetutor.codecs.udp import CombinedCodec, UDPCodec, average_flipped, combined_loss, decode_combined, decode_udp, flip_combined, render_combined, shift_maps
from posetutor.geometry import flip_maps, hm_from_crop

DATA = Path(__file__).parent / "data"


def load(name):
    with np.load(DATA / f"{name}.npz", allow_pickle=False) as z:
        arrays = {key: z[key] for key in z.files if key != "params"}
        return {k: torch.from_numpy(v) if v.dtype.kind in "fiub" else v for k, v in arrays.items()}, json.loads(z["params"].item())


def to_image(xy_hm, common, params):
    """UDP's way back: x S / (W - 1) + c - S / 2, per axis."""
    box = 200 * common["in_scale"][:, None].double()
    cells = torch.tensor([params["W"] - 1, params["H"] - 1], dtype=torch.float64)
    return xy_hm.double() * box / cells + common["in_center"][:, None].double() - box / 2


def edge_to_edge(xy_hm, params):
    """mmpose's input px: x w / (W - 1)."""
    cells, pixels = (torch.tensor(params[key], dtype=torch.float64) for key in ("heatmap_size", "input_size"))
    return xy_hm.double() / (cells - 1) * pixels


def test_gaussian_decoder_equals_the_official_code():
    common, _ = load("decode_common")
    z, params = load("decode_udp")
    xy, _ = decode_udp(common["in_heatmaps"].float(), variant="official", kernel=params["orig_blur_kernel"])
    good = ~z["flag_gauss_orig_ill"]
    assert good.sum() >= 30
    assert_close(xy[good].double(), z["out_gauss_orig_hm"][good], rtol=0, atol=1e-5)
    assert_close(to_image(xy, common, params)[good], z["out_gauss_orig_img"][good], rtol=0, atol=1e-3)


def test_gaussian_decoder_equals_the_fork():
    common, _ = load("decode_common")
    z, params = load("decode_udp")
    xy, score = decode_udp(common["in_heatmaps"].float(), variant="mmpose0", kernel=params["fork_kernel"])
    good = ~z["flag_gauss_fork_ill"]
    assert bool((score[good] > 0).all()) and good.sum() >= 30
    assert_close(to_image(xy, common, params)[good].float(), z["out_gauss_fork_img"][good], rtol=0, atol=2e-3)


def test_gaussian_decoder_equals_mmpose():
    common, _ = load("decode_common")
    z, params = load("mm_udp")
    xy, score = decode_udp(common["in_heatmaps"].float(), variant="mmpose", kernel=params["blur_kernel"])
    good = ~z["flag_gauss_ill"]
    assert_close(edge_to_edge(xy, params)[good], z["out_gauss_decoded"][good], rtol=0, atol=5e-3)
    assert torch.equal(score, z["out_gauss_score"])


def test_guarded_decoder_stays_near_the_official_one_on_ordinary_peaks():
    common, _ = load("decode_common")
    z, _ = load("decode_udp")
    ordinary = torch.tensor([name.startswith(("clean", "noisy")) for name in common["channel_case"]])
    assert ordinary.sum() >= 2
    xy, _ = decode_udp(common["in_heatmaps"].float())
    assert_close(xy[:, ordinary].double(), z["out_gauss_orig_hm"][:, ordinary], rtol=0, atol=0.15)


@pytest.mark.parametrize(("variant", "radius"), [("official", 4.0), ("mmpose0", 3.5), ("mmpose", 3.5)])
def test_combined_decoders_equal_the_published_codes(variant, radius):
    common, _ = load("decode_common")
    z, params = load("decode_udp")
    mm, mm_params = load("mm_udp")
    assert radius == (params["kpd"] if variant == "official" else params["fork_radius_factor"] * params["H"])
    xy, score = decode_combined(z["in_combined"].float(), radius, variant=variant)
    if variant == "official":
        assert_close(xy, z["out_offset_orig_hm"], rtol=0, atol=2e-4)
        assert_close(to_image(xy, common, params).float(), z["out_offset_orig_img"], rtol=0, atol=2e-2)
        assert_close(score[..., None].clamp(min=0), z["out_offset_orig_score"].clamp(min=0), rtol=0, atol=1e-6)
        return
    wanted, given = (z["out_offset_fork_score"][..., 0], to_image(xy, common, params)) if variant == "mmpose0" else (mm["out_combined_score"], edge_to_edge(xy, mm_params))
    truth = z["out_offset_fork_img"].double() if variant == "mmpose0" else mm["out_combined_decoded"]
    assert_close(score, wanted, rtol=0, atol=1e-6)
    assert_close(given[wanted > 0], truth[wanted > 0], rtol=0, atol=5e-3)


def test_gaussian_targets_equal_the_official_code():
    z, params = load("targets_udp")
    codec = UDPCodec.official(tuple(params["image_size"][::-1]), float(params["sigma"]))
    targets = codec.encode(z["in_joints"][None].float(), z["in_vis"][None].long())
    used = targets.weight[0] > 0
    assert_close(targets.weight[0, :, None], z["out_gauss_weight"])
    assert_close(targets.maps[0][used], z["out_gauss"][used], rtol=0, atol=1e-6)


@pytest.mark.parametrize(("codec", "maps", "weight"), [(CombinedCodec.official(), "out_offset", "out_offset_weight"), (CombinedCodec(variant="mmpose0"), "out_combined_fork", "out_combined_fork_weight")])
def test_combined_targets_equal_the_official_codes(codec, maps, weight):
    z, _ = load("targets_udp")
    targets = codec.encode(z["in_joints"][None].float(), z["in_vis"][None].long())
    assert_close(targets.weight[0, :, None], z[weight].float())  # 1 for labelled joints outside the map too
    labelled = (targets.weight[0] > 0).repeat_interleave(3)
    assert_close(targets.maps[0][labelled], z[maps][labelled], rtol=0, atol=1e-6)


def test_unmasked_combined_targets_equal_mmpose():
    z, params = load("mm_udp")
    (columns, rows), (width, height) = params["heatmap_size"], params["input_size"]
    xy = hm_from_crop(z["in_joints"].double(), (height, width), (rows, columns))
    maps = render_combined(xy, (rows, columns), params["radius_factor"] * max(rows, columns), masked=False)[0].float()
    assert_close(maps[:15], z["out_combined_target"], rtol=0, atol=2e-6)  # mmpose holds the centre in float32, 4e-6 cells apart
    shown = (z["in_vis"][0, 12:] > 0).nonzero()[:, 0]
    assert_close(maps[::3][12:][shown], z["out_combined_class_border"][shown], rtol=0, atol=1e-6)


def test_gaussian_targets_equal_mmpose():
    z, params = load("mm_udp")
    codec = UDPCodec.official(tuple(params["input_size"][::-1]), params["sigma"])
    targets = codec.encode(z["in_joints"].double(), z["in_vis"].long())
    used = targets.weight[0] > 0
    assert_close(targets.weight.float(), z["out_gauss_weight"])
    assert_close(targets.maps[0][used].float(), z["out_gauss_target"][used], rtol=0, atol=2e-6)


def test_losses_equal_the_official_code_and_mmpose():
    z, _ = load("loss_udp")
    weight = z["in_weight"][..., 0]
    pred, target = z["in_output"], z["in_target"]
    assert_close(combined_loss(pred, target, weight), z["out_mse_offset_hm"] + z["out_mse_offset_off"], rtol=1e-6, atol=0)
    assert_close(combined_loss(pred, target, weight, variant="mmpose"), z["out_mm"], rtol=1e-6, atol=0)
    assert_close(combined_loss(pred, target, weight, variant="mmpose"), z["out_fork"], rtol=1e-6, atol=0)
    assert_close(combined_loss(pred, target, variant="mmpose"), z["out_fork_noweight"], rtol=1e-6, atol=0)


def test_flips_equal_the_official_code():
    z, params = load("flips")
    index = params["flip_index"]
    assert torch.equal(flip_combined(z["in_combined"], index), z["out_udp_flip_offset"])
    assert torch.equal(shift_maps(flip_maps(z["in_heatmaps"], index), 1), z["out_flip_back_shift"])
    average = average_flipped(z["in_other"], z["in_heatmaps"], index, shift=1.0)
    assert_close(average, (z["in_other"] + z["out_flip_back_shift"]) / 2, rtol=0, atol=1e-7)
