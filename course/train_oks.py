"""Which loss earns the best score? One network per loss, all alike but for the loss, on drawn figures.

    python course/train_oks.py                    # LESSON: every run that is not there yet, about ten minutes of one core
    python course/train_oks.py --only l1 oks      # some losses; run it again to continue after a stop
    python course/train_oks.py --steps 20 --dry   # a trial in a folder of its own that leaves the project's record alone
    python course/train_oks.py --preset FULL      # for a GPU: crops of 224 x 224 and a trunk four times as wide

The network regresses 2 K coordinates by one fully connected layer. All runs start from the same weights, see the same crops in the same order and
have the same schedule; AdamW's steps do not depend on the scale of a loss. Chapter 36 shows the record, course/runs/oks_loss.json.
"""

import argparse
import shutil
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

sys.path.insert(0, str(Path(__file__).resolve().parent))
from train_codecs import FULL, LESSON, DrawnCrops, build, data_of, inside, pictures

from posetutor.codecs.base import from_centred, to_centred, weighted_l1
from posetutor.core import Preset, RunRecord, describe_device, new_record
from posetutor.data.augment import collate
from posetutor.losses.coords import weighted_l2
from posetutor.losses.oks import oks_loss, robust_oks_loss, scaled_l1
from posetutor.metrics.oks import oks
from posetutor.skeletons import COCO_17
from posetutor.train.engine import fit

ROOT = Path(__file__).resolve().parent.parent
OUT = ROOT / "_out" / "oks_loss"
SIGMAS = COCO_17.sigmas_tensor()
FACE = [n for n, name in enumerate(COCO_17.names) if name in {"nose", "left_eye", "right_eye", "left_ear", "right_ear"}]


def centred(loss: Callable, size: tuple[int, int]) -> Callable:
    """A loss of points in px, computed in the centred frame, where a crop has side 1."""
    return lambda xy, truth, weight, area: loss(to_centred(xy, size), to_centred(truth, size), weight)


def losses(size: tuple[int, int]) -> dict[str, Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]]:
    """Name -> loss(xy, truth, weight, area), points in crop px."""
    return {
        "l2": centred(weighted_l2, size),
        "l1": centred(weighted_l1, size),
        "scaled_l1": scaled_l1,
        "oks": lambda xy, truth, weight, area: oks_loss(xy, truth, weight, area, SIGMAS.to(xy.device)),
        "oks_rim": lambda xy, truth, weight, area: robust_oks_loss(xy, truth, weight, area, SIGMAS.to(xy.device), alpha=0.0),
    }


def points(model: nn.Module, batch: Mapping[str, Tensor], size: tuple[int, int]) -> Tensor:
    """Joints (B, K, 2) in crop px."""
    (output,) = model(pictures(batch)).values()
    return from_centred(output.float().unflatten(-1, (-1, 2)), size)


def training_loss(name: str, size: tuple[int, int]) -> Callable:
    """step(model, batch) with one of the losses."""
    rule = losses(size)[name]

    def step(model: nn.Module, batch: Mapping[str, Tensor]) -> Tensor:
        weight = (inside(batch["xy"], batch["vis"], size) > 0).float()
        return rule(points(model, batch, size), batch["xy"], weight, batch["area"])

    return step


@torch.no_grad()
def score(model: nn.Module, test: DrawnCrops, size: tuple[int, int]) -> dict[str, float]:
    """Mean OKS, shares of people at OKS 0.5 and 0.75, errors in crop px, and the mean similarity of face and body joints."""
    model.eval()
    where = next(model.parameters()).device
    parts = []
    for batch in DataLoader(test, batch_size=100, collate_fn=collate):
        found = points(model, {"image": batch["image"].to(where)}, size).cpu()
        parts.append((found, batch["xy"], inside(batch["xy"], batch["vis"], size), batch["area"]))
    found, truth, vis, area = (torch.cat(part) for part in zip(*parts, strict=True))
    labelled = vis > 0
    whole = oks(found, truth, vis, area, SIGMAS)[labelled.any(-1)].double()
    distance = (found - truth).norm(dim=-1)
    similarity = torch.exp(-distance.square() / (8 * area[:, None] * SIGMAS.square()))
    body = [n for n in range(COCO_17.K) if n not in FACE]
    numbers = {
        "oks": whole.mean(),
        "oks50": (whole > 0.5).double().mean(),
        "oks75": (whole > 0.75).double().mean(),
        "px": distance[labelled].mean(),
        "median": distance[labelled].median(),
        "face": similarity[:, FACE][labelled[:, FACE]].mean(),
        "body": similarity[:, body][labelled[:, body]].mean(),
    }
    return {key: float(value) for key, value in numbers.items()}


def run(name: str, preset: Preset, folder: Path, precision: str, sets: tuple) -> RunRecord:
    """Train with one loss and score, unless its record is there already."""
    part = folder / name / "part.json"
    if part.is_file():
        return RunRecord.load(part)
    model, cpu = build("direct", preset, COCO_17.K), time.process_time()
    record = fit(model, training_loss(name, preset.size), sets[0], preset, folder=part.parent, collate=collate, precision=precision, name=name, progress=False)
    record.metrics = score(model, sets[1], preset.size) | {"cpu_seconds": time.process_time() - cpu}
    record.device = describe_device() + (", bf16" if precision == "bf16" else "")
    record.save(part)
    return record


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", nargs="+", choices=list(losses((1, 1))), default=list(losses((1, 1))), help="losses to train with (default: all)")
    parser.add_argument("--preset", choices=("LESSON", "FULL"), default="LESSON")
    parser.add_argument("--steps", type=int, help="optimiser steps (default: the preset's)")
    parser.add_argument("--threads", type=int, default=1, help="torch threads")
    parser.add_argument("--precision", choices=("no", "bf16"), default="no")
    parser.add_argument("--dry", action="store_true", help="leave the project's record alone, and forget earlier trials")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    preset = {"LESSON": LESSON, "FULL": FULL}[args.preset]
    steps = args.steps or preset.steps
    preset = preset.replace(steps=steps, warmup_steps=min(preset.warmup_steps, steps))
    folder = OUT / "trial" if args.dry else OUT / preset.name.lower()
    if args.dry:
        shutil.rmtree(folder, ignore_errors=True)
    sets = data_of("drawn", preset)[:2]
    parts = {name: run(name, preset, folder, args.precision, sets) for name in args.only}
    newest = max(parts.values(), key=lambda r: r.date)
    record = new_record("oks_loss" if preset.name == "LESSON" else "oks_loss_full", preset)
    record.device, record.date, record.revision, record.versions = newest.device, newest.date, newest.revision, newest.versions
    record.seconds = sum(r.seconds for r in parts.values())
    record.metrics = {f"{name}_{key}": value for name, one in parts.items() for key, value in one.metrics.items()}
    for name, one in parts.items():
        print(name, {key: round(value, 3) for key, value in one.metrics.items()}, flush=True)
    print(record.save((folder if args.dry else ROOT / "course" / "runs") / f"{record.name}.json"))


if __name__ == "__main__":
    main()
