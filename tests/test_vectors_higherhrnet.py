"""HigherHRNet and the hourglasses are the official networks: counts, key names and shapes in order, multiply-adds, forward passes, targets and loss.

The numbers in tests/data were computed with the official implementations (repository and commit stand in the files);
tolerance for a forward pass: 1e-4 of the largest output; for targets and loss 1e-6.
"""

import gzip
import json
import pickle
import time
from pathlib import Path

import numpy as np
import pytest
import torch

from network_vectors import assert_near, state_of

from posetutor.nets.higherhrnet import (
    HigherHRNet,
    Hourglass,
    Hourglass52,
    PreActivation,
    StackedHourglass,
    StridedHourglass,
    higherhrnet_small,
    higherhrnet_w32,
    higherhrnet_w48,
    hourglass52,
    masked_mse,
    people_maps,
    stacked_hourglass,
)
from posetutor.nets.hrnet import hrnet_small, hrnet_w32
from posetutor.nets.simple_baseline import count_macs, count_parameters, load_official, simple_baseline

DATA = Path(__file__).parent / "data"
KEYS = json.loads(gzip.decompress((DATA / "keys_higherhrnet.json.gz").read_bytes()))
TINY, GLASS, STRIDED = (np.load(DATA / f"vec_{name}.npz", allow_pickle=False) for name in ("higherhrnet_tiny", "hourglass", "mmpose_hourglass_module"))
TARGETS = np.load(DATA / "higherhrnet_targets_loss.npz", allow_pickle=False)
BUILD = {
    "higherhrnet_w32": lambda K=17: higherhrnet_w32(K),
    "higherhrnet_w48": lambda K=17: higherhrnet_w48(K),
    "hourglass_1stack": lambda K=16: stacked_hourglass(1, K),
    "hourglass_2stack": lambda K=16: stacked_hourglass(2, K),
    "hourglass_8stack": lambda K=16: stacked_hourglass(8, K),
    "mmpose_hourglass52": lambda K=17: hourglass52(K),
}


@pytest.fixture(scope="module", params=sorted(BUILD))
def official(request):
    with torch.device("meta"):
        return request.param, BUILD[request.param](), KEYS[request.param]


def our_name(name: str) -> str:
    return name.removeprefix("backbone.").removeprefix("head.")


def test_parameters_and_buffers(official):
    _, net, entry = official
    assert count_parameters(net) == entry["parameters"]
    assert sum(b.numel() for b in net.buffers()) == entry["buffer_elements"]


def test_names_and_shapes(official):
    """Every name and shape, in the official order."""
    _, net, entry = official
    assert [[name, list(tensor.shape)] for name, tensor in net.state_dict().items()] == [[our_name(name), shape] for name, shape in entry["state_dict"]]


def test_multiply_adds(official):
    name, net, entry = official
    for numbers in entry["macs"][:1]:  # the second size of a net differs by the number of cells alone
        assert count_macs(net, tuple(numbers["size"])) == numbers["input"]
        if "output" in numbers:
            assert count_macs(net, tuple(numbers["size"]), deconv="output") == numbers["output"]
    published = {"higherhrnet_w32": [47.9, 74.8], "higherhrnet_w48": [154.3]}  # counted on the output, in 1e9
    if name in published:
        assert [round(n["output"] / 1e9, 1) for n in entry["macs"]] == published[name]


def test_official_key_list_loads(official, tmp_path):
    """Every name of the published files, in every wrapping, fills the net: nothing is missing, nothing is left over."""
    name, net, entry = official
    with torch.device("meta"):
        state = {key: torch.empty(shape) for key, shape in entry["state_dict"]}
    for prefix in {"hourglass": ("", "module.", "model.module."), "higherhrnet": ("", "module."), "mmpose": ("", "module.")}[name.split("_")[0]]:
        names, dropped, colour = net.official_names({prefix + key: tensor for key, tensor in state.items()})
        assert {n: tuple(t.shape) for n, t in names.items()} == {n: tuple(t.shape) for n, t in net.state_dict().items()}
        assert not dropped and colour == "rgb"


def tiny(K: int = 17, **options) -> HigherHRNet:
    torch.manual_seed(0)
    return HigherHRNet(4, K, modules=(1, 1, 1), blocks=1, **options)


