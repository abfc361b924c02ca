"""A small training run for tests/test_engine.py, started as a script: alone, under `accelerate launch`, and to be killed.

    python tests/engine_job.py FOLDER [key=value ...]      result in FOLDER/record.json and FOLDER/weights.safetensors
"""

import os
import signal
import sys
from pathlib import Path

import torch
from torch import nn
from torch.utils.data import Dataset

import posetutor.train.engine as engine
from posetutor.core import Preset, seed_generator


class Lines(Dataset):
    """Noisy linear data whose noise depends on (epoch, index), and on nothing else."""

    epoch = 0

    def __len__(self):
        return 50

    def set_epoch(self, epoch):
        self.epoch = epoch

    def __getitem__(self, index):
        x = torch.randn(6, generator=seed_generator(1, index))
        noise = torch.randn(6, generator=seed_generator(2, self.epoch, index))
        weight = float(index % 4 == 0) + 0.1  # what a joint's visibility does to a mean
        return dict(x=x + 0.1 * noise, y=x[:2] * 2 + x[2:4], weight=weight)


def network(dropout=0.0, wide=16):
    torch.manual_seed(5)
    return nn.Sequential(nn.Linear(6, wide), nn.GELU(), nn.Dropout(dropout), nn.Linear(wide, 2))


def mean_loss(model, batch):
    return (model(batch["x"]) - batch["y"]).square().mean()


def weighted_loss(model, batch):
    error = (model(batch["x"]) - batch["y"]).square().mean(dim=1)
    return (batch["weight"] * error).sum(), batch["weight"].sum()


def job(folder, *, steps=24, batch=8, accumulate=1, workers=0, weighted=0, dropout=0.0, save_every=2, die_at=0, die_writing=0, bad_item=-1, wide=16):
    preset = Preset("job", steps=steps, batch_size=batch, accumulate=accumulate, learning_rate=1e-2, warmup_steps=4, weight_decay=1e-2, ema_decay=0.95, seed=3)
    loss = weighted_loss if weighted else mean_loss

    def step(model, batch):
        step.calls += 1
        if step.calls == die_at:
            os.kill(os.getpid(), signal.SIGKILL)
        value = loss(model, batch)
        return value * float("nan") if (batch["x"] == bad_x).all(dim=1).any() else value

    step.calls = 0
    data = Lines()
    bad_x = data[bad_item]["x"] if bad_item >= 0 else torch.full((6,), torch.inf)
    if bad_item >= 0:
        data.set_epoch = lambda epoch: None
    if die_writing:  # killed with half of the file on the disk
        save_file, writes = engine.save_file, []

        def half(tensors, path, metadata):
            save_file(tensors, path, metadata)
            writes.append(path)
            if len(writes) == die_writing:
                Path(path).write_bytes(Path(path).read_bytes()[: Path(path).stat().st_size // 2])
                os.kill(os.getpid(), signal.SIGKILL)

        engine.save_file = half
    return engine.fit(network(dropout, wide), step, data, preset, folder=folder, workers=workers, save_every=save_every, progress=False)


if __name__ == "__main__":
    torch.set_num_threads(1)
    options = dict(entry.split("=") for entry in sys.argv[2:])
    job(sys.argv[1], **{key: float(value) if "." in value else int(value) for key, value in options.items()})
