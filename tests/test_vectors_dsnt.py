"""DSNT against numbers computed with the official dsntnn code (tests/data/dsnt.npz)."""

import json
from pathlib import Path

import numpy as np
import torch
from torch.testing import assert_close

from posetutor.codecs.dsnt import cell_centres, dsnt, gaussian_target, js_term, kl_term, normalise_maps, position_error, variance_term, weighted_mean
from posetutor.codecs.gaussian import render_gaussian
from posetutor.geometry import from_unit, to_unit

with np.load(Path(__file__).parent / "data" / "dsnt.npz", allow_pickle=False) as stored:
    Z = {key: torch.from_numpy(stored[key]) for key in stored.files if stored[key].dtype.kind in "fiub"}
    PARAMS = json.loads(stored["params"].item())
SIZE = (PARAMS["H"], PARAMS["W"])


def test_grid_softmax_and_coordinates():
    assert_close(cell_centres(SIZE[1], Z["in_logits"]), Z["out_linspace_w"], rtol=0, atol=1e-6)
    assert_close(cell_centres(SIZE[0], Z["in_logits"]), Z["out_linspace_h"], rtol=0, atol=1e-6)
    maps = normalise_maps(Z["in_logits"])
    assert_close(maps, Z["out_softmax"], rtol=0, atol=1e-6)
    assert_close(dsnt(maps), Z["out_coords"], rtol=0, atol=1e-6)
    assert_close(from_unit(dsnt(maps), SIZE), Z["out_coords_px"], rtol=0, atol=1e-5)


def test_frames():
    assert_close(from_unit(Z["out_coords"], SIZE), Z["out_coords_px"], rtol=0, atol=1e-5)
    assert_close(from_unit(Z["in_mu"], SIZE), Z["out_px_from_norm"], rtol=0, atol=1e-5)
    assert_close(to_unit(Z["out_coords_px"], SIZE), Z["out_norm_from_px"], rtol=0, atol=1e-6)


def test_gaussians():
    inside = (Z["in_mu"].abs() <= 1).all(-1)
    assert 0 < int((~inside).sum()) < 3
    ours = gaussian_target(Z["in_mu"], SIZE, PARAMS["sigma"])
    assert_close(ours, Z["out_gauss"], rtol=0, atol=1e-6)
    assert_close(render_gaussian(from_unit(Z["in_mu"], SIZE), SIZE, PARAMS["sigma"]), Z["out_gauss_raw"], rtol=0, atol=1e-6)


def test_losses():
    maps, target = Z["out_softmax"], Z["out_gauss"]
    assert_close(position_error(Z["out_coords"], Z["in_mu"]), Z["out_euclidean"], rtol=0, atol=1e-6)
    assert_close(position_error(Z["out_coords"], Z["in_mu"], "l1"), Z["out_l1"], rtol=0, atol=1e-6)
    assert_close((Z["out_coords"] - Z["in_mu"]).square().mean(-1), Z["out_mse"], rtol=0, atol=1e-6)
    assert_close(js_term(maps, target), Z["out_js"], rtol=0, atol=1e-5)
    assert_close(kl_term(maps, target), Z["out_kl"], rtol=0, atol=5e-3)
    assert_close(variance_term(maps, PARAMS["sigma"]), Z["out_variance"], rtol=1e-5, atol=1e-2)


def test_total_and_its_gradient():
    logits = Z["in_logits"].clone().requires_grad_()
    maps = normalise_maps(logits)
    values = position_error(dsnt(maps), Z["in_mu"]) + js_term(maps, gaussian_target(Z["in_mu"], SIZE, PARAMS["sigma"]))
    total = weighted_mean(values, Z["in_mask"])
    total.backward()
    assert_close(total.detach(), Z["out_total"].reshape(()), rtol=0, atol=1e-6)
    assert_close(logits.grad, Z["grad_total"], rtol=0, atol=1e-6)
    distance = Z["out_euclidean"]
    assert_close(weighted_mean(distance), Z["out_avg_nomask"].reshape(()), rtol=0, atol=1e-6)
    assert_close(weighted_mean(distance, torch.zeros_like(distance)), Z["out_avg_emptymask"].reshape(()), rtol=0, atol=0)
