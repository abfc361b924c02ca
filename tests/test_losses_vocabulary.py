"""One vocabulary for all losses: (pred, target, weight), a documented reduction, nothing for unlabelled joints, finite at the edges, half precision."""

import inspect
import math

import pytest
import torch
from torch.testing import assert_close

from posetutor.codecs.base import weighted_l1
from posetutor.losses import boxes, coords, heatmap, oks

B, K = 3, 5
SIGMAS = torch.tensor([0.03, 0.06, 0.08, 0.1, 0.09])
AREA = torch.tensor([400.0, 900.0, 2500.0])


def _flow():
    torch.manual_seed(0)
    return coords.RealNVP()


FLOW = _flow()
COORDS = {
    "weighted_l1": weighted_l1,
    "weighted_l2": coords.weighted_l2,
    "gaussian_nll": lambda p, t, w: coords.gaussian_nll(p, t, w, scale=1.5),
    "laplace_nll": lambda p, t, w: coords.laplace_nll(p, t, w, scale=1.5),
    "smooth_l1_loss": lambda p, t, w: coords.smooth_l1_loss(p, t, w, beta=1.0),
    "wing_loss": lambda p, t, w: coords.wing_loss(p, t, w, width=10.0, curvature=2.0),
    "soft_wing_loss": lambda p, t, w: coords.soft_wing_loss(p, t, w, inner=2.0, outer=20.0, curvature=0.5),
    "oks_loss": lambda p, t, w: oks.oks_loss(p, t, w, AREA, SIGMAS),
    "oks_loss, log": lambda p, t, w: oks.oks_loss(p, t, w, AREA, SIGMAS, form="log"),
    "robust_oks_loss": lambda p, t, w: oks.robust_oks_loss(p, t, w, AREA, SIGMAS),
    "yolo_pose_oks_loss": lambda p, t, w: oks.yolo_pose_oks_loss(p, t, w, AREA, SIGMAS),
    "scaled_l1": lambda p, t, w: oks.scaled_l1(p, t, w, AREA),
}
MAPS = {
    "mse_loss": heatmap.mse_loss,
    "bce_loss": heatmap.bce_loss,
    "focal_l2_loss": heatmap.focal_l2_loss,
    "focal_loss": heatmap.focal_loss,
    "adaptive_wing_loss": heatmap.adaptive_wing_loss,
    "ohkm_loss": heatmap.ohkm_loss,
    "coarse_to_fine_loss": lambda p, t, w: heatmap.coarse_to_fine_loss([p, p], [t, t], w),
}
CASES = [pytest.param(loss, kind, id=name) for kind, losses in (("points", COORDS), ("maps", MAPS)) for name, loss in losses.items()]
LOSSES = pytest.mark.parametrize("loss, kind", CASES)


def example(kind, dtype=torch.float32):
    g = torch.Generator().manual_seed(1)
    if kind == "maps":
        return torch.randn(B, K, 6, 7, generator=g).to(dtype), torch.rand(B, K, 6, 7, generator=g).to(dtype)
    target = 40 * torch.rand(B, K, 2, generator=g)
    return (target + torch.randn(B, K, 2, generator=g)).to(dtype), target.to(dtype)


WEIGHT = torch.tensor([[1.0, 0.0, 1.0, 1.0, 0.0], [0.0] * 5, [1.0, 1.0, 0.0, 1.0, 1.0]])


def value_and_gradient(loss, pred, target, weight):
    pred = pred.detach().clone().requires_grad_()
    value = loss(pred, target, weight)
    (gradient,) = torch.autograd.grad(value, pred)
    return value.detach(), gradient


def test_public_losses_start_with_the_same_three_arguments():
    seen = 0
    for module in (boxes, coords, heatmap, oks):
        for name, fn in vars(module).items():
            if name.endswith("_loss") and getattr(fn, "__module__", "") == module.__name__ and name not in ("coarse_to_fine_loss",):
                assert list(inspect.signature(fn).parameters)[:3] == ["pred", "target", "weight"], f"{module.__name__}.{name}"
                assert "weight:" in fn.__doc__ and "Returns" in fn.__doc__, f"{module.__name__}.{name} must document its weight and its reduction"
                seen += 1
    assert seen >= 14
    assert list(inspect.signature(heatmap.coarse_to_fine_loss).parameters)[:3] == ["preds", "targets", "weight"]  # lists of levels


@LOSSES
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=["float32", "float64", "bfloat16"])
def test_unlabelled_joints_get_exactly_no_gradient(loss, kind, dtype):
    pred, target = example(kind, dtype)
    clean, gradient = value_and_gradient(loss, pred, target, WEIGHT)
    assert torch.isfinite(clean) and torch.isfinite(gradient.float()).all()
    assert bool((gradient[WEIGHT == 0] == 0).all()) and bool((gradient[WEIGHT > 0] != 0).any())
    for rubbish in (math.nan, math.inf):
        dirty = pred.clone()
        dirty[WEIGHT == 0] = rubbish
        value, gradient = value_and_gradient(loss, dirty, target, WEIGHT)
        assert_close(value, clean)
        assert bool((gradient[WEIGHT == 0] == 0).all()) and torch.isfinite(gradient.float()).all()


@LOSSES
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
def test_no_visible_joint_exact_hits_and_wild_misses(loss, kind, dtype):
    pred, target = example(kind, dtype)
    value, gradient = value_and_gradient(loss, torch.full_like(pred, math.nan), target, torch.zeros(B, K))
    assert value == 0 and bool((gradient == 0).all())
    for wild in (target, target + 1e4, target - 1e4):
        value, gradient = value_and_gradient(loss, wild, target, torch.ones(B, K))
        assert torch.isfinite(value) and torch.isfinite(gradient.float()).all()


@LOSSES
def test_half_precision_is_widened(loss, kind):
    pred, target = (x.bfloat16() for x in example(kind))
    value = loss(pred, target, WEIGHT)
    assert value.dtype == torch.float32
    assert_close(value, loss(pred.float(), target.float(), WEIGHT))


def test_residual_log_likelihood_keeps_the_vocabulary():
    pred, target = example("points")
    pred = torch.cat([pred / 40 - 0.5, torch.randn(B, K, 2, generator=torch.Generator().manual_seed(2))], -1)
    rule = lambda p, t, w: coords.rle_loss(p, t, w, FLOW)  # noqa: E731
    value, gradient = value_and_gradient(rule, pred, target / 40 - 0.5, WEIGHT)
    assert torch.isfinite(value) and torch.isfinite(gradient).all() and bool((gradient[WEIGHT == 0] == 0).all())
    _, gradient = value_and_gradient(rule, pred, target / 40 - 0.5, torch.zeros(B, K))
    assert bool((gradient == 0).all())


def test_boxes_keep_the_vocabulary():
    g = torch.Generator().manual_seed(3)
    target = 5 + 20 * torch.rand(4, 4, generator=g)
    pred = target + torch.randn(4, 4, generator=g)
    weight = torch.tensor([1.0, 0.0, 1.0, 0.0])
    for kind in ("iou", "giou", "diou", "ciou"):
        rule = lambda p, t, w: boxes.box_loss(p, t, w, kind=kind)  # noqa: B023, E731
        value, gradient = value_and_gradient(rule, pred.bfloat16(), target.bfloat16(), weight)
        assert torch.isfinite(value) and bool((gradient[weight == 0] == 0).all()) and bool((gradient[weight > 0] != 0).any())
        value, gradient = value_and_gradient(rule, pred, target, torch.zeros(4))
        assert value == 0 and bool((gradient == 0).all())
