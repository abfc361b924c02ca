"""Every AP, PCK or pixel figure from a recorded run resolves to course/runs; every other score in the text has a source."""

import json
import sys
from dataclasses import asdict
from pathlib import Path

import pytest

from posetutor.core import RunRecord, refuses
from posetutor.course.chapters import chapter_paths, read
from posetutor.systems.topdown import LESSON

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "course"))

import records

RUN = RunRecord("demo", versions={"python": "3"}, device="cpu, 2 cores, 2 threads", date="2026-11-21T07:34:12+00:00", seconds=636.9, metrics={"AP": 0.59574, "px": 3.7292}, revision="98ae")
RUNS = {"demo": RUN}
HEADER = "RECORDED 2026-11-21 on cpu, 2 cores, 2 threads, 637 s of training, revision 98ae\n"


def prose(text, **known):
    return records.prose_faults(text, RUNS, "here", **{k: frozenset(v) for k, v in known.items()})


def test_every_score_of_the_course_resolves():
    faults = records.course_faults()
    assert not faults, "\n".join(faults)


def test_records_are_whole():
    found = records.load()
    assert found
    for record in found.values():
        assert record.revision and record.device and record.seed == record.preset["seed"] and record.metrics


def test_a_record_under_another_name_is_refused(tmp_path):
    RUN.save(tmp_path / "other.json")
    refuses(lambda: records.load(tmp_path), contains="other.json: the record is called 'demo'")
    (tmp_path / "other.json").write_text(json.dumps({**asdict(RUN), "name": "other", "seconds": 0}))
    refuses(lambda: records.load(tmp_path), contains="must state its date")


def test_the_lesson_keeps_its_promise():
    lesson = records.load()["topdown_lesson"]
    assert lesson.preset == json.loads(json.dumps(asdict(LESSON)))
    assert lesson.seconds <= 600 and lesson.metrics["figures_evaluated"] == 500 and lesson.metrics["AP"] >= 0.75


def test_the_chapter_that_quotes_the_lesson_shows_its_record():
    (path,) = (p for p in chapter_paths(ROOT / "nbs") if p.stem == "50_topdown")
    found = records.load()
    cell = next(c for c in read(path).cells if c.cell_type == "code" and any(o.output_type == "stream" and "RECORDED" in o.text for o in c.outputs))
    text = "".join(o.text for o in cell.outputs)
    assert records.printed_faults(text, found, "here") == []
    stated = found["topdown_lesson"].metrics["AP"]
    worse = text.replace(f"'AP': {round(stated, 3)}", "'AP': 0.123")
    assert worse != text and "has no metric AP that prints as 0.123" in records.printed_faults(worse, found, "here")[0]


@pytest.mark.parametrize(
    "text, said",
    [
        (HEADER + "{'AP': 0.596, 'px': 3.73}", None),
        (HEADER + "AP: 0.6\n\nanything 0.7", None),
        (HEADER + "{'AP': 0.595}", "no metric AP that prints as 0.595"),
        (HEADER + "{'AR': 0.596}", "no metric AR"),
        (HEADER + "0.596", "the number 0.596 under the record of demo has no name"),
        (HEADER.replace("637", "600"), "no record of course/runs was made like this"),
        (HEADER.replace("98ae", "98af"), "no record of course/runs was made like this"),
        (HEADER.replace("2 cores", "4 cores"), "no record of course/runs was made like this"),
        ("RECORDED yesterday: AP 0.9", "no record of course/runs was made like this"),
    ],
)
def test_printed_numbers(text, said):
    faults = records.printed_faults(text, RUNS, "here")
    assert (faults == []) if said is None else said in faults[0]


@pytest.mark.parametrize(
    "text",
    [
        "It reaches AP 0.596 (run demo: AP).",
        "59.6 AP (run demo: AP), and a joint is 3.7 px (run demo: px) off.",
        "The mean is 81/101 = 0.802, so AP 0.802.",
        "PCK@0.2 divides by the box; ten thresholds from 0.50 to 0.95.",
        "`FULL` trains 163800 steps at 256x192.",
        "The joint moves by 3.7 px.",
    ],
)
def test_prose_that_resolves(text):
    assert prose(text) == []


@pytest.mark.parametrize(
    "text, number",
    [
        ("The FULL run reaches AP 0.761.", "0.761"),
        ("The recorded lesson has a median error of 3.7 px.", "3.7"),
        ("It reaches AP 0.597 (run demo: AP).", "0.597"),
        ("It reaches AP 0.596 (run nothing: AP).", "0.596"),
        ("It reaches AP 0.596 (run demo: AR).", "0.596"),
        ("It reaches 70.4 and 71.4 AP.", "70.4"),
        ("A PCK@0.2 of 0.93 is reached.", "0.93"),
        ("It is 1/101 = 0.0199, hence AP 0.0199.", "0.0199"),
        ("Our AP is **0.61**.", "0.61"),
    ],
)
def test_prose_that_does_not(text, number):
    assert number in prose(text)[0]
    assert prose(text.replace("FULL", "other").replace("The recorded lesson", "It"), shown=["0.761", "70.4", "71.4", "0.93", "0.0199", "0.61"]) == [] or "(run" in text


def test_a_recorded_run_is_not_excused_by_numbers_of_the_chapter():
    assert prose("The FULL run reaches AP 0.761.", shown=["0.761"], quoted=["0.761"])
    assert not prose("The paper reaches AP 0.761.", quoted=["0.761"])


def test_text_in_code_is_read():
    assert sorted(records.strings("ax.set(title='FULL run: AP 0.7')  # AP 0.8\nf'{x} AP 0.9'")) == [" AP 0.9", "AP 0.8", "FULL run: AP 0.7"]


def test_published_scores_name_their_place():
    assert records.published()[41] >= {"70.4", "71.4", "72.0"}
    assert "72.1" not in records.published()[41]
