"""The launch scripts say what they will do, and do it; gcloud, kubectl, srun are stand-ins that record their calls."""

import json
import os
import stat
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import yaml
from kubeflow_trainer_api.models import JobsetV1alpha2JobSet


LAUNCH = Path(__file__).parents[1] / "launch"
TRAIN = ["--config", "configs/e5_mistral_7b.py", "--workdir", "/shared/a run"]
RUN = ["--name", "pod", "--zone", "z", "--", *TRAIN]
QUEUED = ["--name", "pod", "--zone", "z", "--type", "v5e-256", "--runtime", "r", "--spot", "--", *TRAIN]
GKE = ["--name", "pod", "--image", "i/e5jax", "--accelerator", "tpu-v5p-slice", "--topology", "8x8x8", "--spot"]
GKE += ["--service-account", "writer", "--", *TRAIN]
STAND_IN = """#!{python}
import json, os, sys
from pathlib import Path
folder = Path(os.environ["STAND_IN"])
name, words = Path(sys.argv[0]).name, sys.argv[1:]
with (folder / "calls").open("a") as calls:
    calls.write(json.dumps([name, *words]) + "\\n")
training = any("e5jax.train" in word for word in words)
key = "describe" if {{"describe", "get"}} & {{*words}} else "train" if training else ""
script = folder / key if key else None
if script and script.exists():
    first, *rest = script.read_text().splitlines()
    script.write_text("\\n".join(rest or [first]))
    if key == "train":
        sys.exit(int(first))
    if first == "ABSENT":
        sys.exit(1)
    print(first)
if "apply" in words:
    (folder / "applied").write_text(sys.stdin.read())
"""


@pytest.fixture
def ran(tmp_path):
    """`ran(script, words, **answers)` -> (exit status, output, calls); an answer is the lines a kind of call gives."""
    for name in ("gcloud", "kubectl", "srun"):
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
        line = [sys.executable if script.endswith(".py") else "bash", str(LAUNCH / script), *words]
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


def valid(manifest):
    """As JobSet's own schema reads it; a field that it does not know is lost on the way."""
    assert JobsetV1alpha2JobSet.from_dict(manifest).to_dict() == manifest
    return manifest


def test_the_jobset_is_one_as_it_stands():
    valid(yaml.safe_load((LAUNCH / "gke" / "jobset.yaml").read_text()))


def test_a_jobset_is_filled_in_submitted_and_followed_to_its_end(ran, tmp_path):
    status, said, calls = ran("gke/submit.py", GKE, describe=["", " 1", "Completed 1"])
    assert status == 0 and [line.split()[1:] for line in said.splitlines()[-3:]] == [
        ["pod:", "under", "way"],
        ["pod:", "1"],
        ["pod:", "Completed", "1"],
    ]
    assert [call[3] for call in calls] == ["apply", "get", "get", "get"]
    applied = valid(yaml.safe_load((tmp_path / "applied").read_text()))
    job = applied["spec"]["replicatedJobs"][0]["template"]["spec"]
    pod = job["template"]["spec"]
    assert (job["parallelism"], job["completions"]) == (128, 128)  # 512 chips
    assert pod["containers"][0]["args"] == TRAIN and pod["serviceAccountName"] == "writer"
    assert pod["nodeSelector"]["cloud.google.com/gke-tpu-topology"] == "8x8x8"
    assert pod["nodeSelector"]["cloud.google.com/gke-spot"] == "true" and pod["tolerations"]


@pytest.mark.parametrize("end", ["Failed 3", "ABSENT"])
def test_a_jobset_that_failed_or_cannot_be_asked_about_for_long_is_a_failure(ran, end):
    status, said, _ = ran("gke/submit.py", GKE, describe=["", end])
    assert status == 1 and ("Failed 3" in said or "cannot be asked" in said)


@pytest.mark.parametrize("name", ["tpu", "cuda"])
def test_a_container_is_built_from_what_is_there(name):
    lines = (LAUNCH / f"Dockerfile.{name}").read_text().splitlines()
    copied = [word for line in lines if line.startswith("COPY ") for word in line.split()[1:-1]]
    assert copied and all((LAUNCH.parent / word).exists() for word in copied)
    extras = tomllib.loads((LAUNCH.parent / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    assert {name, "gcs"} <= {*extras} and any(f"'.[{name},gcs]'" in line for line in lines)
    assert any(line.startswith("USER ") for line in lines)  # not root


@pytest.mark.parametrize(
    ("script", "words"),
    [
        ("tpu_run.sh", ["--dry-run", *RUN]),
        ("tpu_queued_resource.sh", ["--dry-run", *QUEUED]),
        ("slurm.sbatch", ["--dry-run", *TRAIN]),
        ("gke/submit.py", ["--dry-run", *GKE]),
    ],
)
def test_a_dry_run_prints_the_commands_and_runs_none(ran, script, words):
    status, said, calls = ran(script, words)
    assert status == 0 and not calls and "configs/e5_mistral_7b.py" in said


@pytest.mark.parametrize("script", ["tpu_run.sh", "tpu_queued_resource.sh", "slurm.sbatch", "gke/submit.py"])
@pytest.mark.parametrize("words", [[], ["--nmae", "pod"]])
def test_wrong_words_are_a_usage_error(ran, script, words):
    if script == "slurm.sbatch" and words:
        return  # they are training's
    status, said, calls = ran(script, words)
    assert status == 2 and Path(script).name in said and not calls


def test_shellcheck_finds_nothing():
    folders = (LAUNCH, LAUNCH.parent / "examples")
    scripts = sorted(path for folder in folders for path in folder.iterdir() if path.suffix in (".sh", ".sbatch"))
    checker = Path(sys.executable).with_name("shellcheck")
    done = subprocess.run([checker, *scripts], capture_output=True, text=True, check=False)
    assert len(scripts) == 4 and done.returncode == 0, done.stdout


def test_local_processes_are_told_who_they_are():
    line = [sys.executable, str(LAUNCH / "local.py"), "--processes", "3", "--dry-run", "--", "-m", "e5jax.train"]
    said = subprocess.run(line, capture_output=True, text=True, check=True).stdout.splitlines()
    assert [text.split()[-2:] for text in said] == [["--distributed.process", str(n)] for n in range(3)]


def test_local_processes_end_with_the_status_of_the_one_that_failed():
    program = "import sys; n = int(sys.argv[-1]); print('hello'); sys.exit(3 * (n == 1))"
    line = [sys.executable, str(LAUNCH / "local.py"), "--processes", "2", "--", "-c", program]
    done = subprocess.run(line, capture_output=True, text=True, check=False)
    assert done.returncode == 3 and {"[0] hello", "[1] hello"} <= set(done.stdout.splitlines())
