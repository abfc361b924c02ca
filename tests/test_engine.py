"""The engine where a notebook cannot go: several processes, SIGKILL in the middle of a step and of a write."""

import contextlib
import os
import platform
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.testing import assert_close
from torch.utils.data import DataLoader, IterableDataset, TensorDataset

from posetutor.core import Preset, RunRecord, refuses
from posetutor.train.engine import Ema, SampleStream, cosine_factor, fit, load_state, load_weights, make_accelerator, progress_bar, save_weights

sys.path.insert(0, str(Path(__file__).parent))
from engine_job import job, network  # noqa: E402

JOB = Path(__file__).with_name("engine_job.py")
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1", "POSETUTOR_DEVICE": "cpu"}
POSIX = pytest.mark.skipif(os.name != "posix", reason="SIGKILL is a POSIX signal")


def command(folder, **options):
    return [sys.executable, str(JOB), str(folder), *(f"{key}={value}" for key, value in options.items())]


def launch(folder, **options):
    """Two CPU processes with gloo. (`accelerate launch --cpu --num_processes 2` starts only one unless MPI is configured.)"""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    start = [sys.executable, "-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", "2", "--num_machines", "1", "--mixed_precision", "no", "--dynamo_backend", "no"]
    environment = ENVIRONMENT | dict(ACCELERATE_USE_CPU="true")
    return subprocess.run([*start, "--main_process_port", str(port), *command(folder, **options)[1:]], env=environment, capture_output=True, text=True, timeout=240)


