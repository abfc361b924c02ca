"""Detection files, result files, hard negatives, schedules and recipes."""

import dataclasses
import json
import pickle

import numpy as np
import pytest
import torch
from torch import nn

from posetutor.codecs.gaussian import GaussianCodec
from posetutor.core import Preset
from posetutor.data.figures import draw_scene, figures
from posetutor.metrics.coco_eval import coco_from_records, evaluate_coco, quiet
from posetutor.nets.simple_baseline import simple_baseline_small
from posetutor.skeletons import COCO_17, LSP_14, Record
from posetutor.systems.protocol import (
    RECIPES,
    DetectionFile,
    LinearSchedule,
    StepSchedule,
    adam,
    hard_negatives,
    read_detections,
    train_recipe,
    write_results,
)
from posetutor.systems.official import OFFICIAL
from posetutor.systems.topdown import Detections, TopDown, evaluate_topdown

ROWS = [
    {"image_id": 7, "category_id": 1, "bbox": [1.0, 2.0, 30.5, 60.0], "score": 0.4},
    {"image_id": 9, "category_id": 1, "bbox": [5, 6, 20, 50], "score": 0.95},
    {"image_id": 7, "category_id": 18, "bbox": [0, 0, 9, 9], "score": 0.99},
    {"image_id": 7, "category_id": 1, "bbox": [-3.0, 2.0, 31.0, 61.0], "score": 0.8},
    {"image_id": 7, "category_id": 1, "bbox": [50.0, 2.0, 31.0, 61.0], "score": 0.8},
]


@pytest.fixture
def file(tmp_path):
    def make(rows):
        path = tmp_path / "boxes.json"
        path.write_text(json.dumps(rows))
        return path

    return make


def test_boxes_by_image_best_first(file):
    found = read_detections(file(ROWS))
    assert isinstance(found, DetectionFile) and set(found) == {7, 9} and len(found) == 2
    assert found[7].scores.tolist() == pytest.approx([0.8, 0.8, 0.4]) and found[7].scored and found[7].boxes.dtype == np.float32
    assert found[7].boxes[:, 0].tolist() == [-3.0, 50.0, 1.0]  # equal scores keep the order of the file
    assert found.dropped == {"category": 1, "score": 0, "most": 0} and found.get(8) is None
    assert "4 boxes in 2 images; left out: 1 by category" in repr(found)
    few = read_detections(file(ROWS), score=0.5, most=1, image_ids=[7, 9, 11])
    assert len(few[7]) == 1 and few.dropped == {"category": 1, "unknown": 0, "score": 1, "most": 1}
    assert set(read_detections(file(ROWS), category_id=18)) == {7} and len(read_detections(file([]))) == 0


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"bbox": [1, 2, 3]}, "entry 1 must have a bbox of 4 numbers"),
        ({"bbox": "1 2 3 4"}, "entry 1 must have a bbox"),
        ({"bbox": [[1, 2], [3]]}, "entry 1 must have a bbox"),
        ({"bbox": [[1, 2], [3, 4]]}, "entry 1 must have a bbox"),
        ({"bbox": [1, 2, 1e39, 4]}, "entry 1 must have finite numbers"),
        ({"bbox": None}, "entry 1 must have a bbox"),
        ({"bbox": [1, 2, float("nan"), 4]}, "entry 1 must have finite numbers"),
        ({"bbox": [1, 2, float("inf"), 4]}, "entry 1 must have finite numbers"),
        ({"bbox": [1, 2, 3, 0]}, "positive width and height"),
        ({"bbox": [1, 2, -3, 4]}, "positive width and height"),
        ({"score": None}, "entry 1 must have a bbox of 4 numbers and a score"),
        ({"score": "0.9"}, "entry 1 must have a bbox of 4 numbers and a score"),
        ({"bbox": ["1", "2", "3", "4"]}, "entry 1 must have a bbox of 4 numbers and a score"),
        ({"score": float("nan")}, "entry 1 must have finite"),
        ({"score": -0.1}, r"score in \[0, 1\]"),
        ({"score": 3.7}, "no logit, no per cent"),
        ({"category_id": "1"}, "whole number as category_id"),
        ({"category_id": None}, "whole number as category_id"),
        ({"image_id": "000139.jpg"}, "whole number as image_id"),
        ({"image_id": True}, "whole number as image_id"),
        ({"image_id": 7.5}, "whole number as image_id"),
    ],
)
def test_broken_entries_are_named(file, change, message):
    with pytest.raises(ValueError, match=message):
        read_detections(file([ROWS[0], {**ROWS[1], **change}, ROWS[2]]))


