"""The wheel, installed into an empty environment, and the command line run from there as a stranger would."""

import configparser
import importlib.metadata
import json
import os
import re
import subprocess
import sys
import venv
import zipfile
from pathlib import Path

import cv2
import numpy as np
import pytest

ROOT = Path(__file__).resolve().parent.parent
COPYLEFT = re.compile(r"(?<!L)GPL|AGPL|General Public License", re.IGNORECASE)


def settings():
    parser = configparser.ConfigParser(delimiters=["="])
    parser.read(ROOT / "settings.ini", encoding="utf-8")
    return parser["DEFAULT"]


def requirement_names():
    return [re.split(r"[<>=!~]", r)[0] for r in settings()["requirements"].split()]


@pytest.fixture(scope="session")
def wheel(tmp_path_factory):
    out = tmp_path_factory.mktemp("dist")
    source = tmp_path_factory.mktemp("source")
    tracked = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True).stdout.splitlines()
    for name in tracked:
        if (ROOT / name).is_file():
            (source / name).parent.mkdir(parents=True, exist_ok=True)
            (source / name).write_bytes((ROOT / name).read_bytes())
    subprocess.run([sys.executable, "-m", "build", "--wheel", "--outdir", str(out), str(source)], check=True, capture_output=True, text=True)
    (path,) = out.glob("*.whl")
    return path


@pytest.fixture(scope="session")
def empty_environment(wheel, tmp_path_factory):
    """A fresh virtual environment that holds the wheel and its requirements only."""
    folder = tmp_path_factory.mktemp("environment")
    venv.create(folder, with_pip=True)
    python = folder / ("Scripts" if os.name == "nt" else "bin") / "python"
    install = [str(python), "-m", "pip", "install", "--quiet", "--only-binary=:all:", "-c", str(ROOT / "constraints.txt"), str(wheel)]
    done = subprocess.run(install, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    return python


@pytest.fixture
def run(empty_environment, tmp_path):
    def call(*arguments, timeout=300):
        env = {k: v for k, v in os.environ.items() if not k.startswith(("PYTHONPATH", "POSETUTOR"))}
        command = [str(empty_environment.with_name("posetutor")), *map(str, arguments)]
        return subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, env=env, timeout=timeout)

    return call


def picture(path, image):
    assert cv2.imwrite(str(path), image)
    return path


def refused(done, *parts):
    assert done.returncode == 2, (done.returncode, done.stdout, done.stderr)
    lines = done.stderr.strip().splitlines()
    assert len(lines) == 1, done.stderr
    assert all(part in lines[0] for part in parts), lines[0]


def test_wheel_is_pure_small_and_complete(wheel):
    assert wheel.name.endswith("-py3-none-any.whl")
    names = zipfile.ZipFile(wheel).namelist()
    chapters = [n for n in names if n.startswith("posetutor/notebooks/") and n.endswith(".ipynb")]
    assert len(chapters) == len(list((ROOT / "nbs").rglob("[0-9]*_*.ipynb"))) + 1
    assert any(n.startswith("posetutor/weights/") for n in names)
    assert not [n for n in names if n.startswith(("tests/", "course/", "bench/"))]
    assert wheel.stat().st_size < 30e6


def test_requirements_have_lower_bounds_only():
    for requirement in settings()["requirements"].split():
        assert re.fullmatch(r"[\w.-]+>=[\d.]+", requirement), f"{requirement}: runtime requirements carry a lower bound and nothing else"


def test_no_requirement_is_copyleft():
    for name in requirement_names():
        metadata = importlib.metadata.metadata(name)
        text = " ".join([metadata.get("License-Expression") or "", *(metadata.get_all("Classifier") or [])])
        assert not COPYLEFT.search(text), f"{name}: {text}"


def test_imports_are_requirements():
    """Whatever the package imports is the standard library, itself, or a hard requirement."""
    import ast

    known = {"opencv-python": "cv2", "pillow": "PIL"}
    always = {known.get(n, n) for n in requirement_names()} | set(sys.stdlib_module_names) | {"posetutor", "IPython"}
    extra = {"latex2mathml", "markdown_it", "yaml"}  # settings.ini: course_requirements; imported inside functions of the teacher's tools only
    for path in sorted((ROOT / "posetutor").rglob("*.py")):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        at_top = set(tree.body)
        for node in ast.walk(tree):
            allowed = always | extra if path.parent.name == "course" and node not in at_top else always
            modules = [a.name for a in node.names] if isinstance(node, ast.Import) else [node.module] if isinstance(node, ast.ImportFrom) and node.level == 0 else []
            foreign = {m.split(".")[0] for m in modules} - allowed
            assert not foreign, f"{path.relative_to(ROOT)} imports {foreign}"


def test_the_teachers_extra_is_listed_and_named_when_it_is_missing(run, empty_environment):
    assert sorted(re.split(r"[<>=]", r)[0] for r in settings()["course_requirements"].split()) == ["latex2mathml", "markdown-it-py", "pyyaml"]
    for command in (("slides", "21"), ("zip", "term")):
        refused(run(*command), "pip install posetutor[course]")
    listed = run("routes")  # PyYAML is there without the extra, because accelerate brings it
    assert listed.returncode == 0 and "posetutor zip NAME" in listed.stdout, listed.stderr
    code = "from posetutor.course.routes import routes_path; print(routes_path().read_text(encoding='utf-8'))"
    shipped = subprocess.run([str(empty_environment), "-c", code], capture_output=True, text=True, check=True).stdout
    assert shipped.strip() == (ROOT / "course" / "routes.yml").read_text(encoding="utf-8").strip()


