"""DARK against numbers computed with the official DarkPose and mmpose code (tests/data/*.npz)."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.testing import assert_close

from posetutor.codecs.base import cut_windows, find_peaks
from posetutor.codecs.dark import DarkCodec, decode_dark
from posetutor.codecs.gaussian import render_gaussian, target_weight
from posetutor.codecs.second_order import filter_maps, vertex_step

DATA = Path(__file__).parent / "data"


def load(name):
    with np.load(DATA / f"{name}.npz", allow_pickle=False) as z:
        arrays = {key: torch.from_numpy(z[key]) for key in z.files if key != "params" and z[key].dtype.kind in "fiub"}
        return arrays, json.loads(z["params"].item())


COMMON, _ = load("decode_common")
MAPS = COMMON["in_heatmaps"].float()
DARK, PARAMS = load("decode_dark")


@pytest.mark.parametrize("kernel", PARAMS["kernels"])
def test_decoding_equals_darkpose(kernel):
    xy, score = decode_dark(MAPS, kernel=kernel, variant="official")
    assert not DARK[f"flag_k{kernel}_ill"].any()
    assert_close(xy, DARK[f"out_k{kernel}_hm"], rtol=0, atol=1e-5)
    assert_close(score, MAPS.amax((-2, -1)))


@pytest.mark.parametrize("kernel", PARAMS["kernels"])
def test_image_coordinates_equal_darkpose(kernel):
    xy = decode_dark(MAPS, kernel=kernel, variant="official")[0].double()
    scale = (200 * COMMON["in_scale"][:, :1].double() - 1) / (PARAMS["W"] - 1)  # only the width of the box enters
    middle = torch.tensor([(PARAMS["W"] - 1) / 2, (PARAMS["H"] - 1) / 2])
    image = (xy - middle) * scale[:, None] + COMMON["in_center"][:, None].double()
    assert_close(image.float(), DARK[f"out_k{kernel}_img"], rtol=0, atol=5e-3)


@pytest.mark.parametrize("kernel", PARAMS["kernels"])
def test_modulated_maps_equal_darkpose(kernel):
    maps = MAPS[:1, PARAMS["blur_channels"]]
    blurred = filter_maps(maps, kernel)
    assert_close(blurred * maps.amax((-2, -1), keepdim=True) / blurred.amax((-2, -1), keepdim=True), DARK[f"out_k{kernel}_blur"], rtol=0, atol=2e-6)


def test_one_step_recovers_exact_gaussians():
    mu, sigma, size = DARK["in_exact_mu"][None], DARK["in_exact_sigma"][None], (PARAMS["H"], PARAMS["W"])
    maps = render_gaussian(mu, size, sigma)
    for variant in ("official", "guarded"):
        assert_close(decode_dark(maps, kernel=None, variant=variant)[0], DARK["out_exact_taylor"][None], rtol=0, atol=1e-9)
    cell = find_peaks(maps)[0]
    patch = cut_windows(maps.clamp(min=1e-10).log(), cell, 5)[0]
    assert_close(cell + vertex_step(patch, guarded=False)[0], mu, rtol=0, atol=1e-9)


def test_guarded_form_agrees_where_the_official_one_is_sound():
    z, params = load("mm_refine")
    official, score = decode_dark(MAPS, kernel=params["kernel"], variant="official")
    ours, _ = decode_dark(MAPS, kernel=params["kernel"])
    assert_close(official[score > 0], z["out_dark"][score > 0], rtol=0, atol=1e-4)  # mmpose: (-1, -1) elsewhere
    clean, noisy = 0, 1  # the cases stored in channels 0 and 1
    assert_close(ours[:, clean], official[:, clean], rtol=0, atol=2e-3)
    assert (ours[:, noisy] - official[:, noisy]).abs().max() < 0.05


def test_targets_equal_darkpose():
    z, params = load("targets_dark")
    width, height = params["heatmap_size"]
    xy, vis = z["in_joints"][None], z["in_vis"][None].long()
    maps = render_gaussian(xy, (height, width), float(params["sigma"]))[0]
    weight = target_weight(xy, vis, (height, width), float(params["sigma"]), variant="hrnet")[0]
    used = weight > 0
    assert_close(weight[:, None].float(), z["out_weight"])
    chosen = z["in_select"]
    assert_close(maps[chosen][used[chosen]].float(), z["out_unbiased"][used[chosen]], rtol=0, atol=1e-6)
    assert_close(maps.sum((1, 2))[used].float(), z["out_rowsum"][used], rtol=1e-5, atol=1e-6)


def test_codec_maps_the_crop_as_darkpose():
    codec = DarkCodec.official()
    assert codec.decoder == "dark_official" and codec.mapping == "unit" and not codec.rounded
    xy, _ = codec.decode(MAPS)
    assert_close(xy, decode_dark(MAPS, variant="official")[0] * torch.tensor(codec.cell))
