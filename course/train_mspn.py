"""Train the small two-stage MSPN of chapter 42, one deeper stage of equal cost, and the two stages without coarse-to-fine labels, with one recipe.

    python course/train_mspn.py                  # about twelve minutes on one idle core with bfloat16 instructions
    python course/train_mspn.py --steps 50 --dry # a short trial that writes nothing into the project
    python course/train_mspn.py --rows           # three minutes: rows of equal discs, nine tiny networks, several seeds

Writes course/runs/mspn_small.json (preset, seed, versions, device, date, seconds, curve, scores, the error on the way, revision) and
posetutor/weights/mspn_small.safetensors (half precision), or course/runs/mspn_rows.json. Chapter 42 shows what the stages of the network see, and
quotes both records.
"""

import argparse
import time
from collections.abc import Mapping
from functools import partial
from pathlib import Path

import cv2
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from train_lesson import UNSEEN_START, render

from posetutor.codecs.gaussian import GaussianCodec, target_weight
from posetutor.core import Preset, RunRecord, new_record, seed_generator
from posetutor.data.augment import CropDataset, collate
from posetutor.geometry import hm_from_crop
from posetutor.losses.heatmap import coarse_to_fine_loss, render_levels
from posetutor.nets.mspn import MSPN, mspn_small, multi_stage_loss
from posetutor.nets.simple_baseline import BasicBlock, count_macs, count_parameters
from posetutor.skeletons import COCO_17, Record
from posetutor.systems.topdown import LESSON_AUGMENT, LESSON_PADDING, LESSON_SIGMA, TopDown, evaluate_topdown
from posetutor.train.engine import fit, save_weights

ROOT = Path(__file__).resolve().parent.parent
SIZE, POOL_SIZE, UNSEEN, WATCHED = (96, 64), (120, 80), 300, 60
WIDTHS = (2.55, 1.95, 1.66, 1.37, 1.0)  # of the published kernels 15, 11, 9, 7, 5, relative to the last
ARMS = {  # network, and how its stages are supervised
    "two": (lambda K: mspn_small(K), "last"),
    "deep": (lambda K: mspn_small(K, stages=1, blocks=(2, 2, 2, 2), channels=44), "last"),
    "same": (lambda K: mspn_small(K), "same"),
}


def supervised_loss(system: TopDown, scheme: str, net: nn.Module, batch: Mapping[str, Tensor]) -> Tensor:
    """Loss of all maps of one batch of crops; scheme: see `posetutor.nets.mspn.stage_labels`."""
    stages, cells = net(system.prepare(batch["image"]), all_maps=True), system.codec.map_size
    device = stages[0][0].device
    xy_hm = hm_from_crop(batch["xy"].to(device), system.size, cells, system.codec.mapping)
    weight = target_weight(xy_hm, batch["vis"].to(device), cells, system.codec.sigma)
    widths = WIDTHS[-1:] if scheme == "same" else WIDTHS
    labels = render_levels(xy_hm, cells, [system.codec.sigma * w for w in widths])
    return multi_stage_loss(stages, labels, partial(coarse_to_fine_loss, weight=weight), scheme=scheme)


