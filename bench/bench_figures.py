"""Drawn crops per second on one core: python bench/bench_figures.py [crops] [file.json]; prints one line."""

import datetime
import json
import os
import platform
import sys

os.environ.setdefault("OMP_NUM_THREADS", "1")

import statistics  # noqa: E402
import time  # noqa: E402
from pathlib import Path  # noqa: E402

import cv2  # noqa: E402

from posetutor.data.figures import draw_crop, draw_scene  # noqa: E402


def main() -> None:
    crops = int(sys.argv[1]) if len(sys.argv) > 1 else 600
    cv2.setNumThreads(1)
    draw_crop(0), draw_scene(0)  # builds the texture tables
    batches = []
    for block in range(5):
        start, cpu = time.perf_counter(), time.process_time()
        for index in range(block * crops // 5, (block + 1) * crops // 5):
            draw_crop(index)
        batches.append((time.perf_counter() - start, time.process_time() - cpu))
    scenes, start = 20, time.process_time()
    people = sum(len(draw_scene(index).boxes) for index in range(scenes))
    scene_ms = (time.process_time() - start) / scenes * 1e3
    wall, cpu = (crops / 5 / statistics.median(b[i] for b in batches) for i in (0, 1))
    print(f"bench_figures: {crops} crops of 256x192, one thread: {wall:.0f} crops/s wall, {cpu:.0f} crops per CPU second (median of 5 blocks); scene 480x640 with {people / scenes:.1f} people: {scene_ms:.0f} ms CPU")

    if len(sys.argv) > 2:
        record = dict(date=datetime.date.today().isoformat(), machine=platform.machine(), cores=os.cpu_count(), threads=1, load=[round(x, 1) for x in os.getloadavg()], crops=crops, size=[256, 192], crops_per_second=round(wall, 1), crops_per_cpu_second=round(cpu, 1), goal=250, scene_ms=round(scene_ms, 1))
        Path(sys.argv[2]).write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
