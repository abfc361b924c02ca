"""The command `posetutor`: doctor, lab, predict, check-dataset. Each command is a few lines over exported functions."""

import argparse
import contextlib
import hashlib
import importlib.metadata
import importlib.util
import json
import os
import platform
import subprocess
import sys
from pathlib import Path

from posetutor import __version__

PACKAGE = Path(__file__).resolve().parent
MANIFEST = ".posetutor.json"
NEEDED = ("numpy", "torch", "opencv-python", "pycocotools", "matplotlib", "ipywidgets", "pillow", "accelerate", "safetensors", "tqdm")


def course_folder() -> Path:
    """The folder of the course notebooks: package data of an installed wheel, or nbs/ of a checkout."""
    for folder in (PACKAGE / "notebooks", PACKAGE.parent / "nbs"):
        if (folder / "index.ipynb").is_file():
            return folder
    raise FileNotFoundError("the course notebooks are missing from this installation; reinstall posetutor")


def doctor(args: argparse.Namespace) -> int:
    """Print one line per part of the installation; 0 when everything needed is there."""
    lines: list[tuple[str, bool, str]] = []

    def check(name: str, probe, fix: str = "") -> None:
        try:
            lines.append((name, True, str(probe())))
        except Exception as error:  # a doctor reports every fault instead of stopping at the first
            reason = str(error).strip().splitlines()
            lines.append((name, False, f"{reason[0] if reason else type(error).__name__}. {fix}"))

    check("python", platform.python_version)
    for package in NEEDED:
        check(package, lambda package=package: importlib.metadata.version(package), f"Type: pip install {package}")
    check("OpenCV loads", lambda: __import__("cv2").__version__, "On a bare server install libGL (Debian: apt-get install libgl1), or use opencv-python-headless.")
    check("device", lambda: __import__("posetutor.core", fromlist=["device"]).device())
    check("notebooks", lambda: f"{sum(1 for _ in course_folder().rglob('[0-9]*_*.ipynb'))} chapters")
    check("weights", _weights_line)
    data = os.environ.get("POSETUTOR_DATA")
    lines.append(("photographs", True, data if data and Path(data).is_dir() else "POSETUTOR_DATA is not set: chapters use drawn figures only"))
    jupyter = importlib.util.find_spec("jupyterlab") is not None
    lines.append(("jupyterlab", True, "found" if jupyter else "not installed (needed for `posetutor lab`): pip install jupyterlab"))
    print(f"posetutor {__version__}, {_support_line()}")
    for name, good, text in lines:
        print(f"  {'ok  ' if good else 'FAIL'} {name:14} {text}")
    healthy = all(good for _, good, _ in lines)
    print("next: posetutor predict --sample   (a drawn picture)   or   posetutor lab" if healthy else "mend the lines marked FAIL, then run posetutor doctor again")
    return 0 if healthy else 1


def _weights_line() -> str:
    from posetutor.systems.topdown import weights_path

    path = weights_path()
    return f"{path.name}, {path.stat().st_size / 1e6:.1f} MB"


def _support_line() -> str:
    """Version date and the last recorded green test run, as far as this installation knows them."""
    path = PACKAGE / "assets" / "support.json"
    if not path.is_file():
        return "no test run recorded in this installation"
    support = json.loads(path.read_text(encoding="utf-8"))
    return f"last recorded green test run {support['date']} ({support['summary']}; Python {support['python']}, torch {support['torch']})"


def _digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def copy_course(target: Path) -> list[str]:
    """Copy the course to `target`; a file the reader changed is kept, and the newer version is put beside it.

    Returns the messages to print. Raises NotADirectoryError when `target` is a file.
    """
    from posetutor.core import write_atomic

    if target.exists() and not target.is_dir():
        raise NotADirectoryError(f"{target} is a file; give the name of a folder for the course")
    source, messages = course_folder(), []
    manifest_path = target / MANIFEST
    delivered = json.loads(manifest_path.read_text(encoding="utf-8")) if manifest_path.is_file() else {}
    for path in sorted(source.rglob("*")):
        relative = path.relative_to(source)
        if not path.is_file() or any(part.startswith((".", "_")) for part in relative.parts) or path.suffix not in {".ipynb", ".png", ".jpg"}:
            continue
        name, new, place = relative.as_posix(), _digest(path), target / relative
        if place.exists() and _digest(place) not in (new, delivered.get(name)):
            if delivered.get(name) != new:
                beside = place.with_name(f"{place.stem}.new{place.suffix}")
                write_atomic(beside, path.read_bytes())
                messages.append(f"kept your {name}; the new version is {beside.relative_to(target).as_posix()}")
        elif not place.exists() or _digest(place) != new:
            write_atomic(place, path.read_bytes())
        delivered[name] = new
    write_atomic(manifest_path, json.dumps(delivered, indent=1))
    return messages + [f"the course is in {target}"]


