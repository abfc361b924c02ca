"""The quickstart with a reader's own pictures: a training that was too short is said, it does not end the run before the scores are printed."""

import json
from pathlib import Path

import pytest

from posetutor import core

NOTEBOOK = Path(__file__).resolve().parent.parent / "nbs" / "0_start" / "00_quickstart.ipynb"


def cell(text: str) -> str:
    """Source of the one code cell that holds `text`."""
    sources = ["".join(c["source"]) for c in json.loads(NOTEBOOK.read_text(encoding="utf-8"))["cells"] if c["cell_type"] == "code"]
    (found,) = [s for s in sources if text in s]
    return found


@pytest.mark.parametrize(
    "own, after, verdict",
    [(None, 0.3, "holds"), ("my_folder", 0.3, "holds"), ("my_folder", 0.0, "does not hold here: these pictures need a longer training"), (None, 0.0, None)],
)
def test_claim_of_own_and_of_drawn_pictures(own, after, verdict, monkeypatch, capsys):
    monkeypatch.setattr(core, "CLAIMS", [])
    names = {"claim": core.claim, "own": own, "unseen": [1, 2], "chosen": core.Preset("SMOKE", steps=3)}
    names["rows"] = {"untrained": {"AP50": 0.0}, "trained here": {"AP50": after}}
    if verdict is None:
        with pytest.raises(AssertionError, match="claim fails"):
            exec(cell("learned = "), names)
    else:
        exec(cell("learned = "), names)
        assert core.CLAIMS[0].verdict.startswith(verdict)
    capsys.readouterr()
