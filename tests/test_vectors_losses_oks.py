"""OKS losses against numbers of the official codes (tests/data/yolopose_loss.npz, loss_regression.npz)."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from posetutor.losses.oks import keypoint_confidence_loss, oks_loss, yolo_pose_oks_loss

DATA = Path(__file__).parent / "data"
Y = np.load(DATA / "yolopose_loss.npz", allow_pickle=False)
P = json.loads(Y["params"].item())
R = np.load(DATA / "loss_regression.npz", allow_pickle=False)
SIGMAS = torch.tensor(P["sigmas"])
K = len(SIGMAS)


def matched(level):
    """Predicted points (n, K, 2) and logits (n, K) of the matched cells, targets, labels, box areas, and the leaf tensor."""
    leaf = torch.from_numpy(Y[f"in_pred{level}"].astype(np.float32)).requires_grad_()
    image, anchor, row, column = torch.from_numpy(Y[f"out_match{level}"]).T
    cells = leaf[image, anchor, row, column][:, 6:].unflatten(1, (K, 3))
    target = torch.from_numpy(Y[f"out_tkpt{level}"]).unflatten(1, (K, 2))
    return 2 * cells[..., :2] - 0.5, cells[..., 2], target, (target[..., 0] != 0).float(), torch.from_numpy(Y[f"out_tbox{level}"])[:, 2:].prod(-1), leaf


def test_keypoint_terms_of_the_one_stage_loss():
    points, confidence = 0.0, 0.0
    for level in range(P["nl"]):
        pred, logits, target, label, area, _ = matched(level)
        points += yolo_pose_oks_loss(pred, target, label, area, SIGMAS).item()
        confidence += keypoint_confidence_loss(logits, label).item()
    assert P["hyp"]["kpt"] * points == pytest.approx(Y["out_items"][3], abs=2e-5)
    assert P["hyp"]["cls"] * confidence == pytest.approx(Y["out_items"][4], abs=2e-5)


@pytest.mark.parametrize("level", range(3))
def test_gradients_of_the_keypoint_channels(level):
    pred, logits, target, label, area, leaf = matched(level)
    loss = P["hyp"]["kpt"] * yolo_pose_oks_loss(pred, target, label, area, SIGMAS) + P["hyp"]["cls"] * keypoint_confidence_loss(logits, label)
    (gradient,) = torch.autograd.grad(loss * len(leaf), leaf)
    found = gradient.flatten(0, 3)[torch.from_numpy(Y[f"grad_rows{level}"])][:, 6:]
    np.testing.assert_allclose(found, Y[f"grad{level}"][:, 6:], atol=1e-6)


def test_nothing_labelled_is_zero_where_the_official_code_is_nan():
    assert np.isnan(Y["out_items_nokpt"][3])
    pred, _, target, label, area, leaf = matched(0)
    loss = yolo_pose_oks_loss(pred, target, label * 0, area, SIGMAS)
    assert loss == 0 and (torch.autograd.grad(loss, leaf)[0] == 0).all()


def test_mean_over_labelled_weight_is_the_normalised_form_of_mmpose():
    pred, target, weight, area = (torch.from_numpy(R[name]) for name in ("in_pred", "in_target", "in_weight", "in_areas"))
    sigmas, weight = torch.tensor(json.loads(R["params"].item())["sigmas"]), weight[..., 0]
    np.testing.assert_allclose(oks_loss(pred, target, weight, area, sigmas), R["out_oks_norm"], rtol=1e-5)
    pred.requires_grad_()
    part = weight.sum(-1) / K  # the other forms divide by K, so a person with few labels never reaches 0
    similarity = (1 - oks_loss(pred, target, weight, area, sigmas, reduction="none")) * part
    np.testing.assert_allclose((1 - similarity).detach(), R["out_oks_linear"], rtol=1e-5)
    np.testing.assert_allclose((1 - similarity**2).detach(), R["out_oks_square"], rtol=1e-5)
    np.testing.assert_allclose(-similarity.log().detach(), R["out_oks_log"], rtol=1e-5)
    (gradient,) = torch.autograd.grad((1 - similarity).sum(), pred)
    np.testing.assert_allclose(gradient, R["grad_oks_linear"], rtol=1e-5, atol=1e-6)
