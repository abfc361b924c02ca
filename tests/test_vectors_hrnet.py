"""HRNet is the official network: parameter counts, key names and shapes in order, multiply-adds, forward passes, checkpoints of every naming.

The numbers in tests/data were computed with the official implementations (repository and commit stand in the files);
tolerance for a forward pass: 1e-4 of the largest output (float32 against float64 of the official code differ by 2e-6).
"""

import gzip
import json
import pickle
import time
from pathlib import Path

import numpy as np
import pytest
import torch

from network_vectors import WRONG_IMAGES, assert_near, state_of

from posetutor.nets import hrnet
from posetutor.nets.hrnet import ExchangeModule, HRNet, cut_links, exchange_link, hrnet_small, hrnet_w32, hrnet_w48, load_official
from posetutor.nets.simple_baseline import BasicBlock, Bottleneck, count_macs, count_parameters, simple_baseline

DATA = Path(__file__).parent / "data"
KEYS = json.loads(gzip.decompress((DATA / "keys_hrnet.json.gz").read_bytes()))
BUILD = {"w32": hrnet_w32, "w48": hrnet_w48}
TINY, MODULE = (np.load(DATA / f"vec_{name}.npz", allow_pickle=False) for name in ("hrnet_tiny", "hrmodule"))
CASES = json.loads(str(MODULE["meta"]))["config"]


@pytest.fixture(scope="module", params=sorted(BUILD))
def official(request):
    with torch.device("meta"):
        return request.param, BUILD[request.param](17), KEYS[request.param]


def test_parameters_and_buffers(official):
    _, net, entry = official
    assert count_parameters(net) == entry["parameters"]
    assert sum(b.numel() for b in net.buffers()) == entry["buffer_elements"]


def test_names_and_shapes_in_order(official):
    _, net, entry = official
    assert [[name, list(tensor.shape)] for name, tensor in net.state_dict().items()] == entry["state_dict"]


def test_multiply_adds(official):
    _, net, entry = official
    for numbers in entry["macs"]:
        assert count_macs(net, tuple(numbers["size"])) == numbers["input"]
    published = {"w32": (7.1, 16.0), "w48": (14.6, 32.9)}[official[0]]  # the README divides by 1024**3
    assert [round(n["input"] / 1024**3, 1) for n in entry["macs"]] == list(published)


@pytest.mark.parametrize(
    ("name", "w32", "w48"),
    [("layer1", 286_208, 286_208), ("transition1", 221_376, 332_064), ("stage2", 390_848, 878_112), ("transition2", 73_984, 166_272)]
    + [("stage3", 6_821_632, 15_335_040), ("transition3", 295_424, 664_320), ("stage4", 20_407_232, 45_894_048), ("final_layer", 561, 833)],
)
def test_parameters_by_part(official, name, w32, w48):
    kind, net, _ = official
    assert count_parameters(getattr(net, name)) == {"w32": w32, "w48": w48}[kind]


def tiny(K: int = 17, **options) -> HRNet:
    torch.manual_seed(0)
    return HRNet(4, K, modules=(1, 2, 2), blocks=1, **options)


@pytest.mark.parametrize("channels_last", [False, True])
def test_forward_of_the_whole_network(channels_last):
    net, state = tiny(channels_last=channels_last).eval(), state_of(TINY, "sd/")
    assert list(net.state_dict()) == list(state)
    load_official(net, state)
    seen = {}

    def keep(name):
        return lambda module, inputs, output: seen.update({f"{name}.{n}": m for n, m in enumerate(output)} if isinstance(output, list) else {name: output})

    for name in ("layer1", "transition1", "stage2", "transition2", "stage3", "transition3", "stage4"):
        getattr(net, name).register_forward_hook(keep(name))
    with torch.no_grad():
        seen["final"] = net(torch.from_numpy(TINY["in/x"]))
    seen["layer1[:, :4]"] = seen["layer1"][:, :4]
    wanted = [key[len("out/") :] for key in TINY.files if key.startswith("out/")]
    assert len(wanted) == 12
    for name in wanted:
        assert_near(seen[name], TINY[f"out/{name}"], name)


