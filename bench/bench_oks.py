"""OKS, suppression and AP against the loops of the official code in one process: the same numbers, and how long each takes.

    python bench/bench_oks.py [--images 5000] [--people 1000] [--out bench/results/bench_oks.json]

Ratios are peer seconds / ours in CPU time of this process, one thread, the best of several calls that take turns. Memory: what one table of
people x people adds to the process, in units of that table, measured in a process of its own (Linux).
"""

import argparse
import contextlib
import copy
import datetime
import io
import json
import os
import platform
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from posetutor.core import write_atomic
from posetutor.metrics.coco_eval import SCORE_NAMES, evaluate_coco, evaluate_stepwise, evaluate_tensors
from posetutor.metrics.oks import oks_matrix, oks_nms, soft_oks_nms
from posetutor.skeletons import COCO_17

K = COCO_17.K


def best(fn: Callable, times: int = 3) -> tuple[float, object]:
    """Shortest CPU time of several calls, and the last result."""
    seconds = []
    for _ in range(times):
        start = time.process_time()
        result = fn()
        seconds.append(time.process_time() - start)
    return min(seconds), result


def dataset(images: int, people: int = 2, found: int = 2) -> tuple[dict, list[dict]]:
    """A ground truth and results: so many people and detections an image; detections beyond the people are false alarms."""
    rng = np.random.default_rng(0)
    annotations, results = [], []
    for image in range(1, images + 1):
        for person in range(found):
            xy = rng.uniform(0, 300, 2) + rng.uniform(0, 200, (K, 2))
            if person < people:
                points = np.concatenate([xy, np.full((K, 1), 2.0)], axis=1).ravel().tolist()
                annotations.append(dict(id=len(annotations) + 1, image_id=image, category_id=1, iscrowd=0, area=float(rng.uniform(1500, 30000)), bbox=[0, 0, 200, 200], num_keypoints=K, keypoints=points))
            guess = np.concatenate([xy + rng.normal(size=(K, 2)) * 6, np.ones((K, 1))], axis=1)
            results.append(dict(image_id=image, category_id=1, score=float(rng.uniform()), keypoints=guess.ravel().tolist()))
    category = dict(id=1, name="person", keypoints=list(COCO_17.names), skeleton=[])
    return dict(images=[dict(id=i) for i in range(1, images + 1)], annotations=annotations, categories=[category]), results


def as_tensors(truth: dict, results: list[dict]) -> dict:
    """What a training loop holds: points, scores and labels as tensors."""
    found = torch.tensor([r["keypoints"] for r in results], dtype=torch.float64).reshape(-1, K, 3)
    labels = torch.tensor([a["keypoints"] for a in truth["annotations"]], dtype=torch.float64).reshape(-1, K, 3)
    return dict(
        xy=found[..., :2].clone(), score=torch.tensor([r["score"] for r in results], dtype=torch.float64), image=torch.tensor([r["image_id"] for r in results]),
        true_xy=labels[..., :2].clone(), vis=labels[..., 2].clone(), area=torch.tensor([a["area"] for a in truth["annotations"]], dtype=torch.float64),
        true_image=torch.tensor([a["image_id"] for a in truth["annotations"]]), sigmas=COCO_17.sigmas,
    )  # fmt: skip


def official(truth: dict, results: list[dict]) -> COCOeval:
    """pycocotools as its manual shows it, ready to evaluate."""
    with contextlib.redirect_stdout(io.StringIO()):
        coco = COCO()
        coco.dataset = truth
        coco.createIndex()
        return COCOeval(coco, coco.loadRes(results), "keypoints")


def ten_numbers(evaluator: COCOeval) -> np.ndarray:
    with contextlib.redirect_stdout(io.StringIO()):
        evaluator.evaluate()
        evaluator.accumulate()
        evaluator.summarize()
    return evaluator.stats


