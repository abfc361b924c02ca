"""UDP, disc and cell-offset codecs at the edges: empty, huge, half-precision, foreign layouts, broken numbers, gradients."""

import math

import pytest
import torch
from torch.testing import assert_close

from posetutor.codecs.base import Codec, measure_codec
from posetutor.codecs.gaussian import render_gaussian
from posetutor.codecs.offsets import CellOffsetCodec, DiskCodec, cell_offset, decode_disk, decode_hough, disk_loss, hough_vote, render_disk
from posetutor.codecs.udp import CombinedCodec, UDPCodec, combined_loss, decode_combined, decode_udp, flip_combined, render_combined, shift_maps
from posetutor.core import refuses

SIZE = (96, 64)
EXACT = [UDPCodec(SIZE), CombinedCodec(SIZE), CombinedCodec(SIZE, variant="mmpose"), DiskCodec(SIZE), DiskCodec(SIZE, aggregation="argmax"), CellOffsetCodec(SIZE)]
PUBLISHED = [UDPCodec(SIZE, variant=v) for v in ("official", "mmpose0", "mmpose")] + [CombinedCodec(SIZE, variant=v) for v in ("official", "mmpose0")]
ALL = EXACT + PUBLISHED
names = lambda codec: f"{type(codec).__name__}-{getattr(codec, 'variant', getattr(codec, 'aggregation', ''))}"  # noqa: E731


def draw(seed=0):
    return torch.Generator().manual_seed(seed)


def targets(codec, B=2, K=3, dtype=torch.float32, vis=2):
    low, high = 12.0, torch.tensor([SIZE[1] - 24.0, SIZE[0] - 24.0])
    xy = (low + torch.rand(B, K, 2, generator=draw()) * high).to(dtype)
    return xy, codec.encode(xy, torch.full((B, K), vis))


@pytest.mark.parametrize("codec", ALL, ids=names)
def test_protocol_and_settings_as_values(codec):
    assert isinstance(codec, Codec) and codec.mapping == "unit"
    assert type(codec)(**{f: getattr(codec, f) for f in codec.__dataclass_fields__}) == codec


@pytest.mark.parametrize("codec", EXACT, ids=names)
def test_round_trip_is_exact_at_every_stride(codec):
    for stride in (2, 4, 8):
        same = type(codec)(**{**{f: getattr(codec, f) for f in codec.__dataclass_fields__}, "size": (256, 192), "stride": stride})
        error = measure_codec(same, points=300, margin=8 * stride, generator=draw(1), perfect=getattr(same, "perfect", None))[0]
        assert error.max < 2e-3, f"stride {stride}: {error}"


@pytest.mark.parametrize("codec", ALL, ids=names)
@pytest.mark.parametrize("K", [1, 133])
def test_any_number_of_joints_and_no_people(codec, K):
    xy, made = targets(codec, B=1, K=K)
    assert made.maps.shape == (1, codec.channels(K), 24, 16)
    assert codec.decode(made)[0].shape == (1, K, 2)
    nobody = codec.encode(torch.zeros(0, K, 2), torch.zeros(0, K))
    found, score = codec.decode(nobody.maps)
    assert found.shape == (0, K, 2) and score.shape == (0, K)


@pytest.mark.parametrize("codec", ALL, ids=names)
def test_memory_layout_does_not_matter(codec):
    _, made = targets(codec, B=3, K=4)
    wanted = codec.decode(made.maps)
    wide = torch.stack([made.maps, made.maps], -1)[..., 0]  # strided
    for maps in (made.maps.contiguous(memory_format=torch.channels_last), wide, made.maps.transpose(2, 3).contiguous().transpose(2, 3)):
        for found, expected in zip(codec.decode(maps), wanted, strict=True):
            assert_close(found, expected, rtol=0, atol=1e-4)


