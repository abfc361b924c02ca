"""Gaussian blur against numbers computed with OpenCV (tests/data/gaussian_kernels.npz)."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.testing import assert_close

from posetutor.codecs.second_order import filter_maps, gaussian_kernel, kernel_length

DATA = Path(__file__).parent / "data"


def load(name):
    with np.load(DATA / f"{name}.npz", allow_pickle=False) as z:
        arrays = {key: torch.from_numpy(z[key]) for key in z.files if key != "params" and z[key].dtype.kind in "fiub"}
        return arrays, json.loads(z["params"].item())


@pytest.mark.parametrize("length", load("gaussian_kernels")[1]["kernels"])
def test_kernels_equal_opencv(length):
    z, _ = load("gaussian_kernels")
    assert_close(gaussian_kernel(length), z[f"out_k{length}"], rtol=0, atol=1e-12)


@pytest.mark.parametrize("length", [3, 5, 7, 9, 11])
def test_mirrored_blur_equals_opencv(length):
    z, _ = load("gaussian_kernels")
    assert_close(filter_maps(z["in_small"][None, None], length, border="mirror")[0, 0], z[f"out_blur_k{length}"], rtol=0, atol=1e-12)


def test_lengths_invert_opencvs_sigma():
    z, params = load("gaussian_kernels")
    for length, sigma in zip(params["kernels"], z["out_sigma_formula"].tolist(), strict=True):
        assert kernel_length(sigma) == length
    assert [kernel_length(s) for s in (1.0, 2.0, 3.0)] == [3, 11, 17]  # what mmpose's configurations use
