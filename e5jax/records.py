"""Sources to records.

A reader a format turns files into rows of named fields; `_record` alone knows what a good row is.
A file that cannot be read at all is a `UserError`; one row that is no record becomes a `BadRecord`,
and the caller decides what to do.
"""

import csv
import dataclasses
import difflib
import itertools
import json
import math
import re
import reprlib
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np

from e5jax import labelled, places
from e5jax.errors import UserError


# Our name of a field, and the names under which other people's files hold it.
ALIASES = {
    "query": ("query", "anchor", "question", "sentence1"),
    "positive": ("positive", "answer", "passage", "sentence2"),
}
HEADERLESS = ("sentence1", "sentence2", "score")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Source:
    """Where training records come from."""

    path: str
    """A .jsonl, .parquet, .csv or SQuAD .json file, a folder of .parquet files, a TFDS dataset
    folder, or plain text beside `positives` or with `texts`."""
    split: str = "train"
    """Split of a TFDS dataset, slices allowed: train[:80%]."""
    rows: str = ":"
    """start:stop over lines, rows or SQuAD articles, as Python slices: holds out a part."""
    sample: float = 1.0
    """Keep this share of what `rows` leaves, evenly spread: the paper takes a tenth of some sets."""
    positives: str | None = None
    """A second text file, aligned line by line with `path`: bitext."""
    texts: bool = False
    """Plain texts, each its own positive (SimCSE, arXiv 2104.08821: nothing but dropout tells the two apart): the field
    `text` of .jsonl, .parquet and TFDS, the lines of any other file."""
    min_score: float | None = None
    """Keep only the records whose `score` is at least this."""
    task: str | None = None
    """Instruction for the records that carry none."""
    task_of_type: dict[str, str] | None = None
    """Instruction by a record's `task_type`, in place of its own; for the types that are not named, `task`."""
    labels: Literal["text", "example"] | None = None
    """Texts with classes (`text` and `label`): a text's passage is its label's text, or another example of its class,
    as NV-Embed has it; its hard negatives are other labels, or examples of other classes."""
    own_negatives_only: bool = False
    """Its queries are told from their own hard negatives alone: for classes, where the passage of another query of the
    batch may be as right."""
    weight: float | None = None
    """Share in the mixture, relative to the other sources'; None on all of them: as many as it has records."""

    def __post_init__(self):
        if self.weight is not None and not 0 < self.weight < math.inf:
            raise UserError(f"{self.path}: weight must be positive, got {self.weight}")
        if not 0 < self.sample <= 1:
            raise UserError(f"{self.path}: sample must be in (0, 1], got {self.sample}")
        if sum((self.texts, self.positives is not None, self.labels is not None)) > 1:
            raise UserError(f"{self.path}: texts, positives and labels each say what a passage is: give one of them")
        _window(self.rows)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Record:
    """A query, the passage that answers it, and passages that do not; text as the source has it."""

    task: str | None
    query: str
    positive: str
    negatives: tuple[str, ...]


@dataclasses.dataclass(frozen=True, kw_only=True)
class BadRecord:
    """What is wrong with one record, in words."""

    reason: str


# What `Source.rows` counts, as (where, fields): a line, a row, the questions of a SQuAD article.
Unit = list[tuple[str, dict[str, Any] | BadRecord]]


