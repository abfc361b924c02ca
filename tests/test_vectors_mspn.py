"""MSPN is the official network: parameter counts, key names and shapes in order, multiply-adds, all supervised maps, the training loss, decoding.

The numbers in tests/data were computed with the official implementations (repository and commit stand in the files);
tolerance for a forward pass: 1e-4 of the largest output (float32 against float64 of the official code differ by 1e-6).
"""

import gzip
import json
import pickle
import re
import time
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.testing import assert_close

from network_vectors import AllMaps, WRONG_IMAGES, assert_near, state_of

from posetutor.codecs.gaussian import decode_argmax, decode_quarter_offset
from posetutor.codecs.second_order import filter_maps
from posetutor.losses.heatmap import coarse_to_fine_loss, mse_loss, ohkm_loss, render_blurred_cell
from posetutor.nets.mspn import MSPN, ConvUnit, Decoder, Encoder, UnitBottleneck, load_official, mspn, mspn_small, multi_stage_loss, stage_labels
from posetutor.nets.simple_baseline import BasicBlock, count_macs, count_parameters, simple_baseline

DATA = Path(__file__).parent / "data"
KEYS = json.loads(gzip.decompress((DATA / "keys_mspn.json.gz").read_bytes()))
NET, BLOCK, DECODE, COMMON, MEGVII = (np.load(DATA / f"{name}.npz", allow_pickle=False) for name in ("vec_mspn_2stage", "vec_rsb_bottleneck", "mspn", "decode_common", "mm_megvii"))


@pytest.fixture(scope="module", params=sorted(KEYS))
def official(request):
    with torch.device("meta"):
        return int(request.param), mspn(int(request.param), 17), KEYS[request.param]


def test_parameters_and_buffers(official):
    stages, net, entry = official
    assert count_parameters(net) == entry["parameters"]
    assert sum(b.numel() for b in net.buffers()) == entry["buffer_elements"]
    assert count_parameters(net.top) == 9_600
    assert [count_parameters(getattr(net, f"stage{n}").downsample) for n in range(stages)] == [23_524_992] * stages
    assert [count_parameters(getattr(net, f"stage{n}").upsample) for n in range(stages)] == [8_200_332] * (stages - 1) + [1_607_116]


def test_names_and_shapes_in_order(official):
    _, net, entry = official
    assert [[name, list(tensor.shape)] for name, tensor in net.state_dict().items()] == entry["state_dict"]


