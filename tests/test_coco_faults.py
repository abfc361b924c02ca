"""Every kind of fault has one broken fixture, which is named with file, id, value and fix; clean data are silent."""

import copy
import json
import math
import random

import cv2
import numpy as np
import pytest

from posetutor.data.coco import FAULTS, CocoKeypoints, Fault, check_dataset, data_folder, local_set
from posetutor.skeletons import COCO_17, LSP_14

SIZE = (60, 80)  # H, W


def person(number, image_id, skeleton):
    K = skeleton.K
    points = [v for k in range(K) for v in (12 + 3 * (k % 9), 10 + 4 * (k // 2), 2 if k % 3 else 1)]
    return {
        "id": number, "image_id": image_id, "category_id": 1, "iscrowd": 0, "bbox": [10, 8, 40, 44], "area": 900.5,
        "num_keypoints": K, "keypoints": points,
    }  # fmt: skip


def clean(folder, skeleton=COCO_17):
    """Three pictures: two people, one person without labels and a crowd, nobody."""
    (folder / "images").mkdir(exist_ok=True)
    rng = np.random.default_rng(0)
    images = []
    for number in (1, 2, 3):
        cv2.imwrite(str(folder / "images" / f"{number}.jpg"), rng.integers(0, 255, (*SIZE, 3), dtype=np.uint8))
        images.append({"id": number, "file_name": f"{number}.jpg", "height": SIZE[0], "width": SIZE[1]})
    people = [person(1, 1, skeleton), person(2, 1, skeleton), person(3, 2, skeleton), person(4, 2, skeleton)]
    for entry in people[2:]:
        entry.update(keypoints=[0] * (3 * skeleton.K), num_keypoints=0)
    people[3]["iscrowd"] = 1
    category = {"id": 1, "name": "person", "keypoints": list(skeleton.names), "skeleton": [[i + 1, j + 1] for i, j in skeleton.limbs]}
    return {"images": images, "annotations": people, "categories": [category]}


def store(data, folder):
    path = folder / "people.json"
    path.write_text(data if isinstance(data, str) else json.dumps(data))
    return path


def result(image_id=1, K=17, **change):
    return {"image_id": image_id, "category_id": 1, "score": 0.5, "keypoints": [5.0] * (3 * K), **change}


def first(data, **change):
    data["annotations"][0].update(change)


def point(data, k, triple):
    data["annotations"][0]["keypoints"][3 * k : 3 * k + 3] = triple


BREAK = {  # kind: (how to break clean data, text that must appear in where or value)
    "no_keypoint_category": (lambda d, f: d["categories"][0].pop("keypoints"), "person"),
    "duplicate_joint_name": (lambda d, f: d["categories"][0]["keypoints"].__setitem__(0, "left_eye"), "left_eye"),
    "flip_pair_impossible": (lambda d, f: d["categories"][0]["keypoints"].__setitem__(2, "the_right_eye"), "left_eye has no right_eye"),
    "bad_limb": (lambda d, f: d["categories"][0]["skeleton"].append([0, 1]), "[0, 1]"),
    "bad_image_entry": (lambda d, f: d["images"][2].pop("height"), "images[2]"),
    "duplicate_image_id": (lambda d, f: d["images"][2].update(id=1), "1.jpg and 3.jpg"),
    "missing_image": (lambda d, f: (f / "images/3.jpg").unlink(), "3.jpg"),
    "unreadable_image": (lambda d, f: (f / "images/3.jpg").write_bytes((f / "images/3.jpg").read_bytes()[:900]), "cut off"),
    "image_size": (lambda d, f: d["images"][2].update(height=80, width=60), "(60, 80)"),
    "missing_field": (lambda d, f: d["annotations"][0].pop("area"), "no area"),
    "bad_id": (lambda d, f: first(d, id="a1"), "a1"),
    "zero_id": (lambda d, f: first(d, id=0), "annotation 0"),
    "duplicate_id": (lambda d, f: first(d, id=2), "annotation 2"),
    "unknown_image_id": (lambda d, f: first(d, image_id="1"), "'1'"),
    "unknown_category_id": (lambda d, f: first(d, category_id=9), "9"),
    "bad_box": (lambda d, f: first(d, bbox=[1, 2, float("nan"), 4]), "nan"),
    "zero_box": (lambda d, f: first(d, bbox=[10, 8, 0, 44]), "[10, 8, 0, 44]"),
    "box_outside": (lambda d, f: first(d, bbox=[50, 8, 60, 44]), "80 x 60"),
    "area_not_positive": (lambda d, f: first(d, area=0), "0"),
    "area_over_box": (lambda d, f: first(d, area=9000), "1760"),
    "bad_crowd_flag": (lambda d, f: first(d, iscrowd="no"), "no"),
    "wrong_k": (lambda d, f: d["annotations"][0]["keypoints"].pop(), "50 values for K = 17"),
    "not_finite": (lambda d, f: point(d, 3, [float("inf"), 20, 2]), "left_ear"),
    "bad_visibility": (lambda d, f: point(d, 4, [20, 20, 0.93]), "0.93"),
    "wrong_num_keypoints": (lambda d, f: first(d, num_keypoints=0), "17 points"),
    "point_at_zero": (lambda d, f: point(d, 5, [0, 0, 2]), "left_shoulder"),
    "point_outside": (lambda d, f: point(d, 6, [200, 20, 2]), "right_shoulder"),
    "no_labelled_person": (lambda d, f: d.update(annotations=d["annotations"][2:]), "2 annotations"),
}  # fmt: skip
RESULTS = {
    "empty_results": ([], "empty"),
    "bad_result": ([result(), result(K=14)], "42 keypoint values for K = 17"),
    "result_unknown_image": ([result(), result(image_id=77)], "77"),
    "result_unknown_category": ([result(category_id=3)], "3"),
}
ALSO = {"bad_visibility": {"wrong_num_keypoints"}, "no_keypoint_category": set(), "unknown_category_id": set()}  # kinds that may come along
WHOLE_FILE = {"missing_json", "not_json", "not_coco"}


def test_every_kind_of_fault_has_a_fixture():
    assert set(BREAK) | set(RESULTS) | WHOLE_FILE == set(FAULTS)
    assert all(len(fix) > 20 for fix in FAULTS.values())


@pytest.mark.parametrize("skeleton", [COCO_17, LSP_14], ids=lambda s: s.name)
def test_clean_data_are_silent(tmp_path, skeleton):
    path = store(clean(tmp_path, skeleton), tmp_path)
    assert check_dataset(path, tmp_path / "images", [result(K=skeleton.K)]) == []
    records = CocoKeypoints(path, tmp_path / "images")
    assert records.skeleton is skeleton and len(records) == 3
    assert [len(r.boxes) for r in records] == [2, 2, 0] and [len(r.people) for r in records] == [2, 0, 0]
    assert records[1].crowd.tolist() == [False, True] and records[-1].image_id == 3 and len(records[:2]) == 2


@pytest.mark.parametrize("kind", BREAK)
def test_fault_is_named(tmp_path, kind):
    data = clean(tmp_path)
    how, text = BREAK[kind]
    how(data, tmp_path)
    faults = check_dataset(store(data, tmp_path), tmp_path / "images")
    assert kind in {f.kind for f in faults} and {f.kind for f in faults} <= {kind} | ALSO.get(kind, set()), faults
    fault = next(f for f in faults if f.kind == kind)
    assert "people.json" in fault.where and text in fault.where + " " + fault.value and fault.fix == FAULTS[kind] and fault.fix in str(fault)


@pytest.mark.parametrize("kind", RESULTS)
def test_result_fault_is_named(tmp_path, kind):
    results, text = RESULTS[kind]
    path = store(clean(tmp_path), tmp_path)
    (tmp_path / "results.json").write_text(json.dumps(results))
    for given in (results, tmp_path / "results.json"):
        (fault,) = check_dataset(path, tmp_path / "images", given)
        assert fault.kind == kind and text in fault.where + fault.value and "results" in fault.where


def test_whole_file_faults(tmp_path):
    def kinds(text, results=None):
        return [f.kind for f in check_dataset(store(text, tmp_path), tmp_path, results)]

    assert kinds('{"images": [') == ["not_json"]
    assert kinds("[1, 2]") == ["not_coco"] and kinds('{"images": []}') == ["not_coco"]
    assert [f.kind for f in check_dataset(tmp_path / "no.json", tmp_path)] == ["missing_json"]
    assert [f.kind for f in check_dataset(store(clean(tmp_path), tmp_path), tmp_path / "images", tmp_path / "no.json")] == ["missing_json"]
    (tmp_path / "half.json").write_text("[{")
    assert [f.kind for f in check_dataset(store(clean(tmp_path), tmp_path), tmp_path / "images", tmp_path / "half.json")] == ["not_json"]


def test_not_a_picture_and_decode_off(tmp_path):
    path = store(clean(tmp_path), tmp_path)
    (tmp_path / "images/2.jpg").write_text("<html>not found</html>")
    assert [f.kind for f in check_dataset(path, tmp_path / "images")] == ["unreadable_image"]
    assert check_dataset(path, tmp_path / "images", decode=False) == []


def test_checker_survives_any_json(tmp_path):
    """Values of the wrong type anywhere in the file give faults, never an exception."""
    base = clean(tmp_path)
    junk = [None, -1, 0, 1.5, True, "x", "\0", [], [None], {}, math.nan, math.inf, 10**400, [[1, 2]], "1.jpg"]
    pick = random.Random(0)

    def places(value, path=()):
        yield path
        for key, inner in value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ():
            yield from places(inner, (*path, key))

    everywhere = [p for p in places(base) if p]
    for trial in range(600):
        data = copy.deepcopy(base)
        for where in pick.sample(everywhere, 1 + trial % 3):
            node = data
            try:
                for key in where[:-1]:
                    node = node[key]
                if pick.random() < 0.2 and isinstance(node, dict):
                    node.pop(where[-1])
                else:
                    node[where[-1]] = pick.choice(junk)
            except (KeyError, IndexError, TypeError, AttributeError):
                continue
        faults = check_dataset(store(data, tmp_path), tmp_path / "images", pick.choice([None, data["annotations"] if "annotations" in data else [], junk]), decode=False)
        assert all(isinstance(f, Fault) and f.fix for f in faults)
        try:  # the reader either refuses with one of its two errors or returns Records
            list(CocoKeypoints(store(data, tmp_path), tmp_path / "images"))
        except (ValueError, FileNotFoundError):
            pass


def test_reader_refusals(tmp_path):
    data = clean(tmp_path)
    path, folder = store(data, tmp_path), tmp_path / "images"
    for call, text in (
        (lambda: CocoKeypoints(tmp_path / "no.json", folder), "no.json"),
        (lambda: CocoKeypoints(path, tmp_path / "nowhere"), "nowhere"),
        (lambda: CocoKeypoints(path, folder, LSP_14), "same order"),
        (lambda: CocoKeypoints(store([], tmp_path), folder), "lacks images"),
    ):
        with pytest.raises((ValueError, FileNotFoundError), match=text):
            call()
    data["categories"][0]["keypoints"][0] = "antenna"
    with pytest.raises(ValueError, match="antenna.*pass skeleton="):
        CocoKeypoints(store(data, tmp_path), folder)
    data = clean(tmp_path)
    data["annotations"][0]["keypoints"].pop()
    with pytest.raises(ValueError, match="image 1: .*check-dataset"):
        CocoKeypoints(store(data, tmp_path), folder)[0]


def test_data_folder(monkeypatch, tmp_path):
    monkeypatch.delenv("POSETUTOR_DATA", raising=False)
    assert data_folder() is None and local_set("coco_mini/val") is None
    monkeypatch.setenv("POSETUTOR_DATA", str(tmp_path / "typo"))
    with pytest.raises(FileNotFoundError, match="typo"):
        data_folder()
    with pytest.raises(ValueError, match="coco_mini/train"):
        local_set("coco")


@pytest.mark.parametrize("name, K, people", [("coco_mini/train", 17, 86), ("coco_mini/val", 17, 68), ("lspet400/train", 14, 300), ("lspet400/val", 14, 100)])
def test_real_sets_are_clean(name, K, people):
    records = local_set(name)
    if records is None:
        pytest.skip("POSETUTOR_DATA is unset: no real photographs to check")
    assert records.skeleton.K == K and sum(len(r.people) for r in records) == people
    assert check_dataset(records.json_path, records.image_folder) == []
    assert records[0].load().shape == (*records[0].size, 3)
