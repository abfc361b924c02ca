"""SimpleBaseline is the official network: parameter counts, key names and shapes in order, multiply-adds, forward passes.

The numbers in tests/data were computed with the official implementations (repository and commit stand in the files);
tolerance for a forward pass: 1e-4 of the largest output (float32 against float64 of the official code differ by 2e-6).
"""

import gzip
import json
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from posetutor.nets.simple_baseline import (
    BasicBlock,
    Bottleneck,
    SimpleBaseline,
    count_macs,
    count_parameters,
    guess_depth,
    load_official,
    read_checkpoint,
    simple_baseline,
    simple_baseline_small,
)

DATA = Path(__file__).parent / "data"
KEYS = {int(depth): entry for depth, entry in json.loads(gzip.decompress((DATA / "keys_simple_baseline.json.gz").read_bytes())).items()}
VECTORS = np.load(DATA / "vec_simplebaseline.npz", allow_pickle=False)
CASES = json.loads(str(VECTORS["meta"]))["config"]
BLOCKS = {"BasicBlock": BasicBlock, "Bottleneck": Bottleneck, "Bottleneck_CAFFE": Bottleneck}


@pytest.fixture(scope="module", params=sorted(KEYS))
def official(request):
    with torch.device("meta"):
        return request.param, simple_baseline(request.param, 17), KEYS[request.param]


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
        assert count_macs(net, tuple(numbers["size"]), deconv="output") == numbers["output"]


@pytest.mark.parametrize(("depth", "published"), [(50, 8.9), (101, 12.4), (152, 15.7)])
def test_readme_convention(depth, published):
    with torch.device("meta"):
        net = simple_baseline(depth, 17)
    readme = count_macs(net, (256, 192), deconv="output") / 1024**3
    assert abs(readme - published) < 0.1  # printed with one digit, some cut instead of rounded
    assert count_macs(net, (256, 192)) / 1e9 < 0.85 * readme  # the true cost is much lower


def test_counting_takes_weights_of_any_type():
    net = SimpleBaseline((BasicBlock, (1, 1, 1, 1)), 2, deconv_channels=4, widths=(4, 4, 4, 4, 4))
    counted = count_macs(net, (64, 64))
    assert counted > 0 and all(count_macs(net.to(dtype), (64, 64)) == counted for dtype in (torch.float16, torch.bfloat16, torch.float64))
    with pytest.raises(ValueError, match="depth must be one of"):
        SimpleBaseline([BasicBlock, (1, 1, 1, 1)], 2)  # a list is no pair


def test_depth_is_read_from_the_names(official):
    depth, net, _ = official
    assert guess_depth(net.state_dict()) == depth


def build(case: str) -> tuple[SimpleBaseline, dict[str, torch.Tensor]]:
    config = CASES[case]
    net = SimpleBaseline(
        (BLOCKS[config["block"]], tuple(config["layers"])),
        config["NUM_JOINTS"],
        deconv_channels=tuple(config["NUM_DECONV_FILTERS"]),
        deconv_kernels=tuple(config["NUM_DECONV_KERNELS"]),
        deconv_bias=config["DECONV_WITH_BIAS"],
        final_kernel=config["FINAL_CONV_KERNEL"],
        style="caffe" if "CAFFE" in config["block"] else "pytorch",
        widths=tuple(config["widths"]),
    )
    prefix = f"sd/{case}/"
    return net.eval(), {key[len(prefix) :]: torch.from_numpy(VECTORS[key]) for key in VECTORS.files if key.startswith(prefix)}


@pytest.mark.parametrize("case", sorted(CASES))
def test_forward_vectors(case):
    net, state = build(case)
    assert list(net.state_dict()) == list(state)
    load_official(net, state, colour="rgb")
    seen = {}
    net.layer1.register_forward_hook(lambda module, inputs, output: seen.update(layer1=output))
    net.layer4.register_forward_hook(lambda module, inputs, output: seen.update(layer4=output))
    with torch.no_grad():
        seen["final"] = net(torch.from_numpy(VECTORS[f"in/{case}/x"]))
    for name, value in seen.items():
        expected = VECTORS[f"out/{case}/{name}"]
        assert value.shape == expected.shape
        assert np.abs(value.numpy() - expected).max() <= 1e-4 * np.abs(expected).max(), name


def test_caffe_style_is_another_function():
    """Same names and shapes, other place of the stride: loading cannot notice, the vectors do."""
    net, state = build("case2")
    for module in net.modules():
        if isinstance(module, Bottleneck) and module.conv1.stride == (2, 2):
            module.conv1.stride, module.conv2.stride = (1, 1), (2, 2)
    load_official(net, state, colour="rgb")
    with torch.no_grad():
        value = net(torch.from_numpy(VECTORS["in/case2/x"])).numpy()
    expected = VECTORS["out/case2/final"]
    assert np.abs(value - expected).max() > 1e-2 * np.abs(expected).max()


