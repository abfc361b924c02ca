"""SimCC labels, losses and decoding against numbers computed with mmpose (tests/data/*.npz)."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.testing import assert_close

from posetutor.codecs.simcc import decode_bins, render_bins, vector_kl

DATA = Path(__file__).parent / "data"


def load(name):
    with np.load(DATA / f"{name}.npz", allow_pickle=False) as z:
        arrays = {key: torch.from_numpy(z[key]) for key in z.files if key != "params"}
        return arrays, json.loads(z["params"].item())


@pytest.mark.parametrize(
    "name, options",
    [
        ("gauss", dict(rounded=True, scale="density")),
        ("gauss_raw", dict(rounded=True, scale="peak")),
        ("onehot", dict(smoothing="none")),
        ("smooth", dict(smoothing="equal", share=0.1)),
    ],
)
def test_labels_equal_mmpose(name, options):
    z, params = load("mm_simcc")
    taught = z[f"out_{name}_weight"] > 0
    assert taught.sum() >= 5
    for axis, letter in enumerate("xy"):
        bins = int(params["input_size"][axis] * params["split"])
        label = render_bins(z["in_joints"][..., axis] * params["split"], bins, sigma=params["sigma"][axis], **options)
        assert_close(label[taught], z[f"out_{name}_{letter}"][taught], rtol=0, atol=1e-6)


def test_argmax_equals_mmpose():
    z, params = load("mm_simcc")
    (x, y) = (decode_bins(z[f"in_simcc_{letter}"])[0] / params["split"] for letter in "xy")
    found = z["out_score"] > 0  # mmpose answers (-1, -1) / split elsewhere, we give the best bin and a score
    assert found.sum() >= 20
    assert_close(torch.stack([x, y], -1)[found], z["out_decoded"][found], rtol=0, atol=1e-5)


def test_kl_equals_mmpose():
    z, params = load("loss_classification")
    ours = sum(vector_kl(z[f"in_simcc_{a}"], z[f"in_gt_{a}"], z["in_weight"], beta=params["beta"], variant="mmpose") for a in "xy")
    assert_close(ours, z["out_kl"], rtol=1e-5, atol=1e-5)
    soft = sum(vector_kl(z[f"in_simcc_{a}"], (params["beta"] * z[f"in_gt_{a}"]).softmax(-1), z["in_weight"], beta=params["beta"], variant="mmpose") for a in "xy")
    assert_close(soft, z["out_kl_softlabel"], rtol=1e-5, atol=1e-5)