@contextlib.contextmanager
def one_thread():
    """As many threads as the subprocesses have: sums of floats depend on how they are split."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def same_weights(one, other):
    first, second = load_weights(Path(one) / "weights.safetensors")[0], load_weights(Path(other) / "weights.safetensors")[0]
    return all(torch.equal(first[name], second[name]) for name in first) and first.keys() == second.keys()


@pytest.mark.parametrize("options", [dict(), dict(weighted=1, accumulate=2)], ids=["mean", "weighted, accumulated"])
def test_two_processes_equal_one(tmp_path, options):
    done = launch(tmp_path / "two", batch=4, **options)
    assert done.returncode == 0, done.stderr[-2000:]
    job(tmp_path / "one", batch=8, **options)
    one, two = (RunRecord.load(tmp_path / name / "record.json") for name in ("one", "two"))
    assert len(one.curve) == 24 and two.preset["batch_size"] == 4
    assert [entry[0] for entry in one.curve] == [entry[0] for entry in two.curve]
    assert_close(torch.tensor(one.curve), torch.tensor(two.curve), atol=1e-4, rtol=0)
    for name, value in load_weights(tmp_path / "one/weights.safetensors")[0].items():
        assert_close(load_weights(tmp_path / "two/weights.safetensors")[0][name], value, atol=1e-4, rtol=0)


def test_nan_in_one_process_stops_both(tmp_path):
    done = launch(tmp_path, batch=4, bad_item=7)
    assert done.returncode != 0
    assert "its batch is saved in" in done.stderr and "the loss is nan at step" in done.stderr
    assert list(tmp_path.glob("nan_batch*.safetensors"))


@POSIX
@pytest.mark.parametrize("kill", [dict(die_at=1), dict(die_writing=1), dict(die_writing=4), dict(die_at=31, accumulate=2, dropout=0.3)], ids=str)
def test_killed_run_ends_bit_identical(tmp_path, kill):
    options = {key: value for key, value in kill.items() if not key.startswith("die")}
    died = subprocess.run(command(tmp_path / "killed", **kill), env=ENVIRONMENT, capture_output=True, text=True, timeout=120)
    assert died.returncode == -signal.SIGKILL
    assert not (tmp_path / "killed/weights.safetensors").exists()
    with one_thread():  # in another process than the first life
        job(tmp_path / "killed", **options)
        job(tmp_path / "whole", **options)
    assert same_weights(tmp_path / "killed", tmp_path / "whole")
    killed, whole = (RunRecord.load(tmp_path / name / "record.json") for name in ("killed", "whole"))
    assert killed.curve == whole.curve
    assert not list((tmp_path / "killed").glob(".tmp-*")), "a half-written file was left behind"


@POSIX
def test_killed_at_random_moments(tmp_path):
    """Kill from outside, again and again, while almost all the time goes into writing."""
    options, kills = dict(steps=30, save_every=1, wide=3000), 0
    for wait in torch.rand(3, generator=torch.Generator().manual_seed(0)).mul(0.4).tolist():
        process = subprocess.Popen(command(tmp_path / "killed", **options), env=ENVIRONMENT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        before = seen = step_of(tmp_path / "killed")
        while process.poll() is None and seen == before:  # let it make some progress first
            time.sleep(0.01)
            seen = step_of(tmp_path / "killed")
        time.sleep(wait)
        process.kill()
        kills += process.wait() == -signal.SIGKILL
    assert kills >= 1
    with one_thread():
        job(tmp_path / "killed", **options)
        job(tmp_path / "whole", **options)
    assert same_weights(tmp_path / "killed", tmp_path / "whole")


def step_of(folder):
    path = folder / "checkpoint.safetensors"
    return load_weights(path)[1]["step"] if path.exists() else -1


def test_workers_give_the_same_run(tmp_path):
    plain, workers = job(tmp_path / "plain"), job(tmp_path / "workers", workers=2)
    assert plain.curve == workers.curve and same_weights(tmp_path / "plain", tmp_path / "workers")


def test_extreme_bad_inputs(tmp_path):
    preset, data = Preset("bad", steps=3, batch_size=2), TensorDataset(torch.randn(4, 6), torch.randn(4, 2))
    quiet = dict(progress=False)

    def loss(model, batch):
        return (model(batch[0]) - batch[1]).square().mean()

    class Endless(IterableDataset):
        def __iter__(self):
            return iter(())

    refuses(lambda: fit(network(), loss, TensorDataset(torch.zeros(0, 6)), preset, **quiet), contains="at least one item")
    refuses(lambda: fit(network(), loss, Endless(), preset, **quiet), contains="len()")
    refuses(lambda: fit(network(), loss, DataLoader(data, batch_size=3), preset, **quiet), contains="batch size 2")
    refuses(lambda: fit(network(), lambda m, b: m(b[0]), data, preset, **quiet), contains="scalar")
    refuses(lambda: fit(network(), lambda m, b: 1.0, data, preset, **quiet), contains="float")
    refuses(lambda: fit(network().requires_grad_(False), loss, data, preset, **quiet), contains="require a gradient")
    refuses(lambda: fit(network(), loss, data, preset, precision="fp8", **quiet), contains="'bf16'")
    refuses(lambda: fit(network(), loss, data, dict(steps=3), **quiet), contains="Preset")
    refuses(lambda: fit(network(), loss, data, preset, save_every=0, **quiet), contains="save_every must be positive")
    refuses(lambda: preset.replace(steps=0), contains="steps")
    (tmp_path / "file").write_text("x")
    refuses(lambda: fit(network(), loss, data, preset, folder=tmp_path / "file", **quiet), contains="folder must be")


def test_another_runs_folder_is_refused(tmp_path):
    job(tmp_path, steps=4)
    refuses(lambda: job(tmp_path, steps=5), contains="steps was 4 and is 5")
    refuses(lambda: job(tmp_path, steps=4, wide=8), contains="0.weight is (16, 6) there and (8, 6) here")
    broken = tmp_path / "checkpoint.safetensors"
    broken.write_bytes(broken.read_bytes()[:100])
    refuses(lambda: job(tmp_path, steps=4), contains="not a complete safetensors file")


def test_gradient_that_explodes_names_its_own_batch(tmp_path):
    data = TensorDataset(torch.arange(8.0)[:, None])

    def loss(model, batch):  # sqrt has an infinite slope at 0: the loss is finite, its gradient is not
        return (model.weight.sum() * 0 * batch[0]).sqrt().sum()

    refuses(lambda: fit(nn.Linear(1, 1), loss, data, Preset("g", steps=3, batch_size=2, accumulate=2), folder=tmp_path, progress=False), contains="gradient is nan at step 1", error=FloatingPointError)
    saved, facts = load_weights(tmp_path / "nan_batch.safetensors")
    assert set(saved) == {"batch.0.0", "batch.1.0"} and facts["what"] == "gradient" and len(facts["samples"]) == 4


def test_modes_forward_and_random_state_come_back():
    model = nn.Sequential(nn.Linear(6, 4), nn.BatchNorm1d(4), nn.Dropout(), nn.Linear(4, 2))
    model.eval()
    model[1].train()
    torch.manual_seed(11)
    expected, before = torch.Generator().manual_seed(11), set(vars(model))
    data = TensorDataset(torch.randn(8, 6, generator=torch.Generator().manual_seed(0)), torch.zeros(8, 2))
    for precision in ("bf16", "no"):
        fit(model, lambda m, b: (m(b[0]) - b[1]).square().mean(), data, Preset("m", steps=2, batch_size=4), precision=precision, progress=False)
        assert [m.training for m in model.modules()] == [False, False, True, False, False]
        assert set(vars(model)) == before
    assert torch.equal(torch.rand(3), torch.rand(3, generator=expected))


def test_forward_in_bf16_loss_in_float32():
    seen = {}

    def loss(model, batch):
        output = model(batch[0])
        seen.update(output=output.dtype, inside=model[1].weight.dtype, grid=(batch[0] @ batch[0].T).dtype)
        return output.square().mean()

    inner = []
    model = nn.Sequential(nn.Linear(6, 4), nn.Linear(4, 2))
    model[0].register_forward_hook(lambda module, args, output: inner.append(output.dtype))
    fit(model, loss, TensorDataset(torch.randn(8, 6)), Preset("b", steps=1, batch_size=4), precision="bf16", progress=False)
    assert inner == [torch.bfloat16] and seen == dict(output=torch.float32, inside=torch.float32, grid=torch.float32)


def test_a_user_accelerator_must_split_batches():
    from accelerate import Accelerator

    make_accelerator("no")
    data = TensorDataset(torch.randn(4, 6))
    refuses(lambda: fit(network(), lambda m, b: m(b[0]).mean(), data, Preset("a", steps=1), accelerator=Accelerator(cpu=True), progress=False), contains="split")


def test_weights_survive_tied_layers_and_name_layers(tmp_path):
    model = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3))
    model[1].weight = model[0].weight
    save_weights(model, tmp_path / "tied.safetensors", dict(note="tied", size=[4, 2]))
    state, facts = load_weights(tmp_path / "tied.safetensors")
    assert facts == dict(note="tied", size=[4, 2]) and torch.equal(state["0.weight"], state["1.weight"])
    refuses(lambda: load_state(nn.Linear(3, 3), state, source="tied.safetensors"), contains="tied.safetensors does not fit Linear: weight (3, 3) is missing there")
    refuses(lambda: load_weights(tmp_path / "none.safetensors"), error=FileNotFoundError)
    refuses(lambda: save_weights(model, tmp_path / "x.safetensors", dict(a=torch.zeros(1))), contains="metadata")
    (tmp_path / "old.pth").write_bytes(b"\x80\x02}q\x00.")
    refuses(lambda: load_weights(tmp_path / "old.pth"), contains="safetensors")


def test_ema_copies_counters_and_gives_weights_back():
    model = nn.BatchNorm1d(2)
    ema = Ema(model, 0.9)
    model(torch.randn(4, 2))
    own = {name: value.clone() for name, value in model.state_dict().items()}
    ema.update(model)
    assert ema.average["num_batches_tracked"] == 1
    with ema.applied(model):
        assert not torch.equal(model.running_mean, own["running_mean"])
    assert all(torch.equal(own[name], value) for name, value in model.state_dict().items())


def test_progress_is_short_in_a_log(capsys):
    with progress_bar(1000, "long") as bar:
        for _ in range(1000):
            bar.update(1)
    assert capsys.readouterr().err.replace("\r", "\n").strip().count("\n") < 20


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc's malloc is told to keep memory")
def test_a_step_fetches_no_new_memory():
    """A run on the CPU keeps what it frees: a later step touches no page for the first time."""
    code = """
