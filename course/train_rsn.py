"""Train the small residual steps network of chapter 43 and two siblings of equal cost; score all on figures that no training drew.

    python course/train_rsn.py                  # about eight minutes on one idle core
    python course/train_rsn.py --steps 20 --seeds 1 --dry   # a short trial that writes nothing into the project

Arms: residual steps blocks with the connections between their branches, without them, and plain bottlenecks. All have the same data, order,
schedule, coarse-to-fine supervision and multiply-adds (bottlenecks within half a percent). Writes course/runs/rsn_small.json (preset,
versions, device, date, seconds, scores by seed, revision). Chapter 43 quotes it.
"""

import argparse
import json
from pathlib import Path

import cv2
import torch
from train_lesson import UNSEEN_START, render

from posetutor.codecs.gaussian import GaussianCodec
from posetutor.core import RunRecord
from posetutor.data.augment import CropDataset, collate
from posetutor.losses.heatmap import coarse_to_fine_loss
from posetutor.nets.rsn import rsn_small
from posetutor.nets.simple_baseline import count_macs, count_parameters
from posetutor.skeletons import COCO_17
from posetutor.systems.topdown import LESSON, LESSON_AUGMENT, LESSON_PADDING, LESSON_POOL_SIZE, LESSON_SIGMA, TopDown, evaluate_topdown
from posetutor.train.engine import fit

ROOT = Path(__file__).resolve().parent.parent
UNSEEN, STEM = 300, 24
ARMS = {"rsb": {}, "unfused": {"fuse": False}, "bottleneck": {"steps": 1}}
KEYS = ("error", "near", "AP", "AP50")
LEVELS = tuple(LESSON_SIGMA * s for s in (2.55, 1.66, 1.37, 1.0))  # target widths, coarse to fine, in MSPN's proportions


def train(pool, preset, options):
    """One network, trained with four supervised levels; the system that uses its finest one, and the record."""
    torch.manual_seed(preset.seed)
    net = rsn_small(COCO_17.K, stem=STEM, **options)
    codecs = [GaussianCodec(size=preset.size, stride=4, sigma=sigma, decoder="log_parabola") for sigma in LEVELS]
    system = TopDown(net, codecs[-1], COCO_17, preset.size, padding=LESSON_PADDING)
    crops = CropDataset(pool, preset.size, augment=LESSON_AUGMENT, padding=LESSON_PADDING, mapping=codecs[-1].mapping, seed=preset.seed)

    def step(wrapped, batch):
        levels = wrapped(system.prepare(batch["image"]), all_maps=True)
        targets = [codec.encode(batch["xy"], batch["vis"]) for codec in codecs]
        return sum(coarse_to_fine_loss([m.float() for m in stage], [t.maps for t in targets], targets[-1].weight, topk=None) for stage in levels)

    record = fit(net, step, crops, preset, collate=collate, name="rsn_small", precision="no", progress=False)
    net.eval()
    return system, record


def crop_scores(system, records):
    """Median distance of all visible joints in px of the crop, and the share within 4 px (one cell)."""
    crops = CropDataset(records, system.size, padding=LESSON_PADDING, mapping=system.codec.mapping)
    batch = collate([crops[i] for i in range(len(crops))])
    away = (system.predict_crops(batch["image"], flip=False)[0] - batch["xy"]).norm(dim=-1)[batch["vis"] > 1]
    return {"error": float(away.median()), "near": float((away <= 4).float().mean())}


def merge(record: RunRecord) -> None:
    """Add the scores of one network to the project's record: arms and seeds may run one after the other or side by side."""
    path = ROOT / "course" / "runs" / "rsn_small.json"
    if path.is_file():
        known = RunRecord.load(path)
        if known.preset == json.loads(json.dumps(record.preset)):  # tuples become lists
            known.metrics |= record.metrics
            known.seconds += record.seconds
            record = known
    record.save(path)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--arms", nargs="+", choices=list(ARMS), default=list(ARMS), help="which networks to train")
    parser.add_argument("--seeds", type=int, default=2, help="networks of each arm")
    parser.add_argument("--steps", type=int, default=400, help="optimiser steps of each network")
    parser.add_argument("--samples", type=int, default=3000, help="figures drawn for training")
    parser.add_argument("--dry", action="store_true", help="train and score, but leave the project's record alone")
    args = parser.parse_args()
    torch.set_num_threads(1)
    cv2.setNumThreads(1)
    preset = LESSON.replace(name="RSN_LESSON", steps=args.steps, samples=args.samples, learning_rate=4e-3, ema_decay=0.98, warmup_steps=min(50, args.steps))
    pool, unseen = render(0, preset.samples, LESSON_POOL_SIZE), render(UNSEEN_START, UNSEEN, (256, 192))
    for seed in range(args.seeds):
        for arm in args.arms:
            system, record = train(pool, preset.replace(seed=seed), ARMS[arm])
            found = evaluate_topdown(system, unseen, flip=False) | crop_scores(system, unseen)
            record.preset["seed"], record.seed = preset.seed, preset.seed  # scores name their own seed
            record.metrics = {"figures_evaluated": float(UNSEEN)} | {f"{arm}_{key}_{seed}": found[key] for key in KEYS}
            record.metrics |= {f"{arm}_macs": float(count_macs(system.net, preset.size)), f"{arm}_parameters": float(count_parameters(system.net))}
            print(arm, seed, {key: round(found[key], 4) for key in KEYS}, f"{record.seconds:.0f} s", flush=True)
            if not args.dry:
                merge(record)


if __name__ == "__main__":
    main()
