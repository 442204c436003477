"""The formats of public training sets: files to rows, rows to a query, a positive passage and hard negatives.

`rows` functions take a file apart, a shape (shapes.py) says what of a row is what. A row of another shape, or a
file that breaks off, is a UserError with file:line; a row that is merely of no use has a reason, which the caller
counts. A passage with a title is "title text", a space between them, as Tevatron and MIRACL's own tools join them.
"""

import csv
import dataclasses
import gzip
import io
import itertools
import json
import random
import re
import sys
import zlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from e5jax.errors import UserError


BLOCK = 1 << 20  # characters of a JSON array read at a time
BETWEEN = re.compile(r"[\s,\[\]]*")  # the objects of an array
CUT = 16  # characters before the end of a block in which an error may be the block's, not the file's


class Picked(NamedTuple):
    """A training example."""

    query: str
    positive: str
    negatives: tuple[str, ...]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Choice:
    """What is taken of a query's passages: drawn at random, as a function of the seed and the query."""

    seed: int
    negatives: int
    """Of a query, at most."""
    characters: int
    """Where a passage is cut."""


# The files of a copy by their role -> examples, or why one is left out.
Found = Iterator[Picked | str]
Reader = Callable[[dict[str, list[Path]], Choice], Found]
Rows = Callable[[Path], Iterator[tuple[str, Any]]]
Shape = Callable[[Any], tuple[str, list[str], list[str]] | str]


def of_rows(rows: Rows, shape: Shape) -> Reader:
    """A reader of copies whose rows hold whole examples."""

    def read(paths: dict[str, list[Path]], choice: Choice) -> Found:
        for path in itertools.chain.from_iterable(paths.values()):
            for where, row in rows(path):
                yield _picked(where, row, shape, choice)

    return read


def _picked(where: str, row: Any, shape: Shape, choice: Choice) -> Picked | str:
    try:
        found = shape(row)
        if isinstance(found, str):
            return found
        query, positives, negatives = found
        positives = [text for text in positives if usable(text)]
        negatives = [text for text in negatives if usable(text) and text not in positives]
        if not usable(query):
            return "no query"
    except KeyError as error:
        raise UserError(f"{where}: no field {error}; there are {', '.join(row)}: is it another format?") from None
    except (TypeError, AttributeError, IndexError, ValueError) as error:
        raise UserError(f"{where}: a field is of another kind than it should be: {error}") from None
    if not positives:
        return "no positive passage"
    positive, negatives = chosen(query, positives, negatives, choice)
    cut = slice(choice.characters)
    return Picked(query, positive[cut], tuple(text[cut] for text in negatives))


def chosen(query: str, positives: Sequence[str], negatives: Sequence[str], choice: Choice) -> tuple[str, list[str]]:
    """One of the positives, and at most `choice.negatives` of the negatives."""
    draw = random.Random(f"{choice.seed} {query}")
    return draw.choice(positives), draw.sample(negatives, min(choice.negatives, len(negatives)))


def usable(text: str) -> bool:
    """Whether there is something in it, and all of it Unicode: JSON can spell half an emoji."""
    if not isinstance(text, str):
        raise TypeError(f"{text!r:.80} is not a string")
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return bool(text.strip())


def joined(title: str | None, text: str) -> str:
    """A passage as it is embedded."""
    return f"{title} {text}" if title and title.strip() else text


# Files to rows.


def opened(path: Path) -> io.BufferedIOBase:
    """The bytes of a file, unpacked where it is called .gz."""
    return gzip.open(path, "rb") if path.suffix == ".gz" else path.open("rb")


def lines(path: Path) -> Iterator[tuple[int, str]]:
    """Numbered lines with their ends, of a file that may be gzip's; split at line feeds alone."""
    number = 0
    try:
        with opened(path) as file:
            for number, line in enumerate(file, 1):
                yield number, line.decode("utf-8-sig" if number == 1 else "utf-8")
    except UnicodeDecodeError as error:
        raise UserError(f"{path}:{number}: not UTF-8 at byte {error.start}") from None
    except (OSError, EOFError, zlib.error) as error:
        raise UserError(f"{path}:{number + 1}: cannot be read: {error}; is the download whole?") from None


def cells(path: Path) -> Iterator[tuple[int, list[str]]]:
    """Numbered lines, cut at tabs; where one has none, at spaces: both are written as TREC's formats."""
    for number, line in lines(path):
        yield number, line.rstrip("\r\n").split("\t") if "\t" in line else line.split()


