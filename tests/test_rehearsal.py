"""The whole recipe runs from its first step to its last, at toy size."""

import csv
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.sample import TRAIN


ROOT = Path(__file__).parents[1]


def downloads(folder: Path) -> Path:
    """Three public sets in their sources' formats, of the built-in sample's texts."""
    records = [json.loads(line) for line in Path(TRAIN).read_text(encoding="utf-8").splitlines()]
    with_negatives = [record for record in records if record.get("negatives")]
    parts = with_negatives[:40], with_negatives[40:80], records[80:160]
    for name in ("nq", "nli", "quora"):
        (folder / name).mkdir(parents=True)
    passages = lambda texts: [{"title": "T", "text": text} for text in texts]
    nq = [
        {
            "question": r["query"],
            "answers": [],
            "positive_ctxs": passages([r["positive"]]),
            "negative_ctxs": [],
            "hard_negative_ctxs": passages(r["negatives"]),
        }
        for r in parts[0]
    ]
    (folder / "nq" / "biencoder-nq-train.json").write_text(json.dumps(nq))
    with (folder / "nli" / "nli_for_simcse.csv").open("w", newline="", encoding="utf-8") as file:
        rows = [(r["query"], r["positive"], r["negatives"][0]) for r in parts[1]]
        csv.writer(file).writerows([("sent0", "sent1", "hard_neg"), *rows])
    with (folder / "quora" / "quora_duplicate_questions.tsv").open("w", newline="", encoding="utf-8") as file:
        table = csv.writer(file, delimiter="\t")
        table.writerow(["id", "qid1", "qid2", "question1", "question2", "is_duplicate"])
        table.writerows([i, i, i, r["query"], r["positive"], int(i % 4 > 0)] for i, r in enumerate(parts[2]))
    return folder


@pytest.mark.slow
def test_the_rehearsal_ends_with_a_model_that_sentence_transformers_serves_and_goes_on_when_run_again(tmp_path):
    environment = {**os.environ, "PYTHON": sys.executable, "STEPS": "4", "JAX_PLATFORMS": "cpu", "XLA_FLAGS": ""}
    environment |= {"JAX_DISABLE_MOST_OPTIMIZATIONS": "1", "HF_HUB_OFFLINE": "1"}
    line = ["examples/rehearsal.sh", str(downloads(tmp_path / "downloads")), str(tmp_path / "out")]
    run = lambda: subprocess.run(line, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    done = run()
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    assert "served by sentence-transformers: cosine" in done.stdout
    out = tmp_path / "out"
    told = json.loads((out / "merged" / "config.json").read_text())["run"]["merged"]
    assert told["method"] == "slerp" and [Path(part["run"]).name for part in told["of"]] == ["stage1", "stage2"]
    second = json.loads((out / "stage2" / "config.json").read_text())
    assert second["init_from"].endswith("stage1")
    assert [s["own_negatives_only"] for s in second["data"]["train"]] == [False, False, True, True]
    assert {run["model"].rsplit("/", 1)[-1] for run in map(results_of, sorted((out / "results").glob("*/")))} == {
        "merged",
        "base",
        "bm25",
    }
    kept = lambda: {path: path.read_bytes() for path in (*out.rglob("metrics.jsonl"), *out.glob("public/*.jsonl"))}
    before = kept()
    again = run()
    assert again.returncode == 0, again.stdout[-3000:] + again.stderr[-3000:]
    assert kept() == before and len(before) == 6


def results_of(folder: Path) -> dict:
    path = folder / "results.json"
    return json.loads(path.read_text()) if path.exists() else {"model": "merged"}
