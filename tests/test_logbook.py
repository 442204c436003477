"""What a run writes for people and programs."""

import json
import subprocess
import sys
import types

import pytest

from e5jax.logbook import Logbook, Progress, draw_curves, read_rows


ROW = {"step": 1, "loss": 2.0, "tokens_per_second": 1000.0, "utilization": 0.5}


def test_rows_reach_the_disk_when_flushed(tmp_path):
    book = Logbook(tmp_path, None, None, lambda: None)
    book.write(ROW)
    book.flush()
    assert read_rows(tmp_path / "metrics.jsonl") == [ROW]
    book.close()


def test_a_fresh_run_drops_rows_of_a_run_that_saved_nothing(tmp_path):
    (tmp_path / "metrics.jsonl").write_text(json.dumps(ROW) + "\n")
    Logbook(tmp_path, None, None, lambda: None).close()
    assert read_rows(tmp_path / "metrics.jsonl") == []


def test_a_run_does_not_wait_for_torch_to_load(tmp_path):
    code = (
        "import sys, pathlib, e5jax.train\n"
        "from e5jax.logbook import Logbook\n"
        f"Logbook(pathlib.Path({str(tmp_path)!r}), None, None, lambda: None).close()\n"
        "assert 'torch' not in sys.modules and 'tensorboardX' in sys.modules\n"
        "import torch"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_weights_and_biases_gets_the_same_numbers(tmp_path, monkeypatch):
    logged = []
    run = types.SimpleNamespace(
        log=lambda row, step: logged.append((step, row)), finish=lambda: logged.append("finished")
    )
    fake = types.SimpleNamespace(init=lambda **options: logged.append(options["project"]) or run)
    monkeypatch.setitem(sys.modules, "wandb", fake)
    book = Logbook(tmp_path, None, "embedders", lambda: None)
    book.write(ROW)
    book.close()
    assert logged == ["embedders", (1, {k: v for k, v in ROW.items() if k != "step"}), "finished"]


def test_without_a_terminal_progress_is_plain_lines(capfd):
    progress = Progress(steps=3, done=0, every_s=0.0)
    for step in (1, 2, 3):
        progress.step({**ROW, "step": step})
    progress.close()
    out, err = capfd.readouterr()
    assert out.splitlines()[-1].startswith("step 3/3: loss 2.000, 1,000 tok/s, 50% of peak")
    assert err == ""


@pytest.mark.parametrize("evals", [[], [{"step": 0, "eval/a/ndcg@10": 0.1, "eval/ndcg@10": 0.1}]])
def test_curves_are_drawn_with_and_without_evaluation(tmp_path, evals):
    draw_curves([*evals, ROW, {**ROW, "step": 2}], {"a": 0.5}, tmp_path / "curves.png")
    assert (tmp_path / "curves.png").read_bytes()[:4] == b"\x89PNG"
