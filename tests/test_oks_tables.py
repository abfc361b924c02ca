"""OKS for any batch shape and little memory, overlap in pieces, intervals of sigmas, rescoring rules."""

import math
import subprocess
import sys

import numpy as np
import pytest
import torch
from torch.testing import assert_close

from posetutor.core import refuses, seed_generator
from posetutor.metrics import oks as m
from posetutor.skeletons import COCO_17, estimate_sigmas

K = COCO_17.K


def poses(*lead, seed=0, dtype=torch.float64):
    return torch.rand(*lead, K, 2, generator=seed_generator(seed, 300), dtype=torch.float64).to(dtype) * 90


def people(*lead, seed=1):
    g = seed_generator(seed, 301)
    return poses(*lead, seed=seed), torch.randint(0, 3, (*lead, K), generator=g), torch.rand(*lead, generator=g, dtype=torch.float64) * 5000 + 300


@pytest.mark.parametrize("chunk", [1, 200, 2**16])
@pytest.mark.parametrize("pred_lead, true_lead, lead", [((), (), ()), ((4,), (4,), (4,)), ((2, 1), (3,), (2, 3)), ((1,), (5,), (5,)), ((0,), (0,), (0,))])
def test_any_leading_axes(pred_lead, true_lead, lead, chunk):
    pred, (true, vis, area) = poses(*pred_lead, 6), people(*true_lead, 3)
    table = m.oks_matrix(pred, true, vis, area, COCO_17.sigmas, chunk=chunk)
    assert table.shape == (*lead, 6, 3)
    elementwise = m.oks(pred[..., :, None, :, :], true[..., None, :, :, :], vis[..., None, :, :].expand(*true_lead, 6, 3, K), area[..., None, :].expand(*true_lead, 6, 3), COCO_17.sigmas)
    assert_close(table, elementwise, atol=1e-12, rtol=0)


def test_gradients_are_those_of_the_definition():
    pred, (true, vis, area) = poses(2, 3), people(2, 2)
    vis[0, 1] = 0
    pred.requires_grad_(True)
    assert torch.autograd.gradcheck(lambda p: m.oks_matrix(p, true, vis, area, COCO_17.sigmas), pred)
    m.oks_matrix(pred, true, vis * 0, area, COCO_17.sigmas).sum().backward()
    assert (pred.grad == 0).all()  # nobody is labelled


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_computed_in_float32(dtype):
    pred, (true, vis, area) = poses(4, dtype=dtype), people(3)
    table = m.oks_matrix(pred, true.to(dtype), vis, area, COCO_17.sigmas)
    assert table.dtype is torch.float32
    assert_close(table, m.oks_matrix(pred.float(), true.to(dtype).float(), vis, area, COCO_17.sigmas))


def test_refusals():
    pred, (true, vis, area) = poses(2, 3), people(5, 2)
    refuses(lambda: m.oks_matrix(pred, true, vis, area, COCO_17.sigmas), "leading axes that broadcast")
    refuses(lambda: m.oks_matrix(pred[0], true[0, :, :5], vis[0], area[0], COCO_17.sigmas), "xy_true")
    refuses(lambda: m.oks_matrix(pred[0], true[0], vis[1, :1].expand(3, K), area[0], COCO_17.sigmas), "vis")
    refuses(lambda: m.oks_matrix(pred[0] * math.nan, true[0], vis[0], area[0], COCO_17.sigmas), "finite")
    refuses(lambda: m.pose_overlap(pred[0], torch.full((3,), math.inf), COCO_17.sigmas), "finite")
    refuses(lambda: m.pose_overlap(pred[0], torch.ones(3), COCO_17.sigmas, mask=torch.ones(2, K)), "mask")


