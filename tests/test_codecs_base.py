"""Codec protocol, coordinate frames and Gaussian codec: properties over many shapes, and refused input."""

import numpy as np
import pytest
import torch
from torch.testing import assert_close

from posetutor.codecs.base import Codec, RegressionCodec, Targets, check_points, from_centred, map_size, measure_codec, to_centred, weighted_l1
from posetutor.codecs.dark import decode_dark
from posetutor.codecs.gaussian import (
    DECODERS,
    GaussianCodec,
    decode_argmax,
    decode_quarter_offset,
    quantisation_bound,
    render_gaussian,
    target_weight,
    weighted_mse,
)
from posetutor.core import refuses


def points(batch, joints, size, seed=0):
    g = torch.Generator().manual_seed(seed)
    xy = torch.rand(batch, joints, 2, generator=g) * torch.tensor([size[1] - 1.0, size[0] - 1.0])
    return xy, torch.randint(0, 3, (batch, joints), generator=g)


@pytest.mark.parametrize("joints", [1, 4, 21, 133])
@pytest.mark.parametrize("codec", [RegressionCodec((96, 64)), GaussianCodec((96, 64)), GaussianCodec((96, 64), stride=8, mapping="biased", decoder="argmax")])
def test_every_codec_keeps_the_contract(codec, joints):
    assert isinstance(codec, Codec)
    xy, vis = points(3, joints, [side - (codec.stride or 1) + 1 for side in codec.size])  # as far as the biased mapping's last cell
    targets = codec.encode(xy, vis)
    back, score = codec.decode(targets)
    assert back.shape == xy.shape and score.shape == vis.shape
    cell = 0.01 if codec.stride is None else codec.stride * 1.1
    assert (back - xy).abs().max() <= cell / 2 + 1e-4
    output = (targets.coords if targets.maps is None else targets.maps).clone() + 0.1
    output.requires_grad_()
    codec.loss(output, targets).backward()
    assert torch.all(output.grad[vis == 0] == 0)
    assert torch.all(output.grad[vis > 0].flatten(1).abs().sum(1) > 0)
    assert output.shape[1] == (codec.channels(joints) if targets.maps is not None else codec.channels(joints) // 2)


def test_mixed_conventions_are_refused():
    four, eight, regression = GaussianCodec((96, 64)), GaussianCodec((96, 64), stride=8), RegressionCodec((96, 64))
    xy, vis = points(2, 3, (96, 64))
    refuses(lambda: four.decode(eight.encode(xy, vis)), contains="belong to one codec object")
    refuses(lambda: four.loss(four.encode(xy, vis).maps, eight.encode(xy, vis)), contains="must come from this codec")
    refuses(lambda: four.decode(eight.encode(xy, vis).maps), contains="stride 8, not 4")
    refuses(lambda: regression.decode(four.encode(xy, vis).maps), contains="look like heatmaps")
    refuses(lambda: RegressionCodec((64, 96)).decode(regression.encode(xy, vis)), contains="RegressionCodec(size=(64, 96)")
    refuses(lambda: GaussianCodec((96, 64), mapping="biased").loss(torch.zeros(2, 3, 24, 16), four.encode(xy, vis)), contains="mapping='biased'")
    refuses(lambda: four.loss(torch.zeros(2, 4, 24, 16), four.encode(xy, vis)), contains="C is 3 elsewhere")
    refuses(lambda: four.loss(torch.zeros(2, 3, 24, 16), Targets(maps=torch.zeros(2, 3, 24, 16), weight=torch.ones(2, 3))), contains="which codec made them")


def test_targets_move_and_are_checked():
    targets = RegressionCodec((8, 8)).encode(torch.ones(2, 3, 2), torch.ones(2, 3))
    moved = targets.to("meta")
    assert moved.coords.device.type == moved.weight.device.type == "meta" and moved.codec == targets.codec
    refuses(lambda: Targets(weight=torch.ones(2, 3)), contains="maps, coords or extra")
    refuses(lambda: Targets(weight=torch.ones(2, 3), coords=torch.ones(2, 4, 2)), contains="coords")


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_bad_points_are_refused(bad):
    xy = torch.ones(2, 3, 2)
    xy[1, 2, 0] = bad
    for call in (lambda: check_points(xy, torch.ones(2, 3)), lambda: GaussianCodec().encode(xy, torch.ones(2, 3)), lambda: RegressionCodec().encode(xy, torch.ones(2, 3))):
        refuses(call, contains="xy_crop must be finite")
    refuses(lambda: render_gaussian(xy, (8, 8), 1.0), contains="xy_hm must be finite")


def test_refused_arguments():
    xy, vis, maps = torch.ones(2, 3, 2), torch.ones(2, 3), torch.rand(2, 3, 8, 6)
    cases = [
        (lambda: check_points(xy, torch.ones(2, 4)), "vis must be (B, K), got shape (2, 4): K is 3 elsewhere"),
        (lambda: check_points(xy, torch.full((2, 3), 3)), "got 3"),
        (lambda: check_points(xy.long(), vis), "floating point"),
        (lambda: check_points(xy[..., :1], vis), "xy_crop must be (B, K, 2)"),
        (lambda: map_size((255, 192), 4), "multiple of stride 4"),
        (lambda: map_size((256, 192), 0), "positive integer"),
        (lambda: map_size((256, 192), 4.0), "positive integer"),
        (lambda: render_gaussian(xy, (8, 6), 0.0), "sigma must be positive"),
        (lambda: render_gaussian(xy, (8, 6), torch.ones(4)), "broadcast to (B, K)"),
        (lambda: render_gaussian(xy, (8, 6), 1.0, truncate=0.0), "truncate must be positive"),
        (lambda: render_gaussian(xy, (8, 6), 1.0, rounded="up"), "rounded must be"),
        (lambda: target_weight(xy, vis, (8, 6), 1.0, variant="x"), "variant must be"),
        (lambda: target_weight(xy, vis, (8, 6), 1.0, joint_weights=torch.ones(4)), "joint_weights"),
        (lambda: decode_argmax(maps[0]), "heatmaps must be (B, K, H, W)"),
        (lambda: decode_argmax(maps[..., :0]), "at least one cell"),
        (lambda: decode_argmax(maps * float("nan")), "heatmaps (peak values) must be finite"),
        (lambda: decode_quarter_offset(maps, variant="half"), "variant must be"),
        (lambda: weighted_mse(maps, maps[:1]), "elsewhere"),
        (lambda: weighted_mse(maps, maps, -vis), "weight must be finite and >= 0"),
        (lambda: weighted_mse(maps, maps, vis, variant="l2"), "variant must be"),
        (lambda: weighted_l1(xy, xy, vis * float("inf")), "weight must be finite"),
        (lambda: quantisation_bound(0), "stride must be positive"),
        (lambda: quantisation_bound(4, "dark"), "decoder must be one of"),
        (lambda: quantisation_bound(4, what="median"), "what must be"),
        (lambda: quantisation_bound((4, 5), "second_peak"), "equal in x and y"),
        (lambda: GaussianCodec((100, 90)), "multiple of stride 4"),
        (lambda: GaussianCodec(sigma=-1.0), "sigma must be positive"),
        (lambda: GaussianCodec(decoder="best"), "decoder must be one of"),
        (lambda: GaussianCodec(mapping="centre"), "mapping must be"),
        (lambda: GaussianCodec((4, 8)), "at least 2 cells"),
        (lambda: RegressionCodec((0, 8)), "size must be (H, W)"),
        (lambda: measure_codec(RegressionCodec((32, 32)), margin=16), "margin below half"),
    ]
    for call, text in cases:
        refuses(call, contains=text)


def test_centred_frame_is_mirror_symmetric_and_exact():
    xy = points(5, 7, (256, 192))[0].double()
    uv = to_centred(xy, (256, 192))
    assert_close(from_centred(uv, (256, 192)), xy, rtol=0, atol=1e-12)
    mirrored = xy.clone()
    mirrored[..., 0] = 191 - xy[..., 0]
    assert_close(to_centred(mirrored, (256, 192))[..., 0], -uv[..., 0], rtol=0, atol=1e-15)
    edges = torch.tensor([[-0.5, -0.5], [191.5, 255.5]], dtype=torch.float64)
    assert_close(to_centred(edges, (256, 192)), torch.tensor([[-0.5, -0.5], [0.5, 0.5]], dtype=torch.float64))


def test_l1_ignores_unlabelled_and_survives_no_label():
    pred = torch.full((2, 3, 2), float("nan"), requires_grad=True)
    loss = weighted_l1(pred, torch.zeros(2, 3, 2), torch.zeros(2, 3))
    loss.backward()
    assert loss == 0 and torch.all(pred.grad == 0)
    pred = torch.tensor([[[1.0, 3.0], [9.0, 9.0]]])
    assert weighted_l1(pred, torch.zeros(1, 2, 2), torch.tensor([[2.0, 0.0]])) == 2  # (2*1 + 2*3) / (2*2)


def test_isotropic_loss_weighs_a_pixel_equally():
    xy, vis = torch.full((1, 1, 2), 50.0), torch.ones(1, 1)
    step = torch.eye(2)[:, None, None]  # one px in x, one px in y
    for isotropic, ratio in ((False, 4 / 3), (True, 1.0)):
        codec = RegressionCodec((256, 192), isotropic)
        in_x, in_y = (codec.loss(to_centred(xy + s, codec.size), codec.encode(xy, vis)) for s in step)
        assert_close(in_x / in_y, torch.tensor(ratio), rtol=1e-4, atol=0)


def test_rendering_is_differentiable():
    xy = (torch.rand(2, 3, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0)) * 6).requires_grad_()
    assert torch.autograd.gradcheck(lambda p: render_gaussian(p, (7, 9), 1.5), (xy,))
    assert torch.autograd.gradcheck(lambda p: render_gaussian(p, (7, 9), torch.tensor([1.0, 2.0, 0.7])), (xy,))


