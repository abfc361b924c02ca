"""The building blocks equal the published ones on reference numbers; fusion and folding change no output; activations match PyTorch's.

The numbers in tests/data were computed with the official implementations (repository and commit stand in the files).
"""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils._pytree import tree_leaves

from network_vectors import assert_near, state_of

from posetutor.nets import blocks
from posetutor.nets.blocks import (
    ACTIVATIONS,
    ASPP,
    RFB,
    ContextMixer,
    DropBlock,
    LinearRFB,
    RepVGGBlock,
    Residual,
    SqueezeExcite,
    activation,
    conv_norm_act,
    drop_squares,
    dropblock_rate,
    dropped_share,
    fold_batchnorm,
    foldable,
    fuse_repvgg,
    hard_mish,
    prepare,
)
from posetutor.nets.higherhrnet import higherhrnet_small, stacked_hourglass
from posetutor.nets.hrnet import HRNet, hrnet_small
from posetutor.nets.simple_baseline import BasicBlock, Bottleneck, SimpleBaseline, simple_baseline_small

DATA = Path(__file__).parent / "data"
REPVGG, ASFF, DROP = (np.load(DATA / f"vec_{name}.npz", allow_pickle=False) for name in ("repvgg", "asff_blocks", "dropblock"))
CASES = {name: json.loads(str(z["meta"]))["config"] for name, z in (("repvgg", REPVGG), ("asff", ASFF), ("drop", DROP))}


def ripen(net: nn.Module, seed: int = 0) -> nn.Module:
    """Norms as after training: no scale is 1, no shift 0."""
    generator = torch.Generator().manual_seed(seed)
    for norm in (m for m in net.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)):
        for tensor, low, high in ((norm.running_mean, -0.5, 0.5), (norm.running_var, 0.5, 2.0), (norm.weight, 0.5, 1.5), (norm.bias, -0.5, 0.5)):
            if tensor is not None:
                tensor.data.copy_(low + (high - low) * torch.rand(tensor.shape, generator=generator))
    return net.eval()


# --- RepVGG --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("case", [c for c in sorted(CASES["repvgg"]) if c != "net"])
def test_repvgg_block(case):
    config, state = CASES["repvgg"][case], state_of(REPVGG, f"sd/{case}/")
    block = RepVGGBlock(config["in_channels"], config["out_channels"], config["stride"], config["groups"])
    assert sorted(block.state_dict()) == sorted(state)
    block.load_state_dict(state)
    block.eval()
    x = torch.from_numpy(REPVGG[f"in/{case}/x"])
    kernel, bias = block.equivalent()
    assert_near(block(x), REPVGG[f"out/{case}/y"], "three branches")
    assert_near(kernel, REPVGG[f"out/{case}/kernel"], "kernel")
    assert_near(bias, REPVGG[f"out/{case}/bias"], "bias")
    assert_near(block.fused()(x), REPVGG[f"out/{case}/y"], "fused", 1e-5)
    assert_near(block.custom_l2()[None], REPVGG[f"out/{case}/custom_L2"], "penalty")


def repvgg_net(config) -> nn.Module:
    """The classifier of the official repository, assembled from our blocks."""
    a = config["width_multiplier"]
    widths = [int(64 * a[0]), int(128 * a[1]), int(256 * a[2]), int(512 * a[3])]
    net = nn.Module()
    before = min(64, int(64 * a[0]))
    net.stage0 = RepVGGBlock(3, before, 2)
    for stage, (count, width) in enumerate(zip(config["num_blocks"], widths, strict=True), start=1):
        made = []
        for n in range(count):
            made.append(RepVGGBlock(before, width, 2 if n == 0 else 1))
            before = width
        setattr(net, f"stage{stage}", nn.Sequential(*made))
    net.linear = nn.Linear(before, config["num_classes"])
    return net


def run_repvgg(net, x):
    for stage in range(5):
        x = getattr(net, f"stage{stage}")(x)
    return net.linear(x.mean(dim=(-2, -1)))


