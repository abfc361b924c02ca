"""Heatmap decoders: ours against per-joint loops as the published code computes (numpy and OpenCV), and against numpy.argmax alone.

    python bench/bench_decoders.py           # (64, 17, 64, 48) float32, 2 threads, one process; about half a minute
    python bench/bench_decoders.py --only dark dark_official --json decoders.json

To add a decoder, append a row to CASES: name, ours, the naive loop, the smallest speed-up and the largest multiple of numpy.argmax we
promise (None: no promise). The loops return what ours returns, and are compared with it first where `same` is given (px).
"""

import argparse
import datetime
import json
import math
import os
import platform
import resource
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass

import cv2
import numpy as np
import torch
from timing import milliseconds

from posetutor.codecs.dark import decode_dark, decode_dark_official
from posetutor.codecs.gaussian import decode_argmax, decode_log_parabola, decode_quarter_offset, render_gaussian
from posetutor.codecs.offsets import decode_hough, render_disk
from posetutor.codecs.second_order import decode_ccm, decode_gaussian_fit, decode_parabola, decode_paraboloid, fit_gaussian
from posetutor.codecs.udp import decode_combined, decode_udp, decode_udp_official, render_combined

SHAPE, SIGMA, NOISE, RADIUS = (64, 17, 64, 48), 2.0, 0.02, 4.0


# --- the loops, written as the published code computes -------------------------------------------------------------