def test_import_is_quick(empty_environment):
    code = "import time, torch; t = time.perf_counter(); import posetutor, posetutor.core, posetutor.codecs.gaussian; print(time.perf_counter() - t)"
    best = min(float(subprocess.run([str(empty_environment), "-c", code], capture_output=True, text=True, check=True).stdout) for _ in range(3))
    assert best < 0.5


def test_doctor(run):
    done = run("doctor")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "FAIL" not in done.stdout and "next: " in done.stdout


def test_predict_sample(run, tmp_path):
    done = run("predict", "--sample")
    assert done.returncode == 0, done.stderr
    answer = json.loads(done.stdout)
    assert cv2.imread(str(tmp_path / answer["drawing"])).shape[:2] == (answer["height"], answer["width"])
    assert len(answer["people"]) >= 1
    person = answer["people"][0]
    assert len(person["joints"]["nose"]) == 3 and len(person["box"]) == 4


def test_predict_nobody(run, tmp_path):
    grey = picture(tmp_path / "empty.png", np.full((120, 160, 3), 128, np.uint8))
    done = run("predict", grey)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["people"] == []


def test_predict_odd_pictures(run, tmp_path):
    rng = np.random.default_rng(0)
    pictures = {
        "grey.png": rng.integers(0, 255, (90, 70), np.uint8),
        "rgba.png": rng.integers(0, 255, (90, 70, 4), np.uint8),
        "sixteen.png": rng.integers(0, 65535, (90, 70, 3), np.uint16),
        "one.png": np.zeros((1, 1, 3), np.uint8),
    }
    for name, image in pictures.items():
        done = run("predict", picture(tmp_path / name, image))
        assert done.returncode == 0, (name, done.stderr)
        answer = json.loads(done.stdout)
        assert (answer["height"], answer["width"]) == image.shape[:2]


def test_predict_obeys_exif_rotation(run, tmp_path):
    encoded = cv2.imencode(".jpg", np.full((40, 80, 3), 90, np.uint8))[1].tobytes()
    tiff = b"MM\x00*\x00\x00\x00\x08\x00\x01\x01\x12\x00\x03\x00\x00\x00\x01\x00\x06\x00\x00\x00\x00\x00\x00"  # orientation 6: turn by 90 degrees
    segment = b"Exif\x00\x00" + tiff
    path = tmp_path / "turned.jpg"
    path.write_bytes(encoded[:2] + b"\xff\xe1" + (len(segment) + 2).to_bytes(2, "big") + segment + encoded[2:])
    answer = json.loads(run("predict", path).stdout)
    assert (answer["height"], answer["width"]) == (80, 40)


def test_predict_refuses_in_one_line(run, tmp_path):
    whole = cv2.imencode(".jpg", np.random.default_rng(0).integers(0, 255, (200, 200, 3), np.uint8))[1].tobytes()
    (tmp_path / "cut.jpg").write_bytes(whole[: len(whole) // 2])
    png = cv2.imencode(".png", np.random.default_rng(0).integers(0, 255, (200, 200, 3), np.uint8))[1].tobytes()
    (tmp_path / "cut.png").write_bytes(png[: len(png) // 2])
    (tmp_path / "text.jpg").write_text("not a picture")
    (tmp_path / "empty.jpg").write_bytes(b"")
    for name in ("cut.jpg", "cut.png", "text.jpg", "empty.jpg", "missing.jpg", "."):
        refused(run("predict", tmp_path / name), str(tmp_path / name) if name != "." else str(tmp_path))
    refused(run("predict"), "--sample")


def test_lab_copies_and_never_overwrites(run, tmp_path):
    assert run("lab", "course", "--no-open").returncode == 0
    mine = next((tmp_path / "course").rglob("00_quickstart.ipynb"))
    assert "BEGIN SOLUTION" not in mine.read_text(encoding="utf-8")
    mine.write_text(mine.read_text(encoding="utf-8") + "\n", encoding="utf-8")
    changed = mine.read_bytes()
    assert run("lab", "course", "--no-open").returncode == 0
    assert mine.read_bytes() == changed
    (tmp_path / "file").write_text("x")
    refused(run("lab", "file", "--no-open"), "is a file")


def test_grade_from_the_wheel(run, tmp_path):
    assert run("lab", "class/alice", "--no-open").returncode == 0
    mine = next((tmp_path / "class").rglob("00_quickstart.ipynb"))
    gap = json.dumps('    raise NotImplementedError("exercise 1: write your answer here")')
    assert gap in mine.read_text(encoding="utf-8")
    mine.write_text(mine.read_text(encoding="utf-8").replace(gap, json.dumps("    return xy_cells * stride")), encoding="utf-8")
    done = run("grade", "class", "--chapter", "0")
    assert done.returncode == 0 and "1 of 3 answers of 1 student passed; the table is grades.csv" in done.stdout, done.stdout + done.stderr
    assert (tmp_path / "grades.csv").read_text(encoding="utf-8").splitlines()[1].startswith("alice,00_quickstart,1,1,,")
    refused(run("grade", "nowhere"), "nowhere is no folder")


def test_check_dataset(run, tmp_path):
    broken = {"images": [{"id": 1, "file_name": "none.jpg", "width": 10, "height": 10}], "annotations": [], "categories": [{"id": 1, "name": "person", "keypoints": ["a", "b"], "skeleton": [[1, 2]]}]}
    (tmp_path / "broken.json").write_text(json.dumps(broken))
    done = run("check-dataset", tmp_path / "broken.json", tmp_path)
    assert done.returncode == 1 and "none.jpg" in done.stdout
    refused(run("check-dataset", tmp_path / "nowhere.json", tmp_path), "nowhere.json")
    (tmp_path / "text.json").write_text("not json")
    done = run("check-dataset", tmp_path / "text.json", tmp_path)
    assert done.returncode in (1, 2) and "text.json" in done.stdout + done.stderr