def read(source: Source) -> Iterator[tuple[str, Record | BadRecord]]:
    """Every record in file order, after "path:LINE" (from 1) or "path:row N" (from 0).

    Records below `min_score` are left out in silence. Raises UserError, at the latest when the
    files are exhausted, where the source as a whole is at fault; one without any record is.
    """
    reader, paths = _locate(source)
    window = _window(source.rows)
    if min(window.start or 0, window.stop or 0) < 0:  # counted from an end that must be found
        window = slice(*window.indices(sum(1 for _ in reader(source, paths))))
    units = itertools.islice(reader(source, paths), window.start, window.stop)
    kept = source.sample
    units = (unit for i, unit in enumerate(units) if int((i + 1) * kept) > int(i * kept))
    rows = itertools.chain.from_iterable(units)
    if source.labels is not None:
        paired = labelled.pairs(rows, source.labels)
        rows = ((where, BadRecord(reason=x) if isinstance(x, str) else x) for where, x in paired)
    empty = True
    for where, fields in rows:
        record = fields if isinstance(fields, BadRecord) else _record(fields, source)
        if record is not None:
            empty = False
            yield where, record
    if empty:
        score = "" if source.min_score is None else f" with a score of at least {source.min_score}"
        raise UserError(f"{source.path}: no records{score} (rows {source.rows})")


def files(source: Source) -> list[Path]:
    """The files that the records come from: while these stay as they are, so do the records."""
    return _locate(source)[1]


def _locate(source: Source) -> tuple[Callable[[Source, list[Path]], Iterator[Unit]], list[Path]]:
    path = existing(source.path)
    if source.positives is not None:
        return _bitext, [path, existing(source.positives)]
    if (path / "dataset_info.json").exists():
        return _tfds, sorted(file for file in path.rglob("*") if file.is_file())
    paths = sorted(path.glob("*.parquet")) if path.is_dir() else [path]
    suffix = paths[0].suffix.lower() if paths else None
    if source.texts and path.is_file() and suffix not in READERS:
        return _lines, paths
    readable = HOLD_TEXTS if source.texts else READERS
    if suffix not in readable:
        what = "this folder" if path.is_dir() else f"files named {suffix or 'without suffix'}"
        lines_of = "other files as a text a line" if source.texts else "any text with `positives` or `texts`"
        raise UserError(
            f"{path}: cannot read {what}; what can be read: {', '.join(readable)}, a folder of "
            f".parquet, a TFDS version folder (with dataset_info.json), {lines_of}"
        )
    return READERS[suffix], paths


def existing(name: str) -> Path:
    """The path, or that of a copy of what is in a bucket; UserError with the nearest name where there is nothing."""
    path = places.local(name)
    if path.exists():
        return path
    if not path.parent.is_dir():
        raise UserError(f"{path}: no such file, and no folder {path.parent.absolute()}")
    near = difflib.get_close_matches(path.name, [p.name for p in path.parent.iterdir()], n=1)
    hint = f"; did you mean {path.parent / near[0]}?" if near else ""
    raise UserError(f"{path}: no such file or folder{hint}")


def _window(rows: str) -> slice:
    match = re.fullmatch(r"(-?\d+)?:(-?\d+)?", rows)
    if not match:
        raise UserError(f"rows must be start:stop, such as 1000: or :-100, got {rows!r}")
    return slice(*(part and int(part) for part in match.groups()))


def lines(path: Path) -> Iterator[tuple[int, str]]:
    """Numbered lines with their ends, split at line feeds alone: U+2028 belongs to the text."""
    try:
        file = path.open("rb")
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror}") from error
    with file:
        for number, line in enumerate(file, 1):
            try:
                text = line.decode("utf-8-sig" if number == 1 else "utf-8")
            except UnicodeDecodeError as error:
                raise UserError(f"{path}:{number}: not UTF-8 at byte {error.start}") from None
            yield number, text


def _jsonl(source: Source, paths: list[Path]) -> Iterator[Unit]:
    for number, line in lines(paths[0]):
        try:
            fields = json.loads(line)
            if not isinstance(fields, dict):
                fields = BadRecord(reason=f"{reprlib.repr(fields)} is not a JSON object")
        except (ValueError, RecursionError) as error:
            fields = BadRecord(reason=f"not JSON: {error}" if line.strip() else "blank line")
        yield [(f"{paths[0]}:{number}", fields)]


