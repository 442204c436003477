"""The launch scripts say what they will do, and do it: gcloud and srun are stand-ins that record their calls."""

import json
import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest


LAUNCH = Path(__file__).parents[1] / "launch"
TRAIN = ["--config", "configs/e5_mistral_7b.py", "--workdir", "/shared/a run"]
RUN = ["--name", "pod", "--zone", "z", "--", *TRAIN]
QUEUED = ["--name", "pod", "--zone", "z", "--type", "v5e-256", "--runtime", "r", "--spot", "--", *TRAIN]
STAND_IN = """#!{python}
import json, os, sys
from pathlib import Path
folder = Path(os.environ["STAND_IN"])
name, words = Path(sys.argv[0]).name, sys.argv[1:]
with (folder / "calls").open("a") as calls:
    calls.write(json.dumps([name, *words]) + "\\n")
key = "describe" if "describe" in words else "train" if any("e5jax.train" in word for word in words) else ""
script = folder / key if key else None
if script and script.exists():
    first, *rest = script.read_text().splitlines()
    script.write_text("\\n".join(rest or [first]))
    if key == "train":
        sys.exit(int(first))
    if first == "ABSENT":
        sys.exit(1)
    print(first)
"""


@pytest.fixture
def ran(tmp_path):
    """`ran(script, words, **answers)` -> (exit status, output, calls); an answer is the lines a kind of call gives."""
    for name in ("gcloud", "srun"):
        path = tmp_path / "bin" / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(STAND_IN.format(python=sys.executable))
        path.chmod(path.stat().st_mode | stat.S_IXUSR)

    def run(script, words, **answers):
        for kind, lines in answers.items():
            (tmp_path / kind).write_text("\n".join(map(str, lines)))
        environment = {
            **os.environ,
            "PATH": f"{tmp_path / 'bin'}:{os.environ['PATH']}",
            "STAND_IN": str(tmp_path),
            "POLL_SECONDS": "0.01",
        }
        line = ["bash", str(LAUNCH / script), *words]
        done = subprocess.run(line, env=environment, capture_output=True, text=True, timeout=60, check=False)
        calls = tmp_path / "calls"
        found = [json.loads(call) for call in calls.read_text().splitlines()] if calls.exists() else []
        return done.returncode, done.stdout + done.stderr, found

    return run


def verbs(calls):
    return [next(word for word in call if word in ("create", "describe", "delete", "ssh", "scp")) for call in calls]


def test_a_pod_gets_the_checkout_and_runs_the_same_command_on_every_worker(ran):
    status, _, calls = ran("tpu_run.sh", RUN)
    assert status == 0 and verbs(calls) == ["scp", "ssh", "ssh"]
    assert all("--worker=all" in call and call[call.index("--zone") + 1] == "z" for call in calls)
    assert "pip install" in calls[1][-1]
    command = "python -m e5jax.train --config configs/e5_mistral_7b.py --workdir /shared/a\\ run "
    assert "E5JAX_DISTRIBUTED=1" in calls[2][-1] and calls[2][-1].endswith(command)


def test_training_s_status_is_the_script_s(ran):
    assert ran("tpu_run.sh", RUN, train=[2])[0] == 2


def test_a_queued_resource_is_made_waited_for_used_and_deleted(ran):
    status, said, calls = ran(
        "tpu_queued_resource.sh", QUEUED, describe=["ABSENT", "PROVISIONING", "ACTIVE"], train=[0]
    )
    assert status == 0, said
    assert verbs(calls) == ["describe", "create", "describe", "describe", "scp", "ssh", "ssh", "delete"]
    assert {"--spot", "v5e-256"} <= set(calls[1])


def test_one_that_was_taken_away_is_made_again(ran):
    states = ["ACTIVE", "SUSPENDED", "SUSPENDED", "ABSENT", "ACTIVE"]
    status, said, calls = ran("tpu_queued_resource.sh", QUEUED, describe=states, train=[255, 0])
    assert status == 0, said
    assert verbs(calls).count("create") == 1 and verbs(calls).count("delete") == 2
    assert verbs(calls)[-1] == "delete"


def test_a_failure_that_is_no_preemption_stops_and_leaves_the_tpu(ran):
    status, said, calls = ran("tpu_queued_resource.sh", QUEUED, describe=["ACTIVE"], train=[1])
    assert status == 1 and "still there" in said and "delete" not in verbs(calls)


def test_slurm_runs_one_command_on_all_nodes(ran):
    status, _, calls = ran("slurm.sbatch", TRAIN)
    assert status == 0
    assert calls == [["srun", "--kill-on-bad-exit=1", ".venv/bin/python", "-m", "e5jax.train", *TRAIN]]


@pytest.mark.parametrize(
    ("script", "words"),
    [
        ("tpu_run.sh", ["--dry-run", *RUN]),
        ("tpu_queued_resource.sh", ["--dry-run", *QUEUED]),
        ("slurm.sbatch", ["--dry-run", *TRAIN]),
    ],
)
def test_a_dry_run_prints_the_commands_and_runs_none(ran, script, words):
    status, said, calls = ran(script, words)
    assert status == 0 and not calls and "-m e5jax.train" in said


@pytest.mark.parametrize("script", ["tpu_run.sh", "tpu_queued_resource.sh", "slurm.sbatch"])
@pytest.mark.parametrize("words", [[], ["--nmae", "pod"]])
def test_wrong_words_are_a_usage_error(ran, script, words):
    if script == "slurm.sbatch" and words:
        return  # they are training's
    status, said, calls = ran(script, words)
    assert status == 2 and f"launch/{script}" in said and not calls


def test_local_processes_are_told_who_they_are():
    line = [sys.executable, str(LAUNCH / "local.py"), "--processes", "3", "--dry-run", "--", "-m", "e5jax.train"]
    said = subprocess.run(line, capture_output=True, text=True, check=True).stdout.splitlines()
    assert [text.split()[-2:] for text in said] == [["--distributed.process", str(n)] for n in range(3)]


def test_local_processes_end_with_the_status_of_the_one_that_failed():
    program = "import sys; n = int(sys.argv[-1]); print('hello'); sys.exit(3 * (n == 1))"
    line = [sys.executable, str(LAUNCH / "local.py"), "--processes", "2", "--", "-c", program]
    done = subprocess.run(line, capture_output=True, text=True, check=False)
    assert done.returncode == 3 and {"[0] hello", "[1] hello"} <= set(done.stdout.splitlines())