def train(arm: str, pool: list[Record], watched: list[Record], preset: Preset, precision: str) -> tuple[TopDown, RunRecord]:
    """One arm, its error on the watched figures measured ten times on the way."""
    torch.manual_seed(preset.seed)
    build, scheme = ARMS[arm]
    net: MSPN = build(COCO_17.K)
    codec = GaussianCodec(size=preset.size, stride=4, sigma=LESSON_SIGMA, decoder="log_parabola")
    system = TopDown(net, codec, COCO_17, preset.size, padding=LESSON_PADDING)
    crops = CropDataset(pool, preset.size, augment=LESSON_AUGMENT, padding=system.padding, mapping=codec.mapping, seed=preset.seed)

    held = collate([item for item in CropDataset(watched, preset.size, padding=system.padding, mapping=codec.mapping)])

    def watch(model: nn.Module) -> dict[str, float]:
        """Mean distance of the labelled joints, crop px."""
        away = (system.predict_crops(held["image"], flip=False)[0] - held["xy"]).norm(dim=-1)
        return {"watched_px": away[held["vis"] > 0].mean().item()}

    record = fit(
        net, partial(supervised_loss, system, scheme), crops, preset, collate=collate, evaluate=watch, evaluate_every=max(1, preset.steps // 10),
        name="mspn_small", precision=precision, progress=False,
    )
    net.eval()
    return system, record


DISCS = 6
ROWS = {  # one stage; the work of two and three stages spent on stages, depth or width; two stages without labels of several widths, or without skips
    "stages1": ({"stages": 1}, "last"),
    "stages2": ({"stages": 2}, "last"),
    "stages3": ({"stages": 3}, "last"),
    "deep2": ({"stages": 1, "blocks": (2, 2, 2, 2)}, "last"),
    "deep3": ({"stages": 1, "blocks": (3, 3, 3, 3)}, "last"),
    "wide2": ({"stages": 1, "stem": 10, "channels": 28}, "last"),
    "wide3": ({"stages": 1, "stem": 12, "channels": 30}, "last"),
    "same": ({"stages": 2}, "same"),
    "alone": ({"stages": 2, "aggregation": False}, "last"),
}


def draw_rows(count: int, seed: int, size: int = 64, radius: float = 3.5) -> tuple[Tensor, Tensor]:
    """Pictures (B, 3, size, size) of equal discs on a soft background, and their centres (B, DISCS, 2) from left to right."""
    generator, grid = seed_generator(seed), torch.arange(size, dtype=torch.float32)
    background = F.interpolate(torch.rand(count, 3, 8, 8, generator=generator), (size, size), mode="bilinear") * 0.6
    gaps = torch.rand(count, DISCS + 1, generator=generator) + 0.15
    x = 4 + (size - 9) * gaps.cumsum(1)[:, :DISCS] / gaps.sum(1, keepdim=True)
    xy = torch.stack([x, 4 + torch.rand(count, DISCS, generator=generator) * (size - 9)], dim=-1)
    distance = torch.hypot(grid - xy[..., 0, None, None], grid[:, None] - xy[..., 1, None, None])
    cover = (radius + 0.5 - distance).clamp(0, 1).amax(dim=1, keepdim=True)
    return background * (1 - cover) + torch.tensor([1.0, 0.8, 0.1])[:, None, None] * cover - 0.4, xy


def train_rows(arm: str, seed: int, steps: int, data: tuple[Tensor, Tensor], test: tuple[Tensor, Tensor]) -> tuple[float, float, list[list[float]]]:
    """Mean error (px) of one tiny network after training, its multiply-adds, and the error on the way."""
    options, scheme = ROWS[arm]
    torch.manual_seed(seed)
    net = MSPN(**{"K": DISCS, "blocks": (1, 1, 1, 1), "stem": 8, "channels": 16, "block": BasicBlock, "channels_last": True, **options})
    codec, generator, curve = GaussianCodec(size=(64, 64), stride=4, sigma=1.0), seed_generator(seed, 1), []
    widths = WIDTHS[-1:] if scheme == "same" else WIDTHS
    optimizer = torch.optim.AdamW(net.parameters(), 8e-3, fused=True)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 8e-3, total_steps=steps)
    for step in range(1, steps + 1):
        pick = torch.randint(len(data[0]), (32,), generator=generator)
        labels = render_levels(hm_from_crop(data[1][pick], (64, 64), codec.map_size), codec.map_size, widths)
        loss = multi_stage_loss(net.train()(data[0][pick], all_maps=True), labels, partial(coarse_to_fine_loss, topk=None), scheme=scheme)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        if step % 20 == 0:
            with torch.no_grad():
                curve.append([step, (codec.decode(net.eval()(test[0]))[0] - test[1]).norm(dim=-1).mean().item()])
    return curve[-1][1], float(count_macs(net, (64, 64))), curve


