"""RSN is the official network: parameter counts, key names and shapes in order, multiply-adds, forward passes, refine machines, checkpoints of every naming.

The numbers in tests/data were computed with the official implementations (repository and commit stand in the files);
tolerance for a forward pass: 1e-4 of the largest output (float32 against float64 of the official code differ by 1e-6).
"""

import gzip
import itertools
import json
import pickle
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn
from torch.testing import assert_close

from network_vectors import AllMaps, WRONG_IMAGES, assert_near, state_of

from posetutor.losses.heatmap import coarse_to_fine_loss, mse_loss, ohkm_loss
from posetutor.nets.blocks import prepare
from posetutor.nets.rsn import RSN, MmposeRefineMachine, PoseRefineMachine, ResidualSteps, load_official, rsn18, rsn50, rsn_small, step_macs, step_paths, step_width
from posetutor.nets.simple_baseline import count_macs, count_parameters, simple_baseline

DATA = Path(__file__).parent / "data"
KEYS = json.loads(gzip.decompress((DATA / "keys_rsn.json.gz").read_bytes()))
BUILD = {"rsn18": rsn18, "rsn50": rsn50}
NET, BLOCK, PRM, MMPOSE_PRM = (np.load(DATA / f"vec_{name}.npz", allow_pickle=False) for name in ("rsn_2stage", "rsb_bottleneck", "prm", "mmpose_prm"))


@pytest.fixture(scope="module", params=sorted(KEYS))
def official(request):
    name, stages = re.match(r"(rsn\d+)_(\d)stage", request.param).groups()
    with torch.device("meta"):
        return BUILD[name](17, stages=int(stages)), KEYS[request.param]


def test_parameters_and_buffers(official):
    net, entry = official
    assert count_parameters(net) == entry["parameters"]
    assert sum(b.numel() for b in net.buffers()) == entry["buffer_elements"]


def test_names_and_shapes_in_order(official):
    net, entry = official
    assert [[name, list(tensor.shape)] for name, tensor in net.state_dict().items()] == entry["state_dict"]