def test_broken_files(file, tmp_path):
    with pytest.raises(FileNotFoundError, match="none.json"):
        read_detections(tmp_path / "none.json")
    for rows in ({"annotations": []}, [1, 2], "text"):
        with pytest.raises(ValueError, match="must hold a list of"):
            read_detections(file(rows))
    with pytest.raises(ValueError, match="entry 0 must have .* lacks bbox, score"):
        read_detections(file([{"image_id": 1, "category_id": 1}]))
    cut = tmp_path / "cut.json"
    cut.write_text(json.dumps(ROWS)[:-20])
    with pytest.raises(ValueError, match="not valid JSON"):
        read_detections(cut)
    with pytest.raises(ValueError, match=r"3 boxes of 1 images that are not in image_ids, such as \[7\]"):
        read_detections(file(ROWS), image_ids=[9])
    assert read_detections(file(ROWS), image_ids=[9], unknown="drop").dropped["unknown"] == 3
    for options, message in ((dict(unknown="ignore"), "unknown must be"), (dict(most=0), "most must be"), (dict(most=2.5), "most must be"), (dict(score=float("nan")), "score must be a finite")):
        with pytest.raises(ValueError, match=message):
            read_detections(file(ROWS), **options)


def test_corners_are_refused_by_sizes(file):
    sizes = {7: (480, 640), 9: (100, 80)}
    assert repr(read_detections(file(ROWS), sizes=sizes)) == repr(read_detections(file(ROWS)))
    corners = {"image_id": 7, "category_id": 1, "bbox": [400, 200, 460, 350], "score": 0.5}  # a person of 60 x 150 px
    assert len(read_detections(file([*ROWS, corners]))[7]) == 4  # by itself it is a box
    with pytest.raises(ValueError, match=r"1 of 5 boxes lie mostly outside .* first entry 5 with bbox \[400.*\] in 480 x 640 px .* corners x1, y1, x2, y2"):
        read_detections(file([*ROWS, corners]), sizes=sizes)
    half = {**corners, "bbox": [-50, 0, 100, 480]}  # exactly half of it is inside
    assert len(read_detections(file([half]), sizes=sizes)) == 1
    with pytest.raises(ValueError, match="mostly outside"):
        read_detections(file([{**half, "bbox": [-51, 0, 100, 480]}]), sizes=sizes)
    with pytest.raises(ValueError, match="mostly outside"):
        read_detections(file([{**half, "bbox": [-900, -900, 100, 100]}]), sizes=sizes)  # two negative sides make no area
    with pytest.raises(ValueError, match=r"not in image_ids, such as \[9\]"):
        read_detections(file(ROWS), sizes={7: (480, 640)})
    with pytest.raises(ValueError, match=r"lacks 1 such as \[9\]"):
        read_detections(file(ROWS), sizes={7: (480, 640)}, image_ids=[7, 9])
    assert read_detections(file(ROWS), sizes={7: (480, 640)}, unknown="drop").dropped["unknown"] == 1
    assert len(read_detections(file([]), sizes=sizes)) == 0
    for wrong, message in (([480, 640], "sizes must be a mapping"), ({7: 480, 9: 100}, r"sizes must hold \(H, W\)"), ({7: (480, 640, 3), 9: (1, 2, 3)}, r"sizes must hold \(H, W\)")):
        with pytest.raises(ValueError, match=message):
            read_detections(file(ROWS), sizes=wrong)


def test_a_file_without_the_category_is_no_empty_file(file):
    for category in (0, 2):
        with pytest.raises(ValueError, match=rf"none of the 5 entries has category_id {category}, the file has \[1, 18\]"):
            read_detections(file(ROWS), category_id=category)
    with pytest.raises(ValueError, match=r"category_id 1, the file has \[0\]"):
        read_detections(file([{**row, "category_id": 0} for row in ROWS]))


@pytest.fixture(scope="module")
def scene():
    return draw_scene(3, people=(3, 3), size=(240, 320))


def test_results_through_pycocotools(tmp_path, scene):
    torch.manual_seed(0)
    system = TopDown(simple_baseline_small(17), GaussianCodec((128, 96)), COCO_17)
    rows = [{"image_id": scene.image_id, "category_id": 1, "bbox": [np.float32(v) for v in b], "score": np.float32(0.5)} for b in scene.boxes[scene.people]]
    boxes = read_detections(write_results(rows, tmp_path / "boxes.json"), image_ids=[scene.image_id])
    results = system.run([scene], boxes=boxes, flip=False, nms=None)
    assert len(results) == len(scene.people) and max(r["score"] for r in results) <= 0.5 + 1e-6
    truth = coco_from_records([scene])
    path = write_results(results, tmp_path / "deep" / "results.json")
    with quiet():
        loaded = truth.loadRes(str(path))
    assert [a["keypoints"] for a in loaded.loadAnns(loaded.getAnnIds())] == [r["keypoints"] for r in results]
    assert evaluate_coco(truth, json.loads(path.read_text()))["AP"] == evaluate_topdown(system, [scene], boxes=boxes, flip=False, nms=None)["AP"]
    assert write_results([], tmp_path / "empty.json").read_text() == "[]"