def small(K: int = 4, **options) -> SimpleBaseline:
    torch.manual_seed(0)
    return SimpleBaseline((BasicBlock, (2, 2, 2, 2)), K, deconv_channels=8, widths=(4, 4, 6, 8, 10), **options)


def mmpose_names(state: dict, head: str) -> dict:
    return {(head if name.startswith(("deconv_layers.", "final_layer.")) else "backbone.") + name: tensor for name, tensor in state.items()}


@pytest.mark.parametrize("wrap", ["bare", "module", "twice", "mmpose1", "mmpose0", "data_preprocessor"])
def test_every_naming_loads(wrap):
    source = small().eval()
    state = source.state_dict()
    renamed = {
        "bare": state,
        "module": {f"module.{name}": tensor for name, tensor in state.items()},
        "twice": {f"module.module.{name}": tensor for name, tensor in state.items()},
        "mmpose1": mmpose_names(state, "head."),
        "mmpose0": mmpose_names(state, "keypoint_head."),
        "data_preprocessor": {"data_preprocessor.mean": torch.zeros(3, 1, 1), **mmpose_names(state, "head.")},
    }[wrap]
    net = small().eval()
    nn.init.ones_(net.final_layer.weight)
    report = load_official(net, renamed)
    assert report.colour == ("rgb" if "mm" in wrap or "data" in wrap else "bgr")
    assert len(report.kept) == len(state) and not report.new
    for name, tensor in net.state_dict().items():
        assert torch.equal(tensor, state[name]), name


def test_bgr_checkpoint_sees_what_it_was_trained_on():
    """The original code feeds BGR pixels normalised with RGB statistics; a net loaded from it takes our RGB input."""
    mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    pixels = torch.rand(2, 3, 64, 32, generator=torch.Generator().manual_seed(0))
    official_input = (pixels.flip(1) - mean[:, None, None]) / std[:, None, None]
    ours = (pixels - mean[:, None, None]) / std[:, None, None]
    plain, loaded = small().eval(), small().eval()
    load_official(loaded, plain.state_dict())
    with torch.no_grad():
        torch.testing.assert_close(loaded(ours), plain(official_input), atol=1e-7, rtol=1e-4)


def test_files_containers_and_old_format(tmp_path):
    from safetensors.torch import save_file

    state = small().state_dict()
    old = {name: tensor for name, tensor in state.items() if not name.endswith("num_batches_tracked")}  # PyTorch 0.4
    torch.save({"state_dict": state, "epoch": 3}, tmp_path / "new.pth")
    torch.save({f"module.{name}": tensor for name, tensor in old.items()}, tmp_path / "old.pth", _use_new_zipfile_serialization=False)
    torch.save({"best_state_dict": state, "state_dict": {}}, tmp_path / "training.pth")
    save_file(state, tmp_path / "weights.safetensors")
    for name in ("new.pth", "old.pth", "training.pth", "weights.safetensors"):
        net = small()
        nn.init.ones_(net.conv1.weight)
        load_official(net, tmp_path / name)
        assert torch.equal(net.conv1.weight, state["conv1.weight"]), name


