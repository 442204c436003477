"""Checkpoints one can trust: a step is used only while every byte of it is what was written."""

import contextlib
import json
import os
import random
import shutil
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from e5jax import checkpoint, manifest
from e5jax.errors import FailedError, UserError


SHAPE = (64, 48)


def state_of(step, dtype=jnp.float32, shape=SHAPE):
    """-> (params, opt_state) that are another at every step."""
    values = jax.random.normal(jax.random.key(step), shape).astype(dtype)
    return nnx.State({"layer": {"a": nnx.Param(values)}}), {"count": jnp.int32(step), "mu": values * 2}


def opened(workdir):
    return contextlib.closing(checkpoint.Checkpoints(workdir, {"data": "abc"}))


def saved(workdir, *steps):
    with opened(workdir) as checkpoints:
        for step in steps:
            checkpoints.save(step, *state_of(step))
    return workdir


def restored(workdir):
    """-> (the step used, whether its values are those that were saved)."""
    with opened(workdir) as checkpoints:
        step = checkpoints.latest()
        params, opt_state = checkpoints.restore(step, *map(checkpoint.abstract, state_of(0)))
    return step, all(map(np.array_equal, jax.tree.leaves((params, opt_state)), jax.tree.leaves(state_of(step))))


@pytest.fixture(scope="module")
def two_steps(tmp_path_factory):
    return saved(tmp_path_factory.mktemp("run"), 1, 2)


@pytest.fixture
def run(two_steps, tmp_path):
    """A copy that a test may damage."""
    shutil.copytree(two_steps, tmp_path / "run")
    return tmp_path / "run"


def names(workdir):
    return sorted(path.name for path in (workdir / "checkpoints").iterdir())


def test_what_was_saved_comes_back_bit_for_bit(run):
    assert restored(run) == (2, True)


def test_a_manifest_lists_every_file_and_says_what_the_step_belongs_to(two_steps):
    folder = two_steps / "checkpoints" / "2"
    told = json.loads((folder / "MANIFEST.json").read_text())
    there = {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}
    assert set(told["files"]) == there - {"MANIFEST.json"}
    assert told["facts"]["data"] == "abc"
    assert told["facts"]["step"] == 2
    assert told["facts"]["tree"]["params/layer/a"] == "float32[64,48]"
    assert set(told["facts"]["versions"]) == {"e5jax", "jax", "orbax-checkpoint"}


def test_two_steps_stay_and_older_ones_go(tmp_path):
    assert names(saved(tmp_path, 1, 2, 3, 4)) == ["3", "4"]


def test_a_flipped_bit_in_any_file_is_found_and_the_step_before_is_used(two_steps):
    files = sorted(path for path in (two_steps / "checkpoints" / "2").rglob("*") if path.is_file())
    rng = random.Random(0)
    for path in [path for path in files if path.stat().st_size]:
        content = bytearray(path.read_bytes())
        where = rng.randrange(len(content))
        content[where] ^= 1 << rng.randrange(8)
        try:
            before = path.read_bytes()
            path.write_bytes(content)
            assert manifest.problems(two_steps / "checkpoints" / "2"), path
            if "params" in path.parts or path.name == "MANIFEST.json":  # readers read no more
                assert checkpoint.newest_whole(two_steps) == two_steps / "checkpoints" / "1", path
        finally:
            path.write_bytes(before)
    assert manifest.problems(two_steps / "checkpoints" / "2") == []


def damage_truncate(step_dir):
    path = max((path for path in step_dir.rglob("*") if path.is_file()), key=lambda path: path.stat().st_size)
    os.truncate(path, path.stat().st_size - 1)
    return "bytes instead of"


def damage_missing(step_dir):
    next(path for path in (step_dir / "params").rglob("*") if path.is_file()).unlink()
    return "is missing"


def damage_extra(step_dir):
    (step_dir / "params" / "more").write_text("x")
    return "more does not belong to it"


def damage_unfinished(step_dir):
    (step_dir / "MANIFEST.json").unlink()
    return "never finished"


def damage_manifest(step_dir):
    path = step_dir / "MANIFEST.json"
    path.write_text(path.read_text().replace('"step": 2', '"step": 3'))
    return "MANIFEST.json was changed"


def damage_garbled(step_dir):
    (step_dir / "MANIFEST.json").write_bytes(b"\xff{")
    return "MANIFEST.json cannot be read"


@pytest.mark.parametrize(
    "damage",
    [damage_truncate, damage_missing, damage_extra, damage_unfinished, damage_manifest, damage_garbled],
)
def test_a_damaged_step_is_set_aside_by_name_and_the_step_before_is_used(run, damage, caplog):
    why = damage(run / "checkpoints" / "2")
    assert restored(run) == (1, True)
    assert "step 2 is not used" in caplog.text
    assert why in caplog.text
    aside = [name for name in names(run) if name.startswith("set-aside-2")]
    assert len(aside) == 1, "nothing is deleted"
    assert names(saved(run, 2)) == sorted(["1", "2", *aside]), "the step can be saved again"
    assert restored(run) == (2, True)


