"""No token of the environment gets into anything that is written; conftest.py looks through all files at the end."""

import os
import subprocess
import sys
from pathlib import Path

from tests import conftest


ROOT = Path(__file__).parents[1]


def test_a_file_with_a_token_is_found(tmp_path):
    (tmp_path / "deep").mkdir()
    (tmp_path / "deep" / "log").write_bytes(b"Authorization: Bearer " + conftest.SECRETS[1])
    assert conftest.leaks(tmp_path) == [str(tmp_path / "deep" / "log")]
    (tmp_path / "deep" / "log").unlink()


def test_a_token_in_a_test_s_file_fails_the_whole_run(tmp_path):
    program = "import os\ndef test_it(tmp_path): (tmp_path / 'log').write_text(os.environ['HF_TOKEN'])\n"
    (tmp_path / "conftest.py").write_text((ROOT / "tests" / "conftest.py").read_text())
    (tmp_path / "test_it.py").write_text(program)
    line = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "--basetemp", str(tmp_path / "base"), "."]
    done = subprocess.run(line, cwd=tmp_path, env=os.environ, capture_output=True, text=True, check=False)
    for path in conftest.leaks(tmp_path):
        Path(path).unlink()
    assert done.returncode == 1 and "1 passed" in done.stdout and "a token of the environment stands in" in done.stdout
