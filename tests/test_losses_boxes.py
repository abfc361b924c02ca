"""Box losses and suppression: the official numbers (tests/data/box_iou.npz), every precision, inputs that break naive versions."""

import math
from pathlib import Path

import numpy as np
import pytest
import torch

from posetutor.losses import boxes as m

Z = np.load(Path(__file__).parent / "data" / "box_iou.npz", allow_pickle=False)
LOSSES = (*m.KINDS, "log_iou", "square_iou")


@pytest.mark.parametrize("kind", m.KINDS)
def test_official_numbers(kind):
    a, b = (m.from_centre(torch.from_numpy(Z[name])) for name in ("in_box1", "in_box2"))
    np.testing.assert_allclose(m.box_overlap(a, b, kind=kind), Z[f"out_{kind}"], atol=1e-5)


def some(n=6, dtype=torch.float32, seed=0):
    g = torch.Generator().manual_seed(seed)
    target = torch.cat([20 * torch.rand(n, 2, generator=g, dtype=dtype), 1 + 9 * torch.rand(n, 2, generator=g, dtype=dtype)], -1)
    return target + 0.8 * torch.randn(n, 4, generator=g, dtype=dtype), target, (torch.rand(n, generator=g) > 0.3).to(dtype)


@pytest.mark.parametrize("kind", LOSSES)
class TestEveryLoss:
    def test_gradient(self, kind):
        pred, target, weight = some(dtype=torch.float64)
        if kind == "ciou":  # alpha is a constant for the gradient, so compare with the same function and alpha kept from the value
            box = pred.clone().requires_grad_()
            found = torch.autograd.grad(m.box_loss(box, target, weight), box)[0]
            iou, v = m.box_overlap(pred, target), 4 / math.pi**2 * (torch.atan(target[:, 2] / target[:, 3]) - torch.atan(pred[:, 2] / pred[:, 3])).square()
            alpha = v / (1 - iou + v)
            angle = 4 / math.pi**2 * (torch.atan(target[:, 2] / target[:, 3]) - torch.atan(box[:, 2] / box[:, 3])).square()
            by_hand = (weight * (1 - m.box_overlap(box, target, kind="diou") + alpha * angle)).sum() / weight.sum()
            torch.testing.assert_close(found, torch.autograd.grad(by_hand, box)[0])
        else:
            assert torch.autograd.gradcheck(lambda p: m.box_loss(p, target, weight, kind=kind), pred.requires_grad_())

    def test_boxes_without_weight_have_no_gradient_and_may_hold_nan(self, kind):
        pred, target, weight = some()
        clean = m.box_loss(pred, target, weight, kind=kind)
        pred[weight == 0], target[weight == 0] = float("nan"), float("inf")
        pred.requires_grad_()
        value = m.box_loss(pred, target, weight, kind=kind)
        gradient = torch.autograd.grad(value, pred)[0]
        assert value == clean and (gradient[weight == 0] == 0).all() and torch.isfinite(gradient).all()
        assert m.box_loss(pred, target, weight * 0, kind=kind) == 0

    @pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
    @pytest.mark.parametrize("case", ["none", "hits", "1e4 away", "no area", "negative sides", "target of 1e-6", "points on points"])
    def test_finite(self, kind, dtype, case):
        pred, target, _ = some()
        pred, target = (pred[:0], target[:0]) if case == "none" else (pred, target)
        pred = {"hits": target, "1e4 away": target + torch.tensor([1e4, 1e4, 0, 0]), "no area": target * torch.tensor([1, 1, 0, 0]), "negative sides": -target}.get(case, pred).clone()
        if "1e-6" in case or "points" in case:
            target = torch.cat([target[:, :2], torch.full_like(target[:, 2:], 1e-3)], -1)
            pred = torch.cat([target[:, :2], torch.zeros_like(target[:, 2:])], -1) if "points" in case else pred
        pred = pred.to(dtype).requires_grad_()
        value = m.box_loss(pred, target.to(dtype), kind=kind)
        gradient = torch.autograd.grad(value, pred)[0]
        assert value.dtype == (torch.float64 if dtype == torch.float64 else torch.float32) and torch.isfinite(value) and torch.isfinite(gradient).all()
        if case == "hits":
            assert abs(value) < 1e-6

    def test_scale_and_reductions(self, kind):
        pred, target, weight = some(dtype=torch.float64)
        rows = m.box_loss(pred, target, weight, kind=kind, reduction="none")
        torch.testing.assert_close(rows.sum() / weight.sum(), m.box_loss(pred, target, weight, kind=kind))
        torch.testing.assert_close(rows.sum(), m.box_loss(pred, target, weight, kind=kind, reduction="sum"))
        torch.testing.assert_close(rows, m.box_loss(1e-5 * pred, 1e-5 * target, weight, kind=kind, reduction="none"))
        torch.testing.assert_close(rows, m.box_loss(pred, target, weight, kind=kind, reduction="none", check=False))


