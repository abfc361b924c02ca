"""Second-order decoders and DARK: properties over shapes, types and borders, and refused input."""

import pytest
import torch
from torch.testing import assert_close

from posetutor.codecs.base import Codec, measure_codec
from posetutor.codecs.dark import DarkCodec, decode_dark, decode_dark_official
from posetutor.codecs.gaussian import DECODERS, GaussianCodec, decode_argmax, render_gaussian
from posetutor.codecs.second_order import (
    blur_around,
    decode_ccm,
    decode_gaussian_fit,
    decode_parabola,
    decode_paraboloid,
    filter_maps,
    fit_gaussian,
    gaussian_kernel,
    kernel_length,
    least_squares,
    noise_bound,
    refine_peaks,
    vertex_step,
)
from posetutor.core import refuses


def log_parabola(maps):
    return decode_parabola(maps, log=True)


def log_paraboloid(maps):
    return decode_paraboloid(maps, log=True)


def blurred_paraboloid(maps):
    return decode_paraboloid(maps, kernel=7)


def dark_without_blur(maps):
    return decode_dark(maps, kernel=None)


ALL = [decode_parabola, decode_paraboloid, log_parabola, log_paraboloid, blurred_paraboloid, decode_ccm, decode_gaussian_fit, decode_dark, dark_without_blur, decode_dark_official]
EXACT = [log_parabola, log_paraboloid, decode_gaussian_fit, dark_without_blur]
every = pytest.mark.parametrize("decode", ALL, ids=lambda f: f.__name__)


def clean(batch=2, joints=3, size=(40, 36), sigma=2.0, margin=8.0, dtype=torch.float32, seed=0):
    g = torch.Generator().manual_seed(seed)
    xy = margin + torch.rand(batch, joints, 2, generator=g, dtype=torch.float64) * torch.tensor([size[1] - 1 - 2 * margin, size[0] - 1 - 2 * margin])
    return render_gaussian(xy.to(dtype), size, sigma), xy.to(dtype)


@every
@pytest.mark.parametrize("joints", [1, 133])
def test_shapes_and_types(decode, joints):
    maps, truth = clean(joints=joints)
    xy, score = decode(maps)
    assert xy.shape == truth.shape and score.shape == truth.shape[:2] and xy.dtype == torch.float32
    assert torch.equal(score, maps.amax((-2, -1)))
    assert (xy - truth).abs().max() < 0.04
    assert decode(maps.double())[0].dtype == torch.float64
    empty = decode(maps[:0])
    assert empty[0].shape == (0, joints, 2) and empty[1].shape == (0, joints)


@every
def test_memory_layout_does_not_matter(decode):
    maps, _ = clean()
    expected = decode(maps)[0]
    for other in (maps.to(memory_format=torch.channels_last), maps.mT.contiguous().mT, maps.repeat_interleave(2, 1)[:, ::2]):
        assert other.stride() != maps.stride()
        assert_close(decode(other)[0], expected)


@every
@pytest.mark.parametrize("dtype, limit", [(torch.bfloat16, 0.05), (torch.float16, 0.05)])
def test_low_precision_stays_close(decode, dtype, limit):
    maps, _ = clean(joints=40, seed=3)
    low = decode(maps.to(dtype))[0]
    assert low.dtype == torch.float32 and torch.isfinite(low).all()
    assert (low - decode(maps)[0]).abs().max() < limit
    assert_close(low, decode(maps.to(dtype).float())[0])  # the arithmetic itself is that of float32


@every
def test_empty_maps_give_the_first_cell_and_say_so(decode):
    for fill in (0.0, 0.25, -1.0):
        xy, score = decode(torch.full((1, 2, 12, 16), fill))
        assert torch.equal(xy, torch.zeros(1, 2, 2)) and torch.all(score == fill)


@every
@pytest.mark.parametrize("size", [(1, 1), (1, 9), (9, 1), (2, 2), (3, 3), (4, 3), (5, 5), (5, 40)])
def test_small_maps(decode, size):
    g = torch.Generator().manual_seed(1)
    maps = torch.rand(2, 3, *size, generator=g)
    xy, _ = decode(maps)
    assert torch.isfinite(xy).all()
    assert ((xy - decode_argmax(maps)[0]).abs() <= 6).all()


