"""The table "codec x resolution": one small network per codec, read at 7x7, 14x14, 28x28 and 56x56 cells.

    python course/train_codecs.py                          # LESSON: every run that is not there yet, about an hour of one core
    python course/train_codecs.py --only gaussian dsnt     # some codecs; run it again to continue after a stop
    python course/train_codecs.py --table                  # only gather the finished runs into course/runs/codec_table.json
    python course/train_codecs.py --steps 20 --dry         # a trial in a folder of its own that leaves the project's record alone
    python course/train_codecs.py --preset FULL            # for a GPU: crops of 224 x 224 and a trunk four times as wide

Every codec has its own network; all are of one architecture and learn by one recipe: a trunk down to 7x7 cells, a way back up to 56x56, and on each
of the four levels one small layer that gives what the codec asks for. The four losses are added. So the columns of the table share a trunk, and its
rows differ in the representation alone; decoders that read the same maps read the same network. Cells tile the crop (half-pixel ruler) for all codecs.
Drawn figures first; from there each network is taught 300 sports photographs (POSETUTOR_DATA, left out when unset).
Each run has a folder under _out/codecs (checkpoints, weights, its own record), so nothing is computed twice; chapter 29 shows the record.
"""

import argparse
import shutil
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, Dataset

from posetutor.codecs.base import RegressionCodec
from posetutor.codecs.compare import ruled
from posetutor.codecs.dsnt import DsntCodec
from posetutor.codecs.gaussian import GaussianCodec
from posetutor.codecs.offsets import DiskCodec
from posetutor.codecs.simcc import SimccCodec, SimccHead
from posetutor.codecs.udp import CombinedCodec
from posetutor.core import Preset, RunRecord, describe_device, new_record, seed_rng
from posetutor.data.augment import NO_AUGMENT, Augment, CropDataset, collate, normalise_images
from posetutor.data.coco import local_set
from posetutor.data.figures import figures
from posetutor.losses.coords import ResidualLikelihood, RleCodec
from posetutor.metrics.oks import oks, pck
from posetutor.nets.simple_baseline import BasicBlock
from posetutor.skeletons import COCO_17, LSP_14, Skeleton
from posetutor.systems.topdown import LESSON_FIGURES
from posetutor.train.engine import fit, load_weights

ROOT = Path(__file__).resolve().parent.parent
OUT = ROOT / "_out" / "codecs"
CELLS = (7, 14, 28, 56)
LESSON = Preset("LESSON", steps=1200, batch_size=32, learning_rate=5e-3, warmup_steps=50, weight_decay=1e-3, ema_decay=0.99, size=(112, 112), samples=8000)
FULL = Preset("FULL", steps=150_000, batch_size=128, learning_rate=1e-3, warmup_steps=500, weight_decay=1e-4, ema_decay=0.999, size=(224, 224), samples=100_000)
WIDTHS = {"LESSON": (16, 32, 48, 96), "FULL": (64, 128, 256, 512)}  # of the trunk at strides 2, 4, 8, 16
SPORT_SHARE, SPORT_RATE = 0.25, 0.5  # the photographs get a quarter of the steps at half the rate
SPORT_AUGMENT = Augment(rotation=30, scale=0.2, shift=0.03, half_body_prob=0, photometric=0.3)
MARGIN = 8  # figures are drawn so much larger than the crop and shifted at random
UNSEEN, UNSEEN_START = 1000, 1_000_000  # drawn figures of the test; training draws indices below 100 000


# --- codecs ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Family:
    """One representation. teach: (crop size, cells) -> the codec that encodes and has the loss. read: name -> the same for decoding.
    head: "maps", "vectors" or "point" (no map: once, from the coarsest level). scale: (crop size, cells) -> factor of the loss, so that all levels count.
    beside: makes a module that is trained with the network and handed to the codec as `likelihood`."""

    teach: Callable
    read: Mapping[str, Callable]
    head: str = "maps"
    scale: Callable = field(default=lambda size, cells: float(cells * cells))  # losses that are means over cells
    beside: Callable[[], nn.Module] | None = None


