"""The command `posetutor`: doctor, lab, grade, slides, routes, zip, predict, weights, check-dataset. Each command is a few lines over exported functions."""

import argparse
import contextlib
import importlib.metadata
import importlib.util
import json
import os
import platform
import sys
from pathlib import Path

from posetutor import __version__
from posetutor.course.chapters import chapter_paths

PACKAGE = Path(__file__).resolve().parent
NEEDED = ("numpy", "torch", "opencv-python", "pycocotools", "matplotlib", "ipywidgets", "pillow", "accelerate", "safetensors", "tqdm")


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
    check("notebooks", lambda: f"{len(chapter_paths())} chapters")
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


def lab(args: argparse.Namespace) -> int:
    """Copy the student course to a folder and open JupyterLab there, at the notebook changed last."""
    from posetutor.course.lab import FIRST, copy_course, open_lab, where_stopped

    for message in copy_course(args.folder, solutions=args.solutions):
        print(message)
    stopped = where_stopped(args.folder)
    print(f"you stopped at {stopped}" if stopped else f"start with {FIRST}")
    return 0 if args.no_open else open_lab(args.folder, stopped or FIRST)


def grade(args: argparse.Namespace) -> int:
    """Grade a folder of student notebooks into a CSV file."""
    from posetutor.course.grade import grade as grade_folder
    from posetutor.course.grade import summary, write_csv

    if args.out.is_dir() or not args.out.resolve().parent.is_dir():
        raise ValueError(f"--out {args.out} must be a file in a folder that exists")
    rows = grade_folder(args.folder, chapter=args.chapter, seconds=args.seconds, memory=args.memory)
    write_csv(rows, args.out)
    print(f"{summary(rows)}; the table is {args.out}")
    return 0


def slides(args: argparse.Namespace) -> int:
    """Write the slides of chapters, one HTML file each."""
    from posetutor.course.slides import write_slides

    for path in write_slides(args.chapters, args.out):
        print(f"{path} ({path.stat().st_size / 1e3:.0f} kB)")
    print("open one in a browser: arrows page, n shows notes, ? lists the keys")
    return 0


def routes(args: argparse.Namespace) -> int:
    """List the routes, or show and check one; 1 when it has faults."""
    from posetutor.course.routes import all_chapters, course_order, extent, load_routes, route_faults, route_text

    found, chapters = load_routes(), all_chapters()
    course_order(chapters.values())  # a circle of prerequisites makes every route wrong
    if args.name and args.name not in found:
        raise ValueError(f"there is no route {args.name!r}; the routes are {', '.join(found)}")
    if args.name:
        print(route_text(found[args.name], chapters))
        return 1 if route_faults(found[args.name], chapters) else 0
    faults = {name: route_faults(route, chapters) for name, route in found.items()}
    for name, route in found.items():
        state = f"{len(faults[name])} faults" if faults[name] else "ok"
        print(f"{name:10} {route.title}: {extent(route)}; {state}")
    print("posetutor routes NAME shows one, posetutor zip NAME --out FILE.zip packs it")
    return 1 if any(faults.values()) else 0


def zip_route(args: argparse.Namespace) -> int:
    """Pack a route: notebooks for students and teacher, slides, drawn pictures and a printable plan."""
    from posetutor.course.routes import write_zip

    path, sizes = write_zip(args.route, args.out or Path(f"{args.route}.zip"), args.part)
    for name, size in sizes.items():
        print(f"  {name:12} {size / 1e6:5.1f} MB")
    print(f"{path} ({path.stat().st_size / 1e6:.1f} MB); start with its plan.html")
    return 0


