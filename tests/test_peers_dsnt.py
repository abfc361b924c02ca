"""DSNT against the dsntnn package: values and gradients in float64, to 1e-10.

The package is asked where it is installed (`pip install --no-deps dsntnn`), and its stored answers (tests/data/peer_dsnt.npz, numbers only)
everywhere else. `python tests/test_peers_dsnt.py` writes them again.
"""

import io
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.testing import assert_close

from posetutor.codecs.dsnt import DsntCodec, dsnt, gaussian_target, js_term, kl_term, normalise_maps, position_error, variance_term, weighted_mean
from posetutor.core import write_atomic
from posetutor.geometry import from_unit

STORED = Path(__file__).parent / "data" / "peer_dsnt.npz"
TERMS = ("euclidean", "l1", "js", "kl", "variance")
SETTINGS = {"wide": ((7, 9), 1.0), "tall": ((12, 5), 0.7), "soft": ((16, 16), 2.0)}
TIGHT = dict(rtol=1e-10, atol=1e-10)


def case(name):
    """Raw maps (2, 3, H, W), targets in the edges frame (2, 3, 2), weights (2, 3), all float64; smooth, sharp and two-peaked maps."""
    (height, width), _ = SETTINGS[name]
    g = torch.Generator().manual_seed(sorted(SETTINGS).index(name))
    raw = torch.randn(2, 3, height, width, generator=g, dtype=torch.float64) * torch.tensor([0.3, 2.0, 6.0], dtype=torch.float64)[:, None, None]
    target = 1.8 * torch.rand(2, 3, 2, generator=g, dtype=torch.float64) - 0.9
    return raw, target, torch.tensor([[1.0, 1.0, 0.0], [1.0, 0.0, 1.0]], dtype=torch.float64)


def answers(name, softmax, expectation, losses, mean):
    """Everything one implementation says about a case: maps, coordinates, each term, the mean of each and its gradient in the raw maps."""
    raw, target, weight = case(name)
    found = {}
    for term in TERMS:
        leaf = raw.clone().requires_grad_()
        maps = softmax(leaf)
        values = losses[term](maps, expectation(maps), target, *SETTINGS[name])
        (gradient,) = torch.autograd.grad(mean(values, weight), leaf)
        found |= {"maps": maps.detach(), "uv": expectation(maps).detach(), term: values.detach(), f"mean_{term}": mean(values, weight).detach(), f"grad_{term}": gradient}
    return found


def ours(name):
    terms = {
        "euclidean": lambda maps, uv, target, size, sigma: position_error(uv, target),
        "l1": lambda maps, uv, target, size, sigma: position_error(uv, target, "l1"),
        "js": lambda maps, uv, target, size, sigma: js_term(maps, gaussian_target(target, size, sigma)),
        "kl": lambda maps, uv, target, size, sigma: kl_term(maps, gaussian_target(target, size, sigma)),
        "variance": lambda maps, uv, target, size, sigma: variance_term(maps, sigma),
    }
    return answers(name, normalise_maps, dsnt, terms, weighted_mean)


def theirs(name, dsntnn):
    terms = {
        "euclidean": lambda maps, uv, target, size, sigma: dsntnn.euclidean_losses(uv, target),
        "l1": lambda maps, uv, target, size, sigma: dsntnn.l1_losses(uv, target),
        "js": lambda maps, uv, target, size, sigma: dsntnn.js_reg_losses(maps, target, sigma),
        "kl": lambda maps, uv, target, size, sigma: dsntnn.kl_reg_losses(maps, target, sigma),
        "variance": lambda maps, uv, target, size, sigma: dsntnn.variance_reg_losses(maps, sigma),
    }
    return answers(name, dsntnn.flat_softmax, dsntnn.dsnt, terms, dsntnn.average_loss)


@pytest.mark.parametrize("name", SETTINGS)
def test_equal_to_the_stored_answers_of_dsntnn(name):
    found = ours(name)
    with np.load(STORED, allow_pickle=False) as stored:
        keys = [key for key in stored.files if key.startswith(f"{name}_")]
        assert len(keys) == len(found) == 2 + 3 * len(TERMS)
        for key in keys:
            assert_close(found[key.removeprefix(f"{name}_")], torch.from_numpy(stored[key]), msg=lambda text, key=key: f"{key}: {text}", **TIGHT)


@pytest.mark.parametrize("name", SETTINGS)
def test_equal_to_dsntnn_itself(name):
    dsntnn = pytest.importorskip("dsntnn", reason="dsntnn is not installed (pip install --no-deps dsntnn); its stored answers are tested above")
    found, wanted = ours(name), theirs(name, dsntnn)
    for key, value in wanted.items():
        assert_close(found[key], value, msg=lambda text, key=key: f"{key}: {text}", **TIGHT)
    coords = from_unit(found["uv"], SETTINGS[name][0])
    assert_close(coords, dsntnn.normalized_to_pixel_coordinates(found["uv"], SETTINGS[name][0]), **TIGHT)


@pytest.mark.parametrize("name", SETTINGS)
@pytest.mark.parametrize("regulariser", ["js", "kl", "variance"])
def test_the_codec_has_the_loss_of_the_package(name, regulariser):
    """Encode crop pixels, take the loss of raw maps: the number that dsntnn gives for the same labels."""
    (height, width), sigma = SETTINGS[name]
    raw, target, weight = case(name)
    codec = DsntCodec((8 * height, 8 * width), 8, sigma=sigma, regulariser=regulariser, centred=False)
    targets = codec.encode(from_unit(target, codec.size), 2 * weight)
    with np.load(STORED, allow_pickle=False) as stored:
        wanted = stored[f"{name}_mean_euclidean"] + stored[f"{name}_mean_{regulariser}"]
        gradient = stored[f"{name}_grad_euclidean"] + stored[f"{name}_grad_{regulariser}"]
    leaf = raw.requires_grad_()
    loss = codec.loss(leaf, targets)
    loss.backward()
    assert_close(loss.detach(), torch.from_numpy(np.asarray(wanted)), **TIGHT)
    assert_close(leaf.grad, torch.from_numpy(gradient), **TIGHT)


def store():
    """Write the answers of the installed dsntnn."""
    import dsntnn

    arrays = {f"{name}_{key}": value.numpy() for name in SETTINGS for key, value in theirs(name, dsntnn).items()}
    buffer = io.BytesIO()
    np.savez_compressed(buffer, **arrays)
    write_atomic(STORED, buffer.getvalue())
    print(f"{STORED.name}: {len(arrays)} arrays, {STORED.stat().st_size // 1024} kB")


if __name__ == "__main__":
    store()