def test_multiply_adds(official):
    stages, net, entry = official
    for numbers in entry["macs"]:
        size = tuple(numbers["size"])
        assert count_macs(AllMaps(net), size) == numbers["all_heads"]
        cells = size[0] * size[1] // 16
        one = sum(cells // 4**level * (256 * 256 + 9 * 256 * 17) for level in range(4))  # all heads of one stage
        assert numbers["all_heads"] - count_macs(net, size) == stages * one - cells * (256 * 256 + 9 * 256 * 17)  # one head is read


def tiny(K: int = 17, stages: int = 2, **options) -> MSPN:
    torch.manual_seed(0)
    return MSPN(stages, K, **{"stem": 4, "blocks": (2, 1, 1, 1), "channels": 16, **options})


def filled(**options) -> MSPN:
    net = tiny(**options).eval()
    load_official(net, state_of(NET, "sd/"), colour="rgb")
    return net


@pytest.mark.parametrize("channels_last", [False, True])
def test_all_supervised_maps(channels_last):
    net, images = filled(channels_last=channels_last), torch.from_numpy(NET["in/x"])
    assert list(net.state_dict()) == list(state_of(NET, "sd/"))
    with torch.no_grad():
        stages, last = net(images, all_maps=True), net(images)
    for s, maps in enumerate(stages):
        for n, value in enumerate(maps):
            assert_near(value, NET[f"out/stage{s}_res{n + 1}"], f"stage {s}, level {n}")
    assert [len(maps) for maps in stages] == [4, 4]
    assert_close(last, stages[-1][-1], rtol=0, atol=1e-6)  # leaving heads out changes nothing


def published_loss(maps, labels, vis):
    """One stage of the official loss: hidden joints are taught empty maps on the coarse levels, not on the last."""
    empty = [label * (vis > 1)[..., None, None] for label in labels]
    coarse = coarse_to_fine_loss(maps, empty, topk=None) - mse_loss(maps[-1], empty[-1])
    return coarse + ohkm_loss(maps[-1], labels[-1], (vis > 0).float(), topk=8, reduction="all")


def test_training_loss():
    with torch.no_grad():
        stages = filled()(torch.from_numpy(NET["in/x"]), all_maps=True)
    labels, vis = torch.from_numpy(NET["in/labels"]).float().transpose(0, 1), torch.from_numpy(NET["in/valids"])[..., 0]
    assert_close(multi_stage_loss(stages, labels, partial(published_loss, vis=vis)), torch.tensor(NET["out/total_loss"][0]), rtol=1e-4, atol=0)


@pytest.mark.parametrize("fine", [0, 1])
def test_loss_of_given_maps(fine):
    stages, labels, vis = (torch.from_numpy(DECODE[f"in_{name}"]) for name in ("outputs", "labels", "valids"))
    labels = labels.transpose(0, 1) if fine else labels.transpose(0, 1)[:4]
    value = multi_stage_loss(stages, labels, partial(published_loss, vis=vis[..., 0])) if fine else sum(published_loss(maps, list(labels), vis[..., 0]) for maps in stages)
    assert_close(value, torch.tensor(DECODE[f"out_total_ohkm1_ctf{fine}"].item()), rtol=1e-5, atol=0)


@pytest.mark.parametrize("case", ["case2", "case3"])
def test_bottleneck(case):
    config = json.loads(str(BLOCK["meta"]))["config"][case]
    block, state = UnitBottleneck(config["in_planes"], config["planes"], config["stride"]).eval(), state_of(BLOCK, f"sd/{case}/")
    assert list(block.state_dict()) == list(state)
    block.load_state_dict(state)
    with torch.no_grad():
        assert_near(block(torch.from_numpy(BLOCK[f"in/{case}/x"])), BLOCK[f"out/{case}/y"], case)


def test_other_enlargements_are_another_function(monkeypatch):
    """The vectors tell align_corners from its absence and from nearest: names and shapes would not."""
    net, images, original = filled(), torch.from_numpy(NET["in/x"]), F.interpolate
    for change in ({"mode": "bilinear", "align_corners": False}, {"mode": "nearest"}):
        monkeypatch.setattr(F, "interpolate", lambda x, size, _c=change, **k: original(x, size, **_c))
        with torch.no_grad():
            value = net(images).numpy()
        wrong = np.abs(value - NET["out/stage1_res4"]).max() / np.abs(NET["out/stage1_res4"]).max()
        assert wrong > 0.05, (change, wrong)


# --- labels and decoding, composed from the codecs -------------------------------------------------------------------


def test_labels_of_mmpose():
    kernel = json.loads(MEGVII["params"].item())["kernel"]
    joints, vis = torch.from_numpy(MEGVII["in_joints"]), torch.from_numpy(MEGVII["out_weight"])[0] > 0
    ours = 255 * render_blurred_cell(joints / 4, (64, 48), kernel)[0]
    theirs = torch.from_numpy(MEGVII["out_target"])[vis]  # 255 at the joint's cell; in a corner the mirrored blur is higher beside it
    top = theirs.amax((1, 2), keepdim=True)
    assert (top >= 255 - 1e-3).all() and (top > 256).sum() == 1
    assert_close(ours[vis], 255 * theirs / top, rtol=0, atol=1e-3)


def test_decoding_of_the_original():
    """Zeros around, blur, a quarter of a cell towards the runner-up, back into the map, half a stride for the truncated labels."""
    maps = 255 * torch.from_numpy(COMMON["in_heatmaps"]).float()
    border, skip = json.loads(DECODE["params"].item())["border"], torch.from_numpy(DECODE["flag_dec_k5_s1_tie"])
    xy = decode_quarter_offset(filter_maps(F.pad(maps, (border,) * 4), 5), variant="second_peak")[0] - border
    xy = torch.minimum(xy.clamp(min=0), xy.new_tensor([47.0, 63.0]))
    box = 200 * torch.from_numpy(COMMON["in_scale"])[:, None]
    image = (4 * xy + 2) / xy.new_tensor([192.0, 256.0]) * box + torch.from_numpy(COMMON["in_center"])[:, None] - box / 2
    expected = torch.from_numpy(DECODE["out_dec_k5_s1"]).float()
    assert (~skip).float().mean() > 0.5
    assert_close(image[~skip], expected[~skip], rtol=0, atol=1e-2)
    at = xy.round().long()
    score = maps.flatten(2).gather(2, (at[..., 1] * 48 + at[..., 0])[..., None])[..., 0] / 255 + 0.5
    assert_close(score[~skip], torch.from_numpy(DECODE["out_dec_k5_s1_score"])[..., 0].float()[~skip], rtol=0, atol=1e-4)


def test_scores_of_mmpose():
    maps = 255 * torch.from_numpy(COMMON["in_heatmaps"]).float()
    found = decode_argmax(maps)[1]
    usable = found > 0
    assert_close((found / 255 + 0.5)[usable], torch.from_numpy(MEGVII["out_score"])[usable], rtol=0, atol=1e-3)


# --- checkpoints ---------------------------------------------------------------------------------------------------


def mmpose_names(state: dict, head: str) -> dict:
    """The documented renaming, official to mmpose, written independently of ours; biases are dropped."""
    made = {}
    for name, tensor in state.items():
        if name.endswith(".conv.bias"):
            continue
        m = re.match(r"stage(\d+)\.upsample\.up(\d)\.res_conv(\d)\.(.*)", name)
        if m:
            made[f"{head}predict_layers.{4 * int(m[1]) + int(m[2]) - 1}.conv_layers.{int(m[3]) - 1}.{m[4]}"] = tensor
            continue
        m = re.match(r"stage(\d+)\.downsample\.(layer\d\.\d+)\.conv_bn_relu(\d)\.(conv|bn)\.(.*)", name)
        if m:
            made[f"backbone.multi_stage_mspn.{m[1]}.downsample.{m[2]}.{m[4]}{m[3]}.{m[5]}"] = tensor
            continue
        name = re.sub(r"^top\.conv\.", "backbone.top.top.0.", name)
        name = re.sub(r"^stage(\d+)\.", r"backbone.multi_stage_mspn.\1.", name)
        made[name.replace(".u_skip.", ".in_skip.").replace(".skip1.", ".out_skip1.").replace(".skip2.", ".out_skip2.")] = tensor
    return made


@pytest.mark.parametrize("wrap", ["bare", "module", "mmpose1", "mmpose0", "data_preprocessor", "no_counters"])
def test_every_naming_loads(wrap):
    source = tiny(5)
    for module in source.modules():
        if isinstance(module, nn.Conv2d):
            module.bias.data.normal_()
    state = source.state_dict()
    renamed = {
        "bare": state,
        "module": {f"module.{name}": tensor for name, tensor in state.items()},
        "mmpose1": mmpose_names(state, "head."),
        "mmpose0": mmpose_names(state, "keypoint_head."),
        "data_preprocessor": {"data_preprocessor.mean": torch.zeros(3, 1, 1), **mmpose_names(state, "head.")},
        "no_counters": {n: t for n, t in state.items() if not n.endswith("num_batches_tracked")},
    }[wrap]
    net = tiny(5)
    for parameter in net.parameters():
        parameter.data.fill_(7.0)
    report = load_official(net, renamed)
    foreign = wrap in ("mmpose1", "mmpose0", "data_preprocessor")
    assert report.colour == ("rgb" if foreign else "bgr") and not report.new
    for name, tensor in net.state_dict().items():
        if name.endswith("num_batches_tracked"):
            continue
        assert torch.equal(tensor, torch.zeros_like(tensor) if foreign and name.endswith("conv.bias") else state[name]), name


@pytest.mark.parametrize("stages", sorted(KEYS))
def test_official_key_lists_load(stages):
    """Files with the names and shapes of the official ones, their values zero, fill nets that were built without memory."""
    state = {name: torch.zeros(()).expand(shape) for name, shape in KEYS[stages]["state_dict"]}
    with torch.device("meta"):
        net = mspn(int(stages), 17)
    names, dropped, colour = net.official_names({f"module.{n}": t for n, t in state.items()})
    assert list(names) == list(net.state_dict()) and not dropped and colour == "bgr"
    assert all(names[n].shape == t.shape for n, t in net.state_dict().items())
    if stages == "1":  # the biggest that is quick
        filled = mspn(1, 17, weights=state)
        assert count_parameters(filled) == KEYS[stages]["parameters"] and not any(p.any() for p in filled.parameters())


def test_colour_order_is_turned_inside():
    net, images = filled(), torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        expected = net(images)
        load_official(net, state_of(NET, "sd/"))
        assert net.input_order == "bgr"
        assert torch.equal(net(images.flip(1)), expected)


def test_the_containers_of_the_original(tmp_path):
    state = tiny(5).state_dict()
    torch.save({"model": {f"module.{n}": t for n, t in state.items()}, "iteration": 96000}, tmp_path / "iter-96000.pth")
    assert len(load_official(tiny(5), tmp_path / "iter-96000.pth").kept) == len(state)


def test_another_number_of_joints():
    source, net = tiny(17), tiny(21)
    before = net.stage1.upsample.up4.res_conv2.conv.weight.clone()
    with pytest.raises(ValueError, match=r"stage0.upsample.up1.res_conv2.conv.weight: file \(17, 16, 3, 3\), net \(21, 16, 3, 3\).*17 joints, the net 21.*new_head=True"):
        load_official(net, source.state_dict())
    report = load_official(net, source.state_dict(), new_head=True)
    assert all(".res_conv2." in name for name in report.new) and torch.equal(net.stage1.upsample.up4.res_conv2.conv.weight, before)
    assert torch.equal(net.stage0.upsample.up1.skip2.conv.weight, source.stage0.upsample.up1.skip2.conv.weight)
    net = mspn(2, 21, weights=tiny(17).state_dict(), new_head=True, stem=4, blocks=(2, 1, 1, 1), channels=16)  # built without memory
    head = net.stage0.upsample.up2.res_conv2
    assert head.bn.weight.tolist() == pytest.approx([1 / 255] * 21) and head.conv.bias.abs().max() == 0 and head.conv.weight.std() > 0


def test_imagenet_trunk_fills_every_way_down():
    with torch.device("meta"):
        resnet = {n: torch.zeros(()).expand(t.shape) for n, t in simple_baseline(50, 17).state_dict().items() if not n.startswith(("deconv", "final"))}
        net = mspn(2, 17)
    resnet["fc.weight"] = torch.zeros(1)
    names, dropped, colour = net.official_names(resnet)
    own = net.state_dict()
    assert dropped == ["fc.weight"] and colour == "rgb" and all(names[n].shape == own[n].shape for n in names)
    assert {n for n in own if n not in names} == {n for n in own if ".upsample." in n}
    with pytest.raises(ValueError, match="new_head=True"):
        load_official(net, resnet)


def test_mismatches_name_layer_shapes_and_the_call():
    with torch.device("meta"):
        one, two, other = mspn(1, 17), mspn(2, 17), {n: t for n, t in simple_baseline(18, 17).state_dict().items()}
    with pytest.raises(ValueError, match=r"the file has 2 stages, the net 1: build the net with mspn\(2, 17\)"):
        load_official(one, two.state_dict())
    with pytest.raises(ValueError, match=r"the file has 1 stages, the net 2: build the net with mspn\(1, 17\)"):
        load_official(two, one.state_dict())
    with pytest.raises(ValueError, match="is a Simple Baseline or an HRNet"):
        load_official(one, other)
    with pytest.raises(ValueError, match="another architecture"):
        load_official(one, {"encoder.weight": torch.zeros(2)})
    with pytest.raises(ValueError, match="blocks, stem, channels"):
        load_official(tiny(), tiny(blocks=(1, 1, 1, 1)).state_dict())
    with pytest.raises(ValueError, match="residual steps blocks"):
        load_official(tiny(), {**tiny().state_dict(), "stage0.downsample.layer1.0.conv_bn_relu2_1_1.conv.weight": torch.zeros(2)})


def test_a_refused_file_changes_nothing(tmp_path):
    net = tiny(5)
    before = {n: t.clone() for n, t in net.state_dict().items()}
    broken = {n: t.clone() for n, t in before.items()}
    broken["stage1.upsample.up3.u_skip.conv.weight"][0, 0] = float("nan")
    with pytest.raises(ValueError, match="NaN or infinite numbers in stage1.upsample.up3.u_skip.conv.weight"):
        load_official(net, broken)
    path = tmp_path / "mspn.pth"
    torch.save({"model": net.state_dict()}, path)
    whole = path.read_bytes()
    for kept in (len(whole) // 2, 100, 0):
        path.write_bytes(whole[:kept])
        with pytest.raises(ValueError, match="cannot be read safely"):
            load_official(net, path)

    class Trap:
        def __reduce__(self):
            return (Path.touch, (tmp_path / "executed",))

    (tmp_path / "trap.pth").write_bytes(pickle.dumps({"model": Trap()}))
    with pytest.raises(ValueError, match="cannot be read safely"):
        load_official(net, tmp_path / "trap.pth")
    assert not (tmp_path / "executed").exists()
    with pytest.raises(FileNotFoundError, match="no checkpoint at"):
        mspn(1, 5, weights=tmp_path / "missing.pth")
    assert all(torch.equal(t, before[n]) for n, t in net.state_dict().items())


# --- building, refusing, supervising ---------------------------------------------------------------------------------


def test_two_stages_are_built_in_two_seconds():
    begin = time.process_time()
    mspn(2, 17)
    assert time.process_time() - begin < 2


def test_no_weight_is_drawn_twice_or_in_vain(monkeypatch):
    drawn = []
    for name in ("kaiming_normal_", "kaiming_uniform_", "normal_", "uniform_"):
        original = getattr(nn.init, name)
        monkeypatch.setattr(nn.init, name, lambda tensor, *a, _f=original, **k: (None if tensor.is_meta else drawn.append(tensor.data_ptr()), _f(tensor, *a, **k))[1])
    net = tiny(5)
    assert len(drawn) == len(set(drawn)) == sum(isinstance(m, nn.Conv2d) for m in net.modules())
    drawn.clear()
    filled = mspn(2, 5, weights=net.state_dict(), stem=4, blocks=(2, 1, 1, 1), channels=16)
    assert not drawn and not {t.data_ptr() for t in filled.parameters()} & {t.data_ptr() for t in net.parameters()}


def test_meta_stays_meta():
    with torch.device("meta"):
        assert all(t.is_meta for t in mspn_small(3).state_dict().values())


@pytest.mark.parametrize("size", [(32, 32), (64, 96), (256, 192)])
def test_stride_is_four(size):
    with torch.device("meta"):
        stages = mspn(3, 6)(torch.zeros(2, 3, *size), all_maps=True)
    assert [[tuple(m.shape) for m in maps] for maps in stages] == [[(2, 6, size[0] // 4, size[1] // 4)] * 4] * 3


@pytest.mark.parametrize(("images", "said"), WRONG_IMAGES)
def test_other_images_are_refused(images, said):
    with pytest.raises(ValueError, match=said):
        tiny(2)(images)


@pytest.mark.parametrize("options", [{"K": 0}, {"K": 2.5}, {"stages": 0}, {"stages": 1.5}, {"stem": 0}, {"channels": 0}, {"blocks": (1, 1, 1)}, {"blocks": (1, 0, 1, 1)}, {"peak": 0}])
def test_unknown_options_are_refused(options):
    with pytest.raises(ValueError, match="must be"):
        tiny(**{"K": 3, **options})


def test_bfloat16_under_autocast_and_as_weights():
    net, images = tiny(2, peak=255.0).eval(), torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        exact = net(images)
        with torch.autocast("cpu", torch.bfloat16):
            near = net(images)
    assert (near.float() - exact).abs().max() < 0.1 * exact.abs().max()
    assert net.to(torch.bfloat16)(images.to(torch.bfloat16)).dtype == torch.bfloat16


def test_gradients_are_those_of_the_function():
    torch.manual_seed(1)
    encoder = Encoder(2, (2, 2, 3, 3), (1, 1, 1, 1), block=BasicBlock).double().eval()
    decoder = Decoder(encoder.widths, 3, 2, cross=2, gain=1.0).double().eval()
    x = torch.randn(1, 2, 16, 24, dtype=torch.float64, requires_grad=True)

    def run(x):
        maps, additions, cross = decoder(encoder(x))
        return torch.cat([t.flatten() for t in (*maps, *additions, cross)])[::37]

    assert torch.autograd.gradcheck(run, x)
    with pytest.raises(ValueError, match="heads must be"):
        decoder(encoder(x), heads="some")


def test_biases_before_batch_norm_learn_nothing():
    net = tiny(3, peak=255.0)
    stages = net(torch.randn(4, 3, 64, 64), all_maps=True)
    sum(m.square().sum() for maps in stages for m in maps).backward()
    for name, unit in net.named_modules():
        if isinstance(unit, ConvUnit):
            assert unit.conv.bias.grad.abs().max() <= 1e-4 * unit.conv.weight.grad.abs().max() + 1e-3, name


def test_without_aggregation_one_map_is_handed_on():
    plain = tiny(3, aggregation=False)
    assert not any("skip1" in n or "skip2" in n for n in plain.state_dict()) and "stage0.upsample.up4.cross_conv.conv.weight" in plain.state_dict()
    assert plain(torch.zeros(1, 3, 64, 64)).shape == (1, 3, 16, 16)


def test_every_head_gets_a_gradient():
    net, stages = tiny(3, stages=3, peak=255.0), None
    stages = net(torch.randn(2, 3, 64, 64), all_maps=True)
    labels = torch.rand(5, 2, 3, 16, 16)
    multi_stage_loss(stages, labels, partial(coarse_to_fine_loss, weight=torch.ones(2, 3), topk=2)).backward()
    assert all(p.grad is not None for p in net.parameters())


def test_label_tables():
    assert stage_labels(3) == ((0, 1, 2, 3), (0, 1, 2, 3), (1, 2, 3, 4))
    assert stage_labels(3, scheme="sliding") == ((0, 1, 2, 3), (1, 2, 3, 4), (2, 3, 4, 5))
    assert stage_labels(2, levels=3, scheme="same") == ((0, 0, 0), (0, 0, 0))
    assert stage_labels(1) == ((1, 2, 3, 4),)
    for bad in ({"stages": 0}, {"stages": 2, "levels": 0}, {"stages": 2, "scheme": "first"}):
        with pytest.raises(ValueError, match="scheme must be one of"):
            stage_labels(**bad)
    maps = [[torch.zeros(2, 3, 8, 6)] * 4] * 2
    total = multi_stage_loss(maps, [torch.full((2, 3, 8, 6), float(n)) for n in range(5)], lambda m, t: torch.stack([(a - b).square().mean() for a, b in zip(m, t)]).sum())
    assert total == 0 + 1 + 4 + 9 + 1 + 4 + 9 + 16
    with pytest.raises(ValueError, match="labels must be 5, widest first"):
        multi_stage_loss(maps, torch.zeros(4, 2, 3, 8, 6), lambda m, t: m[0].sum())


@pytest.mark.parametrize(("kernel", "stride"), [(1, 1), (3, 2), (7, 2)])
def test_units(kernel, stride):
    unit = ConvUnit(3, 5, kernel, stride, gain=0.5)
    assert unit(torch.randn(2, 3, 12, 16)).shape == (2, 5, 12 // stride, 16 // stride) and unit(torch.randn(2, 3, 12, 16)).min() >= 0
    with pytest.raises(ValueError, match="kernel must be odd"):
        ConvUnit(3, 5, 4)
    with pytest.raises(ValueError, match="must be >= 1"):
        UnitBottleneck(0, 3)


def test_small_network():
    with torch.device("meta"):
        net, deep = mspn_small(17), mspn_small(17, stages=1, blocks=(2, 2, 2, 2), channels=44)
    assert abs(count_macs(deep, (96, 64)) / count_macs(net, (96, 64)) - 1) < 0.02
    assert 4 * count_parameters(net) < 10e6
