"""Vectors on disk: .npy shards, the ids of each, one index at the end.

D/job.json             what was asked for; a folder of another job is refused
D/vectors-00000.npy    [texts, dims] float32, int8 [texts, dims] or bits in uint8 [texts, dims / 8]
D/ids-00000.json       ids of its texts, in order; written after the vectors, so it says that the shard is whole
D/index.json           {"count", "dims", "dtype", "shards", ...}, once every shard is there

Shards are written by any number of processes in any order; whoever finds all of them there writes the index.
"""

import contextlib
import dataclasses
import json
import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from e5jax import places
from e5jax.errors import UserError
from e5jax.files import partial, whole, write_json, write_text


def check_folder(directory: Path) -> None:
    """UserError where a folder holds other files than a job's: nothing of the user's is written over."""
    if directory.exists() and not directory.is_dir():
        raise UserError(f"{directory} is a file: choose another --output")
    if directory.is_dir() and not (directory / "job.json").exists():
        if strangers := [p.name for p in directory.iterdir() if not p.name.startswith(".job.json.")]:
            raise UserError(f"{directory} holds other files ({strangers[0]}): choose another --output")


def open_job(directory: Path, job: dict) -> None:
    """Make the folder for a job, or find it there. UserError where it holds another job's vectors."""
    file = directory / "job.json"
    try:
        directory.mkdir(parents=True, exist_ok=True)
        if not file.exists() and not isinstance(file, Path):
            write_json(file, job)  # in a bucket the last writer counts, and a process of another job finds that below
        elif not file.exists():
            aside = partial(file)
            write_json(aside, job)
            with contextlib.suppress(FileExistsError):  # another process was faster: its job counts
                os.link(aside, file)
            aside.unlink()
        stored = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"{directory} cannot be used: {error}") from error
    changed = [key for key in {**job, **stored} if job.get(key) != stored.get(key) and key != "model"]  # digest tells
    if changed:
        reasons = [f"{key} was {stored.get(key)!r}, now {job.get(key)!r}" for key in changed]
        raise UserError(f"{directory} holds vectors of another job: {'; '.join(reasons)}. Choose another --output")


def is_done(directory: Path, shard: int) -> bool:
    """Whether a shard is whole."""
    return _ids(directory, shard).exists()


def write_shard(directory: Path, shard: int, ids: list, vectors: np.ndarray, facts: dict) -> None:
    """Vectors, then what is known of them: ids and `facts`, each whole or not at all."""
    with whole(_vectors(directory, shard)) as file:
        np.save(file, vectors, allow_pickle=False)
    write_text(_ids(directory, shard), json.dumps({"ids": ids, **facts}, ensure_ascii=False))


def read_facts(directory: Path, shard: int) -> dict:
    """What was written of a shard beside its vectors: its ids and facts."""
    return json.loads(_ids(directory, shard).read_text(encoding="utf-8"))


def write_index(directory: Path, shards: int) -> dict | None:
    """The index over all shards, once every one is there; None before that.

    Raises UserError where there are more than that: the input was longer when they were made.
    """
    if is_done(directory, shards):
        raise UserError(f"{directory} has more than the {shards} shards of this input, which was longer before")
    if not all(is_done(directory, shard) for shard in range(shards)):
        return None
    job = json.loads((directory / "job.json").read_text(encoding="utf-8"))
    counts, totals = [], {"truncated": 0, "tokens": 0}
    for shard in range(shards):
        facts = read_facts(directory, shard)
        counts.append(len(facts["ids"]))
        totals = {key: total + facts[key] for key, total in totals.items()}
    index = {
        "count": sum(counts),
        **totals,
        **job,
        "shards": [
            {"vectors": _vectors(directory, i).name, "ids": _ids(directory, i).name, "count": n}
            for i, n in enumerate(counts)
        ],
    }
    write_json(directory / "index.json", index)
    return index


def read_index(directory: Path) -> dict:
    """index.json. UserError where the job has not ended."""
    if not (directory / "index.json").is_file():
        begun = f" ({len(list(directory.glob('ids-*.json')))} shards so far)" if directory.is_dir() else ""
        raise UserError(f"{directory}: no index.json: no folder of `python -m e5jax.encode`, or not finished{begun}")
    try:
        index = json.loads((directory / "index.json").read_text(encoding="utf-8"))
        _none(index), len(index["shards"])  # what is read of it below is there, and of its kind
    except (OSError, ValueError, TypeError, KeyError, RecursionError) as error:
        raise UserError(f"{directory / 'index.json'} cannot be used: {type(error).__name__}: {error}") from error
    return index


