"""Heatmap losses against numbers computed with the HRNet, mmpose, MSPN and SimplePose codes (tests/data/*.npz)."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.nn.functional import adaptive_avg_pool2d, interpolate
from torch.testing import assert_close

from posetutor.losses.heatmap import adaptive_wing_loss, coarse_to_fine_loss, focal_l2_loss, focal_loss, mse_loss, ohkm_loss, render_blurred_cell

DATA = Path(__file__).parent / "data"


def load(name):
    with np.load(DATA / f"{name}.npz", allow_pickle=False) as z:
        arrays = {key: torch.from_numpy(z[key]) for key in z.files if key != "params"}
        return arrays, json.loads(z["params"].item())


def value_and_gradient(loss, pred):
    pred = pred.clone().requires_grad_()
    value = loss(pred)
    value.backward()
    return value.detach(), pred.grad


@pytest.fixture(scope="module")
def maps():
    z, params = load("loss_heatmap")
    return z["in_output"], z["in_target"], z["in_weight"][..., 0], z, params


def close(ours, theirs):
    assert_close(ours, theirs, rtol=1e-6, atol=1e-6)


def test_mse_equals_hrnet_and_mmpose(maps):
    output, target, weight, z, _ = maps
    value, gradient = value_and_gradient(lambda o: mse_loss(o, target, weight**2, reduction="all") / 2, output)  # HRNet: weights squared, half
    close(value, z["out_mse"])
    close(gradient, z["grad_mse"])
    close(mse_loss(output, target, reduction="all") / 2, z["out_mse_noweight"])
    value, gradient = value_and_gradient(lambda o: mse_loss(o, target, weight, reduction="all"), output)
    close(value, z["out_mm_mse"])
    close(gradient, z["grad_mm_mse"])
    close(mse_loss(output, target, weight * (target != 0).flatten(2).any(-1), reduction="all"), z["out_mm_mse_skip"])


def test_ohkm_equals_hrnet_and_mmpose(maps):
    output, target, weight, z, params = maps
    for topk in params["ohkm_topk"]:
        value, gradient = value_and_gradient(lambda o: ohkm_loss(o, target, weight**2, topk=topk, reduction="all") / 2, output)  # noqa: B023
        close(value, z[f"out_ohkm{topk}"])
        if f"grad_ohkm{topk}" in z:
            close(gradient, z[f"grad_ohkm{topk}"])
    close(ohkm_loss(output, target, topk=params["ohkm_noweight_topk"], reduction="all") / 2, z["out_ohkm_noweight"])
    close(ohkm_loss(output, target, weight**2, topk=params["mm_ohkm_topk"], reduction="all"), z["out_mm_ohkm"])  # here mmpose squares them, too


def test_adaptive_wing_equals_mmpose(maps):
    output, target, weight, z, _ = maps
    value, gradient = value_and_gradient(lambda o: adaptive_wing_loss(o, target, reduction="all"), output)
    close(value, z["out_adaptive_wing"])
    close(gradient, z["grad_adaptive_wing"])
    both = [maps * weight[..., None, None] for maps in (output, target)]  # mmpose multiplies both arguments, which changes the branch
    if both[1].max() <= 1:
        close(adaptive_wing_loss(*both, reduction="all"), z["out_adaptive_wing_weight"])


def test_focal_loss_equals_mmpose(maps):
    _, target, _, z, _ = maps
    logits = z["in_prob"].double().logit()
    for wanted, label in (("out_focal", target), ("out_focal_nopos", target.clamp(max=0.99))):
        assert_close(focal_loss(logits, label.double(), positive="exact").float(), z[wanted], rtol=2e-6, atol=1e-6)
    _, gradient = value_and_gradient(lambda o: focal_loss(o, target.double(), positive="exact"), logits)
    p = z["in_prob"].double()
    assert_close((gradient / (p * (1 - p))).float(), z["grad_focal"], rtol=1e-5, atol=1e-6)


def test_mspn_losses():
    z, params = load("loss_mspn")
    output, label, vis = z["in_output"], z["in_label"], z["in_valid"][..., 0]
    empty = label * (vis > 1)[..., None, None]  # published: hidden and unlabelled joints are taught empty maps
    value, gradient = value_and_gradient(lambda o: mse_loss(o, empty), output)
    assert_close(value, z["out_l2"], rtol=1e-5, atol=0)
    assert_close(gradient, z["grad_l2"], rtol=1e-5, atol=1e-6)
    for topk in params["ohkm_topk"]:
        ours = ohkm_loss(output, label, (vis > 0).float(), topk=topk, reduction="all")
        assert_close(ours, z[f"out_ohkm{topk}"], rtol=1e-5, atol=0)


def test_mspn_labels_and_stages():
    z, params = load("mspn")
    height, width = params["output_shape_hw"]
    xy = z["in_joints"] / 4
    taught = z["in_valid"][:, 0] > 0
    for n, kernel in enumerate(params["kernels"]):
        ours = 255 * render_blurred_cell(xy[None], (height, width), kernel[0])[0]
        assert_close(ours[taught].float(), z["out_labels"][n][taught], rtol=0, atol=1e-3)
    vis = z["in_valids"][..., 0]
    seen, hidden = (vis > 0).float(), (vis > 1)[..., None, None]
    for mining in (0, 1):
        for fine in (0, 1):
            total = 0
            for stage, outputs in enumerate(z["in_outputs"]):
                first = int(fine and stage == len(z["in_outputs"]) - 1)  # only the last stage gets the narrower labels
                labels = [z["in_labels"][:, first + level] for level in range(4)]
                masked = [label * hidden for label in labels]
                total = total + coarse_to_fine_loss(outputs, masked, topk=None)
                if mining:
                    total = total - mse_loss(outputs[3], masked[3]) + ohkm_loss(outputs[3], labels[3], seen, topk=8, reduction="all")
            assert_close(total, z[f"out_total_ohkm{mining}_ctf{fine}"], rtol=1e-5, atol=0)


def test_simplepose_losses():
    z, params = load("simplepose")
    target, mask = z["in_t"][0], z["in_m"][0]
    channels = torch.ones(target.shape[1])
    channels[-2] = params["multi_task_weight"]
    channels[params["heat_start"] : params["bkg_start"]] = params["keypoint_task_weight"]
    weight = channels.expand(target.shape[:2])
    cells = target[0, 0].numel()

    def stacks(pred, **options):
        parts = [focal_l2_loss(s, target, weight, mask=mask, reduction="sum", **options) * cells for s in pred]
        factors = torch.tensor(params["nstack_weight"])
        return (torch.stack(parts) * factors).sum() / factors.sum()

    value, gradient = value_and_gradient(stacks, z["in_s"])
    assert_close(value, z["out_focal_l2"], rtol=1e-5, atol=0)
    assert_close(gradient, z["grad_focal_l2"], rtol=1e-5, atol=1e-5)
    assert_close(stacks(z["in_s"], gamma=0), z["out_l2"], rtol=1e-5, atol=0)
    assert_close(stacks(z["in_s"], alpha=0.1, beta=0.02), z["out_focal_l2_ab"], rtol=1e-5, atol=0)


def test_simplepose_scales():
    z, params = load("simplepose")
    target, mask = z["in_scale_target"], z["in_scale_mask"]
    factors = torch.tensor(params["nstack_weight"])
    total = 0
    for scale, share in enumerate(params["scale_weight"]):
        preds = z[f"in_scale{scale}"]
        size = tuple(preds.shape[-2:])
        small = adaptive_avg_pool2d(target, size)
        seen = interpolate(mask, size=size, mode="bilinear", align_corners=False) if scale else mask
        seen = torch.where(seen < 0.5, 0, seen)
        channels = torch.ones(target.shape[1])
        channels[-2] = params["multi_task_weight"]
        channels[params["heat_start"] : params["bkg_start"]] = params["keypoint_task_weight"]
        parts = [focal_l2_loss(s, small, channels.expand(target.shape[:2]), mask=seen, reduction="sum") * size[0] * size[1] for s in preds]
        total = total + share * (torch.stack(parts) * factors).sum() / factors.sum()
    assert_close(total / sum(params["scale_weight"]) / target.shape[0], z["out_multiscale"], rtol=1e-5, atol=0)