def test_results_that_cannot_be_read_are_not_written(tmp_path):
    good = {"image_id": 1, "category_id": 1, "keypoints": [1.0, 2.0, 0.5], "score": 0.3}
    path = write_results([good], tmp_path / "results.json")
    before = path.read_text()
    for bad, message in (
        ({**good, "score": float("nan")}, "entry 1 must hold finite"),
        ({**good, "keypoints": [1, float("inf"), 1]}, "entry 1 must hold finite"),
        ({"image_id": 1, "score": 1}, "lacks category_id, keypoints or bbox"),
        ("text", "entry 1 must be a dict"),
        ({**good, "score": None}, "one number as score"),
        ({**good, "score": "0.5"}, "one number as score"),
        ({**good, "score": [0.5]}, "one number as score"),
        ({**good, "keypoints": [1.0, 2.0]}, "triples x, y, score as keypoints"),
        ({**good, "keypoints": []}, "triples"),
        ({**good, "keypoints": [[1.0, 2.0, 0.5]]}, "triples"),
        ({**good, "keypoints": [[1.0, 2.0], [0.5]]}, "triples"),
        ({**good, "bbox": [1.0, 2.0, 3.0]}, "4 numbers as bbox"),
        ({**good, "image_id": None}, "whole number as image_id"),
        ({**good, "image_id": "1"}, "whole number as image_id"),
        ({**good, "category_id": True}, "whole number as category_id"),
        ({**good, "area": float("nan")}, "all its fields"),
        ({**good, "note": object()}, "all its fields"),
    ):
        with pytest.raises(ValueError, match=message):
            write_results([good, bad], path)
    assert path.read_text() == before and [p.name for p in tmp_path.iterdir()] == ["results.json"]
    numpy = {"image_id": np.int64(1), "category_id": np.int32(1), "keypoints": np.float32([1, 2, 0.5]), "bbox": np.arange(4), "score": np.float32(0.5), "note": "kept"}
    assert json.loads(write_results([good, numpy], path).read_text()) == [good, {"image_id": 1, "category_id": 1, "keypoints": [1.0, 2.0, 0.5], "bbox": [0, 1, 2, 3], "score": 0.5, "note": "kept"}]


def person(box, crowd=False, image_id=5):
    x, y, w, h = box
    xy = np.float32([[[x + w / 2, y + h / 2]] * 17])
    return Record(np.zeros((100, 200, 3), np.uint8), None, image_id, (100, 200), np.float32([box]), xy, np.full((1, 17), 2), np.float32([w * h]), np.array([crowd]), np.array([1]), COCO_17)


def test_who_is_nobody():
    record = person([50, 20, 20, 60])
    boxes = {
        "far": ([120, 20, 20, 60], True),
        "touching": ([70, 20, 20, 60], True),
        "the person": ([51, 21, 20, 60], False),
        "legs": ([50, 65, 20, 15], False),  # IoU 0.25, all of the box is person
        "wide": ([10, 5, 100, 90], False),  # IoU 0.13, all of the person is in the box
        "a fifth each": ([66, 20, 20, 60], True),  # shares 0.2, IoU 0.11
    }
    for name, (box, nobody) in boxes.items():
        assert len(hard_negatives([record], {5: [[*box, 0.5]]})) == nobody, name
    paper = {name: len(hard_negatives([record], {5: [[*box, 0.5]]}, shown=1.0)) for name, (box, _) in boxes.items()}
    assert paper["legs"] == paper["wide"] == 1 and paper["the person"] == 0  # IoU alone
    assert hard_negatives([person([50, 20, 20, 60], crowd=True)], {5: [[50, 20, 20, 60, 0.9]]}) == []


