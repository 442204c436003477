"""Texts to encode, a shard at a time: JSONL, Parquet, TFDS, text lines, standard input.

A format goes through its file as cheaply as it can, and apart from that makes one of its rows a text, so a process that
resumes, or shares the file with others, parses only the rows of its own shards.
"""

import dataclasses
import hashlib
import itertools
import json
import reprlib
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from e5jax.errors import UserError
from e5jax.records import existing, open_tfds


IDS = ("_id", "id")
OTHERS = (".csv", ".tsv", ".json", ".gz", ".zst", ".xlsx")  # which must not be taken for text lines


@dataclasses.dataclass(frozen=True, kw_only=True)
class Corpus:
    """Where texts come from, and which fields hold them."""

    path: str
    """A file or folder; - is standard input, a text a line."""
    field: str | None
    """None: `text`, behind its `title`."""
    id_field: str | None
    """None: `_id`, else `id`, else the number of the text from 0."""
    split: str
    """Of a TFDS dataset."""


Text = tuple[str | int, str]  # (id, text)


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Opened:
    rows: Iterable
    """Rows of the file, unparsed."""
    parse: Callable[[int, Any], Text]
    """(number from 0, row) -> its text."""
    count: Callable[[], int | None]


def shards(corpus: Corpus, size: int, wanted: Callable[[int], bool]) -> Iterator[tuple[int, list[Text] | None]]:
    """(number, texts) of every `size` rows; texts are None where the shard is not `wanted`.

    Raises UserError with file:line for bytes that are not UTF-8, JSON that is none, a field that is missing or no text.
    """
    opened = _open(corpus)
    rows = enumerate(opened.rows)
    for shard in itertools.count():
        here = itertools.islice(rows, size)
        if wanted(shard):
            texts = [opened.parse(number, row) for number, row in here]
            if not texts:
                return
            yield shard, texts
        elif next(here, None) is None:
            return
        else:
            deque(here, maxlen=0)
            yield shard, None


def count(corpus: Corpus) -> int | None:
    """How many texts there are; None where only reading them all would tell (standard input)."""
    return _open(corpus).count()


def fingerprint(corpus: Corpus) -> str | None:
    """A hash of the names and bytes of all files that are read; None for standard input."""
    if corpus.path == "-":
        return None
    path = existing(corpus.path)
    files = [path]
    if path.is_dir():
        prepared = (path / "dataset_info.json").exists()
        files = sorted(p for p in path.iterdir() if p.is_file()) if prepared else _parquet_files(path)
    digest = hashlib.blake2b(digest_size=32)
    for file in files:
        with file.open("rb") as f:
            digest.update(file.name.encode() + b"\0" + hashlib.file_digest(f, hashlib.blake2b).digest())
    return digest.hexdigest()


def standard_input() -> BinaryIO:
    """A reader of its own: whoever leaves sys.stdin's locked in a thread cannot end the process."""
    return open(0, "rb", closefd=False)


def _open(corpus: Corpus) -> _Opened:
    if corpus.path == "-":
        return _Opened(rows=_lines("standard input", standard_input()), parse=_plain, count=lambda: None)
    path = existing(corpus.path)
    if (path / "dataset_info.json").exists():
        source = open_tfds(path, corpus.split)
        return _Opened(
            rows=range(len(source)),
            parse=lambda number, row: _text(f"{path}:row {row}", source[row], number, corpus),
            count=lambda: len(source),
        )
    if path.is_dir() or path.suffix.lower() == ".parquet":
        files = _parquet_files(path)
        return _Opened(
            rows=itertools.chain.from_iterable(map(_parquet, files)),
            parse=lambda number, row: _text(row[0], row[1].slice(row[2], 1).to_pylist()[0], number, corpus),
            count=lambda: sum(map(_parquet_count, files)),
        )
    if path.suffix.lower() in OTHERS:
        raise UserError(
            f"{path}: cannot read {path.suffix}; what can be read: .jsonl, .parquet, a folder of .parquet, a TFDS "
            "version folder (with dataset_info.json), any other file as a text a line"
        )
    parse = lambda number, row: _text(row[0], _json(number, *row), number, corpus)
    return _Opened(
        rows=_file_lines(path),
        parse=parse if path.suffix.lower() == ".jsonl" else _plain,
        count=lambda: sum(1 for _ in path.open("rb")),
    )