def predict(args: argparse.Namespace) -> int:
    """Estimate the poses of one picture, draw them and print JSON in the picture's own pixels."""
    import cv2

    from posetutor.core import write_atomic
    from posetutor.skeletons import Poses
    from posetutor.systems.official import official
    from posetutor.systems.topdown import pretrained
    from posetutor.viz import draw_poses, png_bytes

    image, name = _sample() if args.sample else (_read_picture(args.image), str(args.image))
    cv2.setNumThreads(1)
    boxes = None if args.box is None else [args.box]
    system = official(args.weights) if args.weights else pretrained()
    tiny = min(image.shape[:2]) < 2  # nobody fits into a single row or column of pixels
    poses = Poses.empty(system.skeleton) if tiny else system.estimate(image, boxes=boxes)
    out = args.out or (Path("sample_pose.png") if args.sample else args.image.with_name(f"{args.image.stem}_pose.png"))
    write_atomic(out, png_bytes(draw_poses(image, poses)))
    print(json.dumps({"image": name, "height": image.shape[0], "width": image.shape[1], "drawing": str(out), **json.loads(poses.to_json())}, indent=1))
    return 0


def weights(args: argparse.Namespace) -> int:
    """List the published weights that `predict --weights NAME` and `posetutor.systems.official` fetch on request."""
    from posetutor.systems.official import list_official

    print(list_official(args.match))
    print("scores as published: COCO val2017, boxes of a detector, flip test; posetutor predict IMAGE --weights NAME fetches one and keeps it")
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
    one = commands.add_parser("lab", help="copy the student course to a folder and open JupyterLab where you stopped")
    one.add_argument("folder", type=Path, nargs="?", default=Path("posetutor_course"))
    one.add_argument("--solutions", action="store_true", help="copy the notebooks with their solutions")
    one.add_argument("--no-open", action="store_true", help="only copy")
    one.set_defaults(run=lab)
    one = commands.add_parser("grade", help="grade a folder of student notebooks into a CSV file")
    one.add_argument("folder", type=Path, help="one folder a student, or notebooks such as 21_gaussian_alice.ipynb")
    one.add_argument("--out", type=Path, default=Path("grades.csv"), help="the table (default: grades.csv)")
    one.add_argument("--chapter", type=int, help="number of the only chapter to grade")
    one.add_argument("--seconds", type=float, default=20.0, help="time limit of one answer (default: 20)")
    one.add_argument("--memory", type=float, default=2.0, help="memory limit of one answer in GB (default: 2)")
    one.set_defaults(run=grade)
    one = commands.add_parser("slides", help="write slides, one self-contained HTML file a chapter")
    one.add_argument("chapters", nargs="*", metavar="chapter", help="number or name of a chapter (default: all)")
    one.add_argument("--out", type=Path, default=Path("slides"), help="folder for the files (default: slides)")
    one.set_defaults(run=slides)
    one = commands.add_parser("routes", help="list the routes through the course, or show and check one")
    one.add_argument("name", nargs="?", help="name of a route")
    one.set_defaults(run=routes)
    one = commands.add_parser("zip", help="pack a route: notebooks for students and teacher, slides, data, plan")
    one.add_argument("route", help="name of a route; posetutor routes lists them")
    one.add_argument("--out", type=Path, help="the zip file (default: <route>.zip)")
    one.add_argument("--part", choices=("all", "student", "teacher"), default="all", help="what to pack (default: all)")
    one.set_defaults(run=zip_route)
    one = commands.add_parser("predict", help="estimate the poses of a picture, offline")
    one.add_argument("image", type=Path, nargs="?", help="a JPEG, PNG or other picture that OpenCV reads")
    one.add_argument("--sample", action="store_true", help="use a drawn picture")
    one.add_argument("--box", type=_box, help="x,y,w,h of one person, in pixels; without it people are searched for")
    one.add_argument("--out", type=Path, help="the drawing's file (default: <picture>_pose.png beside the picture)")
    one.add_argument("--weights", metavar="NAME", help="published weights in place of the packaged ones, fetched once on request; give --box, too, since a search with a large network takes minutes")
    one.set_defaults(run=predict)
    one = commands.add_parser("weights", help="list the published weights that can be fetched by name")
    one.add_argument("match", nargs="?", default="", help="show only names that contain this")
    one.set_defaults(run=weights)
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
