"""Thirty kills at random moments, ten of them inside a save: the run that comes out is the undisturbed one."""

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

import e5jax
from e5jax.logbook import read_rows


ROOT = Path(__file__).parents[1]
STEPS, KILLS = 120, 30
CHILD = """
import sys
from e5jax import train
from tests.test_train import ONE_LAYER, LoraConfig, tiny_config
changes = dict(steps={steps}, eval=(), checkpoint_every=2, model=ONE_LAYER, lora=LoraConfig(rank=2, alpha=4.0))
train.train(tiny_config(sys.argv[1], sys.argv[2], **changes))
"""


def start(workdir, cache):
    environment = {**os.environ, "JAX_PLATFORMS": "cpu", "XLA_FLAGS": "", "JAX_DISABLE_MOST_OPTIMIZATIONS": "1"}
    line = [sys.executable, "-c", CHILD.format(steps=STEPS), str(workdir), str(cache)]
    return subprocess.Popen(line, cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)


def end(child):
    said, _ = child.communicate(timeout=300)
    assert child.returncode == 0, said.decode()


def last_step(workdir):
    return max((row["step"] for row in read_rows(workdir / "metrics.jsonl")), default=0)


def in_a_save(workdir):
    """Whether a step is being written: its folder is there, under its name or another, and not its manifest."""
    folders = [path for path in (workdir / "checkpoints").glob("*") if path.name.partition(".")[0].isdigit()]
    return any(not (path / "MANIFEST.json").exists() for path in folders)


def wait_for(condition, child):
    deadline = time.monotonic() + 240
    while not condition():
        assert child.poll() is None and time.monotonic() < deadline, child.communicate()[0].decode()
        time.sleep(0.001)


@pytest.mark.faults
def test_a_run_killed_thirty_times_is_bit_for_bit_the_run_that_was_not(tmp_path, capsys):
    rng, cache = random.Random(0), tmp_path / "cache"
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    end(start(whole, cache))
    inside = 0
    for kill in range(KILLS):
        before = last_step(killed)
        child = start(killed, cache)
        wait_for(lambda before=before: last_step(killed) > before, child)
        time.sleep(rng.uniform(0, 0.05))
        if kill % 3 == 0:
            wait_for(lambda: in_a_save(killed), child)
        assert child.poll() is None, "the run ended before its last kill: raise STEPS"
        child.send_signal(signal.SIGKILL)
        child.wait()
        inside += in_a_save(killed)
    reached = last_step(killed)
    end(start(killed, cache))
    with capsys.disabled():
        print(f"\n{KILLS} kills up to step {reached} of {STEPS}, {inside} of them inside a save")
    assert inside >= KILLS // 3
    losses = [{row["step"]: row["loss"] for row in read_rows(path / "metrics.jsonl")} for path in (whole, killed)]
    assert losses[0] == losses[1] and list(losses[1]) == list(range(1, STEPS + 1))
    vectors = [e5jax.Encoder.load(str(path)).encode(["one", "two"]) for path in (whole, killed)]
    np.testing.assert_array_equal(*vectors)
