"""Networks in use: the eager model against the prepared one (and onnxruntime where it is installed), RepVGG's two forms; ratios in one process.

The last column is the rate of multiply-adds as a share of the best this machine does in one operation on the same threads (a large matrix product or
a wide 3x3 convolution): eager at 60 % can become 1.67 times as fast and no more, unless it multiplies less. With timm installed its HRNet-W32 trunk is
measured beside ours, per multiply-add.

python bench/bench_nets.py                       # HRNet-W32 at 256x192, batch 1 and 8, 2 threads; a few minutes
python bench/bench_nets.py --batch 1 --only hrnet_w32 repvgg_a0
"""

import argparse
import datetime
import importlib.util
import json
import math
import os
import platform
import sys
import tempfile
import warnings
from pathlib import Path

import torch
from timing import milliseconds
from torch import nn

from posetutor.nets.blocks import RepVGGBlock, fuse_repvgg, prepare
from posetutor.nets.hrnet import hrnet_small, hrnet_w32
from posetutor.nets.simple_baseline import count_macs, simple_baseline

GOALS = {"prepared": 1.2, "onnxruntime": 1.6}  # times faster than eager, for HRNet-W32
TOLERANCE = 1e-4  # of the largest output


def repvgg_a0() -> nn.Module:
    """The trunk of RepVGG-A0."""
    widths, counts = (48, 96, 192, 1280), (2, 4, 14, 1)
    layers, before = [RepVGGBlock(3, 48, 2)], 48
    for width, count in zip(widths, counts, strict=True):
        for n in range(count):
            layers.append(RepVGGBlock(before, width, 2 if n == 0 else 1))
            before = width
    return nn.Sequential(*layers)


NETS = {
    "hrnet_w32": lambda: hrnet_w32(17),
    "hrnet_small": lambda: hrnet_small(17),
    "simple_baseline_50": lambda: simple_baseline(50, 17),
    "repvgg_a0": repvgg_a0,
}


def peak_rate(n: int = 2048, channels: int = 256) -> float:
    """Multiply-adds per ms of the best single operation in float32, a product of (n, n) matrices or a 3x3 convolution: what the machine can do."""
    a, b = torch.randn(2, n, n)
    conv = nn.Conv2d(channels, channels, 3, padding=1, bias=False).eval().requires_grad_(False)
    maps = torch.randn(8, channels, 8, 6)
    product = n**3 / min(milliseconds(lambda: a @ b, 1, warm=1) for _ in range(10))
    with torch.inference_mode():
        return max(product, conv.weight.numel() * maps[:, 0].numel() / min(milliseconds(lambda: conv(maps), 10, warm=2) for _ in range(10)))


def ripe(net: nn.Module) -> nn.Module:
    """Norms as after training, so that folding has something to do."""
    generator = torch.Generator().manual_seed(0)
    for norm in (m for m in net.modules() if isinstance(m, nn.BatchNorm2d)):
        for tensor, low, high in ((norm.running_mean, -0.2, 0.2), (norm.running_var, 0.8, 1.25), (norm.weight, 0.8, 1.2), (norm.bias, -0.2, 0.2)):
            tensor.data.copy_(low + (high - low) * torch.rand(tensor.shape, generator=generator))
    return net.eval()


def onnx_session(net: nn.Module, images: torch.Tensor, threads: int):
    """The network in onnxruntime as a function of the same tensor, or None where the libraries are missing."""
    if any(importlib.util.find_spec(name) is None for name in ("onnx", "onnxscript", "onnxruntime")):
        return None
    import onnxruntime

    with tempfile.TemporaryDirectory() as folder:
        path = str(Path(folder) / "net.onnx")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            torch.onnx.export(net, (images,), path, input_names=["images"], dynamo=True, verbose=False)
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    return lambda x: torch.from_numpy(session.run(None, {"images": x.numpy()})[0])