@pytest.mark.parametrize("channels_last", [False, True])
def test_forward_of_higherhrnet(channels_last):
    net, state = tiny(channels_last=channels_last).eval(), state_of(TINY, "sd/")
    assert list(net.state_dict()) == list(state)
    load_official(net, state)
    images = torch.from_numpy(TINY["in/x"])
    with torch.no_grad():
        outputs = net(images)
        assert_near(net.features(images)[0], TINY["out/stage4.0"], "stage4.0")
    assert len(outputs) == 2 and net.strides == (4, 2) and net.out_channels == (34, 17)
    for n, value in enumerate(outputs):
        assert_near(value, TINY[f"out/y{n}"], f"y{n}")


def test_without_the_concatenation_it_is_another_function():
    state = state_of(TINY, "sd/")
    state["deconv_layers.0.0.0.weight"] = state["deconv_layers.0.0.0.weight"].clone()
    state["deconv_layers.0.0.0.weight"][4:] = 0  # the maps are not fed back
    net = tiny().eval()
    load_official(net, state)
    with torch.no_grad():
        coarse, fine = net(torch.from_numpy(TINY["in/x"]))
    assert_near(coarse, TINY["out/y0"], "y0")
    assert np.abs(fine.numpy() - TINY["out/y1"]).max() > 0.05 * np.abs(TINY["out/y1"]).max()


def test_forward_of_the_stacked_hourglass():
    net, state = StackedHourglass(2, 5, width=8).eval(), state_of(GLASS, "sd/net/")
    assert list(net.state_dict()) == list(state)
    load_official(net, {f"model.module.{n}": t for n, t in state.items()})
    with torch.no_grad():
        outputs = net(torch.from_numpy(GLASS["in/net/x_nhwc"]).permute(0, 3, 1, 2))
    assert_near(torch.stack(outputs, dim=1), GLASS["out/net/preds"], "preds")


@pytest.mark.parametrize("case", sorted(k for k in json.loads(str(GLASS["meta"]))["config"] if k.startswith("case")))
def test_forward_of_its_parts(case):
    config = json.loads(str(GLASS["meta"]))["config"][case]
    args = config["args"]
    part = PreActivation(*args) if config["cls"] == "Residual" else Hourglass(*args[:2], growth=args[3] if len(args) > 3 else 0)
    state = state_of(GLASS, f"sd/{case}/")
    assert list(part.state_dict()) == list(state)
    part.load_state_dict(state)
    with torch.no_grad():
        assert_near(part.eval()(torch.from_numpy(GLASS[f"in/{case}/x"])), GLASS[f"out/{case}/y"], case)


@pytest.mark.parametrize("case", ["case0", "case1"])
def test_forward_of_the_strided_hourglass(case):
    config = json.loads(str(STRIDED["meta"]))["config"][case]
    part, state = StridedHourglass(config["stage_channels"], config["stage_blocks"]), state_of(STRIDED, f"sd/{case}/")
    assert list(part.state_dict()) == list(state)
    part.load_state_dict(state)
    with torch.no_grad():
        assert_near(part.eval()(torch.from_numpy(STRIDED[f"in/{case}/x"])), STRIDED[f"out/{case}/y"], case)


# --- targets and loss ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["out_heatmaps", "out_scale_aware"])
def test_targets(name):
    joints = torch.from_numpy(TARGETS["in_joints"])
    params = json.loads(TARGETS["params"].item())
    sigma = torch.from_numpy(TARGETS["in_sigma_per_person"]) if name == "out_scale_aware" else params["sigma"]
    maps = people_maps(joints[..., :2], joints[..., 2], (params["res"], params["res"]), sigma=sigma, cell="trunc")
    assert maps.shape == TARGETS[name].shape
    assert np.abs(maps.numpy() - TARGETS[name]).max() <= 1e-6


def test_heatmap_loss():
    pred, target, mask = (torch.from_numpy(TARGETS[f"in_hm_{n}"]) for n in ("pred", "gt", "mask"))
    assert np.abs(masked_mse(pred, target, mask).numpy() - TARGETS["out_hm_loss"]).max() <= 1e-6


# --- checkpoints ---------------------------------------------------------------------------------------------------


def small_glass(K: int = 5, stacks: int = 2) -> StackedHourglass:
    return StackedHourglass(stacks, K, width=8, depth=2)


def small_52(K: int = 5) -> Hourglass52:
    return Hourglass52(K, channels=(8, 8, 12), blocks=(1, 1, 1))