import resource, sys, torch
from torch import nn
from torch.utils.data import TensorDataset
from posetutor.core import Preset
from posetutor.train.engine import fit
torch.set_num_threads(1)
faults = []
def step(model, batch):
    faults.append(resource.getrusage(resource.RUSAGE_SELF).ru_minflt)
    held = [torch.ones(3_000_000) for _ in range(4)]  # 48 MB, freed at once
    return model(batch[0]).square().mean() + 0 * held[0][0]
fit(nn.Linear(2, 1), step, TensorDataset(torch.ones(8, 2)), Preset("TEST", steps=8, batch_size=4, learning_rate=1e-3, warmup_steps=0), progress=False)
print(min(later - before for before, later in zip(faults, faults[1:])))
"""
    done = subprocess.run([sys.executable, "-c", code], env=ENVIRONMENT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) < 1000, f"every step touched {done.stdout.strip()} new pages or more; 48 MB are 11 719"


def test_schedules_and_streams_outside_the_run_are_refused():
    refuses(lambda: cosine_factor(-1, 10, 2), contains="step must be 0 or more")
    refuses(lambda: SampleStream(10, 0, 2), contains="batch must be at least 1")
    refuses(lambda: SampleStream(10, 4, 2, start=3), contains="start between 0 and number = 2, got batch 4 and start 3")
    refuses(lambda: SampleStream(10, 4, 2, start=-1), contains="start between 0 and number = 2")
    assert len(SampleStream(10, 4, 2, start=2)) == 0


def test_a_negative_weight_stops_the_run():
    data, model = TensorDataset(torch.ones(8, 2)), nn.Linear(2, 1)
    refuses(lambda: fit(model, lambda m, batch: (m(batch[0]).sum(), torch.tensor(-1.0)), data, Preset("TEST", steps=2, batch_size=4), progress=False), contains="weight >= 0, got -1 at step 1")
