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

MARK = "e5jax-fake-token"
for _name in ("GEMINI_API_KEY", "OPENAI_API_KEY", "HF_TOKEN", "WANDB_API_KEY", "AWS_SECRET_ACCESS_KEY"):
    os.environ.setdefault(_name, f"{MARK}-{_name.lower()}")
SECRETS = [MARK.encode(), b"sk-not-a-real-key", b"fake-key-1234567890"]
"""Which tests have in their environment, and no file that they leave may have."""

import jax  # noqa: E402


jax.config.update("jax_num_cpu_devices", 8)

import pytest  # noqa: E402


@pytest.fixture
def data_dir():
    """The folder of real text; what needs it skips loudly without it."""
    if "E5JAX_DATA" not in os.environ:
        pytest.skip("E5JAX_DATA is not set: this test needs the real data that the README tells how to get")
    from pathlib import Path

    return Path(os.environ["E5JAX_DATA"])


@pytest.fixture(scope="module")
def quickly_compiled():
    """For modules that train runs to see what they do: programs that are slower, and sooner compiled."""
    name = "JAX_DISABLE_MOST_OPTIMIZATIONS"
    with pytest.MonkeyPatch.context() as patched:
        patched.setenv(name, "1")  # of subprocesses too: they take each other's programs from the cache
        before = jax.config.read(name.lower())  # it has no attribute, unlike newer options
        jax.config.update(name.lower(), True)
        yield
        jax.config.update(name.lower(), before)


LONGEST = """train 7b rehearsal merge mteb_model paper_configs schedule places distill experiments bert_train
loss structure prefix bert_step bert sharding mine""".split()
"""Modules that take longest: they begin first, so that no worker is left with one of them at the end."""


def pytest_collection_modifyitems(items):
    rank = {f"test_{name}": number for number, name in enumerate(LONGEST)}
    items.sort(key=lambda item: rank.get(item.path.stem, len(rank)))


def leaks(folder) -> list[str]:
    """The files below a folder that hold a secret."""
    found = (path for path in folder.rglob("*") if path.is_file() and not path.is_symlink())
    return [str(path) for path in found if any(secret in path.read_bytes() for secret in SECRETS)]


def pytest_sessionfinish(session):
    """Once all tests have ended: no token in anything that they wrote."""
    factory = getattr(session.config, "_tmp_path_factory", None)
    if factory is None or hasattr(session.config, "workerinput"):
        return
    if found := leaks(factory.getbasetemp()):
        session.exitstatus = 1
        session.config.get_terminal_writer().line(
            f"\na token of the environment stands in {', '.join(found)}", red=True
        )


def pytest_terminal_summary(terminalreporter, exitstatus, config):
    factory = getattr(config, "_tmp_path_factory", None)
    if factory is not None and not hasattr(config, "workerinput"):
        files = sum(path.is_file() for path in factory.getbasetemp().rglob("*"))
        terminalreporter.write_line(f"{files:,} files looked through for tokens")