@pytest.mark.parametrize(
    ("build", "wrap"),
    [
        (tiny, lambda n: "module." + n),
        (tiny, lambda n: ("keypoint_head." if n.startswith(("final_layers.", "deconv_layers.")) else "backbone.") + n),
        (tiny, lambda n: ("head." if n.startswith(("final_layers.", "deconv_layers.")) else "module.backbone.") + n if "final" in n or "deconv" in n else "backbone." + n),
        (small_glass, lambda n: "model.module." + n),
        (small_52, lambda n: ("head." if n.startswith("multi") else "backbone.") + n),
        (small_52, lambda n: ("keypoint_head." if n.startswith("multi") else "backbone.") + n),
    ],
)
def test_every_naming_loads(build, wrap):
    source, net = build(5), build(5)
    with torch.no_grad():
        for tensor in source.state_dict().values():
            tensor.add_(1)
    report = load_official(net, {wrap(n): t for n, t in source.state_dict().items()})
    assert not report.new and not report.dropped and report.colour == "rgb"
    assert all(torch.equal(t, source.state_dict()[n]) for n, t in net.state_dict().items())


@pytest.mark.parametrize(("build", "new"), [(tiny, 5), (small_glass, 6), (small_52, 2)])
def test_another_number_of_joints(build, new):
    source, net = build(5), build(7)
    trunk = next(n for n in net.state_dict() if n.endswith("conv2.weight") or n.endswith("conv2.conv.weight"))
    with pytest.raises(ValueError, match=r"5 joints, the net 7: call load_official\(net, file, new_head=True\)"):
        load_official(net, source.state_dict())
    report = load_official(net, source.state_dict(), new_head=True)
    assert len(report.new) == {tiny: 5, small_glass: 5, small_52: 2}[build]
    assert torch.equal(net.state_dict()[trunk], source.state_dict()[trunk])


def test_a_plain_hrnet_fills_the_trunk():
    source = hrnet_small(5)
    with pytest.raises(ValueError, match="plain HRNet without the second head.*new_head=True"):
        load_official(HigherHRNet(16, 5, modules=(1, 1, 1), blocks=2, stem=24, layer1_blocks=2), source.state_dict())
    net = higherhrnet_small(7, weights=source.state_dict())
    assert torch.equal(net.stage4[0].branches[3][1].conv2.weight, source.stage4[0].branches[3][1].conv2.weight)
    assert all(t.isfinite().all() and not t.is_meta for t in net.state_dict().values())


def test_mismatches_name_the_call():
    with torch.device("meta"):
        w32, w48, resnet, plain = higherhrnet_w32(17), higherhrnet_w48(17), simple_baseline(50, 17), hrnet_w32(17)
        one, two, corner = stacked_hourglass(1, 16), stacked_hourglass(2, 16), hourglass52(17)
    for net, state, said in [
        (w32, w48, r"transition1.0.0.weight: file \(48, 256, 3, 3\), net \(32, 256, 3, 3\).*build the net with higherhrnet_w48\(17\)"),
        (w32, tiny(), r"HigherHRNet\(4, 17\)"),
        (w32, resnet, "another architecture"),
        (w32, plain, "plain HRNet"),
        (plain, w32, "it is a HigherHRNet"),
        (tiny(), tiny(blocks_after=1), "blocks_after, tags or another option after the trunk differs"),
        (one, two, r"2 stacks of width 256: build the net with stacked_hourglass\(2, 16, width=256\)"),
        (two, corner, r"mmpose's hourglass: build the net with hourglass52\(K\)"),
        (two, resnet, "another architecture"),
        (corner, two, "another architecture"),
        (StackedHourglass(1, 3, width=8, depth=1), StackedHourglass(1, 3, width=8, depth=2), "depth or growth differ"),
    ]:
        with pytest.raises(ValueError, match=said):
            load_official(net, state.state_dict())


def test_a_refused_file_changes_nothing(tmp_path):
    for net in (tiny(5), small_glass(), small_52()):
        before = {n: t.clone() for n, t in net.state_dict().items()}
        broken = {n: t.clone() for n, t in net.state_dict().items()}
        broken[next(n for n, t in broken.items() if t.ndim == 4)].flatten()[0] = float("nan")
        with pytest.raises(ValueError, match="NaN or infinite"):
            load_official(net, broken)
        path = tmp_path / "net.pth"
        torch.save({"state_dict": net.state_dict()}, path)
        path.write_bytes(path.read_bytes()[:3000])
        with pytest.raises(ValueError, match="cannot be read safely"):
            load_official(net, path)

        class Trap:
            def __reduce__(self):
                return (Path.touch, (tmp_path / "executed",))

        path.write_bytes(pickle.dumps({"state_dict": Trap()}))
        with pytest.raises(ValueError, match="cannot be read safely"):
            load_official(net, path)
        assert not (tmp_path / "executed").exists() and all(torch.equal(t, before[n]) for n, t in net.state_dict().items())


