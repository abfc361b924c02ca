"""DSNT at the edges: empty, huge, half precision, foreign layouts, broken numbers, gradients, crops of nobody, export."""

import math

import numpy as np
import pytest
import torch
from torch.testing import assert_close

from posetutor.codecs.base import Codec, Targets, measure_codec
from posetutor.codecs.dsnt import (
    NORMALISATIONS, DsntCodec, DsntReadout, cell_centres, concentration, decode_expectation, dsnt, expectation_bound, gaussian_target, js_term, map_variance,
    normalise_maps, position_error, recentre, variance_term, weighted_mean,
)  # fmt: skip
from posetutor.codecs.gaussian import GaussianCodec, render_gaussian
from posetutor.core import refuses
from posetutor.geometry import flip_maps, flip_points, to_unit
from posetutor.skeletons import COCO_17

SIZE = (96, 64)
ALL = [DsntCodec(SIZE, 8, normalisation=kind, regulariser=term) for kind in NORMALISATIONS for term in ("js", None)]
ALL += [DsntCodec(SIZE, 8, regulariser="kl"), DsntCodec(SIZE, 8, regulariser="variance"), DsntCodec.integral(SIZE, 8)]
names = lambda codec: f"{codec.normalisation}-{codec.regulariser}-{codec.distance}"  # noqa: E731


def draw(seed=0):
    return torch.Generator().manual_seed(seed)


def targets(codec, B=2, K=3, dtype=torch.float32, vis=2):
    room = torch.tensor([codec.size[1] - 48.0, codec.size[0] - 48.0])
    xy = (24 + torch.rand(B, K, 2, generator=draw()) * room).to(dtype)
    return xy, codec.encode(xy, torch.full((B, K), vis))


@pytest.mark.parametrize("codec", ALL, ids=names)
def test_protocol_and_settings_as_values(codec):
    assert isinstance(codec, Codec) and codec.mapping == "unit"
    assert type(codec)(**{f: getattr(codec, f) for f in codec.__dataclass_fields__}) == codec


@pytest.mark.parametrize("kind", NORMALISATIONS)
@pytest.mark.parametrize("stride", [2, 4, 8, 16, 32])
def test_round_trip_at_every_stride(kind, stride):
    codec = DsntCodec((512, 384), stride, normalisation=kind)
    error = measure_codec(codec, points=200, margin=5.5 * stride + 8, generator=draw(1))[0]
    assert error.max < 2e-3 + 1e-4 * stride, f"stride {stride}: {error}"


@pytest.mark.parametrize("kind", NORMALISATIONS)
@pytest.mark.parametrize("sigma", [0.5, 1.0, 3.0])
def test_round_trip_reaches_the_centres_of_the_border_cells(kind, sigma):
    codec = DsntCodec((128, 96), 8, sigma=sigma, normalisation=kind)
    assert codec.reach == (3.5, 3.5, 91.5, 123.5)
    error = measure_codec(codec, points=400, margin=3.5 + 0.2, generator=draw(1))[0]
    assert error.max < 8 * (0.004 + expectation_bound(1, sigma, "max") * 0.01), error
    cut = measure_codec(DsntCodec((128, 96), 8, sigma=sigma, normalisation=kind, centred=False), points=400, margin=3.7, generator=draw(1))[0]
    assert cut.max > 100 * error.max
    last = codec.decode(codec.encode(torch.tensor([[[0.0, 0.0], [95.4, 127.4]]]), torch.full((1, 2), 2)))[0]
    assert_close(last, torch.tensor([[[3.5, 3.5], [91.5, 123.5]]]), rtol=0, atol=0.2)  # as near as a map can get: 0.02 cells short


def test_recentre_finds_the_centre():
    wanted = torch.tensor([[[0.5, 3.0], [0.02, 10.98], [8.0, 0.0]]], dtype=torch.float64)
    t = recentre(wanted, (12, 9), 1.2)
    columns, rows = torch.arange(9.0, dtype=torch.float64), torch.arange(12.0, dtype=torch.float64)
    for axis, place in ((0, columns), (1, rows)):
        p = torch.exp(-((place - t[..., axis, None]) ** 2) / (2 * 1.2**2))
        found = (p * place).sum(-1) / p.sum(-1)
        assert_close(found, wanted[..., axis].clamp(0.02, len(place) - 1.02), rtol=0, atol=1e-6)
    assert t[0, 1, 0] < -4 and t[0, 1, 1] > 15  # far outside, so that little is left
    assert recentre(torch.zeros(1, 1, 2), (1, 1)).tolist() == [[[0, 0]]]