def sigma_of(cells: int) -> float:
    """Width of the Gaussian in cells: 4 px of a crop of 112, and never below one cell."""
    return max(1.0, cells / 28)


GAUSSIAN_READERS = ("argmax", "quarter", "second_peak", "parabola", "paraboloid", "ccm", "log_parabola", "dark", "udp", "least_squares")


def of(kind: Callable, **settings: object) -> Callable:
    """(crop size, cells) -> a map codec whose cells tile the crop."""
    return lambda size, cells: ruled(kind, size, size[0] // cells, "half", **settings)


def gaussian(decoder: str, rounded: bool = False) -> Callable:
    return lambda size, cells: ruled(GaussianCodec, size, size[0] // cells, "half", sigma=sigma_of(cells), rounded=rounded, decoder=decoder)


def direct(size: tuple[int, int], cells: int) -> RegressionCodec:
    return RegressionCodec(size)


def expectation(size: tuple[int, int], cells: int) -> DsntCodec:
    return DsntCodec(size, size[0] // cells)


def likelihood(size: tuple[int, int], cells: int) -> RleCodec:
    return RleCodec(size)


def vectors(size: tuple[int, int], cells: int) -> SimccCodec:
    return SimccCodec(size)


def one(size: tuple[int, int], cells: int) -> float:
    return 1.0


FAMILIES: dict[str, Family] = {
    "gaussian": Family(gaussian("argmax"), {name: gaussian(name) for name in GAUSSIAN_READERS}),
    "dsnt": Family(expectation, {"dsnt": expectation}, scale=one),
    "direct": Family(direct, {"direct": direct}, "point", one),
    "rle": Family(likelihood, {"rle": likelihood}, "point", one, ResidualLikelihood),
    "simcc": Family(vectors, {"simcc": vectors}, "vectors", one),
    "combined": Family(of(CombinedCodec), {"combined": of(CombinedCodec)}),
    "rounded": Family(gaussian("argmax", True), {f"{name}_rounded": gaussian(name, True) for name in GAUSSIAN_READERS}),
    "disk": Family(of(DiskCodec), {"hough": of(DiskCodec)}),
}


# --- network ---------------------------------------------------------------------------------------------------------


def conv(channels_in: int, channels: int, stride: int = 1) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(channels_in, channels, 3, stride, 1, bias=False), nn.BatchNorm2d(channels), nn.ReLU(inplace=True))


class Pyramid(nn.Module):
    """A trunk from stride 2 to stride 16 and back, with a head on each level; crops of 16 x 7 = 112 px give 7, 14, 28 and 56 cells.

    heads: cells (7, 14, 28, 56) -> module on the features of that level; 0 -> number of outputs of one fully connected layer on the 7x7 level.
    Images (B, 3, H, W) to {cells: output}. The large preset's crops of 224 x 224 get one more halving in front.
    """

    def __init__(self, widths: tuple[int, ...], heads: Callable[[int, int], nn.Module], size: tuple[int, int], levels: tuple[int, ...] = CELLS):
        super().__init__()
        a, b, c, d = widths
        self.front = nn.Sequential(*[conv(3, 3, 2) for _ in range(size[0] // 112 - 1)])
        self.stem = conv(3, a, 2)
        self.down = nn.ModuleList(
            [BasicBlock(a, b, 2), nn.Sequential(BasicBlock(b, c, 2), BasicBlock(c, c)), nn.Sequential(BasicBlock(c, d, 2), BasicBlock(d, d))]
        )
        widths_up = {7: c + c // 3, 14: c, 28: b, 56: b * 3 // 4}
        self.deepest = conv(d, widths_up[7])
        self.sides = nn.ModuleDict({str(n): nn.Conv2d(w, widths_up[n // 2], 1) for n, w in ((14, c), (28, b), (56, a))})
        self.up = nn.ModuleDict({str(n): conv(widths_up[n // 2], widths_up[n]) for n in CELLS[1:]})
        self.levels = levels
        self.heads = nn.ModuleDict({str(n): heads(n, widths_up[n or 7]) for n in levels})
        self.to(memory_format=torch.channels_last)

    def forward(self, images: Tensor) -> dict[int, Tensor]:
        x = self.stem(self.front(images.contiguous(memory_format=torch.channels_last)))
        seen = {56: x}
        for cells, block in zip((28, 14, 7), self.down, strict=True):
            x = seen[cells] = block(x)
        x = self.deepest(x)
        found = {0: x, 7: x}
        for cells in CELLS[1:]:
            if cells > max(self.levels):
                break
            x = self.up[str(cells)](F.interpolate(x, scale_factor=2) + self.sides[str(cells)](seen[cells]))
            found[cells] = x
        return {n: self.heads[str(n)](found[n]) for n in self.levels}


def build(name: str, preset: Preset, K: int) -> Pyramid:
    """The network of a family."""
    family, size = FAMILIES[name], preset.size
    torch.manual_seed(preset.seed)
    if family.head == "point":
        outputs = family.teach(size, 0).channels(K)
        heads, levels = lambda n, channels: nn.Sequential(nn.Conv2d(channels, 32, 1), nn.ReLU(inplace=True), nn.Flatten(), nn.Linear(32 * 49, outputs)), (0,)
    elif family.head == "vectors":
        heads, levels = lambda n, channels: nn.Sequential(nn.Conv2d(channels, K, 1), SimccHead(K, (n, n), family.teach(size, n).bins)), CELLS
    else:
        heads, levels = lambda n, channels: nn.Conv2d(channels, family.teach(size, n).channels(K), 1), CELLS
    net = Pyramid(WIDTHS[preset.name], heads, size, levels)
    net.beside = family.beside() if family.beside else None
    return net


# --- data ------------------------------------------------------------------------------------------------------------


class DrawnCrops(Dataset):
    """Drawn figures kept in memory, a little larger than the crop: each item is a window of one of them, at random but fixed by (seed, epoch, index).

    still: the middle window and no mirror, for the test."""

    def __init__(self, start: int, count: int, size: tuple[int, int], *, still: bool = False, seed: int = 0):
        self.size, self.still, self.seed, self.epoch, self.skeleton = size, still, seed, 0, COCO_17
        larger = (size[0] + MARGIN, size[1] + MARGIN)
        self.images = np.empty((count, *larger, 3), np.uint8)
        self.xy, self.vis, self.area = np.empty((count, COCO_17.K, 2), np.float32), np.empty((count, COCO_17.K), np.int64), np.empty(count, np.float32)
        for n, record in enumerate(figures(count, start=start, size=larger, config=LESSON_FIGURES)):
            person = record.people[0]
            self.images[n], self.xy[n], self.vis[n], self.area[n] = record.image, record.xy[person], record.vis[person], record.areas[person]

    def __len__(self) -> int:
        return len(self.images)

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def __getitem__(self, index: int) -> dict:
        rng = seed_rng(self.seed, self.epoch, index)
        x, y = (MARGIN // 2, MARGIN // 2) if self.still else rng.integers(0, MARGIN + 1, 2)
        image, xy, vis = self.images[index, y : y + self.size[0], x : x + self.size[1]], self.xy[index] - (x, y), self.vis[index]
        if not self.still and rng.random() < 0.5:
            order = list(self.skeleton.flip_index)
            image, xy, vis = image[:, ::-1], (self.size[1] - 1 - xy[:, 0], xy[:, 1]), vis[order]
            xy = np.stack(xy, -1)[order]
        return {
            "image": torch.from_numpy(np.ascontiguousarray(image.transpose(2, 0, 1))),
            "xy": torch.from_numpy(xy.astype(np.float32)),
            "vis": torch.from_numpy(vis.copy()),
            "area": torch.tensor(self.area[index]),
        }


def data_of(data: str, preset: Preset) -> tuple[Dataset, Dataset, Skeleton] | None:
    """Training set, test set and skeleton; None when the photographs are not there."""
    if data == "drawn":
        return DrawnCrops(0, preset.samples, preset.size), DrawnCrops(UNSEEN_START, UNSEEN, preset.size, still=True), COCO_17
    train, test = local_set("lspet400/train"), local_set("lspet400/val")
    if train is None:
        return None
    return CropDataset(train, preset.size, augment=SPORT_AUGMENT, cache=True), CropDataset(test, preset.size, augment=NO_AUGMENT), LSP_14


def inside(xy: Tensor, vis: Tensor, size: tuple[int, int]) -> Tensor:
    """Visibility with every joint outside the crop taken out: no map could answer for it."""
    within = ((xy > -0.5) & (xy < torch.tensor([size[1] - 0.5, size[0] - 0.5], device=xy.device))).all(-1)
    return vis * within


def pictures(batch: Mapping[str, Tensor]) -> Tensor:
    return normalise_images(batch["image"].float() / 255, "imagenet")


# --- training and reading --------------------------------------------------------------------------------------------


def training_loss(name: str, size: tuple[int, int]) -> Callable:
    """step(model, batch) of a family: the sum of its losses over the levels."""
    family = FAMILIES[name]

    def step(model: nn.Module, batch: Mapping[str, Tensor]) -> Tensor:
        vis, total = inside(batch["xy"], batch["vis"], size), 0.0
        beside = getattr(model, "beside", None)
        for cells, output in model(pictures(batch)).items():
            codec = family.teach(size, cells)
            codec = codec if beside is None else replace(codec, likelihood=beside)
            total = total + family.scale(size, cells) * codec.loss(output, codec.encode(batch["xy"], vis))
        return total

    return step


@torch.no_grad()
def read(model: nn.Module, name: str, test: Dataset, skeleton: Skeleton, size: tuple[int, int]) -> dict[str, float]:
    """Errors of every reader of a family at every level: mean, median and 95th percentile in crop px, PCK at 5 % of the crop, mean OKS."""
    model.eval()
    where = next(model.parameters()).device
    outputs, truth = [], {"xy": [], "vis": [], "area": []}
    for batch in DataLoader(test, batch_size=100, collate_fn=collate):
        outputs.append(model(pictures({"image": batch["image"].to(where)})))
        scale = torch.linalg.det(batch["matrix"][:, :2, :2]).abs() if "matrix" in batch else 1.0
        for key, value in (("xy", batch["xy"]), ("vis", inside(batch["xy"], batch["vis"], size)), ("area", batch["area"] * scale)):
            truth[key].append(value)
    xy, vis, area = (torch.cat(truth[key]) for key in ("xy", "vis", "area"))
    metrics = {}
    for cells in outputs[0]:
        for reader, codec in FAMILIES[name].read.items():
            found = torch.cat([codec(size, cells).decode(part[cells])[0].float().cpu() for part in outputs])
            error = (found - xy).norm(dim=-1)[vis > 0].double()
            people = (vis > 0).any(-1)
            numbers = {
                "px": error.mean(),
                "median": error.median(),
                "p95": error.quantile(0.95),
                "pck": pck(found, xy, vis, float(size[0]), 0.05).pooled,
                "oks": oks(found, xy, vis, area, skeleton.sigmas_tensor())[people].mean(),
            }
            metrics |= {f"{reader}{f'_{cells}' if cells else ''}_{what}": float(value) for what, value in numbers.items()}
    return metrics


def run(name: str, data: str, preset: Preset, folder: Path, precision: str, sets: tuple) -> RunRecord:
    """Train one network and read it, unless its record is there already."""
    part = folder / f"{data}_{name}" / "part.json"
    if part.is_file():
        return RunRecord.load(part)
    train, test, skeleton = sets
    model = build(name, preset, skeleton.K)
    if data != "drawn":
        before, own = load_weights(folder / f"drawn_{name}" / "weights.safetensors")[0], model.state_dict()
        model.load_state_dict({**own, **{k: v for k, v in before.items() if k in own and own[k].shape == v.shape}})
        steps = max(1, int(preset.steps * SPORT_SHARE))
        preset = preset.replace(steps=steps, learning_rate=preset.learning_rate * SPORT_RATE, warmup_steps=min(preset.warmup_steps, steps), samples=0)
    cpu = time.process_time()
    record = fit(
        model,
        training_loss(name, preset.size),
        train,
        preset,
        folder=part.parent,
        collate=collate,
        precision=precision,
        name=f"{data}_{name}",
        progress=False,
        clip_norm=None,
    )
    record.metrics = read(model, name, test, skeleton, preset.size) | {
        "cpu_seconds": time.process_time() - cpu,
        "parameters": float(sum(p.numel() for p in model.parameters())),
    }
    record.device = describe_device() + (", bf16" if precision == "bf16" else "")
    record.save(part)
    return record


def gather(preset: Preset, folder: Path, name: str) -> RunRecord:
    """One record of all finished runs; metric names are data_reader_cells_what, such as drawn_dark_14_px."""
    parts = {p.parent.name: RunRecord.load(p) for p in sorted(folder.glob("*/part.json"))}
    record = new_record(name, preset)
    newest = max(parts.values(), key=lambda r: r.date)
    record.device, record.date, record.revision, record.versions = newest.device, newest.date, newest.revision, newest.versions
    record.seconds = sum(r.seconds for r in parts.values())
    record.metrics = {"runs": len(parts)}
    for run_name, one in parts.items():
        data = run_name.partition("_")[0]
        record.metrics |= {f"{data}_{key}": value for key, value in one.metrics.items() if key not in ("cpu_seconds", "parameters")}
        record.metrics |= {f"{run_name}_seconds": one.metrics["cpu_seconds"], f"{run_name}_loss": one.curve[-1][1], f"{run_name}_steps": one.preset["steps"]}
    return record


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", nargs="+", choices=list(FAMILIES), default=list(FAMILIES), help="families to train (default: all)")
    parser.add_argument("--data", nargs="+", choices=("drawn", "sport"), default=["drawn", "sport"])
    parser.add_argument("--preset", choices=("LESSON", "FULL"), default="LESSON")
    parser.add_argument("--steps", type=int, help="optimiser steps on drawn figures (default: the preset's)")
    parser.add_argument("--samples", type=int, help="figures drawn for training (default: the preset's)")
    parser.add_argument("--threads", type=int, default=1, help="torch threads")
    parser.add_argument("--precision", choices=("no", "bf16"), default="no", help="bf16: faster on processors with AVX512-BF16 or AMX, slower on others")
    parser.add_argument("--folder", type=Path, help="where the runs live (default: _out/codecs)")
    parser.add_argument("--table", action="store_true", help="gather only")
    parser.add_argument("--dry", action="store_true", help="leave the project's record alone, and forget earlier trials")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    preset = {"LESSON": LESSON, "FULL": FULL}[args.preset]
    steps, samples = args.steps or preset.steps, args.samples or preset.samples
    preset = preset.replace(steps=steps, samples=samples, warmup_steps=min(preset.warmup_steps, steps))
    folder = args.folder or (OUT / "trial" if args.dry else OUT / preset.name.lower())
    if args.dry:
        shutil.rmtree(folder, ignore_errors=True)
    record_name = "codec_table" if preset.name == "LESSON" else "codec_table_full"
    for data in () if args.table else args.data:
        names = [n for n in args.only if not (folder / f"{data}_{n}" / "part.json").is_file()]
        if data == "sport":
            names = [n for n in names if (folder / f"drawn_{n}" / "part.json").is_file()]
        sets = data_of(data, preset) if names else None
        if names and sets is None:
            print("no photographs: set POSETUTOR_DATA for the sports part", flush=True)
            continue
        for name in names:
            record = run(name, data, preset, folder, args.precision, sets)
            best = {key: round(value, 2) for key, value in record.metrics.items() if key.endswith("_px")}
            print(
                f"{record.name}: {record.seconds:.0f} s ({record.metrics['cpu_seconds']:.0f} of the processor), loss {record.curve[-1][1]:.4g}, {best}",
                flush=True,
            )
    if list(folder.glob("*/part.json")):
        record = gather(preset, folder, record_name)
        where = (folder if args.dry else ROOT / "course" / "runs") / f"{record_name}.json"
        print(f"{record.save(where).name}: {record.metrics['runs']} runs, {record.seconds:.0f} s")


if __name__ == "__main__":
    main()