def loop(boxes, scores, threshold, overlap):
    keep = []
    for i in sorted(range(len(scores)), key=lambda i: -scores[i]):
        if all(overlap[i][j] <= threshold for j in keep):
            keep.append(i)
    return keep


@pytest.mark.parametrize("kind", ["iou", "giou", "diou"])
def test_suppression_is_the_loop_even_for_long_chains_and_ties(kind):
    g = torch.Generator().manual_seed(1)
    chain = torch.tensor([[3.0 * n, 0, 10, 10] for n in range(40)])
    for boxes, scores in [
        (chain, torch.linspace(1, 0.1, 40)),
        (torch.cat([40 * torch.rand(300, 2, generator=g), 5 + 9 * torch.rand(300, 2, generator=g)], -1), (10 * torch.rand(300, generator=g)).round()),
    ]:
        overlap = m.box_overlap(boxes[:, None], boxes, kind=kind).tolist()
        for threshold in (0.1, 0.3, 0.5):
            assert m.box_nms(boxes, scores, threshold, kind=kind).tolist() == loop(boxes, scores.tolist(), threshold, overlap)
    assert m.box_nms(chain, torch.linspace(1, 0.1, 40), 0.5, limit=3).shape == (3,)


def test_soft_suppression_against_the_loop():
    g = torch.Generator().manual_seed(2)
    boxes = torch.cat([12 * torch.rand(30, 2, generator=g), 4 + 4 * torch.rand(30, 2, generator=g)], -1)
    scores = torch.rand(30, generator=g)
    iou = m.box_overlap(boxes[:, None], boxes).double()
    for decay, factor in (("gaussian", torch.exp(-(iou**2) / 0.5)), ("linear", torch.where(iou > 0.3, 1 - iou, 1.0))):
        left, now, order = set(range(30)), scores.double().clone(), []
        while left:
            best = max(left, key=lambda i: now[i])
            if now[best] < 1e-3:
                break
            left.remove(best)
            order.append(best)
            for i in left:
                now[i] *= factor[best, i]
        index, lowered = m.soft_box_nms(boxes, scores, decay=decay)
        assert index.tolist() == order and (lowered.diff() <= 0).all()
        torch.testing.assert_close(lowered, now[order])
    assert len(m.soft_box_nms(boxes, scores, limit=4)[0]) == 4


def test_bad_input_is_named():
    pred, target, weight = some()
    for bad, said in (
        (lambda: m.box_loss(pred[0], target, weight), "pred must be"),
        (lambda: m.box_loss(pred.to(torch.complex64), target), "floating-point"),
        (lambda: m.box_loss(pred, target * float("nan")), "target must be finite"),
        (lambda: m.box_loss(pred, target, reduction="median"), "reduction must be"),
        (lambda: m.box_nms(target, weight, kind="ciou"), "kind must be"),
        (lambda: m.box_nms(target, weight, classes=torch.zeros(2)), "classes must be"),
        (lambda: m.soft_box_nms(target, weight, width=0), "width must be"),
        (lambda: m.soft_box_nms(target, weight, decay="step"), "decay must be"),
        (lambda: m.box_nms(target, weight, limit=-1), "limit must be None or a whole number"),  # a slice would drop the last box
        (lambda: m.box_nms(target, weight, limit=1.5), "limit must be None or a whole number"),
        (lambda: m.soft_box_nms(target, weight, limit=-1), "limit must be None or a whole number"),
    ):
        with pytest.raises(ValueError, match=said):
            bad()
