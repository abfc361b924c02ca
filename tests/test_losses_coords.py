"""Coordinate losses at the edges: nobody labelled, exact hits, far misses, half precision, NaN where nothing is labelled, gradients."""

import math

import pytest
import torch
from torch.testing import assert_close

from posetutor.codecs.base import Codec, RegressionCodec, measure_codec, weighted_l1
from posetutor.core import refuses
from posetutor.losses.coords import (
    FAMILIES,
    RealNVP,
    ResidualLikelihood,
    RleCodec,
    fit_residuals,
    gaussian_nll,
    laplace_nll,
    log_normaliser,
    rle_loss,
    scale_from_logits,
    smooth_l1_loss,
    soft_wing_loss,
    weighted_l2,
    wing_loss,
)


def draw(seed=0):
    return torch.Generator().manual_seed(seed)


def shaken(seed=0, layers=6, hidden=16):
    """A flow that is not the identity any more."""
    torch.manual_seed(seed)
    flow = RealNVP(layers, hidden)
    with torch.no_grad():
        for p in flow.parameters():
            p.add_(0.15 * torch.randn(p.shape, generator=draw(seed)))
    return flow


FLOW = shaken()
POINTS = {
    "l1": weighted_l1,
    "l2": weighted_l2,
    "smooth_l1": lambda p, t, w: smooth_l1_loss(p, t, w, beta=0.5),
    "wing": lambda p, t, w: wing_loss(p, t, w, width=10.0, curvature=2.0),
    "soft_wing": lambda p, t, w: soft_wing_loss(p, t, w, inner=2.0, outer=20.0, curvature=0.5),
    "gaussian": lambda p, t, w: gaussian_nll(p, t, w, scale=0.7),
    "laplace": lambda p, t, w: laplace_nll(p, t, w, scale=0.7),
}
SCALED = {
    "gaussian_scale": lambda p, t, w: gaussian_nll(p, t, w),
    "laplace_scale": lambda p, t, w: laplace_nll(p, t, w),
    **{f"rle_{v}": lambda p, t, w, v=v: rle_loss(p, t, w, FLOW.to(torch.float64 if p.dtype == torch.float64 else torch.float32), variant=v) for v in ("residual", "flow", "official", "mmpose")},
}
LOSSES = {**POINTS, **SCALED}


def case(name, B=2, K=3, dtype=torch.float32, seed=0):
    outputs = 2 if name in POINTS else 4
    pred = torch.randn(B, K, outputs, generator=draw(seed), dtype=torch.float64).to(dtype)
    return pred.requires_grad_(), torch.randn(B, K, 2, generator=draw(seed + 1), dtype=torch.float64).to(dtype), torch.ones(B, K)


