"""Several processes make the run that one makes; one that is told to end, dies or hangs takes the others along."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

import e5jax
from e5jax import distributed
from e5jax.config import DistributedConfig
from e5jax.errors import UserError
from e5jax.logbook import read_rows
from e5jax.watchdog import within
from launch.local import free_port


ROOT = Path(__file__).parents[1]
CONFIG = """
from tests.test_train import LoraConfig, tiny_config


def get_config():
    changes = dict(steps=20, eval_every=20, checkpoint_every=2, lora=LoraConfig(rank=2, alpha=4.0))
    changes |= {more}
    return tiny_config({workdir!r}, {cache!r}, **changes)
"""


@pytest.mark.parametrize(
    ("environment", "several"),
    [
        ({}, False),
        ({"SLURM_STEP_NUM_TASKS": "4"}, True),
        ({"SLURM_STEP_NUM_TASKS": "1", "SLURM_NTASKS": "4"}, False),  # the batch script itself, not a step
        ({"OMPI_COMM_WORLD_SIZE": "2"}, True),
        ({"TPU_WORKER_HOSTNAMES": "localhost"}, False),
        ({"TPU_WORKER_HOSTNAMES": "t1k-0,t1k-1"}, True),
        ({"E5JAX_DISTRIBUTED": "1"}, True),
    ],
)
def test_the_environment_tells_whether_there_are_several_processes(environment, several):
    assert distributed.launched(environment) is several


def test_half_an_address_is_refused():
    with pytest.raises(UserError, match="give all three, or none"):
        distributed.start(DistributedConfig(coordinator="127.0.0.1:1"))


def test_a_wait_that_takes_too_long_ends_the_process_and_says_where_it_was():
    program = "import time; from e5jax.watchdog import within\nwith within(0.2, 'step 7'): time.sleep(60)"
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "step 7 did not end within 0.2 s" in done.stderr and "time.sleep" not in done.stdout
    assert 'File "<string>", line 2' in done.stderr


def test_a_wait_for_what_all_agree_on_has_a_name_and_a_limit():
    program = (
        "import time; from e5jax import distributed\n"
        "distributed.LIMIT_S, distributed.several, distributed.is_first = 0.2, lambda: True, lambda: True\n"
        "distributed.multihost_utils.broadcast_one_to_all = lambda _: time.sleep(60)\n"
        "distributed.agreed(1, 'the others')"
    )
    line = [sys.executable, "-c", program]
    done = subprocess.run(line, cwd=ROOT, capture_output=True, text=True, check=False, timeout=50)
    assert done.returncode == 1 and "the others did not end within 0.2 s" in done.stderr


def test_a_wait_that_ends_in_time_leaves_nothing_behind():
    with within(0.2, "a short wait"):
        pass
    with within(None, "one without a limit"):
        time.sleep(0.4)


NO_EVAL = "dict(eval=())"  # which takes as long to compile as the step


def launch(folder, processes, devices, more="{}", words=(), environment=None):
    """Start a tiny run on so many processes -> the launcher."""
    path = folder / f"config_{processes}_{devices}.py"
    path.write_text(CONFIG.format(workdir=str(folder / "run"), cache=str(folder / "cache"), more=more))
    line = [
        sys.executable,
        "launch/local.py",
        "--processes",
        str(processes),
        "--devices",
        str(devices),
        "--grace",
        "30",
    ]
    line += ["--", "-m", "e5jax.train", "--config", str(path), "--distributed.heartbeat-s", "10", *words]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    quickly = {"XLA_FLAGS": "", "JAX_DISABLE_MOST_OPTIMIZATIONS": "1"}  # compiled in half the time
    return subprocess.Popen(line, cwd=ROOT, env={**os.environ, **quickly, **(environment or {})}, **pipes)


def finished(folder, processes, devices, **options):
    """Run to the end -> what was said."""
    started = launch(folder, processes, devices, **options)
    said, _ = started.communicate(timeout=300)
    assert started.returncode == 0, said
    return said


def rows(folder, key):
    found = [row for row in read_rows(folder / "run" / "metrics.jsonl") if key in row]
    return [row["step"] for row in found], np.array([row[key] for row in found])


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    """The run of one process with four devices."""
    folder = tmp_path_factory.mktemp("alone")
    finished(folder, 1, 4, more=NO_EVAL)
    return folder


def same(folder, alone, first, all_, keys=("loss", "tokens")):
    """Same steps and tokens; the first loss and all of them within these."""
    for key in keys:
        (steps, values), (expected_steps, expected) = rows(folder, key), rows(alone, key)
        assert steps == expected_steps
        np.testing.assert_allclose(values[0], expected[0], rtol=first, err_msg=key)
        np.testing.assert_allclose(values, expected, rtol=0 if key == "tokens" else all_, err_msg=key)


@pytest.mark.slow
def test_two_processes_make_the_run_that_one_makes_and_one_of_them_speaks(tmp_path):
    alone, two = tmp_path / "alone", tmp_path / "two"
    alone.mkdir()
    two.mkdir()
    finished(alone, 1, 4)
    said = finished(two, 2, 2)
    same(two, alone, 1e-6, 1e-6, ("loss", "tokens", "eval/ndcg@10"))
    assert "[0] | nDCG@10 |" in said and "[1] | nDCG@10 |" not in said
    stored = json.loads((two / "run" / "checkpoints" / "20" / "MANIFEST.json").read_text())
    assert stored["facts"]["step"] == 20
    vectors = [e5jax.Encoder.load(str(folder / "run")).encode(["one", "two"]) for folder in (two, alone)]
    np.testing.assert_allclose(*vectors, atol=1e-6)


@pytest.mark.faults
@pytest.mark.parametrize(
    ("processes", "devices", "mesh", "all_"),
    [(4, 1, "-1 1 1", 1e-6), (4, 1, "1 -1 1", 1e-4), (2, 1, "-1 1 1", 1e-4)],
    ids=["four", "four with the base split", "fewer devices"],
)
def test_other_numbers_of_processes_make_it_too(alone, tmp_path, processes, devices, mesh, all_):
    finished(tmp_path, processes, devices, more=NO_EVAL, words=("--mesh", *mesh.split()))
    same(tmp_path, alone, 1e-6, all_)


@pytest.mark.faults
@pytest.mark.parametrize(("processes", "devices"), [(2, 2), (1, 1), (1, 4), (4, 1)])
def test_a_run_of_two_processes_goes_on_with_another_number(alone, tmp_path, processes, devices):
    started = launch(tmp_path, 2, 2, more=NO_EVAL)
    until_saved(tmp_path, started, 2)
    for process in children(started).values():
        os.kill(process, signal.SIGKILL)
    started.communicate(timeout=120)
    assert len(rows(tmp_path, "loss")[0]) < 20
    said = finished(tmp_path, processes, devices, more=NO_EVAL)
    assert "going on after step" in said
    same(tmp_path, alone, 1e-6, 1e-6 if processes * devices == 4 else 1e-4)


def until_saved(folder, started, step):
    deadline = time.monotonic() + 240
    while not (folder / "run" / "checkpoints" / str(step) / "MANIFEST.json").exists():
        assert started.poll() is None and time.monotonic() < deadline, started.communicate()[0]
        time.sleep(0.05)


def children(started):
    """Process numbers of the run's processes, by which they are."""
    found = {}
    for entry in Path("/proc").iterdir():
        with contextlib.suppress(OSError, ValueError, IndexError):
            if entry.name.isdigit() and f"\nPPid:\t{started.pid}\n" in (entry / "status").read_text():
                words = (entry / "cmdline").read_text().split("\0")
                found[int(words[words.index("--distributed.process") + 1])] = int(entry.name)
    return found