def objects(path: Path) -> Iterator[tuple[str, Any]]:
    """Rows of JSON lines, of a JSON array, or of Parquet, by the file's name."""
    return SUFFIXES[Path(path.name.removesuffix(".gz")).suffix](path)


def _jsonl(path: Path) -> Iterator[tuple[str, Any]]:
    for number, line in lines(path):
        try:
            yield f"{path}:{number}", json.loads(line)
        except (ValueError, RecursionError) as error:
            raise UserError(f"{path}:{number}: not JSON: {error}; is the download whole?") from None


def _json(path: Path) -> Iterator[tuple[str, Any]]:
    """The objects of an array, or one after the other. In memory are one of them and a block of the file."""
    decoder, buffer, at, line, counted = json.JSONDecoder(), "", 0, 1, 0
    try:
        with opened(path) as raw, io.TextIOWrapper(raw, encoding="utf-8-sig", newline="") as file:
            while True:
                at = BETWEEN.match(buffer, at).end()
                line, counted = line + buffer.count("\n", counted, at), at
                try:
                    value, end = decoder.raw_decode(buffer, at)
                except json.JSONDecodeError as error:
                    unfinished = error.msg.startswith("Unterminated") or error.pos > len(buffer) - CUT
                    # As much again as there is: a long object is tried a few times only.
                    more = file.read(max(BLOCK, len(buffer) - at)) if unfinished else ""
                    if not more and at == len(buffer):
                        return
                    if not more:
                        raise UserError(f"{path}:{line}: not JSON: {error.msg}; is the download whole?") from None
                    buffer, at, counted = buffer[at:] + more, 0, 0
                    continue
                yield f"{path}:{line}", value
                at = end
    except UnicodeDecodeError:
        raise UserError(f"{path}: not UTF-8 behind line {line}") from None
    except RecursionError:
        raise UserError(f"{path}:{line}: nested too deep") from None
    except (OSError, EOFError, zlib.error) as error:
        raise UserError(f"{path}: cannot be read behind line {line}: {error}; is the download whole?") from None


def _parquet(path: Path) -> Iterator[tuple[str, Any]]:
    import pyarrow
    from pyarrow import parquet

    try:
        batches = parquet.ParquetFile(path).iter_batches(batch_size=1_000)
        rows = itertools.chain.from_iterable(batch.to_pylist() for batch in batches)
        for number, row in enumerate(rows):
            yield f"{path}:row {number}", row
    except (pyarrow.ArrowException, UnicodeDecodeError, OSError) as error:
        raise UserError(f"{path}: not readable as Parquet: {error}") from None


SUFFIXES = {".jsonl": _jsonl, ".json": _json, ".parquet": _parquet}


def table(delimiter: str) -> Rows:
    """Rows of a CSV or TSV file with a header, its cells quoted where they must be."""

    def rows(path: Path) -> Iterator[tuple[str, dict[str, str]]]:
        csv.field_size_limit(sys.maxsize)
        reader = csv.reader((line for _, line in lines(path)), delimiter=delimiter)
        header, number = None, 1
        for row in reader:
            where, number = f"{path}:{number}", reader.line_num + 1
            if header is None:
                header = row
            elif len(row) != len(header):
                raise UserError(f"{where}: {len(row)} cells for {len(header)} columns: {', '.join(header)}")
            else:
                yield where, dict(zip(header, row, strict=True))

    return rows


def rocketqa_rows(path: Path) -> Iterator[tuple[str, tuple[str, list[str], list[str]]]]:
    """DuReader-retrieval as RocketQA trains on it: query, -, positive, -, negative, label; a query's lines together."""
    for query, group in itertools.groupby(_six(path), lambda row: row[1][0]):
        (where, first), *rest = group
        rows = [first, *(row for _, row in rest)]
        # dict.fromkeys: each once, in the order of the file
        yield where, (query, [*dict.fromkeys(row[2] for row in rows)], [*dict.fromkeys(row[4] for row in rows)])


def _six(path: Path) -> Iterator[tuple[str, list[str]]]:
    for number, row in cells(path):
        where = f"{path}:{number}"
        if len(row) != 6:
            raise UserError(f"{where}: {len(row)} cells; RocketQA's has 6: query, -, positive, -, negative, label")
        yield where, row