@pytest.mark.parametrize("case", sorted(CASES))
def test_forward_of_exchange_modules(case):
    config, state = CASES[case], state_of(MODULE, f"sd/{case}/")
    arriving = config["num_inchannels"]
    module = ExchangeModule(
        config["num_channels"],
        config["num_blocks"],
        channels_in=arriving if isinstance(arriving, list) else None,
        outputs=None if config["multi_scale_output"] else 1,
        block={"BASIC": BasicBlock, "BOTTLENECK": Bottleneck}[config["block"]],
    ).eval()
    assert list(module.state_dict()) == list(state)
    module.load_state_dict(state)
    maps = [torch.from_numpy(MODULE[f"in/{case}/x{b}"]) for b in range(config["num_branches"])]
    given = [m.clone() for m in maps]
    with torch.no_grad():
        found = module(maps)
    wanted = [key for key in MODULE.files if key.startswith(f"out/{case}/")]
    assert len(found) == len(wanted)
    for n, value in enumerate(found):
        assert_near(value, MODULE[f"out/{case}/y{n}"], f"{case} y{n}")
    assert all(torch.equal(a, b) for a, b in zip(maps, given, strict=True))  # the official module writes into its list; ours does not


def test_bilinear_enlargement_is_another_function():
    """The vectors tell nearest from bilinear: names and shapes would not."""
    net = tiny().eval()
    load_official(net, state_of(TINY, "sd/"))
    for module in net.modules():
        if isinstance(module, torch.nn.Upsample):
            module.mode, module.align_corners = "bilinear", False
    with torch.no_grad():
        value = net(torch.from_numpy(TINY["in/x"])).numpy()
    assert np.abs(value - TINY["out/final"]).max() > 0.1 * np.abs(TINY["out/final"]).max()


# --- checkpoints ---------------------------------------------------------------------------------------------------


def mmpose_names(state: dict, head: str) -> dict:
    return {(head if name.startswith("final_layer.") else "backbone.") + name: tensor for name, tensor in state.items()}


@pytest.mark.parametrize("wrap", ["bare", "module", "twice", "mmpose1", "mmpose0", "data_preprocessor", "no_counters"])
def test_every_naming_loads(wrap):
    state = tiny(5).state_dict()
    renamed = {
        "bare": state,
        "module": {f"module.{name}": tensor for name, tensor in state.items()},
        "twice": {f"module.module.{name}": tensor for name, tensor in state.items()},
        "mmpose1": mmpose_names(state, "head."),
        "mmpose0": mmpose_names(state, "keypoint_head."),
        "data_preprocessor": {"data_preprocessor.mean": torch.zeros(3, 1, 1), **mmpose_names(state, "head.")},
        "no_counters": {name: tensor for name, tensor in state.items() if not name.endswith("num_batches_tracked")},
    }[wrap]
    net = HRNet(4, 5, modules=(1, 2, 2), blocks=1)
    report = load_official(net, renamed)
    assert report.colour == net.input_order == "rgb" and not report.dropped[1:] and len(report.kept) == sum(not n.startswith("data_") for n in renamed)
    for name, tensor in net.state_dict().items():
        assert torch.equal(tensor, state[name]), name


def test_mmpose_key_list_is_the_official_one_renamed():
    assert list(mmpose_names(dict(KEYS["w32"]["state_dict"]), "head.")) == KEYS["mmpose_w32"]
    with torch.device("meta"):
        net = hrnet_w32(17)
    names, dropped, colour = net.official_names(dict.fromkeys(KEYS["mmpose_w32"]))
    assert list(names) == list(net.state_dict()) and not dropped and colour == "rgb"