@pytest.mark.parametrize("codec", ALL, ids=names)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_decoded_in_float32(codec, dtype):
    _, made = targets(codec, B=2, K=17)
    output = made.maps.clone()
    if isinstance(codec, DiskCodec):
        output[:, ::3] = 12 * output[:, ::3] - 6  # logits
    found, score = codec.decode(output.to(dtype))
    assert found.dtype == torch.float32 and torch.isfinite(found).all() and torch.isfinite(score).all()
    stored = codec.decode(output.to(dtype).float())[0]  # the same numbers, widened by the caller
    assert_close(found, stored, rtol=0, atol=1e-6)
    # 0.05 cells is the limit where the answer averages; a bfloat16 offset of half a cell is itself 2e-3 off
    assert (found - codec.decode(output)[0]).abs().max() / 4 < (0.05 if dtype == torch.float16 or not isinstance(codec, UDPCodec) else 0.3)


@pytest.mark.parametrize("codec", ALL, ids=names)
def test_broken_scores_are_refused(codec):
    _, made = targets(codec)
    for value in (math.nan, math.inf):
        maps = made.maps.clone()
        maps[0, 0, 5, 7] = value
        if isinstance(codec, DiskCodec) and value == math.inf:  # a logit of infinity is a probability of 1
            maps[0, 1, 5, 7] = math.inf
        refuses(lambda m=maps: codec.decode(m), contains="must")
    for maps, text in ((made.maps.to(torch.complex64), "floating"), (made.maps.long(), "floating"), (made.maps[0], "(B, C, H, W)"), (made.maps[..., :-1], "cells")):
        refuses(lambda m=maps: codec.decode(m), contains=text)


@pytest.mark.parametrize("codec", ALL, ids=names)
def test_empty_and_constant_maps_come_back_defined(codec):
    channels = codec.channels(2)
    zero, zero_score = codec.decode(torch.zeros(1, channels, 24, 16))
    flat, flat_score = codec.decode(torch.full((1, channels, 24, 16), 0.25))
    assert torch.isfinite(zero).all() and torch.isfinite(flat).all()
    if not isinstance(codec, DiskCodec):  # a logit of 0 is a probability of one half
        assert bool((zero_score == 0).all())
    assert torch.isfinite(flat_score).all()
    for maps in (torch.full((1, channels, 24, 16), -1.0), -torch.rand(1, channels, 24, 16, generator=draw())):
        found, score = codec.decode(maps)
        assert torch.isfinite(found).all() and torch.isfinite(score).all()


@pytest.mark.parametrize("codec", [c for c in EXACT if not isinstance(c, UDPCodec)], ids=names)
def test_exact_up_to_the_last_cell(codec):
    edge = torch.tensor([[[x, y] for x in (0.0, 1.3, 31.0, 62.1, 63.0) for y in (0.0, 0.7, 47.0, 94.6, 95.0)]])
    made = codec.encode(edge, torch.full((1, 25), 2))
    assert bool((made.weight == 1).all())
    assert_close(codec.decode(made)[0], edge, rtol=0, atol=1e-3)


def test_taylor_step_at_every_border_and_corner():
    edge = torch.tensor([[[x, y] for x in (0.0, 0.4, 7.2, 14.6, 15.0) for y in (0.0, 0.3, 11.5, 22.7, 23.0)]])
    maps = render_gaussian(edge, (24, 16), 2.0)
    assert (decode_udp(maps)[0] - edge).abs().max() < 0.05
    published = (decode_udp(maps, variant="official")[0] - edge).abs().amax(-1)
    assert published.max() > 0.3  # what mirroring the border costs


@pytest.mark.parametrize("codec", ALL, ids=names)
def test_joints_outside_and_unlabelled(codec):
    xy = torch.tensor([[[-400.0, 10.0], [30.0, 900.0], [30.0, 40.0], [30.0, 40.0]]])
    made = codec.encode(xy, torch.tensor([[2, 2, 0, 1]]))
    outside = 1.0 if isinstance(codec, CombinedCodec) and codec.variant != "votes" else 0.0  # the published codes teach an empty map
    assert made.weight.tolist() == [[outside, outside, 0.0, 1.0]]
    output = torch.randn(made.maps.shape, generator=draw(2), requires_grad=True)
    loss = codec.loss(output, made)
    loss.backward()
    gradient = output.grad.unflatten(1, (4, -1))
    assert torch.isfinite(loss) and bool((gradient[:, 3] != 0).any())
    if not (isinstance(codec, CombinedCodec) and codec.variant == "official"):  # there the weight leaves the offsets of a labelled disc alone
        assert bool((gradient[:, 2] == 0).all())
    with pytest.raises(ValueError, match="finite"):
        codec.encode(xy * math.nan, torch.tensor([[2, 2, 0, 1]]))
    with pytest.raises(ValueError, match="vis must hold"):
        codec.encode(xy, torch.tensor([[2, 3, 0, 1]]))