def test_repvgg_network_before_and_after_fusion():
    net, state = repvgg_net(CASES["repvgg"]["net"]), state_of(REPVGG, "sd/net/")
    assert sorted(net.state_dict()) == sorted(state)
    net.load_state_dict(state)
    net.eval()
    x = torch.from_numpy(REPVGG["in/net/x"])
    slim = fuse_repvgg(net)
    assert sorted(slim.state_dict()) == sorted(CASES["repvgg"]["net"]["deploy_keys"])
    assert_near(run_repvgg(net, x), REPVGG["out/net/y"])
    assert_near(run_repvgg(slim, x), REPVGG["out/net/y"], "fused", 1e-5)
    for key in (k for k in REPVGG.files if k.startswith("out/net/deploy/")):
        assert_near(slim.state_dict()[key[len("out/net/deploy/") :]], REPVGG[key], key)
    assert "stage1.0.rbr_dense.conv.weight" in net.state_dict()  # the trained net is kept


@pytest.mark.parametrize("dtype, tolerance", [(torch.float32, 1e-5), (torch.float64, 1e-12)])
@pytest.mark.parametrize("shape", [(6, 6, 1, 1), (6, 6, 1, 3), (4, 8, 2, 2), (5, 5, 2, 1)])
def test_fusion_is_exact(shape, dtype, tolerance):
    torch.manual_seed(0)
    block = ripen(RepVGGBlock(*shape)).to(dtype)
    x = torch.randn(2, shape[0], 9, 12, dtype=dtype)
    assert_near(block.fused()(x), block(x).detach().numpy(), tolerance=tolerance)
    with pytest.raises(ValueError, match="evaluation mode"):
        fuse_repvgg(nn.Sequential(block.train()))


# --- folding -------------------------------------------------------------------------------------------------------


class Awkward(nn.Module):
    """Everything that folding must leave alone or must not get wrong."""

    def __init__(self):
        super().__init__()
        self.a, self.na = nn.Conv2d(3, 8, 3, 2, 1, bias=True), nn.BatchNorm2d(8)  # bias: foldable
        self.b, self.nb = nn.Conv2d(8, 8, 3, 1, 1, groups=4, bias=False), nn.BatchNorm2d(8, affine=False)  # groups, no affine
        self.c, self.nc = nn.ConvTranspose2d(8, 12, 4, 2, 1, groups=2, bias=False), nn.BatchNorm2d(12)
        self.d, self.nd = nn.Conv2d(12, 12, 1), nn.BatchNorm2d(12)  # its output is used twice: not foldable
        self.e, self.ne = nn.Conv2d(12, 12, 1), nn.BatchNorm2d(12)  # norm before the convolution: not foldable
        self.f, self.nf = nn.Conv2d(12, 12, 1), nn.BatchNorm2d(12)  # run twice: not foldable
        self.g, self.ng = nn.Conv2d(12, 4, 1), nn.BatchNorm2d(4, track_running_stats=False)  # uses the batch even in evaluation

    def forward(self, x):
        if x.shape[-1] < 8:
            raise ValueError("too small")
        x = self.nc(self.c(F.relu(self.nb(self.b(F.relu(self.na(self.a(x))))))))
        y = self.d(x)
        x = self.e(self.ne(F.relu(self.nd(y)) + y))
        for _ in range(2):
            x = self.nf(self.f(x))
        return self.ng(self.g(x))


def test_folding_takes_what_it_may_and_no_more():
    torch.manual_seed(0)
    net = ripen(Awkward())
    assert foldable(net) == [("a", "na"), ("b", "nb"), ("c", "nc")]
    x = torch.randn(2, 3, 16, 24)
    before = net(x).detach()
    made = fold_batchnorm(net)
    assert_near(made(x), before.numpy(), tolerance=1e-5)
    assert torch.equal(net(x), before) and isinstance(net.na, nn.BatchNorm2d), "the given net changed"
    assert isinstance(made.na, nn.Identity) and made.c.bias is not None
    with pytest.raises(ValueError, match=r"must run on images \(1, 3, 4, 4\)"):
        fold_batchnorm(net, size=(4, 4))
    with pytest.raises(ValueError, match="evaluation mode"):
        fold_batchnorm(net.train())