def test_the_surest_first():
    records = [person([0, 0, 20, 60], image_id=5), person([0, 0, 20, 60], image_id=6), Record(np.zeros((100, 200, 3), np.uint8), None, 8, (100, 200), np.zeros((0, 4)), np.zeros((0, 17, 2)), np.zeros((0, 17)), np.zeros(0), np.zeros(0, bool), np.zeros(0), COCO_17)]
    found = {5: [[100, 10, 20, 50, 0.3], [140, 10, 20, 50, 0.7]], 6: Detections([[100, 10, 20, 50]], [0.5]), 8: [[1, 1, 9, 9, 0.6]], 99: [[1, 1, 9, 9, 1.0]]}
    mined = hard_negatives(records, found)
    assert [m.score for m in mined] == pytest.approx([0.7, 0.6, 0.5, 0.3]) and [m.record.image_id for m in mined] == [5, 8, 6, 5]
    assert len(hard_negatives(records, found, score=0.55)) == 2 and len(hard_negatives(records, found, most=1)) == 1 and hard_negatives(records, {}) == []
    for wrong in (dict(overlap=0.0), dict(shown=1.2), dict(overlap=float("nan"))):
        with pytest.raises(ValueError, match=f"{next(iter(wrong))} must be in"):
            hard_negatives(records, found, **wrong)
    for wrong, message in ((dict(most=-1), "most must be"), (dict(most=0), "most must be"), (dict(most=1.5), "most must be"), (dict(most=True), "most must be"), (dict(score=float("nan")), "score must be a finite")):
        with pytest.raises(ValueError, match=message):
            hard_negatives(records, found, **wrong)


def rates(schedule, steps, warmup=0):
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=2.0)
    plan, values = schedule(optimizer, steps, warmup), []
    for _ in range(steps):
        values.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        plan.step()
    return np.array(values)


def test_schedules():
    multi = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=2.0)
    torch_plan, want = torch.optim.lr_scheduler.MultiStepLR(multi, [170, 200]), []
    for _ in range(210):
        want.append(multi.param_groups[0]["lr"])
        multi.step()
        torch_plan.step()
    assert np.allclose(rates(StepSchedule((170 / 210, 200 / 210)), 210), want)
    assert np.allclose(rates(StepSchedule((0.5,), factor=0.5), 10, warmup=4), [0.5, 1.0, 1.5, 2.0, 2.0, 1, 1, 1, 1, 1])
    assert np.allclose(rates(LinearSchedule(0.5), 10, warmup=2), 2 * np.array([0.5, 0.75, *(10 - np.arange(2, 10)) / 8]))
    assert np.allclose(rates(LinearSchedule(), 10), 2 * (1 - np.arange(10) / 10)) and np.allclose(rates(LinearSchedule(0.0), 4, warmup=4), [0, 0.5, 1, 1.5])
    mspn = rates(LinearSchedule(0.1), 400, warmup=10) / 2
    assert np.allclose(mspn[[0, 200, 399]], [0.1, 200 / 390, 1 / 390]) and mspn.argmax() == 10 and mspn[10] == 1
    assert LinearSchedule().rate(401, 400, 10) == 0  # past the end
    assert np.allclose(rates(StepSchedule(), 5), 2.0)
    for drops in ((0.0,), (1.0,), (0.6, 0.5), (0.5, 0.5)):
        with pytest.raises(ValueError, match="drops must increase"):
            StepSchedule(drops)
    with pytest.raises(ValueError, match="factor"):
        StepSchedule((0.5,), factor=1.0)
    for make in (lambda: LinearSchedule(-0.1), lambda: StepSchedule((0.5,), start=1.5), lambda: LinearSchedule(float("nan")), lambda: StepSchedule((), 0.1, -1.0)):
        with pytest.raises(ValueError, match="start must be"):
            make()


def test_schedules_are_values():
    assert StepSchedule((0.5, 0.8), start=0.1) == StepSchedule((0.5, 0.8), 0.1, 0.1) and LinearSchedule(0.2) != LinearSchedule()
    for schedule in (StepSchedule((0.5,)), LinearSchedule()):
        assert pickle.loads(pickle.dumps(schedule)) == schedule and hash(schedule) == hash(dataclasses.replace(schedule))
        with pytest.raises(dataclasses.FrozenInstanceError):
            schedule.start = 0.5
        optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1.0)
        plan = schedule(optimizer, 10, 2)
        state = pickle.loads(pickle.dumps(plan.state_dict()))  # what a checkpoint does
        plan.load_state_dict(state)
        assert plan.get_last_lr() == [schedule.rate(0, 10, 2)]


def test_adam():
    net = nn.Linear(3, 2)
    optimizer = adam(net, Preset("p", learning_rate=0.01, weight_decay=0.1))
    assert type(optimizer) is torch.optim.Adam and optimizer.param_groups[0]["lr"] == 0.01 and optimizer.param_groups[0]["weight_decay"] == 0.1
    with pytest.raises(ValueError, match="require a gradient"):
        adam(net.requires_grad_(False), Preset("p"))