def loop_overlap(one: np.ndarray, others: np.ndarray, area: float, areas: np.ndarray) -> np.ndarray:
    """Overlap of one pose with the others, pose by pose, as the published suppression computes it."""
    variance = (np.array(COCO_17.sigmas) * 2) ** 2
    out = np.zeros(len(others))
    for n in range(len(others)):
        dx, dy = others[n, :, 0] - one[:, 0], others[n, :, 1] - one[:, 1]
        exponent = (dx**2 + dy**2) / variance / ((area + areas[n]) / 2 + np.spacing(1)) / 2
        out[n] = np.sum(np.exp(-exponent)) / len(exponent)
    return out


def loop_nms(xy: np.ndarray, score: np.ndarray, areas: np.ndarray, thr: float) -> list[int]:
    order, keep = score.argsort()[::-1], []
    while order.size:
        first, rest = order[0], order[1:]
        keep.append(int(first))
        order = rest[loop_overlap(xy[first], xy[rest], areas[first], areas[rest]) <= thr]
    return keep


def loop_soft_nms(xy: np.ndarray, score: np.ndarray, areas: np.ndarray, thr: float, most: int) -> list[int]:
    order, keep = score.argsort()[::-1], []
    score = score[order]
    while order.size and len(keep) < most:
        first, rest = order[0], order[1:]
        keep.append(int(first))
        score = score[1:] * np.exp(-(loop_overlap(xy[first], xy[rest], areas[first], areas[rest]) ** 2) / thr)
        again = score.argsort()[::-1]
        order, score = rest[again], score[again]
    return keep


def table_memory(people: int) -> float:
    """Memory one table adds, in units of the table; a process of its own, because only the highest level of memory can be read."""
    done = subprocess.run([sys.executable, __file__, "--memory", str(people)], capture_output=True, text=True, check=True)
    return float(done.stdout.split()[-1])


def print_memory(people: int) -> None:
    import resource

    def highest() -> int:
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024

    xy, vis, area = torch.rand(people, K, 2, dtype=torch.float64) * 300, torch.full((people, K), 2), torch.full((people,), 4000.0, dtype=torch.float64)
    oks_matrix(xy[:40], xy[:40], vis[:40], area[:40], COCO_17.sigmas)
    with open("/proc/self/statm", encoding="ascii") as file:
        filler = np.ones(max(0, highest() - int(file.read().split()[1]) * resource.getpagesize()) + 2**20, np.uint8)  # so that any growth shows
    before = highest()
    table = oks_matrix(xy, xy, vis, area, COCO_17.sigmas)
    print((highest() - before) / (table.numel() * table.element_size()) + 0 * len(filler))


def bench_table(people: int) -> dict:
    truth, results = dataset(1, people=people, found=people)
    evaluator = official(copy.deepcopy(truth), copy.deepcopy(results))
    evaluator.params.maxDets = [people]
    evaluator._prepare()
    peer, table = best(lambda: evaluator.computeOks(1, 1), 1)
    given = as_tensors(truth, results)
    xy = given["xy"][given["score"].argsort(descending=True, stable=True)]
    ours, matrix = best(lambda: oks_matrix(xy, given["true_xy"], given["vis"], given["area"], COCO_17.sigmas), 5)
    return dict(people=people, pycocotools_s=peer, ours_s=ours, ratio=peer / ours, goal=50, largest_difference=float(np.abs(table - matrix.numpy()).max()), memory=table_memory(people), memory_goal=2)


def bench_nms(poses: int = 1000, people: int = 100) -> dict:
    rng = np.random.default_rng(1)
    centres = rng.uniform(0, 1500, (people, 1, 2)) + rng.uniform(0, 120, (people, K, 2))
    xy = centres[rng.integers(people, size=poses)] + rng.normal(size=(poses, K, 2)) * rng.uniform(1, 12, (poses, 1, 1))
    score, areas = rng.permutation(poses) / poses, rng.uniform(4000, 9000, poses)
    given, rows = tuple(torch.from_numpy(x) for x in (xy, score, areas)), {}
    for name, peer, ours in (
        ("hard, threshold 0.9", lambda: loop_nms(xy, score, areas, 0.9), lambda: oks_nms(*given, COCO_17.sigmas, 0.9)),
        ("hard, threshold 0.5", lambda: loop_nms(xy, score, areas, 0.5), lambda: oks_nms(*given, COCO_17.sigmas, 0.5)),
        ("soft, first 100", lambda: loop_soft_nms(xy, score, areas, 0.9, 100), lambda: soft_oks_nms(*given, COCO_17.sigmas, 0.9, keep=100)[0]),
    ):
        slow, expected = best(peer, 1)
        fast, kept = best(ours, 5)
        assert kept.tolist() == expected, f"{name}: other poses kept than by the loop"
        rows[name] = dict(kept=len(expected), loop_s=slow, ours_s=fast, ratio=slow / fast)
    return dict(poses=poses, people=people, goal=20, rules=rows)