@pytest.mark.parametrize("name", LOSSES)
class TestEveryLoss:
    def test_unlabelled_joints_have_exactly_zero_gradient_whatever_stands_there(self, name):
        pred, target, weight = case(name)
        weight[0, 1] = weight[1, 2] = 0
        broken, gone = pred.detach().clone(), target.clone()
        for junk in (float("nan"), float("inf"), 1e30):
            broken[0, 1], gone[0, 1] = junk, junk
            leaf = broken.clone().requires_grad_()
            loss = LOSSES[name](leaf, gone, weight)
            loss.backward()
            assert_close(loss, LOSSES[name](pred, target, weight))
            assert torch.isfinite(leaf.grad).all() and bool((leaf.grad[weight == 0] == 0).all()) and bool((leaf.grad[weight > 0] != 0).any())

    def test_nobody_labelled_and_nobody_there(self, name):
        for B, K in ((2, 3), (0, 3), (1, 1), (2, 0)):
            pred, target, weight = case(name, B, K)
            loss = LOSSES[name](pred, target, torch.zeros_like(weight))
            loss.backward()
            assert loss == 0 and bool((pred.grad == 0).all())

    def test_mean_over_labelled_coordinates(self, name):
        """Twice the batch, twice the weights or one more unlabelled joint change nothing; weights count as copies."""
        pred, target, weight = case(name, B=1)
        once = LOSSES[name](pred, target, weight)
        assert_close(LOSSES[name](pred.repeat(2, 1, 1), target.repeat(2, 1, 1), weight.repeat(2, 1)), once)
        assert_close(LOSSES[name](pred, target, 2 * weight), once)
        copied = torch.tensor([[1.0, 3.0, 1.0]])
        order = [0, 1, 1, 1, 2]
        assert_close(LOSSES[name](pred, target, copied), LOSSES[name](pred[:, order], target[:, order], torch.ones(1, 5)))

    @pytest.mark.parametrize("miss", [0.0, 1e-12, 1.0, 1e4])
    @pytest.mark.parametrize("logit", [-100.0, 0.0, 100.0])
    def test_finite_for_hits_misses_and_extreme_scales(self, name, miss, logit):
        pred, target, weight = case(name)
        with torch.no_grad():
            pred[..., :2] = target + miss
            pred[..., 2:] = logit
        loss = LOSSES[name](pred, target, weight)
        loss.backward()
        assert torch.isfinite(loss) and torch.isfinite(pred.grad).all()

    @pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
    def test_half_precision_computes_in_float32(self, name, dtype):
        pred, target, weight = case(name, dtype=dtype)
        loss = LOSSES[name](pred, target, weight)
        loss.backward()
        assert loss.dtype == torch.float32 or name == "l1"
        assert_close(loss.float(), LOSSES[name](pred.detach().float(), target.float(), weight), rtol=2e-2 if name == "l1" else 1e-6, atol=1e-6)
        assert torch.isfinite(pred.grad).all()

    def test_gradcheck(self, name):
        pred, target, weight = case(name, dtype=torch.float64)
        weight = torch.tensor([[1.0, 0.0, 2.0], [0.5, 1.0, 1.0]], dtype=torch.float64)
        assert torch.autograd.gradcheck(lambda p: LOSSES[name](p, target, weight), (pred,), atol=1e-5)

    def test_memory_layout_and_K(self, name):
        pred, target, weight = case(name, B=3, K=133)
        other = LOSSES[name](pred.transpose(0, 1).contiguous().transpose(0, 1), target.transpose(0, 1).contiguous().transpose(0, 1), weight)
        assert_close(other, LOSSES[name](pred, target, weight))

    def test_bad_input_is_named(self, name):
        loss = LOSSES[name]
        pred, target, weight = case(name)
        pred = pred.detach()
        refuses(lambda: loss(pred, target, -weight), contains="weight must be")
        refuses(lambda: loss(pred, target, weight * float("nan")), contains="weight must be")
        refuses(lambda: loss(pred, target[:, :2], weight), contains="pred must be")
        refuses(lambda: loss(pred, target, weight[:1]), contains="weight must be")
        refuses(lambda: loss(pred, target[..., :1], weight), contains="target must be")
        if name != "l1":
            refuses(lambda: loss(pred.to(torch.complex64), target, weight), contains="pred must be floating point")
            refuses(lambda: loss(pred, target.long(), weight), contains="target must be floating point")


def test_the_widened_argument_is_the_same_loss():
    pred, target, weight = case("l2", dtype=torch.float64)
    assert weighted_l2(pred, target, weight).dtype == torch.float64
    assert_close(weighted_l2(pred, target, weight), torch.nn.functional.mse_loss(pred, target))
    assert_close(smooth_l1_loss(pred, target, weight, beta=0.3), torch.nn.functional.smooth_l1_loss(pred, target, beta=0.3))
    assert_close(gaussian_nll(pred, target, weight, scale=0.3), -torch.distributions.Normal(target, 0.3).log_prob(pred).mean())
    assert_close(laplace_nll(pred, target, weight, scale=0.3), -torch.distributions.Laplace(target, 0.3).log_prob(pred).mean())


@pytest.mark.parametrize("value", [0, -1.0, math.inf, math.nan, "1", True])
def test_parameters_must_be_positive(value):
    pred, target, weight = case("l2")
    refuses(lambda: smooth_l1_loss(pred, target, weight, beta=value), contains="beta must be a positive number")
    refuses(lambda: wing_loss(pred, target, weight, width=value, curvature=1.0), contains="width must be a positive number")
    refuses(lambda: soft_wing_loss(pred, target, weight, inner=1.0, outer=value, curvature=1.0), contains="outer must be a positive number")