@pytest.mark.parametrize("codec", ALL, ids=names)
def test_nothing_labelled_and_foreign_targets(codec):
    _, made = targets(codec, vis=0)
    output = torch.randn(made.maps.shape, generator=draw(3), requires_grad=True)
    loss = codec.loss(output, made)
    loss.backward()
    assert torch.isfinite(loss) and torch.isfinite(output.grad).all()
    other = next(c for c in ALL if c != codec)
    refuses(lambda: codec.loss(output, targets(other)[1]), contains="belong to one codec")
    refuses(lambda: codec.decode(targets(other)[1]), contains="belong to one codec")


def test_small_maps():
    for size in ((1, 1), (1, 7), (2, 2), (3, 3), (3, 9)):
        hm = torch.rand(1, 2, *size, generator=draw())
        for variant in ("guarded", "official", "mmpose0", "mmpose"):
            assert torch.isfinite(decode_udp(hm, variant=variant)[0]).all(), (size, variant)
        for variant in ("votes", "official", "mmpose0", "mmpose"):
            assert torch.isfinite(decode_combined(hm.repeat(1, 3, 1, 1), 1.5, variant=variant)[0]).all(), (size, variant)
        assert torch.isfinite(decode_hough(hm.repeat(1, 3, 1, 1), 1.5)[0]).all()
    refuses(lambda: decode_udp(torch.zeros(1, 2, 0, 5)), contains="at least one cell")
    refuses(lambda: decode_combined(torch.zeros(1, 3, 0, 5), 2.0), contains="at least one cell")
    refuses(lambda: decode_hough(torch.zeros(1, 3, 0, 5), 2.0), contains="at least one cell")
    for threshold in (-0.1, 1.0, 5, math.nan):  # nobody would vote, or a typing error
        refuses(lambda: decode_hough(torch.zeros(1, 3, 4, 5), 2.0, threshold=threshold), contains="threshold must be a probability")  # noqa: B023


def test_gradients_in_float64():
    check = torch.autograd.gradcheck
    xy = 2 + torch.rand(2, 2, 2, dtype=torch.float64, generator=draw()) * 5
    xy.requires_grad_()
    assert check(lambda p: render_combined(p, (9, 10), 2.2), (xy,))
    assert check(lambda p: render_disk(p, (9, 10), 2.2), (xy,))
    assert check(lambda p: cell_offset(p)[1], (xy,))
    hm = (render_gaussian(xy.detach(), (9, 10), 1.5) + 0.02 * torch.rand(2, 2, 9, 10, dtype=torch.float64, generator=draw(1))).requires_grad_()
    for variant in ("guarded", "mmpose0"):
        assert check(lambda m, v=variant: decode_udp(m, variant=v, kernel=3), (hm,))
    assert check(lambda m: shift_maps(m, 0.75), (hm,))
    maps = render_combined(xy.detach(), (9, 10), 2.2)
    maps = (0.1 + 0.8 * maps + 0.02 * torch.rand(maps.shape, dtype=torch.float64, generator=draw(2))).requires_grad_()
    for variant in ("votes", "official", "mmpose"):
        assert check(lambda m, v=variant: decode_combined(m, 2.2, variant=v)[0], (maps,))
    assert check(lambda m: flip_combined(m, (1, 0)), (maps,))
    votes = torch.cat([0.2 + 0.6 * torch.rand(1, 1, 5, 6, dtype=torch.float64, generator=draw(3)), torch.randn(1, 2, 5, 6, dtype=torch.float64, generator=draw(4))], 1).requires_grad_()
    assert check(lambda m: hough_vote(m, 2.0), (votes,))
    assert check(lambda m: decode_hough(m, 2.0), (votes,))
    assert check(lambda m: decode_disk(m)[0], (votes,))
    target = render_disk(xy.detach(), (9, 10), 2.2)
    pred = (2 * torch.randn(target.shape, dtype=torch.float64, generator=draw(5))).requires_grad_()
    weight = torch.tensor([[1.0, 0.0], [0.5, 2.0]], dtype=torch.float64)
    assert check(lambda p: disk_loss(p, target, weight), (pred,))
    assert check(lambda p: combined_loss(p, target, weight), (pred,))


