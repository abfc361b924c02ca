"""The ten numbers from tensors, equal to pycocotools; and the kinds of errors, each made on purpose and found again."""

import numpy as np
import pytest
import torch

from posetutor.core import refuses
from posetutor.data.figures import draw_scene
from posetutor.metrics import coco_eval as m
from posetutor.skeletons import COCO_17, Record

from test_coco_eval import make, official, values

K = COCO_17.K
SIGMAS = np.array(COCO_17.sigmas)


def as_tensors(dataset, results, device="cpu"):
    truth = np.array([a["keypoints"] for a in dataset["annotations"]]).reshape(-1, K, 3)
    found = np.array([r["keypoints"] for r in results]).reshape(-1, K, 3)
    columns = dict(
        xy=found[..., :2], score=[r["score"] for r in results], image=[r["image_id"] for r in results], true_xy=truth[..., :2], vis=truth[..., 2],
        area=[a["area"] for a in dataset["annotations"]], true_image=[a["image_id"] for a in dataset["annotations"]], sigmas=SIGMAS,
        crowd=[bool(a["iscrowd"]) for a in dataset["annotations"]], boxes=np.array([a["bbox"] for a in dataset["annotations"]]).reshape(-1, 4),
    )  # fmt: skip
    return {name: torch.tensor(np.asarray(x), device=device) for name, x in columns.items()}


@pytest.mark.parametrize("seed", range(6))
def test_tensors_are_equal_to_pycocotools(seed):
    dataset, results = make(seed, images=25)
    np.testing.assert_allclose(values(m.evaluate_tensors(**as_tensors(dataset, results))), official(dataset, results), atol=1e-9)


def test_tensors_without_people_or_results():
    dataset, results = make(0)
    given = as_tensors(dataset, results)
    nobody = {name: x if name == "sigmas" else x[:0] for name, x in given.items()}
    assert set(m.evaluate_tensors(**nobody).values()) == {-1.0}
    missed = given | {name: given[name][:0] for name in ("xy", "score", "image")}
    assert set(m.evaluate_tensors(**missed).values()) == {0.0}


@pytest.mark.parametrize("name, change, text", [
    ("score", lambda x: x * torch.nan, "score"),
    ("vis", lambda x: x + 2, "vis"),
    ("area", lambda x: -x, "area must be > 0"),
    ("xy", lambda x: x[:, :5], "true_xy"),
    ("boxes", lambda x: None, "boxes must be given"),
    ("image", lambda x: x[:-1], "image"),
    ("sigmas", lambda x: x[:4], "sigmas"),
])  # fmt: skip
def test_tensors_refused(name, change, text):
    dataset, results = make(0)
    given = as_tensors(dataset, results)
    refuses(lambda: m.evaluate_tensors(**given | {name: change(given[name])}), text)


def test_drawn_scenes_agree():
    """Crowded drawn scenes with exact truth: noisy, missing and doubled poses."""
    rng, records, results = np.random.default_rng(5), [], []
    for index in range(8):
        record = draw_scene(index, people=(3, 9), size=(240, 320))
        records.append(Record(None, None, index + 1, record.size, record.boxes, record.xy, record.vis, record.areas, skeleton=COCO_17))
        for xy, area in zip(record.xy, record.areas, strict=True):
            for _ in range(rng.integers(0, 3)):
                noisy = xy + rng.normal(size=(K, 2)) * rng.choice([0.02, 0.06, 0.15]) * np.sqrt(area)
                results.append(dict(image_id=index + 1, category_id=1, score=float(rng.uniform()), keypoints=np.c_[noisy, np.ones(K)].ravel().tolist()))
    dataset = m.coco_from_records(records).dataset
    expected = official(dataset, results)
    assert 0.05 < expected[0] < 0.9
    for evaluate in (m.evaluate_coco, m.evaluate_stepwise):
        np.testing.assert_allclose(values(evaluate(dataset, results)), expected, atol=1e-9)
    np.testing.assert_allclose(values(m.evaluate_tensors(**as_tensors(dataset, results))), expected, atol=1e-9)


BODY = np.array([
    [50, 18], [54, 14], [46, 14], [60, 17], [40, 17], [68, 44], [32, 44], [76, 76], [24, 74], [80, 106], [20, 102],
    [61, 106], [39, 106], [64, 146], [37, 146], [66, 186], [35, 186.0]])  # fmt: skip
LEFT, RIGHT = COCO_17.names.index("left_wrist"), COCO_17.names.index("right_wrist")


def two_people(vis=None):
    """Two figures 300 px apart; the flags are the first one's."""
    boxes = np.array([[0, 0, 100, 200.0], [300, 0, 100, 200]])
    flags = np.stack([np.full(K, 2) if vis is None else vis, np.full(K, 2)])
    return Record(None, None, 1, (300, 500), boxes, np.stack([BODY, BODY + [300, 0]]), flags)