@pytest.mark.parametrize(
    "build, rest",
    [
        (lambda: HRNet(6, 4, modules=(1, 2, 1), blocks=1, stem=8, layer1_blocks=2), 0),
        (lambda: SimpleBaseline(18, 4, deconv_channels=16, widths=(8, 8, 12, 16, 24)), 0),
        (
            lambda: SimpleBaseline(
                (Bottleneck, (1, 1, 1, 1)), 4, deconv_channels=8, deconv_kernels=3, deconv_bias=True, upsample="bilinear", widths=(8, 4, 4, 4, 4)
            ),
            0,
        ),
        (lambda: simple_baseline_small(4), 3),  # its norms follow a sum of two convolutions
        (lambda: hrnet_small(4), 0),
    ],
)
def test_folding_of_our_networks(build, rest):
    torch.manual_seed(0)
    net = ripen(build())
    slim = fold_batchnorm(net)
    x = torch.randn(2, 3, 64, 96)
    with torch.no_grad():
        assert_near(slim(x), net(x).numpy(), tolerance=2e-5)
    assert sum(isinstance(m, nn.BatchNorm2d) for m in slim.modules()) == rest


# --- RFB, DropBlock ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("case", [c for c, config in sorted(CASES["asff"].items()) if config["cls"] == "RFBblock"])
def test_linear_rfb(case):
    config, state = CASES["asff"][case], state_of(ASFF, f"sd/{case}/")
    block = LinearRFB(config["in_ch"], residual=config["residual"])
    block.load_state_dict(state)
    assert list(block.state_dict()) == list(state)
    assert_near(block(torch.from_numpy(ASFF[f"in/{case}/x"])), ASFF[f"out/{case}/y"])


@pytest.mark.parametrize("case", sorted(CASES["drop"]))
def test_drop_squares(case):
    x, seeds = (torch.from_numpy(DROP[f"in/{case}/{name}"]) for name in ("x", "bernoulli_sample"))
    y, mask = drop_squares(x, seeds, CASES["drop"][case]["block_size"])
    assert_near(mask, DROP[f"out/{case}/mask"], "mask")
    assert_near(y, DROP[f"out/{case}/y"], "rescaled", 1e-6)


def test_dropblock_rates():
    for block, keep, width, gamma in DROP["out/gamma_table"]:
        if block <= width:
            assert abs(dropblock_rate(1 - keep, int(block), (int(width), int(width))) - gamma) < 1e-6
    assert dropblock_rate(0.1, 7, (19, 19), everywhere=True) == pytest.approx(0.1 / 49)


@pytest.mark.parametrize("size", [(10, 10), (13, 19), (38, 38)])
@pytest.mark.parametrize("everywhere", [False, True])
def test_dropped_share(size, everywhere):
    """The exact expectation against a count, within four standard deviations of it; near the target wherever squares seldom overlap."""
    torch.manual_seed(0)
    rate = dropblock_rate(0.1, 7, size, everywhere=everywhere)
    exact = dropped_share(rate, 7, size, everywhere=everywhere)
    y = DropBlock(0.1, 7, everywhere=everywhere)(torch.ones(3000, 1, *size))
    shares = (y == 0).double().mean(dim=(1, 2, 3))
    assert abs(shares.mean() - exact) < 4 * shares.std() / 3000**0.5
    assert 0.065 < exact < 0.1 and (everywhere or exact > 0.088)
    assert y.mean() == pytest.approx(1, abs=1e-4)  # rescaled by what was really kept


def test_dropped_share_by_hand():
    assert dropped_share(0.2, 1, (4, 6)) == pytest.approx(0.2)  # squares of one cell: dropout
    assert dropped_share(0.3, 5, (5, 5)) == pytest.approx(0.3)  # one seed, the whole map: spatial dropout
    assert dropped_share(0.5, 3, (3, 4)) == pytest.approx(0.25 * 0.5 * 2 + 0.5 * 0.75)  # two seeds: outer columns hear one, the two middle ones both
    with pytest.raises(ValueError, match="fits into the map"):
        dropped_share(0.1, 7, (5, 9))