def test_weights_are_written_once():
    source = tiny(5)
    path_free = dict(source.state_dict())
    begin = time.process_time()
    higherhrnet_w48(17)
    assert time.process_time() - begin < 2
    drawn = []
    original = torch.nn.init.kaiming_normal_
    torch.nn.init.kaiming_normal_ = lambda t, *a, **k: (None if t.is_meta else drawn.append(t.data_ptr()), original(t, *a, **k))[1]
    try:
        fresh = tiny(5)
        assert len(drawn) == len(set(drawn))
        drawn.clear()
        small = higherhrnet_small(5)
        drawn.clear()
        again = higherhrnet_small(5, weights=small.state_dict())
        assert not drawn and all(torch.equal(t, again.state_dict()[n]) for n, t in small.state_dict().items())
    finally:
        torch.nn.init.kaiming_normal_ = original
    assert all(t.isfinite().all() for t in fresh.state_dict().values()) and path_free


# --- inputs --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("net", "images", "said"),
    [
        (tiny(2), torch.zeros(1, 3, 500, 512), "500 x 512 .H x W.: the nearest valid height is 480 or 512, the nearest width 512"),
        (tiny(2), torch.zeros(1, 3, 64, 64, dtype=torch.float16), "net's type torch.float32, got torch.float16"),
        (tiny(2), torch.zeros(1, 1, 64, 64), "images must be"),
        (small_glass(), torch.zeros(1, 3, 40, 32), "multiples of 16, got 40 x 32 .H x W.: the nearest valid height is 32 or 48, the nearest width 32"),
        (small_52(), torch.zeros(1, 3, 40, 32), "multiples of 16, got 40 x 32"),
        (small_52(), torch.zeros(1, 64, 64, 3), "images must be"),
    ],
)
def test_other_images_are_refused(net, images, said):
    with pytest.raises(ValueError, match=said):
        net(images)


def test_sizes_that_the_official_nets_take():
    with torch.device("meta"):
        assert [tuple(y.shape) for y in tiny(6).eval()(torch.zeros(2, 3, 64, 96))] == [(2, 12, 16, 24), (2, 6, 32, 48)]
        assert [tuple(y.shape) for y in stacked_hourglass(2, 6, width=8)(torch.zeros(2, 3, 64, 128))] == [(2, 6, 16, 32)] * 2
        assert hourglass52(6)(torch.zeros(2, 3, 128, 256)).shape == (2, 6, 32, 64)
        with pytest.raises(ValueError, match="the nearest valid height is 64 or 128"):
            stacked_hourglass(1, 6, width=8)(torch.zeros(1, 3, 96, 64))
        with pytest.raises(ValueError, match="the nearest valid height is 128"):
            hourglass52(6)(torch.zeros(1, 3, 96, 128))


def test_options():
    assert [tuple(y.shape) for y in tiny(3, tags_per_joint=False).eval()(torch.zeros(1, 3, 32, 64))] == [(1, 4, 8, 16), (1, 3, 16, 32)]
    net = tiny(3, deconv_channels=(6, 8), tags=(False, True, False), cat_output=False).eval()
    assert [tuple(y.shape) for y in net(torch.zeros(1, 3, 32, 32))] == [(1, 3, 8, 8), (1, 6, 16, 16), (1, 3, 32, 32)]
    assert net.strides == (4, 2, 1) and net.out_channels == (3, 6, 3)
    for options in ({"tags": (True,)}, {"deconv_channels": (0,)}, {"blocks_after": -1}, {"deconv_channels": (2, 2, 2)}, {"exchange": "some"}):
        with pytest.raises(ValueError):
            tiny(3, **options)
    with pytest.raises(ValueError, match="K, the number of joints"):
        higherhrnet_w32(0)
    with torch.autocast("cpu", torch.bfloat16), torch.no_grad():
        assert tiny(2).eval()(torch.randn(1, 3, 32, 32))[1].isfinite().all()