def test_scales_must_be_positive_and_fit():
    pred, target, weight = case("l2")
    refuses(lambda: laplace_nll(pred, target, weight, scale=0.0), contains="scale must be positive")
    refuses(lambda: laplace_nll(pred, target, weight, scale=torch.full((2, 3, 2), -1.0)), contains="scale must be positive")
    refuses(lambda: gaussian_nll(pred, target, weight, scale=torch.ones(3, 2)), contains="scale must be a positive number or (B, K, 2)")
    refuses(lambda: gaussian_nll(pred, target, weight, scale=torch.ones(2, 4, 2)), contains="scale must be a positive number or (B, K, 2)")
    logits = torch.randn(2, 3, 2, generator=draw(4))
    assert_close(laplace_nll(torch.cat([pred, logits], -1), target, weight), laplace_nll(pred, target, weight, scale=scale_from_logits(logits)))
    refuses(lambda: laplace_nll(pred, target, weight), contains="pred must be (B, K, 4)")
    per_joint = laplace_nll(pred, target, weight, scale=torch.full((2, 3, 1), 0.7))
    assert_close(per_joint, laplace_nll(pred, target, weight, scale=0.7))
    hidden = torch.tensor([[1.0, 0.0, 1.0], [1.0, 1.0, 1.0]])
    scale = torch.full((2, 3, 2), 0.7)
    scale[0, 1] = float("nan")
    assert torch.isfinite(laplace_nll(pred, target, hidden, scale=scale))
    refuses(lambda: scale_from_logits(torch.zeros(3), floor=1.0), contains="floor in [0, 1)")
    refuses(lambda: scale_from_logits(torch.zeros(3, dtype=torch.int64)), contains="logits must be floating point")


# --- fits ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", FAMILIES)
def test_fits_find_their_own_law_and_scale_with_the_unit(family):
    g = draw(3)
    u = torch.rand(40_000, generator=g, dtype=torch.float64)
    sign = torch.where(torch.rand(40_000, generator=g) < 0.5, -1.0, 1.0)
    sample = {
        "gaussian": 2.0 * torch.randn(40_000, generator=g, dtype=torch.float64),
        "laplace": -2.0 * u.log() * sign,
        "smooth_l1": -2.0 * u.log() * sign,  # a Laplace is a smooth L1 with a tiny parabola
        "wing": 2.0 * (u ** (-1 / 2.5) - 1) * sign,  # exponent 3.5, scale 2
    }[family]
    fit = fit_residuals(sample, family)
    if family == "smooth_l1":
        assert abs(fit.scale / fit.shape - 2.0) < 0.1 and fit.nll <= fit_residuals(sample, "laplace").nll + 1e-3
    else:
        assert abs(fit.scale - 2.0) < 0.12 and (fit.shape is None or abs(fit.shape - 3.5) < 0.1)
    grid = torch.linspace(-400, 400, 800_001, dtype=torch.float64)
    assert abs(fit.log_prob(grid).exp().sum().item() * 1e-3 - 1) < (1e-2 if family == "wing" else 1e-3)
    other = fit_residuals(10 * sample, family)
    assert abs(other.scale / fit.scale - 10) < 0.05 and abs(other.nll - fit.nll - math.log(10)) < 1e-3
    assert all(fit.nll <= -type(fit)(family, fit.scale * f, fit.shape, 0.0).log_prob(sample).mean().item() + 1e-9 for f in (0.97, 1.03))


def test_fits_refuse_what_has_no_density():
    refuses(lambda: fit_residuals(torch.zeros(5), "laplace"), contains="residuals must not all be 0")
    refuses(lambda: fit_residuals(torch.ones(1), "laplace"), contains="at least 2")
    refuses(lambda: fit_residuals(torch.tensor([1.0, math.nan]), "laplace"), contains="residuals must be finite")
    refuses(lambda: fit_residuals(torch.ones(5), "student"), contains="family must be one of gaussian")
    refuses(lambda: fit_residuals(torch.randn(5).numpy(), "laplace"), contains="residuals must be a tensor of at least 2 floating-point numbers, got ndarray")