LONG = "dict(eval=(), steps=4000)"


@pytest.mark.faults
def test_sigterm_to_one_of_two_ends_both_saved_within_25_seconds(tmp_path):
    started = launch(tmp_path, 2, 1, more=LONG)
    until_saved(tmp_path, started, 2)
    start = time.monotonic()
    os.kill(children(started)[1], signal.SIGTERM)
    said, _ = started.communicate(timeout=60)
    assert time.monotonic() - start < 25, said
    assert said.count("saved; the same command goes on") == 2
    assert started.returncode == 128 + signal.SIGTERM
    steps = sorted(int(p.name) for p in (tmp_path / "run" / "checkpoints").iterdir() if p.name.isdigit())
    assert f"stopped after step {steps[-1]}" in said
    assert (tmp_path / "run" / "checkpoints" / str(steps[-1]) / "MANIFEST.json").exists()


@pytest.mark.faults
@pytest.mark.parametrize("which", [0, 1])
def test_when_one_dies_the_other_ends_within_the_heartbeat_limit(tmp_path, which):
    started = launch(tmp_path, 2, 1, more=LONG)
    until_saved(tmp_path, started, 2)
    start = time.monotonic()
    os.kill(children(started)[which], signal.SIGKILL)
    said, _ = started.communicate(timeout=60)
    assert started.returncode != 0 and time.monotonic() - start < 28, said  # before the launcher's grace of 30 ends


@pytest.mark.faults
def test_one_that_fails_while_the_other_waits_for_it_takes_it_along(tmp_path):
    (tmp_path / "wandb.py").write_text("def init(**_): raise ConnectionError('no one at home')\n")  # asked by process 0
    more, environment = "dict(eval=(), wandb_project='x')", {"PYTHONPATH": str(tmp_path)}
    started = launch(tmp_path, 2, 1, more=more, environment=environment)
    said, _ = started.communicate(timeout=100)  # by itself JAX waits 300 s
    assert "[0] ConnectionError: no one at home" in said and started.returncode != 0


LATE = """
import sys, time
from e5jax import distributed
from e5jax.config import DistributedConfig
coordinator, process = sys.argv[1:]
distributed.start(DistributedConfig(coordinator=coordinator, processes=2, process=int(process)))
time.sleep(33 * int(process))
assert distributed.agreed(int(process), "the late one") == 0
"""


@pytest.mark.faults
def test_one_may_come_late():
    """Gloo's own limit is 30, for the first collective alone."""
    port = free_port()
    line = [sys.executable, "-c", LATE, f"127.0.0.1:{port}"]
    environment = {**os.environ, "XLA_FLAGS": ""}
    both = [subprocess.Popen([*line, str(process)], cwd=ROOT, env=environment) for process in range(2)]
    assert [process.wait(timeout=100) for process in both] == [0, 0]


@pytest.mark.faults
def test_when_one_hangs_the_other_says_in_which_step_and_ends(tmp_path):
    started = launch(
        tmp_path, 2, 1, more=LONG, words=("--distributed.step-limit-s", "8", "--distributed.heartbeat-s", "600")
    )
    until_saved(tmp_path, started, 2)
    hung = children(started)[1]
    start = time.monotonic()
    os.kill(hung, signal.SIGSTOP)
    try:
        said, _ = started.communicate(timeout=60)
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.kill(hung, signal.SIGKILL)
    assert started.returncode == 1, said
    assert "did not end within 8 s; where every thread is:" in said
    assert time.monotonic() - start < 8 + 35