def load_shards(directory: str | Path) -> Iterator[tuple[list, np.ndarray]]:
    """(ids, vectors) of every shard in order; the vectors are mapped, not read.

    Raises UserError where the job has not ended.
    """
    directory = places.local(str(directory))
    index = read_index(directory)
    none = _none(index)
    for shard in range(len(index["shards"])):
        try:
            vectors = np.load(_vectors(directory, shard), mmap_mode="r", allow_pickle=False)
            ids = read_facts(directory, shard)["ids"]
            fits = vectors.shape == (len(ids), none.shape[1]) and vectors.dtype == none.dtype
        except Exception as error:  # of many kinds: NumPy parses a header as Python's literals
            raise UserError(f"{directory}: shard {shard} cannot be read: {type(error).__name__}: {error}") from error
        if not fits:
            raise UserError(f"{directory}: shard {shard} has {vectors.dtype}{list(vectors.shape)} for {len(ids)} ids")
        yield ids, vectors


def load(directory: str | Path) -> tuple[list, np.ndarray]:
    """-> (ids, vectors [texts, dims]) of a whole folder, in memory. UserError where the job has not ended."""
    index = read_index(places.local(str(directory)))
    shards = list(load_shards(directory))
    return [id_ for ids, _ in shards for id_ in ids], np.concatenate([_none(index), *(found for _, found in shards)])


def _none(index: dict) -> np.ndarray:
    """No vectors, of the width and dtype that an index says."""
    return quantized(np.zeros((0, index["dims"]), np.float32), None, index["dtype"])


def quantized(vectors: np.ndarray, dims: int | None, dtype: str) -> np.ndarray:
    """Unit vectors [n, D] as they are stored: cut to `dims` and of length one again, then float32, int8 or bits.

    int8 scales each vector by itself, its largest component to ±127: compare by cosine, where the scale cancels.
    binary keeps signs, the first dimension in the highest bit (np.packbits, sentence-transformers' "ubinary").
    """
    if dims is not None:
        vectors = vectors[:, :dims]
        vectors = vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12)
    if dtype == "int8":
        largest = np.maximum(np.abs(vectors).max(axis=1, keepdims=True, initial=0), 1e-12)
        return np.rint(vectors * (127 / largest)).astype(np.int8)
    if dtype == "binary":
        return np.packbits(vectors > 0, axis=1)
    return vectors


def dequantized(stored: np.ndarray, dims: int, dtype: str) -> np.ndarray:
    """What `quantized` has stored, as float32 [n, dims] whose products are the cosines that it allows.

    int8: of length one again. binary: +1 and -1 over the root of dims, so that the product is one minus twice the share
    of signs that differ, the order of Hamming distances.
    """
    if dtype == "int8":
        vectors = stored.astype(np.float32)
        return vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12)
    if dtype == "binary":
        return (np.unpackbits(stored, axis=1, count=dims).astype(np.float32) * 2 - 1) / np.float32(np.sqrt(dims))
    return stored


@dataclasses.dataclass(frozen=True, kw_only=True)
class Kept:
    """What is kept of a model's vectors."""

    dims: int | None
    """The first so many dimensions; None: all."""
    quantize: str | None
    """int8 or binary; None: float32."""

    def check(self, dim: int) -> int:
        """The dimensions that are kept of `dim`. Raises UserError where there are not that many, or no whole bytes."""
        if self.dims is not None and self.dims > dim:
            raise UserError(f"dims {self.dims}: the model's vectors have {dim}")
        dims = self.dims or dim
        if self.quantize == "binary" and dims % 8:
            raise UserError(f"binary vectors are whole bytes: dims {dims} is not a multiple of 8")
        return dims

    def apply(self, vectors: np.ndarray) -> np.ndarray:
        """Vectors [n, D] as a search among the stored ones would compare them, float32 [n, dims]."""
        dtype = self.quantize or "float32"
        return dequantized(quantized(vectors, self.dims, dtype), self.dims or vectors.shape[1], dtype)


def _vectors(directory: Path, shard: int) -> Path:
    return directory / f"vectors-{shard:05}.npy"


def _ids(directory: Path, shard: int) -> Path:
    return directory / f"ids-{shard:05}.json"
