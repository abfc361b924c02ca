"""The 1-D classification codec at the edges: rulers, borders, empty batches, half precision, foreign layouts, gradients, the whole chain."""

import math

import pytest
import torch
from torch import nn
from torch.testing import assert_close

from posetutor.codecs.base import Codec, measure_codec
from posetutor.codecs.gaussian import quantisation_bound
from posetutor.codecs.simcc import SimccCodec, SimccHead, bin_counts, decode_bins, flip_bins, render_bins, vector_kl
from posetutor.core import refuses
from posetutor.skeletons import COCO_17

SIZE = (96, 64)
CODECS = [
    SimccCodec(SIZE),
    SimccCodec(SIZE, 3.0, decoder="expectation"),
    SimccCodec(SIZE, 1.5, decoder="expectation", reach=24),
    SimccCodec(SIZE, decoder="argmax", smoothing="none"),
    SimccCodec(SIZE, decoder="argmax", smoothing="equal"),
    SimccCodec(SIZE, sigma=(4.0, 6.0), mapping="biased"),
    SimccCodec.official(SIZE),
]
ALL = pytest.mark.parametrize("codec", CODECS, ids=lambda c: f"{c.smoothing}-{c.decoder}-{c.mapping}-{c.split}")


def points(B=2, K=3, margin=20.0, dtype=torch.float32, seed=0):
    g = torch.Generator().manual_seed(seed)
    return (margin + torch.rand(B, K, 2, generator=g) * torch.tensor([SIZE[1] - 2 * margin, SIZE[0] - 2 * margin])).to(dtype)


@ALL
def test_protocol_and_round_trip(codec):
    assert isinstance(codec, Codec) and codec.stride is None
    assert type(codec)(**{f: getattr(codec, f) for f in codec.__dataclass_fields__}) == codec
    error = measure_codec(codec, points=400, margin=20, perfect=codec.perfect)[0]
    if codec.decoder == "argmax":
        assert error.max <= quantisation_bound(codec.cell, what="max") * (1 + 1e-3)
        assert abs(error.axis / quantisation_bound(codec.cell, what="axis") - 1) < 0.12
    else:
        assert error.max < 2e-3


@ALL
@pytest.mark.parametrize("K", [1, 133])
def test_any_number_of_joints_and_no_people(codec, K):
    targets = codec.encode(points(1, K), torch.full((1, K), 2))
    output = codec.perfect(targets)
    assert output.numel() == codec.channels(K)
    for shape in (output, output.flatten(1)):
        assert codec.decode(shape)[0].shape == (1, K, 2)
        assert abs(codec.loss(shape, targets).item()) < 1e-3 + (3 if codec.smoothing != "gaussian" else 0)
        assert codec.flip_back(shape, tuple(range(K))).shape == shape.shape
    nobody = codec.encode(torch.zeros(0, K, 2), torch.zeros(0, K))
    assert codec.decode(nobody)[0].shape == (0, K, 2) and codec.loss(codec.perfect(nobody), nobody) == 0


@ALL
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_computed_in_float32(codec, dtype):
    xy = points()
    targets = codec.encode(xy, torch.full((2, 3), 2))
    output = codec.perfect(targets).clamp(min=-60)
    found, score = codec.decode(output.to(dtype))
    assert found.dtype == torch.float32 and torch.isfinite(found).all() and torch.isfinite(score).all()
    assert_close(found, codec.decode(output.to(dtype).float())[0])
    assert torch.isfinite(codec.loss(output.to(dtype), targets))
    assert codec.encode(xy.to(dtype), torch.full((2, 3), 2)).extra["x"].dtype == torch.float32


@ALL
def test_memory_layout_does_not_matter(codec):
    output = codec.perfect(codec.encode(points(), torch.full((2, 3), 2)))
    wide = torch.stack([output, output], -1)[..., 0]
    assert_close(codec.decode(wide), codec.decode(output))
    turned = output.transpose(0, 1).contiguous().transpose(0, 1)
    assert_close(codec.decode(turned), codec.decode(output))