def forms(name: str, net: nn.Module, images: torch.Tensor, threads: int, onnx: bool) -> dict:
    """The same function in its forms; the first is the reference."""
    made = {"eager": net, "prepared": prepare(net)}
    if name.startswith("repvgg"):
        made["fused"] = fuse_repvgg(net)
    session = onnx_session(prepare(net, channels_last=False), images, threads) if onnx else None
    return made if session is None else {**made, "onnxruntime": session}


def against_timm(images: torch.Tensor, rounds: int) -> str:
    """Our HRNet-W32 and timm's trunk of it, both eager: time per multiply-add."""
    from timm.models.hrnet import hrnet_w32 as timm_hrnet_w32

    nets, best = {"ours": hrnet_w32(17).eval(), "timm": timm_hrnet_w32(pretrained=False, features_only=True).eval()}, {}
    with torch.inference_mode():
        for _ in range(rounds):
            for name, net in nets.items():
                best[name] = min(best.get(name, math.inf), milliseconds(lambda net=net: net(images), 2, warm=1))
    share = {name: best[name] / count_macs(net, tuple(images.shape[-2:])) for name, net in nets.items()}
    return f"time per multiply-add, ours / timm's trunk: {share['ours'] / share['timm']:.2f} (goal <= 1)"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", nargs="*", choices=list(NETS), default=["hrnet_w32", "repvgg_a0"])
    parser.add_argument("--batch", type=int, nargs="*", default=[1, 8])
    parser.add_argument("--size", type=int, nargs=2, default=[256, 192], metavar=("H", "W"))
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--without-onnx", action="store_true", help="leave onnxruntime out, whose export takes a minute")
    parser.add_argument("--json", help="also write the numbers to this file")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    print(
        f"{'net':20s} {'batch':>5s} {'form':12s} {'ms':>8s} {'faster':>7s} {'difference':>11s} {'of peak':>10s}   goal     ({args.threads} threads, {args.size[0]}x{args.size[1]}, float32, torch {torch.__version__})"
    )
    rows, missed, rate = [], [], peak_rate()
    for name in args.only:
        net = ripe(NETS[name]())
        macs = count_macs(net, tuple(args.size))
        for batch in args.batch:
            images = torch.randn(batch, 3, *args.size, generator=torch.Generator().manual_seed(0))
            made, best = forms(name, net, images, args.threads, not args.without_onnx), {}
            with torch.inference_mode():
                reference = net(images)
                far = {form: float((call(images) - reference).abs().max() / reference.abs().max()) for form, call in made.items()}
                for _ in range(args.rounds):  # interleaved, so that a busy moment hits all of them
                    for form, call in made.items():
                        best[form] = min(best.get(form, math.inf), milliseconds(lambda call=call, images=images: call(images), 2, warm=1))
            for form, spent in best.items():
                faster, goal = best["eager"] / spent, GOALS.get(form) if name == "hrnet_w32" else None
                late = (goal is not None and faster < goal) or far[form] > TOLERANCE
                missed += [f"{name} {form}"] * late
                share = batch * macs / spent / rate
                rows.append(dict(net=name, batch=batch, form=form, ms=spent, faster=faster, difference=far[form], of_peak=share))
                print(
                    f"{name:20s} {batch:5d} {form:12s} {spent:8.1f} {faster:6.2f}x {far[form]:11.1e} {100 * share:8.0f} %   {f'>= {goal:g} x' if goal else '-'}{'   MISSED' if late else ''}",
                    flush=True,
                )
    if "hrnet_w32" in args.only and importlib.util.find_spec("timm"):
        print(against_timm(torch.randn(1, 3, *args.size), args.rounds))
    if args.json:
        record = dict(
            date=datetime.date.today().isoformat(),
            machine=platform.machine(),
            load=[round(x, 1) for x in os.getloadavg()],
            size=args.size,
            threads=args.threads,
            cores=os.cpu_count(),
            torch=torch.__version__,
            rows=rows,
        )
        with open(args.json, "w", encoding="utf-8") as file:
            json.dump(record, file, indent=1)
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
