"""AP and AR: ours, by steps and through pycocotools, against pycocotools called the official way on files that hold every special case."""

import contextlib
import copy
import io
import json
import os
import warnings
from pathlib import Path

import numpy as np
import pytest
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from posetutor.core import refuses
from posetutor.metrics import coco_eval as m
from posetutor.skeletons import COCO_17, HAND_21, Poses, Record

K = COCO_17.K
CATEGORY = dict(id=1, name="person", keypoints=list(COCO_17.names), skeleton=[])


def official(dataset, results, sigmas=None):
    """pycocotools as its own manual shows it: load, loadRes, evaluate."""
    with contextlib.redirect_stdout(io.StringIO()):
        truth = COCO()
        truth.dataset = copy.deepcopy(dataset)
        truth.createIndex()
        evaluator = COCOeval(truth, truth.loadRes(copy.deepcopy(results)), "keypoints")
        if sigmas is not None:
            evaluator.params.kpt_oks_sigmas = np.asarray(sigmas)
        evaluator.evaluate()
        evaluator.accumulate()
        evaluator.summarize()
    return np.array(evaluator.stats)


def make(seed, images=12, K=K, category=CATEGORY, empty=True):
    """Medium, large and small people, crowds, people without keypoints, empty images, and one image with 30 detections."""
    rng = np.random.default_rng(seed)
    annotations, results = [], []
    for image in range(1, images + 1):
        people = [] if image % 5 == 0 else range(rng.integers(1, 5))
        for _ in people:
            side = rng.choice([20.0, 60.0, 200.0])
            corner = rng.uniform(0, 400, 2)
            xy = corner + rng.uniform(0, 1, (K, 2)) * side * np.array([0.6, 1.4])
            vis = rng.choice([0, 1, 2], K, p=[0.2, 0.2, 0.6])
            kind = rng.choice(["person", "crowd", "bare"], p=[0.7, 0.15, 0.15])
            if kind != "person":
                vis[:] = 0
            points = np.concatenate([xy * (vis > 0)[:, None], vis[:, None]], axis=1)
            box = [*corner.tolist(), 0.6 * side, 1.4 * side]
            annotations.append(dict(id=len(annotations) + 1, image_id=image, category_id=1, iscrowd=int(kind == "crowd"), area=0.5 * box[2] * box[3],
                                    bbox=box, num_keypoints=int((vis > 0).sum()), keypoints=points.ravel().tolist()))  # fmt: skip
            for _ in range(rng.integers(0, 4)):
                found = xy + rng.normal(size=(K, 2)) * side * rng.choice([0.01, 0.05, 0.15])
                results.append((image, found, rng.choice([0.1, 0.3, 0.5, 0.7, 0.9])))  # ties on purpose
        extra = 30 if image == 3 else (2 if image % 5 == 0 else rng.integers(0, 2))
        for _ in range(extra):
            results.append((image, rng.uniform(0, 400, 2) + rng.uniform(0, 80, (K, 2)), rng.uniform(0.4, 1.0)))
    results = [dict(image_id=i, category_id=1, score=float(s), keypoints=np.c_[xy, np.ones(K)].ravel().tolist()) for i, xy, s in results]
    rng.shuffle(results)
    return dict(images=[dict(id=i) for i in range(1, images + 1)], annotations=annotations, categories=[copy.deepcopy(category)]), list(results)


def values(scores):
    return np.array([scores[name] for name in m.SCORE_NAMES])


@pytest.mark.parametrize("seed", range(8))
def test_equal_to_pycocotools(seed):
    dataset, results = make(seed)
    flags = [(a["iscrowd"], a["num_keypoints"]) for a in dataset["annotations"]]
    assert any(c for c, _ in flags) and any(not c and not n for c, n in flags)
    assert sum(r["image_id"] == 3 for r in results) > 20
    before = copy.deepcopy((dataset, results))
    expected = official(dataset, results)
    np.testing.assert_allclose(values(m.evaluate_coco(dataset, results)), expected, atol=1e-9)
    np.testing.assert_allclose(values(m.evaluate_stepwise(dataset, results)), expected, atol=1e-9)
    assert (dataset, results) == before, "inputs were modified"
    assert 0 < expected[0] < 1


def test_equal_with_own_joints_and_sigmas():
    category = dict(id=1, name="hand", keypoints=list(HAND_21.names))
    dataset, results = make(3, K=HAND_21.K, category=category)
    expected = official(dataset, results, HAND_21.sigmas)
    np.testing.assert_allclose(values(m.evaluate_coco(dataset, results, HAND_21.sigmas)), expected, atol=1e-9)
    np.testing.assert_allclose(values(m.evaluate_stepwise(dataset, results, HAND_21.sigmas)), expected, atol=1e-9)