@pytest.mark.parametrize("place, name", enumerate(("pred", "target", "weight")))
def test_arrays_are_named(place, name):
    given = [torch.zeros(2, 3, 2), torch.zeros(2, 3, 2), torch.ones(2, 3)]
    given[place] = given[place].numpy()
    refuses(lambda: smooth_l1_loss(*given, beta=1.0), contains=f"{name} must be a tensor, got ndarray")


# --- flow and likelihood -------------------------------------------------------------------------------------------


def grid(reach=16.0, n=401):
    axis = torch.linspace(-reach, reach, n)
    return torch.cartesian_prod(axis, axis), (axis[1] - axis[0]) ** 2


@pytest.mark.parametrize("variant,base", [("residual", "laplace"), ("residual", "gaussian"), ("flow", "laplace"), ("official", "laplace")])
def test_densities_integrate_to_one(variant, base):
    points, cell = grid()
    for flow in (RealNVP(6, 16), shaken(1), shaken(2)):
        with torch.no_grad():
            mass = ResidualLikelihood(flow, variant=variant, base=base).log_prob(points).exp().sum() * cell
        assert abs(mass - 1) < 0.01, f"{variant} {base}: {mass:.4f}"


def test_flow_is_invertible_and_its_determinant_is_the_jacobian():
    flow = shaken(4).double()
    x = torch.randn(20, 2, generator=draw(5), dtype=torch.float64)
    z, log_det = flow.to_latent(x)
    assert_close(flow.to_data(z), x, rtol=0, atol=1e-9)
    jacobian = torch.autograd.functional.jacobian(lambda x: flow.to_latent(x)[0].sum(0), x).permute(1, 0, 2)
    assert_close(torch.linalg.slogdet(jacobian)[1], log_det, rtol=0, atol=1e-9)
    assert_close(flow(x), flow.log_prob(x))
    assert torch.autograd.gradcheck(flow.log_prob, (x.requires_grad_(),))


def test_flow_starts_as_the_normal_and_samples_its_density():
    x = torch.randn(9, 2, generator=draw(5))
    normal = torch.distributions.MultivariateNormal(torch.zeros(2), torch.eye(2))
    assert_close(RealNVP().log_prob(x), normal.log_prob(x))
    flow = shaken(6)
    sample = flow.sample(20_000, generator=draw(7))
    points, cell = grid()
    with torch.no_grad():
        mass = flow.log_prob(points).exp() * cell
    assert_close(sample.mean(0), (mass[:, None] * points).sum(0), rtol=0, atol=0.05)
    assert torch.equal(flow.sample(5), flow.sample(5))


def test_half_precision_and_autocast_leave_the_flow_in_float32():
    x = torch.randn(9, 2, generator=draw(5)).bfloat16()
    assert_close(FLOW.float().log_prob(x), FLOW.log_prob(x.float()))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert_close(FLOW.log_prob(x.float()), FLOW.log_prob(x))
    assert FLOW.log_prob(torch.zeros(0, 2)).shape == (0,) and FLOW.log_prob(torch.zeros(2, 3, 2)).shape == (2, 3)


def test_flow_refuses():
    refuses(lambda: RealNVP(0), contains="layers and hidden must be whole numbers")
    refuses(lambda: RealNVP(4, 8.0), contains="layers and hidden must be whole numbers")
    refuses(lambda: FLOW.log_prob(torch.zeros(4, 3)), contains="x must be floating-point points (..., 2)")
    refuses(lambda: FLOW.to_data(torch.zeros(4, 2, dtype=torch.int64)), contains="z must be floating-point points (..., 2)")
    refuses(lambda: FLOW.log_prob(torch.zeros(4, 2, dtype=torch.complex64)), contains="x must be floating-point points")
    refuses(lambda: log_normaliser(FLOW, "cauchy"), contains="base must be 'laplace' or 'gaussian'")
    refuses(lambda: ResidualLikelihood(variant="nf"), contains="variant must be one of residual, flow, official, mmpose")
    pred, target, weight = case("rle_flow")
    refuses(lambda: rle_loss(pred, target, weight, FLOW, variant="nf"), contains="variant must be one of residual")
    refuses(lambda: rle_loss(pred[..., :2], target, weight, FLOW), contains="pred must be (B, K, 4)")


