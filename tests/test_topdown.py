"""The top-down system end to end: frames, flip test, boxes, search, files. Trained accuracy is tested in test_real_chain.py."""

import dataclasses
import json

import cv2
import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from posetutor.codecs.gaussian import GaussianCodec
from posetutor.codecs.udp import UDPCodec
from posetutor.data.augment import CropDataset, collate
from posetutor.data.figures import draw_crop, draw_scene, figures
from posetutor.geometry import crop_matrix, pad_boxes, transform_points
from posetutor.nets.simple_baseline import simple_baseline_small
from posetutor.skeletons import COCO_17, LSP_14, Poses, Skeleton
from posetutor.systems.topdown import (
    SMOKE,
    MixedCrops,
    TopDown,
    boxes_from_joints,
    calibrate,
    empty_window,
    evaluate_topdown,
    flipped_average,
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
