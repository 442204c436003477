"""A bucket is as good as a folder: gcsfs and TensorStore speak to a stand-in of Google Cloud Storage on loopback."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

import e5jax
from e5jax import vectors
from tests.bucket import serve
from tests.test_distributed import NO_EVAL, alone, children, finished, launch, same  # noqa: F401
from tests.test_train import losses


pytestmark = pytest.mark.usefixtures("quickly_compiled")


ROOT = Path(__file__).parents[1]
SETTINGS = "lora=LoraConfig(rank=2, alpha=4.0), checkpoint_every=2"


@pytest.fixture(scope="module")
def server():
    """Of gs://bucket, empty at first -> (what is in it, address)."""
    started, address = serve("bucket")
    yield started.RequestHandlerClass.objects, address
    started.shutdown()


@pytest.fixture(scope="module")
def objects(server):
    """What gs://bucket holds."""
    return server[0]


@pytest.fixture(scope="module")
def bucket(server, tmp_path_factory):
    """What must be in the environment for gs://bucket to be the stand-in."""
    _, address = server
    return {
        "STORAGE_EMULATOR_HOST": address,
        "TENSORSTORE_GCS_HTTP_URL": address,
        "GOOGLE_AUTH_TOKEN_FOR_TESTING": "none",
        "GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT": "false",  # it asks for credentials
        "XDG_CACHE_HOME": str(tmp_path_factory.mktemp("cache")),
    }


def taken(objects, prefix, folder):
    """What lies below a prefix of the bucket, as a folder, by no code of ours."""
    for (_, name), (_, content) in list(objects.stored.items()):
        if name.startswith(f"{prefix}/"):
            path = folder / name.removeprefix(f"{prefix}/")
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)
    return folder


def run(bucket, program, *words, status=0):
    """A program of its own, since TensorStore reads the environment once -> what it said."""
    environment = {**os.environ, **bucket, "JAX_PLATFORMS": "cpu", "JAX_DISABLE_MOST_OPTIMIZATIONS": "1"}
    line = [sys.executable, *(["-c", program] if "\n" in program else ["-m", program]), *map(str, words)]
    done = subprocess.run(line, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300, check=False)
    said = done.stdout + done.stderr
    assert done.returncode == status, said
    return said


TRAIN = f"""
import os, signal, sys
from e5jax import train
from tests.bucket import serve
from tests.test_train import LoraConfig, tiny_config
workdir, cache, stop = sys.argv[1:]
def step(self, row):
    if str(row["step"]) == stop:
        os.kill(os.getpid(), signal.SIGTERM)
train.loop.Progress.step = step
train.train(tiny_config(workdir, cache, {SETTINGS}))
"""


@pytest.fixture(scope="module")
def trained(bucket, tmp_path_factory):
    """The same run on disk and, stopped after its third step and gone on with on another machine, in the bucket."""
    folder = tmp_path_factory.mktemp("runs")
    run(bucket, TRAIN, folder / "run", folder / "cache", "none")
    said = run(bucket, TRAIN, "gs://bucket/runs/run", folder / "cache", "3", status=128 + signal.SIGTERM)
    assert "saved; the same command goes on" in said
    elsewhere = {**bucket, "XDG_CACHE_HOME": str(folder / "another machine")}
    assert "going on after step" in run(elsewhere, TRAIN, "gs://bucket/runs/run", folder / "cache", "none")
    return folder / "run"


def test_a_run_in_a_bucket_is_the_run_on_disk(objects, trained, tmp_path):
    taken(objects, "runs/run", tmp_path / "copy")
    assert losses(tmp_path / "copy") == losses(trained)
    names = lambda folder: {p.relative_to(folder).parts[0] for p in folder.rglob("*")}
    assert names(tmp_path / "copy") == names(trained)
    assert (tmp_path / "copy" / "curves.png").read_bytes().startswith(b"\x89PNG")
    vectors = [e5jax.Encoder.load(str(folder)).encode(["one", "two"]) for folder in (tmp_path / "copy", trained)]
    np.testing.assert_array_equal(*vectors)


def test_its_checkpoints_are_verified_where_they_are(bucket, trained):
    said = run(bucket, "e5jax.checkpoint", "verify", "gs://bucket/runs/run")
    rows = [json.loads(line) for line in said.splitlines()]
    assert [row["step"] for row in rows] == [4, 6] and all(row["whole"] for row in rows)


COPY = """
import shutil, sys
from e5jax import places
shutil.copytree(places.local(sys.argv[1]), sys.argv[2])
"""
PUT = """
import sys
import fsspec
fsspec.filesystem("gs").put(sys.argv[1], sys.argv[2], recursive=True)
"""