@pytest.mark.parametrize("name", RECIPES)
def test_every_recipe_builds(name):
    recipe = RECIPES[name]
    with torch.device("meta"):
        system = recipe.build()
    assert recipe.name == name and system.size == tuple(recipe.preset.size) and system.padding == 1.25
    assert all(p.is_meta for p in system.net.parameters()) and system.net.spec["name"] == recipe.net
    assert recipe.source and recipe.preset.name == "FULL"
    if name == "rsn50_256x192":  # no number was reached by this schedule
        assert recipe.published == {} and "72.4" in recipe.note
    else:
        assert 60 < recipe.published["AP"] < 80 and recipe.detector
    assert "<" not in repr(recipe) and pickle.loads(pickle.dumps(recipe)) == recipe
    assert f"{recipe.preset.size[0]}x{recipe.preset.size[1]}" in name and dataclasses.replace(recipe) == recipe


def test_recipes_hold_the_published_facts():
    hrnet, old, mspn = RECIPES["hrnet_w32_256x192"], RECIPES["simple_baseline_r50_384x288"], RECIPES["mspn_4_256x192"]
    assert hrnet.published == {"AP": 74.4, "AR": 79.8} and hrnet.preset.steps == 210 * old.preset.steps // 140 and hrnet.preset.learning_rate == 1e-3
    assert hrnet.codec == GaussianCodec.official((256, 192), 2.0) and old.codec.sigma == 3.0
    assert (hrnet.augment.rotation, hrnet.augment.scale, hrnet.augment.half_body_prob) == (45, 0.35, 0.3) and old.augment.half_body_prob == 0
    assert (mspn.preset.steps, mspn.preset.warmup_steps, mspn.preset.weight_decay, mspn.augment.half_body_min) == (96_000, 2400, 1e-5, 3)
    with torch.device("meta"):
        assert sum(p.numel() for p in hrnet.build().net.parameters()) == 28_536_113
        assert hrnet.build(LSP_14).net.out_channels == 14 and RECIPES["hrnet_w32_udp_256x192"].build(LSP_14).net.out_channels == 42
    assert len(RECIPES) >= 25
    udp = RECIPES["hrnet_w32_udp_gaussian_256x192"]
    assert udp.codec == OFFICIAL["hrnet_w32_udp_coco_256x192"].codec and udp.published == {"AP": 76.2, "AR": 81.0} and "augmentation" in udp.note
    assert (udp.preset.learning_rate, udp.preset.batch_size, udp.preset.warmup_steps, udp.preset.steps) == (5e-4, 512, 500, 61_530)
    rate = [udp.schedule.rate(step, udp.preset.steps, udp.preset.warmup_steps) for step in (0, 499, 170 * 293 - 1, 170 * 293, 200 * 293)]
    assert np.allclose(rate, [0.001 + 0.999 / 500, 1, 1, 0.1, 0.01])


def test_rehearsals_keep_the_share_of_the_warmup():
    mspn = RECIPES["mspn_2_256x192"]
    assert [mspn.rehearsal(steps=n).preset.warmup_steps for n in (96_000, 1000, 40, 2)] == [2400, 25, 1, 0] and mspn.rehearsal().preset == mspn.preset
    assert mspn.rehearsal(steps=1000, warmup_steps=7).preset.warmup_steps == 7 and RECIPES["hrnet_w32_256x192"].rehearsal(steps=1000).preset.warmup_steps == 0


@pytest.mark.parametrize(("name", "small"), [("hrnet_w32_256x192", "hrnet_small"), ("simple_baseline_r50_udp_256x192", "simple_baseline_small"), ("mspn_2_256x192", "mspn_small"), ("rsn18_256x192", "rsn_small")])
def test_rehearsals_train(name, small):
    records = [r for r in figures(3, size=(80, 64))]
    recipe = RECIPES[name].rehearsal((64, 64), steps=2, batch_size=2)
    recipe = dataclasses.replace(recipe, net=small, options={})
    system, record = train_recipe(recipe, records, progress=False)
    assert record.name == name and record.preset["steps"] == 2 and record.preset["warmup_steps"] <= 2 and system.size == (64, 64)
    assert type(system.codec) is type(RECIPES[name].codec) and all(np.isfinite(loss) for _, loss in record.curve)
    again, twin = train_recipe(recipe, records, progress=False)
    assert twin.curve == record.curve and not again.net.training


def test_recipes_are_refused_by_name():
    with pytest.raises(ValueError, match="recipe must be one of simple_baseline_r50"):
        train_recipe("hrnet_w18", figures(2))
    with pytest.raises(ValueError, match="at least one Record"):
        train_recipe("hrnet_w32_256x192", [])