def test_multiply_adds(official):
    net, entry = official
    for numbers in entry["macs"]:
        size = tuple(numbers["size"])
        assert count_macs(AllMaps(net), size) == numbers["all_heads"]
        cells = size[0] * size[1] // 16
        heads = sum((256 * 256 + 9 * 256 * 17) * cells // 4**level for level in range(4))  # of one stage
        idle = net.stages * heads - (256 * 256 + 9 * 256 * 17) * cells
        assert count_macs(net, size) == numbers["all_heads"] - idle  # heads that nobody reads are not run


def tiny(K: int = 17, **options) -> RSN:
    torch.manual_seed(0)
    return RSN((1, 2, 1, 1), K, **{"stages": 2, "stem": 8, "channels": 16, **options})


@pytest.mark.parametrize("channels_last", [False, True])
def test_forward_of_the_whole_network(channels_last):
    net, state = tiny(channels_last=channels_last).eval(), state_of(NET, "sd/")
    assert list(net.state_dict()) == list(state)
    load_official(net, state, colour="rgb")
    images = torch.from_numpy(NET["in/x"])
    with torch.no_grad():
        stages, last = net(images, all_maps=True), net(images)
    for stage, level in itertools.product(range(2), range(4)):
        assert_near(stages[stage][level], NET[f"out/stage{stage}_res{level + 1}"], f"stage {stage}, level {level}")
    assert torch.equal(last, stages[1][3])  # the heads left out change nothing
    assert load_official(net, state).colour == "bgr"  # the original repository feeds BGR; our nets take RGB
    with torch.no_grad():
        assert_near(net(images.flip(1)), NET["out/stage1_res4"], "colours turned")


def test_loss_of_the_official_code():
    """Coarse levels learn empty maps for joints that are not visible; the finest mines 8 joints; labels 0-3, in the last stage 1-4."""
    stages = [[torch.from_numpy(NET[f"out/stage{s}_res{n}"]) for n in (1, 2, 3, 4)] for s in (0, 1)]
    labels, vis = torch.from_numpy(NET["in/labels"]).float(), torch.from_numpy(NET["in/valids"])[..., 0]
    seen, visible = (vis > 0).float(), (vis > 1)[..., None, None]
    total = 0
    for number, maps in enumerate(stages):
        own = [labels[:, number + level] for level in range(4)]
        masked = [label * visible for label in own]
        total = total + coarse_to_fine_loss(maps, masked, topk=None) - mse_loss(maps[3], masked[3]) + ohkm_loss(maps[3], own[3], seen, topk=8, reduction="all")
    assert_close(total, torch.from_numpy(NET["out/total_loss"])[0], rtol=1e-5, atol=0)


@pytest.mark.parametrize(("case", "options"), [("case0", (16, 16, 1)), ("case1", (16, 32, 2))])
def test_forward_of_the_block(case, options):
    block, state = ResidualSteps(*options).eval(), state_of(BLOCK, f"sd/{case}/")
    assert list(block.state_dict()) == list(state) and block.width == 6
    block.load_state_dict(state)
    x = torch.from_numpy(BLOCK[f"in/{case}/x"])
    given = x.clone()
    with torch.no_grad():
        assert_near(block(x), BLOCK[f"out/{case}/y"], case)
        block.fuse = False
        off = (block(x) - torch.from_numpy(BLOCK[f"out/{case}/y"])).abs().max()
    assert off > 0.05 * np.abs(BLOCK[f"out/{case}/y"]).max() and torch.equal(x, given)  # the vectors notice missing connections


@pytest.mark.parametrize(("case", "K"), [("case0", 17), ("case1", 5)])
def test_refine_machine_of_the_official_code(case, K):
    state, x = state_of(PRM, f"sd/{case}/"), torch.from_numpy(PRM[f"in/{case}/x"])
    machine = PoseRefineMachine(K).eval()
    assert list(machine.state_dict()) == list(state)
    machine.load_state_dict(state)
    with torch.no_grad():
        assert_near(machine(x), PRM[f"out/{case}/y"], case)
        for part, name in zip(machine.attention(machine.conv_bn_relu_prm_1(x)), ("channel", "spatial"), strict=True):
            assert_near(part, PRM[f"out/{case}/{name}_attention"], name)
        free = PoseRefineMachine(K, rectify=False).eval()
        free.load_state_dict(state)
        off = (free(x) - torch.from_numpy(PRM[f"out/{case}/y"])).abs().max()
    assert off > 0.05 * np.abs(PRM[f"out/{case}/y"]).max()  # the vectors notice a missing ReLU


def test_refine_machine_of_mmpose():
    state = state_of(MMPOSE_PRM, "sd/case0/")
    machine = MmposeRefineMachine(17).eval()
    assert list(machine.state_dict()) == list(state)
    machine.load_state_dict(state)
    with torch.no_grad():
        assert_near(machine(torch.from_numpy(MMPOSE_PRM["in/case0/x"])), MMPOSE_PRM["out/case0/y"], "mmpose")


@pytest.mark.parametrize("machine", [PoseRefineMachine(3), MmposeRefineMachine(3)], ids=["official", "mmpose"])
def test_gain_of_refine_machines(machine):
    torch.manual_seed(1)
    for norm in machine.modules():
        if isinstance(norm, (nn.BatchNorm2d, nn.BatchNorm1d)):
            nn.init.normal_(norm.weight, std=3), nn.init.normal_(norm.bias, std=3)
    maps = torch.randn(4, 3, 10, 8)
    with torch.no_grad():
        alpha, beta = machine.train().attention(maps)
    assert alpha.shape == (4, 3, 1, 1) and beta.shape[2:] == (10, 8)
    assert alpha.min() >= 0.5 and beta.min() >= 0.5 and 1.25 <= (1 + alpha * beta).min() and (1 + alpha * beta).max() <= 2
    with pytest.raises(ValueError, match="at least 2 in training, got 1"):
        machine(maps[:1])
    assert machine.eval()(maps[:1]).min() >= 0
    with pytest.raises(ValueError, match="maps must be"):
        machine(torch.randn(4, 5, 10, 8))
    with pytest.raises(ValueError, match="machine's type torch.float32, got torch.complex64"):
        machine(torch.randn(4, 3, 10, 8, dtype=torch.complex64))
    with pytest.raises(ValueError, match="K, the number of joints"):
        type(machine)(0)


# --- the block -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("steps", "fuse"), [(1, True), (2, True), (4, True), (4, False), (5, True)])
def test_paths_are_measured(steps, fuse):
    """All-ones kernels, no ReLU in the way: a path of n convolutions adds 9^n to the gradient, on a square of side 2 n + 1."""
    block = ResidualSteps(steps, steps, steps=steps, width=1, fuse=fuse).double().eval()
    for conv in (m for m in block.modules() if isinstance(m, nn.Conv2d)):
        nn.init.ones_(conv.weight), nn.init.zeros_(conv.bias)
    block.conv_bn_relu1.conv.weight.data = torch.eye(steps, dtype=torch.float64)[:, :, None, None]
    for norm in (m for m in block.modules() if isinstance(m, nn.BatchNorm2d)):
        norm.eps = 0.0
    side = 4 * steps + 3
    parts = torch.ones(1, steps, side, side, dtype=torch.float64, requires_grad=True)
    for i, y in enumerate(block.branches(parts), start=1):
        (gradient,) = torch.autograd.grad(y[0, 0, side // 2, side // 2], parts, retain_graph=True)
        for k in range(1, steps + 1):
            paths, length = int(step_paths(steps, fuse=fuse)[i - 1, k - 1]), 2 * i - k if fuse else i
            assert gradient[0, k - 1].sum() == paths * 9.0**length
            if paths:
                assert (gradient[0, k - 1] > 0).any(dim=0).sum() == 2 * length + 1
    catalan = [1, 2, 5, 14, 42]
    assert step_paths(steps).sum(1).tolist() == catalan[:steps]


def test_costs():
    for channels, planes in ((64, 64), (64, 128), (128, 256), (16, 16)):
        block = ResidualSteps(channels, planes)
        convs = [m for n, m in block.named_modules() if isinstance(m, nn.Conv2d) and not n.startswith("downsample")]
        assert sum(c.weight.numel() for c in convs) == step_macs(channels, planes, step_width(channels, planes))
        for steps in (1, 2, 3, 5):
            share = step_macs(channels, planes, step_width(channels, planes, steps), steps) / step_macs(channels, planes, step_width(channels, planes))
            assert 0.9 < share < 1.1
    assert [step_width(c, c) for c in (64, 128, 256, 512)] == [26, 52, 104, 208]
    for wrong in ((0, 4, 2, 4), (4, 4, 0, 4), (4, 4, 2, 0)):
        with pytest.raises(ValueError, match="must be >= 1"):
            step_macs(*wrong)
    with pytest.raises(ValueError, match="steps must be an integer >= 1"):
        step_paths(0)
    with pytest.raises(ValueError, match="must be >= 1"):
        ResidualSteps(8, 8, width=0)


def test_gradients_are_those_of_the_function():
    torch.manual_seed(1)
    block = ResidualSteps(4, 6, 2, steps=3, width=2).double().eval()
    assert torch.autograd.gradcheck(block, torch.randn(1, 4, 6, 4, dtype=torch.float64, requires_grad=True))
    machine = PoseRefineMachine(2, kernel=3).double().eval()
    assert torch.autograd.gradcheck(machine, torch.randn(1, 2, 5, 4, dtype=torch.float64, requires_grad=True))


def test_stride_skips_three_of_four_cells():
    block = ResidualSteps(8, 16, 2).eval()
    x = torch.randn(1, 8, 12, 8, requires_grad=True)
    block(x).sum().backward()
    read = x.grad.abs().sum(1)[0] > 0
    assert read[::2, ::2].float().mean() > 0.9 and not read[1::2].any() and not read[:, 1::2].any()


# --- checkpoints ---------------------------------------------------------------------------------------------------


def mmpose_names(state: dict, head: str = "head.") -> dict:
    """Official names -> mmpose's: no biases of convolutions, other names for stages, skips and heads."""
    made = {}
    for name, tensor in state.items():
        if name.endswith("conv.bias"):
            continue
        found = re.match(r"stage(\d+)\.upsample\.up(\d)\.res_conv(\d)\.(.+)", name)
        if found:
            name = f"{head}predict_layers.{4 * int(found[1]) + int(found[2]) - 1}.conv_layers.{int(found[3]) - 1}.{found[4]}"
        else:
            name = re.sub(r"^top\.conv\.", "backbone.top.top.0.", name)
            name = re.sub(r"^stage(\d+)\.", r"backbone.multi_stage_rsn.\1.", name).replace("conv_bn_relu3.", "conv_bn3.")
            name = re.sub(r"\.skip([12])\.", r".out_skip\1.", name).replace(".u_skip.", ".in_skip.")
        made[name] = tensor
    return made


@pytest.mark.parametrize("wrap", ["bare", "module", "mmpose1", "mmpose0", "data_preprocessor", "no_counters"])
def test_every_naming_loads(wrap):
    source = tiny(5)
    for name, tensor in source.state_dict().items():
        if name.endswith("conv.bias"):
            assert not tensor.any()  # fresh biases are zero, as mmpose's missing ones
    state = {n: t + 1 if t.is_floating_point() and not n.endswith("conv.bias") else t for n, t in source.state_dict().items()}
    renamed = {
        "bare": state,
        "module": {f"module.{name}": tensor for name, tensor in state.items()},
        "mmpose1": mmpose_names(state),
        "mmpose0": mmpose_names(state, "keypoint_head."),
        "data_preprocessor": {"data_preprocessor.mean": torch.zeros(3, 1, 1), **mmpose_names(state)},
        "no_counters": {name: tensor for name, tensor in state.items() if not name.endswith("num_batches_tracked")},
    }[wrap]
    net = tiny(5)
    report = load_official(net, renamed)
    assert report.colour == net.input_order == ("rgb" if "mm" in wrap or "data" in wrap else "bgr")
    assert not report.dropped[1:] and not report.new
    for name, tensor in net.state_dict().items():
        assert torch.equal(tensor, state[name]) or name.endswith("num_batches_tracked"), name


def test_a_file_in_its_container(tmp_path):
    path = tmp_path / "iter-96000.pth"
    torch.save({"model": {f"module.{k}": v for k, v in tiny(5).state_dict().items()}, "iteration": 96000}, path)
    assert len(load_official(tiny(5), path).kept) == len(tiny(5).state_dict())
    whole = path.read_bytes()
    for kept in (len(whole) // 2, 100, 0):
        path.write_bytes(whole[:kept])
        with pytest.raises(ValueError, match="cannot be read safely"):
            load_official(tiny(5), path)

    class Trap:
        def __reduce__(self):
            return (Path.touch, (tmp_path / "executed",))

    path.write_bytes(pickle.dumps({"model": Trap()}, protocol=2))
    with pytest.raises(ValueError, match="cannot be read safely"):
        load_official(tiny(5), path)
    assert not (tmp_path / "executed").exists()
    with pytest.raises(FileNotFoundError, match="no checkpoint at"):
        load_official(tiny(5), tmp_path / "missing.pth")


def test_another_number_of_joints():
    source, net = tiny(17), tiny(21)
    before = net.stage1.upsample.up4.res_conv2.conv.weight.clone()
    with pytest.raises(ValueError, match=r"res_conv2.*17 joints, the net 21.*new_head=True"):
        load_official(net, source.state_dict())
    report = load_official(net, source.state_dict(), new_head=True)
    assert all(".res_conv2." in name for name in report.new) and torch.equal(net.stage1.upsample.up4.res_conv2.conv.weight, before)
    assert torch.equal(net.stage1.downsample.layer2[1].conv_bn_relu2_4_3.conv.weight, source.stage1.downsample.layer2[1].conv_bn_relu2_4_3.conv.weight)


def test_with_and_without_refine():
    plain, refined = tiny(5), tiny(5, refine=True)
    with pytest.raises(ValueError, match=r"prm.*new_head=True"):
        load_official(refined, plain.state_dict())
    assert all(name.startswith("prm.") for name in load_official(refined, plain.state_dict(), new_head=True).new)
    load_official(plain, refined.state_dict(), new_head=True)
    images = torch.randn(2, 3, 64, 64)
    stages = refined.eval()(images, all_maps=True)
    assert torch.equal(stages[1][3], refined(images)) and stages[1][3].min() >= 0 and stages[1][2].min() < 0
    built = tiny(5, refine=True)
    with torch.device("meta"):
        meta = tiny(5, refine=True)
    assert all(t.is_meta for t in meta.state_dict().values()) and not any(t.is_meta for t in built.state_dict().values())
    assert load_official(meta, plain.state_dict(), new_head=True).new and meta.prm.conv_bn_relu_prm_2_1.conv.weight.std() > 0


def test_mismatches_name_layer_shapes_and_the_call():
    with torch.device("meta"):
        one, four, deep, resnet = rsn18(17), rsn18(17, stages=4), rsn50(17), simple_baseline(50, 17)
    with pytest.raises(ValueError, match=r"the file has 4 stages of \(2, 2, 2, 2\) blocks, the net 1 of .*build it with rsn18\(17, stages=4\)"):
        load_official(one, four.state_dict())
    with pytest.raises(ValueError, match=r"build it with rsn50\(17, stages=1\)"):
        load_official(one, deep.state_dict())
    with pytest.raises(ValueError, match=r"RSN\(\(1, 2, 1, 1\), 17, stages=2\)"):
        load_official(one, tiny().state_dict())
    with pytest.raises(ValueError, match="the file is an MSPN or a ResNet"):
        load_official(one, resnet.state_dict())
    with pytest.raises(ValueError, match="of another architecture"):
        load_official(one, {"encoder.weight": torch.zeros(2)})
    with pytest.raises(ValueError, match="stem, channels or steps"):
        load_official(tiny(), tiny(stem=16).state_dict())


# --- building and running ------------------------------------------------------------------------------------------


def test_weights_are_filled_once():
    state = tiny(5).state_dict()
    net = rsn18(5, stem=8, channels=16)
    again = rsn18(5, stem=8, channels=16, weights=net.state_dict())
    assert all(torch.equal(a, b) for a, b in zip(again.state_dict().values(), net.state_dict().values(), strict=True))
    other = rsn18(7, stem=8, channels=16, weights=net.state_dict(), new_head=True)
    assert other.out_channels == 7 and other.stage0.upsample.up4.res_conv2.conv.weight.std() > 0
    with torch.device("meta"):
        assert all(t.is_meta for t in rsn50(3, stages=2, refine=True).state_dict().values())
    assert rsn_small(3).spec == {"name": "rsn_small", "K": 3, "stem": 24} and state


@pytest.mark.parametrize(("images", "said"), WRONG_IMAGES)
def test_other_images_are_refused(images, said):
    with pytest.raises(ValueError, match=said):
        rsn_small(2, stem=8)(images)


@pytest.mark.parametrize("options", [{"K": 0}, {"stages": 0}, {"stem": 0}, {"channels": 0}, {"steps": 0}, {"blocks": (1, 1, 1)}, {"blocks": (1, 1, 1, 0)}])
def test_unknown_options_are_refused(options):
    with pytest.raises(ValueError, match="must be"):
        RSN(**{"blocks": (1, 1, 1, 1), "K": 3, "stem": 8, "channels": 8, **options})


def test_bfloat16_under_autocast_and_folding():
    torch.manual_seed(0)
    net, images = rsn_small(2, stem=8).eval(), torch.randn(1, 3, 64, 64)
    for norm in (m for m in net.modules() if isinstance(m, nn.BatchNorm2d)):
        nn.init.uniform_(norm.running_mean, -0.1, 0.1), nn.init.uniform_(norm.running_var, 0.5, 2), nn.init.ones_(norm.weight)
    with torch.no_grad():
        exact = net(images)
        with torch.autocast("cpu", torch.bfloat16):
            near = net(images)
        ready = prepare(net)(images)
    assert (near.float() - exact).abs().max() < 0.1 * exact.abs().max()
    assert (ready - exact).abs().max() <= 1e-4 * exact.abs().max()


@pytest.mark.parametrize("size", [(32, 32), (64, 96), (256, 192)])
def test_stride_is_four(size):
    with torch.device("meta"):
        assert rsn18(6, stages=2)(torch.zeros(2, 3, *size)).shape == (2, 6, size[0] // 4, size[1] // 4)
