"""The table of claims is what the stored notebooks show, and what cannot be read is refused."""

import sys
from dataclasses import replace
from pathlib import Path

import pytest

from posetutor.core import claim, refuses
from posetutor.course.chapters import Node, chapter_paths, read

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "course"))

import claims

GOOD = """before
claim     A long statement about sub-pixel decoders that goes on until the line is full and is wrapped after well-
          known words
source    Xiao et al. 2018
protocol  none
expected  1
measured  1.0
verdict   holds in direction: because it is
          so
after
"""


def code(source, text=""):
    output = [Node(output_type="stream", name="stdout", text=text)] if text else []
    return Node(cell_type="code", source=source, metadata=Node(), outputs=output, id="cell-007")


def chapter(*cells):
    return replace(read(chapter_paths(ROOT / "nbs")[0]), cells=list(cells))


def test_table_is_up_to_date():
    assert not claims.stale(), "run `python course/claims.py`"


@pytest.mark.parametrize("path", chapter_paths(ROOT / "nbs"), ids=lambda p: p.stem)
def test_every_claim_of_a_stored_output_is_in_the_table(path):
    printed = sum(line.startswith("claim     ") for c in read(path).cells if c.cell_type == "code" for line in claims.printed(c).splitlines())
    rows = claims.of_chapter(read(path))
    assert len(rows) == printed >= 1
    table = claims.TABLE.read_text(encoding="utf-8")
    for row in rows:
        assert claims.cell_text(row.statement) in table and claims.cell_text(row.measured) in table
        assert f"../nbs/{row.notebook}#cell-id={row.cell}" in table and any(c.get("id") == row.cell for c in read(path).cells)


def test_counts_stand_on_top_and_add_up():
    rows = claims.collect()
    assert sum(claims.counts(rows).values()) == len(rows) > 30
    assert claims.summary(rows) in claims.TABLE.read_text(encoding="utf-8").split("\n\n")[1]


def test_parser_reads_what_claim_prints(capsys):
    text = dict(source="a paper, sec. 4.1 " * 9, protocol="20 well-known words " * 12, expected="under 0.25 px", measured="0.2 | px")
    claim("A statement with a colon: and more than one line of words, so that it must be wrapped somewhere in the middle of it all", holds=None, why="too small: see above", **text)
    (entry,) = claims.parse_output(capsys.readouterr().out, "here")
    assert entry["source"] == " ".join(text["source"].split()) and entry["protocol"] == " ".join(text["protocol"].split())
    assert entry["measured"] == "0.2 | px" and entry["verdict"] == "does not hold here: too small: see above"


def test_wrapped_text_is_joined_and_other_text_is_left_out():
    (entry,) = claims.parse_output(GOOD, "here")
    assert entry["claim"].endswith("after well-known words") and entry["verdict"] == "holds in direction: because it is so"
    (row,) = claims.of_chapter(chapter(code("claim()", GOOD)))
    assert (row.verdict, row.why, row.number, row.cell) == ("holds in direction", "because it is so", 1, "cell-007")
    assert "0.2 \\| px" == claims.cell_text("0.2 | px")


@pytest.mark.parametrize(
    "text, said",
    [
        (GOOD.replace("protocol  none\n", ""), "'expected' where 'protocol' belongs"),
        (GOOD[: GOOD.index("measured")], "lacks ['measured', 'verdict']"),
        (GOOD.replace("verdict   holds in direction", "verdict   FAILS"), "verdict 'FAILS"),
        (GOOD.replace("source    Xiao", "claim     again\nsource    Xiao"), "lacks"),
        ("", "1 claims in the code, 0 in the stored output"),
    ],
)
def test_what_cannot_be_read_is_refused(text, said):
    refuses(lambda: claims.of_chapter(chapter(code("claim('x')", text))), contains=said)
    refuses(lambda: claims.of_chapter(chapter(code("claim('x')", text))), contains="00_quickstart.ipynb, cell 0")


def test_demonstrations_are_no_claims():
    assert claims.calls("with printed:\n    claim('x')\nrefuses(lambda: claim('y'))") == 0
    assert claims.calls("%time x\nclaim('x')\nclaim('y')") == 2
    assert claims.of_chapter(chapter(code("with printed:\n    claim('x')"))) == []
