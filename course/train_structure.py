"""Does a bone loss help? One small network per rule and seed, all on the same batches, on drawn figures and on 300 sports photographs.

    python course/train_structure.py                         # every part that is not there yet, about a quarter of an hour of one core
    python course/train_structure.py --only drawn_mean       # one part; run it again to continue after a stop
    python course/train_structure.py --steps 20 --dry        # a trial in a folder of its own that leaves the project's record alone

Parts: drawn figures (drawn_) or photographs of POSETUTOR_DATA (sport_, left out when unset), and two ways to a coordinate: the mean of a map
(mean) or a fully connected layer (direct). In each part all rules start from the same weights (per seed), see the same crops in the same order, and
are tested on the same people at the same steps. The networks of the photographs start from a trunk taught on drawn figures by L1 alone.
Chapter 34 shows the record, course/runs/structure.json; metric names are drawn_mean_limbs_s0_at90_px for
a seed at a step, drawn_mean_limbs_s0_px at the end, drawn_mean_limbs_px for the mean of the seeds, and the same with bones.
"""

import argparse
import math
import shutil
import sys
import time
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

sys.path.insert(0, str(Path(__file__).resolve().parent))
from train_codecs import UNSEEN_START, DrawnCrops, Pyramid, data_of, inside, pictures

from posetutor.codecs.base import to_centred, weighted_l1
from posetutor.codecs.dsnt import dsnt, normalise_maps
from posetutor.core import Preset, RunRecord, describe_device, new_record
from posetutor.data.augment import collate
from posetutor.losses.structure import bone_lengths, bone_loss
from posetutor.skeletons import COCO_17, Skeleton

ROOT = Path(__file__).resolve().parent.parent
OUT = ROOT / "_out" / "structure"
PRESET = Preset("LESSON", steps=300, batch_size=32, learning_rate=2e-3, warmup_steps=20, weight_decay=0.0, size=(112, 112), samples=3000)
WIDTHS, CELLS, EVERY, UNSEEN = (12, 24, 36, 64), 14, 30, 300
SEEDS = (0, 1, 2)
RULES = {"plain": None, "limbs": (1.0, "limbs"), "pairs": (1.0, "pairs")}  # weight of the bone loss, and which pairs
PARTS = ("drawn_mean", "drawn_direct", "sport_mean", "sport_direct")


def build(head: str, K: int, size: tuple[int, int], seed: int) -> Pyramid:
    """A network that gives maps (mean) or 2 K numbers (direct)."""
    torch.manual_seed(seed)
    if head == "mean":
        return Pyramid(WIDTHS, lambda n, channels: nn.Conv2d(channels, K, 1), size, (CELLS,))
    return Pyramid(
        WIDTHS, lambda n, channels: nn.Sequential(nn.Conv2d(channels, 32, 1), nn.ReLU(inplace=True), nn.Flatten(), nn.Linear(32 * 49, 2 * K)), size, (0,)
    )


def answer(net: nn.Module, images: Tensor, bf16: bool) -> Tensor:
    """Joints (B, K, 2) in the centred frame."""
    with torch.autocast(images.device.type, torch.bfloat16, enabled=bf16):
        (output,) = net(images).values()
    output = output.float()
    return dsnt(normalise_maps(output)) / 2 if output.ndim == 4 else output.unflatten(-1, (-1, 2))


def loss_of(rule: str, found: Tensor, true: Tensor, weight: Tensor, skeleton: Skeleton) -> Tensor:
    """L1 of the joints, and the rule's share of bones."""
    total = weighted_l1(found, true, weight)
    if RULES[rule]:
        share, which = RULES[rule]
        total = total + share * bone_loss(found, true, weight, skeleton.limbs if which == "limbs" else None)
    return total


@torch.no_grad()
def test_of(nets: Mapping, batches: list, skeleton: Skeleton, size: tuple[int, int], bf16: bool) -> dict[str, dict[str, float]]:
    """name -> mean joint error and mean limb error in crop px, over labelled joints and limbs."""
    limbs, found = torch.tensor(skeleton.limbs), {}
    for name, net in nets.items():
        net.eval()
        joints, bones, n, m = 0.0, 0.0, 0, 0
        for images, xy, vis in batches:
            guess = answer(net, images, bf16) * size[0]
            true, seen = to_centred(xy, size) * size[0], vis > 0
            joints, n = joints + float((guess - true).norm(dim=-1)[seen].double().sum()), n + int(seen.sum())
            whole = seen[:, limbs].all(-1)
            gap = (bone_lengths(guess, limbs) - bone_lengths(true, limbs)).abs()[whole]
            bones, m = bones + float(gap.double().sum()), m + int(whole.sum())
        net.train()
        found[name] = {"px": joints / n, "bones": bones / m}
    return found


