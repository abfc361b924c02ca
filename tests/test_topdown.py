"""The top-down system end to end: frames, flip test, boxes, search, files. Trained accuracy is tested in test_real_chain.py."""

import dataclasses
import json
import subprocess
import sys

import cv2
import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from posetutor.codecs.dark import DarkCodec
from posetutor.codecs.dsnt import DsntCodec
from posetutor.codecs.gaussian import GaussianCodec
from posetutor.codecs.offsets import CellOffsetCodec, DiskCodec
from posetutor.codecs.udp import CombinedCodec, UDPCodec
from posetutor.data.augment import Augment, CropDataset, collate
from posetutor.data.figures import draw_crop, draw_scene, figures
from posetutor.geometry import crop_matrix, pad_boxes, transform_points
from posetutor.losses.heatmap import coarse_to_fine_loss
from posetutor.nets.mspn import mspn_small
from posetutor.nets.rsn import rsn_small
from posetutor.nets.simple_baseline import simple_baseline_small
from posetutor.skeletons import COCO_17, LSP_14, Poses, Record, Skeleton
from posetutor.systems.topdown import (
    LESSON_FIGURES,
    PACKAGED,
    SMOKE,
    Detections,
    MixedCrops,
    TopDown,
    average_scales,
    boxes_from_joints,
    calibrate,
    empty_window,
    evaluate_topdown,
    flipped_average,
    pretrained,
    train_topdown,
    window_grid,
)

DOTS = Skeleton("dots", ("red", "green", "blue"), ((0, 1), (1, 2)), (), (0.05, 0.05, 0.05))
SIZE = (128, 96)


