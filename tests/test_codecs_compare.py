"""The comparison of all codecs: bounds from theory at every stride, an open list, foreign maps, bad input; and the networks of its table."""

import math
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch.testing import assert_close

from posetutor.codecs.base import Codec
from posetutor.codecs.compare import (
    KINDS,
    WAYS,
    Comparison,
    GivenMaps,
    TiledCodec,
    compare_codecs,
    gaussian_way,
    place_joints,
    register_way,
    ruled,
    spoil,
    vertex_bound,
)
from posetutor.codecs.gaussian import GaussianCodec, quantisation_bound, render_gaussian
from posetutor.core import refuses

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "course"))


@pytest.fixture(scope="module")
def found() -> Comparison:
    return compare_codecs(kinds=tuple(KINDS), strides=(4, 16), size=(256, 256), points=120)


def test_every_way_on_every_kind_and_stride(found):
    assert len(found.rows) == len(WAYS) * len(KINDS) * 2 and found.ways == tuple(WAYS) and found.kinds == tuple(KINDS)
    for row in found.rows:
        assert 0 <= row.mean <= row.max and row.p95 <= row.max and row.joints == 120 and math.isfinite(row.max)
        assert row.bound is None or row.mean >= 0.9 * row.bound - 1e-3 * row.stride, row  # 120 joints: a bound may be undercut by the luck of the draw
    assert set(WAYS) >= {
        "argmax",
        "quarter",
        "second_peak",
        "parabola",
        "paraboloid",
        "ccm",
        "log_parabola",
        "dark",
        "udp",
        "least_squares",
        "combined",
        "hough",
        "dsnt",
        "simcc",
    }


@pytest.mark.parametrize("way", ["argmax", "quarter", "second_peak", "parabola", "paraboloid", "ccm"])
@pytest.mark.parametrize("sigma", [1.0, 2.0])
def test_bounds_are_met_on_perfect_maps(way, sigma):
    for row in compare_codecs([way], kinds=("clean",), strides=(2, 8), size=(256, 192), sigma=sigma, points=1500).rows:
        assert abs(row.mean / row.bound - 1) < 0.015 and row.max <= 1.01 * WAYS[way].bound(sigma, "max") * row.stride, row


@pytest.mark.parametrize("mapping", ["half", "unit", "biased"])
def test_rulers_agree_on_what_is_lost(mapping):
    ways = [way for way in WAYS if way != "dsnt"]
    rows = compare_codecs(ways, kinds=("clean",), strides=(8,), size=(128, 192), mapping=mapping, points=200).rows
    assert all(row.mean < 1.05 * row.bound + 0.02 for row in rows), rows


def test_rounding_makes_all_equal(found):
    means = {row.way: row.mean / quantisation_bound(row.stride) for row in found.rows if row.kind == "rounded" and row.way != "second_peak"}
    assert max(means.values()) / min(means.values()) < 1.01


def test_two_peaks_move_the_mean_as_computed(found):
    for stride in (4, 16):
        assert abs(found.row("dsnt", "two_peaks", stride).mean / (stride * 3.5 * 0.8 / 1.8) - 1) < 0.02


def test_the_list_is_open_and_names_are_replaced():
    before = dict(WAYS)
    try:
        register_way("floor", gaussian_way("argmax"), bound="floor", noise=None, why="a test")
        register_way("floor", gaussian_way("argmax"), bound=0.5, noise=None, why="another test")
        row = compare_codecs(["floor"], kinds=("noisy",), strides=(8,), size=(64, 64), points=20).row("floor", "noisy", 8)
        assert row.bound is None and WAYS["floor"].bound(1.0, "mean") == 0.5
        assert "another test" in compare_codecs(["floor"], kinds=("clean",), strides=(8,), size=(64, 64), points=20).card("clean", 8)
    finally:
        WAYS.pop("floor", None)
    assert dict(WAYS) == before


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
@pytest.mark.parametrize("K", [1, 133])
def test_given_maps_of_any_type_layout_and_number_of_joints(dtype, K):
    xy = 3 + 6 * torch.rand(2, K, 2, generator=torch.Generator().manual_seed(0))
    maps = render_gaussian(xy, (12, 16), 1.0)
    maps = maps.to(dtype).permute(0, 2, 3, 1).contiguous().permute(0, 3, 1, 2)  # channels last
    given = GivenMaps("network", maps, 4 * xy + 1.5, torch.ones(2, K), (48, 64), 4, 1.0)
    rows = compare_codecs(["argmax", "log_parabola", "dark"], kinds=(), given=[given]).rows
    assert [row.kind for row in rows] == ["network"] * 3 and rows[0].joints == 2 * K
    assert rows[1].mean < (0.1 if dtype == torch.bfloat16 else 0.02) and rows[0].mean < 2.2


def test_labels_decide_what_counts():
    xy = torch.tensor([[[4.0, 4.0], [6.0, 6.0]]])
    given = GivenMaps(
        "mine", render_gaussian(xy, (12, 12), 1.0), 4 * xy + 1.5 + torch.tensor([[[0.0, 0], [30, 0]]]), torch.tensor([[1.0, 0.0]]), (48, 48), 4, 1.0
    )
    assert compare_codecs(["argmax"], kinds=(), given=[given]).rows[0].max < 1e-5