@pytest.mark.parametrize("codec", ALL, ids=names)
@pytest.mark.parametrize("K", [1, 133])
def test_any_number_of_joints_and_no_people(codec, K):
    xy, made = targets(codec, B=1, K=K)
    assert made.maps.shape == (1, codec.channels(K), 12, 8)
    assert_close(codec.decode(made)[0], xy, rtol=0, atol=0.05)
    nobody = codec.encode(torch.zeros(0, K, 2), torch.zeros(0, K))
    found, score = codec.decode(nobody.maps)
    assert found.shape == (0, K, 2) and score.shape == (0, K)
    assert codec.loss(nobody.maps, nobody) == 0


@pytest.mark.parametrize("codec", ALL, ids=names)
def test_memory_layout_does_not_matter(codec):
    _, made = targets(codec, B=3, K=4)
    wanted = codec.decode(made.maps)
    for maps in (made.maps.to(memory_format=torch.channels_last), made.maps.transpose(-1, -2).contiguous().transpose(-1, -2), torch.cat([made.maps, made.maps], 1)[:, :4]):
        assert_close(codec.decode(maps)[0], wanted[0], rtol=0, atol=1e-4)
        assert_close(codec.loss(maps, made), codec.loss(made.maps, made), rtol=0, atol=1e-6)


@pytest.mark.parametrize("codec", ALL, ids=names)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_computed_in_float32(codec, dtype):
    _, made = targets(codec)
    maps = made.maps.clamp(-20, 20).to(dtype)
    found, score = codec.decode(maps)
    assert found.dtype == score.dtype == torch.float32
    assert_close(found, codec.decode(maps.float())[0], rtol=0, atol=1e-4)
    assert_close(found / 8, codec.decode(made.maps.clamp(-20, 20))[0] / 8, rtol=0, atol=0.05)
    loss = codec.loss(maps.requires_grad_(), made)
    assert loss.dtype == torch.float32 and torch.isfinite(loss)


def test_autocast_does_not_round_the_coordinates():
    codec = DsntCodec((256, 256), 4)
    output = 3 * torch.randn(2, 3, 64, 64, generator=draw(2))
    made = targets(codec)[1]
    wanted, loss = codec.decode(output)[0], codec.loss(output, made)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert_close(codec.decode(output)[0], wanted, rtol=0, atol=1e-3)
        assert_close(codec.loss(output, made), loss, rtol=1e-4, atol=0)


@pytest.mark.parametrize("codec", ALL, ids=names)
def test_gradients(codec):
    small = DsntCodec((16, 12), 4, **{f: getattr(codec, f) for f in ("sigma", "regulariser", "normalisation", "strength", "distance")})
    xy = 3 + 5 * torch.rand(2, 2, 2, generator=draw(3), dtype=torch.float64)
    made = small.encode(xy, torch.tensor([[2, 1], [2, 0]]))
    raw = torch.randn(2, 2, 4, 3, generator=draw(4), dtype=torch.float64)
    raw = (raw + raw.sign() * 0.05).requires_grad_()  # relu and abs have a corner at 0
    assert torch.autograd.gradcheck(lambda z: small.loss(z, made), (raw,))
    assert torch.autograd.gradcheck(lambda z: small.decode(z)[0], (raw,))
    (gradient,) = torch.autograd.grad(small.loss(raw, made), raw)
    assert bool((gradient[1, 1] == 0).all()) and bool(torch.isfinite(gradient).all())


def test_score_is_differentiable():
    maps = normalise_maps(torch.randn(1, 2, 5, 4, generator=draw(5), dtype=torch.float64)).requires_grad_()
    assert torch.autograd.gradcheck(lambda m: concentration(m, dsnt(m), 1.0), (maps,))
    uv = (torch.rand(1, 2, 2, generator=draw(6), dtype=torch.float64) - 0.5).requires_grad_()
    assert torch.autograd.gradcheck(lambda u: gaussian_target(u, (5, 4), 1.0), (uv,))


