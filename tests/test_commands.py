"""Every command takes a config file, run as people run it."""

import subprocess
import sys
from pathlib import Path

import pytest


ROOT = Path(__file__).parents[1]
# Command -> the config of a job that has nothing to work on, and what it says then.
COMMANDS = {
    "public": ("PublicConfig(input='nowhere', output='out')", "nowhere: no such folder"),
    "contamination": ("ContaminationConfig(train=('a',), evaluation=('b.txt',), output='c')", "b.txt: no such file"),
    "merge": ("MergeConfig(runs=('a', 'b'), output='c')", "a"),
    "mine": ("MineConfig(model='bm25', input=('a.jsonl',), output='c')", "a.jsonl: no such file"),
    "experiments": ("ExperimentsConfig(table='nowhere.py')", "no config file nowhere.py"),
}


@pytest.mark.parametrize("name", COMMANDS)
def test_a_config_file_is_one_of_its_command(name, tmp_path):
    config, said = COMMANDS[name]
    kind = config.partition("(")[0]
    (tmp_path / "config.py").write_text(
        f"from e5jax.config import {kind}\n\n\ndef get_config():\n    return {config}\n"
    )
    line = [sys.executable, "-m", f"e5jax.{name}", "--config", "config.py"]
    done = subprocess.run(line, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 2 and f"error: {said}" in done.stderr, done.stderr


def test_a_table_file_is_a_table_where_experiments_is_run_as_a_command(tmp_path):
    (tmp_path / "table_1.py").write_text(
        "from e5jax.rows import Row, Table\n\n\ndef get_config():\n"
        "    rows = (Row(name='a', unanswered='no'),)\n"
        "    return Table(title='T', about='A', columns={'C': ('c',)}, rows=rows)\n"
    )
    line = [sys.executable, "-m", "e5jax.experiments", "--table", "table_1.py", "--output", "out"]
    done = subprocess.run(line, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "Not answerable at this scale" in (tmp_path / "out" / "table.md").read_text()
