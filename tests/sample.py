"""The built-in sample as two files of records: what `package` makes of its ledger, without the dataset around it."""

import dataclasses
import hashlib
import json
import os
import tempfile
from pathlib import Path

from e5jax import files
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
# One place for all processes: some tests start a second one that goes on with the same files.
FOLDER = (
    Path(tempfile.gettempdir())
    / f"e5jax-sample-{os.getuid()}-{hashlib.sha256(Path(LEDGER, 'answers-00000.jsonl').read_bytes()).hexdigest()[:12]}"
)


def _write(split: str) -> str:
    entries_ = (entry for entry in entries.read(Path(LEDGER)) if entry["request"]["kind"] == "example")
    examples = [dataclasses.asdict(answers.example(entry, RULES)) for entry in entries_]
    records = [{name: example[name] for name in FIELDS} for example in examples if example["split"] == split]
    FOLDER.mkdir(exist_ok=True)
    path = FOLDER / f"{split}.jsonl"
    if not path.exists():
        files.write_text(path, "".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records))
    return str(path)


TRAIN, HELDOUT = _write("train"), _write("heldout")