@every
def test_peaks_on_borders_and_corners(decode):
    last_x, last_y = 35, 39
    cells = torch.tensor([[[0, 0], [last_x, 0], [0, last_y], [last_x, last_y], [0, 20], [20, 0], [last_x, 20], [20, last_y]]]).float()
    for shift in (0.0, 0.3, -0.3):
        maps = render_gaussian(cells + shift, (40, 36), 2.0)
        xy, _ = decode(maps)
        assert torch.isfinite(xy).all() and (xy - cells).abs().max() <= 1.5
        if decode in EXACT:
            assert_close(xy, cells + shift, rtol=0, atol=2e-3)
        if decode is decode_dark:
            assert_close(xy, cells + shift, rtol=0, atol=5e-3)


@pytest.mark.parametrize("decode", [decode_parabola, decode_paraboloid, decode_ccm, decode_gaussian_fit, decode_dark], ids=lambda f: f.__name__)
def test_joints_outside_the_frame_stay_near_the_border_cell(decode):
    maps = render_gaussian(torch.tensor([[[-1.2, 10.0], [36.5, 41.0]]]), (40, 36), 2.0)
    xy, _ = decode(maps)
    peak = decode_argmax(maps)[0]
    assert torch.isfinite(xy).all() and (xy - peak).abs().max() <= 2.0


@every
def test_bad_maps_are_refused(decode):
    maps, _ = clean()
    for bad in (float("nan"), float("inf")):
        broken = maps.clone()
        broken[0, 1, 2, 3] = bad
        refuses(lambda broken=broken: decode(broken), contains="must be finite")
    refuses(lambda: decode(maps[0]), contains="heatmaps must be (B, K, H, W)")
    refuses(lambda: decode(maps[..., :0]), contains="at least one cell")
    refuses(lambda: decode(maps.to(torch.complex64)), contains="real numbers")


def test_refused_settings():
    maps, _ = clean()
    patch = torch.zeros(2, 3, 3)
    cases = [
        (lambda: vertex_step(torch.zeros(2, 4, 4)), "patch must be (..., 3, 3) or (..., 5, 5)"),
        (lambda: vertex_step(patch.long()), "floating point"),
        (lambda: vertex_step(patch, surface="plane"), "surface must be"),
        (lambda: gaussian_kernel(4), "odd number of cells"),
        (lambda: gaussian_kernel(-3), "odd number of cells"),
        (lambda: kernel_length(0.0), "sigma must be positive"),
        (lambda: filter_maps(maps, 6), "odd number of cells"),
        (lambda: filter_maps(maps, 5, border="repeat"), "border must be"),
        (lambda: filter_maps(maps * torch.nan, 5), "maps must be finite"),
        (lambda: refine_peaks(maps, kernel=2.5), "odd number of cells"),
        (lambda: fit_gaussian(maps, sigma=-1.0), "sigma must be positive"),
        (lambda: fit_gaussian(maps, radius=0), "radius must be an integer >= 1"),
        (lambda: fit_gaussian(maps, threshold=1.0), "threshold in [0, 1)"),
        (lambda: fit_gaussian(maps, passes=-1), "passes an integer >= 0"),
        (lambda: least_squares(torch.zeros(2, 3, 9), torch.zeros(2, 8)), "target"),
        (lambda: noise_bound(-0.1), "noise must be >= 0"),
        (lambda: noise_bound(0.1, what="max"), "what must be one of"),
        (lambda: decode_dark(maps, variant="paper"), "variant must be"),
        (lambda: decode_dark(maps, kernel=10), "odd number of cells"),
        (lambda: decode_dark(maps, kernel=10, variant="official"), "odd number of cells"),
        (lambda: decode_dark(maps, sigma=0.0), "sigma must be positive"),
        (lambda: DarkCodec(sigma=-1.0), "sigma must be positive"),
        (lambda: DarkCodec(decoder="drak"), "decoder must be one of"),
    ]
    for call, words in cases:
        refuses(call, contains=words)


@every
def test_gradients(decode):
    maps, _ = clean(1, 2, (14, 15), 1.5, 5.0, torch.float64)
    g = torch.Generator().manual_seed(5)
    maps = (maps + 0.01 * torch.rand(maps.shape, generator=g, dtype=torch.float64)).requires_grad_()
    assert torch.autograd.gradcheck(lambda m: decode(m)[0], (maps,))


