"""OKS losses: what training relies on, in every precision and for inputs that break naive versions."""

import math

import pytest
import torch

from posetutor.losses import oks as m
from posetutor.metrics.oks import oks
from posetutor.skeletons import COCO_17, FACE_5

LOSSES = {
    "linear": m.oks_loss,
    "square": lambda *a, **k: m.oks_loss(*a, form="square", **k),
    "log": lambda *a, **k: m.oks_loss(*a, form="log", **k),
    "cauchy": m.robust_oks_loss,
    "squared": lambda *a, **k: m.robust_oks_loss(*a, alpha=2.0, **k),
    "smooth L1": lambda *a, **k: m.robust_oks_loss(*a, alpha=1.0, **k),
    "published": m.yolo_pose_oks_loss,
    "scaled L1": lambda p, t, w, a, s, **k: m.scaled_l1(p, t, w, a, **k),
}


def people(n=4, K=5, dtype=torch.float32, seed=0):
    g = torch.Generator().manual_seed(seed)
    area = 100 + 900 * torch.rand(n, generator=g, dtype=dtype)
    target = 50 * torch.rand(n, K, 2, generator=g, dtype=dtype)
    pred = target + 3 * torch.randn(n, K, 2, generator=g, dtype=dtype)
    weight = (torch.rand(n, K, generator=g) > 0.4).to(dtype)
    weight[0, 0], weight[-1] = 1, 0
    return pred, target, weight, area, torch.linspace(0.03, 0.1, K, dtype=dtype)


@pytest.mark.parametrize("loss", LOSSES.values(), ids=LOSSES)
class TestEveryLoss:
    def test_gradient_is_exact(self, loss):
        pred, *rest = people(dtype=torch.float64)
        assert torch.autograd.gradcheck(lambda p: loss(p, *rest), pred.requires_grad_())

    def test_unlabelled_joints_have_no_gradient_and_may_hold_nan(self, loss):
        pred, target, weight, area, sigmas = people()
        clean = loss(pred, target, weight, area, sigmas)
        pred[weight == 0], target[weight == 0] = float("nan"), float("inf")
        area[-1] = -7.0  # the area of somebody without labels is nobody's business
        pred.requires_grad_()
        value = loss(pred, target, weight, area, sigmas)
        gradient = torch.autograd.grad(value, pred)[0]
        assert value == clean and (gradient[weight == 0] == 0).all() and (gradient[weight > 0] != 0).any()

    @pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
    @pytest.mark.parametrize("case", ["nobody", "nothing labelled", "tiny area", "hits", "1e4 px"])
    def test_finite_in_value_and_gradient(self, loss, dtype, case):
        pred, target, weight, area, sigmas = people()
        if case == "nobody":
            pred, target, weight, area = pred[:0], target[:0], weight[:0], area[:0]
        weight = weight * 0 if case == "nothing labelled" else weight
        area = area * 0 + 1e-6 if case == "tiny area" else area
        pred = target.clone() if case == "hits" else target + 1e4 if case == "1e4 px" else pred
        pred = pred.to(dtype).requires_grad_()
        value = loss(pred, target.to(dtype), weight.to(dtype), area, sigmas)
        gradient = torch.autograd.grad(value, pred)[0]
        assert value.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
        assert torch.isfinite(value)
        if dtype != torch.float16 or case != "tiny area":  # float16 itself ends at 65504: the gradient of a spring over 1e-6 px^2 does not fit
            assert torch.isfinite(gradient).all()
        if case in ("nobody", "nothing labelled", "hits"):
            assert value == 0 and (gradient == 0).all()

    def test_order_of_people_and_joints_does_not_matter(self, loss):
        pred, target, weight, area, sigmas = people()
        n, k = torch.tensor([2, 0, 3, 1]), torch.tensor([4, 1, 0, 3, 2])
        shuffled = loss(pred[n][:, k], target[n][:, k], weight[n][:, k], area[n], sigmas[k])
        torch.testing.assert_close(shuffled, loss(pred, target, weight, area, sigmas))

    def test_checks_can_be_left_out_and_change_nothing(self, loss):
        arguments = people()
        torch.testing.assert_close(loss(*arguments, check=False), loss(*arguments))


@pytest.mark.parametrize("skeleton", [FACE_5, COCO_17], ids=lambda s: s.name)
def test_one_minus_the_loss_is_the_metric(skeleton):
    sigmas = torch.tensor(skeleton.sigmas)
    pred, target, weight, area, _ = people(300, skeleton.K)
    found = 1 - m.oks_loss(pred, target, weight, area, sigmas, reduction="none")
    person = weight.any(-1)
    assert (found - oks(pred, target, (2 * weight).long(), area, sigmas))[person].abs().max() < 1e-6


def test_published_gradients():
    """Area 400 px^2, sigma 0.062: the table that says why far points are not pulled."""
    for distance, expected in ((1.0, 1.5e-1), (5.0, 1.07e-1), (10.0, 4.8e-4), (20.0, 2.5e-14)):
        assert float(m.pull(distance, 400.0, 0.062)) == pytest.approx(expected, rel=0.03)
    assert float(m.dead_radius(1.0, torch.tensor([0.5]))) == pytest.approx(3.571, abs=1e-3)
    assert float(m.dead_radius(1.0, torch.tensor([0.5]), share=0.999999)) == pytest.approx(1, abs=2e-3)


def test_far_pull_of_the_family_falls_like_a_power():
    for alpha in (2.0, 1.0, 0.0, -2.0):
        ratio = m.pull(2e5, 100.0, 0.1, alpha=alpha) / m.pull(1e5, 100.0, 0.1, alpha=alpha)
        assert math.log2(float(ratio)) == pytest.approx(alpha - 1, abs=1e-3)


def test_integers_and_complex_numbers_are_refused():
    pred, target, weight, area, sigmas = people()
    for bad in (pred.long(), pred.to(torch.complex64), pred.numpy()):
        with pytest.raises(ValueError, match="pred must be a floating-point tensor"):
            m.oks_loss(bad, target, weight, area, sigmas)
    with pytest.raises(ValueError, match="target .labelled joints. must be finite"):
        m.oks_loss(pred, target / 0, weight, area, sigmas)
    with pytest.raises(ValueError, match="area must be"):
        m.robust_oks_loss(pred, target, weight, area * float("nan"), sigmas)
    for bad in (weight.numpy(), weight.to(torch.complex64)):
        with pytest.raises(ValueError, match="weight must be a real tensor"):
            m.oks_loss(pred, target, bad, area, sigmas)


def test_a_nan_prediction_of_a_labelled_joint_is_seen():
    pred, target, weight, area, sigmas = people()
    pred[0, 0] = float("nan")
    assert torch.isnan(m.oks_loss(pred, target, weight, area, sigmas))
