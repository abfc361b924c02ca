"""OKS, overlap, suppression and rescoring against numbers of the official implementations (tests/data/oks.npz)."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from posetutor.metrics import oks as m

Z = np.load(Path(__file__).parent / "data" / "oks.npz", allow_pickle=False)
P = json.loads(Z["params"].item())
SIGMAS = torch.tensor(P["sigmas"], dtype=torch.float64)
DET, SCORE, AREA = (torch.from_numpy(Z[name]) for name in ("in_det", "in_det_score", "in_det_area"))
XY = DET[..., :2]


def test_overlap_of_detections():
    np.testing.assert_allclose(m.pose_overlap(XY, AREA, SIGMAS), Z["out_oks_iou"], atol=1e-9)
    np.testing.assert_allclose(m.pose_overlap(XY, AREA, torch.from_numpy(Z["in_sigmas2"])), Z["out_oks_iou_sig2"], atol=1e-9)


def test_overlap_with_a_confidence_mask():
    mask = DET[..., 2] > P["vis_thr"]
    np.testing.assert_allclose(m.pose_overlap(XY, AREA, SIGMAS, mask=mask, mask_rule="column"), Z["out_oks_iou_vis"], atol=1e-9)
    np.testing.assert_allclose(m.pose_overlap(XY, AREA, SIGMAS, mask=mask), Z["out_oks_iou_vis_mm"], atol=1e-6)


@pytest.mark.parametrize("thr", P["nms_thr"])
def test_suppression(thr):
    name = f"{round(100 * thr)}"
    assert m.oks_nms(XY, SCORE, AREA, SIGMAS, thr).tolist() == Z[f"out_keep_{name}"].tolist()
    keep, lowered = m.soft_oks_nms(XY, SCORE, AREA, SIGMAS, thr)
    assert keep.tolist() == Z[f"out_soft_{name}"].tolist()
    assert (lowered.diff() <= 0).all()


def test_suppression_limits_and_nearby_joints():
    assert m.soft_oks_nms(XY, SCORE, AREA, SIGMAS, 0.9, keep=5)[0].tolist() == Z["out_soft_mm_max5"].tolist()
    assert m.nearby_joints_nms(XY, SCORE, distance=0.05, joints=8).tolist() == Z["out_nearby"].tolist()


@pytest.mark.parametrize("decay, name", [("linear", "out_rescore_lin"), ("gaussian", "out_rescore_gauss")])
def test_decay_of_one_step(decay, name):
    """The official one-step function lowers every score by its overlap with pose 0; put pose 0 on top to see our factor."""
    first = SCORE.clone()
    first[0] = 2.0
    overlap = m.pose_overlap(XY, AREA, SIGMAS)
    for other in range(1, len(SCORE)):
        pair = [0, other]
        keep, lowered = m.soft_oks_nms(XY[pair], first[pair], AREA[pair], SIGMAS, 0.3, decay=decay)
        assert keep.tolist() == [0, 1]
        np.testing.assert_allclose(lowered[1], Z[name][other], atol=1e-9)
    assert overlap[0, 0] == 1


def test_similarity_with_truth():
    """Labelled people only: the evaluator's box rule for the last person belongs to metrics.coco_eval."""
    truth = torch.from_numpy(Z["in_gt"])
    vis = truth[..., 2].long()
    order = SCORE.argsort(descending=True, stable=True)[:20]
    ours = m.oks_matrix(XY[order], truth[..., :2], vis, torch.from_numpy(Z["in_gt_area"]), SIGMAS)
    labelled = (vis > 0).any(-1).numpy()
    assert labelled.tolist() == [True, True, False]
    np.testing.assert_allclose(ours[:, labelled], Z["out_coco_oks"][:, labelled], atol=1e-9)
    assert (ours[:, ~labelled] == 0).all()


def test_unchecked_call_gives_the_same_values():
    """check=False is for training loops: same numbers, plain tuples of sigmas allowed, float32 stays float32."""
    truth = torch.from_numpy(Z["in_gt"])
    xy, vis, area = truth[:2, :, :2], truth[:2, :, 2].long(), torch.from_numpy(Z["in_gt_area"])[:2]
    full = m.oks(XY[:2], xy, vis, area, P["sigmas"])
    torch.testing.assert_close(m.oks(XY[:2], xy, vis, area, P["sigmas"], check=False), full)
    single = m.oks(XY[:2].float(), xy.float(), vis, area, P["sigmas"], check=False)
    assert single.dtype is torch.float32
    torch.testing.assert_close(single.double(), full, atol=1e-5, rtol=0)