def test_equal_with_boxes_in_the_results():
    """loadRes takes the area of a detection from its box when there is one; that decides AP_M and AP_L."""
    dataset, results = make(1)
    for n, result in enumerate(results):
        result["bbox"] = [0, 0, 5.0 + 10 * (n % 20), 60.0]
    expected = official(dataset, results)
    np.testing.assert_allclose(values(m.evaluate_coco(dataset, results)), expected, atol=1e-9)
    np.testing.assert_allclose(values(m.evaluate_stepwise(dataset, results)), expected, atol=1e-9)


def test_reference_vectors():
    z = np.load(Path(__file__).parent / "data" / "oks.npz", allow_pickle=False)
    sigmas = json.loads(z["params"].item())["sigmas"]
    truth, found = z["in_gt"], z["in_det"]
    annotations = [
        dict(id=n + 1, image_id=1, category_id=1, iscrowd=0, area=float(z["in_gt_area"][n]), bbox=z["in_gt_bbox"][n].tolist(), keypoints=truth[n].ravel().tolist(), num_keypoints=int((truth[n, :, 2] > 0).sum()))
        for n in range(len(truth))
    ]
    dataset = dict(images=[dict(id=1)], annotations=annotations, categories=[CATEGORY])
    results = [dict(image_id=1, category_id=1, score=float(s), keypoints=d.ravel().tolist()) for d, s in zip(found, z["in_det_score"], strict=True)]
    for evaluate in (m.evaluate_coco, m.evaluate_stepwise):
        np.testing.assert_allclose(values(evaluate(dataset, results, sigmas)), z["out_coco_stats"], atol=1e-9)
    d, g = np.indices((len(found), len(truth))).reshape(2, -1)
    order = np.argsort(-z["in_det_score"], kind="stable")
    similarity = m.coco_similarity(found[order][d, :, :2], truth[g, :, :2], truth[g, :, 2], z["in_gt_area"][g], z["in_gt_bbox"][g], sigmas)
    np.testing.assert_allclose(similarity.reshape(len(found), -1), z["out_coco_oks"], atol=1e-9)


def test_subset_of_images():
    dataset, results = make(0)
    chosen = [1, 2, 3, 7]
    part = dict(dataset, images=[i for i in dataset["images"] if i["id"] in chosen], annotations=[a for a in dataset["annotations"] if a["image_id"] in chosen])
    expected = official(part, [r for r in results if r["image_id"] in chosen])
    for evaluate in (m.evaluate_coco, m.evaluate_stepwise):
        np.testing.assert_allclose(values(evaluate(dataset, results, image_ids=chosen)), expected, atol=1e-9)


def test_no_results_and_no_people():
    dataset, results = make(0)
    bare = dict(dataset, annotations=[])
    for evaluate in (m.evaluate_coco, m.evaluate_stepwise):
        assert set(values(evaluate(dataset, []))) == {0.0}
        assert set(values(evaluate(bare, results))) == {-1.0}
        assert set(values(evaluate(bare, []))) == {-1.0}
    assert m.format_scores(m.evaluate_coco(bare, [])).count("no objects of this size") == 10


def broken(change):
    dataset, results = make(0)
    change(dataset, results)
    return lambda: m.evaluate_coco(dataset, results)


def first_person(dataset):
    return next(a for a in dataset["annotations"] if a["num_keypoints"])


@pytest.mark.parametrize("change, text", [
    (lambda d, r: r[0].update(score=float("nan")), "score of results"),
    (lambda d, r: r[0]["keypoints"].__setitem__(4, float("inf")), "keypoints of results"),
    (lambda d, r: r[0]["keypoints"].pop(), f"{3 * K} numbers"),
    (lambda d, r: r[0].update(image_id=999), "image_id 999"),
    (lambda d, r: r[0].update(category_id=7), "category_id 7"),
    (lambda d, r: r[0].pop("score"), "lacks score"),
    (lambda d, r: r[0].update(bbox=[0, 0, 1, 1]), "all carry a bbox or none"),
    (lambda d, r: first_person(d).update(area=-5.0), "must be > 0"),
    (lambda d, r: first_person(d).update(area=0), "must be > 0"),
    (lambda d, r: first_person(d).update(num_keypoints=0), "num_keypoints"),
    (lambda d, r: first_person(d)["keypoints"].__setitem__(2, 3), "visibility"),
    (lambda d, r: first_person(d).pop("area"), "lacks area"),
    (lambda d, r: d.update(images=[]), "no image"),
    (lambda d, r: d.pop("categories"), "no categories"),
    (lambda d, r: d["categories"].append(dict(id=2, name="dog", keypoints=["nose"])), "category_id"),
    (lambda d, r: d["categories"][0].update(keypoints=[f"p{k}" for k in range(K)]), "sigmas"),
])  # fmt: skip
def test_refused(change, text):
    refuses(broken(change), text)


