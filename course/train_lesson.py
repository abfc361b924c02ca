"""Train a network on drawn figures and score it on 500 figures that no training ever drew: the LESSON preset, or the network that the package ships.

    python course/train_lesson.py --precision bf16   # as recorded: a minute of drawing and ten of training on two idle cores with bfloat16 instructions
    python course/train_lesson.py                 # in float32, which takes longer on such a processor; run either again to continue after a stop
    python course/train_lesson.py topdown_small --precision bf16   # the packaged network: longer, and with empty windows
    python course/train_lesson.py --fresh         # forget what an earlier run left in the work folder
    python course/train_lesson.py --steps 200 --dry   # a short trial that writes nothing into the project

Figures are of the lesson's kind (LESSON_FIGURES: everyday poses, nearly clean pictures); the score on figures of all kinds is recorded too.
Writes course/runs/<name>.json (preset, seed, versions, device, date, seconds, curve, scores, revision) and, for topdown_small,
posetutor/weights/topdown_small.safetensors. The notebook 50 uses the same functions and quotes the records.
"""

import argparse
import os
import shutil
import time
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import cv2
import numpy as np
import torch

from posetutor.core import write_atomic
from posetutor.data.figures import FigureConfig, figures
from posetutor.skeletons import Record
from posetutor.systems.topdown import LESSON, LESSON_FIGURES, LESSON_POOL_SIZE, TopDown, calibrate, empty_pictures, evaluate_topdown, train_topdown, weights_path
from posetutor.train.engine import cosine_warmup, linear_cooldown

ROOT = Path(__file__).resolve().parent.parent
UNSEEN, UNSEEN_START = 500, 1_000_000  # evaluation figures, default size; training draws indices below 100 000
SCENES_START, EMPTY_START = 500_000, 600_000
RECIPES = {  # preset, schedule, share of crops without anybody
    "topdown_lesson": (LESSON, linear_cooldown, 0.0),
    "topdown_small": (LESSON.replace(steps=9000, samples=12_000), cosine_warmup, 0.1),
}


def draw(job: tuple[int, int, tuple[int, int], bool, tuple[int, int], FigureConfig | None]) -> list[Record]:
    """Draw one block of records; runs in a worker process."""
    cv2.setNumThreads(1)
    start, count, size, single, people, config = job
    return list(figures(count, start=start, size=size, single=single, people=people, config=config))


def render(start: int, count: int, size: tuple[int, int], *, single: bool = True, people: tuple[int, int] = (1, 1), config: FigureConfig | None = LESSON_FIGURES) -> list[Record]:
    """Draw records start .. start + count on all cores; the bytes do not depend on the number of processes."""
    jobs = [(first, min(100, start + count - first), size, single, people, config) for first in range(start, start + count, 100)]
    with ProcessPoolExecutor(os.cpu_count()) as workers:
        return [record for block in workers.map(draw, jobs) for record in block]


def search_scores(system: TopDown, scenes: list[Record], empty: list[np.ndarray]) -> dict[str, float]:
    """How the search without boxes does: AP on small scenes, and the share of empty pictures in which somebody is seen."""
    found = evaluate_topdown(system, scenes, boxes="found")
    alarms = np.mean([len(system.find(image)) > 0 for image in empty])
    return {"found_AP": found["AP"], "found_AP50": found["AP50"], "found_AR": found["AR"], "false_alarms": float(alarms), "threshold": system.threshold}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("name", nargs="?", choices=RECIPES, default="topdown_lesson", help="of the recipe and its record (default topdown_lesson)")
    parser.add_argument("--steps", type=int, help="optimiser steps (default: the recipe's)")
    parser.add_argument("--samples", type=int, help="figures drawn for training (default: the recipe's)")
    parser.add_argument("--threads", type=int, default=min(2, os.cpu_count() or 1), help="torch threads (the lesson is timed with 2)")
    parser.add_argument("--precision", choices=("no", "bf16"), default="no", help="bf16: 1.6 times as fast on processors with AVX512-BF16 or AMX, slower on others")
    parser.add_argument("--folder", type=Path, help="checkpoints, default _out/<name>; a second call continues from them")
    parser.add_argument("--fresh", action="store_true", help="delete the checkpoints first")
    parser.add_argument("--dry", action="store_true", help="train and score, but leave the project's record and weights alone")
    args = parser.parse_args()
    args.folder = args.folder or ROOT / "_out" / args.name
    torch.set_num_threads(args.threads)
    cv2.setNumThreads(1)
    if args.fresh:
        shutil.rmtree(args.folder, ignore_errors=True)
    begin = time.perf_counter()
    preset, schedule, share = RECIPES[args.name]
    steps, samples = args.steps or preset.steps, args.samples or preset.samples
    preset = preset.replace(steps=steps, samples=samples, warmup_steps=min(preset.warmup_steps, steps))
    pool = render(0, preset.samples, LESSON_POOL_SIZE)
    scenes = render(SCENES_START, 400, (240, 320), single=False, people=(1, 2)) if share else []
    drawn = time.perf_counter() - begin
    print(f"{len(pool)} figures and {len(scenes)} scenes drawn in {drawn:.0f} s", flush=True)

    cpu = time.process_time()
    system, record = train_topdown(pool, preset, empty=scenes, share=share, schedule=schedule, folder=args.folder, name=args.name, precision=args.precision)
    if time.process_time() - cpu > 60:  # trained in this call, not read from the folder
        record.metrics["cpu_seconds"] = time.process_time() - cpu
        record.device += ", bf16" if args.precision == "bf16" else ""
        record.save(args.folder / "record.json")
    print(f"trained in {record.seconds:.0f} s, loss {record.curve[-1][1]:.6f}", flush=True)

    empty = empty_pictures(render(EMPTY_START, 120, (240, 320), single=False, people=(1, 1)))
    calibrate(system, empty[::2], render(EMPTY_START + 25_000, 60, (240, 320), single=False, people=(1, 3)))
    unseen = render(UNSEEN_START, UNSEEN, (256, 192))
    scores = evaluate_topdown(system, unseen)
    scores["AP_three_scales"] = evaluate_topdown(system, unseen, scales=(0.9, 1.0, 1.1))["AP"]
    scores["AP_without_flip_test"] = evaluate_topdown(system, unseen, flip=False)["AP"]
    anything = render(UNSEEN_START, UNSEEN, (256, 192), config=None)  # sport, occluders, people cut off: never trained on
    scores["AP_all_kinds_of_figures"] = evaluate_topdown(system, anything)["AP"]
    scores |= search_scores(system, render(EMPTY_START + 50_000, 60, (240, 320), single=False, people=(1, 3)), empty[1::2])
    record.metrics |= {"figures_evaluated": float(UNSEEN), "share_empty": share, "seconds_drawing": drawn, **scores}
    print({name: round(value, 3) for name, value in record.metrics.items() if isinstance(value, float)}, flush=True)
    if args.dry:
        return
    record.save(ROOT / "course" / "runs" / f"{args.name}.json")
    print(f"wrote course/runs/{args.name}.json, {time.perf_counter() - begin:.0f} s in all")
    if args.name != "topdown_small":
        return
    path = args.folder / "topdown_small.safetensors"
    system.save(path, name=record.name, preset=record.preset, metrics={k: v for k, v in record.metrics.items() if isinstance(v, float)})
    write_atomic(weights_path(), path.read_bytes())
    print(f"wrote posetutor/weights/{weights_path().name} ({weights_path().stat().st_size / 1e6:.1f} MB)")


if __name__ == "__main__":
    main()