class Danger:
    """An object whose unpickling would create a file."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


def test_no_code_in_a_checkpoint_runs(tmp_path):
    torch.save({"state_dict": small().state_dict(), "meta": Danger(tmp_path / "proof")}, tmp_path / "evil.pth")
    with pytest.raises(ValueError, match="cannot be read safely.*weights_only=False"):
        load_official(small(), tmp_path / "evil.pth")
    assert not (tmp_path / "proof").exists()


def test_missing_broken_and_empty_files(tmp_path):
    with pytest.raises(FileNotFoundError, match="no checkpoint at"):
        load_official(small(), tmp_path / "none.pth")
    (tmp_path / "broken.pth").write_bytes(b"not a checkpoint")
    with pytest.raises(ValueError, match="cannot be read safely"):
        load_official(small(), tmp_path / "broken.pth")
    (tmp_path / "broken.safetensors").write_bytes(b"not a checkpoint")
    with pytest.raises(ValueError, match="cannot be read"):
        load_official(small(), tmp_path / "broken.safetensors")
    torch.save({"epoch": 3}, tmp_path / "empty.pth")
    with pytest.raises(ValueError, match="holds no state dict"):
        load_official(small(), tmp_path / "empty.pth")


def test_other_K_names_layer_shapes_and_call():
    state, net = small(4).state_dict(), small(9)
    before = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    with pytest.raises(ValueError, match=r"final_layer.weight: file \(4, 8, 1, 1\), net \(9, 8, 1, 1\).*4 joints, the net 9.*new_head=True"):
        load_official(net, state)
    assert all(torch.equal(tensor, before[name]) for name, tensor in net.state_dict().items())  # untouched by a refusal
    report = load_official(net, state, new_head=True)
    assert report.new == ("final_layer.weight", "final_layer.bias")
    assert torch.equal(net.conv1.weight, state["conv1.weight"]) and torch.equal(net.deconv_layers[0].weight, state["deconv_layers.0.weight"])
    assert torch.equal(net.final_layer.weight, before["final_layer.weight"])
    assert "new layers: final_layer" in str(report)


def test_imagenet_trunk_needs_new_head():
    state = {name: tensor for name, tensor in small().state_dict().items() if not name.startswith(("deconv", "final"))}
    state |= {"fc.weight": torch.zeros(5, 10), "fc.bias": torch.zeros(5)}
    with pytest.raises(ValueError, match="trunk without pose layers.*new_head=True"):
        load_official(small(), state)
    report = load_official(small(), state, new_head=True)
    assert report.colour == "rgb" and set(report.dropped) == {"fc.weight", "fc.bias"}
    assert all(name.startswith(("deconv", "final")) for name in report.new)


def test_other_depth_is_recognised():
    with torch.device("meta"):
        fifty, eighteen = simple_baseline(50, 17), simple_baseline(18, 17)
    with pytest.raises(ValueError, match=r"layer1.0.conv1.weight: file \(64, 64, 1, 1\), net \(64, 64, 3, 3\).*ResNet-50.*simple_baseline\(50, K=17\)"):
        load_official(eighteen, fifty.state_dict())
    with pytest.raises(ValueError, match="new_head=True to start new pose layers"):
        load_official(small(deconv_kernels=2), small().state_dict())
    with pytest.raises(ValueError, match="another architecture"):
        load_official(small(), {"stage2.0.weight": torch.zeros(1), "final_layer.weight": torch.zeros(4, 8, 1, 1)})


def test_damaged_numbers_are_refused():
    state = {name: tensor.clone() for name, tensor in small().state_dict().items()}
    state["layer2.0.conv1.weight"][0, 0, 0, 0] = float("nan")
    with pytest.raises(ValueError, match="NaN or infinite numbers in layer2.0.conv1.weight"):
        load_official(small(), state)


def test_small_network():
    net = simple_baseline_small(17)
    assert count_parameters(net) * 4 <= 10e6 and net.strides == (4,) and net.out_channels == 17
    for K, size in [(1, (64, 32)), (21, (128, 96))]:
        assert simple_baseline_small(K)(torch.zeros(2, 3, *size)).shape == (2, K, size[0] // 4, size[1] // 4)
    for images in (torch.zeros(2, 3, 100, 96), torch.zeros(2, 1, 64, 64), torch.zeros(3, 64, 64)):
        with pytest.raises(ValueError, match="images must"):
            net(images)
    with pytest.raises(ValueError, match="K, the number of joints"):
        simple_baseline_small(0)


@pytest.mark.parametrize("zipped", [True, False])
def test_notes_beside_the_weights_are_passed_over(zipped, tmp_path):
    """mmpose 1.x stores arrays of NumPy beside the weights, which torch.load(weights_only=True) alone refuses."""
    state, path = {"conv1.weight": torch.randn(2, 3), "bn1.num_batches_tracked": torch.tensor(4)}, tmp_path / "net.pth"
    notes = {"dataset_meta": {"sigmas": np.ones(17, np.float32), "colors": np.zeros((2, 3), np.uint8)}, "seed": np.float64(3), "time": "2022"}
    torch.save({"meta": notes, "state_dict": state}, path, _use_new_zipfile_serialization=zipped)
    with pytest.raises(pickle.UnpicklingError):
        torch.load(path, weights_only=True)
    found = read_checkpoint(path)
    assert list(found) == list(state) and all(torch.equal(found[n], t) for n, t in state.items())

    class Trap:
        def __reduce__(self):
            return (Path.touch, (tmp_path / "executed",))

    torch.save({"meta": {**notes, "hook": np.array([Trap()], dtype=object)}, "state_dict": state}, path, _use_new_zipfile_serialization=zipped)
    with pytest.raises(ValueError, match="cannot be read safely.*it asks for"):
        read_checkpoint(path)
    assert not (tmp_path / "executed").exists()