def _file_lines(path: Path) -> Iterator[tuple[str, bytes]]:
    with path.open("rb") as file:
        yield from _lines(str(path), file)


def _lines(name: str, file: BinaryIO) -> Iterator[tuple[str, bytes]]:
    for number, line in enumerate(file, 1):
        yield f"{name}:{number}", line


def _plain(number: int, row: tuple[str, bytes]) -> Text:
    return number, _decode(number, *row).removesuffix("\n").removesuffix("\r")


def _decode(number: int, where: str, line: bytes) -> str:
    try:
        return line.decode("utf-8-sig" if number == 0 else "utf-8")
    except UnicodeDecodeError as error:
        raise UserError(f"{where}: not UTF-8 at byte {error.start}") from None


def _json(number: int, where: str, line: bytes) -> dict:
    text = _decode(number, where, line)
    try:
        fields = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise UserError(f"{where}: {f'not JSON: {error}' if text.strip() else 'blank line'}") from None
    if not isinstance(fields, dict):
        raise UserError(f"{where}: {reprlib.repr(fields)} is not a JSON object")
    return fields


def _parquet_files(path: Path) -> list[Path]:
    files = sorted(path.glob("*.parquet")) if path.is_dir() else [path]
    if not files:
        raise UserError(f"{path}: no .parquet files in this folder, and no dataset_info.json of a TFDS dataset")
    return files


def _parquet(file: Path) -> Iterator[tuple]:
    """(where, batch of rows, row of the batch)."""
    import pyarrow
    from pyarrow import parquet

    number = 0
    try:
        for batch in parquet.ParquetFile(file).iter_batches(batch_size=1_000):
            for i in range(len(batch)):
                yield f"{file}:row {number}", batch, i
                number += 1
    except pyarrow.ArrowException as error:
        raise UserError(f"{file}: not readable as Parquet: {error}") from error


def _parquet_count(file: Path) -> int:
    import pyarrow
    from pyarrow import parquet

    try:
        return parquet.ParquetFile(file).metadata.num_rows
    except pyarrow.ArrowException as error:
        raise UserError(f"{file}: not readable as Parquet: {error}") from error


def _text(where: str, fields: dict, number: int, corpus: Corpus) -> Text:
    name = corpus.field or "text"
    text = _string(where, fields, name)
    if corpus.field is None and fields.get("title"):
        text = f"{_string(where, fields, 'title')} {text}"
    if corpus.id_field is not None and corpus.id_field not in fields:
        raise UserError(f"{where}: no field {corpus.id_field}; its fields are {', '.join(fields) or 'none'}")
    for key in (corpus.id_field,) if corpus.id_field else IDS:
        if key in fields:
            return _id(where, key, fields[key]), text
    return number, text


def _id(where: str, key: str, value) -> str | int:
    value = value.item() if isinstance(value, np.integer) else value  # TFDS has NumPy's numbers, and bytes
    if isinstance(value, bytes):
        value = value.decode(errors="replace")
    if not isinstance(value, str | int) or isinstance(value, bool):
        raise UserError(f"{where}: {key} is {reprlib.repr(value)}, neither a string nor a whole number")
    return value


def _string(where: str, fields: dict, name: str) -> str:
    if name not in fields:
        raise UserError(f"{where}: no field {name} (--field); its fields are {', '.join(fields) or 'none'}")
    value = fields[name]
    try:
        text = value.decode() if isinstance(value, bytes) else value
        if not isinstance(text, str):
            raise UserError(f"{where}: {name} is {reprlib.repr(value)}, not a string")
        text.encode()  # JSON can spell half an emoji, tokenizers take whole ones
    except UnicodeError as error:
        raise UserError(f"{where}: {name} is not valid Unicode: {error}") from None
    return text