def rows(steps: int = 120, seeds: int = 3) -> RunRecord:
    """All arms on the rows of discs; metrics hold mean and spread of the error over seeds."""
    preset = Preset("MSPN_ROWS", steps=steps, batch_size=32, learning_rate=8e-3, warmup_steps=0, size=(64, 64), samples=3000)
    record, begin = new_record("mspn_rows", preset), time.perf_counter()
    data, test = draw_rows(preset.samples, 1), draw_rows(400, 2)
    for arm in ROWS:
        runs = [train_rows(arm, seed, steps, data, test) for seed in range(seeds)]
        errors = torch.tensor([run[0] for run in runs], dtype=torch.float64)
        early = torch.tensor([[error for _, error in run[2]] for run in runs], dtype=torch.float64).mean(0)
        record.metrics |= {f"{arm}_px": errors.mean().item(), f"{arm}_px_sd": errors.std().item(), f"{arm}_macs": runs[0][1]}
        record.metrics[f"{arm}_px_curve"] = [[point[0], value] for point, value in zip(runs[0][2], early.tolist(), strict=True)]
        print(arm, f"{runs[0][1] / 1e6:.2f} M", [round(e, 3) for e in errors.tolist()], [round(e, 2) for e in early.tolist()], flush=True)
    record.metrics["seeds"] = float(seeds)
    record.seconds, record.curve = time.perf_counter() - begin, record.metrics["stages2_px_curve"]
    return record


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=900, help="optimiser steps of each network")
    parser.add_argument("--samples", type=int, default=4000, help="figures drawn for training")
    parser.add_argument("--precision", choices=("no", "bf16"), default="bf16")
    parser.add_argument("--rows", action="store_true", help="the comparison on rows of discs instead of people")
    parser.add_argument("--dry", action="store_true", help="train and score, but leave the project's record and weights alone")
    args = parser.parse_args()
    torch.set_num_threads(1)
    cv2.setNumThreads(1)
    if args.rows:
        record = rows()
        if not args.dry:
            record.save(ROOT / "course" / "runs" / "mspn_rows.json")
        return
    preset = Preset("MSPN_LESSON", steps=args.steps, batch_size=24, learning_rate=4e-3, warmup_steps=min(50, args.steps), weight_decay=1e-3, ema_decay=0.99, size=SIZE, samples=args.samples)
    pool, unseen = render(0, preset.samples, POOL_SIZE), render(UNSEEN_START, UNSEEN, (256, 192))
    systems, records, scores = {}, {}, {}
    for arm in ARMS:
        systems[arm], records[arm] = train(arm, pool, unseen[:WATCHED], preset, args.precision)
        net, found = systems[arm].net, evaluate_topdown(systems[arm], unseen, flip=False)
        own = {key: found[key] for key in ("AP", "AP50", "AP75", "AR", "px")}
        own |= {"macs": float(count_macs(net, preset.size)), "parameters": float(count_parameters(net)), "seconds": records[arm].seconds, "loss": records[arm].curve[-1][1]}
        own |= {"watched_px_curve": records[arm].metrics["watched_px_curve"]}
        scores |= {(name if arm == "two" else f"{arm}_{name}"): value for name, value in own.items()}
        print(arm, {name: value if isinstance(value, list) else round(value, 4) for name, value in own.items()}, flush=True)
    record = records["two"]
    record.device += ", bf16" if args.precision == "bf16" else ""
    record.metrics |= {"figures_evaluated": float(UNSEEN), **scores}
    if args.dry:
        return
    record.save(ROOT / "course" / "runs" / "mspn_small.json")
    system = systems["two"]
    path = save_weights(system.net.half(), ROOT / "posetutor" / "weights" / "mspn_small.safetensors", {"name": record.name, "preset": record.preset, "net": system.net.spec})
    print(f"wrote course/runs/mspn_small.json and {path.name} ({path.stat().st_size / 1e6:.1f} MB)")


if __name__ == "__main__":
    main()