@pytest.mark.parametrize("decode", [decode_gaussian_fit, decode_dark, decode_paraboloid], ids=lambda f: f.__name__)
def test_gradients_are_finite_where_there_is_no_peak(decode):
    maps = torch.zeros(1, 3, 9, 8)
    maps[0, 1] = 0.5
    maps[0, 2, 4, 4] = 1.0
    maps.requires_grad_()
    decode(maps)[0].sum().backward()
    assert torch.isfinite(maps.grad).all()


@pytest.mark.parametrize("name", ["parabola", "paraboloid", "ccm", "least_squares", "dark", "dark_official"])
def test_names_make_codecs(name):
    codec = GaussianCodec((64, 48), decoder=name, sigma=1.5)
    assert isinstance(codec, Codec) and name in DECODERS
    error, _, _ = measure_codec(codec, points=400, margin=20)
    assert error.max < 0.3  # a quarter of a cell would be 1
    xy = torch.tensor([[[20.3, 30.7], [31.2, 40.1]]])
    targets = codec.encode(xy, torch.tensor([[2, 0]]))
    output = (targets.maps + 0.1).requires_grad_()
    codec.loss(output, targets).backward()
    assert torch.all(output.grad[0, 1] == 0) and output.grad[0, 0].abs().sum() > 0


def test_the_codec_hands_its_sigma_to_the_decoder():
    g = torch.Generator().manual_seed(0)
    maps = torch.rand(1, 4, 16, 12, generator=g)
    for sigma in (1.0, 3.0):
        codec = DarkCodec((64, 48), sigma=sigma)
        assert_close(codec.decode(maps)[0], decode_dark(maps, sigma=sigma)[0] * torch.tensor(codec.cell))


def test_sharp_bells_are_fitted_too():
    maps, truth = clean(1, 200, sigma=0.7)
    fit = fit_gaussian(maps, sigma=0.7)
    assert fit.accepted.all() and (fit.xy - truth).abs().max() < 1e-4
    assert (fit.sigma - 0.7).abs().max() < 1e-4 and (fit.height - 1).abs().max() < 1e-3


def test_degenerate_windows_are_refused_not_invented():
    one = torch.zeros(1, 1, 12, 16)
    one[0, 0, 5, 7] = 1.0
    fit = fit_gaussian(one)
    assert not fit.accepted.any() and fit.xy.tolist() == [[[7.0, 5.0]]] and fit.sigma.isnan().all()
    ridge = torch.exp(-((torch.arange(16.0) - 7.3) ** 2) / 8).expand(1, 1, 12, 16)  # no maximum along y
    assert not fit_gaussian(ridge).accepted.any()
    valley = 1 + 0.01 * ((torch.arange(16.0) - 7) ** 2 + (torch.arange(12.0)[:, None] - 5) ** 2)
    assert not fit_gaussian(valley[None, None]).accepted.any()


def test_negative_and_zero_values_do_not_poison_the_fit():
    maps, truth = clean(1, 300)
    g = torch.Generator().manual_seed(2)
    noisy = maps + 0.05 * torch.randn(maps.shape, generator=g)
    assert (noisy < 0).any()
    assert torch.isfinite(fit_gaussian(noisy).xy).all()
    assert torch.isfinite(fit_gaussian(noisy.clamp(min=0), threshold=0, passes=0).xy).all()
    assert (fit_gaussian(noisy).xy - truth).norm(dim=-1).mean() < 1.1 * noise_bound(0.05)


@pytest.mark.parametrize("variant", ["guarded", "official"])
def test_a_kernel_may_be_much_longer_than_the_map(variant):
    maps = render_gaussian(torch.tensor([[[3.3, 2.6], [2.9, 3.2]]]), (7, 6), 1.0)
    found, _ = decode_dark(maps, kernel=61, variant=variant)
    assert found.shape == (1, 2, 2) and bool(torch.isfinite(found).all())
    whole = filter_maps(maps, 61)[..., 1:6, 1:6]  # the same blur over the whole map
    assert_close(blur_around(maps, torch.full((1, 2, 2), 3), 61), whole)