class DotNet(nn.Module):
    """Sees red, green and blue dots: heatmap k is colour k, resampled with first and last cell centres on first and last pixel centres."""

    def __init__(self, biased: bool = False):
        super().__init__()
        self.scale = nn.Parameter(torch.ones(()))
        self.out_channels, self.strides, self.biased = 3, (4,), biased

    def forward(self, images):
        size = (images.shape[2] // 4, images.shape[3] // 4)
        if not self.biased:
            return self.scale * F.interpolate(images, size, mode="bilinear", align_corners=True)
        y, x = (torch.arange(n) * 4.0 for n in size)  # cell i reads pixel 4 i: the biased mapping
        return self.scale * images[:, :, y.long()][:, :, :, x.long()]


def dot_image(xy, size=(240, 320), sigma=9.0):
    """One Gaussian dot of each colour, (H, W, 3) uint8, at (3, 2) px."""
    rows, columns = np.mgrid[: size[0], : size[1]]
    planes = [255 * np.exp(-((columns - x) ** 2 + (rows - y) ** 2) / (2 * sigma**2)) for x, y in xy]
    return np.stack(planes, axis=-1).round().astype(np.uint8)


def dots(mapping="unit"):
    return TopDown(DotNet(mapping == "biased"), GaussianCodec(size=SIZE, mapping=mapping), DOTS, normalise="none")


@pytest.fixture(scope="module")
def small():
    torch.manual_seed(0)
    return TopDown(simple_baseline_small(17), GaussianCodec(size=SIZE, sigma=1.5), COCO_17)


def test_estimates_are_in_original_pixels():
    xy = np.array([[120.3, 90.7], [160.0, 130.2], [140.9, 171.4]])
    poses = dots().estimate(dot_image(xy), boxes=[[100, 70, 80, 120], [90, 60, 100, 140]])
    assert len(poses) == 2 and poses.xy.dtype == np.float32
    cell = (1.25 * 120 / SIZE[0] * 4, 1.25 * 140 / SIZE[0] * 4)  # image px per cell
    for found, px in zip(poses.xy, cell, strict=True):
        assert np.abs(found - xy).max() < 0.3 * px  # the quarter rule's bound (0.25 cells) and 8-bit rounding
    assert (poses.joint_scores > 0.9).all() and (poses.scores > 0.9).all()


@pytest.mark.parametrize(("mapping", "shift"), [("unit", 0), ("biased", 1)])
def test_flip_test_aligns(mapping, shift):
    """Residual of the mirrored-back maps: none with the unit-length mapping; biased -0.75 cells, +0.25 after the one-cell repair."""
    system = dots(mapping)
    x = torch.tensor([[[40.0, 60.0], [48.0, 60.0], [56.0, 60.0]]])
    image = torch.from_numpy(dot_image(x[0].numpy(), SIZE, sigma=10.0)).permute(2, 0, 1)[None].float() / 255

    def centroid(maps):
        return (maps * torch.arange(maps.shape[-1])).sum((-1, -2)) / maps.sum((-1, -2))

    plain = centroid(system.net(image))
    back = centroid(system.net(image.flip(-1)).flip(-1))
    expected = 0.0 if mapping == "unit" else -0.75
    assert (back - plain - expected).abs().max() < 0.02
    both = centroid(flipped_average(system.net, image, DOTS.flip_index, shift=shift))
    assert (both - plain - (0.0 if mapping == "unit" else 0.125)).abs().max() < 0.03
    xy, _ = system.predict_crops((image * 255).round().to(torch.uint8), flip=True)
    assert (xy - x).abs().max() < 4 * 0.26 * (1.05 if mapping == "unit" else 1.5)


def test_flip_test_asks_the_codec():
    """A codec with `flip_back` repairs its own residual: 0.75 of a cell for biased maps, where the whole cell leaves half a pixel."""
    x = torch.tensor([[[40.0, 60.0], [48.0, 60.0], [56.0, 60.0]]])
    image = torch.from_numpy(dot_image(x[0].numpy(), SIZE, sigma=10.0)).permute(2, 0, 1)[None].float() / 255
    moved = {}
    for codec in (UDPCodec(SIZE, mapping="biased"), GaussianCodec(SIZE, mapping="biased", decoder="udp")):
        system = TopDown(DotNet(True), codec, DOTS, normalise="none")
        moved[type(codec)] = (system.predict_crops(image)[0] - system.predict_crops(image, flip=False)[0])[..., 0].mean().item()
    assert abs(moved[UDPCodec]) < 0.1 and abs(moved[GaussianCodec] - 0.5) < 0.1, moved


def test_flip_swaps_left_and_right():
    """A net that always sees the left joint on the left half and the right one on the right half of the picture it is given."""

    class Sides(nn.Module):
        out_channels, strides = 2, (4,)

        def __init__(self):
            super().__init__()
            self.dummy = nn.Parameter(torch.zeros(()))

        def forward(self, images):
            maps = torch.zeros(len(images), 2, 32, 24)
            maps[:, 0, 16, 5], maps[:, 1, 16, 15] = 1, 0.8
            return maps

    pair = Skeleton("pair", ("left_eye", "right_eye"), (), (("left_eye", "right_eye"),), (0.05, 0.05))
    both = flipped_average(Sides(), torch.zeros(1, 3, 128, 96), pair.flip_index)
    assert both[0, 0, 16].nonzero().flatten().tolist() == [5, 23 - 15] and both[0, 1, 16].nonzero().flatten().tolist() == [15, 23 - 5]


def test_path_and_array_agree(tmp_path, small):
    image = draw_crop(3, size=(160, 120)).load()
    cv2.imwrite(str(tmp_path / "picture.png"), image[..., ::-1])
    box = [[20, 10, 80, 140]]
    a, b, c = (small.estimate(i, boxes=box) for i in (image, tmp_path / "picture.png", str(tmp_path / "picture.png")))
    assert np.array_equal(a.xy, b.xy) and np.array_equal(a.joint_scores, c.joint_scores)


def test_estimate_does_not_change_the_mode_or_the_image(small):
    image = draw_crop(4, size=(160, 120)).load().copy()
    before = image.copy()
    small.net.train()
    mean = small.net.norms[0].running_mean.clone()
    small.estimate(image, boxes=[[20, 10, 80, 140]])
    assert small.net.training and np.array_equal(image, before) and torch.equal(mean, small.net.norms[0].running_mean)


@pytest.mark.parametrize(
    ("image", "boxes", "message"),
    [
        (np.zeros((10, 10), np.uint8), None, "image must be"),
        (np.zeros((10, 10, 3), np.float32), None, "image must be"),
        (np.zeros((0, 10, 3), np.uint8), None, "image must be"),
        ([1, 2], None, "image must be"),
        (np.zeros((64, 64, 3), np.uint8), [[1, 2, 3]], "boxes must be"),
        (np.zeros((64, 64, 3), np.uint8), [1, 2, 3, 4], "boxes must be"),
        (np.zeros((64, 64, 3), np.uint8), [[1, 2, 0, 4]], "positive width and height"),
        (np.zeros((64, 64, 3), np.uint8), [[1, 2, np.nan, 4]], "boxes must be finite"),
    ],
)
def test_bad_input_is_refused(small, image, boxes, message):
    with pytest.raises(ValueError, match=message):
        small.estimate(image, boxes=boxes)


def test_missing_file(small, tmp_path):
    with pytest.raises(FileNotFoundError, match="none.jpg"):
        small.estimate(tmp_path / "none.jpg")


def test_no_boxes_given_is_not_no_boxes(small):
    assert len(small.estimate(np.zeros((64, 64, 3), np.uint8), boxes=[])) == 0
    assert len(small.estimate(np.zeros((64, 64, 3), np.uint8), boxes=np.zeros((0, 4)))) == 0
    with pytest.raises(ValueError, match="box_scores must be"):
        small.estimate(np.zeros((64, 64, 3), np.uint8), boxes=[[0, 0, 9, 9]], box_scores=[1.0, 2.0])


def test_given_boxes_keep_their_order_and_nms_is_optional():
    xy = np.array([[120.3, 90.7], [160.0, 130.2], [140.9, 171.4]])
    image = dot_image(xy)
    boxes = [[90, 60, 100, 140], [100, 70, 80, 120], [250, 200, 40, 30]]
    scores = [0.5, 0.9, 0.7]
    every = dots().estimate(image, boxes=boxes, box_scores=scores)
    assert np.allclose(every.boxes, boxes) and every.scores[0] < every.scores[1]
    kept = dots().estimate(image, boxes=boxes, box_scores=scores, nms=0.5)
    assert len(kept) == 2 and np.allclose(kept.boxes[0], boxes[1])  # best first, its double dropped
    assert len(dots().estimate(image, boxes=boxes, box_scores=scores, threshold=0.6)) == 1


def test_parts_must_fit():
    net = simple_baseline_small(17)
    with pytest.raises(ValueError, match="net gives 17 maps but LSP-14|net gives 17 maps but .* needs 14"):
        TopDown(net, GaussianCodec(size=SIZE), LSP_14)
    with pytest.raises(ValueError, match="output stride"):
        TopDown(net, GaussianCodec(size=SIZE, stride=8), COCO_17)
    with pytest.raises(ValueError, match="must equal the codec's"):
        TopDown(net, GaussianCodec(size=SIZE), COCO_17, (256, 192))
    with pytest.raises(ValueError, match="padding must be positive"):
        TopDown(net, GaussianCodec(size=SIZE), COCO_17, padding=0)


@pytest.mark.parametrize("K", [1, 4, 21])
def test_any_number_of_joints(K, tmp_path):
    skeleton = Skeleton(f"k{K}", tuple(f"joint{i}" for i in range(K)), (), (), (0.05,) * K)
    system = TopDown(simple_baseline_small(K), GaussianCodec(size=(64, 64)), skeleton)
    poses = system.estimate(np.zeros((80, 90, 3), np.uint8), boxes=[[5, 5, 30, 40]])
    assert poses.xy.shape == (1, K, 2)
    again = TopDown.load(system.save(tmp_path / "net.safetensors"))
    assert again.skeleton == skeleton


def test_save_and_load_give_the_same_poses(small, tmp_path):
    small.threshold = 0.123
    again = TopDown.load(small.save(tmp_path / "net.safetensors", run="a test"))
    image = draw_crop(5, size=(160, 120)).load()
    a, b = (s.estimate(image, boxes=[[20, 10, 80, 140]]) for s in (small, again))
    assert np.array_equal(a.xy, b.xy) and np.array_equal(a.scores, b.scores)
    assert again.skeleton == small.skeleton and again.codec == small.codec and again.threshold == 0.123 and again.size == small.size


def test_files_of_other_kinds_are_refused(small, tmp_path):
    from posetutor.train.engine import save_weights

    save_weights(small.net, tmp_path / "plain.safetensors")
    with pytest.raises(ValueError, match="not written by TopDown.save"):
        TopDown.load(tmp_path / "plain.safetensors")
    with pytest.raises(FileNotFoundError, match="none.safetensors"):
        TopDown.load(tmp_path / "none.safetensors")
    with pytest.raises(ValueError, match="net with `spec`"):
        dots().save(tmp_path / "dots.safetensors")


def test_windows_cover_every_scale_and_point():
    size = (480, 640)
    grid = window_grid(size, 0.75)
    assert torch.allclose(grid[:, 2] / grid[:, 3], torch.tensor(0.75))
    assert grid[0].tolist() == pytest.approx([0, (480 - 640 / 0.75) / 2, 640, 640 / 0.75])
    for tall in grid[:, 3].unique():
        part = grid[torch.isclose(grid[:, 3], tall)]
        for x in np.linspace(0, 639, 23):
            for y in np.linspace(0, 479, 17):
                assert ((part[:, 0] <= x + 1e-3) & (x <= part[:, 0] + part[:, 2] + 1e-3) & (part[:, 1] <= y + 1e-3) & (y <= part[:, 1] + part[:, 3] + 1e-3)).any()
    assert len(window_grid((7, 200), 0.75)) > 1 and len(window_grid((200, 7), 0.75)) > 1
    for wrong in (dict(smallest=0), dict(ratio=1.0), dict(step=0.0)):
        with pytest.raises(ValueError, match="need aspect"):
            window_grid(size, 0.75, **wrong)
    with pytest.raises(ValueError, match="at least 2 px"):
        window_grid((0, 10), 0.75)


def test_boxes_from_joints():
    xy = torch.tensor([[[10.0, 20.0], [30.0, 60.0], [500.0, 500.0]], [[1.0, 1.0], [1.0, 1.0], [1.0, 1.0]]])
    boxes, count = boxes_from_joints(xy, torch.tensor([[0.9, 0.8, 0.1], [0.0, 0.0, 0.0]]), margin=0.1)
    assert boxes[0].tolist() == pytest.approx([6, 16, 28, 48]) and count.tolist() == [2, 0]
    assert (boxes[:, 2:] > 1).all()


def test_search_finds_the_dots():
    xy = np.array([[150.0, 80.0], [180.0, 130.0], [160.0, 180.0]])
    poses = dots().find(dot_image(xy, sigma=7.0), threshold=0.3)
    assert len(poses) >= 1
    assert np.abs(poses.xy[0] - xy).max() < 4


def test_search_in_an_empty_picture():
    system = dots()
    assert isinstance(system.estimate(np.zeros((90, 120, 3), np.uint8)), Poses)
    assert len(system.estimate(np.zeros((90, 120, 3), np.uint8))) == 0
    assert json.loads(Poses.empty(DOTS).to_json())["people"] == [] or len(Poses.empty(DOTS)) == 0


def test_calibration_is_a_quantile():
    system = dots()
    rng = np.random.default_rng(0)
    pictures = [dot_image(rng.uniform(20, 60, (3, 2)), (90, 120), sigma=6.0) // 2 for _ in range(12)]
    threshold = calibrate(system, pictures, false_alarms=0.25)
    assert threshold == system.threshold
    assert sum(len(system.find(p)) > 0 for p in pictures) <= 3
    with pytest.raises(ValueError, match="at least 10 empty pictures"):
        calibrate(system, pictures[:3])


def test_calibration_keeps_the_poses_that_find_people(monkeypatch):
    """Scores 0.9 and 0.6 meet the two people, 0.3 meets nobody: the best F1 lies between 0.6 and 0.3."""
    system, scene = dots(), figures(1, start=3, single=False, people=(2, 2), size=(240, 320))[0]
    system.skeleton = scene.skeleton
    xy = np.concatenate([scene.xy, scene.xy[:1] + 500])
    found = Poses(np.ones((3, 4)), xy, np.ones(xy.shape[:2]), np.array([0.9, 0.6, 0.3]), scene.skeleton)
    monkeypatch.setattr(system, "find", lambda image, threshold=None: found if image.shape[:2] == (240, 320) else Poses.empty(scene.skeleton))
    empty = [np.zeros((90, 120, 3), np.uint8)] * 10
    assert calibrate(system, empty) == 0.02
    assert calibrate(system, empty, [scene]) == pytest.approx(0.45)
    doubled = dataclasses.replace(found, xy=np.concatenate([scene.xy[:1], scene.xy]))  # the 0.6 doubles the first person
    monkeypatch.setattr(system, "find", lambda image, threshold=None: doubled if image.shape[:2] == (240, 320) else Poses.empty(scene.skeleton))
    assert calibrate(system, empty, [scene]) == pytest.approx(0.3)  # precision 2/3 and recall 1 beat 1 and 1/2


def test_run_and_evaluate_agree_with_estimate(small):
    records = figures(3, start=50, size=(160, 120))
    results = small.run(records)
    for record, result in zip(records, results, strict=True):
        one = small.estimate(record.load(), boxes=record.boxes).to_coco(record.image_id)[0]
        assert np.allclose(one["keypoints"], result["keypoints"], atol=2e-3) and one["score"] == pytest.approx(result["score"], abs=1e-5)
    scores = evaluate_topdown(small, records)
    assert set(scores) >= {"AP", "AP50", "AR", "px"} and 0 <= scores["AP"] <= 1
    with pytest.raises(ValueError, match="boxes must be"):
        small.run(records, boxes="guessed")
    with pytest.raises(ValueError, match="at least one Record"):
        evaluate_topdown(small, [])
    given = small.run(records, boxes={records[0].image_id: records[0].boxes})
    assert len(given) == 1


def test_scenes_with_several_people(small):
    scene = draw_scene(2, people=(3, 5), size=(240, 320))
    results = small.run([scene])
    assert len(results) == len(scene.people) and {r["image_id"] for r in results} == {scene.image_id}


def test_empty_windows_show_nobody():
    for index in range(4):
        scene = draw_scene(index, people=(1, 3), size=(240, 320))
        for k in range(10):
            x, y, w, h = empty_window(scene, 0.75, np.random.default_rng(k))
            assert w / h == pytest.approx(0.75, rel=1e-4)
            inside = np.clip(np.minimum(scene.boxes[:, 2] + scene.boxes[:, 0], x + w) - np.maximum(scene.boxes[:, 0], x), 0, None)
            inside *= np.clip(np.minimum(scene.boxes[:, 3] + scene.boxes[:, 1], y + h) - np.maximum(scene.boxes[:, 1], y), 0, None)
            assert inside.max() <= 0.06 * w * h or inside.max() < 400


def test_mixed_crops_and_their_loss(small):
    people, scenes = figures(6, size=(160, 120)), figures(2, single=False, people=(1, 2), size=(240, 320))
    data = MixedCrops(CropDataset(people, SIZE), scenes, share=0.25)
    assert len(data) == 8 and [data[i]["empty"] for i in range(8)] == [False] * 6 + [True] * 2
    first = data[7]["image"].clone()
    assert torch.equal(first, data[7]["image"])
    data.set_epoch(1)
    assert not torch.equal(first, data[7]["image"])
    batch = collate([data[5], data[6]])
    small.net.train()
    small.net.zero_grad()
    small.training_loss(batch).backward()
    with torch.no_grad():
        small.net.eval()
        output = small.net(small.prepare(batch["image"]))
        target = small.codec.encode(batch["xy"], batch["vis"])
        by_hand = 0.5 * (((output[0] - target.maps[0]) * target.weight[0, :, None, None]) ** 2).sum() + 0.5 * (output[1] ** 2).sum()
        assert small.training_loss(batch) == pytest.approx(float(by_hand / output.numel()), rel=1e-5)
    with pytest.raises(ValueError, match="share must be"):
        MixedCrops(CropDataset(people, SIZE), scenes, share=1.0)
    with pytest.raises(ValueError, match="empty must hold records"):
        MixedCrops(CropDataset(people, SIZE), (), share=0.1)


def test_same_seed_same_losses_and_a_falling_curve():
    records = [r for r in figures(8, size=(160, 120))]
    preset = SMOKE.replace(steps=12, batch_size=8, warmup_steps=1)
    runs = [train_topdown(records, preset, progress=False) for _ in range(2)]
    assert runs[0][1].curve == runs[1][1].curve
    losses = [loss for _, loss in runs[0][1].curve]
    assert sum(losses[-3:]) < sum(losses[:3])
    assert runs[0][1].name == "topdown" and not runs[0][0].net.training


def test_wrapped_net_is_used(small):
    """Several processes wrap the net; the loss must call the wrapper, not the net."""
    calls = []

    class Wrapper(nn.Module):
        def forward(self, images):
            calls.append(len(images))
            return small.net(images)

    batch = collate([CropDataset(figures(2, size=(160, 120)), SIZE)[i] for i in range(2)])
    small.training_loss(batch, Wrapper())
    assert calls == [2]


def test_crop_and_back():
    """Crops of a rotated-free window and their matrices are one map: a dot is found where it is."""
    system = dots()
    image = dot_image(np.array([[100.0, 100.0], [110.0, 120.0], [105.0, 140.0]]))
    windows = pad_boxes(torch.tensor([[80.0, 80.0, 60.0, 80.0]]), system.aspect)
    images, matrices = system.crops(image, windows)
    assert images.shape == (1, 3, *SIZE) and torch.allclose(matrices, crop_matrix(windows, SIZE))
    peak = images[0, 0].float().flatten().argmax()
    at = transform_points(matrices, torch.tensor([[[100.0, 100.0]]]))[0, 0]
    assert abs(int(peak % SIZE[1]) - at[0]) <= 1 and abs(int(peak // SIZE[1]) - at[1]) <= 1


def test_targets_are_replaced_not_changed(small):
    batch = {"image": torch.zeros(2, 3, *SIZE), "xy": torch.full((2, 17, 2), 40.0), "vis": torch.full((2, 17), 2), "empty": torch.tensor([False, True])}
    targets = small.codec.encode(batch["xy"], batch["vis"])
    assert dataclasses.is_dataclass(targets) and float(small.training_loss(batch).detach()) >= 0


# Detections, suppression, scales, several outputs, codecs in files, hard negatives.


def test_a_mapping_may_carry_scores():
    xy = np.array([[120.3, 90.7], [160.0, 130.2], [140.9, 171.4]])
    record = Record(dot_image(xy), None, 7, (240, 320), np.float32([[100, 70, 80, 120]]), xy[None].astype(np.float32), np.full((1, 3), 2), np.float32([4000]), np.array([False]), np.array([1]), DOTS)
    rows = np.float32([[90, 60, 100, 140, 0.5], [100, 70, 80, 120, 0.9]])
    plain, scored = dots().run([record], boxes={7: rows[:, :4]}), dots().run([record], boxes={7: rows})
    assert len(plain) == 2 and len(scored) == 1  # scores bring OKS-NMS at 0.9 with them
    assert scored[0]["score"] == pytest.approx(0.9 * np.reshape(scored[0]["keypoints"], (-1, 3))[:, 2].mean(), abs=1e-3)
    every = dots().run([record], boxes={7: Detections(rows[:, :4], rows[:, 4])}, nms=None, rule="joints")
    assert len(every) == 2 and min(r["score"] for r in every) > 0.9
    assert dots().run([record], boxes={7: []}) == dots().run([record], boxes={}) == [] and dots().run([record], boxes={7: rows}, nms=0.0)[0]["score"] == scored[0]["score"]
    for wrong in (1.5, -0.1, "best", True, float("nan"), [0.9]):
        with pytest.raises(ValueError, match="nms must be an OKS"):
            dots().run([record], boxes={7: rows}, nms=wrong)
        with pytest.raises(ValueError, match="nms must be an OKS"):
            dots().estimate(record.image, boxes=rows[:, :4], nms=wrong)
    assert evaluate_topdown(dots(), [record], boxes={7: rows}, nms=None)["AR"] > 0.8


@pytest.mark.parametrize(
    ("boxes", "scores", "message"),
    [([[1, 2, 3]], None, "boxes must be"), ([[1, 2, 3, 4], [5]], None, "boxes must be"), ("everywhere", None, "boxes must be"), ([[1, 2, 3, 4]], [0.1, 0.2], "box_scores must be"), ([[1, 2, 3, 4]], [np.nan], "box_scores must be finite"), ([[1, 2, 3, 4]], [-1.0], "box_scores must be >= 0")],
)
def test_wrong_detections(boxes, scores, message):
    with pytest.raises(ValueError, match=message):
        Detections(boxes, scores)


def test_detections_do_not_share_memory():
    rows = np.float32([[1, 2, 3, 4, 0.5]])
    found = Detections.of(rows)
    rows[:] = 9
    assert found.boxes[0].tolist() == [1, 2, 3, 4] and found.scored and Detections.of(found) is found and len(Detections.of(np.zeros((0, 5)))) == 0


@pytest.mark.parametrize("mapping", ["unit", "biased"])
@pytest.mark.parametrize("flip", [False, True])
def test_scales_keep_the_place(mapping, flip):
    """Windows of other sizes show the dots at other pixels of the crop; in the common frame nothing moves."""
    xy = np.array([[120.3, 90.7], [160.0, 130.2], [140.9, 171.4]])
    image, box, system = dot_image(xy, sigma=12.0), [[90, 60, 100, 140]], dots(mapping)
    one, many = (system.estimate(image, boxes=box, flip=flip, scales=scales) for scales in ((1.0,), (0.85, 1.0, 1.3)))
    cell = 1.25 * 140 / SIZE[0] * 4
    assert np.abs(many.xy - xy).max() < 0.3 * cell + (0.25 * cell if flip and mapping == "biased" else 0)
    assert np.abs(many.xy - one.xy).max() < 0.26 * cell and np.abs(many.joint_scores - one.joint_scores).max() < 0.1
    assert len(system.estimate(image, boxes=[], scales=(1.0, 1.2))) == 0


def test_average_scales():
    hm = torch.rand(2, 3, 12, 16, generator=torch.Generator().manual_seed(0))
    assert torch.equal(average_scales([hm], (1.0,)), hm) and torch.allclose(average_scales([hm, hm], (1.0, 1.0)), hm)
    half = average_scales([hm], (0.5,))  # the middle half of the reference map; the rest nobody has seen
    assert (half[:, :, :3] == 0).all() and (half[..., :4] == 0).all() and (half[:, :, 3:9, 4:12] != 0).any()
    both = average_scales([hm, hm], (1.0, 0.5))
    assert torch.allclose(both[:, :, 0], hm[:, :, 0])  # seen by the reference only: not halved
    grown = F.interpolate(hm[:, :, :7, :7], size=(13, 13), mode="bicubic", align_corners=True)  # odd sizes: every second point is a cell
    assert torch.allclose(average_scales([grown], (0.5,))[:, :, 3:10, 3:10], grown[:, :, ::2, ::2], atol=1e-5)
    flipped = average_scales([hm.flip(-1), hm.flip(-1)], (0.8, 1.3))
    assert torch.allclose(flipped.flip(-1), average_scales([hm, hm], (0.8, 1.3)), atol=1e-5)  # scaling and mirroring commute
    assert average_scales([hm.bfloat16()], (1.2,)).dtype == torch.bfloat16
    assert torch.equal(average_scales([hm.bfloat16()] * 2, (1.2, 0.9)), average_scales([hm.bfloat16().float()] * 2, (1.2, 0.9)).bfloat16())
    assert torch.autograd.gradcheck(lambda a, b: average_scales([a, b], (1.0, 1.3)), (hm[:1, :1, :5, :6].double().requires_grad_(), hm[:1, :1, 5:10, :6].double().requires_grad_()))
    with pytest.raises(ValueError, match="real floating-point"):
        average_scales([hm.to(torch.complex64)], (1.2,))
    for scales in ((), (1.0, 2.0), (0.0,), (float("nan"),)):
        with pytest.raises(ValueError, match="scales must be one positive factor"):
            average_scales([hm], scales)
    with pytest.raises(ValueError, match="mapping must be"):
        average_scales([hm], (1.0,), mapping="centres")
    with pytest.raises(ValueError, match="maps must be"):
        average_scales([hm, hm[:, :2]], (1.0, 2.0))


def test_scales_are_checked(small):
    picture = np.zeros((64, 64, 3), np.uint8)
    for scales in ((), (0.0,), (1.0, np.inf)):
        with pytest.raises(ValueError, match="scales must be positive"):
            small.estimate(picture, boxes=[[0, 0, 9, 9]], scales=scales)
    with pytest.raises(ValueError, match="images must be"):
        small.predict_crops(torch.zeros(2, 3, 3, *SIZE, dtype=torch.uint8), scales=(1.0, 1.2))
    offsets = TopDown(simple_baseline_small(51), CombinedCodec(SIZE), COCO_17)
    with pytest.raises(ValueError, match="CombinedCodec, got .*averaged over scales for GaussianCodec"):
        offsets.estimate(picture, boxes=[[0, 0, 9, 9]], scales=(1.0, 1.2))


STAGED = {"mspn_small": lambda K: mspn_small(K), "mspn_small, 1": lambda K: mspn_small(K, stages=1), "rsn_small": lambda K: rsn_small(K)}


@pytest.mark.parametrize("build", STAGED.values(), ids=STAGED)
def test_networks_with_stages(build, tmp_path):
    torch.manual_seed(0)
    system = TopDown(build(5), GaussianCodec(size=(64, 64), sigma=1.0), Skeleton("k5", tuple("abcde"), (), (), (0.05,) * 5))
    xy, vis = 64 * torch.rand(3, 5, 2, generator=torch.Generator().manual_seed(1)), torch.tensor([[2, 2, 0, 1, 2]] * 3)
    batch = {"image": torch.randint(0, 255, (3, 3, 64, 64), dtype=torch.uint8, generator=torch.Generator().manual_seed(2)), "xy": xy, "vis": vis, "empty": torch.tensor([False, False, True])}
    system.net.train()
    loss = system.training_loss(batch)
    loss.backward()
    assert loss.ndim == 0 and loss.isfinite() and all(p.grad is not None for p in system.net.parameters())  # every head of every stage is taught
    stages = system.net(system.prepare(batch["image"]), all_maps=True)
    codec, nobody = system.codec, batch["empty"]
    labels = [dataclasses.replace(codec, sigma=s).encode(xy, vis) for s in (2.55, 1.95, 1.66, 1.37, 1.0)]
    weight = torch.where(nobody[:, None], 1.0, labels[-1].weight)
    by_hand = 0.0
    for s, maps in enumerate(stages):
        first = 1 if s == len(stages) - 1 else 0
        chosen = [labels[first + level].maps * ~nobody[:, None, None, None] for level in range(4)]
        by_hand += coarse_to_fine_loss(maps, chosen, weight, topk=5)
    assert loss.item() == pytest.approx(by_hand.item(), rel=1e-4)
    picture = draw_crop(3, size=(160, 120)).load()
    again = TopDown.load(system.save(tmp_path / "net.safetensors"))
    a, b = (s.estimate(picture, boxes=[[20, 10, 80, 140]]) for s in (system, again))
    assert np.array_equal(a.xy, b.xy) and a.xy.shape == (1, 5, 2)


def test_a_list_of_maps_is_trained_whole_and_read_last():
    class Twice(nn.Module):
        out_channels, strides = 3, (4, 4)

        def __init__(self):
            super().__init__()
            self.first, self.last = DotNet(), DotNet()

        def forward(self, images):
            return [0 * self.first(images), self.last(images)]

    xy = np.array([[40.0, 60.0], [48.0, 60.0], [56.0, 60.0]])
    system = TopDown(Twice(), GaussianCodec(size=SIZE), DOTS, normalise="none")
    image = torch.from_numpy(dot_image(xy, SIZE)).permute(2, 0, 1)[None]
    assert torch.equal(system.predict_crops(image)[0], dots().predict_crops(image)[0])
    batch = {"image": image, "xy": torch.tensor(xy, dtype=torch.float32)[None], "vis": torch.full((1, 3), 2)}
    targets = system.codec.encode(batch["xy"], batch["vis"])
    assert system.training_loss(batch).item() == pytest.approx(dots().training_loss(batch).item() + system.codec.loss(torch.zeros_like(targets.maps), targets).item(), rel=1e-5)


FILED = [DarkCodec(SIZE, sigma=1.0), DarkCodec.official(SIZE, 1.0), GaussianCodec.official(SIZE), GaussianCodec(SIZE, decoder="dark"), UDPCodec.official(SIZE), UDPCodec(SIZE, mapping="biased"), CombinedCodec.official(SIZE), DiskCodec(SIZE), CellOffsetCodec(SIZE), DsntCodec(SIZE)]


@pytest.mark.parametrize("codec", FILED, ids=lambda c: f"{type(c).__name__}-{getattr(c, 'variant', getattr(c, 'decoder', ''))}")
def test_any_map_codec_survives_a_file(codec, tmp_path):
    system = TopDown(simple_baseline_small(codec.channels(3)), codec, DOTS)
    again = TopDown.load(system.save(tmp_path / "net.safetensors"))
    assert again.codec == codec and type(again.codec) is type(codec)
    image = draw_crop(5, size=(160, 120)).load()
    a, b = (s.estimate(image, boxes=[[20, 10, 80, 140]]) for s in (system, again))
    assert np.array_equal(a.xy, b.xy) and np.isfinite(a.xy).all()


def test_foreign_codecs_and_versions_are_refused(tmp_path):
    from posetutor.train.engine import load_weights, save_weights

    class Mine(GaussianCodec):
        pass

    with pytest.raises(ValueError, match="codec must be one of GaussianCodec, .* got Mine"):
        TopDown(simple_baseline_small(3), Mine(SIZE), DOTS).save(tmp_path / "mine.safetensors")
    path = TopDown(simple_baseline_small(3), DarkCodec(SIZE), DOTS).save(tmp_path / "net.safetensors")
    state, facts = load_weights(path)
    old = {k: v for k, v in facts.items() if k != "codec_name"}  # as files before codecs had names
    save_weights(state, tmp_path / "old.safetensors", old)
    assert type(TopDown.load(tmp_path / "old.safetensors").codec) is GaussianCodec
    for change in ({"codec_name": "NewCodec"}, {"codec": {**facts["codec"], "temperature": 2.0}}):
        save_weights(state, tmp_path / "new.safetensors", {**facts, **change})
        with pytest.raises(ValueError, match="update posetutor"):
            TopDown.load(tmp_path / "new.safetensors")


def test_hard_boxes_join_the_crops(small):
    people, scene = figures(6, size=(160, 120)), draw_scene(3, people=(1, 1), size=(240, 320))
    hard = [(scene, np.float32([10, 20, 40, 90]), 0.9)]
    plain = CropDataset(people, SIZE)
    data = MixedCrops(plain, share=0.25, hard=hard)
    assert len(data) == 8 and [data[i]["empty"] for i in range(8)] == [False] * 6 + [True] * 2
    windows = pad_boxes(torch.tensor([[10.0, 20.0, 40.0, 90.0]]), SIZE[1] / SIZE[0], plain.padding)
    assert torch.allclose(data[6]["matrix"], crop_matrix(windows, SIZE)[0], atol=1e-4)  # cut as a person would be
    varied = MixedCrops(CropDataset(people, SIZE, augment=Augment(rotation=30, photometric=0.3)), share=0.25, hard=hard)
    first = varied[7]
    varied.set_epoch(1)
    assert not torch.equal(first["image"], varied[7]["image"]) and collate([first, varied[0]])["empty"].tolist() == [True, False]
    mixed = MixedCrops(plain, [scene], share=0.9, hard=hard)
    assert 0.3 < np.mean([torch.equal(mixed[i]["box"], torch.tensor([10.0, 20.0, 40.0, 90.0])) for i in range(6, len(mixed))]) < 0.7
    assert small.training_loss(collate([data[0], data[7]])).isfinite()
    with pytest.raises(ValueError, match="hard_share must be"):
        MixedCrops(plain, share=0.2, hard=hard, hard_share=1.5)


@pytest.mark.parametrize("name", PACKAGED)
def test_packaged_systems_estimate(name):
    system = pretrained(name)
    records = figures(6, start=1_000_000, config=LESSON_FIGURES)
    scores = evaluate_topdown(system, records, flip=False)
    assert scores["AP50"] > 0.6 and not system.net.training, scores
    with pytest.raises(ValueError, match="name must be one of topdown_small"):
        pretrained("hrnet_w32")


def test_suppression_of_given_boxes_uses_the_window_as_the_published_code():
    """HRNet: areas np.prod(s * 200) of the enlarged window. Two poses at an OKS of 0.85 by the body's own area are one pose by that rule."""
    from posetutor.metrics.oks import oks_matrix, oks_nms

    system = dots()
    record = Record(np.zeros((240, 320, 3), np.uint8), None, 7, (240, 320), np.float32([[100, 40, 60, 150]]), np.zeros((1, 3, 2), np.float32), np.full((1, 3), 2), np.float32([4000]), np.array([False]), np.array([1]), DOTS)
    boxes = torch.tensor([[100.0, 40.0, 60.0, 150.0]] * 2)
    window = pad_boxes(boxes, system.aspect, 1.25)[:, 2:].prod(dim=1)
    body = 0.53 * boxes[:, 2:].prod(dim=1)
    assert (window / body)[0] == pytest.approx(5.53, abs=0.01)
    xy = torch.tensor([[[110.0, 60.0], [130.0, 90.0], [120.0, 140.0]]])
    xy = torch.cat([xy, xy + torch.tensor([4.0, 0.0])])
    scores, sigmas = torch.tensor([0.9, 0.8]), DOTS.sigmas_tensor()
    similar = [float(oks_matrix(xy[:1], xy[1:], torch.ones(1, 3), area[:1], sigmas)) for area in (body, window)]
    assert 0.56 < similar[0] < 0.9 < similar[1], similar
    assert similar[1] == pytest.approx(similar[0] ** float(body[0] / window[0]), rel=1e-4)
    assert len(oks_nms(xy, scores, body, sigmas, 0.9)) == 2 and len(oks_nms(xy, scores, window, sigmas, 0.9)) == 1
    system.predict_crops = lambda images, **options: (transform_points(crop_matrix(pad_boxes(boxes, system.aspect, 1.25), SIZE), xy), torch.full((2, 3), 0.9))
    rows = torch.cat([boxes, scores[:, None]], dim=1).numpy()
    assert len(system.run([record], boxes={7: rows})) == 1 and len(system.run([record], boxes={7: rows}, nms=None)) == 2
    assert len(system.estimate(record.image, boxes=boxes, box_scores=scores, nms=0.9)) == 1
    assert len(system.estimate(record.image, boxes=boxes, box_scores=scores)) == 2


def test_a_mapping_must_name_the_records(small):
    """Detections of other pictures, or keys read from JSON as strings, are a mistake and not an AP of 0."""
    records = figures(2, start=50, size=(160, 120))
    ids = [record.image_id for record in records]
    for wrong in ({999_999_999: records[0].boxes}, {str(ids[0]): records[0].boxes, str(ids[1]): records[1].boxes}):
        for call in (small.run, lambda r, boxes: evaluate_topdown(small, r, boxes=boxes)):
            with pytest.raises(ValueError, match=f"got {len(wrong)} keys such as .* for 2 records such as {ids[0]} with none in common"):
                call(records, boxes=wrong)
    assert len(small.run(records, boxes={ids[1]: records[1].boxes, 999_999_999: records[0].boxes})) == len(records[1].boxes)  # some pictures without detections
    assert small.run(records, boxes={}) == [] == small.run([], boxes={999_999_999: records[0].boxes})
    with pytest.raises(ValueError, match="boxes must be .truth., .found. or a mapping"):
        small.run(records, boxes=records[0].boxes)


@pytest.mark.parametrize("image", [np.zeros((64, 64), np.uint8), np.zeros((64, 64, 3), np.float32), np.zeros((64, 64, 1), np.uint8)], ids=["grey", "float", "one channel"])
def test_the_search_refuses_what_is_no_picture(small, image):
    with pytest.raises(ValueError, match="image must be"):
        small.find(image)


def test_options_that_would_do_nothing_are_refused(small):
    picture = np.zeros((64, 64, 3), np.uint8)
    for options, names in (({"box_scores": [1.0]}, "box_scores"), ({"nms": 0.9}, "nms"), ({"scales": (1.0, 1.2)}, "scales"), ({"nms": 0.5, "scales": (0.9,)}, "nms and scales")):
        with pytest.raises(ValueError, match=f"boxes must be given where {names} shall count"):
            small.estimate(picture, **options)
    record = figures(1, start=50, size=(160, 120))[0]
    for options in ({"scales": (1.0, 1.2)}, {"nms": 0.9}, {"nms": None}, {"rule": "joints"}):
        with pytest.raises(ValueError, match="where nms, scales or rule shall count"):
            small.run([record], boxes="found", **options)
    for boxes in ([], np.zeros((0, 4))):
        with pytest.raises(ValueError, match="box_scores must be"):
            small.estimate(picture, boxes=boxes, box_scores=[1, 2, 3])
        with pytest.raises(ValueError, match="scales must be positive"):
            small.estimate(picture, boxes=boxes, scales=(0.0,))
    with pytest.raises(ValueError, match="batch must be at least one crop, got 0"):
        small.predict_crops(torch.zeros(0, 3, *small.size), batch=0)
    with pytest.raises(ValueError, match='normalise must be "imagenet", "grmi" or "none", got \'x\''):
        TopDown(small.net, small.codec, small.skeleton, normalise="x")


def test_auto_suppression_of_one_picture():
    """As in `run`: 0.9 for boxes with scores, all poses for boxes without."""
    image = dot_image(np.array([[120.3, 90.7], [160.0, 130.2], [140.9, 171.4]]))
    boxes = [[90, 60, 100, 140], [100, 70, 80, 120]]
    assert len(dots().estimate(image, boxes=boxes, nms="auto")) == 2
    scored = dots().estimate(image, boxes=boxes, box_scores=[0.5, 0.9], nms="auto")
    assert len(scored) == 1 and np.allclose(scored.boxes[0], boxes[1])


def test_a_file_brings_the_codec_of_a_later_chapter(tmp_path):
    """A process that imports this module only reads a system with the codec of MSPN's published weights."""
    from posetutor.systems.official import MegviiCodec

    system = TopDown(mspn_small(5, stages=1), MegviiCodec((64, 64)), Skeleton("k5", tuple("abcde"), (), (), (0.05,) * 5))
    path = system.save(tmp_path / "net.safetensors")
    code = "import sys; from posetutor.systems.topdown import TopDown; assert 'posetutor.systems.official' not in sys.modules; print(type(TopDown.load(sys.argv[1]).codec).__name__)"
    done = subprocess.run([sys.executable, "-c", code, str(path)], capture_output=True, text=True, check=False)
    assert done.returncode == 0 and done.stdout.split() == ["MegviiCodec"], done.stderr
    with pytest.raises(ValueError, match="for MegviiCodec, got .*GaussianCodec, DarkCodec and UDPCodec only"):
        system.predict_crops(torch.zeros(1, 2, 3, 64, 64), scales=(1.0, 1.2))


def test_scales_stretch_the_flip_bias_of_pixel_counts():
    """Mirroring fixes cell (w - 1) / 2, the window's centre is w / 2: the eighth of a cell of each scaled map is s / 8 in the reference."""
    rows, columns = torch.meshgrid(torch.arange(32.0), torch.arange(24.0), indexing="ij")

    def bell(x, s):
        return torch.exp(-((columns - x) ** 2 + (rows - 16) ** 2) / (2 * (2.5 / s) ** 2))[None, None]

    for s in (0.8, 1.0, 1.25):
        place = (10.0 - 12) / s + 12  # of reference cell 10, around w / 2
        maps = (bell(place, s) + bell(place + 0.25, s)) / 2  # the direct map, and the mirrored one after its shift by a cell
        back = average_scales([maps], (s,), mapping="biased")
        assert float((back * columns).sum() / back.sum()) - 10 == pytest.approx(s / 8, abs=0.01), s