def bench_ap(images: int) -> dict:
    truth, results = dataset(images)
    copies = [(copy.deepcopy(truth), copy.deepcopy(results)) for _ in range(3)]  # pycocotools writes into what it is given
    given, times = as_tensors(truth, results), {}
    calls = {
        "pycocotools_s": lambda: ten_numbers(official(*copies.pop())),
        "evaluate_coco_s": lambda: np.array(list(evaluate_coco(truth, results).values())),
        "evaluate_stepwise_s": lambda: np.array(list(evaluate_stepwise(truth, results).values())),
        "evaluate_tensors_s": lambda: np.array(list(evaluate_tensors(**given).values())),
    }
    values = {}
    for _ in range(2):  # taking turns
        for name, call in calls.items():
            seconds, values[name] = best(call, 1)
            times[name] = min(seconds, times.get(name, np.inf))
    loaded = official(*copies.pop())
    times["pycocotools_without_loading_s"] = best(lambda: ten_numbers(loaded), 1)[0]
    difference = max(np.abs(values[name] - values["pycocotools_s"]).max() for name in calls)
    peer, ours = times["pycocotools_s"], times["evaluate_tensors_s"]
    return dict(images=images, people=2, **times, ratio=peer / ours, ratio_without_loading=times["pycocotools_without_loading_s"] / ours, ratio_stepwise=peer / times["evaluate_stepwise_s"], goal=5, largest_difference=float(difference), scores=dict(zip(SCORE_NAMES, values["pycocotools_s"].round(6).tolist(), strict=True)))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=int, default=5000)
    parser.add_argument("--people", type=int, default=1000)
    parser.add_argument("--memory", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "bench_oks.json")
    args = parser.parse_args()
    torch.set_num_threads(1)
    if args.memory:
        print_memory(args.memory)
        return 0
    report = dict(date=datetime.date.today().isoformat(), machine=platform.machine(), cores=os.cpu_count(), threads=1, load_before=[round(x, 1) for x in os.getloadavg()], python=platform.python_version(), torch=torch.__version__, numpy=np.__version__)
    report["table"] = table = bench_table(args.people)
    print(f"OKS of {args.people} x {args.people} poses: pycocotools' loop {table['pycocotools_s']:.2f} s, ours {table['ours_s']:.3f} s, {table['ratio']:.0f} x (goal 50); memory {table['memory']:.2f} x the table (goal 2)")
    report["suppression"] = nms = bench_nms()
    for name, row in nms["rules"].items():
        print(f"suppression of {nms['poses']} poses, {name}: loop {row['loop_s']:.2f} s, ours {row['ours_s']:.3f} s, {row['ratio']:.0f} x (goal 20), {row['kept']} kept")
    report["ten_numbers"] = ap = bench_ap(args.images)
    print(f"ten numbers of {args.images} images x 2 people: pycocotools {ap['pycocotools_s']:.2f} s ({ap['pycocotools_without_loading_s']:.2f} s without loading), evaluate_coco {ap['evaluate_coco_s']:.2f} s, evaluate_stepwise {ap['evaluate_stepwise_s']:.2f} s, evaluate_tensors {ap['evaluate_tensors_s']:.3f} s")
    print(f"   {ap['ratio']:.0f} x, without loading {ap['ratio_without_loading']:.0f} x (goal 5); largest difference {ap['largest_difference']:.1e}")
    write_atomic(args.out, json.dumps(report, indent=1) + "\n")
    missed = table["ratio"] < 50 or table["memory"] > 2 or any(row["ratio"] < 20 for row in nms["rules"].values()) or ap["ratio"] < 5 or ap["largest_difference"] > 1e-9
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