def _csv(source: Source, paths: list[Path]) -> Iterator[Unit]:
    csv.field_size_limit(sys.maxsize)  # passages outgrow the module's 131,072 characters
    table = csv.reader((line for _, line in lines(paths[0])), strict=True)
    names, where = None, f"{paths[0]}:1"
    try:
        for cells in table:
            if names is None:
                names = _columns(cells, where, source)
            if names is not cells:
                yield [(where, _cells(names, cells))]
            where = f"{paths[0]}:{table.line_num + 1}"
    except csv.Error as error:
        raise UserError(f"{where}: {error}") from None


def _columns(cells: list[str], where: str, source: Source) -> list[str] | tuple[str, ...]:
    """The first row itself if it names columns, else those of a table of scored pairs."""
    if source.labels is not None:
        if "text" in cells and set(labelled.LABELS) & set(cells):
            return cells
        raise UserError(f"{where}: {', '.join(cells)}: no header with text and {' or '.join(labelled.LABELS)}")
    if all(set(aliases) & set(cells) for aliases in ALIASES.values()):
        return cells
    if len(cells) == len(HEADERLESS) and re.fullmatch(r"\s*-?[\d.]+\s*", cells[-1]):
        return HEADERLESS
    raise UserError(
        f"{where}: {', '.join(cells)}: neither a header with {_either('query')} and with "
        f"{_either('positive')}, nor a row of {', '.join(HEADERLESS)}"
    )


def _cells(names: list[str] | tuple[str, ...], cells: list[str]) -> dict[str, str] | BadRecord:
    if len(cells) != len(names):
        return BadRecord(reason=f"{len(cells)} cells for {len(names)} columns: {', '.join(names)}")
    # An empty cell is how a table says that a row has fewer negatives than another.
    row = zip(names, cells, strict=True)
    return {name: cell for name, cell in row if cell or not name.startswith("negative")}


def _parquet(source: Source, paths: list[Path]) -> Iterator[Unit]:
    import pyarrow
    from pyarrow import parquet

    for path in paths:
        try:
            batches = parquet.ParquetFile(path).iter_batches(batch_size=1_000)
            rows = itertools.chain.from_iterable(batch.to_pylist() for batch in batches)
            for number, fields in enumerate(rows):
                yield [(f"{path}:row {number}", fields)]
        except (pyarrow.ArrowException, UnicodeDecodeError, OSError) as error:  # Arrow has both kinds for bad bytes
            raise UserError(f"{path}: not readable as Parquet: {error}") from error


def open_tfds(path: Path, split: str) -> Sequence[dict[str, Any]]:
    """The rows of a TFDS version folder, read one by one as they are asked for. UserError where they cannot be."""
    import tensorflow_datasets as tfds

    try:
        return tfds.builder_from_directory(path).as_data_source(split)
    except Exception as error:  # of many kinds: unknown split, a format that needs TensorFlow, ...
        raise UserError(f"{path}, split {split}: {error}") from error


def _tfds(source: Source, paths: list[Path]) -> Iterator[Unit]:
    path = existing(source.path)
    for number, fields in enumerate(open_tfds(path, source.split)):
        yield [(f"{path}:row {number}", fields)]


def _squad(source: Source, paths: list[Path]) -> Iterator[Unit]:
    path = paths[0]
    try:
        for article in json.loads("".join(line for _, line in lines(path)))["data"]:
            yield [
                (f"{path}:question {qa['id']}", {"query": qa["question"], "positive": p["context"]})
                for p in article["paragraphs"]
                for qa in p["qas"]
            ]
    except json.JSONDecodeError as error:
        raise UserError(f"{path}: not JSON: {error}; JSON lines are named .jsonl") from None
    except (KeyError, TypeError) as error:
        raise UserError(f"{path}: not SQuAD v1.1 ({error!r}); records go into .jsonl") from None


def _bitext(source: Source, paths: list[Path]) -> Iterator[Unit]:
    counts = [sum(1 for _ in lines(path)) for path in paths]
    if counts[0] != counts[1]:
        raise UserError(f"{paths[0]}: {counts[0]} lines, but {paths[1]} has {counts[1]}")
    for (number, query), (_, positive) in zip(*map(lines, paths), strict=True):
        yield [(f"{paths[0]}:{number}", {"query": _unended(query), "positive": _unended(positive)})]


