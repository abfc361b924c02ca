"""Crops: equal to the geometry chapter, labels move with the pixels, the same in any order and any worker, official statistics."""

import dataclasses

import cv2
import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

from posetutor.core import seed_rng
from posetutor.data.augment import (
    AID_AUGMENT,
    GRMI_AUGMENT,
    GRMI_SIZE,
    HRNET_AUGMENT,
    NO_AUGMENT,
    Augment,
    CropDataset,
    batches_to_device,
    collate,
    cutout,
    half_body_box,
    hide_and_seek,
    mixup,
    normalise_images,
    photometric,
    random_crop,
    restore_images,
)
from posetutor.data.coco import local_set
from posetutor.geometry import crop_matrix, flip_points, flip_vis, invert, pad_boxes, transform_points
from posetutor.skeletons import COCO_17, HAND_21, LSP_14, Record

BOX = np.array([40.0, 30.0, 60.0, 150.0])


def record(skeleton=COCO_17, image_id=5, dots=False, crowd=False):
    rng = np.random.default_rng(image_id)
    H, W = 240, 320
    xy = np.stack([rng.uniform(60, 200, skeleton.K), rng.uniform(40, 180, skeleton.K)], axis=-1)
    image = rng.integers(0, 255, (H, W, 3), dtype=np.uint8)
    if dots:
        y, x = np.mgrid[:H, :W]
        xy = np.stack([90 + 30.3 * (np.arange(skeleton.K) % 4), 60 + 23.4 * (np.arange(skeleton.K) // 4)], axis=-1)
        image = np.zeros((H, W, 3))
        for a, b in xy:
            image += 230 * np.exp(-((x - a) ** 2 + (y - b) ** 2) / 8)[..., None]
        image = image.clip(0, 255).astype(np.uint8)
    vis = np.full(skeleton.K, 2)
    vis[1] = 1
    empty = np.zeros((1, skeleton.K, 2))
    return Record(
        image, None, image_id, (H, W), [[50, 30, 160, 170], [5, 5, 20, 20]], np.concatenate([xy[None], empty]),
        np.concatenate([vis[None], 0 * vis[None]]), [9000, 100], [crowd, False], [image_id * 10, image_id * 10 + 1], skeleton,
    )  # fmt: skip


def same(a, b):
    assert a.keys() == b.keys()
    for key in a:
        assert torch.equal(torch.as_tensor(a[key]), torch.as_tensor(b[key])), key


@pytest.mark.parametrize("mapping", ["unit", "biased"])
@pytest.mark.parametrize("size", [(256, 192), (64, 48), (97, 131), GRMI_SIZE])
def test_matrix_equals_geometry(mapping, size):
    matrix, flip = random_crop(BOX, np.zeros((17, 2)), np.zeros(17), COCO_17, size, NO_AUGMENT, seed_rng(0), mapping=mapping)
    window = pad_boxes(torch.tensor(BOX)[None], size[1] / size[0])
    np.testing.assert_allclose(matrix, crop_matrix(window, size, mapping=mapping)[0].numpy(), rtol=0, atol=1e-9)
    assert not flip
    turn = Augment(rotation=40, rotation_prob=1, scale=0, flip_prob=1, half_body_prob=0)
    rng = seed_rng(3)
    rng.standard_normal(), rng.random()  # the scale (times 0) and the decision to rotate come first
    angle = float(np.clip(40 * rng.standard_normal(), -80, 80))
    matrix, flip = random_crop(BOX, np.zeros((17, 2)), np.zeros(17), COCO_17, size, turn, seed_rng(3), mapping=mapping)
    expected = crop_matrix(window, size, rotation=angle, flip=True, mapping=mapping)[0].numpy()
    assert flip and abs(angle) > 1
    np.testing.assert_allclose(matrix, expected, rtol=0, atol=1e-9)


@pytest.mark.parametrize("augment", [NO_AUGMENT, HRNET_AUGMENT, GRMI_AUGMENT, Augment(flip_prob=1, shift=0.1)], ids=lambda a: f"rot{a.rotation:g}flip{a.flip_prob:g}")
def test_dots_move_with_the_joints(augment):
    data = CropDataset([record(dots=True)], (256, 192), augment=augment)
    for epoch in range(6):
        item = data.item(0, epoch)
        image, order = item["image"].float().mean(0).numpy(), list(COCO_17.flip_index) if item["flip"] else list(range(17))
        zoom = float(item["matrix"][:2, :2].det().abs().sqrt())
        for k in range(17):
            x, y = item["xy"][k].tolist()
            r = int(np.ceil(4 * zoom))
            if not (r + 1 < x < 190 - r and r + 1 < y < 254 - r):
                continue
            x0, y0 = round(x), round(y)
            patch = image[y0 - r : y0 + r + 1, x0 - r : x0 + r + 1]
            gy, gx = np.mgrid[-r : r + 1, -r : r + 1]
            centroid = np.array([x0 + (patch * gx).sum() / patch.sum(), y0 + (patch * gy).sum() / patch.sum()])
            assert np.abs(centroid - [x, y]).max() < 0.35, (k, order[k])  # neighbouring dots leak a little into the patch


def test_matrix_leads_back_to_the_image():
    r = record()
    data = CropDataset([r], (256, 192), augment=dataclasses.replace(HRNET_AUGMENT, flip_prob=1.0))
    item = data[0]
    back = transform_points(invert(item["matrix"]), item["xy"])
    assert item["flip"]
    torch.testing.assert_close(back[list(COCO_17.flip_index)], torch.tensor(r.xy[0]), atol=1e-3, rtol=0)


def test_mirrored_item_is_the_mirrored_plain_item():
    for skeleton in (COCO_17, LSP_14, HAND_21):
        plain = CropDataset([record(skeleton)], (96, 72))[0]
        mirrored = CropDataset([record(skeleton)], (96, 72), augment=dataclasses.replace(NO_AUGMENT, flip_prob=1.0))[0]
        xy = flip_points(plain["xy"][None], 72, skeleton.flip_index)[0]
        torch.testing.assert_close(mirrored["xy"], xy, atol=1e-4, rtol=0)
        assert torch.equal(mirrored["vis"], flip_vis(plain["vis"][None], skeleton.flip_index)[0])
        assert (mirrored["image"].int() - plain["image"].flip(-1).int()).abs().max() <= 1
        assert mirrored["flip"] and not plain["flip"]


def test_any_order_any_worker_any_epoch():
    records = [record(image_id=i) for i in range(1, 9)]
    augment = dataclasses.replace(AID_AUGMENT, photometric=0.5)
    data = CropDataset(records, (64, 48), augment=augment, seed=7)
    first = [data[i] for i in range(8)]
    for i in (5, 0, 7, 5):
        same(data[i], first[i])
    same(CropDataset(records, (64, 48), augment=augment, seed=7)[-1], first[7])
    assert not torch.equal(CropDataset(records, (64, 48), augment=augment, seed=8)[3]["matrix"], first[3]["matrix"])
    loader = DataLoader(data, batch_size=3, num_workers=2, collate_fn=collate, persistent_workers=True)
    for epoch in (0, 1):
        data.set_epoch(epoch)
        batches = list(loader)
        matrices = torch.cat([b["matrix"] for b in batches])
        expected = torch.stack([data.item(i, epoch)["matrix"] for i in range(8)])
        assert torch.equal(matrices, expected), "workers that live on must see the new epoch"
    assert not torch.equal(expected, torch.stack([f["matrix"] for f in first]))
    data.set_epoch(0)
    same(data[2], first[2])


def test_batch():
    data = CropDataset([record(image_id=i) for i in (1, 2, 3)], (64, 48))
    (batch,) = batches_to_device([collate([data[i] for i in range(3)])], "cpu")
    shapes = {k: tuple(v.shape) for k, v in batch.items()}
    assert shapes == {
        "image": (3, 3, 64, 48), "xy": (3, 17, 2), "vis": (3, 17), "matrix": (3, 3, 3), "area": (3,), "box": (3, 4),
        "image_id": (3,), "person_id": (3,), "record": (3,), "flip": (3,),
    }  # fmt: skip
    assert batch["image"].dtype == torch.uint8 and batch["xy"].dtype == torch.float32 and batch["vis"].dtype == torch.int64
    assert batch["person_id"].tolist() == [10, 20, 30] and batch["area"].tolist() == [9000.0] * 3
    with pytest.raises(ValueError, match="at least one item"):
        collate([])


def test_crowds_and_unlabelled_people_are_no_items():
    assert len(CropDataset([record(), record(crowd=True)], (64, 48))) == 1


def test_unlabelled_joints_are_zero():
    r = record()
    vis = r.vis.copy()
    vis[0, 4] = 0
    item = CropDataset([dataclasses.replace(r, vis=vis)], (64, 48), augment=dataclasses.replace(NO_AUGMENT, rotation=30, rotation_prob=1))[0]
    assert item["xy"][4].tolist() == [0.0, 0.0] and item["vis"][4] == 0 and (item["xy"].abs().sum(1) > 0).sum() == 16


class Drawn:
    single = True

    def __init__(self):
        self.asked = []

    def __len__(self):
        return 1000

    def __getitem__(self, i):
        self.asked.append(i)
        return record(image_id=i + 1)


def test_lazy_sequence_is_not_drawn_in_advance_and_cache():
    lazy = Drawn()
    data = CropDataset(lazy, (64, 48), cache=True)
    assert len(data) == 1000 and lazy.asked == [0]
    same(data[17], data[17])
    with pytest.raises(IndexError):
        data[1000]


def test_statistics_of_the_official_crop():
    rng, n = seed_rng(1), 40_000
    scale, angle, flips = np.empty(n), np.empty(n), 0
    augment = dataclasses.replace(HRNET_AUGMENT, half_body_prob=0.0)
    for i in range(n):
        matrix, flip = random_crop(BOX, None, None, COCO_17, (256, 192), augment, rng)
        flips += flip
        if flip:
            matrix[0] *= -1
        scale[i] = np.hypot(matrix[0, 0], matrix[0, 1])
        angle[i] = np.degrees(np.arctan2(matrix[0, 1], matrix[0, 0]))
    window = (191 / (150 * 0.75 * 1.25)) / scale
    assert abs(flips / n - 0.5) < 0.01
    assert abs(np.isclose(window, 0.65).mean() - 0.159) < 0.01 and abs(np.isclose(window, 1.35).mean() - 0.159) < 0.01
    assert abs(window.mean() - 1) < 0.01 and abs(window.std() - 0.2515) < 0.005
    turned = np.abs(angle[angle != 0])
    assert abs(len(turned) / n - 0.6) < 0.01 and abs((turned > 45).mean() - 0.317) < 0.01 and abs(np.isclose(turned, 90).mean() - 0.046) < 0.005
    assert abs(angle.std() - 33.5) < 0.5


def test_half_body():
    r, rng = record(), seed_rng(0)
    boxes = [half_body_box(r.xy[0], r.vis[0], COCO_17, rng, upper_share=0.25) for _ in range(4000)]
    upper = r.xy[0][list(COCO_17.upper)].astype(np.float64)
    box = np.concatenate([upper.mean(0) - np.ptp(upper, axis=0) / 2, np.ptp(upper, axis=0)])
    assert abs(np.mean([np.allclose(b, box) for b in boxes]) - 0.25) < 0.02
    only = np.zeros(17)
    only[[13, 14, 15]] = 2
    assert np.allclose(half_body_box(r.xy[0], only, COCO_17, rng)[2:], np.ptp(r.xy[0][[13, 14, 15]], axis=0))  # the other half has nobody
    only[:] = 0
    assert half_body_box(r.xy[0], only, COCO_17, rng) is None
    only[[0, 1, 2]] = 2
    assert half_body_box(np.zeros((17, 2)), only, COCO_17, rng) is None  # all in one point: no box
    assert half_body_box(np.zeros((21, 2)), np.full(21, 2), HAND_21, rng) is None  # a hand has no halves
    with pytest.raises(ValueError, match=r"\(17, 2\)"):
        half_body_box(np.zeros((14, 2)), np.zeros(14), COCO_17, rng)


def test_dropping():
    rng, image = seed_rng(2), np.full((256, 192, 3), 255, np.uint8)
    area = [(cutout(image, rng)[..., 0] == 0).mean() for _ in range(1500)]
    assert 0.15 < np.mean(area) < 0.2121  # 0.3 * 0.3 * pi * W / H, less what leaves the picture
    tall = [hide_and_seek(image, rng, grids=(32,))[..., 0] == 0 for _ in range(300)]
    share = np.mean(tall, axis=0)
    assert abs(share.mean() - 0.5) < 0.02 and abs(share[250].mean() - 0.5) < 0.1, "the bottom rows are hidden as often as the rest"
    for tile in (tall[0][:32, :32], tall[0][224:, 160:]):
        assert tile.all() or not tile.any()
    black = [not hide_and_seek(image, rng, grids=(0, 300), prob=1.0).any() for _ in range(200)]
    assert 0.35 < np.mean(black) < 0.65, "the last grid of the list is drawn too"
    assert np.array_equal(hide_and_seek(image, rng, grids=(0,)), image) and image.min() == 255  # never in place
    for call in (cutout, hide_and_seek, photometric):
        with pytest.raises(ValueError, match="uint8"):
            call(image.astype(np.float32), rng)
    with pytest.raises(ValueError, match="grids"):
        hide_and_seek(image, rng, grids=())


def test_photometric():
    image = record().image
    assert np.array_equal(photometric(image, seed_rng(0), strength=0), image)
    changed = photometric(image, seed_rng(0))
    assert changed.dtype == np.uint8 and not np.array_equal(changed, image)
    one = np.broadcast_to(np.arange(256, dtype=np.uint8)[:, None, None], (256, 2, 3))
    assert (np.diff(photometric(np.ascontiguousarray(one), seed_rng(4))[:, 0].astype(int), axis=0) >= 0).all()  # brighter stays brighter


def test_mixup():
    images = torch.arange(4, dtype=torch.float32)[:, None, None, None].expand(4, 3, 5, 7)
    mixed, partner, share = mixup(images, torch.Generator().manual_seed(0))
    torch.testing.assert_close(mixed[:, 0, 0, 0], share * torch.arange(4.0) + (1 - share) * partner.float())
    again = mixup(images, torch.Generator().manual_seed(0))
    assert torch.equal(mixed, again[0]) and sorted(partner.tolist()) == [0, 1, 2, 3]
    shares = mixup(torch.zeros(20000, 3, 1, 1), torch.Generator().manual_seed(1))[2]
    assert abs(float(shares.mean()) - 0.5) < 0.01 and abs(float(shares.var()) - 1 / 16) < 0.003  # Beta(a, a): 1 / (4 (2a + 1))
    with pytest.raises(ValueError, match="alpha"):
        mixup(images, torch.Generator(), alpha=0)


def test_normalise():
    images = torch.randint(0, 256, (2, 3, 4, 5), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    mean, std = torch.tensor([0.485, 0.456, 0.406])[:, None, None], torch.tensor([0.229, 0.224, 0.225])[:, None, None]
    torch.testing.assert_close(normalise_images(images), (images / 255 - mean) / std, atol=2e-6, rtol=0)
    torch.testing.assert_close(normalise_images(images / 255), normalise_images(images), atol=2e-6, rtol=0)
    torch.testing.assert_close(normalise_images(images, "grmi"), images / 255 - 0.5)
    for kind in ("imagenet", "grmi", "none"):
        assert torch.equal(restore_images(normalise_images(images, kind), kind), images)
    for call, text in (
        (lambda: normalise_images(images.float()), "divide by 255"),
        (lambda: normalise_images(images[0]), r"\(B, 3, H, W\)"),
        (lambda: normalise_images(images, "coco"), "imagenet, grmi, none"),
        (lambda: normalise_images(normalise_images(images)), "normalise only once"),
        (lambda: normalise_images(torch.full((1, 3, 4, 4), torch.nan)), "got float from nan to nan"),
    ):
        with pytest.raises(ValueError, match=text):
            call()


def test_refusals():
    r = record()
    bad = dataclasses.replace(r, boxes=[[50, 30, 0, 170], [5, 5, 20, 20]])
    for call, text in (
        (lambda: CropDataset([bad], (64, 48)), r"image 5\), annotation 50.*check-dataset"),
        (lambda: CropDataset([r, record(LSP_14)], (64, 48)), "one skeleton.*lsp_14"),
        (lambda: CropDataset([], (64, 48)), "at least one Record"),
        (lambda: CropDataset([record(crowd=True)], (64, 48)), "labelled joint"),
        (lambda: CropDataset([r], (64, 48.5)), r"\(H, W\)"),
        (lambda: CropDataset([r], (64, 48), padding=0), "padding"),
        (lambda: CropDataset([r], (64, 48), mapping="corner")[0], "mapping"),
        (lambda: random_crop([0, 0, np.nan, 1], None, None, COCO_17, (64, 48), NO_AUGMENT, seed_rng(0)), "positive sides"),
        (lambda: Augment(scale=1.0), "scale"),
        (lambda: Augment(flip_prob=1.5), "flip_prob"),
        (lambda: Augment(rotation=-1), "rotation"),
        (lambda: Augment(drop="grid"), "drop"),
        (lambda: Augment(padding=(1.5, 1.0)), "low <= high"),
        (lambda: Augment(distribution="gauss"), "distribution"),
        (lambda: Augment(photometric=float("nan")), "photometric"),
        (lambda: Augment(rotation="45"), "rotation must be a number, got '45'"),
        (lambda: Augment(padding=1.25), r"padding must be None or \(low, high\)"),
        (lambda: Augment(half_body_min=2.5), "half_body_min must be an integer"),
        (lambda: CropDataset([r], (64, 48), augment=None), "augment must be an Augment .* got NoneType"),
        (lambda: CropDataset([r], 64), r"size must be \(H, W\)"),
        (lambda: random_crop(BOX, None, None, COCO_17, (64, 48), NO_AUGMENT, seed_rng(0), padding=0), "padding must be positive"),
        (lambda: cutout(np.zeros((8, 8, 3), np.uint8), seed_rng(0), radius=-0.2), "radius"),
        (lambda: hide_and_seek(np.zeros((8, 8, 3), np.uint8), seed_rng(0), prob=2), "prob"),
        (lambda: photometric(np.zeros((8, 8, 1), np.uint8), seed_rng(0)), r"image must be \(H, W, 3\)"),
        (lambda: photometric(np.zeros((8, 8, 3), np.uint8), seed_rng(0), strength=50), "strength"),
        (lambda: mixup(torch.zeros(2, 3, 4, 4), torch.Generator(), alpha=float("inf")), "alpha"),
    ):
        with pytest.raises(ValueError, match=text):
            call()


@pytest.mark.parametrize("name", ["coco_mini/train", "lspet400/val"])
def test_real_photographs(name):
    records = local_set(name)
    if records is None:
        pytest.skip("POSETUTOR_DATA is unset: no real photographs")
    data = CropDataset(records, (128, 96), augment=HRNET_AUGMENT)
    r, i = records[int(data.people["record"][3])], 3
    item = data[i]
    image = cv2.cvtColor(cv2.imread(str(r.path), cv2.IMREAD_COLOR | cv2.IMREAD_IGNORE_ORIENTATION), cv2.COLOR_BGR2RGB)
    crop = cv2.warpAffine(image, item["matrix"].double().numpy()[:2], (96, 128), flags=cv2.INTER_LINEAR)
    assert np.abs(crop.astype(int) - item["image"].permute(1, 2, 0).numpy()).max() <= 2
