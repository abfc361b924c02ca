"""The quizzes of all chapters: five sound questions each, fair options, and a printed twin that needs no renderer."""

import ast
import json
import re
from collections import Counter
from pathlib import Path

import pytest

from posetutor.widgets import Question, Quiz, compute_quiz

ROOT = Path(__file__).resolve().parent.parent
CHAPTERS = sorted((ROOT / "nbs").rglob("[0-9]*_*.ipynb"))


def cells(path):
    found = json.loads(path.read_text(encoding="utf-8"))["cells"]
    return [{**c, "source": c["source"] if isinstance(c["source"], str) else "".join(c["source"])} for c in found]


def is_quiz(cell):
    return "quiz" in cell["metadata"].get("tags", [])


def quiz_of(path):
    """Run the quiz cell alone, as a reader who opens the chapter and answers first would; it must not need any other cell."""
    (cell,) = [c for c in cells(path) if is_quiz(c)]
    tree = ast.parse(cell["source"])
    tree.body[-1] = ast.Assign([ast.Name("quiz", ast.Store())], tree.body[-1].value)
    names = {}
    exec(compile(ast.fix_missing_locations(tree), f"{path.name} (quiz)", "exec"), names)
    return names["quiz"]


WITH_QUIZ = [path for path in CHAPTERS if any(map(is_quiz, cells(path)))]
QUIZZES = {path.stem: quiz_of(path) for path in WITH_QUIZ}
QUESTIONS = [(f"{stem}, question {n}", q) for stem, quiz in QUIZZES.items() for n, q in enumerate(quiz.questions, start=1)]


def longest_alone(question):
    """Index of the option that is longer than every other, or None."""
    lengths = [len(option) for option in question.options]
    return lengths.index(max(lengths)) if lengths.count(max(lengths)) == 1 else None


@pytest.mark.parametrize("path", CHAPTERS, ids=lambda p: p.stem)
def test_every_chapter_asks_five_questions_before_its_summary(path):
    assert path.stem in QUIZZES, "no quiz: add a `## Quiz` section with one code cell tagged quiz before `## Summary`"
    quiz = QUIZZES[path.stem]
    assert isinstance(quiz, Quiz) and len(quiz.questions) == 5
    assert all(len(q.options) == 4 for q in quiz.questions)
    assert len({q.text for q in quiz.questions}) == 5
    assert len({q.answer for q in quiz.questions}) >= 3, "the answers sit at two places only"
    found = cells(path)
    place = next(n for n, c in enumerate(found) if is_quiz(c))
    assert found[place - 1]["source"].startswith("## Quiz") and found[place + 1]["source"].startswith("## Summary")


@pytest.mark.parametrize("path", WITH_QUIZ, ids=lambda p: p.stem)
def test_the_source_with_the_answers_is_folded(path):
    (cell,) = [c for c in cells(path) if is_quiz(c)]
    assert cell["metadata"].get("jupyter", {}).get("source_hidden") is True, "a reader would see `answer=` before the question"
    assert "hide-input" in cell["metadata"]["tags"]


@pytest.mark.parametrize(("name", "question"), QUESTIONS, ids=[name for name, _ in QUESTIONS])
def test_explanations_teach_and_fit_on_a_slide(name, question):
    assert 60 <= len(question.why) <= 420, f"{len(question.why)} letters of explanation"
    assert len(question.text) <= 300 and max(map(len, question.options)) <= 110
    assert not re.search(r"\b(all|none) of the above\b", " ".join(question.options), re.IGNORECASE)
    others = [option for n, option in enumerate(question.options) if n != question.answer]
    assert compute_quiz([question], [question.answer]).right == 1
    assert all(compute_quiz([question], [question.options.index(option)]).right == 0 for option in others)


def test_the_place_and_the_length_of_an_option_give_nothing_away():
    places = Counter(q.answer for _, q in QUESTIONS)
    assert all(0.10 <= places[n] / len(QUESTIONS) <= 0.45 for n in range(4)), places
    told = [name for name, q in QUESTIONS if longest_alone(q) == q.answer]
    assert len(told) < 0.5 * len(QUESTIONS), f"{len(told)} of {len(QUESTIONS)}: {told}"


@pytest.mark.parametrize("stem", QUIZZES)
def test_the_printed_twin_is_complete_and_needs_no_renderer(stem):
    quiz = QUIZZES[stem]
    page = quiz.static()
    text = re.sub(r"<code>.*?</code>", "", page)
    assert not re.search(r"[$\\`]|\*\w", text), re.findall(r".{20}(?:[$\\`]|\*\w).{20}", text)
    parts = re.findall(r"<details><summary>[^<]+</summary><p><b>([a-d])\.</b> (.+?)</p></details>", page)
    assert [letter for letter, _ in parts] == ["abcd"[q.answer] for q in quiz.questions]
    assert all(len(why) >= 60 for _, why in parts)
    for number in range(1, 6):
        assert f"<b>{number}.</b>" in page
    for radio in quiz.radios:
        assert not re.search(r"[$\\`<>]|\*\w", "".join(radio.options)), radio.options


@pytest.mark.parametrize("path", WITH_QUIZ, ids=lambda p: p.stem)
def test_the_stored_page_shows_the_present_questions(path):
    (cell,) = [c for c in cells(path) if is_quiz(c)]
    shown = ["".join(o.get("data", {}).get("text/html", "")) for o in cell["outputs"]]
    assert shown == [QUIZZES[path.stem].static()], "the stored quiz is not the one in the source; rebuild the chapter"


def test_a_spoilt_quiz_would_be_found(tmp_path):
    give_away = [Question(f"{n}?", ["no", "no!", "no?", "a long right answer"], answer=3, why="because " * 9) for n in range(5)]
    assert all(longest_alone(q) == q.answer for q in give_away)
    spoilt = {
        "cells": [
            {
                "metadata": {"tags": ["quiz"]},
                "source": ["from posetutor.widgets import Question, Quiz\n", "Quiz([Question('a?', ['b', 'b'], answer=0, why='c')])"],
            }
        ]
    }
    (tmp_path / "99_spoilt.ipynb").write_text(json.dumps(spoilt), encoding="utf-8")
    with pytest.raises(ValueError, match="question 'a\\?': options must differ"):
        quiz_of(tmp_path / "99_spoilt.ipynb")
