"""Train the small HigherHRNet of chapter 45 on drawn scenes of near and far people; score its 1/4 maps, its 1/2 maps and their mean on scenes no training drew.

    python course/train_higherhrnet.py                  # about ten minutes on one idle core with bfloat16 instructions
    python course/train_higherhrnet.py --steps 20 --dry # a short trial that writes nothing into the project

Two arms from one trunk (the shipped narrow HRNet): both resolutions as in the paper, and the 1/4 output alone. Writes
course/runs/higherhrnet_small.json (preset, seed, versions, device, date, seconds, curve, scores, revision) and
posetutor/weights/higherhrnet_small.safetensors (half precision, the first arm).
"""

import argparse
from pathlib import Path

import cv2
import torch
from torch.nn import functional as F
from torch.utils.data import Dataset
from train_lesson import UNSEEN_START

from posetutor.data.augment import normalise_images
from posetutor.data.figures import draw_scene
from posetutor.nets.higherhrnet import aggregate_outputs, higherhrnet_small, masked_mse, people_maps
from posetutor.nets.simple_baseline import count_macs, count_parameters, read_checkpoint
from posetutor.skeletons import COCO_17
from posetutor.systems.topdown import LESSON, LESSON_FIGURES
from posetutor.train.engine import fit, save_weights

ROOT = Path(__file__).resolve().parent.parent
SIZE, PEOPLE, SIGMA, UNSEEN = (128, 160), (1, 4), 1.0, 250
CLASSES = {"small": (0.0, 40.0), "middle": (40.0, 80.0), "large": (80.0, 1e9)}  # height of the labelled joints, px


def scene(index: int):
    """(image (3, H, W) uint8, joints (N, K, 2), visibility (N, K)) of one drawn scene."""
    record = draw_scene(index, people=PEOPLE, size=SIZE, config=LESSON_FIGURES)
    return torch.from_numpy(record.load()).permute(2, 0, 1), torch.from_numpy(record.xy), torch.from_numpy(record.vis)


