"""Published checkpoints by name: the table, downloads from a server in this process that cuts the line, files that must be refused, and ready systems."""

import gzip
import hashlib
import io
import json
import pickle
import socket
import struct
import subprocess
import sys
import threading
import zipfile
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.testing import assert_close

from test_fetch import Server
from test_vectors_mspn import mmpose_names as mspn_names

from posetutor import cli
from posetutor.codecs.dark import DarkCodec, decode_dark
from posetutor.codecs.gaussian import GaussianCodec
from posetutor.data.figures import draw_crop
from posetutor.geometry import flip_points
from posetutor.nets.hrnet import HRNet, hrnet_small
from posetutor.nets.mspn import MSPN
from posetutor.nets.rsn import RSN
from posetutor.nets.simple_baseline import BasicBlock, SimpleBaseline, load_official, official_names, read_checkpoint
from posetutor.skeletons import COCO_17, HAND_21
from posetutor.systems import official as module
from posetutor.systems.official import OFFICIAL, MegviiCodec, Official, cache_folder, download_official, list_official, official, pickle_names
from posetutor.systems.topdown import TopDown

DATA = Path(__file__).parent / "data"
SIZE = (64, 64)


def keys(name):
    return json.loads(gzip.decompress((DATA / f"keys_{name}.json.gz").read_bytes()))


# --- the table -----------------------------------------------------------------------------------------------------


def test_every_address_is_https_and_carries_its_digits():
    assert len(OFFICIAL) >= 30 and len({e.url for e in OFFICIAL.values()}) == len({e.sha256 for e in OFFICIAL.values()}) == len(OFFICIAL)
    for name, entry in OFFICIAL.items():
        assert entry.name == name and entry.url.startswith("https://download.openmmlab.com/mmpose/") and entry.url.endswith(".pth")
        assert len(entry.sha256) == 8 and f"-{entry.sha256}_20" in entry.file
        assert f"{entry.size[0]}x{entry.size[1]}" in entry.file and entry.name.endswith(f"_{entry.size[0]}x{entry.size[1]}")
        assert 0.70 < entry.ap < 0.78 and 0.04 < entry.ar - entry.ap < 0.075 and entry.stated.startswith("mmpose 1.x model index")
        assert "Apache-2.0" in entry.licence and "CC BY 4.0" in entry.data and entry.padding == 1.25 and entry.colour == "rgb"


def entries_by_network():
    """Names that share one network, so that each is built once."""
    groups = {}
    for name, entry in OFFICIAL.items():
        build = entry.build
        key = (build.func, build.args, tuple(build.keywords.items())) if isinstance(build, partial) else build
        groups.setdefault((key, entry.codec.channels(17)), []).append(name)
    return list(groups.values())


def published_keys(name, net):
    """Our names of the tensors in the published file, from the official key lists; None where no list is at hand."""
    kind, stages = name.split("_")[0], name[0] if name[0].isdigit() else "1"
    if kind.startswith("hrnet"):
        return net.official_names(dict.fromkeys(keys("hrnet")["mmpose_w32"]))[0]
    if kind.startswith("res"):
        listed = [n for n, _ in keys("simple_baseline")[kind.removeprefix("res")]["state_dict"]]
        return official_names({("head." if n.startswith(("deconv", "final")) else "backbone.") + n: None for n in listed})[0]
    if "mspn" in kind:
        listed = [n for n, _ in keys("mspn")[stages]["state_dict"]]
        return net.official_names(dict.fromkeys(mspn_names(dict.fromkeys(listed), "head."), torch.empty(1)))[0]
    lists = keys("rsn")
    if (entry := lists.get(f"{kind[-5:]}_{stages}stage")) is None:
        return None
    return net.official_names(dict.fromkeys(rsn_names([n for n, _ in entry["state_dict"]]), torch.empty(1)))[0]


@pytest.mark.parametrize("names", entries_by_network(), ids=lambda names: names[0])
def test_every_entry_is_a_system_and_its_file_fits(names):
    entries = [OFFICIAL[name] for name in names]
    with torch.device("meta"):
        net = entries[0].build(entries[0].codec.channels(17))
    found = published_keys(names[0], net)
    assert found is None or set(found) == set(net.state_dict())
    for name, entry in zip(names, entries, strict=True):
        system = TopDown(net, entry.codec, COCO_17, entry.size)
        assert system.aspect == 0.75 and entry.codec.mapping == ("unit" if "_udp" in name else "biased")
        xy = torch.tensor([[[100.3, 60.7]]]).expand(1, 17, 2)
        back, _ = entry.codec.decode(entry.codec.encode(xy, torch.full((1, 17), 2)))
        assert (back - xy).abs().max() <= (2.0 if getattr(entry.codec, "decoder", "") in ("megvii", "hrnet") else 0.1)
        assert getattr(entry.codec, "sigma", None) in (None, {256: 2.0, 384: 3.0}[entry.size[0]])


