"""PCK, AUC, EPE, NME and the training-log accuracy against numbers of HRNet and mmpose (tests/data/pck.npz)."""

from pathlib import Path

import numpy as np
import torch

from posetutor.metrics import oks as m

Z = np.load(Path(__file__).parent / "data" / "pck.npz", allow_pickle=False)


def official(per_joint):
    """Both code bases write -1 where we write NaN."""
    return torch.where(per_joint.isnan(), -1.0, per_joint.double())


def points():
    return (torch.from_numpy(Z[name]) for name in ("in_pred_px", "in_gt_px", "in_mask", "in_norm"))


def test_hrnet_accuracy_of_heatmaps():
    ours = m.heatmap_accuracy(torch.from_numpy(Z["in_output"]), torch.from_numpy(Z["in_target"]), variant="hrnet")
    np.testing.assert_allclose(official(ours.per_joint), Z["out_acc"][1:], atol=1e-6)
    np.testing.assert_allclose(ours.mean, Z["out_avg"], atol=1e-6)
    assert int((ours.count > 0).sum()) == int(Z["out_cnt"])


def test_mmpose_pck():
    pred, true, mask, norm = points()
    ours = m.pck(pred, true, mask, norm, 0.1)
    np.testing.assert_allclose(official(ours.per_joint), Z["out_pck_acc"], atol=1e-6)
    np.testing.assert_allclose(ours.mean, Z["out_pck_avg"], atol=1e-6)
    assert int((ours.count > 0).sum()) == int(Z["out_pck_cnt"])


def test_mmpose_auc_epe_nme():
    pred, true, mask, norm = points()
    np.testing.assert_allclose(m.auc(pred, true, mask, 30.0, rule="left", steps=20), Z["out_auc"], atol=1e-6)
    np.testing.assert_allclose(m.mean_error(pred, true, mask, norm), Z["out_nme"], atol=1e-6)
    np.testing.assert_allclose(m.mean_error(pred, true, mask), Z["out_epe"], rtol=1e-6)