def test_refused_arguments(tmp_path):
    dataset, results = make(0)
    refuses(lambda: m.evaluate_coco(tmp_path / "absent.json", results), "absent.json", error=FileNotFoundError)
    refuses(lambda: m.evaluate_coco(dataset, results[0]), "list")
    refuses(lambda: m.evaluate_coco(dataset, results, [0.1] * (K - 1)), "sigmas")
    refuses(lambda: m.pixel_errors(dataset, results, min_oks=0), "min_oks")
    refuses(lambda: m.coco_from_records([]), "at least one Record")


def test_path_dict_and_object_agree(tmp_path):
    dataset, results = make(2)
    path = tmp_path / "truth.json"
    path.write_text(json.dumps(dataset))
    coco = COCO()
    coco.dataset = dataset
    expected = m.evaluate_coco(dataset, results)
    assert m.evaluate_coco(path, results) == expected
    assert m.evaluate_coco(coco, results) == expected


def test_nothing_is_printed(capsys):
    dataset, results = make(2)
    m.evaluate_coco(dataset, results)
    captured = capsys.readouterr()
    assert captured.out == "" and captured.err == ""


def test_lax_sigmas_warn():
    category = dict(id=1, name="rod", keypoints=["top", "bottom"])
    dataset = dict(images=[dict(id=1)], categories=[category], annotations=[dict(id=1, image_id=1, category_id=1, iscrowd=0, area=20000.0, bbox=[0, 0, 100, 200], num_keypoints=2, keypoints=[50, 0, 2, 50, 200, 2])])
    results = [dict(image_id=1, category_id=1, score=1.0, keypoints=[70, 0, 1, 70, 200, 1])]
    with pytest.warns(UserWarning, match="20 px counts as perfect"):
        assert m.evaluate_coco(dataset, results, [0.5, 0.5])["AP"] == pytest.approx(1.0)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert m.evaluate_coco(dataset, results, [0.05, 0.05])["AP"] == 0.0


def test_from_records_to_scores():
    """Records -> ground truth, Poses -> results: the way a system is scored. Ids 0 and repeated ids must not matter."""
    rng = np.random.default_rng(0)
    records, results = [], []
    for image_id in (0, 4, 9):
        xy = rng.uniform(10, 200, (2, K, 2))
        boxes = np.concatenate([xy.min(1), np.ptp(xy, axis=1)], axis=1)
        records.append(Record(None, None, image_id, (240, 320), boxes, xy, np.full((2, K), 2), ids=[0, 1]))
        results += Poses(boxes, xy, np.ones((2, K)), np.ones(2)).to_coco(image_id)
    coco = m.coco_from_records(records)
    assert sorted(coco.anns) == [1, 2, 3, 4, 5, 6]
    scores = m.evaluate_coco(coco, results)
    assert scores["AP"] == pytest.approx(1.0) and scores["AP_M"] == -1
    rows = m.pixel_errors(coco, results)
    assert [row.joint for row in rows] == [*COCO_17.names, "all"]
    assert rows[-1].found == rows[-1].labelled == 6 * K and rows[-1].mean < 1e-3
    refuses(lambda: m.coco_from_records([records[0], records[0]]), "twice")


@pytest.mark.skipif("POSETUTOR_DATA" not in os.environ, reason="POSETUTOR_DATA is not set: real annotations are not tested")
def test_real_annotations_agree():
    path = Path(os.environ["POSETUTOR_DATA"]) / "coco_mini" / "annotations" / "person_keypoints_val2017.json"
    dataset = json.loads(path.read_text())
    rng = np.random.default_rng(0)
    results = []
    for a in dataset["annotations"]:
        if a["num_keypoints"]:
            points = np.array(a["keypoints"], dtype=float).reshape(-1, 3)
            points[:, :2] += rng.normal(size=(K, 2)) * 0.06 * a["area"] ** 0.5
            results.append(dict(image_id=a["image_id"], category_id=1, score=float(rng.uniform()), keypoints=points.ravel().tolist()))
    expected = official(dataset, results)
    np.testing.assert_allclose(values(m.evaluate_coco(path, results)), expected, atol=1e-9)
    np.testing.assert_allclose(values(m.evaluate_stepwise(path, results)), expected, atol=1e-9)
