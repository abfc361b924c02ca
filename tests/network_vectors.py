"""What the tests of networks against official numbers share."""

import numpy as np
import torch
from torch import Tensor, nn

WRONG_IMAGES = [  # for a network whose sides must be multiples of 32, and what it says
    (torch.zeros(1, 3, 250, 190), "250 x 190 .H x W.: the nearest valid height is 224 or 256, the nearest width 160 or 192"),
    (torch.zeros(1, 3, 256, 200), "the nearest valid height is 256, the nearest width 192 or 224"),
    (torch.zeros(1, 3, 16, 64), "the nearest valid height is 32, the nearest width 64"),
    (torch.zeros(1, 3, 0, 64), "nearest valid height is 32"),
    (torch.zeros(1, 4, 64, 64), "images must be"),
    (torch.zeros(3, 64, 64), "images must be"),
    (torch.zeros(1, 3, 64, 64, dtype=torch.float16), "net's type torch.float32, got torch.float16"),
    (torch.zeros(1, 3, 64, 64, dtype=torch.uint8), "net's type torch.float32, got torch.uint8"),
    (torch.zeros(1, 3, 64, 64, dtype=torch.complex64), "net's type torch.float32, got torch.complex64"),
]


class AllMaps(nn.Module):
    """All heads of a network, as in training: what the official counts count."""

    def __init__(self, net: nn.Module):
        super().__init__()
        self.net = net

    def forward(self, images: Tensor) -> list:
        return self.net(images, all_maps=True)


def state_of(vectors, prefix: str) -> dict[str, Tensor]:
    """The weights stored in a file of vectors under a prefix."""
    return {key[len(prefix) :]: torch.from_numpy(vectors[key]) for key in vectors.files if key.startswith(prefix)}


def assert_near(value: Tensor, expected: np.ndarray, what: str = "", tolerance: float = 1e-4) -> None:
    """Equal to a share of the largest expected value."""
    assert value.shape == expected.shape, what
    assert np.abs(value.detach().numpy() - expected).max() <= tolerance * np.abs(expected).max(), what
