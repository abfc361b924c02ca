"""Bones and learned task weights: values by hand, plain loops, gradients, every precision, inputs that break common versions."""

import itertools
import math

import numpy as np
import pytest
import torch
from torch.testing import assert_close

from posetutor.codecs.gaussian import render_gaussian
from posetutor.losses import structure as m
from posetutor.skeletons import FACE_5, HAND_21, LSP_14

RULES = {
    "limbs": lambda p, t, w: m.bone_loss(p, t, w, [(0, 1), (1, 2), (3, 4)]),
    "pairs": lambda p, t, w: m.bone_loss(p, t, w),
    "batch mean": lambda p, t, w: m.bone_loss(p, t, w, variant="batch_mean"),
    "limbs of maps": lambda p, t, w: m.heatmap_bone_loss(p, t, w, [(0, 1), (1, 2), (3, 4)]),
    "pairs of maps": lambda p, t, w: m.heatmap_bone_loss(p, t, w),
    "maps, normalised": lambda p, t, w: m.heatmap_bone_loss(p, t, w, normalised=True),
}


def pdist(points):
    """Distances of all pairs, one by one."""
    return np.array([math.dist(a, b) for a, b in itertools.combinations(points.tolist(), 2)])


def case(name, B=3, K=5, dtype=torch.float32, seed=0):
    """pred, target, weight; person 0 has most joints, the last one none."""
    g = torch.Generator().manual_seed(seed)
    shape = (B, K, 6, 7) if "maps" in name else (B, K, 2)
    pred, target = (torch.randn(*shape, generator=g, dtype=dtype) for _ in range(2))
    weight = (torch.rand(B, K, generator=g) > 0.4).to(dtype)
    weight[0, :3], weight[-1] = 1, 0
    return pred, target, weight


@pytest.mark.parametrize("name", RULES)
class TestEveryRule:
    def test_gradient_is_exact(self, name):
        pred, target, weight = case(name, dtype=torch.float64)
        uneven = weight * torch.linspace(0.5, 2, weight.shape[1], dtype=torch.float64)
        assert torch.autograd.gradcheck(lambda p: RULES[name](p, target, uneven), pred.requires_grad_())

    def test_unlabelled_joints_have_no_gradient_and_may_hold_nan(self, name):
        pred, target, weight = case(name)
        clean = RULES[name](pred, target, weight)
        pred[weight == 0], target[weight == 0] = float("nan"), float("inf")
        pred.requires_grad_()
        value = RULES[name](pred, target, weight)
        gradient = torch.autograd.grad(value, pred)[0]
        assert value == clean > 0 and (gradient[weight == 0] == 0).all() and torch.isfinite(gradient).all() and gradient.abs().sum() > 0

    @pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
    @pytest.mark.parametrize("situation", ["nobody", "nothing labelled", "one joint each", "hits", "all at one place", "1e4 away"])
    def test_finite_in_value_and_gradient(self, name, dtype, situation):
        pred, target, weight = case(name)
        if situation == "nobody":
            pred, target, weight = pred[:0], target[:0], weight[:0]
        if situation == "one joint each":
            weight = torch.eye(5)[:3]
        weight = weight * 0 if situation == "nothing labelled" else weight
        pred = {"hits": target, "all at one place": pred * 0, "1e4 away": pred * 1e4}.get(situation, pred).to(dtype).requires_grad_()
        value = RULES[name](pred, target.to(dtype), weight.to(dtype))
        gradient = torch.autograd.grad(value, pred)[0]
        assert value.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
        assert torch.isfinite(value) and torch.isfinite(gradient).all()
        if situation in ("nobody", "nothing labelled", "one joint each", "hits", "all at one place"):
            assert (gradient == 0).all()
        if situation in ("nobody", "nothing labelled", "one joint each", "hits"):
            assert value == 0

    @pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
    def test_half_precision_is_computed_in_float32(self, name, dtype):
        pred, target, weight = (x.to(dtype) for x in case(name))
        assert_close(RULES[name](pred, target, weight), RULES[name](pred.float(), target.float(), weight.float()), rtol=0, atol=0)

    def test_order_of_people_and_memory_do_not_matter(self, name):
        pred, target, weight = case(name)
        order = torch.tensor([2, 0, 1])
        strided = torch.stack([pred, pred], -1)[..., 0]
        assert not strided.is_contiguous()
        assert_close(RULES[name](strided[order], target[order], weight[order]), RULES[name](pred, target, weight))

    def test_bad_input_is_named(self, name):
        pred, target, weight = case(name)
        nan = target.clone()
        nan[0, 0] = float("nan")
        for arguments, said in (
            ((pred[:, :4], target, weight), "pred must be"),
            ((pred, target, weight[:, :4]), "weight must be"),
            ((pred, target, -weight), "weight must be a tensor, real, finite and >= 0"),
            ((pred, target, weight * float("nan")), "weight must be a tensor, real, finite and >= 0"),
            ((pred, target, weight.numpy()), "weight must be a tensor"),
            ((pred, target, weight.to(torch.complex64)), "weight must be a tensor, real"),
            ((pred.long(), target, weight), "pred must be a floating-point tensor, got torch.int64"),
            ((pred, target.to(torch.complex64), weight), "target must be a floating-point tensor, got torch.complex64"),
            ((pred, target.numpy(), weight), "target must be a floating-point tensor, got ndarray"),
            ((pred, nan, weight), "target (labelled joints)"),
        ):
            with pytest.raises(ValueError, match=said.replace("(", r"\(").replace(")", r"\)")):
                RULES[name](*arguments)