def train_part(part: str, preset: Preset, sets: tuple[Dataset, Dataset, Skeleton], folder: Path, bf16: bool) -> RunRecord:
    """All rules and seeds of one part in step."""
    data, head = part.split("_")
    train, test, skeleton = sets
    nets = {}
    for seed in SEEDS:
        for rule in RULES:
            net = build(head, skeleton.K, preset.size, seed)
            before = folder / f"drawn_{head}_s{seed}.pt"
            if data == "sport":
                own = net.state_dict()
                net.load_state_dict({**own, **{k: v for k, v in torch.load(before, weights_only=True).items() if own[k].shape == v.shape}})
            nets[f"{rule}_s{seed}"] = net
    optimisers = {name: torch.optim.Adam(net.parameters(), lr=preset.learning_rate) for name, net in nets.items()}
    checks = [(pictures(b), b["xy"], inside(b["xy"], b["vis"], preset.size)) for b in DataLoader(test, batch_size=100, collate_fn=collate)]
    record, start, cpu, step, epoch = new_record(part, preset), time.time(), time.process_time(), 0, 0
    while step < preset.steps:
        train.set_epoch(epoch)
        for batch in DataLoader(
            train, batch_size=preset.batch_size, shuffle=True, drop_last=True, collate_fn=collate, generator=torch.Generator().manual_seed(epoch)
        ):
            images, true, weight = pictures(batch), to_centred(batch["xy"], preset.size), (inside(batch["xy"], batch["vis"], preset.size) > 0).float()
            rate = preset.learning_rate * min(1, (step + 1) / preset.warmup_steps) * (1 + math.cos(math.pi * step / preset.steps)) / 2
            for name, net in nets.items():
                optimisers[name].param_groups[0]["lr"] = rate
                optimisers[name].zero_grad(set_to_none=True)
                loss_of(name.rpartition("_s")[0], answer(net, images, bf16), true, weight, skeleton).backward()
                optimisers[name].step()
            step += 1
            if step % EVERY == 0 or step == preset.steps:
                for name, numbers in test_of(nets, checks, skeleton, preset.size, bf16).items():
                    record.metrics |= {f"{part}_{name}_at{step}_{what}": value for what, value in numbers.items()}
                print(
                    part,
                    step,
                    f"{time.process_time() - cpu:.0f} s",
                    {r: round(sum(record.metrics[f"{part}_{r}_s{s}_at{step}_px"] for s in SEEDS) / len(SEEDS), 2) for r in RULES},
                    flush=True,
                )
            if step == preset.steps:
                break
        epoch += 1
    for name, net in nets.items():
        record.metrics |= {f"{part}_{name}_{what}": record.metrics[f"{part}_{name}_at{step}_{what}"] for what in ("px", "bones")}
        if data == "drawn" and name.startswith("plain"):
            torch.save(net.state_dict(), folder / f"{part}_s{name[-1]}.pt")
    record.metrics[f"{part}_cpu_seconds"] = time.process_time() - cpu
    record.seconds, record.device = time.time() - start, describe_device() + (", bf16" if bf16 else "")
    record.save(folder / f"{part}.json")
    return record


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--steps", type=int, help="optimiser steps of each network (default: the preset's)")
    parser.add_argument("--samples", type=int, help="figures drawn for training (default: the preset's)")
    parser.add_argument("--precision", choices=("no", "bf16"), default="no", help="bf16: faster on processors with AVX512-BF16 or AMX, slower on others")
    parser.add_argument("--dry", action="store_true", help="leave the project's record alone, and forget earlier trials")
    args = parser.parse_args()
    torch.set_num_threads(1)
    steps = args.steps or PRESET.steps
    preset = PRESET.replace(steps=steps, samples=args.samples or PRESET.samples, warmup_steps=min(PRESET.warmup_steps, steps))
    folder = OUT / "trial" if args.dry else OUT
    if args.dry:
        shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True, exist_ok=True)
    sets = {}
    for part in (p for p in args.only if not (folder / f"{p}.json").is_file()):
        data = part.split("_")[0]
        if data not in sets:
            sets[data] = (
                (DrawnCrops(0, preset.samples, preset.size), DrawnCrops(UNSEEN_START, UNSEEN, preset.size, still=True), COCO_17)
                if data == "drawn"
                else data_of("sport", preset)
            )
        if sets[data] is None:
            print("no photographs: set POSETUTOR_DATA for the sports parts", flush=True)
            continue
        train_part(part, preset, sets[data], folder, args.precision == "bf16")
    parts = [RunRecord.load(path) for path in (folder / f"{p}.json" for p in PARTS) if path.is_file()]
    if parts:
        record = new_record("structure", preset)
        newest = max(parts, key=lambda r: r.date)
        record.device, record.date, record.revision, record.versions = newest.device, newest.date, newest.revision, newest.versions
        record.seconds = sum(r.seconds for r in parts)
        for one in parts:
            record.metrics |= one.metrics
            for rule in RULES:
                for what in ("px", "bones"):
                    record.metrics[f"{one.name}_{rule}_{what}"] = sum(one.metrics[f"{one.name}_{rule}_s{seed}_{what}"] for seed in SEEDS) / len(SEEDS)
        print(
            record.save((folder if args.dry else ROOT / "course" / "runs") / "structure.json").name, f"{len(parts)} parts, {record.seconds:.0f} s", flush=True
        )


if __name__ == "__main__":
    main()