def lab(args: argparse.Namespace) -> int:
    """Copy the course to a folder and open JupyterLab there."""
    for message in copy_course(args.folder):
        print(message)
    if args.no_open:
        return 0
    if importlib.util.find_spec("jupyterlab") is None:
        raise ModuleNotFoundError("JupyterLab is not installed; type: pip install jupyterlab")
    start = args.folder / "0_start" / "00_quickstart.ipynb"
    return subprocess.run([sys.executable, "-m", "jupyterlab", str(start), f"--notebook-dir={args.folder}"]).returncode


def predict(args: argparse.Namespace) -> int:
    """Estimate the poses of one picture, draw them and print JSON in the picture's own pixels."""
    import cv2

    from posetutor.core import write_atomic
    from posetutor.skeletons import Poses
    from posetutor.systems.topdown import pretrained
    from posetutor.viz import draw_poses, png_bytes

    image, name = _sample() if args.sample else (_read_picture(args.image), str(args.image))
    cv2.setNumThreads(1)
    boxes = None if args.box is None else [args.box]
    system = pretrained()
    tiny = min(image.shape[:2]) < 2  # nobody fits into a single row or column of pixels
    poses = Poses.empty(system.skeleton) if tiny else system.estimate(image, boxes=boxes)
    out = args.out or (Path("sample_pose.png") if args.sample else args.image.with_name(f"{args.image.stem}_pose.png"))
    write_atomic(out, png_bytes(draw_poses(image, poses)))
    print(json.dumps({"image": name, "height": image.shape[0], "width": image.shape[1], "drawing": str(out), **json.loads(poses.to_json())}, indent=1))
    return 0


def _sample():
    """A drawn picture with one person, so that the command works without any file."""
    from posetutor.data.figures import draw_scene

    return draw_scene(7, people=(1, 1), size=(320, 240)).load(), "drawn sample"


def _read_picture(path: Path | None):
    if path is None:
        raise ValueError("give a picture file, or --sample for a drawn one")
    from posetutor.skeletons import read_image

    with _decoder_messages_hidden():
        return read_image(path, rotate=True)


@contextlib.contextmanager
def _decoder_messages_hidden():
    """Image libraries write to the process's stderr themselves; our one line says the same, with the file's name."""
    sys.stderr.flush()
    kept, nowhere = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(nowhere, 2)
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
        os.close(nowhere)


def check_dataset(args: argparse.Namespace) -> int:
    """List the faults of a COCO keypoint data set; exit code 1 when there are any."""
    from posetutor.data.coco import check_dataset as find_faults

    for path, what in ((args.json, "annotation file"), (args.images, "image folder")):
        if not path.exists():
            raise FileNotFoundError(f"the {what} {path} does not exist")
    faults = find_faults(args.json, args.images, results=args.results)
    for fault in faults:
        print(f"{fault.kind}: {fault.where}: {fault.value}. {fault.fix}")
    print(f"{len(faults)} fault{'s' if len(faults) != 1 else ''} in {args.json}")
    return 1 if faults else 0


def _box(text: str) -> list[float]:
    """Parse x,y,w,h."""
    try:
        box = [float(part) for part in text.split(",")]
    except ValueError:
        box = []
    if len(box) != 4 or not all(abs(value) < 1e9 for value in box) or min(box[2:]) <= 0:
        raise argparse.ArgumentTypeError(f"a box is x,y,width,height in pixels with positive width and height, got {text!r}")
    return box


def parser() -> argparse.ArgumentParser:
    """The command line."""
    top = argparse.ArgumentParser(prog="posetutor", description="Learn and use 2-D human pose estimation.")
    top.add_argument("--version", action="version", version=f"posetutor {__version__}")
    commands = top.add_subparsers(dest="command", required=True)
    commands.add_parser("doctor", help="check this installation").set_defaults(run=doctor)
    one = commands.add_parser("lab", help="copy the course to a folder and open JupyterLab")
    one.add_argument("folder", type=Path, nargs="?", default=Path("posetutor_course"))
    one.add_argument("--no-open", action="store_true", help="only copy")
    one.set_defaults(run=lab)
    one = commands.add_parser("predict", help="estimate the poses of a picture, offline")
    one.add_argument("image", type=Path, nargs="?", help="a JPEG, PNG or other picture that OpenCV reads")
    one.add_argument("--sample", action="store_true", help="use a drawn picture")
    one.add_argument("--box", type=_box, help="x,y,w,h of one person, in pixels; without it people are searched for")
    one.add_argument("--out", type=Path, help="the drawing's file (default: <picture>_pose.png beside the picture)")
    one.set_defaults(run=predict)
    one = commands.add_parser("check-dataset", help="list the faults of a COCO keypoint data set")
    one.add_argument("json", type=Path, help="COCO keypoint annotation file")
    one.add_argument("images", type=Path, help="folder of the images")
    one.add_argument("--results", type=Path, help="a COCO result file to check against the annotations")
    one.set_defaults(run=check_dataset)
    return top


def main(argv: list[str] | None = None) -> int:
    """Run one command; a fault of the input is one line on stderr and exit code 2."""
    args = parser().parse_args(argv)
    try:
        return args.run(args)
    except (ValueError, OSError, ModuleNotFoundError) as error:
        print(f"posetutor {args.command}: {error}", file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main())
