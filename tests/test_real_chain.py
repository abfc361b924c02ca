"""Real photographs through the whole chain: COCO file -> records -> crops -> training -> estimates -> COCO's evaluator.

A small network that is allowed to memorise twenty people must reach a nearly perfect score on them; any slip in a frame, a flip, a
box or a file format makes that impossible. Needs the photographs: the folder is named by the environment variable POSETUTOR_DATA.
"""

import time

import numpy as np
import pytest
import torch

from posetutor.core import Preset
from posetutor.data.augment import NO_AUGMENT
from posetutor.data.coco import local_set
from posetutor.skeletons import Record
from posetutor.systems.topdown import TopDown, evaluate_topdown, train_topdown

PEOPLE, LABELLED, HEIGHT = 20, 12, 80
PRESET = Preset("overfit", steps=260, batch_size=20, learning_rate=3e-3, warmup_steps=20, ema_decay=0.95, size=(128, 96))


def one_person_records() -> list[Record]:
    """The first twenty people of the training photographs with enough labelled joints and pixels, each as a record of its own."""
    photographs = local_set("coco_mini/train")
    if photographs is None:
        pytest.skip("POSETUTOR_DATA is not set: the real photographs are not part of the package")
    found = []
    for record in photographs:
        for person in record.people:
            if (record.vis[person] > 0).sum() >= LABELLED and record.boxes[person, 3] >= HEIGHT:
                one = slice(person, person + 1)
                found.append(
                    Record(record.load(), None, len(found) + 1, record.size, record.boxes[one], record.xy[one], record.vis[one], record.areas[one], None, None, record.skeleton)
                )
    return found[:PEOPLE]


@pytest.fixture(scope="module")
def trained():
    records = one_person_records()
    assert len(records) == PEOPLE
    begin = time.perf_counter()
    system, run = train_topdown(records, PRESET, augment=NO_AUGMENT, progress=False)
    return records, system, run, time.perf_counter() - begin


@pytest.mark.timeout(900)
def test_twenty_people_are_learned_by_heart(trained):
    records, system, run, seconds = trained
    scores = evaluate_topdown(system, records, flip=False)
    print(f"AP {scores['AP']:.3f}, AP75 {scores['AP75']:.3f}, median {scores['px']:.2f} px in {seconds:.0f} s, loss {run.curve[0][1]:.5f} -> {run.curve[-1][1]:.6f}")
    assert scores["AP"] >= 0.95


def test_the_saved_system_scores_the_same(trained, tmp_path):
    records, system, _, _ = trained
    again = TopDown.load(system.save(tmp_path / "overfit.safetensors"))
    assert evaluate_topdown(again, records, flip=False)["AP"] == evaluate_topdown(system, records, flip=False)["AP"]


def test_estimates_lie_on_the_photograph(trained):
    records, system, _, _ = trained
    for record in records[:5]:
        poses = system.estimate(record.load(), boxes=record.boxes, flip=False)
        labelled = record.vis[0] > 0
        error = np.linalg.norm(poses.xy[0] - record.xy[0], axis=1)[labelled]
        assert np.median(error) < 0.03 * record.boxes[0, 2:].max()  # within 3 % of the person's size
    assert torch.get_num_threads() >= 1