MEMORY = """
import resource, torch
from posetutor.metrics.oks import oks_matrix
from posetutor.skeletons import COCO_17
torch.set_num_threads(1)
n = 1400
xy, vis, area = torch.rand(n, 17, 2, dtype=torch.float64) * 300, torch.full((n, 17), 2), torch.full((n,), 4000.0, dtype=torch.float64)
oks_matrix(xy[:40], xy[:40], vis[:40], area[:40], COCO_17.sigmas)
with open("/proc/self/statm") as file:
    resident = int(file.read().split()[1]) * resource.getpagesize()
filler = torch.ones(max(0, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 - resident) + 2**20, dtype=torch.uint8)
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
table = oks_matrix(xy, xy, vis, area, COCO_17.sigmas)
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024 / (table.numel() * 8))
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads the resident memory from /proc")
def test_memory_is_the_output_and_little_more():
    """1400 x 1400 poses: 16 MB of output, where all joint pairs at once would be 270 MB."""
    done = subprocess.run([sys.executable, "-c", MEMORY], capture_output=True, text=True, check=True)
    assert float(done.stdout) < 2.0, f"{done.stdout.strip()} times the output"


@pytest.mark.parametrize("chunk", [1, 500, 2**16])
@pytest.mark.parametrize("rule", [None, "both", "column"])
def test_overlap_in_pieces(rule, chunk):
    xy, area = poses(7), torch.rand(7, generator=seed_generator(2, 302), dtype=torch.float64) * 4000 + 500
    mask = torch.rand(7, K, generator=seed_generator(3, 303)) > 0.5
    got = m.pose_overlap(xy, area, COCO_17.sigmas, mask=None if rule is None else mask, mask_rule=rule or "both", chunk=chunk)
    on = torch.ones(7, 7, K, dtype=torch.long) if rule is None else (mask * mask[:, None] if rule == "both" else mask.expand(7, 7, K)).long()
    want = m.oks(xy[:, None], xy, on, (area[:, None] + area) / 2, COCO_17.sigmas)
    assert_close(got, want, atol=1e-12, rtol=0)


def test_intervals_hold_the_truth_as_often_as_they_say():
    rng, sigma, runs = np.random.default_rng(0), np.array([0.03, 0.1]), 600
    for annotators, people_, level in ((2, 12, 0.95), (3, 30, 0.8)):
        inside = np.zeros(2)
        for _ in range(runs):
            labels = rng.normal(size=(annotators, people_, 2, 2)) * sigma[:, None] / math.sqrt(2) * 60
            measured, counts = estimate_sigmas(labels, np.full(people_, 3600.0))
            low, high = m.sigma_interval(measured, torch.from_numpy(counts), annotators, level=level)
            inside += ((low <= torch.from_numpy(sigma)) & (torch.from_numpy(sigma) <= high)).numpy()
        share = inside / runs
        assert (abs(share - level) < 4 * math.sqrt(level * (1 - level) / runs)).all(), share


def test_interval_by_table():
    """nu = 2 degrees of freedom: chi^2 is 2 x exponential, so its quantiles are -2 ln(1 - p)."""
    low, high = m.sigma_interval([0.1], 1, 2, level=0.9)
    assert_close(low, 0.1 / torch.tensor([-math.log(0.05)], dtype=torch.float64).sqrt())
    assert_close(high, 0.1 / torch.tensor([-math.log(0.95)], dtype=torch.float64).sqrt())
    many = m.sigma_interval([0.1, 0.2], torch.tensor([10**6, 10**6]))
    assert_close(many[1] - many[0], torch.tensor([0.1, 0.2], dtype=torch.float64) * 2 * 1.95996 / math.sqrt(4e6), rtol=1e-3, atol=0)
    for arguments in (([0.1], 0), ([0.1], 5, 1), ([0.1, 0.2], torch.tensor([5, 5, 5]))):
        refuses(lambda a=arguments: m.sigma_interval(*a), "counts must be")
    refuses(lambda: m.sigma_interval([0.1], 5, level=1.0), "level")


def test_rescoring_rules():
    box, joints = torch.tensor([0.5, 0.9]), torch.tensor([[0.9, 0.7, 0.2], [0.1, 0.2, 0.0]])
    want = {"joints": [0.6, 0.1], "sure_joints": [0.8, 0.0], "box_joints": [0.4, 0.0], "box_mean": [0.3, 0.09]}
    for rule, values in want.items():
        assert_close(m.rescore(box, joints, rule=rule), torch.tensor(values))
    refuses(lambda: m.rescore(box, joints, rule="median"), "rule")
    refuses(lambda: m.rescore(box, joints, math.nan), "threshold")  # no joint would be sure, every score 0


def test_options_that_would_do_nothing_are_refused():
    xy, score, area = poses(3, seed=8), torch.tensor([0.9, 0.8, 0.7]), torch.full((3,), 900.0)
    for distance in (0, -0.05, math.nan, math.inf):
        refuses(lambda: m.nearby_joints_nms(xy, score, distance=distance), "distance must be positive")  # noqa: B023
    for keep in (-1, 2.5):
        refuses(lambda: m.soft_oks_nms(xy, score, area, COCO_17.sigmas, keep=keep), "keep must be a whole number")  # noqa: B023
    assert len(m.soft_oks_nms(xy, score, area, COCO_17.sigmas, keep=0)[0]) == 0
    refuses(lambda: m.auc(xy, xy, torch.full((3, K), 2), 30.0, rule="left", steps=2.5), "steps must be a whole number")
    refuses(lambda: m.heatmap_accuracy(torch.rand(1, 2, 5, 6), torch.rand(1, 2, 5, 6), thr=math.nan), "thr must be")