def loop_argmax(maps):
    """All maximum cells by one numpy call, as in HRNet's get_max_preds."""
    height, width = maps.shape[-2:]
    flat = maps.reshape(*maps.shape[:2], -1)
    peak = flat.argmax(2)
    score = flat.max(2)
    xy = np.stack([peak % width, peak // width], axis=-1).astype(np.float32)
    return xy * (score > 0)[..., None], score


def loop_quarter(maps):
    """HRNet: a quarter towards the higher neighbour, joint by joint."""
    xy, score = loop_argmax(maps)
    height, width = maps.shape[-2:]
    for b in range(maps.shape[0]):
        for k in range(maps.shape[1]):
            x, y = int(math.floor(xy[b, k, 0] + 0.5)), int(math.floor(xy[b, k, 1] + 0.5))
            if 1 < x < width - 1 and 1 < y < height - 1:
                hm = maps[b, k]
                xy[b, k] += np.sign(np.array([hm[y, x + 1] - hm[y, x - 1], hm[y + 1, x] - hm[y - 1, x]])) * 0.25
    return xy, score


def loop_second_peak(maps):
    """CPN: the highest cell is removed and the next one found."""
    xy, score = loop_argmax(maps)
    for b in range(maps.shape[0]):
        for k in range(maps.shape[1]):
            hm = maps[b, k].copy()
            x, y = int(xy[b, k, 0]), int(xy[b, k, 1])
            hm[y, x] = 0
            second_y, second_x = np.unravel_index(hm.argmax(), hm.shape)
            away = np.array([second_x - x, second_y - y], dtype=np.float32)
            length = np.linalg.norm(away)
            if length > 0:
                xy[b, k] += 0.25 * away / length
    return xy, score


def loop_parabola(maps, log=False):
    """CCM: the vertex through three values on each axis, joint by joint."""
    xy, score = loop_argmax(maps)
    height, width = maps.shape[-2:]
    for b in range(maps.shape[0]):
        for k in range(maps.shape[1]):
            x, y = int(xy[b, k, 0]), int(xy[b, k, 1])
            if 0 < x < width - 1 and 0 < y < height - 1:
                patch = maps[b, k, y - 1 : y + 2, x - 1 : x + 2]
                patch = np.log(np.maximum(patch, 1e-10)) if log else patch
                for axis, (low, high) in enumerate(((patch[1, 0], patch[1, 2]), (patch[0, 1], patch[2, 1]))):
                    bend = 2 * patch[1, 1] - low - high
                    if bend > 1e-9:
                        xy[b, k, axis] += (high - low) / (2 * bend)
    return xy, score


def loop_blur(maps, kernel):
    """DarkPose: each map padded with zeros, blurred by OpenCV, cropped, and its maximum restored."""
    border = (kernel - 1) // 2
    out = np.empty_like(maps)
    height, width = maps.shape[-2:]
    for b in range(maps.shape[0]):
        for k in range(maps.shape[1]):
            highest = maps[b, k].max()
            padded = np.zeros((height + 2 * border, width + 2 * border), dtype=np.float32)
            padded[border : border + height, border : border + width] = maps[b, k]
            out[b, k] = cv2.GaussianBlur(padded, (kernel, kernel), 0)[border : border + height, border : border + width]
            out[b, k] *= highest / out[b, k].max()
    return out


def loop_dark(maps, kernel=11):
    """DarkPose: blur, logarithm, and one Taylor step with a matrix inverse, joint by joint."""
    xy, score = loop_argmax(maps)
    logs = np.log(np.maximum(loop_blur(maps, kernel), 1e-10))
    height, width = maps.shape[-2:]
    for b in range(maps.shape[0]):
        for k in range(maps.shape[1]):
            x, y = int(xy[b, k, 0]), int(xy[b, k, 1])
            hm = logs[b, k]
            if 1 < x < width - 2 and 1 < y < height - 2:
                slope = np.array([[0.5 * (hm[y][x + 1] - hm[y][x - 1])], [0.5 * (hm[y + 1][x] - hm[y - 1][x])]])
                xx = 0.25 * (hm[y][x + 2] - 2 * hm[y][x] + hm[y][x - 2])
                yy = 0.25 * (hm[y + 2][x] - 2 * hm[y][x] + hm[y - 2][x])
                mixed = 0.25 * (hm[y + 1][x + 1] - hm[y - 1][x + 1] - hm[y + 1][x - 1] + hm[y - 1][x - 1])
                if xx * yy - mixed**2 != 0:
                    step = -np.linalg.inv(np.array([[xx, mixed], [mixed, yy]])) @ slope
                    xy[b, k] += step[:, 0]
    return xy, score


def loop_ccm(maps, kernel=11):
    """CCM: blur whole maps, then the parabola of the blurred values."""
    return loop_parabola(loop_blur(maps, kernel))


def loop_least_squares(maps, radius=6):
    """The usual note: weighted logarithms of a window, full QR, explicit inverse; zero and negative cells left out."""
    xy, score = loop_argmax(maps)
    height, width = maps.shape[-2:]
    for b in range(maps.shape[0]):
        for k in range(maps.shape[1]):
            cx, cy = int(xy[b, k, 0]), int(xy[b, k, 1])
            x, y = np.meshgrid(np.arange(max(cx - radius, 0), min(cx + radius + 1, width)), np.arange(max(cy - radius, 0), min(cy + radius + 1, height)))
            f = maps[b, k][y, x].astype(np.float64).ravel()
            used = f > 1e-6 * score[b, k]
            f, u, v = f[used], (x.ravel() - cx)[used], (y.ravel() - cy)[used]
            a, big = f * np.log(f), np.stack([f, f * u, f * v, f * u**2, f * v**2], axis=1)
            q, r = np.linalg.qr(big, mode="complete")
            c = np.linalg.inv(r[:5]) @ (q.T @ a)[:5]
            if c[3] < 0 and c[4] < 0:
                xy[b, k] += np.array([-c[1] / (2 * c[3]), -c[2] / (2 * c[4])]).clip(-2, 2)
    return xy, score


def loop_udp(maps, kernel=7):
    """UDP repository: mirrored blur, min-max, clip, logarithm continued over the border, compact differences; joint by joint."""
    xy, score = loop_argmax(maps)
    for b in range(maps.shape[0]):
        for k in range(maps.shape[1]):
            x, y = int(xy[b, k, 0]), int(xy[b, k, 1])
            hm = cv2.GaussianBlur(maps[b, k], (kernel, kernel), 0)
            hm = (hm - hm.min()) / (hm.max() - hm.min()) * score[b, k]
            n = np.pad(np.log(np.clip(hm, 1e-3, 50)), 1, mode="edge")[y : y + 3, x : x + 3]
            slope = np.array([(n[1, 2] - n[1, 0]) / 2, (n[2, 1] - n[0, 1]) / 2])
            mixed = (n[2, 2] - n[1, 2] - n[2, 1] + 2 * n[1, 1] - n[1, 0] - n[0, 1] + n[0, 0]) / 2
            xx, yy = n[1, 2] - 2 * n[1, 1] + n[1, 0], n[2, 1] - 2 * n[1, 1] + n[0, 1]
            if xx * yy - mixed**2 != 0:
                xy[b, k] -= np.linalg.inv(np.array([[xx, mixed], [mixed, yy]])) @ slope
    return xy, score


def loop_combined(maps, radius=RADIUS):
    """UDP repository: class map blurred over 15 cells, offset maps over 7, offset read at the top; joint by joint."""
    joints = maps.shape[1] // 3
    xy, score = np.empty((maps.shape[0], joints, 2), np.float32), np.empty((maps.shape[0], joints), np.float32)
    for b in range(maps.shape[0]):
        for k in range(joints):
            level = cv2.GaussianBlur(maps[b, 3 * k], (15, 15), 0)
            offset = [cv2.GaussianBlur(maps[b, 3 * k + n], (7, 7), 0) for n in (1, 2)]
            y, x = np.unravel_index(level.argmax(), level.shape)
            xy[b, k], score[b, k] = (x + radius * offset[0][y, x], y + radius * offset[1][y, x]), level[y, x]
    return xy, score


def loop_hough(maps, radius=RADIUS):
    """G-RMI: every cell's vote shared among four cells by numpy, joint by joint; then the tallest pile's centre of mass."""
    joints, (height, width) = maps.shape[1] // 3, maps.shape[-2:]
    xy, score = np.empty((maps.shape[0], joints, 2), np.float32), np.empty((maps.shape[0], joints), np.float32)
    rows, columns = np.mgrid[:height, :width]
    for b in range(maps.shape[0]):
        for k in range(joints):
            chance, dx, dy = maps[b, 3 * k : 3 * k + 3]
            to_x, to_y = columns + dx, rows + dy
            left, top = np.floor(to_x), np.floor(to_y)
            votes = np.zeros((height + 4, width + 4))  # a rim of two cells for the centre of mass
            for near_x in (left, left + 1):
                for near_y in (top, top + 1):
                    inside = (near_x >= 0) & (near_x < width) & (near_y >= 0) & (near_y < height)
                    share = chance * (1 - np.abs(to_x - near_x)) * (1 - np.abs(to_y - near_y))
                    np.add.at(votes, (near_y[inside].astype(int) + 2, near_x[inside].astype(int) + 2), share[inside])
            y, x = np.unravel_index(votes.argmax(), votes.shape)
            pile = votes[y - 2 : y + 3, x - 2 : x + 3] / (math.pi * radius**2)
            score[b, k], near = pile.sum(), np.arange(-2, 3)
            xy[b, k] = x - 2 + (pile.sum(0) * near).sum() / score[b, k], y - 2 + (pile.sum(1) * near).sum() / score[b, k]
    return xy, score


# --- the table -------------------------------------------------------------------------------------------------------


def sample_maps(shape=SHAPE):
    """Gaussians with white noise, the same ones every time."""
    xy, g = sample_points(shape)
    return render_gaussian(xy, shape[2:], SIGMA) + NOISE * torch.randn(shape, generator=g)


def sample_points(shape):
    g = torch.Generator().manual_seed(0)
    return torch.tensor([8.0, 8.0]) + torch.rand(*shape[:2], 2, generator=g) * torch.tensor([shape[3] - 17.0, shape[2] - 17.0]), g


def sample_combined(shape=SHAPE):
    """UDP's three maps per joint, with white noise."""
    xy, g = sample_points(shape)
    maps = render_combined(xy, shape[2:], RADIUS)
    return maps + NOISE * torch.randn(maps.shape, generator=g)


def sample_disks(shape=SHAPE):
    """G-RMI's three maps per joint as a trained network gives them: the class nearly 0 or 1, noisy vectors everywhere."""
    xy, g = sample_points(shape)
    maps = render_disk(xy, shape[2:], RADIUS).unflatten(1, (-1, 3))
    chance = 0.001 + 0.998 * maps[:, :, :1]
    return torch.cat([chance, maps[:, :, 1:] + NOISE * RADIUS * torch.randn(maps[:, :, 1:].shape, generator=g)], 2).flatten(1, 2)


@dataclass(frozen=True)
class Case:
    """One row: ours against its loop. speedup, argmax: what we promise. same: decoder that must equal the loop, and the tolerance in px. sample: its maps."""

    name: str
    ours: Callable
    naive: Callable
    speedup: float | None = None
    argmax: float | None = None
    same: tuple[Callable, float] | None = None
    sample: Callable = sample_maps


CASES = [
    Case("argmax", decode_argmax, loop_argmax, None, 3, (decode_argmax, 0)),
    Case("quarter", decode_quarter_offset, loop_quarter, 4, 3, (lambda m: decode_quarter_offset(m, variant="hrnet"), 0)),
    Case("second_peak", lambda m: decode_quarter_offset(m, variant="second_peak"), loop_second_peak),
    Case("log_parabola", decode_log_parabola, lambda m: loop_parabola(m, log=True), 4),
    Case("parabola", decode_parabola, loop_parabola, 4, None, (decode_parabola, 1e-4)),
    Case("paraboloid", decode_paraboloid, loop_parabola, 4),
    Case("ccm", decode_ccm, loop_ccm, 15, 8),
    Case("dark", decode_dark, loop_dark, 15, 8, (decode_dark_official, 1e-4)),
    Case("dark_official", decode_dark_official, loop_dark),
    Case("udp", decode_udp, loop_udp, 15, 8, (decode_udp_official, 1e-4)),
    Case("udp_official", decode_udp_official, loop_udp),
    Case("combined", lambda m: decode_combined(m, RADIUS), loop_combined, None, None, (lambda m: decode_combined(m, RADIUS, variant="official"), 1e-4), sample_combined),
    Case("hough", lambda m: decode_hough(m, RADIUS), loop_hough, 15, None, (lambda m: decode_hough(m, RADIUS, threshold=0.0), 1e-3), sample_disks),
    Case("least_squares", decode_gaussian_fit, loop_least_squares, 15, None, (lambda m: (fit_gaussian(m.double(), threshold=0, passes=0).xy.float(), None), 1e-3)),
]


def extra_memory(name):
    """Largest memory one call adds, in units of the heatmaps; measured in a process of its own (Linux)."""
    code = f"import bench_decoders as b; print(b._peak({name!r}))"
    done = subprocess.run([sys.executable, "-c", code], cwd=os.path.dirname(os.path.abspath(__file__)), capture_output=True, text=True, check=True)
    return float(done.stdout.split()[-1])


def _peak(name):
    torch.set_num_threads(1)
    case = next(c for c in CASES if c.name == name)
    maps = case.sample()
    for _ in range(3):
        case.ours(maps[:1])  # imports and tables
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    filler = np.ones(max(0, before * 1024 - _resident()) + 2**20, np.uint8)  # fill up to the highest level so far, so that any growth shows
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    case.ours(maps)
    after = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    del filler  # kept until here: freed earlier, it would give its pages to the call
    return (after - before) * 1024 / (maps.numel() * 4)


def _resident():
    with open("/proc/self/statm", encoding="ascii") as file:
        return int(file.read().split()[1]) * resource.getpagesize()


def compare(case, maps):
    """Largest difference (px) between the loop and the decoder that claims to be the same, None without one."""
    if case.same is None:
        return None
    decode, tolerance = case.same
    difference = float((decode(maps)[0] - torch.from_numpy(case.naive(maps.numpy())[0])).abs().max())
    assert difference <= tolerance, f"{case.name}: differs from its loop by {difference:.2e} px"
    return difference


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", nargs="*", help="names of the decoders to run")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--json", help="also write the numbers to this file")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    cv2.setNumThreads(args.threads)
    chosen = [c for c in CASES if not args.only or c.name in args.only]
    samples = {sample: sample() for sample in {sample_maps, *(c.sample for c in chosen)}}
    flat = samples[sample_maps].flatten(2).numpy()
    differences = {c.name: compare(c, samples[c.sample]) for c in chosen}
    best = {}
    with torch.inference_mode():
        for _ in range(args.rounds):  # interleaved, so that a busy moment hits all of them
            times = {("numpy.argmax", "ours"): milliseconds(lambda: flat.argmax(-1), 20)}
            for case in chosen:
                maps, array = samples[case.sample], samples[case.sample].numpy()
                times[case.name, "ours"] = milliseconds(lambda case=case, maps=maps: case.ours(maps), 12)
                times[case.name, "naive"] = milliseconds(lambda case=case, array=array: case.naive(array), 1, warm=0)
            best = {key: min(value, best.get(key, math.inf)) for key, value in times.items()}
    base = best["numpy.argmax", "ours"]
    print(f"decoders on {SHAPE}, float32, {args.threads} threads, torch {torch.__version__}, numpy {np.__version__}; numpy.argmax alone {base:.2f} ms")
    print(f"{'decoder':15s} {'ours ms':>8s} {'loop ms':>8s} {'speed-up':>9s} {'x argmax':>9s} {'memory':>7s}   goals")
    rows, missed = {}, []
    for case in chosen:
        ours, naive = best[case.name, "ours"], best[case.name, "naive"]
        row = dict(ms=ours, loop_ms=naive, speedup=naive / ours, times_argmax=ours / base, memory=extra_memory(case.name), difference=differences[case.name])
        goals = [words.format(goal) for words, goal in ((">= {:g} x", case.speedup), ("<= {:g} argmax", case.argmax)) if goal is not None]
        late = [case.speedup is not None and row["speedup"] < case.speedup, case.argmax is not None and row["times_argmax"] > case.argmax, row["memory"] > 3]
        missed += [case.name] * any(late)
        rows[case.name] = row
        print(f"{case.name:15s} {ours:8.2f} {naive:8.1f} {row['speedup']:8.1f}x {row['times_argmax']:8.1f}x {row['memory']:6.1f}x   {', '.join(goals) or '-'}{'   MISSED' if any(late) else ''}")
    if args.json:
        record = dict(date=datetime.date.today().isoformat(), machine=platform.machine(), load=[round(x, 1) for x in os.getloadavg()], shape=SHAPE, threads=args.threads, cores=os.cpu_count(), torch=torch.__version__, numpy=np.__version__, argmax_ms=base, decoders=rows)
        with open(args.json, "w", encoding="utf-8") as file:
            json.dump(record, file, indent=1)
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