def _lines(source: Source, paths: list[Path]) -> Iterator[Unit]:
    for number, line in lines(paths[0]):
        yield [(f"{paths[0]}:{number}", {"text": _unended(line)})]


def _unended(line: str) -> str:
    return line.removesuffix("\n").removesuffix("\r")


READERS = {".jsonl": _jsonl, ".parquet": _parquet, ".csv": _csv, ".json": _squad}
HOLD_TEXTS = (".jsonl", ".parquet")  # of these, what has a field `text`


def _record(fields: dict[str, Any], source: Source) -> Record | BadRecord | None:
    """The checked record of a row; None if its score is too low."""
    try:
        if source.min_score is not None and not _score(fields) >= source.min_score:
            return None
        if source.texts:
            fields = _its_own_positive(fields)
        return Record(
            task=_task(fields, source),
            query=_required(fields, "query"),
            positive=_required(fields, "positive"),
            negatives=_negatives(fields),
        )
    except ValueError as error:
        return BadRecord(reason=str(error))


def _task(fields: dict[str, Any], source: Source) -> str | None:
    if source.task_of_type is not None:
        kind = fields.get("task_type")
        return source.task_of_type.get(_text("task_type", kind) if kind else None, source.task)
    task = fields.get("task")
    return _text("task", task) if task else source.task


def _its_own_positive(fields: dict[str, Any]) -> dict[str, Any]:
    """The fields of a record whose query and positive are a row's `text`; what else the row has is left out."""
    if "text" not in fields:
        raise ValueError(f"no text; its fields are {', '.join(fields) or 'none'}")
    text = _text("text", fields["text"])
    return {"query": text, "positive": text}


def _required(fields: dict[str, Any], name: str) -> str:
    for alias in ALIASES[name]:
        if alias in fields:
            return _text(alias, fields[alias])
    raise ValueError(f"no {_either(name)}; its fields are {', '.join(fields) or 'none'}")


def _negatives(fields: dict[str, Any]) -> tuple[str, ...]:
    listed = [] if fields.get("negatives") is None else fields["negatives"]
    if not isinstance(listed, list | np.ndarray):
        raise ValueError(f"negatives is {reprlib.repr(listed)}, not a list of strings")
    numbered = [name for name in fields if re.fullmatch(r"negative_\d+", name)]
    names = ["negative", *sorted(numbered, key=lambda name: int(name.split("_")[1]))]
    single = [(name, fields[name]) for name in names if fields.get(name) is not None]
    listed = [(f"negatives[{i}]", text) for i, text in enumerate(listed)]
    return tuple(_text(name, text) for name, text in listed + single)


def _score(fields: dict[str, Any]) -> float:
    try:
        return float(fields["score"])
    except KeyError:
        raise ValueError(f"no score for min_score; its fields are {', '.join(fields)}") from None
    except (TypeError, ValueError):
        raise ValueError(f"score is {reprlib.repr(fields['score'])}, not a number") from None


def _text(name: str, value: Any) -> str:
    """The value as the text it must be: not stripped, not normalised."""
    try:
        text = value.decode() if isinstance(value, bytes) else value  # TFDS has bytes
        if not isinstance(text, str):
            raise ValueError(f"{name} is {reprlib.repr(value)}, not a string")
        text.encode()
    except UnicodeDecodeError:
        raise ValueError(f"{name} is not UTF-8") from None
    except UnicodeEncodeError as error:  # JSON can spell half an emoji, tokenizers take whole ones
        half = text[error.start]
        raise ValueError(f"{name} has a lone surrogate, {half!r}, at {error.start}") from None
    if not text.strip():
        raise ValueError(f"{name} is empty")
    return text


def _either(name: str) -> str:
    return " or ".join(ALIASES[name])
