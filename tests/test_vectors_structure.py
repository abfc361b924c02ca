"""Bone losses and learned weights against numbers of mmpose, JointBoneLoss and AutomaticWeightedLoss (tests/data/loss_regression.npz)."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.testing import assert_close

from posetutor.losses.structure import AutoWeights, bone_loss, heatmap_bone_loss

with np.load(Path(__file__).parent / "data" / "loss_regression.npz", allow_pickle=False) as z:
    K = json.loads(z["params"].item())["K"]
    Z = {key: torch.from_numpy(z[key]) for key in z.files if key != "params"}


def value_and_gradient(loss, leaf):
    leaf = leaf.clone().requires_grad_()
    value = loss(leaf)
    return value.detach(), torch.autograd.grad(value, leaf)[0]


def close(ours, theirs):
    assert_close(ours, theirs, rtol=1e-5, atol=1e-7)


def test_all_pairs_of_coordinates():
    value, gradient = value_and_gradient(lambda p: bone_loss(p, Z["in_target"], torch.ones(p.shape[:2])), Z["in_pred"])
    close(value, Z["out_jointbone"])
    close(gradient, Z["grad_jointbone"])


def test_all_pairs_of_heatmaps():
    value, gradient = value_and_gradient(lambda p: heatmap_bone_loss(p, Z["in_hm_target"], torch.ones(p.shape[:2])), Z["in_hm_pred"])
    close(value, Z["out_jointbone_hm"])
    close(gradient, Z["grad_jointbone_hm"])


def test_batch_mean_is_mmpose():
    parents = Z["in_parents"].tolist()
    bones = [(k, parent) for k, parent in enumerate(parents) if k != parent]  # a root is its own parent
    value, gradient = value_and_gradient(lambda p: bone_loss(p, Z["in_target"], torch.ones(p.shape[:2]), bones, variant="batch_mean"), Z["in_pred"])
    close(value, Z["out_bone_mm"])
    close(gradient, Z["grad_bone_mm"])
    assert bone_loss(Z["in_pred"], Z["in_target"], torch.ones(len(Z["in_pred"]), K), bones) > 1.5 * value  # bone by bone says more


def test_learned_weights_at_their_start():
    assert_close(AutoWeights(len(Z["in_awl_losses"]))(Z["in_awl_losses"]).detach(), Z["out_awl_init"], rtol=1e-5, atol=0)


def test_learned_weights_anywhere_and_their_gradient():
    auto = AutoWeights(len(Z["in_awl_params"]))
    sigma = Z["in_awl_params"].clone().requires_grad_()  # that code learns sigma, of either sign
    value = torch.func.functional_call(auto, {"log_variance": sigma.square().log()}, Z["in_awl_losses"])
    assert value.item() == pytest.approx(Z["out_awl"].item(), rel=1e-5)
    close(torch.autograd.grad(value, sigma)[0], Z["grad_awl"])