def test_answers(found):
    words = found.answer(0.5)
    assert words.splitlines()[0].startswith("clean: ") and "rounded: no way stays within 0.5 px" in words
    assert found.coarsest(1.0, "clean")["quarter"] == 4 and found.coarsest(1.0, "clean")["argmax"] is None
    assert found.best("noisy", 4).mean == min(row.mean for row in found.rows if row.kind == "noisy" and row.stride == 4)
    assert found.grid("clean").count("\n") == len(WAYS) and "argmax" in found.card("border", 16)
    refuses(lambda: found.best("foggy", 4), contains="no row for kind 'foggy'")


def test_small_and_odd_maps():
    for cells in ((4, 4), (4, 9), (31, 5)):
        for kind in KINDS:
            truth, rival = place_joints(kind, 50, cells, 2.0)
            inside = (truth >= -0.5) & (truth <= torch.tensor([cells[1] - 0.5, cells[0] - 0.5]))
            assert inside.all() and torch.isfinite(rival).all()
    assert compare_codecs(["argmax", "dark"], strides=(16,), size=(64, 144), points=8).rows[0].joints == 8


def test_spoiling_is_seeded_and_leaves_the_field_alone():
    truth, rival = (xy[:, None].float() for xy in place_joints("noisy", 6, (12, 12), 1.0))
    draw = lambda xy: render_gaussian(xy, (12, 12), 1.0)  # noqa: E731
    one, two = (spoil("noisy", draw, truth, rival, 0.1, torch.Generator().manual_seed(3)) for _ in range(2))
    assert_close(one, two, rtol=0, atol=0)
    assert abs((one - draw(truth)).std().item() / 0.1 - 1) < 0.1


def test_what_cannot_be_compared_is_refused():
    refuses(lambda: compare_codecs(["argmax"], strides=(7,)), contains="stride 7")
    refuses(lambda: compare_codecs([]), contains="ways must name at least one")
    refuses(lambda: compare_codecs(["argmax"], strides=(128,)), contains="at least 4 cells a side")
    refuses(lambda: compare_codecs(["argmax"], sigma=0.0), contains="sigma > 0")
    refuses(lambda: compare_codecs(["dsnt"], mapping="unit"), contains="mapping must be 'half' for dsnt")
    refuses(lambda: compare_codecs(["argmax"], points=0), contains="points must be >= 1")
    refuses(lambda: ruled(GaussianCodec, (64, 64), 8, "centre"), contains="'half', 'unit' or 'biased'")
    refuses(lambda: TiledCodec(GaussianCodec((64, 64), 8)), contains="mapping='biased'")
    refuses(lambda: vertex_bound(math.inf), contains="sigma must be positive")
    refuses(
        lambda: GivenMaps("x", torch.zeros(1, 1, 4, 4), torch.full((1, 1, 2), math.nan), torch.ones(1, 1), (16, 16), 4, 1.0), contains="xy_crop must be finite"
    )


# --- the networks of the table ----------------------------------------------------------------------------------------

import train_codecs  # noqa: E402


@pytest.mark.parametrize("name", train_codecs.FAMILIES)
def test_every_family_learns_and_reads(name):
    preset, K = train_codecs.LESSON, 5
    net = train_codecs.build(name, preset, K)
    xy = 20 + 70 * torch.rand(2, K, 2, generator=torch.Generator().manual_seed(0))
    batch = {"image": torch.zeros(2, 3, 112, 112, dtype=torch.uint8), "xy": xy, "vis": torch.full((2, K), 2)}
    loss = train_codecs.training_loss(name, preset.size)(net, batch)
    loss.backward()
    assert math.isfinite(loss.item()) and all(p.grad is not None for p in net.heads.parameters())
    with torch.no_grad():
        outputs = net.eval()(train_codecs.pictures(batch))
    assert tuple(outputs) == ((0,) if train_codecs.FAMILIES[name].head == "point" else train_codecs.CELLS)
    for cells, output in outputs.items():
        for codec in train_codecs.FAMILIES[name].read.values():
            assert isinstance(codec(preset.size, cells), Codec) and codec(preset.size, cells).decode(output)[0].shape == (2, K, 2)


def test_joints_outside_the_crop_are_taken_out():
    xy, vis = torch.tensor([[[-0.6, 5.0], [111.4, 5.0], [3.0, 111.6]]]), torch.full((1, 3), 2)
    assert train_codecs.inside(xy, vis, (112, 112)).tolist() == [[0, 2, 0]]


def test_the_large_preset_has_the_same_levels():
    net = train_codecs.build("gaussian", replace(train_codecs.FULL, name="LESSON"), 3)  # its crops, the narrow trunk
    with torch.no_grad():
        assert [tuple(maps.shape[-2:]) for maps in net.eval()(torch.zeros(1, 3, 224, 224)).values()] == [(7, 7), (14, 14), (28, 28), (56, 56)]
