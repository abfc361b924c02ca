"""All heatmap losses at the edges: nobody labelled, exact hits, wild predictions, half precision, foreign layouts, broken arguments."""

import math

import pytest
import torch
from torch.testing import assert_close

from posetutor.codecs.gaussian import render_gaussian, weighted_mse
from posetutor.core import refuses
from posetutor.losses.heatmap import (
    adaptive_wing_loss,
    bce_loss,
    break_even_amplitude,
    coarse_to_fine_loss,
    focal_l2_loss,
    focal_loss,
    hardest_joints,
    mse_loss,
    ohkm_loss,
    reduce_joints,
    render_blurred_cell,
    render_levels,
)

LOSSES = {
    "mse": mse_loss,
    "bce": bce_loss,
    "bce positive": lambda *a, **k: bce_loss(*a, positive=20.0, **k),
    "focal l2": focal_l2_loss,
    "focal l2, gamma 2": lambda *a, **k: focal_l2_loss(*a, gamma=2.0, alpha=0.1, beta=0.02, **k),
    "focal": focal_loss,
    "adaptive wing": adaptive_wing_loss,
    "adaptive wing, boosted": lambda *a, **k: adaptive_wing_loss(*a, boost=10.0, **k),
    "ohkm": lambda *a, **k: ohkm_loss(*a, topk=2, **k),
    "ohkm of bce": lambda *a, **k: ohkm_loss(*a, topk=2, loss=bce_loss, **k),
}
ALL = pytest.mark.parametrize("loss", LOSSES.values(), ids=LOSSES)


def maps(B=2, K=3, dtype=torch.float32, seed=0):
    g = torch.Generator().manual_seed(seed)
    target = render_gaussian(2 + torch.rand(B, K, 2, generator=g) * torch.tensor([5.0, 7.0]), (12, 9), 1.5).to(dtype)
    return torch.randn(B, K, 12, 9, generator=g).to(dtype), target


@ALL
def test_unlabelled_joints_get_no_gradient_and_may_hold_anything(loss):
    pred, target = maps()
    weight = torch.tensor([[1.0, 0.0, 2.0], [0.0, 0.0, 0.5]])
    clean = loss(pred, target, weight)
    for rubbish in (math.nan, math.inf, -1e30):
        dirty = pred.clone()
        dirty[weight == 0] = rubbish
        dirty.requires_grad_()
        value = loss(dirty, target, weight)
        assert_close(value, clean)
        value.backward()
        assert bool((dirty.grad[weight == 0] == 0).all()) and torch.isfinite(dirty.grad).all()


@ALL
def test_nobody_labelled_and_nobody_there(loss):
    pred, target = maps()
    pred.requires_grad_()
    value = loss(pred, target, torch.zeros(2, 3))
    value.backward()
    assert value == 0 and bool((pred.grad == 0).all())
    assert loss(torch.zeros(0, 3, 4, 5), torch.zeros(0, 3, 4, 5), torch.zeros(0, 3)) == 0


@ALL
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
def test_finite_value_and_gradient_for_exact_hits_and_wild_misses(loss, dtype):
    _, target = maps(dtype=dtype)
    far = 1e2 if dtype == torch.float16 else 1e4  # the loss is a float32, but a float16 gradient must fit into 65504
    for pred in (target.clone(), torch.zeros_like(target), torch.full_like(target, far), torch.full_like(target, -far), 1 - target):
        pred = pred.detach().requires_grad_()
        value = loss(pred, target, torch.ones(2, 3))
        value.backward()
        assert torch.isfinite(value) and torch.isfinite(pred.grad.float()).all()
        assert value.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)


@ALL
def test_half_precision_is_compared_in_float32(loss):
    pred, target = maps()
    pred, target = pred.bfloat16(), target.bfloat16()
    assert_close(loss(pred, target), loss(pred.float(), target.float()))


@ALL
def test_memory_layout_and_joints(loss):
    pred, target = maps(K=133)
    strided = torch.stack([pred, pred], -1)[..., 0]
    assert_close(loss(strided.contiguous(memory_format=torch.channels_last), target), loss(pred, target))
    order = torch.randperm(133, generator=torch.Generator().manual_seed(1))
    assert_close(loss(pred[:, order], target[:, order]), loss(pred, target))
    assert torch.isfinite(loss(*maps(K=1)))


@ALL
def test_gradient_is_right(loss):
    pred, target = maps(B=1, dtype=torch.float64)
    pred = (pred[..., :3, :4] + 0.13).detach().requires_grad_()
    weight = torch.tensor([[1.0, 0.0, 0.5]], dtype=torch.float64)
    assert torch.autograd.gradcheck(lambda p: loss(p, target[..., :3, :4], weight), pred)


@ALL
def test_broken_arguments_are_refused(loss):
    pred, target = maps()
    refuses(lambda: loss(pred[:, :2], target), contains="pred must be (B, K, H, W)")
    refuses(lambda: loss(pred, target[0]), contains="target must be (B, K, H, W)")
    refuses(lambda: loss(pred, target, torch.ones(2, 2)), contains="weight must be (B, K)")
    refuses(lambda: loss(pred, target, -torch.ones(2, 3)), contains="weight must be finite and >= 0")
    refuses(lambda: loss(pred, target, torch.full((2, 3), math.nan)), contains="weight must be finite and >= 0")
    refuses(lambda: loss(pred.to(torch.complex64), target), contains="pred must be floating point")
    refuses(lambda: loss(pred, target, reduction="mean"), contains="reduction must be")
    refuses(lambda: loss(pred[..., :0], target[..., :0]), contains="at least one cell")