def test_every_command_reads_from_a_bucket_and_writes_to_it(bucket, objects, trained, tmp_path):
    texts = tmp_path / "texts.txt"
    texts.write_text("one\ntwo words\nthree of them\n")
    objects.put("bucket", "texts.txt", texts.read_bytes(), None)
    model = ("--model", "gs://bucket/runs/run/checkpoints/6")
    run(bucket, "e5jax.encode", *model, "--input", "gs://bucket/texts.txt", "--output", "gs://bucket/vectors")
    _, stored = vectors.load(taken(objects, "vectors", tmp_path / "vectors"))
    expected = e5jax.Encoder.load(str(trained)).encode(texts.read_text().splitlines())
    np.testing.assert_allclose(stored, expected, atol=1e-6)

    checkpoint = ("--checkpoint", "gs://bucket/runs/run", "--form", "merged", "--license", "mit")
    run(bucket, "e5jax.export", *checkpoint, "--output", "gs://bucket/exported")
    run(bucket, "e5jax.encode", "--model", "gs://bucket/exported", "--input", texts, "--output", tmp_path / "again")
    np.testing.assert_allclose(vectors.load(tmp_path / "again")[1], expected, atol=1e-5)
    said = run(bucket, "e5jax.export", *checkpoint, "--output", "gs://bucket/exported", status=2)
    assert "not empty" in said


WRITE = """
import sys
from e5jax import places
_, url, write, remove = sys.argv
with places.output(url) as folder:
    print(sorted(path.name for path in folder.glob("*")))
    folder.mkdir(parents=True, exist_ok=True)
    (folder / write).write_text(write)
    (folder / remove).unlink(missing_ok=True)
"""


def test_a_folder_in_a_bucket_goes_on_where_another_machine_left_it(bucket, tmp_path):
    elsewhere = {**bucket, "XDG_CACHE_HOME": str(tmp_path / "another machine")}
    assert "[]" in run(bucket, WRITE, "gs://bucket/folder", "a", "none")
    assert "['a']" in run(elsewhere, WRITE, "gs://bucket/folder", "b", "none")
    assert "['a', 'b']" in run(bucket, WRITE, "gs://bucket/folder", "c", "a")
    assert "['b', 'c']" in run(elsewhere, WRITE, "gs://bucket/folder", "d", "none")


def test_what_is_put_into_a_bucket_comes_back_to_the_last_byte(bucket, tmp_path):
    contents = {f"{number}": bytes([13 - number, number]) for number in range(14)} | {"empty": b""}
    (tmp_path / "bytes").mkdir()
    for name, content in contents.items():
        (tmp_path / "bytes" / name).write_bytes(content)
    run(bucket, PUT, tmp_path / "bytes", "gs://bucket/bytes")
    run(bucket, COPY, "gs://bucket/bytes", tmp_path / "copy")
    assert {path.name: path.read_bytes() for path in (tmp_path / "copy").iterdir()} == contents


def test_a_damaged_step_in_a_bucket_is_found_and_set_aside_and_the_step_before_is_used(
    bucket, objects, trained, tmp_path
):
    there = {name: content for (_, name), (_, content) in list(objects.stored.items()) if name.startswith("runs/run/")}
    largest = max((n for n in there if "/checkpoints/6/params/d/" in n), key=lambda name: len(there[name]))
    middle = len(there[largest]) // 2
    there[largest] = there[largest][:middle] + bytes([there[largest][middle] ^ 1]) + there[largest][middle + 1 :]
    for name, content in there.items():
        objects.put("bucket", name.replace("runs/run", "runs/damaged", 1), content, None)
    said = run(bucket, "e5jax.checkpoint", "verify", "gs://bucket/runs/damaged", status=1)
    whole = {row["step"]: row["whole"] for row in map(json.loads, re.findall(r"^{.*}$", said, re.M))}
    assert whole == {4: True, 6: False}, said
    said = run(bucket, TRAIN, "gs://bucket/runs/damaged", trained.parent / "cache", "none")
    assert "step 6 is not used" in said, said
    assert "going on after step 4" in said, said
    taken(objects, "runs/damaged", tmp_path / "mended")
    steps = sorted(path.name.split(".")[0] for path in (tmp_path / "mended" / "checkpoints").iterdir())
    assert steps == ["4", "6", "set-aside-6"] and losses(tmp_path / "mended") == losses(trained)


@pytest.mark.faults
def test_two_processes_make_one_run_in_a_bucket_and_others_go_on_with_it(bucket, objects, alone, tmp_path):  # noqa: F811
    in_bucket = {"words": ("--workdir", "gs://bucket/runs/two"), "environment": bucket, "more": NO_EVAL}
    started = launch(tmp_path, 2, 2, **in_bucket)
    rows = lambda: run(bucket, "e5jax.checkpoint", "list", "gs://bucket/runs/two").splitlines()
    deadline = time.monotonic() + 120
    while ("bucket", "runs/two/checkpoints/2/MANIFEST.json") not in objects.stored:
        time.sleep(0.02)
        assert started.poll() is None and time.monotonic() < deadline
    for process in children(started).values():
        os.kill(process, signal.SIGKILL)
    started.communicate(timeout=120)
    assert "going on after step" in finished(tmp_path, 1, 4, **in_bucket)
    assert len(rows()) == 2
    taken(objects, "runs/two", tmp_path / "run")
    same(tmp_path, alone, 1e-6, 1e-6)


@pytest.mark.parametrize(
    ("workdir", "status", "said"), [("gs://nowhere/run", 1, "failed: gs://nowhere/run"), ("ftps://b/run", 2, "gs://")]
)
def test_a_bucket_that_is_not_there_is_said_in_a_sentence(bucket, workdir, status, said):
    config = ("--config", "configs/quickstart.py", "--data.train.0.path", "none", "--workdir", workdir)
    found = run(bucket, "e5jax.train", *config, status=status)
    assert said in found and "Traceback" not in found