def test_loss_ignores_broken_predictions_where_nothing_is_taught():
    target = render_disk(torch.tensor([[[4.0, 4.0], [2.0, 5.0]]]), (9, 10), 2.0)
    pred = torch.zeros_like(target)
    pred[:, 3:] = math.nan  # the second joint is not labelled
    pred[:, 1, 0, 9] = math.nan  # far outside the disc
    pred.requires_grad_()
    loss = disk_loss(pred, target, torch.tensor([[1.0, 0.0]]))
    loss.backward()
    assert torch.isfinite(loss) and torch.isfinite(pred.grad).all() and bool((pred.grad[:, 3:] == 0).all())
    codec = CellOffsetCodec(SIZE)
    _, made = targets(codec, vis=0)
    made.weight[0, 0] = 1  # one joint of six is labelled
    output = made.maps.clone()
    output[1:], output[:, 3:] = math.nan, math.nan
    output.requires_grad_()
    loss = codec.loss(output, made)
    loss.backward()
    assert loss == 0 and bool((output.grad == 0).all())


def test_disc_loss_of_half_precision_maps_is_summed_in_float32():
    target = render_disk(torch.rand(4, 17, 2, generator=draw()) * 40, (64, 48), 4.0)
    pred = 8 * torch.randn(target.shape, generator=draw(1))  # the sum over cells and joints is far beyond 65504
    for dtype in (torch.float16, torch.bfloat16):
        low = disk_loss(pred.to(dtype), target.to(dtype))
        assert low.dtype == torch.float32
        assert_close(low, disk_loss(pred, target), rtol=0.02, atol=0)


def test_no_memory_beyond_three_times_the_maps():
    hm = render_gaussian(torch.rand(8, 17, 2, generator=draw()) * 40, (64, 48), 2.0)
    with torch.profiler.profile(profile_memory=True) as profile:
        decode_udp(hm)
    grown = sum(max(0, event.self_cpu_memory_usage) for event in profile.events())  # all that was ever taken, an upper bound of the peak
    assert grown < 3 * hm.numel() * 4


@pytest.mark.parametrize("mapping", ["unit", "biased"])
@pytest.mark.parametrize("kind", [UDPCodec, CombinedCodec, DiskCodec, CellOffsetCodec], ids=lambda kind: kind.__name__)
def test_flip_back_closes_for_both_rulers(kind, mapping):
    """A perfect network's mirrored maps, brought back, mean the same joints: exactly with unit lengths, to the interpolation's blur otherwise."""
    codec, index = kind((128, 96), 4, mapping=mapping), (1, 0, 2)
    xy = 30 + torch.rand(5, 3, 2, generator=draw()) * torch.tensor([36.0, 68.0])
    mirrored = torch.stack([95 - xy[..., 0], xy[..., 1]], -1)[:, list(index)]
    vis = torch.full((5, 3), 2)
    back = codec.flip_back(codec.encode(mirrored, vis).maps, index)
    direct = codec.encode(xy, vis).maps
    if mapping == "unit":
        assert_close(back, direct, rtol=0, atol=1e-5)
    elif kind is UDPCodec:
        assert (codec.decode((direct + back) / 2)[0] - xy).abs().max() < 0.03
    else:
        assert back.shape == direct.shape and (back - direct).abs().mean() < 0.02
    refuses(lambda: codec.flip_back(back[..., :-1], index), contains="cells")