def test_dropblock_is_the_identity_in_evaluation():
    layer = DropBlock(0.3, 3).eval()
    x = torch.randn(2, 3, 8, 8)
    assert layer(x) is x


@pytest.mark.parametrize(
    "call",
    [
        lambda: DropBlock(1.0),
        lambda: DropBlock(0.1, 4),
        lambda: DropBlock(0.1, 7)(torch.ones(1, 1, 5, 9)),
        lambda: drop_squares(torch.ones(1, 2, 4, 4), torch.ones(1, 2, 4, 5), 3),
        lambda: drop_squares(torch.ones(1, 1, 5, 5, dtype=torch.int64), torch.zeros(1, 1, 5, 5), 3),  # 25 / 16 would be rounded to 1
    ],
)
def test_dropblock_refuses(call):
    with pytest.raises(ValueError, match="must"):
        call()


# --- activations and the rest --------------------------------------------------------------------------------------


def test_hard_mish_values_and_slopes():
    x = torch.tensor([-3.0, -2, -1, -0.5, 0, 1, 4])
    assert torch.equal(hard_mish(x), torch.tensor([0, 0, -0.5, -0.375, 0, 1, 4]))
    x.requires_grad_(True)
    hard_mish(x).sum().backward()
    assert torch.equal(x.grad, torch.tensor([0, 0, 0, 0.5, 1, 1, 1]))
    x = torch.tensor([-2.7, -1.9, -0.4, 0.3, 2.0], dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(hard_mish, x) and torch.autograd.gradgradcheck(hard_mish, x)
    for dtype in (torch.bfloat16, torch.float16):
        assert hard_mish(x.detach().to(dtype)).dtype == dtype
    for dtype in (torch.complex64, torch.int64):
        with pytest.raises(ValueError, match="real floating point"):
            hard_mish(torch.zeros(2, dtype=dtype))


def test_activations_have_the_known_minima():
    x = torch.linspace(-6, 6, 240_001, dtype=torch.float64)
    for name, low, place in (
        ("silu", -0.2785, -1.2785),
        ("hard_swish", -0.375, -1.5),
        ("mish", -0.3088, -1.1924),
        ("hard_mish", -0.5, -1.0),
        ("relu", 0.0, None),
    ):
        y = activation(name)(x.clone())
        assert y.min() == pytest.approx(low, abs=5e-5), name
        assert place is None or x[y.argmin()] == pytest.approx(place, abs=1e-3), name
    assert set(ACTIVATIONS) == {"relu", "silu", "mish", "hard_swish", "hard_mish", "none"}
    with pytest.raises(ValueError, match="must be one of"):
        activation("gelu")


@pytest.mark.parametrize(
    "build, out",
    [
        (lambda: Residual(8, 6, 2, act="mish"), (6, 8, 6)),
        (lambda: Residual(8, 8, act="hard_mish"), (8, 15, 12)),
        (lambda: Residual(8, 12, 2, inner=3), (12, 8, 6)),
        (lambda: conv_norm_act(8, 5, 3, 2, act="hard_swish"), (5, 8, 6)),
        (lambda: conv_norm_act(8, 6, 5, dilation=2, groups=2, act="none"), (6, 15, 12)),
        (lambda: SqueezeExcite(8, 4), (8, 15, 12)),
        (lambda: ASPP(8, 6, (1, 3, 40)), (6, 15, 12)),
        (lambda: ContextMixer(8), (8, 15, 12)),
        (lambda: RFB(16, 6), (6, 15, 12)),
        (lambda: LinearRFB(8, residual=True), (8, 15, 12)),
        (lambda: DropBlock(0.2, 3), (8, 15, 12)),
        (lambda: RepVGGBlock(8, 6, 2, 2), (6, 8, 6)),
    ],
)
def test_shapes_gradients_and_scripts(build, out):
    torch.manual_seed(0)
    block = build()
    x = torch.randn(2, 16 if isinstance(block, RFB) else 8, 15, 12, requires_grad=True)
    y = block(x)
    assert y.shape == (2, *out)
    y.square().sum().backward()
    assert x.grad.isfinite().all() and all(p.grad is not None for p in block.parameters())
    block.eval()
    assert torch.allclose(block(x)[:1], block(x[:1]), atol=1e-5)  # samples do not mix in evaluation


@pytest.mark.parametrize(
    "call",
    [
        lambda: conv_norm_act(3, 4, 2),
        lambda: SqueezeExcite(4, 0),
        lambda: ASPP(4, 4, ()),
        lambda: ContextMixer(3),
        lambda: RFB(7, 4),
        lambda: LinearRFB(6),
        lambda: Residual(4, 0),
    ],
)
def test_blocks_refuse(call):
    with pytest.raises(ValueError, match="must"):
        call()


def test_receptive_fields_of_rfb():
    for block, sides in ((ripen(RFB(16, 8)), (3, 7, 11)), (LinearRFB(8), (1, 3, 7, 11))):
        for conv in (m for m in block.modules() if isinstance(m, nn.Conv2d)):
            nn.init.ones_(conv.weight)
        branches = block.branches if isinstance(block, RFB) else [getattr(block, f"branch_{n}") for n in range(4)]
        for branch, side in zip(branches, sides, strict=True):
            x = torch.zeros(1, 16 if isinstance(block, RFB) else 8, 21, 21, requires_grad=True)
            chain = [m for m in branch.modules() if isinstance(m, nn.Conv2d)]
            y = x
            for conv in chain:
                y = conv(y)
            y[0, 0, 10, 10].backward()
            assert int((x.grad[0, 0].abs().amax(0) > 0).sum()) <= side
            assert int((x.grad[0, 0].abs() > 0).any(0).nonzero().max() - (x.grad[0, 0].abs() > 0).any(0).nonzero().min()) + 1 == side
    assert blocks.LinearRFB(256).branch_3[1].kernel_size == (5, 5)
    assert sum(p.numel() for p in LinearRFB(256).parameters()) == 315_968


@pytest.mark.parametrize(
    "ours, theirs",
    [
        (lambda: Residual(8, 6, 2), lambda: BasicBlock(8, 6, 2)),
        (lambda: Residual(8, 8), lambda: BasicBlock(8, 8)),
        (lambda: Residual(8, 12, 2, inner=3), lambda: Bottleneck(8, 3, 2)),
        (lambda: Residual(12, 12, inner=3), lambda: Bottleneck(12, 3)),
    ],
)
def test_residual_equals_the_official_blocks(ours, theirs):
    """With the tensors in the order of the layers: the same function as the blocks that load the published files."""
    torch.manual_seed(0)
    a, b = ripen(ours()), ripen(theirs())
    assert [tuple(v.shape) for v in a.state_dict().values()] == [tuple(v.shape) for v in b.state_dict().values()]
    a.load_state_dict(dict(zip(a.state_dict(), b.state_dict().values(), strict=True)))
    x = torch.randn(2, next(a.parameters()).shape[1], 9, 14)
    assert_near(a(x), b(x).detach().numpy(), tolerance=1e-6)


# --- folding, the awkward cases ------------------------------------------------------------------------------------


class Aliased(nn.Module):
    """Two convolutions that share one weight, each with its own norm; the norms have two names; a map that also leaves the net."""

    def __init__(self):
        super().__init__()
        self.na, self.nb, self.nc = nn.BatchNorm2d(6), nn.BatchNorm2d(6), nn.BatchNorm2d(6)
        self.a, self.b, self.c = (nn.Conv2d(6, 6, 3, padding=1, bias=False) for _ in range(3))
        self.b.weight = self.a.weight
        self.chain = nn.Sequential(self.a, self.na, nn.ReLU(), self.b, self.nb)

    def forward(self, x):
        y = self.c(self.chain(x))
        return y, self.nc(y)


def test_folding_with_shared_weights_and_second_names():
    torch.manual_seed(0)
    net, x = ripen(Aliased()), torch.randn(2, 6, 9, 7)
    assert foldable(net, (9, 7), 6) == [("a", "na"), ("b", "nb")]  # c's output leaves the net: its norm stays
    made = fold_batchnorm(net, (9, 7), 6)
    for value, expected in zip(made(x), net(x), strict=True):
        assert_near(value, expected.detach().numpy(), tolerance=1e-5)
    net.nb.train()
    with pytest.raises(ValueError, match="nb is in training mode"):
        fold_batchnorm(net, (9, 7), 6)


def test_folding_leaves_parametrised_weights_alone():
    net = ripen(nn.Sequential(nn.utils.parametrizations.weight_norm(nn.Conv2d(3, 4, 3, bias=False)), nn.BatchNorm2d(4)))
    assert foldable(net) == []
    x = torch.randn(1, 3, 8, 8)
    assert torch.equal(fold_batchnorm(net)(x), net(x))


@pytest.mark.parametrize("dtype, tolerance", [(torch.float64, 1e-12), (torch.float32, 1e-5), (torch.bfloat16, 0.05)])
def test_folding_keeps_the_type(dtype, tolerance):
    torch.manual_seed(0)
    net = ripen(nn.Sequential(conv_norm_act(3, 8, 3, 2), Residual(8, 8, act="mish"))).to(dtype)
    made, x = fold_batchnorm(net), torch.randn(2, 3, 16, 24, dtype=dtype)
    assert all(p.dtype == dtype for p in made.parameters())
    assert_near(made(x).double(), net(x).double().detach().numpy(), tolerance=tolerance)


@pytest.mark.parametrize(
    "build",
    [
        lambda: HRNet(6, 4, modules=(1, 2, 1), blocks=1, stem=8, layer1_blocks=2),
        lambda: simple_baseline_small(4),
        lambda: nn.Sequential(RepVGGBlock(3, 8, 2), RepVGGBlock(8, 8), RFB(8, 5)),
    ],
)
@pytest.mark.parametrize("channels_last", [True, False])
def test_prepared_networks_are_the_same_function(build, channels_last):
    torch.manual_seed(0)
    net = ripen(build()).train()
    keys = list(net.state_dict())
    made = prepare(net, channels_last=channels_last)
    x = torch.randn(2, 3, 64, 96)
    assert not made.training and not any(p.requires_grad for p in made.parameters()) and not any(isinstance(m, RepVGGBlock) for m in made.modules())
    assert net.training and list(net.state_dict()) == keys, "the given net changed"
    with torch.no_grad():
        assert_near(made(x), net.eval()(x).numpy(), tolerance=1e-5)


def test_dropblock_in_half_precision_keeps_the_mean():
    torch.manual_seed(0)
    x = torch.ones(8, 16, 40, 40, dtype=torch.bfloat16)
    y, mask = drop_squares(x, torch.rand(x.shape) < 0.002, 7)
    assert y.dtype == torch.bfloat16 and y.float().mean() == pytest.approx(1, abs=0.005)
    assert drop_squares(x[:1, :1], torch.ones(1, 1, 40, 40), 7)[0].abs().max() == 0  # everything dropped: zeros, not NaN


@pytest.mark.parametrize(
    "build, left", [(lambda: higherhrnet_small(4), 0), (lambda: stacked_hourglass(1, 4), 17)]
)  # the hourglass: norm before the convolution
def test_preparing_networks_with_several_outputs(build, left):
    torch.manual_seed(0)
    net, x = ripen(build()), torch.randn(2, 3, 64, 64)
    made = prepare(net)
    with torch.no_grad():
        pairs = list(zip(tree_leaves(made(x)), tree_leaves(net(x)), strict=True))
    assert pairs and sum(isinstance(m, nn.BatchNorm2d) for m in made.modules()) == left
    for value, expected in pairs:
        assert_near(value, expected.numpy(), tolerance=1e-5)