def test_rendering_shifts_flips_and_transposes_with_its_points():
    xy = 8 + 4 * torch.rand(2, 5, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    maps = render_gaussian(xy, (24, 20), 2.0)
    assert_close(render_gaussian(xy + 1, (24, 20), 2.0)[..., 1:, 1:], maps[..., :-1, :-1])
    assert_close(render_gaussian(xy.flip(-1), (20, 24), 2.0), maps.transpose(-1, -2))
    mirrored = torch.stack([19 - xy[..., 0], xy[..., 1]], -1)
    assert_close(render_gaussian(mirrored, (24, 20), 2.0), maps.flip(-1))


@pytest.mark.parametrize("decoder", ["argmax", "quarter", "second_peak"])
def test_bounds_hold_and_are_reached(decoder):
    codec = GaussianCodec((256, 256), decoder=decoder, mapping="biased")
    measured, _, _ = measure_codec(codec, points=40_000)
    assert measured.mean == pytest.approx(quantisation_bound(4, decoder), rel=0.01)
    assert measured.axis == pytest.approx(quantisation_bound(4, decoder, "axis"), rel=0.01)
    assert 0.97 * quantisation_bound(4, decoder, "max") < measured.max <= quantisation_bound(4, decoder, "max") + 1e-4
    assert max(map(abs, measured.bias)) < 0.03


def test_decoders_agree_when_mirrored():
    maps = render_gaussian(points(4, 6, (40, 30))[0], (40, 30), 2.0)
    for name in ("argmax", "quarter", "second_peak"):
        xy, score = DECODERS[name](maps)
        flipped, same = DECODERS[name](maps.flip(-1))
        assert_close(torch.stack([29 - flipped[..., 0], flipped[..., 1]], -1), xy)
        assert_close(same, score)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_low_precision_maps_decode_to_full_precision_coordinates(dtype):
    truth = torch.tensor([[[200.3, 150.2]]])
    maps = render_gaussian(truth, (256, 512), 2.0).to(dtype)
    xy, _ = decode_quarter_offset(maps)
    assert xy.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    assert_close(xy.float(), torch.tensor([[[200.25, 150.25]]]))


def test_empty_batch_passes():
    codec = GaussianCodec((64, 48))
    targets = codec.encode(torch.zeros(0, 3, 2), torch.zeros(0, 3))
    assert codec.decode(targets)[0].shape == (0, 3, 2)


@pytest.mark.parametrize("size", [256, None, torch.tensor([256, 192]), "ab"])
def test_sizes_that_are_no_pair_are_named(size):
    refuses(lambda: map_size(size, 4), contains="size must be (H, W), each a multiple of stride 4")


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_targets_are_those_of_float32(dtype):
    """The exponent was held above half precision's own smallest number: a background of 0.02 on the rows and columns through the joint."""
    xy = torch.tensor([[[10.25, 9.5]]])
    maps = render_gaussian(xy.to(dtype), (20, 22), 2.0)
    assert maps.dtype == dtype
    assert_close(maps.float(), render_gaussian(xy, (20, 22), 2.0), rtol=0, atol=2e-3)
    refuses(lambda: render_gaussian(xy.long(), (20, 22), 2.0), contains="xy_hm must be floating point")


@pytest.mark.parametrize("variant", ["axis", "second_peak", "hrnet"])
@pytest.mark.parametrize("dtype", [torch.uint8, torch.int64])
def test_whole_number_maps_step_as_their_floats_do(variant, dtype):
    """Bytes wrap around when they are subtracted: half of the steps went the wrong way."""
    truth = 4 + 12 * torch.rand(1, 60, 2, generator=torch.Generator().manual_seed(2))
    maps = (255 * render_gaussian(truth, (20, 22), 2.0)).round().to(dtype)
    assert_close(decode_quarter_offset(maps, variant=variant)[0], decode_quarter_offset(maps.float(), variant=variant)[0])


def test_strides_of_every_kind_of_number():
    assert quantisation_bound(torch.tensor(4.0)) == quantisation_bound(np.int64(4)) == quantisation_bound((4, 4.0)) == quantisation_bound(4)
    refuses(lambda: quantisation_bound((4, 4, 4)), contains="one number or (x, y)")


def test_arrays_and_settings_of_another_kind_are_named():
    refuses(lambda: decode_argmax(np.zeros((1, 1, 3, 3))), contains="convert an array with torch.from_numpy")
    refuses(lambda: GaussianCodec(truncate=-1), contains="truncate must be positive")
    for kernel in (None, 11, "sigma"):
        refuses(lambda kernel=kernel: decode_dark(torch.rand(1, 1, 9, 9), sigma=-1.0, kernel=kernel), contains="sigma must be positive")
