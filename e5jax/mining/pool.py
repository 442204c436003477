"""The records to mine for, and the pool of passages that their negatives come from.

A passage is in the pool once, whatever its letter case and spacing: then a number tells passages apart, and none that a
query must not have can come back in another spelling. All texts are in memory: about 0.8 GB for a million passages of
600 characters.

Shapes: D components of a vector.
"""

import dataclasses
import hashlib
from collections import defaultdict
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
from tqdm import tqdm

from e5jax import corpus as corpora
from e5jax import records
from e5jax.corpus import Corpus
from e5jax.encoder import WINDOW
from e5jax.errors import UserError
from e5jax.files import whole
from e5jax.job import open_job
from e5jax.records import BadRecord, Record, Source
from e5jax.synthetic.answers import digest, normal
from e5jax.teacher import Teacher


SHARD = WINDOW  # passages of a file of vectors, which is what an interruption costs
PIECE = 2_048  # of these encoded at a time, for a bar that moves


class Pool:
    """Different passages, numbered in the order in which they came."""

    def __init__(self):
        self.texts: list[str] = []
        self._number: dict[bytes, int] = {}

    def add(self, text: str) -> int:
        """The number of a passage, which is taken in if it is new."""
        number = self._number.setdefault(form(text), len(self.texts))
        if number == len(self.texts):
            self.texts.append(text)
        return number

    def find(self, text: str) -> int | None:
        """Its number; None for a passage that is not in the pool."""
        return self._number.get(form(text))


@dataclasses.dataclass(frozen=True, kw_only=True)
class Asked:
    """A record, and the numbers of its passages in the pool."""

    record: Record
    positive: int
    own: tuple[int, ...]
    """The negatives that it brought along."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Data:
    """What is mined for, and in what."""

    asked: list[Asked]
    pool: Pool
    positives: dict[bytes, set[int]]
    """Form of a query -> the positives of all its records, whatever their tasks."""
    unusable: int
    """Records that were no good."""
    digests: dict[str, str]
    """Hashes of the records and of the pool's texts."""

    def barred(self, asked: Asked, keep_own: bool) -> dict[int, str]:
        """{passage: why it is no negative of this record}, by the names in `negatives.FATES`."""
        query = asked.record.query
        found = dict.fromkeys(asked.own if keep_own else (), "own negative")
        if (itself := self.pool.find(query)) is not None:
            found[itself] = "query itself"
        return found | dict.fromkeys(self.positives[form(query)], "other positive") | {asked.positive: "own positive"}

    def most_barred(self) -> int:
        """No record has more passages barred than this."""
        return max(1 + len(asked.own) + len(self.positives[form(asked.record.query)]) for asked in self.asked)


def form(text: str) -> bytes:
    """The same for texts that differ in case and spacing alone."""
    return digest(normal(text))


def read(sources: Sequence[Source], corpus: str | None, on_bad_record: str) -> Data:
    """All records and the passages of `corpus`, blank ones left out. Raises UserError with file:line."""
    pool, asked, positives, unusable, seen = Pool(), [], defaultdict(set), 0, hashlib.sha256()
    with tqdm(desc="reading", unit=" texts", unit_scale=True, delay=1, disable=None) as progress:
        for source in sources:
            for where, record in records.read(source):
                if isinstance(record, BadRecord):
                    if on_bad_record == "stop":
                        raise UserError(f"{where}: {record.reason} (--on-bad-record skip leaves it out)")
                    unusable += 1
                    continue
                own = tuple(map(pool.add, record.negatives))
                asked.append(Asked(record=record, positive=pool.add(record.positive), own=own))
                positives[form(record.query)].add(asked[-1].positive)
                seen.update(repr(record).encode())
                progress.update()
        for text in _passages(corpus) if corpus is not None else ():
            pool.add(text)
            progress.update()
    if not asked:
        raise UserError("no usable record to mine for")
    digests = {"records": seen.hexdigest(), "passages": _digest(pool.texts)}
    return Data(asked=asked, pool=pool, positives=positives, unusable=unusable, digests=digests)


def _digest(texts: Iterable[str]) -> str:
    seen = hashlib.sha256()
    for text in texts:
        seen.update(f"{len(text)}:{text}".encode())
    return seen.hexdigest()


def _passages(path: str) -> Iterable[str]:
    for _, texts in corpora.shards(Corpus(path=path, field=None, id_field=None, split="train"), SHARD, lambda _: True):
        yield from (text for _, text in texts if text.strip())


def vectors(
    teacher: Teacher, name: str, texts: Sequence[str], before: str, job: dict, folder: Path
) -> list[np.ndarray]:
    """Unit vectors of the texts behind `before`: float32 [SHARD, D] files in `folder`, mapped; those there stay.

    `job` is what they depend on: UserError for a folder of another, and for vectors that are not finite.
    """
    open_job(folder, job, "vectors", "--vectors or --output")
    files = []
    with tqdm(total=len(texts), desc=f"vectors of {name}", unit=" texts", delay=1, disable=None) as progress:
        for first in range(0, len(texts), SHARD):
            last = min(first + SHARD, len(texts))
            files.append(folder / f"{first}-{last}.npy")
            if files[-1].exists():
                progress.update(last - first)
                continue
            pieces = []
            for start in range(first, last, PIECE):
                piece = texts[start : min(start + PIECE, last)]
                pieces.append(encode(teacher, name, [before + text for text in piece]))
                progress.update(len(piece))
            with whole(files[-1]) as file:
                np.save(file, np.concatenate(pieces), allow_pickle=False)
    return [_mapped(file) for file in files]


def encode(teacher: Teacher, name: str, texts: Sequence[str]) -> np.ndarray:
    """float32 [len(texts), D], each different text encoded once. UserError where one is not finite."""
    row = {text: i for i, text in enumerate(dict.fromkeys(texts))}
    found = teacher.encode(list(row))
    if not np.isfinite(found).all():
        text = list(row)[np.flatnonzero(~np.isfinite(found).all(axis=1))[0]]
        raise UserError(f"{name}: its vector of {text[:80]!r} holds NaN or infinity: take another model")
    return found[[row[text] for text in texts]]


def _mapped(file: Path) -> np.ndarray:
    try:
        # As a plain array over the same mapping: slicing a memmap costs ten times as much.
        return np.asarray(np.load(file, mmap_mode="r", allow_pickle=False))
    except Exception as error:  # of many kinds: NumPy parses a header as Python's literals
        raise UserError(f"{file} cannot be read, remove it: {type(error).__name__}: {error}") from error