def test_another_number_of_joints():
    source, net = tiny(17), tiny(21)
    before = net.final_layer.weight.clone()
    with pytest.raises(ValueError, match=r"final_layer.weight: file \(17, 4, 1, 1\), net \(21, 4, 1, 1\).*17 joints, the net 21.*new_head=True"):
        load_official(net, source.state_dict())
    report = load_official(net, source.state_dict(), new_head=True)
    assert report.new == ("final_layer.weight", "final_layer.bias") and torch.equal(net.final_layer.weight, before)
    assert torch.equal(net.stage4[1].branches[3][0].conv1.weight, source.stage4[1].branches[3][0].conv1.weight)


def test_imagenet_trunk():
    """An ImageNet file has a classifier and all four rows of the last exchange; the pose net takes what it has."""
    state = {n: t for n, t in tiny(17, outputs=4).state_dict().items() if not n.startswith("final_layer.")}
    state |= {"incre_modules.0.0.conv1.weight": torch.zeros(2), "final_layer.0.weight": torch.zeros(2), "classifier.weight": torch.zeros(2)}
    net = tiny(17)
    with pytest.raises(ValueError, match="new_head=True"):
        load_official(net, state)
    report = load_official(net, state, new_head=True)
    assert len(report.kept) == len(net.state_dict()) - 2 and "classifier.weight" in report.dropped
    assert any(name.startswith("stage4.1.fuse_layers.3.") for name in report.dropped)


def test_mismatches_name_layer_shapes_and_the_call():
    with torch.device("meta"):
        w32, w48, resnet = hrnet_w32(17), hrnet_w48(17), simple_baseline(50, 17)
    with pytest.raises(
        ValueError, match=r"transition1.0.0.weight: file \(48, 256, 3, 3\), net \(32, 256, 3, 3\).*HRNet-W48: build the net with hrnet_w48\(17\)"
    ):
        load_official(w32, w48.state_dict())
    with pytest.raises(ValueError, match="is a ResNet or Simple Baseline"):
        load_official(w32, resnet.state_dict())
    with pytest.raises(ValueError, match=r"HRNet-W4: build the net with HRNet\(4, 17\)"):
        load_official(w32, tiny().state_dict())
    with pytest.raises(ValueError, match="width 4 agrees"):
        load_official(tiny(), HRNet(4, 17, modules=(1, 1, 1), blocks=1).state_dict())
    higher = {**tiny().state_dict(), "deconv_layers.0.0.0.weight": torch.zeros(2)}
    with pytest.raises(ValueError, match="it is a HigherHRNet"):
        load_official(tiny(), higher)
    with pytest.raises(ValueError, match="another architecture"):
        load_official(tiny(), {"encoder.weight": torch.zeros(2)})


