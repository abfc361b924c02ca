"""OKS and AP against pycocotools in one process: the same numbers, and how long each takes.

    python bench/bench_oks.py [--images 5000] [--out bench/results/bench_oks.json]

Ratios are peer seconds / ours; each time is the best of three, one thread.
"""

import argparse
import contextlib
import copy
import io
import json
import platform
import time
from pathlib import Path

import numpy as np
import torch
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from posetutor.core import write_atomic
from posetutor.metrics.coco_eval import SCORE_NAMES, evaluate_coco, evaluate_stepwise
from posetutor.metrics.oks import oks_matrix
from posetutor.skeletons import COCO_17

K = COCO_17.K


def best(fn, times: int = 3) -> tuple[float, object]:
    """Shortest wall time of several calls, and the last result."""
    seconds = []
    for _ in range(times):
        start = time.perf_counter()
        result = fn()
        seconds.append(time.perf_counter() - start)
    return min(seconds), result


def dataset(images: int, people: int = 2, found: int = 3) -> tuple[dict, list[dict]]:
    """A ground truth and results: two people an image, three detections, one of them a false alarm."""
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


def official(truth: dict, results: list[dict]) -> COCOeval:
    """pycocotools as its manual shows it, ready to evaluate."""
    with contextlib.redirect_stdout(io.StringIO()):
        coco = COCO()
        coco.dataset = copy.deepcopy(truth)
        coco.createIndex()
        return COCOeval(coco, coco.loadRes(copy.deepcopy(results)), "keypoints")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=int, default=5000)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "bench_oks.json")
    args = parser.parse_args()
    torch.set_num_threads(1)
    report = dict(python=platform.python_version(), torch=torch.__version__, numpy=np.__version__, threads=1, images=args.images)

    truth, results = dataset(1, people=200, found=300)  # one table of 300 x 200
    evaluator = official(truth, results)
    evaluator.params.maxDets = [300]
    evaluator._prepare()
    peer, table = best(lambda: evaluator.computeOks(1, 1))
    order = np.argsort([-r["score"] for r in results], kind="stable")
    points = np.array([r["keypoints"] for r in results])[order].reshape(-1, K, 3)
    labels = np.array([a["keypoints"] for a in truth["annotations"]]).reshape(-1, K, 3)
    area = np.array([a["area"] for a in truth["annotations"]])
    ours, matrix = best(lambda: oks_matrix(points[..., :2], labels[..., :2], labels[..., 2], area, COCO_17.sigmas))
    report["oks_300x200"] = dict(pycocotools_s=peer, ours_s=ours, ratio=peer / ours, largest_difference=float(np.abs(table - matrix.numpy()).max()))

    truth, results = dataset(args.images)

    def by_pycocotools() -> np.ndarray:
        with contextlib.redirect_stdout(io.StringIO()):
            evaluator = official(truth, results)
            evaluator.evaluate()
            evaluator.accumulate()
            evaluator.summarize()
        return evaluator.stats

    peer, stats = best(by_pycocotools, 1)
    wrapped, first = best(lambda: evaluate_coco(truth, results), 1)
    ours, second = best(lambda: evaluate_stepwise(truth, results), 1)
    difference = max(abs(scores[name] - value) for scores in (first, second) for name, value in zip(SCORE_NAMES, stats, strict=True))
    report["ten_numbers"] = dict(pycocotools_s=peer, evaluate_coco_s=wrapped, evaluate_stepwise_s=ours, ratio=peer / ours, largest_difference=float(difference))
    print(json.dumps(report, indent=1))
    write_atomic(args.out, json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main()
