"""Claims about a million texts: `make test-scale`, about ten minutes on two cores."""

import os
import random
import signal
import subprocess
import sys
import time

import pytest

from e5jax import vectors
from tests.test_encode import model  # noqa: F401


pytestmark = pytest.mark.scale
PEAK = "import resource, sys; from e5jax import encode; code = encode.main(); "
PEAK += "print('peak', resource.getrusage(resource.RUSAGE_SELF).ru_maxrss); sys.exit(code)"


def start(model, corpus, output):  # noqa: F811
    command = [sys.executable, "-c", PEAK, "--model", model, "--input", corpus, "--output", output]
    return subprocess.Popen([*map(str, command)], env={**os.environ, "JAX_PLATFORMS": "cpu"}, stdout=subprocess.PIPE)


def finish(child) -> float:
    """Its peak memory in MB."""
    said = child.communicate()[0].decode()
    assert child.returncode == 0, said
    print(said)
    return int(said.split("peak ")[1]) / 1024


def test_a_million_texts_take_the_memory_of_a_hundred_thousand_and_survive_a_kill(model, tmp_path):  # noqa: F811
    words = "some plain words to draw short texts from , as queries are short and there are many of them".split()
    draw = random.Random(0)
    for name, count in (("small.txt", 100_000), ("large.txt", 1_000_000)):
        with (tmp_path / name).open("w") as file:
            file.writelines(" ".join(draw.choices(words, k=draw.randint(3, 12))) + "\n" for _ in range(count))

    small = finish(start(model, tmp_path / "small.txt", tmp_path / "small"))
    large = finish(start(model, tmp_path / "large.txt", tmp_path / "whole"))
    print(f"peak memory: {small:.0f} MB for 100,000 texts, {large:.0f} MB for 1,000,000")
    assert large < 1.1 * small

    child = start(model, tmp_path / "large.txt", tmp_path / "killed")
    while not vectors.is_done(tmp_path / "killed", 30):
        assert child.poll() is None
        time.sleep(0.1)
    child.send_signal(signal.SIGKILL)
    child.communicate()
    finish(start(model, tmp_path / "large.txt", tmp_path / "killed"))
    for file in (tmp_path / "whole").iterdir():
        assert file.read_bytes() == (tmp_path / "killed" / file.name).read_bytes(), file.name