def test_a_refused_file_changes_nothing(tmp_path):
    net = tiny(5)
    before = {n: t.clone() for n, t in net.state_dict().items()}
    broken = {n: t.clone() for n, t in net.state_dict().items()}
    broken["stage3.1.fuse_layers.0.2.0.weight"][0, 0] = float("nan")
    with pytest.raises(ValueError, match="NaN or infinite numbers in stage3.1.fuse_layers.0.2.0.weight"):
        load_official(net, broken)
    path = tmp_path / "hrnet.pth"
    torch.save({"state_dict": net.state_dict()}, path)
    whole = path.read_bytes()
    for kept in (len(whole) // 2, 5000, 100, 1, 0):  # downloads that broke off
        path.write_bytes(whole[:kept])
        with pytest.raises(ValueError, match="cannot be read safely"):
            load_official(net, path)

    class Trap:
        def __reduce__(self):
            return (Path.touch, (tmp_path / "executed",))

    (tmp_path / "trap.pth").write_bytes(pickle.dumps({"state_dict": Trap()}))
    with pytest.raises(ValueError, match="cannot be read safely"):
        load_official(net, tmp_path / "trap.pth")
    assert not (tmp_path / "executed").exists()
    with pytest.raises(FileNotFoundError, match="no checkpoint at"):
        load_official(net, tmp_path / "missing.pth")
    assert all(torch.equal(t, before[n]) for n, t in net.state_dict().items())


# --- building ------------------------------------------------------------------------------------------------------


def test_w48_is_built_in_two_seconds():
    begin = time.process_time()
    hrnet_w48(17)
    assert time.process_time() - begin < 2


def test_no_weight_is_drawn_twice_or_in_vain(monkeypatch):
    """Fresh: one draw for each convolution and none of PyTorch's own. From weights: draws for the new head only."""
    drawn = []
    for name in ("kaiming_normal_", "kaiming_uniform_", "normal_", "uniform_"):
        original = getattr(torch.nn.init, name)
        monkeypatch.setattr(
            torch.nn.init, name, lambda tensor, *a, _f=original, **k: (None if tensor.is_meta else drawn.append(tensor.data_ptr()), _f(tensor, *a, **k))[1]
        )
    net = tiny(5)
    assert len(drawn) == len(set(drawn)) == sum(isinstance(m, torch.nn.Conv2d) for m in net.modules())
    state, options = net.state_dict(), {"modules": (1, 2, 2), "blocks": 1}
    drawn.clear()
    filled = hrnet._published(4, 5, state, False, options)
    assert not drawn and all(torch.equal(t, state[n]) for n, t in filled.state_dict().items())
    assert not set(t.data_ptr() for t in filled.parameters()) & set(t.data_ptr() for t in state.values())  # its own memory
    other = hrnet._published(4, 7, state, True, options)
    assert len(drawn) == 1 and other.final_layer.weight.std() < 0.01 and other.final_layer.bias.abs().max() == 0
    counters = {n: t for n, t in state.items() if not n.endswith("num_batches_tracked")}
    assert hrnet._published(4, 5, counters, False, options).bn1.num_batches_tracked == 0


def test_meta_stays_meta():
    with torch.device("meta"):
        assert all(t.is_meta for t in hrnet_small(3).state_dict().values())


@pytest.mark.parametrize("size", [(32, 32), (64, 96), (256, 192)])
def test_stride_is_four(size):
    with torch.device("meta"):
        net = hrnet_w32(6)
        assert net(torch.zeros(2, 3, *size)).shape == (2, 6, size[0] // 4, size[1] // 4)


@pytest.mark.parametrize(("images", "said"), WRONG_IMAGES)
def test_other_images_are_refused(images, said):
    with pytest.raises(ValueError, match=said):
        tiny(2)(images)


def test_bfloat16_under_autocast_and_as_weights():
    net = tiny(2).eval()
    images = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        exact = net(images)
        with torch.autocast("cpu", torch.bfloat16):
            near = net(images)
    assert (near.float() - exact).abs().max() < 0.1 * exact.abs().max()
    assert net.to(torch.bfloat16)(images.to(torch.bfloat16)).dtype == torch.bfloat16


@pytest.mark.parametrize(
    "options",
    [
        {"K": 0},
        {"K": True + 0.5},
        {"modules": (1, 4)},
        {"blocks": 0},
        {"width": (4, 8, 16)},
        {"width": 0},
        {"exchange": "some"},
        {"transition": "figure"},
        {"final_kernel": 2},
        {"outputs": 5},
    ],
)
def test_unknown_options_are_refused(options):
    with pytest.raises(ValueError, match="must be"):
        HRNet(**{"width": 4, "K": 3, **options})


def test_exchanges_are_counted():
    counts = {}
    for kind in hrnet.EXCHANGES:
        with torch.device("meta"):
            net = HRNet(32, 17, exchange=kind)
        counts[kind] = sum(isinstance(m, ExchangeModule) and len(m.fuse_layers) > 0 for m in net.modules())
        assert net(torch.zeros(1, 3, 64, 64, device="meta")).shape == (1, 17, 16, 16)
    assert counts == {"all": 8, "stages": 3, "last": 1, "none": 0}


def test_without_exchange_only_the_high_branch_counts():
    net = tiny(3, exchange="none").eval()
    net(torch.randn(1, 3, 64, 64)).sum().backward()
    assert net.stage4[1].branches[0][0].conv1.weight.grad is not None
    assert net.stage4[1].branches[1][0].conv1.weight.grad is None


def test_all_outputs_and_their_idle_weights():
    net = tiny(3, outputs=4)
    maps = net.features(torch.randn(2, 3, 64, 96))
    assert [tuple(m.shape[1:]) for m in maps] == [(4, 16, 24), (8, 8, 12), (16, 4, 6), (32, 2, 3)]
    net(torch.randn(1, 3, 64, 64)).sum().backward()
    idle = {n for n, p in net.named_parameters() if p.grad is None}
    assert idle and all(n.startswith(("stage4.1.fuse_layers.1", "stage4.1.fuse_layers.2", "stage4.1.fuse_layers.3")) for n in idle)
    assert count_parameters(tiny(3)) == sum(p.numel() for p in net.parameters() if p.grad is not None)


def test_links_are_cut_and_restored():
    net, images = tiny(3).eval(), torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        before = net(images)
        for fill in ("mean", "zero"):
            with cut_links(net, lambda stage, module, target, source: source > target, fill=fill) as count:
                assert count == 1 + 2 * 3 + 6 + 3  # upward links of one, two and two modules; the last has one row
                assert not torch.equal(net(images), before)
        with pytest.raises(RuntimeError), cut_links(net, lambda *link: True):
            raise RuntimeError
        assert torch.equal(net(images), before)
        with cut_links(net, lambda *link: False) as count:
            assert count == 0 and torch.equal(net(images), before)
    with pytest.raises(ValueError, match="fill must be"), cut_links(net, lambda *link: True, fill="noise"):
        pass


@pytest.mark.parametrize(("steps", "convolutions"), [(2, 1), (1, 1), (0, 0), (-1, 1), (-3, 3)])
def test_links(steps, convolutions):
    link = exchange_link(6, 6 if steps == 0 else 4, steps)
    assert sum(isinstance(m, torch.nn.Conv2d) for m in link.modules()) == convolutions
    assert link(torch.randn(2, 6, 16, 24)).shape == (2, 6 if steps == 0 else 4, int(16 * 2.0**steps), int(24 * 2.0**steps))
    if steps < 0:
        assert link(torch.randn(2, 6, 16, 24)).min() < 0  # no ReLU before the sum
    with pytest.raises(ValueError, match="equal where steps is 0"):
        exchange_link(6, 5, 0)


def test_gradients_are_those_of_the_function():
    torch.manual_seed(1)
    module = ExchangeModule((2, 3), 1).double().eval()
    maps = [torch.randn(1, 2, 4, 6, dtype=torch.float64, requires_grad=True), torch.randn(1, 3, 2, 3, dtype=torch.float64, requires_grad=True)]
    assert torch.autograd.gradcheck(lambda *m: tuple(module(list(m))), maps)
    with pytest.raises(ValueError, match="one tensor a branch, expected 2, got 1"):
        module(maps[:1])
    with pytest.raises(ValueError, match="one entry a branch"):
        ExchangeModule((2, 3), (1, 1, 1))


def test_small_network_costs_what_the_small_baseline_costs():
    from posetutor.nets.simple_baseline import simple_baseline_small

    with torch.device("meta"):
        net, other = hrnet_small(17), simple_baseline_small(17)
    assert 0.9 < count_macs(net, (128, 96)) / count_macs(other, (128, 96)) < 1.1
    assert 4 * count_parameters(net) < 10e6
    assert hrnet_small(4, width=4)(torch.zeros(1, 3, 64, 32)).shape == (1, 4, 16, 8)
