"""Coordinate losses and the residual log-likelihood against numbers computed with the official RLE code and mmpose (tests/data/*.npz)."""

import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.testing import assert_close

from posetutor.codecs.base import weighted_l1
from posetutor.losses.coords import RealNVP, rle_loss, scale_from_logits, smooth_l1_loss, soft_wing_loss, weighted_l2, wing_loss

DATA = Path(__file__).parent / "data"


def load(name):
    with np.load(DATA / f"{name}.npz", allow_pickle=False) as z:
        arrays = {key: z[key] for key in z.files if key != "params"}
        return {k: torch.from_numpy(v) if v.dtype.kind in "fiub" else v for k, v in arrays.items()}, json.loads(z["params"].item())


@pytest.fixture(scope="module")
def rle():
    z, params = load("rle")
    flow = RealNVP(params["coupling_layers"], params["hidden"])
    state = {}
    for key, value in z.items():
        if match := re.fullmatch(r"w_([st])_(\d+)_(\d+)_(weight|bias)", key):
            kind = {"s": "scales", "t": "shifts"}[match[1]]
            state[f"{kind}.{match[2]}.{match[3]}.{match[4]}"] = value.float()
    flow.load_state_dict(state)
    assert params["masks"] == [[n % 2, 1 - n % 2] for n in range(params["coupling_layers"])]  # even couplings hold y
    return z, params, flow.requires_grad_(False)


def close(got, want, tolerance):
    assert_close(got.double(), want.double(), rtol=0, atol=tolerance)


def test_flow_both_ways(rle):
    z, _, flow = rle
    latent, log_det = flow.to_latent(z["in_x"])
    close(latent, z["out_z"], 1e-4)
    close(log_det, z["out_logdet"], 1e-4)
    close(flow.log_prob(z["in_x"]), z["out_logprob"], 1e-4)
    close(flow.to_data(z["in_x"]), z["out_forward"], 1e-4)
    close(flow.to_data(z["out_z"]), z["in_x"], 1e-4)


def test_scales_and_scores(rle):
    z, _, _ = rle
    scale = scale_from_logits(z["in_sigma_raw"], floor=0.0)
    close(scale, z["out_sigma"], 1e-6)
    close(1 - scale.mean(-1, keepdim=True), z["out_score"], 1e-6)
    nearly = scale_from_logits(z["in_sigma_raw"])
    assert (nearly - scale).abs().max() <= 1e-4


def total(z, flow, weight, **options):
    """The published reduction, sum over joints and axes divided by the batch size, from ours."""
    pred = z["in_pred"].clone().requires_grad_()
    logits = z["in_sigma_raw"].clone().requires_grad_()
    loss = rle_loss(torch.cat([pred, logits], -1), z["in_gt"], weight, flow, floor=0.0, **options) * 2 * weight.sum() / len(pred)
    loss.backward()
    return loss, pred.grad, logits.grad


def test_official_loss_and_gradients(rle):
    z, _, flow = rle
    assert torch.equal(z["in_weight"][..., 0], z["in_weight"][..., 1])
    loss, by_pred, by_logits = total(z, flow, z["in_weight"][..., 0], variant="official")
    close(loss, z["out_loss"], 1e-3)
    close(by_pred, z["grad_pred"], 1e-4)
    close(by_logits, z["grad_sigma_raw"], 1e-4)


def test_flow_term_of_the_official_loss(rle):
    z, _, flow = rle
    scale = scale_from_logits(z["in_sigma_raw"], floor=0.0)
    close(scale.log() - flow.log_prob((z["in_pred"] - z["in_gt"]) / scale)[..., None], z["out_nf_loss"], 1e-3)


@pytest.mark.parametrize("base", ["laplace", "gaussian"])
def test_mmpose_loss_and_gradients(rle, base):
    z, _, flow = rle
    loss, _, by_logits = total(z, flow, z["in_weight"][..., 0], variant="mmpose", base=base)
    close(loss, z[f"out_mm_{base}"], 1e-3)
    close(by_logits, z[f"grad_mm_{base}_sigma"], 1e-4)


def test_mmpose_without_the_residual_term(rle):
    """mmpose counts ln G twice and the scale once: twice our "flow" variant, minus one ln sigma."""
    z, _, flow = rle
    weight = z["in_weight"][..., 0]
    mirrored = {**z, "in_pred": z["in_gt"], "in_gt": z["in_pred"]}  # prediction minus truth
    loss, _, _ = total(mirrored, flow, weight, variant="flow")
    log_scale = (weight[..., None] * z["out_sigma"].log()).sum() / len(weight)
    close(2 * loss - log_scale, z["out_mm_noresidual"], 1e-3)


def test_wing_smooth_l1_and_the_classics():
    z, p = load("loss_regression")
    pred, target, weight = z["in_pred"].float(), z["in_target"].float(), z["in_weight"].float()
    N, K = pred.shape[:2]
    ones, joint, px = torch.ones(N, K), weight[..., 0], p["px_factor"]
    assert torch.equal(joint, weight[..., 1])

    def check(loss, name, factor, a, b, gradient=None, weight=ones):
        leaf = a.clone().requires_grad_()
        value = factor * loss(leaf, b, weight)
        assert_close(value.detach(), z[f"out_{name}"], rtol=1e-5, atol=0)
        if gradient:
            value.backward()
            assert_close(leaf.grad, z[f"grad_{gradient}"], rtol=1e-5, atol=1e-7)

    small = dict(zip(("width", "curvature"), p["wing_small"], strict=True))
    check(lambda a, b, w: wing_loss(a, b, w, width=10.0, curvature=2.0), "wing", 2 * K, px * pred, px * target, "wing")  # theirs: a sum over joints and axes
    check(lambda a, b, w: wing_loss(a, b, w, width=10.0, curvature=2.0), "wing_weight", 2 * K, px * pred * weight, px * target * weight)
    check(lambda a, b, w: wing_loss(a, b, w, **small), "wing_small", 2 * K, px * pred, px * target)
    check(lambda a, b, w: soft_wing_loss(a, b, w, inner=2.0, outer=20.0, curvature=0.5), "softwing", 2 * K, px * pred, px * target, "softwing")
    beta = p["beta_sl1"]
    for name, joints in (("all", N * K), ("pos", (joint > 0).sum())):  # theirs: the weighted sum, divided by how many joints there are, or have a weight
        check(lambda a, b, w: smooth_l1_loss(a, b, w, beta=beta), f"softweight_sl1_{name}", joint.sum() / joints, px * pred, px * target, f"softweight_sl1_{name}", weight=joint)
    check(lambda a, b, w: smooth_l1_loss(a, b, w, beta=1.0), "smoothl1", 1, px * pred * weight, px * target * weight)
    check(weighted_l1, "l1", 1, pred * weight, target * weight)
    check(weighted_l2, "mse", 1, pred * weight, target * weight)