def test_a_bone_by_hand():
    pred, target = torch.tensor([[[0.0, 0.0], [3.0, 4.0], [0.0, 1.0]]]), torch.tensor([[[0.0, 0.0], [0.0, 2.0], [1.0, 0.0]]])
    assert m.bone_loss(pred, target, torch.ones(1, 3), [(0, 1), (0, 2)]) == 1.5  # |5 - 2| and |1 - 1|
    assert m.bone_loss(pred, target, torch.tensor([[1.0, 3.0, 1.0]]), [(0, 1), (0, 2)]) == 2.25  # (3 * 3 + 1 * 0) / 4
    assert m.bone_loss(pred, target, torch.tensor([[1.0, 0.0, 1.0]]), [(0, 1), (0, 2)]) == 0  # the wrong bone has an unlabelled end
    two = torch.cat([pred, target]), torch.cat([target, target])
    assert m.bone_loss(*two, torch.tensor([[1.0, 1, 1], [0, 1, 0]]), [(0, 1), (0, 2)]) == 1.5  # nobody counts whose bones are not labelled
    assert m.bone_loss(*two, torch.ones(2, 3), [(0, 1), (0, 2)]) == 0.75


@pytest.mark.parametrize("D", [2, 3])
def test_lengths_are_distances(D):
    xy = torch.randn(4, 6, D, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    np.testing.assert_allclose(m.bone_lengths(xy), np.stack([pdist(one) for one in xy]), rtol=1e-12)
    assert m.joint_pairs(6).tolist() == [[i, j] for i in range(6) for j in range(i + 1, 6)]


@pytest.mark.parametrize("skeleton", [FACE_5, LSP_14, HAND_21], ids=lambda s: s.name)
def test_blind_to_motions_and_mirrors_and_proportional_to_size(skeleton):
    pred, target, weight = case("limbs", K=skeleton.K, dtype=torch.float64, seed=3)
    turn = torch.tensor([[0.6, 0.8], [-0.8, 0.6]], dtype=torch.float64)
    for pairs in (skeleton.limbs or [(0, 1)], None):
        value = m.bone_loss(pred, target, weight, pairs)
        for same in (pred @ turn + 5, pred * torch.tensor([-1.0, 1.0], dtype=torch.float64)):
            assert_close(m.bone_loss(same, target, weight, pairs), value)
        assert_close(m.bone_loss(3 * pred, 3 * target, weight, pairs), 3 * value)


def test_forces_sum_to_nothing():
    pred, target, weight = case("pairs", dtype=torch.float64)
    force = torch.autograd.grad(m.bone_loss(pred.requires_grad_(), target, weight), pred)[0]
    assert force.sum(1).abs().max() < 1e-12
    assert (pred[..., 0] * force[..., 1] - pred[..., 1] * force[..., 0]).sum(1).abs().max() < 1e-12


def test_batch_mean_cancels_where_people_do_not():
    target = torch.tensor([[[0.0, 0.0], [0.0, 1.0]]]).repeat(2, 1, 1)
    pred = target * torch.tensor([1.5, 0.5])[:, None, None]
    assert m.bone_loss(pred, target, torch.ones(2, 2), variant="batch_mean") == 0
    assert m.bone_loss(pred, target, torch.ones(2, 2)) == 0.5


def test_map_distances_both_ways_and_one_by_one():
    pred, target, weight = case("maps", dtype=torch.float64)
    pairs = m.joint_pairs(5)
    loop = []
    for p, t, w in zip(pred, target, weight, strict=True):
        both = [w[i] * w[j] > 0 for i, j in pairs.tolist()]
        if any(both):
            loop.append(np.abs(pdist(p.flatten(1)) - pdist(t.flatten(1)))[both].mean())
    assert m.heatmap_bone_loss(pred, target, weight).item() == pytest.approx(np.mean(loop), rel=1e-12)
    assert_close(m.heatmap_bone_loss(pred, target, weight, pairs), m.heatmap_bone_loss(pred, target, weight), rtol=1e-12, atol=0)


@pytest.mark.parametrize("sigma, accuracy", [(1.0, 1e-3), (1.5, 1e-8), (3.0, 1e-8)])
def test_distance_of_two_gaussians(sigma, accuracy):
    d = torch.linspace(0, 25, 26, dtype=torch.float64)
    xy = torch.stack([15 + d, torch.full_like(d, 20.0)], -1)[None]
    maps = render_gaussian(xy, (41, 56), sigma).flatten(2)
    assert_close((maps[0] - maps[0, :1]).norm(dim=-1), m.gaussian_map_distance(d, sigma), rtol=accuracy, atol=1e-12)
    assert m.gaussian_map_distance(0.0, sigma) == 0 and m.gaussian_map_distance(1e9, sigma).item() == pytest.approx(sigma * math.sqrt(2 * math.pi))
    assert m.gaussian_map_distance(1e-6, sigma).item() == pytest.approx(1e-6 * math.sqrt(math.pi / 2), rel=1e-9)  # no cancellation near 0


@pytest.mark.parametrize(
    "call, said",
    [
        (lambda: m.joint_pairs(1), "K must be an integer >= 2"),
        (lambda: m.joint_pairs(2.5), "K must be an integer >= 2"),
        (lambda: m.bone_lengths(torch.zeros(2, 3, 2), [(0, 3)]), "two different joints from 0 to 2, got"),
        (lambda: m.bone_lengths(torch.zeros(2, 3, 2), [(-1, 1)]), "two different joints"),
        (lambda: m.bone_lengths(torch.zeros(2, 3, 2), [(1, 1)]), "two different joints"),
        (lambda: m.bone_lengths(torch.zeros(2, 3, 2), []), "at least one pair"),
        (lambda: m.bone_lengths(torch.zeros(2, 3, 2), [(0, 1, 2)]), "pairs must be"),
        (lambda: m.bone_lengths(torch.zeros(2, 3, 2), [(0.5, 1.0)]), "joint numbers"),
        (lambda: m.bone_lengths(torch.zeros(3, 2)), "xy must be"),
        (lambda: m.bone_lengths(torch.zeros(2, 3, 2, dtype=torch.int64)), "floating-point"),
        (lambda: m.bone_loss(*case("limbs"), variant="mean"), "variant must be"),
        (lambda: m.heatmap_bone_loss(torch.zeros(2, 5, 2), torch.zeros(2, 5, 2), torch.ones(2, 5)), "target must be"),  # coordinates are not maps
        (lambda: m.bone_loss(torch.zeros(2, 5, 6, 7), torch.zeros(2, 5, 6, 7), torch.ones(2, 5)), "target must be"),  # nor maps coordinates
        (lambda: m.gaussian_map_distance(1.0, 0.0), "sigma > 0"),
        (lambda: m.settled_weight(torch.tensor([1.0, 0.0])), "loss must be positive"),
        (lambda: m.settled_weight(float("inf")), "loss must be positive"),
        (lambda: m.settled_weight(torch.tensor(1j)), "loss must be real"),
        (lambda: m.settled_weight(1.0, form="x"), "form must be"),
        (lambda: m.AutoWeights(0), "tasks must be"),
        (lambda: m.AutoWeights(2, form="x"), "form must be"),
        (lambda: m.AutoWeights(2, start=[1.0]), "start must be"),
        (lambda: m.AutoWeights(2, start=[1.0, -1.0]), "loss must be positive"),
        (lambda: m.AutoWeights(2)(torch.tensor([1.0, -1e-9])), "losses must be real, finite and >= 0"),
        (lambda: m.AutoWeights(2)(torch.tensor([1.0, float("nan")])), "losses must be real, finite and >= 0"),
        (lambda: m.AutoWeights(2)(torch.tensor([1.0, float("inf")])), "losses must be real, finite and >= 0"),
        (lambda: m.AutoWeights(2)(torch.tensor([1j, 1.0])), "losses must be real"),
        (lambda: m.AutoWeights(2)([torch.tensor(1.0)]), "losses must be"),
    ],
)
def test_refused(call, said):
    with pytest.raises(ValueError, match=said):
        call()


@pytest.mark.parametrize("form", m.FORMS)
class TestAutoWeights:
    def test_settled_weight_is_the_minimum(self, form):
        losses = torch.tensor([1e-3, 0.01, 0.1, 1.0, 10.0, 1e3], dtype=torch.float64)
        s = torch.linspace(-12, 12, 240001, dtype=torch.float64)
        total = 0.5 * torch.exp(-s) * losses[:, None] + (torch.nn.functional.softplus(s) if form == "liebel" else s / 2)
        assert_close(0.5 * torch.exp(-s[total.argmin(-1)]), m.settled_weight(losses, form=form), rtol=2e-4, atol=0)

    def test_start_is_where_the_weights_settle_and_units_do_not_matter(self, form):
        losses = torch.tensor([0.02, 3.0])
        for unit in (1e-3, 1.0, 1e3):
            auto = m.AutoWeights(2, form=form, start=unit * losses)
            total = auto(unit * losses)
            assert torch.autograd.grad(total, auto.log_variance)[0].abs().max() < 1e-5
            assert_close(auto.weights.double(), m.settled_weight(unit * losses, form=form), rtol=1e-5, atol=0)
            if form == "kendall":
                assert_close(auto.weights * unit * losses, torch.full((2,), 0.5), rtol=1e-5, atol=0)

    def test_gradient_is_exact(self, form):
        auto = m.AutoWeights(3, form=form, start=[0.3, 1.0, 20.0]).double()
        losses = torch.tensor([0.2, 1.5, 4.0], dtype=torch.float64, requires_grad=True)
        call = lambda x, s: torch.func.functional_call(auto, {"log_variance": s}, x)  # noqa: E731
        assert torch.autograd.gradcheck(call, (losses, auto.log_variance.detach().clone().requires_grad_()))

    @pytest.mark.parametrize("s", [-40.0, 40.0])
    def test_beyond_its_limit_a_weight_is_finite_and_led_back(self, form, s):
        auto = m.AutoWeights(1, form=form)
        torch.nn.init.constant_(auto.log_variance, s)
        total = auto(torch.ones(1))
        pull = torch.autograd.grad(total, auto.log_variance)[0]
        assert torch.isfinite(total) and torch.isfinite(pull) and pull * s > 0  # descent goes towards 0
        assert_close(auto.weights, torch.tensor([0.5 * math.exp(-math.copysign(m.LIMIT, s))]), rtol=1e-5, atol=0)

    @pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
    def test_precision_and_zero_losses(self, form, dtype):
        auto = m.AutoWeights(2, form=form)
        losses = torch.tensor([0.0, 2.0], dtype=dtype, requires_grad=True)
        total = auto(losses)
        total.backward()
        assert total.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
        assert torch.isfinite(losses.grad).all() and torch.isfinite(auto.log_variance.grad).all()

    def test_state_is_saved_and_list_equals_tensor(self, form):
        auto = m.AutoWeights(2, form=form, start=[2.0, 5.0])
        other = m.AutoWeights(2, form=form)
        other.load_state_dict(auto.state_dict())
        assert other(torch.tensor([1.0, 3.0])) == auto([torch.tensor(1.0), torch.tensor(3.0)])