def rsn_names(listed, head="head."):
    """As `mspn_names`, but inside the residual layers only the last unit is renamed."""
    made = {}
    for name in listed:
        if name.endswith(".conv.bias"):
            continue
        if ".downsample.layer" in name:
            made[name.replace("stage", "backbone.multi_stage_rsn.", 1).replace(".conv_bn_relu3.", ".conv_bn3.")] = name
        else:
            made |= {other.replace("multi_stage_mspn", "multi_stage_rsn"): name for other in mspn_names({name: None}, head)}
    return made


def test_dark_is_read_with_the_blur_of_its_configuration():
    """mmpose's default of 11 cells, also at sigma 3; only ResNet-152 at 384x288 asks for the 17 that fit it."""
    maps = {size: torch.rand(1, 17, size[0] // 4, size[1] // 4, generator=torch.Generator().manual_seed(size[0])) for size in ((256, 192), (384, 288))}
    found = {}
    for name, entry in OFFICIAL.items():
        if "_dark" not in name:
            continue
        codec, output = entry.codec, maps[entry.size]
        assert codec.sigma == {256: 2.0, 384: 3.0}[entry.size[0]] and codec.mapping == "biased" and not codec.rounded
        xy = codec.decode(output)[0]
        (found[name],) = (kernel for kernel in (11, 17) if torch.equal(4 * decode_dark(output, kernel=kernel, variant="official")[0], xy))
        other = DarkCodec(entry.size, sigma=2.0, decoder="dark_official", mapping="biased")  # a codec of sigma 2 blurs 11 cells
        assert torch.equal(other.decode(output)[0], xy) == (found[name] == 11)
    assert len(found) == 10 and [name for name, kernel in found.items() if kernel == 17] == ["res152_dark_coco_384x288"]


def test_records_say_how_their_score_was_made():
    without = {name for name, entry in OFFICIAL.items() if entry.nms is None}
    assert without == {name for name in OFFICIAL if "mspn" in name or "rsn" in name} and len(without) == 8
    for name, entry in OFFICIAL.items():
        assert (entry.nms, entry.joint_bonus) == ((None, 0.5) if name in without else (0.9, 0.0))
        line = next(row for row in list_official(name).splitlines() if row.startswith(name + " "))
        assert (" none " in line) == (name in without)


def test_published_protocol_runs_from_the_record():
    """The options that a record names are options of `run`; MSPN's keep every double."""
    record = draw_crop(3, size=(120, 90))
    boxes = {record.image_id: np.concatenate([np.repeat(record.boxes[:1], 3, 0), [[0.9], [0.8], [0.7]]], 1)}
    entry = OFFICIAL["mspn50_coco_256x192"]
    system = TopDown(hrnet_small(17, width=4).eval(), replace(entry.codec, size=SIZE), COCO_17)
    assert len(system.run([record], boxes=boxes, nms=entry.nms)) == 3
    assert len(system.run([record], boxes=boxes, nms=OFFICIAL["hrnet_w32_coco_256x192"].nms)) == 1


def test_advantages_that_the_picture_names():
    """DARK 0.4 to 1.1 points above the quarter step in every row, UDP 0.1 to 0.5 above DARK."""
    ap = {name: round(1000 * entry.ap) for name, entry in OFFICIAL.items()}
    dark = [ap[name] - ap[plain] for name in ap if "_dark" in name and (plain := name.replace("_dark", "")) in ap and not name.startswith("res101")]
    udp = [ap[name] - ap[name.replace("_udp", "_dark")] for name in ap if "_udp_coco" in name]
    assert (min(dark), max(dark), min(udp), max(udp)) == (4, 11, 1, 5)


def test_largest_file_as_summarised():
    sizes = []
    for name in ("rsn18_coco_256x192", "4xmspn50_coco_256x192"):
        with torch.device("meta"):
            state = OFFICIAL[name].build(17).state_dict()
        sizes.append(round(sum(t.numel() * t.element_size() for t in state.values()) / 1e6))
    assert sizes == [37, 482]


def test_list_is_printable():
    text = list_official()
    assert len(text.splitlines()) == len(OFFICIAL) + 1 and all(len(line) <= 125 for line in text.splitlines())
    assert "hrnet_w32_coco_256x192" in text and "0.746 0.799" in text
    assert len(list_official("udp").splitlines()) == 1 + sum("udp" in name for name in OFFICIAL)
    with pytest.raises(ValueError, match="list_official\\(\\) shows all"):
        list_official("openpose")


def test_records_need_digits():
    with pytest.raises(ValueError, match="first digits of its SHA-256.*got 'net.pth'"):
        replace(OFFICIAL["res50_coco_256x192"], url="https://example.org/net.pth")
    full = replace(OFFICIAL["res50_coco_256x192"], url="https://example.org/resnet18-" + "ab" * 32 + ".pth")
    assert full.sha256 == "ab" * 32


# --- a server with small networks under published names ------------------------------------------------------------

NETS = {
    "hrnet": partial(HRNet, 4, modules=(1, 1, 1), blocks=1, stem=4, layer1_blocks=1),
    "baseline": partial(SimpleBaseline, (BasicBlock, (1, 1, 1, 1)), deconv_channels=6, widths=(4, 4, 4, 6, 8)),
    "mspn": partial(MSPN, 2, stem=4, blocks=(1, 1, 1, 1), channels=8),
    "rsn": partial(RSN, (1, 1, 1, 1), stages=1, stem=8, channels=8),
}


def published(kind, state, era):
    """A state dict under the names of mmpose 1.x or 0.x, or of the original repository saved from several GPUs."""
    if era == "original":
        return {f"module.{name}": tensor for name, tensor in state.items()}
    head = "head." if era == "1.x" else "keypoint_head."
    if kind == "hrnet":
        return {(head if n.startswith("final_layer.") else "backbone.") + n: t for n, t in state.items()}
    if kind == "baseline":
        return {(head if n.startswith(("deconv", "final")) else "backbone.") + n: t for n, t in state.items()}
    if kind == "mspn":
        return mspn_names(state, head)
    return {other: state[name] for other, name in rsn_names(state, head).items()}


def checkpoint(kind, folder, era="1.x", K=17, old_format=False):
    """A network with random statistics, and the file that its project would have published."""
    torch.manual_seed(3)
    net = NETS[kind](K).eval()
    for name, buffer in net.named_buffers():
        if name.endswith("running_mean"):
            buffer.normal_(0, 0.1)
    if kind in ("mspn", "rsn"):
        for name, parameter in net.named_parameters():
            if name.endswith("conv.bias"):
                parameter.data.zero_()
    meta = {"dataset_meta": {"sigmas": np.ones(17, np.float32), "colors": np.zeros((17, 3), np.uint8), "dataset_name": "coco"}, "seed": np.float64(3.0), "time": "2022"}
    content = {"state_dict": published(kind, net.state_dict(), era), **({} if era == "original" else {"meta": meta if era == "1.x" else {"epoch": 210}})}
    path = folder / "made.pth"
    torch.save(content, path, _use_new_zipfile_serialization=not old_format)
    return net, path.read_bytes()


@pytest.fixture
def server():
    server = Server()
    server.body = {}
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    yield server
    server.shutdown()
    server.server_close()


def offer(server, kind, data, *, name=None, digits=None, **facts):
    """Put bytes on the server as a published file, and give the table that knows it."""
    name = name or f"{kind}_tiny"
    file = f"{name}-{digits or hashlib.sha256(data).hexdigest()[:8]}_20250101.pth"
    server.body[f"/{file}"] = data
    codec = MegviiCodec(SIZE) if kind in ("mspn", "rsn") else GaussianCodec.official(SIZE, 2.0)
    return {name: Official(name, server.url(file), NETS[kind], codec, **facts)}


def quick(*args, **options):
    return official(*args, progress=False, **options)


@pytest.mark.parametrize("kind", NETS)
@pytest.mark.parametrize("era", ["1.x", "0.x"])
def test_a_published_file_becomes_the_same_network(kind, era, server, tmp_path, capsys):
    net, data = checkpoint(kind, tmp_path, era)
    table = offer(server, kind, data)
    server.cuts = [len(data) // 3, 1]
    system = quick(f"{kind}_tiny", tmp_path / "cache", table=table)
    assert [n for n in server.requests if n] == [f"bytes={len(data) // 3}-", f"bytes={len(data) // 3 + 1}-"]
    told = capsys.readouterr().err
    assert told.count("Apache-2.0") == 1 and "CC BY 4.0" in told and f"{kind}_tiny: kept {len(net.state_dict())} tensors; new layers: none" in told
    images = torch.rand(2, 3, *SIZE)
    with torch.no_grad():
        assert_close(system.net(images), net(images), rtol=0, atol=1e-6)
    assert system.net.input_order == "rgb" and not system.net.training and system.padding == 1.25 and system.normalise == "imagenet"
    assert system.source is table[f"{kind}_tiny"] and "Apache-2.0" in system.source.licence and not system.report.new
    assert [p.name for p in (tmp_path / "cache").iterdir()] == [system.source.file]


def test_the_second_time_needs_no_network(server, tmp_path, capsys, monkeypatch):
    net, data = checkpoint("hrnet", tmp_path)
    table = offer(server, "hrnet", data)
    quick("hrnet_tiny", tmp_path, table=table)
    capsys.readouterr()

    def closed(*args, **options):
        raise AssertionError("the network was touched")

    monkeypatch.setattr(socket.socket, "connect", closed)
    assert_close(quick("hrnet_tiny", tmp_path, table=table).net.conv1.weight, net.conv1.weight)
    assert len(server.requests) == 1 and "Apache" not in capsys.readouterr().err  # the licence is shown when something is fetched


def test_original_names_and_colours(server, tmp_path):
    net, data = checkpoint("baseline", tmp_path, "original", old_format=True)
    table = offer(server, "baseline", data, colour="bgr", normalise="imagenet")
    system = quick("baseline_tiny", tmp_path, table=table)
    assert system.net.input_order == system.report.colour == "bgr" and torch.equal(system.net.layer2[0].conv1.weight, net.layer2[0].conv1.weight)


@pytest.mark.parametrize("old_format", [False, True])
def test_notes_of_arrays_are_passed_over(old_format, tmp_path):
    """mmpose 1.x stores NumPy arrays beside the weights; torch.load(weights_only=True) alone refuses such files."""
    net, data = checkpoint("hrnet", tmp_path, "1.x", old_format=old_format)
    path = tmp_path / "made.pth"
    with pytest.raises(pickle.UnpicklingError):
        torch.load(path, weights_only=True)
    state = read_checkpoint(path)
    assert list(state) == list(published("hrnet", net.state_dict(), "1.x")) and all(torch.is_tensor(t) for t in state.values())
    assert torch.equal(state["backbone.conv1.weight"], net.conv1.weight)
    assert load_official(NETS["hrnet"](17), path).kept
    assert any("numpy" in name for name in pickle_names(path)) and all(name.split(".")[0] in ("torch", "collections", "numpy", "_codecs") for name in pickle_names(path))


def test_a_ready_system_estimates(server, tmp_path):
    _, data = checkpoint("mspn", tmp_path)
    system = quick("mspn_tiny", tmp_path, table=offer(server, "mspn", data))
    record = draw_crop(3, size=(120, 90))
    poses = system.estimate(record.load(), boxes=record.boxes)
    assert poses.xy.shape == (1, 17, 2) and np.isfinite(poses.xy).all()


@pytest.mark.parametrize("kind", NETS)
def test_another_skeleton_keeps_the_trunk(kind, server, tmp_path):
    net, data = checkpoint(kind, tmp_path)
    system = quick(f"{kind}_tiny", tmp_path, skeleton=HAND_21, table=offer(server, kind, data))
    own, theirs = system.net.state_dict(), net.state_dict()
    assert system.skeleton is HAND_21 and system.net.out_channels == 21
    new = set(system.report.new)
    assert 0 < len(new) < 60 and all(torch.isfinite(t).all() for t in own.values())
    assert all(torch.equal(own[n], theirs[n]) for n in own if n not in new and not n.endswith("num_batches_tracked"))


def test_other_joints_in_the_same_number_start_anew(server, tmp_path):
    net, data = checkpoint("hrnet", tmp_path)
    backwards = replace(COCO_17, name="backwards", names=COCO_17.names[::-1])
    system = quick("hrnet_tiny", tmp_path, skeleton=backwards, table=offer(server, "hrnet", data))
    assert set(system.report.new) == {"final_layer.weight", "final_layer.bias"} and not torch.equal(system.net.final_layer.weight, net.final_layer.weight)


def test_no_weight_is_drawn(server, tmp_path, monkeypatch):
    drawn = []
    for kind in NETS:
        _, data = checkpoint(kind, tmp_path)
        table = offer(server, kind, data)
        drawn.clear()
        with monkeypatch.context() as patch:
            for name in ("kaiming_normal_", "kaiming_uniform_", "normal_", "uniform_"):
                original = getattr(torch.nn.init, name)
                patch.setattr(torch.nn.init, name, lambda tensor, *a, _f=original, **k: (None if tensor.is_meta else drawn.append(tensor.shape), _f(tensor, *a, **k))[1])
            quick(f"{kind}_tiny", tmp_path / kind, table=table)
        assert not drawn, kind


# --- what must be refused ------------------------------------------------------------------------------------------


def fails(server, table, folder, error, said):
    (name,) = table
    with pytest.raises(error, match=said):
        official(name, folder, table=table, progress=False)
    return sorted(p.name for p in folder.iterdir()) if folder.exists() else []


def test_wrong_bytes_pages_and_missing_files(server, tmp_path):
    _, data = checkpoint("hrnet", tmp_path)
    box = tmp_path / "box"
    changed = offer(server, "hrnet", data[:-1] + b"!", digits=hashlib.sha256(data).hexdigest()[:8])
    assert fails(server, changed, box, ValueError, "has sha256 .* starts with .* nothing was kept") == []
    page = offer(server, "hrnet", b"\n<!DOCTYPE html><title>Sign in</title>", digits="00000000")
    assert fails(server, page, box, ValueError, "it is a web page") == []
    cut = offer(server, "hrnet", data[: len(data) // 2], digits=hashlib.sha256(data).hexdigest()[:8])
    assert fails(server, cut, box, ValueError, "has sha256") == []
    gone = {"x": replace(changed["hrnet_tiny"], name="x")}
    server.status = [404]
    assert fails(server, gone, box, FileNotFoundError, "HTTP 404") == []


def test_a_wrong_file_in_the_folder_is_named_and_kept(server, tmp_path):
    _, data = checkpoint("hrnet", tmp_path)
    table, box = offer(server, "hrnet", data), tmp_path / "box"
    box.mkdir()
    (box / table["hrnet_tiny"].file).write_bytes(data[:1000])
    assert fails(server, table, box, ValueError, "starts with .*; move it away") == [table["hrnet_tiny"].file] and not server.requests
    (box / table["hrnet_tiny"].file).write_bytes(data)  # fetched elsewhere and copied
    assert quick("hrnet_tiny", box, table=table) and not server.requests


def test_without_a_network_the_way_out_is_named(tmp_path):
    entry = Official("far", "http://127.0.0.1:9/far-0123abcd_20250101.pth", NETS["hrnet"], GaussianCodec.official(SIZE))
    with pytest.raises(ConnectionError, match="Without a network: fetch http://127.0.0.1:9/far-0123abcd_20250101.pth elsewhere and put it into"):
        download_official("far", tmp_path, table={"far": entry}, progress=False, retries=0, wait=0)
    assert list(tmp_path.iterdir()) == []


def test_another_networks_weights(server, tmp_path):
    _, data = checkpoint("baseline", tmp_path)
    table = {"hrnet_tiny": replace(offer(server, "baseline", data)["baseline_tiny"], name="hrnet_tiny", build=NETS["hrnet"])}
    fails(server, table, tmp_path / "box", ValueError, "state does not fit the net.*ResNet or Simple Baseline")


class Trap:
    """Unpickling this would create a file."""

    def __init__(self, target):
        self.target = target

    def __reduce__(self):
        return (Path.touch, (self.target,))


@pytest.mark.parametrize("form", ["zip", "old", "bare", "inside a note", "script"])
def test_nothing_stored_in_a_pickle_runs(form, server, tmp_path):
    executed, path = tmp_path / "executed", tmp_path / "trap.pth"
    net = NETS["hrnet"](17)
    content = {"state_dict": published("hrnet", net.state_dict(), "1.x"), "meta": {"sigmas": np.ones(3), "hook": Trap(executed)}}
    if form == "bare":
        path.write_bytes(pickle.dumps(content["meta"]))
    elif form == "script":
        torch.jit.script(torch.nn.Conv2d(1, 1, 1)).save(str(path))
    elif form == "inside a note":
        torch.save({**content, "meta": {"a": np.ones(2), "b": np.array([Trap(executed)], dtype=object)}}, path)
    else:
        torch.save(content, path, _use_new_zipfile_serialization=form == "zip")
    table = offer(server, "hrnet", path.read_bytes())
    assert fails(server, table, tmp_path / "box", ValueError, "cannot be read safely") == []
    assert not executed.exists()
    if form != "script":
        heard = [name for name in pickle_names(path) if name.split(".")[0] not in ("torch", "collections", "numpy", "_codecs")]
        assert any("touch" in name or "getattr" in name for name in heard), heard  # protocol 2 asks for the builtin, protocol 4 for the method
        assert not executed.exists()


def test_names_in_files_that_break_off(tmp_path):
    path = tmp_path / "half.pth"
    torch.save({"state_dict": NETS["hrnet"](3).state_dict()}, path, _use_new_zipfile_serialization=False)
    whole = path.read_bytes()
    assert set(pickle_names(path)) >= {"collections.OrderedDict", "torch._utils._rebuild_tensor_v2", "torch.FloatStorage"}
    assert "?" not in pickle_names(path)
    for length in (0, 1, 50, 400, 2000):
        path.write_bytes(whole[:length])
        *heard, last = pickle_names(path)
        assert last == "?" and all(name.split(".")[0] in ("torch", "collections") for name in heard)
    with pytest.raises(FileNotFoundError, match="no file at"):
        pickle_names(tmp_path / "missing.pth")


def test_names_behind_a_call_are_heard(tmp_path):
    """A call of what a call returns must not end the listening: names could hide behind it."""
    chain = b"\x80\x02cbuiltins\ngetattr\n(cpathlib\nPath\nX\x05\x00\x00\x00touchtR(X\x01\x00\x00\x00atR0cos\nsystem\n(X\x02\x00\x00\x00lstR."
    path = tmp_path / "chain.pth"
    path.write_bytes(chain)
    assert pickle_names(path) == ("builtins.getattr", "pathlib.Path", "os.system")
    path.write_bytes(b"\x80\x02cos\nsystem\n)R}\x81cnever\nheard\n.")  # an object made of no class: not to be followed further
    assert pickle_names(path) == ("os.system", "?")


def test_unknown_names_meet_their_neighbours(tmp_path):
    with pytest.raises(ValueError, match=r"one of the \d+ in list_official\(\), such as .*hrnet_w32_coco_256x192.*got 'hrnet_w32_256x192'"):
        download_official("hrnet_w32_256x192", tmp_path)


def test_cache_folder(monkeypatch, tmp_path):
    monkeypatch.setenv("POSETUTOR_CACHE", str(tmp_path / "here"))
    assert cache_folder() == tmp_path / "here"
    monkeypatch.delenv("POSETUTOR_CACHE")
    monkeypatch.setattr(module.sys, "platform", "linux")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert cache_folder() == tmp_path / "posetutor"
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert cache_folder() == Path.home() / ".cache" / "posetutor"
    monkeypatch.setattr(module.sys, "platform", "darwin")
    assert cache_folder().parts[-3:] == ("Library", "Caches", "posetutor")
    monkeypatch.setattr(module.sys, "platform", "win32")
    monkeypatch.setenv("LOCALAPPDATA", str(tmp_path / "Local"))
    assert cache_folder() == tmp_path / "Local" / "posetutor"
    monkeypatch.delenv("LOCALAPPDATA")
    assert cache_folder().parts[-3:] == ("AppData", "Local", "posetutor")


def test_a_home_that_nobody_knows(monkeypatch, tmp_path, capsys):
    monkeypatch.setenv("POSETUTOR_CACHE", "~nosuchuser/x")
    with pytest.raises(ValueError, match="~nosuchuser/x has an unknown home .*set POSETUTOR_CACHE to a folder"):
        cache_folder()
    assert cli.main(["predict", "--sample", "--weights", "hrnet_w32_coco_256x192", "--out", str(tmp_path / "pose.png")]) == 2
    assert "set POSETUTOR_CACHE to a folder" in capsys.readouterr().err and not list(tmp_path.iterdir())

    def unknown(*args):
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.delenv("POSETUTOR_CACHE")
    monkeypatch.setattr(module.Path, "home", unknown)
    monkeypatch.setattr(module.Path, "expanduser", lambda path: unknown() if str(path).startswith("~") else path)
    monkeypatch.setattr(module.sys, "platform", "linux")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))  # where no home is needed none is asked for
    assert cache_folder() == tmp_path / "posetutor"
    monkeypatch.setenv("POSETUTOR_CACHE", str(tmp_path / "here"))
    assert cache_folder() == tmp_path / "here"
    monkeypatch.delenv("POSETUTOR_CACHE")
    monkeypatch.delenv("XDG_CACHE_HOME")
    with pytest.raises(ValueError, match="~/.cache has an unknown home .*set POSETUTOR_CACHE to a folder"):
        cache_folder()


# --- the codec of MSPN and RSN -------------------------------------------------------------------------------------


def test_megvii_decoding_of_mmpose():
    """Every joint of the reference maps, but for plateaus where float16 leaves two equal neighbours."""
    common, reference = (np.load(DATA / f"{name}.npz", allow_pickle=False) for name in ("decode_common", "mm_megvii"))
    maps = 255 * torch.from_numpy(common["in_heatmaps"]).float()
    xy, score = MegviiCodec((256, 192), kernel=11).decode(maps)
    wanted, top = torch.from_numpy(reference["out_decoded"]), torch.from_numpy(reference["out_score"])
    usable = top > 0.5
    same = (xy - wanted).abs().amax(-1) < 1e-3
    assert usable.float().mean() > 0.8 and same[usable].float().mean() > 0.9
    assert_close((score + 0.5)[usable], top[usable], rtol=0, atol=1e-3)


def test_megvii_codec_goes_and_comes_back():
    codec, vis = MegviiCodec((64, 48)), torch.full((50, 3), 2)
    xy = torch.rand(50, 3, 2, generator=torch.Generator().manual_seed(0)) * torch.tensor([22.0, 38.0]) + 13
    targets = codec.encode(xy, vis)
    back, score = codec.decode(targets)
    assert targets.maps.amax() == 255 and (back - xy).abs().max() <= 2 + 1e-5 and (score - 1).abs().max() < 1e-6
    assert abs((back - xy).mean()) < 0.15  # reading in the middle of the cell repairs the rounding down
    assert codec.loss(targets.maps, targets) == 0 and codec.channels(3) == 3
    whole = xy.round()
    mirrored = codec.encode(flip_points(whole, 48, (0, 2, 1)), vis).maps
    assert_close(codec.flip_back(mirrored, (0, 2, 1)), codec.encode(whole, vis).maps)  # at whole pixels the mirror is exact
    outside = codec.encode(torch.tensor([[[70.0, 3.0], [5.0, 5.0], [-9.0, 1.0]]]), torch.tensor([[2, 0, 1]]))
    assert outside.weight.tolist() == [[0, 0, 0]]
    half = codec.decode(targets.maps.bfloat16())
    assert half[0].dtype == torch.float32 and (half[0] - back).abs().max() <= 1
    for wrong, said in (({"kernel": 4}, "odd"), ({"mapping": "unit"}, "biased"), ({"size": (65, 48)}, "stride")):
        with pytest.raises(ValueError, match=said):
            MegviiCodec(**{"size": (64, 48), **wrong})
    with pytest.raises(ValueError, match="cells"):
        codec.decode(torch.zeros(1, 3, 9, 9))
    with pytest.raises(ValueError, match="must come from this codec"):
        MegviiCodec((64, 48), kernel=7).decode(targets)


@pytest.mark.parametrize("name", ["hrnet_w32_coco_256x192", "res50_dark_coco_256x192", "res50_dark_coco_384x288", "hrnet_w32_udp_coco_384x288", "hrnet_w32_udp_combined_coco_256x192", "mspn50_coco_256x192"])
def test_systems_of_every_family_go_through_a_file(name, tmp_path):
    entry = OFFICIAL[name]
    net = hrnet_small(entry.codec.channels(17), width=4).eval()
    path = TopDown(net, entry.codec, COCO_17, padding=entry.padding).save(tmp_path / "system.safetensors")
    again = TopDown.load(path)
    assert again.codec == entry.codec and again.padding == 1.25 and torch.equal(again.net.conv1.weight, net.conv1.weight)
    images = torch.randint(0, 256, (2, 3, *entry.size), dtype=torch.uint8)
    assert torch.equal(again.predict_crops(images)[0], TopDown(net, entry.codec, COCO_17).predict_crops(images)[0])


# --- the command line ----------------------------------------------------------------------------------------------


def test_command_line(server, tmp_path, capsys, monkeypatch):
    assert cli.main(["weights"]) == 0 and "hrnet_w48_udp_coco_384x288" in capsys.readouterr().out
    assert cli.main(["predict", "--sample", "--weights", "hrnet_w33"]) == 2
    assert "list_official" in capsys.readouterr().err
    _, data = checkpoint("hrnet", tmp_path)
    table = offer(server, "hrnet", data)
    monkeypatch.setitem(OFFICIAL, "hrnet_tiny", table["hrnet_tiny"])
    monkeypatch.setenv("POSETUTOR_CACHE", str(tmp_path / "cache"))
    out = tmp_path / "pose.png"
    assert cli.main(["predict", "--sample", "--weights", "hrnet_tiny", "--box", "20,20,100,200", "--out", str(out)]) == 0
    said = capsys.readouterr()
    assert json.loads(said.out)["people"] and out.is_file() and "Apache-2.0" in said.err


# --- files that break their readers -------------------------------------------------------------------------------


def broken_files():
    """Name -> bytes on which torch.load or zipfile raises something else than they promise."""
    buffer = io.BytesIO()
    torch.save({"state_dict": {"conv1.weight": torch.ones(2, 3)}}, buffer)
    zipped = buffer.getvalue()
    directory = zipped.rindex(b"PK\x01\x02")
    return {
        "directory": zipped[:directory] + b"XX" + zipped[directory + 2 :],  # zipfile.BadZipFile
        "local": zipped.replace(b"PK\x03\x04", b"XK\x03\x04"),
        "cut": zipped[: len(zipped) // 2],
        "empty": b"",
        "huge": b"\x80\x02\x8d" + (2**62).to_bytes(8, "little"),  # a string longer than any memory
        "stack": b"\x80\x02" + b"(" * 50 + b"u.",
        "deep": b"\x80\x02" + b"]" * 5000 + b"a" * 4999 + b".",
    }


@pytest.mark.parametrize("kind", broken_files())
def test_broken_files_give_one_error(kind, tmp_path):
    path = tmp_path / "net.pth"
    path.write_bytes(broken_files()[kind])
    with pytest.raises(ValueError, match="cannot be read safely|holds no state dict"):
        read_checkpoint(path)


@pytest.mark.parametrize("error", [zipfile.BadZipFile, AssertionError, MemoryError, RecursionError, OverflowError, struct.error, NotImplementedError])
def test_whatever_the_reader_raises_is_a_value_error(error, monkeypatch, tmp_path):
    path = tmp_path / "net.pth"
    torch.save({"conv1.weight": torch.ones(2, 3)}, path)

    def fails(*args, **options):
        raise error

    monkeypatch.setattr(torch, "load", fails)
    with pytest.raises(ValueError, match=f"cannot be read safely.*{error.__name__}"):
        read_checkpoint(path)


def test_names_that_are_no_text_are_left_out(tmp_path):
    torch.save({0: torch.ones(2), "conv1.weight": torch.ones(3)}, tmp_path / "net.pth")
    assert list(read_checkpoint(tmp_path / "net.pth")) == ["conv1.weight"]


@pytest.mark.parametrize("kind", ["directory", "cut", "stack"])
def test_a_fetched_file_that_cannot_be_read_does_not_stay(kind, server, tmp_path):
    """Its digits are right, so the next call would trust it."""
    with pytest.raises(ValueError, match="cannot be read safely"):
        quick("hrnet_tiny", tmp_path / "cache", table=offer(server, "hrnet", broken_files()[kind]))
    assert not [p for p in (tmp_path / "cache").rglob("*") if p.is_file() and p.suffix == ".pth"]


@pytest.mark.parametrize("name", ["mspn50_coco_256x192", "res50_dark_coco_384x288"])
def test_a_saved_system_is_read_in_a_fresh_process(name, tmp_path):
    """Codecs and decoders of this chapter are there when a file asks for them, though nobody has imported it."""
    path = TopDown(hrnet_small(17, width=4).eval(), OFFICIAL[name].codec, COCO_17).save(tmp_path / "system.safetensors")
    code = f"from posetutor.systems.topdown import TopDown; print(TopDown.load({str(path)!r}).codec)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip() == str(OFFICIAL[name].codec)
