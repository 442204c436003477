"""Texts of evaluation sets, as numbers: what an example must not share with them (the paper's appendix B).

Every string of the files counts, whole, case and spacing aside; those of less than 24 bytes without their spaces
("what does that mean") do not, as anybody says them.
"""

import csv
import json
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np

from e5jax.errors import UserError
from e5jax.records import existing
from e5jax.synthetic.answers import digest, normal


COMMON_BYTES = 24


def write(names: Iterable[str], path: Path) -> int:
    """The texts of .jsonl, .csv and .txt files as sorted numbers in `path` (.npy); -> how many there are."""
    found: set[int] = set()
    for name in names:
        for text in texts(existing(name)):
            if len((form := normal(text)).encode()) >= COMMON_BYTES:
                found.add(int.from_bytes(digest(form), "little"))
    np.save(path, np.array(sorted(found), "<u8"), allow_pickle=False)
    return len(found)


def texts(path: Path) -> Iterator[str]:
    """Every string of a .jsonl, .csv or .txt file. Raises UserError for another, and for one that breaks off."""
    readers = {".jsonl": _jsonl, ".csv": _csv, ".txt": lambda file: file}
    if path.suffix.lower() not in readers:
        raise UserError(f"{path}: cannot read evaluation texts from it; what can be read: {', '.join(readers)}")
    csv.field_size_limit(sys.maxsize)
    number = 0
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            for number, text in enumerate(readers[path.suffix.lower()](file), 1):  # noqa: B007 for the message
                yield text
    except (ValueError, csv.Error, RecursionError) as error:
        raise UserError(f"{path}: not readable after {number} texts: {error}") from error


def _csv(file) -> Iterator[str]:
    for cells in csv.reader(file):
        yield from cells


def _jsonl(file) -> Iterator[str]:
    for line in file:
        yield from _strings(json.loads(line))


def _strings(value) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, list | dict):
        for part in value.values() if isinstance(value, dict) else value:
            yield from _strings(part)