@pytest.mark.parametrize("codec", ALL, ids=names)
def test_flat_and_huge_maps_are_defined(codec):
    made = targets(codec)[1]
    middle = torch.tensor([31.5, 47.5]).expand(2, 3, 2)
    for maps in (torch.zeros(2, 3, 12, 8), torch.full((2, 3, 12, 8), 7.0)):
        found, score = codec.decode(maps)
        assert_close(found, middle, rtol=0, atol=1e-4)
        assert_close(score, torch.full((2, 3), 4 * math.pi / 96), rtol=0.01, atol=0)  # a flat map says how little it knows
    huge = torch.zeros(2, 3, 12, 8)
    huge[..., 2, 5] = 3e38
    found, score = codec.decode(huge)
    if codec.normalisation != "sigmoid":
        assert_close(found, torch.tensor([43.5, 19.5]).expand(2, 3, 2), rtol=0, atol=1e-3)
    assert torch.isfinite(codec.loss(huge, made))
    negative = codec.decode(torch.full((2, 3, 12, 8), -1e30))[0]
    assert_close(negative, middle, rtol=0, atol=1e-3)


@pytest.mark.parametrize("codec", ALL, ids=names)
def test_broken_maps_are_refused_by_name(codec):
    maps = targets(codec)[1].maps.clone()
    maps[1, 2, 3, 4] = float("nan")
    refuses(lambda: codec.decode(maps), contains="output (mean place of the maps) must be finite")
    for wrong, words in ((torch.zeros(2, 3, 12, 9), "must have maps of 12 x 8"), (torch.zeros(3, 12, 8), "must be (B, C, H, W)"), (torch.zeros(2, 3, 24, 16), "stride 4, not 8")):
        refuses(lambda wrong=wrong: codec.decode(wrong), contains=words)
    refuses(lambda: codec.decode(torch.zeros(2, 3, 12, 8, dtype=torch.complex64)), contains="must be a floating-point tensor")
    refuses(lambda: codec.decode(torch.zeros(2, 3, 12, 8, dtype=torch.int64)), contains="must be a floating-point tensor")


def test_unlabelled_joints_may_hold_anything():
    for codec in ALL:
        made = targets(codec, vis=2)[1]
        made = Targets(weight=made.weight * torch.tensor([1.0, 0.0, 1.0]), maps=made.maps, coords=made.coords, extra=made.extra, codec=codec)
        output = torch.randn(2, 3, 12, 8, generator=draw(7))
        clean = codec.loss(output, made)
        output[:, 1] = float("nan")
        output.requires_grad_()
        loss = codec.loss(output, made)
        loss.backward()
        assert_close(loss.detach(), clean)
        assert bool((output.grad[:, 1] == 0).all()) and bool(torch.isfinite(output.grad).all())


def test_joints_outside_the_crop_have_no_weight_and_no_labels_give_zero():
    codec = DsntCodec(SIZE, 8)
    xy = torch.tensor([[[10.0, 10.0], [-0.6, 10.0], [63.6, 10.0], [-0.4, 95.4], [1e6, -1e6]]])
    made = codec.encode(xy, torch.full((1, 5), 2))
    assert made.weight.tolist() == [[1, 0, 0, 1, 0]]
    assert bool(torch.isfinite(made.maps).all())
    none = codec.encode(xy, torch.zeros(1, 5))
    output = torch.randn(1, 5, 12, 8, generator=draw(8)).requires_grad_()
    loss = codec.loss(output, none)
    loss.backward()
    assert loss == 0 and bool((output.grad == 0).all())


def test_crops_of_nobody_teach_a_flat_map_and_no_position():
    """As chapter 50 does it: maps emptied, weight 1, no label."""
    for kind in NORMALISATIONS:
        codec = DsntCodec(SIZE, 8, normalisation=kind)
        made = codec.encode(torch.zeros(1, 2, 2), torch.zeros(1, 2))
        nobody = Targets(weight=torch.ones(1, 2), maps=0 * made.maps, coords=made.coords, extra=made.extra, codec=codec)
        peaked, flat = targets(codec, B=1, K=2)[1].maps, torch.zeros(1, 2, 12, 8)
        assert codec.loss(flat, nobody).abs() < 1e-6 < 0.3 < codec.loss(peaked, nobody)
        assert codec.decode(flat)[1].max() < 0.2 < 0.9 < codec.decode(peaked)[1].min()
    variance = DsntCodec(SIZE, 8, regulariser="variance")
    made = variance.encode(torch.zeros(1, 2, 2), torch.zeros(1, 2))
    nobody = Targets(weight=torch.ones(1, 2), maps=0 * made.maps, coords=made.coords, extra=made.extra, codec=variance)
    assert variance.loss(torch.randn(1, 2, 12, 8, generator=draw(9)), nobody) == 0  # it has nothing to say about a map without a place


