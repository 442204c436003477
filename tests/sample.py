"""The built-in sample as two files of records: what `package` makes of its ledger, without the dataset around it."""

import atexit
import dataclasses
import json
import shutil
import tempfile
from pathlib import Path

from e5jax.sample import LEDGER
from e5jax.synthetic import answers, entries, task_types


RULES = answers.Rules(
    prompt_versions={kind.name: (kind.version,) for kind in task_types.ALL.values()},
    check_language=False,
    max_characters=20_000,
    evaluation=None,
    heldout=0.2,
)
FIELDS = ("task", "query", "positive", "negatives")
FOLDER = Path(tempfile.mkdtemp(prefix="e5jax-sample-"))
atexit.register(shutil.rmtree, FOLDER, ignore_errors=True)


def _write(split: str) -> str:
    entries_ = (entry for entry in entries.read(Path(LEDGER)) if entry["request"]["kind"] == "example")
    examples = [dataclasses.asdict(answers.example(entry, RULES)) for entry in entries_]
    records = [{name: example[name] for name in FIELDS} for example in examples if example["split"] == split]
    path = FOLDER / f"{split}.jsonl"
    path.write_text("".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records), encoding="utf-8")
    return str(path)


TRAIN, HELDOUT = _write("train"), _write("heldout")
