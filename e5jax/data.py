"""Records to token stores: a source is tokenised once; lengths and tokens are read from the store in any order."""

import array
import dataclasses
import hashlib
import itertools
import json
import logging
import os
import shutil
import uuid
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Literal

import numpy as np
import tqdm

from e5jax import formats, records
from e5jax.errors import UserError


log = logging.getLogger("e5jax")

VERSION = 1  # of the store's files: raise it when what `_write` writes changes
BLOCK = 1_000  # records tokenised at a time, on all cores


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Store:
    """The tokenised records of one source, on disk, read in any order.

    Shapes: R records, X texts (query, positive, negatives of each record in turn), T tokens of a
    batch's texts.
    """

    source: records.Source
    digest: str
    """sha256 of tokens and boundaries: the same for the same data, wherever it lies."""
    skipped: int
    """Bad records left out."""
    truncated: int
    """Texts cut to `max_length`."""
    tokens: np.ndarray
    """int32, all texts end to end."""
    hashes: np.ndarray
    """uint64 [X], equal for equal texts."""
    text_starts: np.ndarray
    """int64 [X + 1], into `tokens`."""
    record_starts: np.ndarray
    """int64 [R + 1], into the texts."""
    places: np.ndarray
    """uint8, where each record was read, end to end."""
    place_starts: np.ndarray
    """int64 [R + 1], into `places`."""

    @classmethod
    def open(cls, directory: Path, source: records.Source) -> "Store":
        """The store that `prepare` has written to a directory."""
        facts = json.loads((directory / "facts.json").read_text())
        arrays = {file.stem: np.load(file, mmap_mode="r") for file in directory.glob("*.npy")}
        arrays["tokens"] = np.memmap(directory / "tokens.int32", "<i4", mode="r")
        arrays["places"] = np.memmap(directory / "places.utf8", "u1", mode="r")
        # As plain arrays over the same mapping: slicing a memmap costs ten times as much.
        arrays = {name: np.asarray(mapped) for name, mapped in arrays.items()}
        return cls(source=source, **arrays, **facts)

    def __len__(self) -> int:
        return len(self.record_starts) - 1

    def texts(self, record: int) -> list[np.ndarray]:
        """Token ids of a record's texts: query, positive, negatives."""
        first, last = self.record_starts[record : record + 2]
        bounds = itertools.pairwise(self.text_starts[first : last + 1])
        return [self.tokens[start:stop] for start, stop in bounds]

    def describe(self, record: int) -> list[tuple[int, int]]:
        """Length in tokens and hash of each of a record's texts."""
        first, last = self.record_starts[record : record + 2]
        lengths = np.diff(self.text_starts[first : last + 1])
        return list(zip(lengths.tolist(), self.hashes[first:last].tolist(), strict=True))

    def counts(self, records_B: np.ndarray) -> np.ndarray:
        """How many texts each of these records has, [B]."""
        return self.record_starts[records_B + 1] - self.record_starts[records_B]

    def lengths(self, records_B: np.ndarray) -> np.ndarray:
        """Tokens in each text of these records, record after record, [sum of `counts`]."""
        counts_B = self.counts(records_B)
        shift_B = self.record_starts[records_B] - (np.cumsum(counts_B) - counts_B)
        texts = np.arange(counts_B.sum()) + np.repeat(shift_B, counts_B)
        return self.text_starts[texts + 1] - self.text_starts[texts]

    def where(self, record: int) -> str:
        """The place in the user's files that a record came from, as "path:LINE"."""
        start, stop = self.place_starts[record : record + 2]
        return os.fsdecode(self.places[start:stop].tobytes())


def prepare(
    source: records.Source,
    tokenizer: formats.Tokenizer,
    prompts: formats.Prompts,
    max_length: int,
    max_negatives: int,
    on_bad_record: Literal["stop", "skip"],
    cache: Path,
) -> Store:
    """The store of a source, from the cache or made now; a record keeps its first `max_negatives`.

    Bad records stop it with a UserError that names the first, or are left out, counted and logged.
    """
    if max_negatives < 0:
        raise UserError(f"max_negatives must not be negative, got {max_negatives}")
    settings = (max_length, max_negatives, on_bad_record)
    directory = Path(cache).expanduser() / _key(source, tokenizer, prompts, settings)
    if not directory.exists():
        # Renamed when whole, so that what has the name is whole, whoever was killed or was faster.
        scratch = directory.with_name(f"{directory.name}.{uuid.uuid4().hex}.partial")
        scratch.mkdir(parents=True)
        try:
            _write(scratch, source, tokenizer, prompts, *settings)
            scratch.rename(directory)
        except OSError:
            if not directory.exists():
                raise
        finally:
            shutil.rmtree(scratch, ignore_errors=True)
    return Store.open(directory, source)


