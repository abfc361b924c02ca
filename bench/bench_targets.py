"""Heatmap targets: our rendering against the two usual per-joint loops, and against writing the tensor once.

    python bench/bench_targets.py            # (64, 17, 64, 48), 2 threads, one process; about 10 s
"""

import argparse
import datetime
import json
import os
import platform

import numpy as np
import torch
from timing import milliseconds

from posetutor.codecs.gaussian import render_gaussian


def naive_loop(xy, size, sigma):
    """The equation, joint by joint, over the whole map (torch)."""
    maps = torch.zeros(*xy.shape[:2], *size)
    rows, columns = torch.meshgrid(torch.arange(size[0]), torch.arange(size[1]), indexing="ij")
    for b in range(xy.shape[0]):
        for k in range(xy.shape[1]):
            x, y = xy[b, k]
            maps[b, k] = torch.exp(-((columns - x) ** 2 + (rows - y) ** 2) / (2 * sigma**2))
    return maps


def naive_numpy_loop(xy, size, sigma):
    """The same loop in numpy, which starts its calls faster."""
    points = xy.numpy()
    maps = np.zeros((*points.shape[:2], *size), np.float32)
    rows, columns = np.mgrid[: size[0], : size[1]].astype(np.float32)
    for b, k in np.ndindex(points.shape[:2]):
        x, y = points[b, k]
        maps[b, k] = np.exp(-((columns - x) ** 2 + (rows - y) ** 2) / (2 * sigma**2))
    return torch.from_numpy(maps)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--joints", type=int, default=17)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--json", help="also write the numbers to this file")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    size, sigma = (64, 48), 2.0
    xy = torch.rand(args.batch, args.joints, 2, generator=torch.Generator().manual_seed(0)) * torch.tensor([47.0, 63.0])
    shape = (args.batch, args.joints, *size)
    difference = (render_gaussian(xy, size, sigma) - naive_loop(xy, size, sigma)).abs().max().item()
    rounds = []
    for _ in range(5):  # interleaved, so that a busy moment hits all of them
        rounds.append(
            dict(
                ours=milliseconds(lambda: render_gaussian(xy, size, sigma), 40),
                write=milliseconds(lambda: torch.full(shape, 0.5), 40),
                naive=milliseconds(lambda: naive_loop(xy, size, sigma), 3),
                naive_numpy=milliseconds(lambda: naive_numpy_loop(xy, size, sigma), 3),
            )
        )
    best = {key: min(r[key] for r in rounds) for key in rounds[0]}
    ratios = {
        "speedup_over_loop": best["naive"] / best["ours"],
        "speedup_over_numpy_loop": best["naive_numpy"] / best["ours"],
        "times_one_write": best["ours"] / best["write"],
    }
    print(f"targets {shape}, sigma {sigma:g}, float32, {args.threads} threads, torch {torch.__version__}, largest difference {difference:.1e}")
    print("  ".join(f"{key} {value:.3f} ms" for key, value in best.items()))
    print(f"{ratios['speedup_over_loop']:.1f} x faster than the torch loop (goal 8), {ratios['speedup_over_numpy_loop']:.1f} x than the numpy loop, {ratios['times_one_write']:.2f} x one write of the tensor (goal 3)")
    if args.json:
        record = dict(date=datetime.date.today().isoformat(), machine=platform.machine(), load=[round(x, 1) for x in os.getloadavg()], shape=shape, threads=args.threads, cores=os.cpu_count(), torch=torch.__version__, milliseconds=best, ratios=ratios)
        with open(args.json, "w", encoding="utf-8") as file:
            json.dump(record, file, indent=1)
    assert difference < 1e-5


if __name__ == "__main__":
    main()
