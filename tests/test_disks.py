"""A disk that is full, or may not be written: a sentence, an exit code, and the steps that were saved before."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.test_train import losses


ROOT = Path(__file__).parents[1]
TRAIN = """
import os, signal, sys
from e5jax import command, train
from tests.test_train import LoraConfig, tiny_config
workdir, cache, what = sys.argv[1:]
def step(self, row):
    if row["step"] == 5 and what == "fill":
        with open(os.path.dirname(workdir) + "/filler", "wb", buffering=0) as file:
            try:
                while file.write(bytes(4096)):
                    pass
            except OSError:
                pass
    if row["step"] == 5 and what == "lock":
        os.kill(os.getpid(), signal.SIGKILL)
train.loop.Progress.step = step
changes = dict(steps=8, eval=(), lora=LoraConfig(rank=2, alpha=4.0), checkpoint_every=2)
sys.exit(command.exit_code(lambda: train.train(tiny_config(workdir, cache, **changes))))
"""
IN_A_SMALL_DISK = """
mount -t tmpfs -o size=32m tmpfs "$1" || exit 77
run() { "$PYTHON" -c "$TRAIN" "$1/run" "$2" "$3"; echo "status $?"; }
run "$1" "$2" "$3" 2>&1
if [ "$3" = lock ]; then mount -o remount,ro "$1"; fi
"$PYTHON" -m e5jax.checkpoint verify "$1/run"
run "$1" "$2" none 2>&1
mount -o remount,rw "$1"; rm -f "$1/filler"
run "$1" "$2" none 2>&1
cp -r "$1/run" "$2-copy"
"""


@pytest.mark.faults
@pytest.mark.parametrize(
    ("what", "why", "statuses"), [("fill", "No space left", [1, 1, 0]), ("lock", "Read-only file system", [137, 1, 0])]
)
def test_what_was_saved_before_the_disk_went_is_whole_and_the_run_goes_on(what, why, statuses, tmp_path):
    disk, cache = tmp_path / "disk", tmp_path / "cache"
    disk.mkdir()
    environment = {**os.environ, "PYTHON": sys.executable, "TRAIN": TRAIN, "JAX_PLATFORMS": "cpu", "XLA_FLAGS": ""}
    line = ["unshare", "--map-root-user", "--mount", "bash", "-c", IN_A_SMALL_DISK, "bash", str(disk), str(cache), what]
    done = subprocess.run(line, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300, check=False)
    if done.returncode == 77 or "unshare" in done.stderr:
        pytest.skip(f"no file system can be mounted here: {done.stderr}")
    said = done.stdout.splitlines()
    assert [line for line in said if line.startswith("status")] == [f"status {n}" for n in statuses], done.stdout
    sentences = [line for line in said if line.startswith("failed: ")]
    assert len(sentences) == statuses.count(1) and all(why in line for line in sentences), done.stdout
    steps = [json.loads(line) for line in said if line.startswith('{"step"')]
    whole = max(step["step"] for step in steps if step["whole"])
    assert any(f"going on after step {whole}" in line for line in said)
    alone = subprocess.run(
        [sys.executable, "-c", TRAIN, tmp_path / "run", cache, "none"],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        check=False,
    )
    assert alone.returncode == 0 and losses(f"{cache}-copy") == losses(tmp_path / "run")