def test_no_labelled_joint_leaves_the_flow_alone():
    flow = shaken(8)
    pred, target, weight = case("rle_flow")
    rle_loss(pred, target, 0 * weight, flow).backward()
    assert all(bool((p.grad == 0).all()) for p in flow.parameters())


def test_the_loss_is_minus_the_log_density_of_the_target():
    """Change of variables once more: density of the scaled residual, divided by both scales."""
    pred, target, weight = case("rle_residual", dtype=torch.float64)
    for variant in ("residual", "flow"):
        likelihood = ResidualLikelihood(shaken(9).double(), variant=variant)
        scale = scale_from_logits(pred[..., 2:])
        density = likelihood.log_prob((target - pred[..., :2]) / scale) - scale.log().sum(-1)
        assert_close(likelihood(pred, target, weight), -density.mean() / 2)


# --- codec ---------------------------------------------------------------------------------------------------------


def test_codec_protocol_round_trip_and_scores():
    codec = RleCodec((96, 64))
    assert isinstance(codec, Codec) and codec == RleCodec((96, 64)) and codec != RleCodec((64, 96)) and hash(codec) == hash(RleCodec((96, 64)))
    assert codec.stride is None and codec.channels(5) == 20 and "Residual" not in repr(codec)
    error = measure_codec(codec, points=500, perfect=codec.perfect)[0]
    assert error.max < 1e-3
    xy = torch.rand(2, 3, 2, generator=draw()) * 60
    made = codec.encode(xy, torch.tensor([[2, 1, 0], [2, 2, 2]]))
    assert_close(made.coords, RegressionCodec((96, 64)).encode(xy, torch.full((2, 3), 2)).coords)
    assert made.weight.tolist() == [[1, 1, 0], [1, 1, 1]]
    output = torch.randn(2, 12, generator=draw(1)).requires_grad_()
    found, score = codec.decode(output)
    assert found.shape == (2, 3, 2) and score.shape == (2, 3) and 0 < score.min() and score.max() < 1
    assert_close(score, 1 - scale_from_logits(output.unflatten(1, (3, 4))[..., 2:]).mean(-1))
    assert_close(codec.decode(output.unflatten(1, (3, 4)))[0], found)
    codec.loss(output, made).backward()
    grad = output.grad.unflatten(1, (3, 4))
    assert bool((grad[0, 2] == 0).all()) and bool((grad[0, :2] != 0).all())
    assert bool((codec.decode(made)[1] == 1).all())
    assert_close(codec.decode(made)[0], xy, rtol=0, atol=1e-4)


def test_codec_trains_its_density():
    codec = RleCodec((96, 64), ResidualLikelihood(RealNVP(2, 8)))
    assert codec.parameters() and all(p.requires_grad for p in codec.parameters())
    made = codec.encode(torch.rand(4, 3, 2, generator=draw()) * 60, torch.full((4, 3), 2))
    codec.loss(torch.randn(4, 12, generator=draw(1)), made).backward()
    assert any(bool((p.grad != 0).any()) for p in codec.parameters())


def test_codec_refuses():
    codec = RleCodec((96, 64))
    made = codec.encode(torch.ones(1, 3, 2), torch.full((1, 3), 2))
    refuses(lambda: codec.loss(torch.zeros(1, 6), made), contains="output must be floating point (B, 4 K)")
    refuses(lambda: codec.decode(torch.zeros(1, 3, 24, 16)), contains="need a heatmap codec")
    refuses(lambda: codec.loss(torch.zeros(1, 8), made), contains="pred must be (B, K, 4)")
    refuses(lambda: RleCodec((64, 64)).loss(torch.zeros(1, 12), made), contains="targets must come from this codec")
    refuses(lambda: RegressionCodec((96, 64)).decode(made), contains="targets must come from this codec")
    refuses(lambda: codec.encode(torch.full((1, 3, 2), math.nan), torch.full((1, 3), 2)), contains="xy_crop must be finite")
    refuses(lambda: RleCodec((0, 64)), contains="size must be (H, W)")
    for B, K in ((0, 3), (1, 133)):
        empty = codec.encode(torch.zeros(B, K, 2), torch.full((B, K), 2))
        assert codec.decode(torch.zeros(B, 4 * K))[0].shape == (B, K, 2) and torch.isfinite(codec.loss(torch.zeros(B, 4 * K), empty))