def test_an_empty_folder_with_a_number_is_no_step(run):
    (run / "checkpoints" / "9").mkdir()
    assert checkpoint.find_step(run) == (run, run / "checkpoints" / "2")
    assert restored(run) == (2, True)


def test_reading_a_run_moves_nothing(run):
    damage_missing(run / "checkpoints" / "2")
    assert checkpoint.find_step(run) == (run, run / "checkpoints" / "1")
    assert names(run) == ["1", "2"]


def test_a_step_asked_for_by_name_must_be_whole(run):
    damage_missing(run / "checkpoints" / "2")
    with pytest.raises(UserError, match=r"is not whole.*is missing"):
        checkpoint.find_step(run / "checkpoints" / "2")


def test_an_old_step_goes_only_after_the_new_one_was_read_back(run, monkeypatch):
    monkeypatch.setattr(manifest, "problems", lambda folder, within="": ["x was changed"] if folder.name == "3" else [])
    with pytest.raises(FailedError, match="step 3 could not be saved: read back, x was changed; step 2 is whole"):
        saved(run, 3)
    assert names(run) == ["1", "2", "3"]


def test_a_write_that_fails_in_the_background_is_an_error_of_the_next_save(run, monkeypatch):
    def full(folder, facts):
        raise OSError(28, "No space left on device")

    with opened(run) as checkpoints:
        monkeypatch.setattr(manifest, "write", full)
        checkpoints.save(3, *state_of(3))
        with pytest.raises(FailedError, match=r"step 3 could not be saved.*No space left.*step 2 is whole"):
            checkpoints.save(4, *state_of(4))
    assert restored(run) == (2, True)


def test_a_write_that_fails_last_is_an_error_of_the_end(run, monkeypatch):
    with pytest.raises(FailedError, match="step 3"), opened(run) as checkpoints:
        monkeypatch.setattr(manifest, "write", lambda folder, facts: 1 / 0)
        checkpoints.save(3, *state_of(3))


@pytest.mark.parametrize(
    ("dtype", "shape", "said"),
    [
        (jnp.bfloat16, SHAPE, r"is float32\[64,48\] there and bfloat16\[64,48\]"),
        (jnp.float32, (64, 47), r"float32\[64,47\]"),
    ],
)
def test_a_step_of_another_dtype_or_shape_is_refused(run, dtype, shape, said):
    like = map(checkpoint.abstract, state_of(0, dtype, shape))
    with opened(run) as checkpoints, pytest.raises(UserError, match=said):
        checkpoints.restore(2, *like)


def command(*words):
    return subprocess.run(
        [sys.executable, "-m", "e5jax.checkpoint", *map(str, words)],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "JAX_PLATFORMS": "cpu"},
    )


def test_verify_prints_a_line_a_step_and_fails_when_one_is_not_whole(run):
    done = command("verify", run)
    assert done.returncode == 0, done.stderr
    assert [json.loads(line)["whole"] for line in done.stdout.splitlines()] == [True, True]
    damage_missing(run / "checkpoints" / "1")
    done = command("verify", run)
    assert done.returncode == 1
    assert [json.loads(line)["whole"] for line in done.stdout.splitlines()] == [False, True]
    assert "not whole: 1" in done.stderr


def test_list_counts_files_and_bytes_and_a_folder_without_steps_is_a_usage_error(run, tmp_path, capsys):
    assert checkpoint.main(["list", str(run)]) == 0
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [line["step"] for line in lines] == [1, 2]
    assert all(line["bytes"] > 2 * 4 * np.prod(SHAPE) for line in lines)
    assert checkpoint.main(["verify", str(Path(tmp_path) / "nothing")]) == 2


@pytest.mark.faults
def test_a_hundred_flipped_bits_in_random_files_are_all_found(two_steps):
    folder = two_steps / "checkpoints" / "2"
    files = sorted(path for path in folder.rglob("*") if path.is_file() and path.stat().st_size)
    rng = random.Random(7)
    found = 0
    for _ in range(100):
        path = rng.choices(files, [file.stat().st_size for file in files])[0]
        before = path.read_bytes()
        content = bytearray(before)
        content[rng.randrange(len(content))] ^= 1 << rng.randrange(8)
        path.write_bytes(content)
        found += bool(manifest.problems(folder))
        path.write_bytes(before)
    print(f"{found} of 100 found")
    assert found == 100


class Unreachable:
    """A folder of a bucket that the network does not lead to now."""

    def __truediv__(self, _):
        return self

    def __str__(self):
        return "gs://bucket/runs/run/checkpoints/6"

    def read_bytes(self):
        raise ConnectionResetError("Connection reset by peer")


def test_a_step_in_a_bucket_that_cannot_be_reached_is_not_taken_for_a_damaged_one():
    with pytest.raises(FailedError, match="cannot be read now: Connection reset"):
        manifest.problems(Unreachable())
