"""Train the narrow HRNet of chapter 44 and, with the same recipe, the small Simple Baseline of equal cost; score both on figures that no training drew.

    python course/train_hrnet.py                  # about eight minutes on one idle core with bfloat16 instructions
    python course/train_hrnet.py --steps 50 --dry # a short trial that writes nothing into the project

Writes course/runs/hrnet_small.json (preset, seed, versions, device, date, seconds, curve, scores, revision) and
posetutor/weights/hrnet_small.safetensors (half precision). Chapter 44 shows what the branches of this network see, and quotes the record.
"""

import argparse
from pathlib import Path

import cv2
import torch
from train_lesson import UNSEEN_START, render

from posetutor.nets.hrnet import hrnet_small
from posetutor.nets.simple_baseline import count_macs, count_parameters, simple_baseline_small
from posetutor.skeletons import COCO_17
from posetutor.systems.topdown import LESSON, LESSON_POOL_SIZE, evaluate_topdown, train_topdown

ROOT = Path(__file__).resolve().parent.parent
UNSEEN = 300
ARMS = {"hrnet": hrnet_small, "baseline": simple_baseline_small}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=1400, help="optimiser steps of each network")
    parser.add_argument("--samples", type=int, default=4000, help="figures drawn for training")
    parser.add_argument("--precision", choices=("no", "bf16"), default="bf16")
    parser.add_argument("--dry", action="store_true", help="train and score, but leave the project's record and weights alone")
    args = parser.parse_args()
    torch.set_num_threads(1)
    cv2.setNumThreads(1)
    preset = LESSON.replace(name="HRNET_LESSON", steps=args.steps, samples=args.samples, learning_rate=4e-3, ema_decay=0.99, warmup_steps=min(100, args.steps))
    pool, unseen = render(0, preset.samples, LESSON_POOL_SIZE), render(UNSEEN_START, UNSEEN, (256, 192))
    systems, records, scores = {}, {}, {}
    for arm, build in ARMS.items():
        torch.manual_seed(preset.seed)
        net = build(COCO_17.K)
        systems[arm], records[arm] = train_topdown(pool, preset, net=net, name="hrnet_small", precision=args.precision, progress=False)
        found = evaluate_topdown(systems[arm], unseen, flip=False)
        prefix = "" if arm == "hrnet" else "baseline_"
        scores |= {prefix + key: found[key] for key in ("AP", "AP50", "AP75", "AR", "px")}
        scores |= {f"{prefix}macs": float(count_macs(net, preset.size)), f"{prefix}parameters": float(count_parameters(net)), f"{prefix}loss": records[arm].curve[-1][1], f"{prefix}seconds": records[arm].seconds}
        print(arm, {name: round(value, 4) for name, value in scores.items() if name.startswith("baseline") == (arm == "baseline")}, flush=True)
    record = records["hrnet"]
    record.device += ", bf16" if args.precision == "bf16" else ""
    record.metrics |= {"figures_evaluated": float(UNSEEN), **scores}
    if args.dry:
        return
    record.save(ROOT / "course" / "runs" / "hrnet_small.json")
    systems["hrnet"].net.half()
    path = systems["hrnet"].save(ROOT / "posetutor" / "weights" / "hrnet_small.safetensors", name=record.name, preset=record.preset)
    print(f"wrote course/runs/hrnet_small.json and {path.name} ({path.stat().st_size / 1e6:.1f} MB)")


if __name__ == "__main__":
    main()