def test_codecs_do_not_mix():
    one, other = DsntCodec(SIZE, 8), DsntCodec(SIZE, 8, regulariser="kl")
    made = targets(one)[1]
    refuses(lambda: other.loss(made.maps, made), contains="belong to one codec object")
    refuses(lambda: other.decode(made), contains="belong to one codec object")
    refuses(lambda: one.loss(made.maps[:, :2], made), contains="C")
    refuses(lambda: GaussianCodec(SIZE, 8).decode(made), contains="belong to one codec object")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (dict(stride=7), "each a multiple of stride 7"),
        (dict(sigma=0.0), "sigma must be positive"),
        (dict(sigma=float("nan")), "sigma must be positive"),
        (dict(regulariser="l2"), "regulariser must be 'js', 'kl', 'variance' or None"),
        (dict(normalisation="tanh"), "normalisation must be one of softmax, sigmoid, relu, abs"),
        (dict(strength=-1.0), "strength must be finite and >= 0"),
        (dict(distance="l2"), "distance must be 'euclidean' or 'l1'"),
    ],
)
def test_settings_are_checked(change, words):
    refuses(lambda: DsntCodec(SIZE, **{"stride": 8, **change}), contains=words)


def test_functions_refuse_what_they_cannot_use():
    maps = normalise_maps(torch.zeros(2, 3, 4, 5))
    for call, words in (
        (lambda: normalise_maps(torch.zeros(3, 4, 5)), "maps must be (B, K, H, W)"),
        (lambda: normalise_maps(torch.zeros(2, 3, 0, 5)), "at least one cell"),
        (lambda: normalise_maps(maps, beta=0.0), "beta must be a positive"),
        (lambda: dsnt(maps.long()), "floating-point"),
        (lambda: map_variance(maps[0]), "maps must be (B, K, H, W)"),
        (lambda: cell_centres(0, maps), "cells must be at least 1"),
        (lambda: position_error(torch.zeros(2, 3, 2), torch.zeros(2, 4, 2)), "pred must be (B, K, 2)"),
        (lambda: position_error(torch.zeros(2, 3, 2), torch.zeros(2, 3, 2), "l2"), "kind must be"),
        (lambda: weighted_mean(torch.zeros(2, 3), -torch.ones(2, 3)), "weight must be finite and >= 0"),
        (lambda: weighted_mean(torch.zeros(2, 3), torch.ones(2, 1)), "weight must be (B, K)"),
        (lambda: js_term(maps, maps[..., :4]), "maps must be (B, K, H, W)"),
        (lambda: variance_term(maps, -1.0), "sigma must be positive"),
        (lambda: recentre(torch.full((1, 1, 2), float("nan")), (4, 5)), "xy_hm must be finite"),
        (lambda: recentre(torch.zeros(1, 1, 2), (4, 5), 0.0), "sigma must be positive"),
        (lambda: gaussian_target(torch.full((1, 1, 2), float("nan")), (4, 5)), "must be finite"),
        (lambda: concentration(maps, torch.zeros(2, 3, 3)), "uv must be (B, K, 2)"),
        (lambda: decode_expectation(torch.full((1, 1, 4, 5), float("inf"))), "heatmaps (their mean place) must be finite"),
        (lambda: expectation_bound(4, 0.1), "sigma at least 0.3"),
        (lambda: expectation_bound(4, what="median"), "what must be"),
        (lambda: DsntReadout(GaussianCodec()), "codec must be a DsntCodec"),
    ):
        refuses(call, contains=words)


@pytest.mark.parametrize("sigma", [0.4, 0.5, 0.6])
def test_the_bound_is_the_error_of_the_discrete_gaussian(sigma):
    truth = torch.rand(1, 20000, 2, generator=draw(10), dtype=torch.float64) + 14.5
    maps = render_gaussian(truth, (30, 30), sigma)
    error = decode_expectation(maps, normalisation="relu")[0] - truth
    assert abs(error.norm(dim=-1).mean() / expectation_bound(1, sigma) - 1) < 0.06
    assert abs(error.abs().mean() / expectation_bound(1, sigma, "axis") - 1) < 0.06
    assert abs(error.square().mean().sqrt() / expectation_bound(1, sigma, "rmse") - 1) < 0.06
    assert abs(error.norm(dim=-1).max() / expectation_bound(1, sigma, "max") - 1) < 0.06
    assert_close(torch.tensor(expectation_bound(4, 0.5)), torch.tensor(4 * expectation_bound(1, 0.5)))