def targets(xy, vis, stride: int):
    return people_maps((xy + 0.5) / stride, vis, (SIZE[0] // stride, SIZE[1] // stride), sigma=SIGMA, cell="exact")


class Scenes(Dataset):
    def __init__(self, scenes):
        self.scenes = scenes

    def __len__(self):
        return len(self.scenes)

    def __getitem__(self, index):
        image, xy, vis = self.scenes[index]
        return {"image": image, "quarter": targets(xy, vis, 4), "half": targets(xy, vis, 2)}


def step(model, batch):
    outputs = model(normalise_images(batch["image"].float() / 255))
    return 1000 * sum(masked_mse(maps[:, : COCO_17.K], batch[name]).mean() for maps, name in zip(outputs, ("quarter", "half"), strict=False))


def peaks(maps, stride, keep=12):
    """Local maxima of every map: scores (B, K, keep) and places (B, K, keep, 2) in image px, moved a quarter cell to the higher neighbour."""
    B, K, H, W = maps.shape
    top = torch.where(F.max_pool2d(maps, 3, 1, 1) == maps, maps, torch.full_like(maps, -1.0))
    score, place = top.flatten(2).topk(keep, dim=-1)
    x, y = place % W, place // W
    padded = F.pad(maps, (1, 1, 1, 1), mode="replicate").flatten(2)

    def at(dx, dy):
        return padded.gather(2, (y + 1 + dy) * (W + 2) + x + 1 + dx)

    quarter = 0.25 * torch.stack([at(1, 0) - at(-1, 0), at(0, 1) - at(0, -1)], -1).sign()
    return score, (torch.stack([x, y], -1) + quarter + 0.5) * stride - 0.5


def break_even(score, place, scenes) -> dict[str, float]:
    """Share of joints found when as many peaks are kept as there are joints; a joint is found by a peak of its kind with OKS >= 0.5 for its person."""
    sigmas = COCO_17.sigmas_tensor()
    wanted = sum(int((vis > 0).sum()) for _, _, vis in scenes)
    threshold = score.flatten().sort(descending=True).values[min(wanted, score.numel()) - 1]
    hits: dict[str, list] = {name: [] for name in (*CLASSES, "all")}
    off: dict[str, list] = {name: [] for name in (*CLASSES, "all")}
    for (_, xy, vis), s, p in zip(scenes, score, place, strict=True):
        height = torch.stack([torch.where(v > 0, q[:, 1], q[:, 1][v > 0].mean()).max() - torch.where(v > 0, q[:, 1], q[:, 1][v > 0].mean()).min() for q, v in zip(xy, vis, strict=True)])
        gap = (p[None] - xy[:, :, None]).norm(dim=-1)  # (N, K, keep)
        gap = torch.where(s[None] >= threshold, gap, torch.inf).amin(-1)
        scale2 = 0.4 * height[:, None] ** 2  # area of a standing person of this height, roughly
        found = torch.exp(-gap.square() / (2 * scale2 * (2 * sigmas) ** 2)) >= 0.5
        for n in range(len(xy)):
            names = [name for name, (low, high) in CLASSES.items() if low <= height[n] < high] + ["all"]
            for name in names:
                hits[name] += found[n][vis[n] > 0].tolist()
                off[name] += gap[n][(vis[n] > 0) & found[n]].tolist()
    return {f"{name}_recall": sum(h) / max(len(h), 1) for name, h in hits.items()} | {f"{name}_px": float(torch.tensor(v).median()) if v else float("nan") for name, v in off.items()} | {f"{name}_joints": float(len(h)) for name, h in hits.items()}


def evaluate(net, scenes, prefix="") -> dict[str, float]:
    net.eval()
    with torch.no_grad():
        outputs = [net(normalise_images(torch.stack([image for image, _, _ in scenes[n : n + 10]]).float() / 255)) for n in range(0, len(scenes), 10)]
    joined = [torch.cat(maps) for maps in zip(*outputs, strict=True)]
    K, found = COCO_17.K, {}
    found["quarter"] = peaks(joined[0][:, :K], 4)
    if len(joined) > 1:
        found["half"] = peaks(joined[1], 2)
        found["mean"] = peaks(aggregate_outputs(joined, K)[0], 2)
        found["quarter_enlarged"] = peaks(aggregate_outputs(joined, K, use=(True, False))[0], 2)
    return {f"{prefix}{arm}_{key}": value for arm, got in found.items() for key, value in break_even(*got, scenes).items() if not key.endswith("_joints") or (arm == "quarter" and not prefix)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=700, help="optimiser steps of each arm")
    parser.add_argument("--samples", type=int, default=1500, help="scenes drawn for training")
    parser.add_argument("--precision", choices=("no", "bf16"), default="bf16")
    parser.add_argument("--dry", action="store_true", help="train and score, but leave the project's record and weights alone")
    args = parser.parse_args()
    torch.set_num_threads(1)
    cv2.setNumThreads(1)
    preset = LESSON.replace(name="HIGHERHRNET_LESSON", steps=args.steps, samples=args.samples, batch_size=16, size=SIZE, learning_rate=3e-3, ema_decay=0.98, warmup_steps=min(50, args.steps))
    data = Scenes([scene(n) for n in range(preset.samples)])
    unseen = [scene(UNSEEN_START + n) for n in range(UNSEEN)]
    trunk = {n.removeprefix("net."): t.float() if t.is_floating_point() else t for n, t in read_checkpoint(ROOT / "posetutor" / "weights" / "hrnet_small.safetensors").items()}
    nets, records, scores = {}, {}, {}
    for arm, options in {"both": {}, "single": {"deconv_channels": (), "tags": (False,)}}.items():
        torch.manual_seed(preset.seed)
        net = higherhrnet_small(COCO_17.K, weights=trunk, **({"tags": (False, False)} | options))
        records[arm] = fit(net, step, data, preset, name="higherhrnet_small", precision=args.precision, progress=False)
        nets[arm] = net
        scores |= evaluate(net, unseen, "" if arm == "both" else "single_")
        scores |= {f"{arm}_macs": float(count_macs(net, SIZE)), f"{arm}_parameters": float(count_parameters(net)), f"{arm}_seconds": records[arm].seconds, f"{arm}_loss": records[arm].curve[-1][1]}
        print(arm, round(records[arm].seconds), {k: round(v, 3) for k, v in scores.items()}, flush=True)
    record = records["both"]
    record.device += ", bf16" if args.precision == "bf16" else ""
    record.metrics |= {"scenes_evaluated": float(UNSEEN), "sigma": SIGMA, **scores}
    if args.dry:
        return
    record.save(ROOT / "course" / "runs" / "higherhrnet_small.json")
    path = save_weights(nets["both"].half(), ROOT / "posetutor" / "weights" / "higherhrnet_small.safetensors", {"net": "higherhrnet_small", "K": COCO_17.K, "tags": [False, False], "size": list(SIZE)})
    print(f"wrote course/runs/higherhrnet_small.json and {path.name} ({path.stat().st_size / 1e6:.1f} MB)")


if __name__ == "__main__":
    main()
