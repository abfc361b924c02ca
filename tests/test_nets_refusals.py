"""What the blocks and networks of chapters 43 to 45 refuse, in words that name the argument."""

import numpy as np
import pytest
import torch

from posetutor.nets.higherhrnet import aggregate_outputs, people_maps
from posetutor.nets.hrnet import Transition, hrnet_small
from posetutor.nets.rsn import MmposeRefineMachine, PoseRefineMachine, ResidualSteps, step_macs


@pytest.mark.parametrize("machine", [PoseRefineMachine, MmposeRefineMachine])
@pytest.mark.parametrize("kernel", [0, 4])
def test_refine_machines_want_odd_kernels(machine, kernel):
    with pytest.raises(ValueError, match="kernel must be odd"):
        machine(3, kernel=kernel)


@pytest.mark.parametrize("options", [{"width": 2.5}, {"steps": 2.0}, {"width": 0}])
def test_residual_steps_count_in_whole_numbers(options):
    with pytest.raises(ValueError, match="must be integers, all must be >= 1"):
        ResidualSteps(8, 8, **options)


def test_residual_steps_want_a_stride_and_exact_counts():
    with pytest.raises(ValueError, match="stride must be at least 1, got 0"):
        ResidualSteps(8, 8, 0)
    with pytest.raises(ValueError, match="must be integers"):
        step_macs(64, 64, 26.5)
    assert isinstance(step_macs(64, 64, 26), int)


@pytest.mark.parametrize("fused", [False, True])
@pytest.mark.parametrize("count", [0, 1, 3])
def test_transitions_take_one_map_a_branch(fused, count):
    """One map too few used to give one branch too few, without an error."""
    with pytest.raises(ValueError, match=f"maps must be one tensor a branch, expected 2, got {count}"):
        Transition((3, 6), (3, 6, 12), fused=fused)([torch.zeros(1, 3, 8, 8)] * count)


def test_networks_name_arrays():
    with pytest.raises(ValueError, match="images must be a torch tensor, got ndarray"):
        hrnet_small(2, width=4)(np.zeros((1, 3, 64, 64), np.float32))


def test_outputs_agree_in_their_tags():
    one, all_joints = torch.zeros(1, 4, 4, 4), torch.zeros(1, 6, 8, 8)
    with pytest.raises(ValueError, match=r"agree in their number of tag maps wherever they have some, got \[1, 3\]"):
        aggregate_outputs([one, all_joints], 3)
    assert aggregate_outputs([one, all_joints[:, :3]], 3)[1].shape == (1, 1, 8, 8, 1)  # none is fine


@pytest.mark.parametrize("size", [(0, 8), (8.5, 8)])
def test_people_maps_have_whole_cells(size):
    with pytest.raises(ValueError, match="whole numbers of cells"):
        people_maps(torch.zeros(1, 2, 2), torch.ones(1, 2), size)


def test_people_maps_name_arrays():
    with pytest.raises(ValueError, match="xy_cells must be a tensor"):
        people_maps(np.zeros((1, 2, 2), np.float32), torch.ones(1, 2), (8, 8))