def _key(source: records.Source, tokenizer: formats.Tokenizer, prompts: formats.Prompts, settings: tuple) -> str:
    """A hash of all that the contents of a store depend on."""
    stats = [(str(file.absolute()), file.stat()) for file in records.files(source)]
    parts = {
        "source": dataclasses.asdict(dataclasses.replace(source, weight=None, own_negatives_only=False)),
        "files": [(name, stat.st_size, stat.st_mtime_ns) for name, stat in stats],
        "tokenizer": tokenizer.digest,
        "prompts": dataclasses.asdict(prompts),
        "settings": settings,
        "version": VERSION,
    }
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()


def _write(
    directory: Path,
    source: records.Source,
    tokenizer: formats.Tokenizer,
    prompts: formats.Prompts,
    max_length: int,
    max_negatives: int,
    on_bad_record: str,
) -> None:
    """Write a store's files in one pass: in memory are a block of records, lengths and hashes."""
    bad, truncated, digest = [], 0, hashlib.sha256()
    text_lengths, record_lengths, place_lengths = (array.array("q") for _ in range(3))
    hashes = array.array("Q")
    with (
        (directory / "tokens.int32").open("wb") as tokens,
        (directory / "places.utf8").open("wb") as places,
        # delay: what takes less than a second needs no bar; None: nor does a log file.
        tqdm.tqdm(desc=source.path, unit=" records", delay=1, disable=None) as progress,
    ):
        for block in _blocks(records.read(source), BLOCK):
            bad += [f"{at}: {r.reason}" for at, r in block if isinstance(r, records.BadRecord)]
            if bad and on_bad_record == "stop":
                raise UserError(f"{bad[0]} (--data.on-bad-record skip leaves it out)")
            good = [(at, r) for at, r in block if isinstance(r, records.Record)]
            texts = [texts_of(record, prompts, max_negatives) for _, record in good]
            ids, cut = tokenizer.encode_counting([*itertools.chain(*texts)], max_length)
            for text in ids:
                data = text.astype("<i4").tobytes()
                tokens.write(data)
                digest.update(data)
                hashes.append(int.from_bytes(hashlib.blake2b(data, digest_size=8).digest()))
            text_lengths.extend(map(len, ids))
            record_lengths.extend(map(len, texts))
            place_lengths.extend(places.write(os.fsencode(at)) for at, _ in good)
            truncated += cut
            progress.update(len(block))
    if not record_lengths:
        raise UserError(f"{source.path}: all {len(bad)} records are bad; the first: {bad[0]}")
    if bad:
        log.warning("%s: left out %d bad records: %s", source.path, len(bad), "; ".join(bad[:3]))
    text_starts, record_starts = _starts(text_lengths), _starts(record_lengths)
    digest.update(text_starts.tobytes() + record_starts.tobytes())
    np.save(directory / "text_starts.npy", text_starts)
    np.save(directory / "record_starts.npy", record_starts)
    np.save(directory / "place_starts.npy", _starts(place_lengths))
    np.save(directory / "hashes.npy", np.asarray(hashes))
    facts = {"digest": digest.hexdigest(), "skipped": len(bad), "truncated": truncated}
    (directory / "facts.json").write_text(json.dumps(facts))


def texts_of(record: records.Record, prompts: formats.Prompts, max_negatives: int) -> list[str]:
    """Query, positive and the first negatives of a record, as the model reads them."""
    passages = (record.positive, *record.negatives[:max_negatives])
    return [prompts.before_query(record.task) + record.query, *(prompts.passage + text for text in passages)]


def _starts(lengths: array.array) -> np.ndarray:
    return np.concatenate([[0], np.cumsum(lengths)]).astype("<i8")


def _blocks(items: Iterable, size: int) -> Iterator[list]:
    items = iter(items)
    while block := list(itertools.islice(items, size)):
        yield block
