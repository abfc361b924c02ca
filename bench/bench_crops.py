"""Training crops per second on one core: CropDataset against a plain OpenCV loop that does the same steps.

    python bench/bench_crops.py [--seconds 20] [--out bench/results/bench_crops.json]

Both read a JPEG from disk, draw half body, scale, rotation and mirror, warp to 256x192, swap left and right joints and give a
uint8 (3, 256, 192) array. The two take turns on the same people, order alternating, in one process and on one thread; the ratio is the
median over rounds of (plain / our CPU time): above 1 means that ours is faster. Ours also seeds a generator of its own for every item, so that
any item can be drawn again; the plain loop draws from one global stream and cannot. Uses the photographs of POSETUTOR_DATA where it is set,
else 640x480 pictures made here.
"""

import argparse
import dataclasses
import datetime
import json
import os
import platform
import statistics
import tempfile
import time
from pathlib import Path

import cv2
import numpy as np
import torch

from posetutor.data.augment import HRNET_AUGMENT, CropDataset
from posetutor.data.coco import local_set
from posetutor.skeletons import COCO_17, Record

SIZE = (256, 192)


def made_up_records(folder: Path, count: int = 40) -> list[Record]:
    """JPEGs of 640x480 with smooth texture (about 60 kB each), one labelled person per picture."""
    records = []
    for number in range(count):
        rng = np.random.default_rng(number)
        image = cv2.resize(rng.integers(0, 255, (60, 80, 3), dtype=np.uint8), (640, 480), interpolation=cv2.INTER_CUBIC)
        image = cv2.add(image, rng.integers(0, 12, image.shape, dtype=np.uint8))
        path = folder / f"{number}.jpg"
        cv2.imwrite(str(path), image, [cv2.IMWRITE_JPEG_QUALITY, 90])
        box = np.array([rng.uniform(50, 300), rng.uniform(20, 150), rng.uniform(80, 250), rng.uniform(150, 300)])
        xy = box[:2] + rng.uniform(0, 1, (17, 2)) * box[2:]
        records.append(Record(None, path, number + 1, (480, 640), box[None], xy[None], np.full((1, 17), 2), skeleton=COCO_17))
    return records


def plain_people(records) -> list[tuple]:
    """What a plain script keeps in memory: path, box, points, visibility."""
    return [(str(r.path), r.boxes[p].astype(float), r.xy[p].astype(float), r.vis[p]) for r in records for p in r.people]


def plain_item(person: tuple, upper: list[int], lower: list[int], order: list[int]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The usual loader, written the short way: imread, three points, getAffineTransform, warpAffine, mirror, to RGB and channels first."""
    path, box, xy, vis = person
    image = cv2.imread(path, cv2.IMREAD_COLOR | cv2.IMREAD_IGNORE_ORIENTATION)
    height, width = SIZE
    x, y, w, h = box
    cx, cy, pad = x + w / 2, y + h / 2, 1.25
    if np.random.rand() < 0.3 and (vis > 0).sum() > 8:
        groups = [[k for k in half if vis[k] > 0] for half in (upper, lower)]
        chosen = groups[0] if np.random.randn() < 0.5 and len(groups[0]) > 2 else groups[1] if len(groups[1]) > 2 else groups[0]
        if len(chosen) >= 2:
            points = xy[chosen]
            (cx, cy), (w, h), pad = points.mean(0), points.max(0) - points.min(0), 1.5
    w = max(w, h * width / height) * pad * np.clip(np.random.randn() * 0.35 + 1, 0.65, 1.35)
    angle = np.radians(np.clip(np.random.randn() * 45, -90, 90)) if np.random.rand() < 0.6 else 0.0
    sin, cos = np.sin(angle), np.cos(angle)
    source = np.array([[cx, cy], [cx + sin * w / 2, cy - cos * w / 2], [cx - cos * w / 2, cy - sin * w / 2]], np.float32)
    target = np.array([[width / 2, height / 2], [width / 2, height / 2 - width / 2], [0, height / 2]], np.float32)
    matrix = cv2.getAffineTransform(source, target)
    crop = cv2.cvtColor(cv2.warpAffine(image, matrix, (width, height), flags=cv2.INTER_LINEAR), cv2.COLOR_BGR2RGB)
    xy = xy @ matrix[:, :2].T + matrix[:, 2]
    if np.random.rand() < 0.5:
        crop = crop[:, ::-1]
        xy = np.stack([width - 1 - xy[:, 0], xy[:, 1]], axis=-1)[order]
        vis = vis[order]
    return np.ascontiguousarray(crop.transpose(2, 0, 1)), xy.astype(np.float32), vis


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=float, default=20.0)
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    cv2.setNumThreads(1)
    torch.set_num_threads(1)
    np.random.seed(0)
    with tempfile.TemporaryDirectory() as folder:
        records, source = local_set("coco_mini/train"), "coco_mini/train of POSETUTOR_DATA"
        if records is None:
            records, source = made_up_records(Path(folder)), "made-up 640x480 JPEGs (POSETUTOR_DATA is unset)"
        data = CropDataset(records, SIZE, augment=dataclasses.replace(HRNET_AUGMENT))
        people, skeleton = plain_people(records), records[0].skeleton
        upper, lower, order = list(skeleton.upper), list(skeleton.lower), list(skeleton.flip_index)
        assert len(people) == len(data)

        def ours(i):
            return data[i]

        def plain(i):
            return plain_item(people[i], upper, lower, order)

        times, start, round_ = {"ours": [], "plain": []}, time.perf_counter(), 0
        while time.perf_counter() - start < args.seconds or round_ < 3:
            data.set_epoch(round_)
            spent = {"ours": 0.0, "plain": 0.0}
            for i in range(len(data)):
                for name, fn in (("ours", ours), ("plain", plain))[:: 1 if (i + round_) % 2 else -1]:
                    before = time.process_time()
                    fn(i)
                    spent[name] += time.process_time() - before
            if round_:  # the first round warms the file cache
                for name in times:
                    times[name].append(spent[name] / len(data))
            round_ += 1
        ratios = [p / o for o, p in zip(times["ours"], times["plain"])]
    report = {
        "date": datetime.date.today().isoformat(), "machine": platform.machine(), "cores": os.cpu_count(), "threads": 1, "load": [round(x, 1) for x in os.getloadavg()],
        "data": source, "people": len(data), "rounds": len(ratios), "opencv": cv2.__version__,
        "ours_ms": round(1e3 * statistics.median(times["ours"]), 3), "plain_ms": round(1e3 * statistics.median(times["plain"]), 3),
        "ratio": round(statistics.median(ratios), 3), "ratio_min": round(min(ratios), 3), "ratio_max": round(max(ratios), 3),
    }  # fmt: skip
    print(f"{source}: {len(data)} people, {len(ratios)} rounds, one thread")
    print(f"CropDataset {report['ours_ms']:.2f} ms a crop ({1e3 / report['ours_ms']:.0f}/s), plain OpenCV {report['plain_ms']:.2f} ms")
    print(f"ratio plain/ours: {report['ratio']:.3f} (rounds {report['ratio_min']:.3f} .. {report['ratio_max']:.3f}); above 1 = ours is faster")
    if args.out:
        args.out.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