@pytest.mark.parametrize("loss", [mse_loss, bce_loss, focal_l2_loss, adaptive_wing_loss])
def test_reductions_fit_together(loss):
    pred, target = maps()
    weight = torch.tensor([[1.0, 0.0, 2.0], [0.5, 1.0, 0.5]])
    joints = loss(pred, target, weight, reduction="none")
    assert joints.shape == (2, 3)
    assert_close(loss(pred, target, weight, reduction="sum"), joints.sum())
    assert_close(loss(pred, target, weight, reduction="all"), joints.mean())
    assert_close(loss(pred, target, weight), joints.sum() / weight.sum())
    assert_close(reduce_joints(joints / weight, weight), loss(pred, target, weight))
    assert_close(ohkm_loss(pred, target, weight, topk=3, loss=loss), loss(pred, target, weight))  # M = K is the plain mean
    half = loss(pred[:1], target[:1], weight[:1]), loss(pred[1:], target[1:], weight[1:])
    assert_close(loss(pred, target, weight), (half[0] * 3 + half[1] * 2) / 5)  # two processes weigh by their labels


def test_a_labelled_nan_is_noticed():
    pred, target = maps()
    pred[0, 1, 3, 3] = math.nan
    assert all(torch.isnan(loss(pred, target)) for loss in (mse_loss, bce_loss, focal_l2_loss, focal_loss, adaptive_wing_loss, ohkm_loss))


def test_mse_is_chapter_21_in_other_words():
    pred, target = maps()
    weight = torch.tensor([[1.0, 0.0, 2.0], [0.5, 1.0, 0.5]])
    assert_close(mse_loss(pred, target, weight, reduction="all"), weighted_mse(pred, target, weight, variant="mmpose"))
    assert_close(mse_loss(pred, target, weight**2, reduction="all") / 2, weighted_mse(pred, target, weight))


def test_hardest_joints_counts_labelled_ones_only():
    losses = torch.tensor([[5.0, 1.0, 4.0, 3.0], [1.0, 2.0, 3.0, math.nan]])
    assert hardest_joints(losses, 2).tolist() == [[True, False, True, False], [False, False, True, True]]
    weight = torch.tensor([[0.0, 1.0, 1.0, 1.0], [0.0, 0.0, 1.0, 0.0]])
    assert hardest_joints(losses, 2, weight).tolist() == [[False, False, True, True], [False, False, True, False]]
    assert hardest_joints(losses, 9).all() and hardest_joints(torch.zeros(0, 4), 2).shape == (0, 4)
    refuses(lambda: hardest_joints(losses, 0), contains="topk must be a whole number")


def test_break_even_meets_its_maps():
    for shift, sigma in ((0.5, 2.0), (1.0, 2.0), (2.0, 2.0), (1.3, 1.2), (3.2, 2.0)):
        centre = torch.tensor([[[20.0, 20.0]]], dtype=torch.float64)
        target, moved = (render_gaussian(centre + torch.tensor([d, 0.0]), (41, 41), sigma) for d in (0.0, shift))
        a = break_even_amplitude(shift, sigma)
        assert_close(mse_loss(a * target, target), mse_loss(moved, target), rtol=2e-4, atol=0)
    assert break_even_amplitude(3.34, 2.0) == 0 and break_even_amplitude(0.0) == 1
    refuses(lambda: break_even_amplitude(-1.0), contains="shift must be >= 0")


def test_levels():
    xy = torch.tensor([[[4.0, 5.0], [30.0, 2.0]]])
    levels = render_levels(xy, (12, 9), (2.0, 1.0))
    assert levels.shape == (2, 1, 2, 12, 9) and levels[0].sum() > levels[1].sum()
    assert_close(levels[1], render_gaussian(xy, (12, 9), 1.0))
    cells = render_blurred_cell(xy + 0.9, (12, 9), 5)
    assert cells[0, 0, 5, 4] == 1 and cells[0, 1].sum() == 0  # truncated: 4.9 is cell 4; outside: nothing
    pred, target = maps()
    preds, targets = [pred, pred / 2, pred / 3], [target, target, target]
    weight = torch.ones(2, 3)
    wanted = 0.25 * (mse_loss(pred, target) + mse_loss(pred / 2, target)) + ohkm_loss(pred / 3, target, topk=2)
    assert_close(coarse_to_fine_loss(preds, targets, weight, topk=2), wanted)
    assert coarse_to_fine_loss(preds, torch.stack(targets), weight, reduction="none").shape == (2, 3)
    small = torch.nn.functional.avg_pool2d(pred, 3), torch.nn.functional.avg_pool2d(target, 3)
    assert torch.isfinite(coarse_to_fine_loss([small[0], pred], [small[1], target], weight))  # levels may differ in size
    refuses(lambda: coarse_to_fine_loss(preds, targets[:2]), contains="same number of levels")
    refuses(lambda: render_levels(xy, (12, 9), ()), contains="at least one width")
    refuses(lambda: render_blurred_cell(xy, (12, 9), 4), contains="odd number of cells")
    refuses(lambda: render_blurred_cell(xy, (0, 9), 5), contains="size must be at least 1 x 1 cells, got 0 x 9")


def test_options_out_of_range():
    pred, target = maps()
    refuses(lambda: bce_loss(pred, target * 3), contains="target must lie in [0, 1]")
    refuses(lambda: bce_loss(pred, target, positive=0.0), contains="positive must be positive")
    refuses(lambda: focal_l2_loss(pred, target, gamma=0.5), contains="gamma must be 0 or >= 1")
    refuses(lambda: focal_l2_loss(pred, target, mask=torch.ones(2, 2, 12, 9)), contains="mask must be (B, C, H, W)")
    refuses(lambda: focal_loss(pred, target, positive="near"), contains="positive must be 'peak' or 'exact'")
    refuses(lambda: adaptive_wing_loss(pred, target, alpha=1.5), contains="alpha above 2")