@ALL
def test_flip_test_is_the_identity_for_a_perfect_network(codec):
    """Every joint of the mirrored crop, brought back, lies where the direct answer lies; with biased bins because of the shift."""
    swap = (0, 2, 1)
    xy = points()
    seen = torch.stack([SIZE[1] - 1 - xy[..., 0], xy[..., 1]], -1)[:, list(swap)]
    direct, turned = (codec.perfect(codec.encode(p, torch.full((2, 3), 2))) for p in (xy, seen))
    back = codec.flip_back(turned, swap)
    assert (codec.decode(back)[0] - codec.decode(direct)[0]).abs().max() <= (max(codec.cell) + 1e-4 if codec.decoder == "argmax" else 2e-2)
    if codec.smoothing == "gaussian":
        near = direct > -12  # the labels agree, not only what is read from them
        assert (back - direct)[near].abs().max() < (0.1 if codec.split != int(codec.split) and codec.mapping == "biased" else 2e-3)
    assert torch.equal(flip_bins(flip_bins(direct, codec.bins, swap), codec.bins, swap), direct)


def test_published_flip_shift_fits_two_bins_per_pixel_only():
    for split, leftover in ((1.0, -1.0), (2.0, 0.0), (3.0, 1.0), (4.0, 2.0)):
        codec = SimccCodec((64, 64), split, sigma=6.0, mapping="biased")
        xy = torch.tensor([[[30.3, 25.1]]])
        seen = torch.tensor([[[63 - 30.3, 25.1]]])
        turned = codec.perfect(codec.encode(seen, torch.full((1, 1), 2)))
        found = codec.decode(flip_bins(turned, codec.bins, (0,), shift=-1))[0]
        assert_close((found - xy)[0, 0], torch.tensor([leftover / split, 0.0]), rtol=0, atol=2e-3)


def test_labels_and_weights():
    codec = SimccCodec(SIZE)
    xy = torch.tensor([[[-0.2, 40.0], [10.0, 95.2], [-0.5, 3.0], [70.0, 3.0], [5.0, 5.0]]])
    targets = codec.encode(xy, torch.tensor([[2, 1, 2, 2, 0]]))
    assert targets.weight.tolist() == [[1, 1, 0, 0, 0]]  # half a bin outside is still the border bin; more is not
    assert_close(targets.extra["x"].sum(-1), torch.ones(1, 5))
    wild = codec.perfect(targets)
    wild[0, 2:] = math.nan  # not labelled: may hold anything
    wild.requires_grad_()
    loss = codec.loss(wild, targets)
    loss.backward()
    assert torch.isfinite(loss) and bool((wild.grad[0, 2:] == 0).all())
    refuses(lambda: codec.loss(wild, SimccCodec(SIZE, 4.0).encode(xy, torch.full((1, 5), 2))), contains="belong to one codec object")
    refuses(lambda: codec.decode(torch.zeros(1, 5, 24, 16)), contains="these look like heatmaps")
    refuses(lambda: codec.decode(torch.zeros(1, 5, 100)), contains="output must be (B, K, 128 + 192)")
    refuses(lambda: vector_kl(torch.zeros(1, 5, 0), torch.zeros(1, 5, 0)), contains="at least one bin")
    refuses(lambda: codec.encode(xy * math.nan, torch.full((1, 5), 2)), contains="must be finite")
    refuses(lambda: SimccCodec(SIZE, mapping="half"), contains="mapping must be")
    refuses(lambda: SimccCodec(SIZE, sigma=0.0), contains="sigma must be positive")
    refuses(lambda: SimccCodec(SIZE, decoder="dark"), contains="how must be")
    refuses(lambda: bin_counts((97, 64), 1.5), contains="whole numbers of bins")
    assert bin_counts((10, 20), 1.1) == (11, 22) and bin_counts((98, 196), 1 / 49) == (2, 4)  # whole but for the rounding of a product
    refuses(lambda: bin_counts((98, 49), 1 / 49), contains="at least 2 per axis")