def test_flip_test_is_the_identity_for_an_ideal_network():
    codec = DsntCodec((128, 96), 8)
    xy = 28 + torch.rand(2, COCO_17.K, 2, generator=draw(11)) * torch.tensor([40.0, 72.0])
    vis = torch.full((2, COCO_17.K), 2)
    direct = codec.encode(xy, vis).maps
    mirrored = codec.encode(flip_points(xy, 96, COCO_17.flip_index), vis).maps
    assert_close(flip_maps(mirrored, COCO_17.flip_index), direct, rtol=0, atol=1e-3)
    assert_close(codec.decode((direct + flip_maps(mirrored, COCO_17.flip_index)) / 2)[0], xy, rtol=0, atol=1e-2)


def test_registered_decoders_read_gaussian_maps():
    truth = 30 + torch.rand(1, 50, 2, generator=draw(12)) * torch.tensor([130.0, 190.0])
    for name, bound in (("soft_argmax", 0.25), ("centre_of_mass", 1e-2)):
        codec = GaussianCodec(decoder=name)
        found, score = codec.decode(codec.encode(truth, torch.full((1, 50), 2)))
        assert (found - truth).norm(dim=-1).mean() < bound and score.shape == (1, 50)


def test_the_top_down_system_trains_and_estimates_with_it():
    from posetutor.nets.simple_baseline import simple_baseline_small
    from posetutor.systems.topdown import TopDown

    torch.manual_seed(0)
    net = simple_baseline_small(COCO_17.K)
    size = (64, 64)
    system = TopDown(net, DsntCodec(size, net.strides[0]), size=size)
    batch = {"image": torch.rand(2, 3, *size), "xy": 20 + 20 * torch.rand(2, COCO_17.K, 2), "vis": torch.full((2, COCO_17.K), 2)}
    loss = system.training_loss(batch)
    loss.backward()
    assert torch.isfinite(loss) and all(p.grad is None or bool(torch.isfinite(p.grad).all()) for p in net.parameters())
    batch["empty"] = torch.tensor([True, False])
    batch["vis"][0] = 0
    assert torch.isfinite(system.training_loss(batch))
    poses = system.estimate((255 * np.random.default_rng(0).random((80, 60, 3))).astype(np.uint8), [[5, 5, 40, 60]])
    assert poses.xy.shape == (1, COCO_17.K, 2) and bool(np.isfinite(np.asarray(poses.xy)).all())


@pytest.mark.parametrize("codec", ALL[::2], ids=names)
def test_readout_equals_decode_and_can_be_exported(codec):
    output = torch.randn(2, 3, 12, 8, generator=draw(13))
    wanted = codec.decode(output)
    module = codec.readout()
    exported = torch.export.export(module, (output,)).module()
    for found in (module(output), exported(output)):
        assert_close(found[0], wanted[0], rtol=0, atol=1e-4)
        assert_close(found[1], wanted[1], rtol=0, atol=1e-5)


def test_onnx_export(tmp_path):
    pytest.importorskip("onnxscript", reason="torch.onnx.export needs onnx and onnxscript, which are not installed; torch.export is tested above")
    runtime = pytest.importorskip("onnxruntime", reason="onnxruntime is not installed; torch.export is tested above")
    codec = DsntCodec(SIZE, 8)
    net = torch.nn.Sequential(torch.nn.Conv2d(3, 3, 3, 8, 1), codec.readout()).eval()
    image = torch.rand(2, 3, *SIZE, generator=draw(14))
    path = tmp_path / "dsnt.onnx"
    torch.onnx.export(net, (image,), path, dynamo=True, input_names=["image"], output_names=["xy", "score"])
    found = runtime.InferenceSession(path, providers=["CPUExecutionProvider"]).run(None, {"image": image.numpy()})
    with torch.no_grad():
        wanted = net(image)
    for mine, theirs in zip(wanted, found, strict=True):
        assert_close(mine, torch.from_numpy(theirs), rtol=1e-5, atol=1e-3)


def test_edges_frame_is_the_one_of_the_paper():
    """The worked numbers of the paper's frame: 4 cells at -0.75, -0.25, 0.25, 0.75; crop edges at -1 and 1."""
    assert_close(cell_centres(4, torch.zeros(1)), torch.tensor([-0.75, -0.25, 0.25, 0.75]))
    assert_close(to_unit(torch.tensor([[-0.5, 191.5]]), (192, 192)), torch.tensor([[-1.0, 1.0]]))