def kinds(change, record=None):
    """Diagnosed kinds (K,) of the first figure's estimate after `change` of its points."""
    record = two_people() if record is None else record
    points = BODY.copy()
    change(points)
    results = [dict(image_id=1, category_id=1, score=0.9, keypoints=np.c_[points, np.ones(K)].ravel().tolist())]
    found = m.diagnose(m.coco_from_records([record]), results)
    assert found.person.tolist() == [0]
    return found.kind[0], found


def reach(kappa, joint=LEFT):
    """Distance (px) at which a joint's similarity is kappa."""
    return 2 * SIGMAS[joint] * np.sqrt(0.53 * 20000) * np.sqrt(-2 * np.log(kappa))


def shift(joint, dx):
    def change(points):
        points[joint, 0] += dx
    return change


def place(joint, at):
    def change(points):
        points[joint] = at
    return change


def test_each_kind_by_construction():
    names = np.array(m.ERROR_KINDS)
    for change, expected in (
        (shift(LEFT, reach(0.86)), "good"), (shift(LEFT, reach(0.84)), "jitter"), (shift(LEFT, reach(0.51)), "jitter"), (shift(LEFT, reach(0.49)), "miss"),
        (place(LEFT, BODY[RIGHT]), "inversion"), (place(LEFT, BODY[LEFT] + [300, 0]), "swap"), (place(LEFT, BODY[RIGHT] + [300, 0]), "swap"), (place(LEFT, [150, 290]), "miss"),
    ):  # fmt: skip
        kind, _ = kinds(change)
        assert names[kind[LEFT]] == expected
        assert (np.delete(kind, LEFT) == 0).all(), "the other joints are good"


def test_which_person_was_taken():
    _, found = kinds(place(LEFT, BODY[LEFT] + [300, 0]))
    assert found.of[0, LEFT] == 1 and found.mistaken[0, LEFT] == pytest.approx(1.0)
    _, found = kinds(place(LEFT, BODY[RIGHT]))
    assert found.of[0, LEFT] == 0 and found.mistaken[0, LEFT] == pytest.approx(1.0)


def test_unlabelled_joints_are_neither_judged_nor_mistaken_for():
    vis = np.full(K, 2)
    vis[RIGHT] = 0
    kind, _ = kinds(place(LEFT, BODY[RIGHT]), two_people(vis))
    assert kind[RIGHT] == -1 and m.ERROR_KINDS[kind[LEFT]] == "miss"


def test_joints_in_the_middle_have_no_inversion():
    kind, _ = kinds(place(0, BODY[1] + [0, 0]))  # the nose on the left eye: 5.7 px off
    assert m.ERROR_KINDS[kind[0]] in ("jitter", "miss")


def test_nobody_found():
    truth = m.coco_from_records([two_people()])
    found = m.diagnose(truth, [])
    assert found.kind.shape == (0, K) and "-" in m.format_diagnosis(found)
    assert m.repaired_scores(found)["as found"] == 0.0
    for arguments in (dict(min_oks=0), dict(near=0.9), dict(good=1.2)):
        refuses(lambda a=arguments: m.diagnose(truth, [], **a), "min_oks must lie")


def test_joints_without_names_of_sides():
    record = two_people()
    dataset = m.coco_from_records([record]).dataset
    dataset["categories"][0]["keypoints"] = [f"screw_{k}" for k in range(K)]
    results = [dict(image_id=1, category_id=1, score=0.9, keypoints=np.c_[BODY, np.ones(K)].ravel().tolist())]
    assert (m.diagnose(dataset, results, COCO_17.sigmas).kind == 0).all()


def test_repairs():
    rng, truth, results = np.random.default_rng(1), [], []
    for image in range(1, 31):
        record = two_people()
        truth.append(Record(None, None, image, record.size, record.boxes, record.xy, record.vis))
        points = BODY + rng.normal(size=BODY.shape) * 2
        if image % 3 == 0:  # a third of the poses with all sides exchanged
            points = points[list(COCO_17.flip_index)]
        results.append(dict(image_id=image, category_id=1, score=float(rng.uniform()), keypoints=np.c_[points, np.ones(K)].ravel().tolist()))
    found = m.diagnose(m.coco_from_records(truth), results)
    scores = m.repaired_scores(found)
    assert scores["as found"] == pytest.approx(m.evaluate_stepwise(m.coco_from_records(truth), results)["AP"], abs=1e-12)
    assert scores["inversion"] > scores["as found"] + 0.05 and scores["inversion"] > max(scores["swap"], scores["miss"])
    assert scores["missed people"] > 1.8 * scores["as found"]  # one of two people of each image is never attempted
    table = m.format_diagnosis(found).splitlines()
    assert len(table) == K + 2 and table[-1].startswith("all") and all(kind in table[0] for kind in m.ERROR_KINDS)
