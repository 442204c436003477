"""Every test runs on 8 simulated CPU devices, in float32, with its own cache folder.

Programs are compiled once for all tests, workers and subprocesses of a session: most of the time went there.
"""

import atexit
import os
import shutil
import tempfile


if "JAX_COMPILATION_CACHE_DIR" not in os.environ:  # else the parent's, which removes it
    os.environ["JAX_COMPILATION_CACHE_DIR"] = tempfile.mkdtemp(prefix="e5jax-compiled-")
    atexit.register(shutil.rmtree, os.environ["JAX_COMPILATION_CACHE_DIR"], ignore_errors=True)
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.2")
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES", "-1")
os.environ["JAX_PLATFORMS"] = "cpu"
os.environ.setdefault("HF_HUB_OFFLINE", "1")  # tests never leave the machine
os.environ.setdefault("OMP_NUM_THREADS", "1")  # torch's threads fight with the other worker's

import jax


jax.config.update("jax_num_cpu_devices", 8)

import pytest  # noqa: E402


@pytest.fixture
def data_dir():
    """The folder of real text; what needs it skips loudly without it."""
    if "E5JAX_DATA" not in os.environ:
        pytest.skip("E5JAX_DATA is not set: this test needs the real data that the README tells how to get")
    from pathlib import Path

    return Path(os.environ["E5JAX_DATA"])