def test_decoders_at_the_edges():
    flat = torch.zeros(1, 2, 8)
    for how in ("argmax", "parabola"):
        assert decode_bins(flat, how=how)[0].tolist() == [[0.0, 0.0]]
    assert decode_bins(flat, how="expectation")[0].tolist() == [[3.5, 3.5]]
    assert_close(decode_bins(flat)[1], torch.full((1, 2), 1 / 8))
    border = torch.tensor([[[9.0, 1.0, 0.0], [0.0, 1.0, 9.0]]])
    assert decode_bins(border, how="parabola")[0].tolist() == [[0.0, 2.0]]  # bends up: no step
    for place in (-0.4, 0.0, 0.3, 8.0, 15.4):  # a window that stays on the axis is exact up to its ends
        label = render_bins(torch.tensor([[place]]), 16, sigma=3.0).log()
        for reach in (1, 2, 6, 40):
            assert_close(decode_bins(label, how="parabola", reach=reach)[0], torch.tensor([[place]]), rtol=0, atol=2e-3)
    masked = torch.tensor([[[-math.inf, 2.0, 1.0, -math.inf]]])  # bins that a caller has ruled out
    for how in ("argmax", "parabola", "expectation"):
        assert torch.isfinite(decode_bins(masked, how=how)[0]).all()
    huge = torch.tensor([[[0.0, 1e4, 9e3, 0.0]]])
    assert all(torch.isfinite(t).all() for how in ("argmax", "parabola", "expectation") for t in decode_bins(huge, how=how))
    assert decode_bins(torch.zeros(0, 3, 8))[0].shape == (0, 3)
    refuses(lambda: decode_bins(torch.full((1, 1, 4), math.nan)), contains="must be finite")
    refuses(lambda: decode_bins(flat[0]), contains="logits must be (B, K, L)")
    refuses(lambda: decode_bins(flat.long()), contains="floating-point")
    refuses(lambda: decode_bins(flat, how="expectation", reach=0), contains="reach")


def test_gradients():
    g = torch.Generator().manual_seed(1)
    logits = torch.randn(2, 3, 7, generator=g, dtype=torch.float64, requires_grad=True)
    target = torch.rand(2, 3, 7, generator=g, dtype=torch.float64)
    weight = torch.tensor([[1.0, 0.0, 2.0], [0.5, 1.0, 0.0]], dtype=torch.float64)
    for variant in ("labelled", "official", "mmpose"):
        assert torch.autograd.gradcheck(lambda z: vector_kl(z, target, weight, variant=variant, beta=1.7), logits)  # noqa: B023
    assert torch.autograd.gradcheck(lambda z: decode_bins(z, how="expectation"), logits)
    peaked = (torch.tensor([0.0, 1.0, 3.0, 2.0, 0.0], dtype=torch.float64).expand(1, 2, 5) + 0.01).clone().requires_grad_()
    for reach in (1, 2):
        assert torch.autograd.gradcheck(lambda z: decode_bins(z, how="parabola", reach=reach), peaked)  # noqa: B023
    place = torch.tensor([[2.3, 4.1]], dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda p: render_bins(p, 9, sigma=1.5), place)
    head = SimccHead(2, (2, 3), (4, 5)).double()
    maps = torch.randn(2, 2, 2, 3, dtype=torch.float64, generator=g, requires_grad=True)
    assert torch.autograd.gradcheck(head, maps)


def test_head_is_a_net_for_the_top_down_system():
    from posetutor.systems.topdown import TopDown

    codec = SimccCodec((64, 48), sigma=4.0)

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.body = nn.Conv2d(3, COCO_17.K, 8, 8)
            self.head = SimccHead(COCO_17.K, (8, 6), codec.bins)
            self.out_channels, self.strides = self.head.out_channels, self.head.strides

        def forward(self, images):
            return self.head(self.body(images))

    torch.manual_seed(0)
    system = TopDown(Net(), codec, COCO_17)
    images = torch.rand(3, 3, 64, 48)
    xy, score = system.predict_crops(images)
    mirrored, _ = system.predict_crops(images.flip(-1))
    back = torch.stack([47 - mirrored[..., 0], mirrored[..., 1]], -1)[:, list(COCO_17.flip_index)]
    assert_close(xy, back, rtol=0, atol=1e-2)  # a flip test does not care which of the two it was given
    assert bool(((score >= 0) & (score <= 1)).all())
    batch = {"image": images, "xy": 10 + torch.rand(3, COCO_17.K, 2) * 25, "vis": torch.full((3, COCO_17.K), 2)}
    assert torch.isfinite(system.training_loss(batch))
    nobody = system.training_loss({**batch, "empty": torch.tensor([True, True, True])})
    assert nobody == 0  # a codec without maps has no target for a crop that shows nobody
