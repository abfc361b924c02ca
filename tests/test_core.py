"""Core: what must hold across processes, environments and crashes, which a notebook cell cannot show."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch

from posetutor import core
from posetutor.core import Preset, RunRecord, refuses


# --- shapes and values ---------------------------------------------------------------------------------------------


def test_shape_message_names_argument_expected_and_received():
    refuses(lambda: core.check_shape(torch.zeros(3, 12, 16), "B K H W", "heatmaps"), "heatmaps must be (B, K, H, W), got shape (3, 12, 16)")


@pytest.mark.parametrize("as_array", [torch.zeros, np.zeros])
def test_shape_returns_sizes(as_array):
    assert core.check_shape(as_array((2, 5, 2)), "B K 2", "xy") == {"B": 2, "K": 5}
    assert core.check_shape(as_array((4, 7, 5, 2)), "... K 2", "xy") == {"K": 5}
    assert core.check_shape(as_array((5, 2)), "... K 2", "xy") == {"K": 5}
    assert core.check_shape(as_array((0, 5, 2)), "N K 2", "xy", K=5) == {"K": 5, "N": 0}


@pytest.mark.parametrize(
    "shape, spec, known, said",
    [
        ((2, 5, 3), "B K 2", {}, "xy must be (B, K, 2), got shape (2, 5, 3)"),
        ((2, 5, 2), "B K 2", {"K": 6}, "K is 6 elsewhere, 5 here"),
        ((3, 4), "N N", {}, "N is 3 elsewhere, 4 here"),
        ((2,), "... K 2", {}, "xy must be (..., K, 2), got shape (2,)"),
        ((), "N", {}, "got shape ()"),
    ],
)
def test_shape_refuses(shape, spec, known, said):
    refuses(lambda: core.check_shape(torch.zeros(shape), spec, "xy", **known), said)


def test_shape_refuses_what_is_no_array():
    refuses(lambda: core.check_shape([[1, 2]], "K 2", "xy"), "xy must be a tensor or array of shape (K, 2), got list")


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_not_finite_is_located(value):
    x = torch.zeros(2, 5, 2)
    x[1, 3, 0] = value
    refuses(lambda: core.check_finite(x, "xy"), "at index [1, 3, 0]")
    refuses(lambda: core.check_finite(x.numpy(), "xy"), "xy must be finite")
    core.check_finite(torch.zeros(0, 5, 2), "xy")
    core.check_finite(torch.zeros(3, dtype=torch.int64), "xy")


@pytest.mark.parametrize("value", [3, -1, 0.5, float("nan")])
def test_foreign_visibility_is_located(value):
    vis = torch.zeros(2, 3)
    vis[1, 2] = value
    refuses(lambda: core.check_visibility(vis), "at index [1, 2]")
    core.check_visibility(np.array([[0, 1, 2]]))
    core.check_visibility(torch.tensor([True, False]))


def test_refuses_is_strict():
    def bad():
        raise ValueError("height must be positive")

    refuses(bad, "height")
    refuses(lambda: refuses(lambda: None), "accepted", AssertionError)
    refuses(lambda: refuses(bad, "width"), "lacks 'width'", AssertionError)
    refuses(lambda: refuses(bad, error=KeyError), "expected KeyError, got ValueError", AssertionError)


# --- device and seeds ----------------------------------------------------------------------------------------------


def test_device_follows_the_environment(monkeypatch):
    monkeypatch.setenv("POSETUTOR_DEVICE", "cpu")
    assert core.device() == torch.device("cpu")
    monkeypatch.setenv("POSETUTOR_DEVICE", "abacus")
    refuses(core.device, "POSETUTOR_DEVICE must be a device usable here, such as cpu, got 'abacus'")


def test_streams_of_different_keys_differ_and_repeat():
    keys = [(0,), (0, 0), (1,), (1, 0), (0, 1), (2**32,), (0, 0, 1), (1, 2, 3), (3, 2, 1)]
    for draw in (lambda *k: core.seed_rng(*k).random(4).tolist(), lambda *k: torch.rand(4, generator=core.seed_generator(*k)).tolist()):
        first = [draw(*k) for k in keys]
        assert first == [draw(*k) for k in keys]
        assert len({tuple(v) for v in first}) == len(keys)


def test_numpy_alone_would_confuse_two_of_them():
    plain = [np.random.default_rng(np.random.SeedSequence(k)).random() for k in ([1], [1, 0])]
    assert plain[0] == plain[1]


def test_streams_do_not_depend_on_the_process():
    code = "from posetutor.core import seed_rng; print(seed_rng(3, 1, 4).random())"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env={**os.environ, "PYTHONHASHSEED": "7"})
    assert float(out.stdout) == core.seed_rng(3, 1, 4).random()


@pytest.mark.parametrize("seed", [-1, 1.5, True, 2**64, "0", None])
def test_seed_refuses(seed):
    refuses(lambda: core.seed_rng(0, seed), "seed and keys must be integers in [0, 2**64)")


# --- files ---------------------------------------------------------------------------------------------------------


def test_write_atomic_makes_folders_and_replaces(tmp_path):
    path = tmp_path / "a" / "b" / "text.json"
    assert core.write_atomic(path, "{}") == path and path.read_text() == "{}"
    core.write_atomic(str(path), b"[1]")
    assert core.read_json(path) == [1]
    core.write_atomic(path.with_name("x.npz"), lambda temporary: np.savez(temporary, a=np.arange(3)))
    assert np.load(path.with_name("x.npz"))["a"].tolist() == [0, 1, 2]
    assert sorted(p.name for p in path.parent.iterdir()) == ["text.json", "x.npz"]


def test_temporary_file_is_in_the_same_folder_with_the_same_suffix(tmp_path):
    seen = []

    def writer(temporary):
        seen.append(temporary)
        temporary.write_text("x")

    core.write_atomic(tmp_path / "weights.safetensors", writer)
    assert seen[0].parent == tmp_path and seen[0].suffix == ".safetensors" and not seen[0].exists()


def test_a_writer_that_raises_changes_nothing(tmp_path):
    path = tmp_path / "record.json"
    path.write_text("old")

    def writer(temporary):
        temporary.write_text("half of the n")
        raise OSError("disk full")

    refuses(lambda: core.write_atomic(path, writer), "disk full", OSError)
    assert path.read_text() == "old" and [p.name for p in tmp_path.iterdir()] == ["record.json"]


def test_write_atomic_refuses(tmp_path):
    refuses(lambda: core.write_atomic(tmp_path, "x"), "path must name a file")
    refuses(lambda: core.write_atomic(tmp_path / "x", lambda temporary: None), "wrote no file")
    assert not list(tmp_path.iterdir())


def test_a_killed_writer_leaves_the_old_file(tmp_path):
    path = tmp_path / "record.json"
    path.write_text("old")
    code = (
        "import sys, time\nfrom posetutor.core import write_atomic\n"
        "def writer(t):\n    t.write_text('half')\n    print('writing', flush=True)\n    time.sleep(60)\n"
        f"write_atomic({str(path)!r}, writer)\n"
    )
    child = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    assert child.stdout.readline() == "writing\n"
    child.send_signal(signal.SIGKILL if os.name == "posix" else signal.SIGTERM)
    child.wait()
    child.stdout.close()
    assert path.read_text() == "old"
    left = [p.name for p in tmp_path.iterdir() if p != path]
    assert len(left) == 1 and left[0].startswith(".tmp-")


@pytest.mark.skipif(os.name != "posix", reason="kill while writing is tried on POSIX")
def test_kills_at_any_moment_never_show_half_a_file(tmp_path):
    path = tmp_path / "record.json"
    code = (
        "from posetutor.core import write_atomic\nprint('ready', flush=True)\n"
        f"n = 0\nwhile True:\n    n += 1\n    write_atomic({str(path)!r}, '[' + ','.join([str(n)] * 20000) + ']')\n"
    )
    for delay in (0.02, 0.05, 0.11):
        child = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
        child.stdout.readline()
        time.sleep(delay)
        child.kill()
        child.wait()
        child.stdout.close()
        if path.exists():
            values = json.loads(path.read_text())
            assert len(values) == 20000 and len(set(values)) == 1


def test_a_busy_target_is_tried_again(tmp_path, monkeypatch):
    """Windows refuses to replace a file while another program reads it."""
    calls, replace = [], os.replace

    def busy(source, target):
        calls.append(target)
        if len(calls) < 3:
            raise PermissionError("in use")
        replace(source, target)

    monkeypatch.setattr(core.os, "replace", busy)
    core.write_atomic(tmp_path / "a.txt", "new")
    assert (tmp_path / "a.txt").read_text() == "new" and len(calls) == 3
    monkeypatch.setattr(core.os, "replace", lambda source, target: busy("", calls.clear()))
    monkeypatch.setattr(core.time, "sleep", lambda seconds: None)
    refuses(lambda: core.write_atomic(tmp_path / "a.txt", "x"), "in use", PermissionError)
    assert (tmp_path / "a.txt").read_text() == "new" and len(list(tmp_path.iterdir())) == 1


def test_two_writers_do_not_mix(tmp_path):
    path = tmp_path / "record.json"
    code = f"from posetutor.core import write_atomic\nimport sys\nfor _ in range(30):\n    write_atomic({str(path)!r}, sys.argv[1] * 50000)\n"
    children = [subprocess.Popen([sys.executable, "-c", code, letter]) for letter in "ab"]
    assert [c.wait() for c in children] == [0, 0]
    assert path.read_text() in ("a" * 50000, "b" * 50000) and len(list(tmp_path.iterdir())) == 1


def test_read_json_says_which_file_and_where(tmp_path):
    refuses(lambda: core.read_json(tmp_path / "none.json"), "none.json", FileNotFoundError)
    (tmp_path / "cut.json").write_text('{"a": [1, 2')
    refuses(lambda: core.read_json(tmp_path / "cut.json"), "line 1, column 12")
    (tmp_path / "picture.json").write_bytes(b"\xff\xd8\xff")
    refuses(lambda: core.read_json(tmp_path / "picture.json"), "not UTF-8")


# --- presets, records, claims --------------------------------------------------------------------------------------


def test_preset_follows_the_environment(monkeypatch):
    smoke = Preset("toy", steps=3)
    tiers = dict(SMOKE=smoke, LESSON=smoke.replace(steps=300), FULL=smoke.replace(steps=30_000))
    monkeypatch.delenv("POSETUTOR_PRESET", raising=False)
    assert core.preset(**tiers).steps == 3
    for name, value in tiers.items():
        monkeypatch.setenv("POSETUTOR_PRESET", name)
        assert core.tier() == name and core.preset(**tiers) is value
    refuses(lambda: core.preset(SMOKE=smoke), "asks for FULL, but only SMOKE exist")
    monkeypatch.setenv("POSETUTOR_PRESET", "smoke")
    refuses(lambda: core.preset(**tiers), "must be one of SMOKE, LESSON, FULL, got 'smoke'")
    refuses(lambda: core.preset(TINY=smoke), "named SMOKE, LESSON, FULL")
    refuses(lambda: core.preset(LESSON=smoke), "include SMOKE")
    refuses(lambda: core.preset(SMOKE=dict(steps=3)), "SMOKE must be a Preset, got dict")


@pytest.mark.parametrize(
    "field, value",
    [
        ("steps", 0),
        ("steps", 10.0),
        ("batch_size", -1),
        ("accumulate", True),
        ("learning_rate", 0),
        ("learning_rate", float("nan")),
        ("weight_decay", -1e-4),
        ("ema_decay", 1.0),
        ("size", (256,)),
        ("size", (256, 0)),
        ("size", 256),
        ("warmup_steps", 201),
        ("seed", -1),
    ],
)
def test_preset_refuses(field, value):
    refuses(lambda: Preset("toy", **{field: value}), f"{field} must be")
    refuses(lambda: Preset("toy").replace(**{field: value}), f"{field} must be")


def test_record_round_trip_and_provenance(tmp_path):
    record = core.new_record("toy", Preset("toy", seed=5))
    record.seconds, record.curve = 1.5, [[1, 0.5], [2, np.float32(0.25)]]
    record.metrics = {"AP": torch.tensor(0.5), "AP_M": float("nan"), "n": np.int64(3)}
    back = RunRecord.load(record.save(tmp_path / "run.json"))
    assert back.metrics == {"AP": 0.5, "AP_M": None, "n": 3} and back.curve == [[1, 0.5], [2, 0.25]]
    assert back.seed == 5 and back.preset["size"] == [256, 192]
    assert Preset(**back.preset) == Preset("toy", seed=5)  # the recipe can be run again
    assert set(back.versions) == {"python", "torch", "numpy", "opencv", "posetutor"} and all(back.versions.values())
    assert "not installed" not in back.versions.values()
    assert back.date.startswith("2") and "core" in back.device


def test_record_tells_nothing_about_the_person_or_the_machine(tmp_path):
    import getpass
    import platform

    text = core.new_record("toy", Preset("toy")).save(tmp_path / "run.json").read_text()
    assert platform.node() not in text and str(Path.home()) not in text and str(tmp_path) not in text
    try:
        user = getpass.getuser()
    except (OSError, KeyError):
        user = ""
    assert not user or f'"{user}"' not in text


def test_record_refuses_foreign_files(tmp_path):
    path = tmp_path / "run.json"
    path.write_text('{"name": "x"}')
    refuses(lambda: RunRecord.load(path), "is not a run record")
    path.write_text("[]")
    refuses(lambda: RunRecord.load(path), "got list")
    refuses(lambda: core.new_record("x", {"steps": 3}), "preset must be a Preset, got dict")


def test_revision_is_silent_without_a_checkout(monkeypatch, tmp_path):
    (tmp_path / "site" / "posetutor").mkdir(parents=True)
    monkeypatch.setattr(core.posetutor, "__file__", str(tmp_path / "site" / "posetutor" / "__init__.py"))
    assert core.revision() is None
    monkeypatch.setenv("PATH", str(tmp_path))
    (tmp_path / "site" / ".git").mkdir()
    assert core.revision() is None


def claim(**changes):
    core.claim(**{**dict(statement="s", source="p, sec. 1", protocol="q", expected="1 px", measured="2 px", holds=True), **changes})


def test_claims_are_collected_printed_and_asserted(capsys, monkeypatch):
    monkeypatch.setattr(core, "CLAIMS", [])
    claim()
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == ["claim", "source", "protocol", "expected", "measured", "verdict"]
    assert {line[:10].count(" ") > 0 and line[10] != " " for line in lines} == {True}
    claim(holds=np.bool_(True))
    claim(holds=torch.tensor(True))
    assert [c.verdict for c in core.CLAIMS] == ["holds"]  # a cell run twice is one claim
    claim(statement="t", holds="direction")
    claim(statement="u", holds=None, why="the figures carry no noise")
    assert [c.verdict for c in core.CLAIMS] == ["holds", "holds in direction", "does not hold here: the figures carry no noise"]
    refuses(lambda: claim(statement="v", holds=False), "claim fails: v (expected 1 px, measured 2 px)", AssertionError)
    assert len(core.CLAIMS) == 3


@pytest.mark.parametrize("changes, said", [(dict(holds=None), "why must explain"), (dict(holds=0.3), "holds must be"), (dict(source=" "), "source must say"), (dict(holds="yes"), "holds must be"),
                                           (dict(source=None), "source must say something, got None"), (dict(holds=torch.tensor([True, False])), "holds must be"),
                                           (dict(holds=np.array([True, False])), "holds must be")])
def test_claim_refuses(changes, said):
    refuses(lambda: claim(**changes), said)
