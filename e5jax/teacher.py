"""A teacher's vectors of every text of a tokenised store: encoded once, kept in the cache, read in any order.

A student's step then needs rows of an array where it would need a second model. The cache's folder of them:

teacher-KEY/0-16384.npy    vectors of those texts, until all blocks are there; who was interrupted goes on behind them
teacher-KEY/vectors.npy    float16 [X, E], all of them

Shapes: X texts of a store (query, positive, negatives of each record in turn), E the teacher's dims.
"""

import dataclasses
import hashlib
import itertools
import json
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np
import tqdm

from e5jax import data, places, records, st_format
from e5jax.encoder import WINDOW, Encoder
from e5jax.errors import UserError
from e5jax.files import partial, whole
from e5jax.formats import Prompts
from e5jax.mteb_model import SENTENCE_TRANSFORMERS, open_sentence_transformer
from e5jax.sharding import local_mesh


VERSION = 1  # of the cached vectors: raise it when what a text becomes changes
BLOCK = WINDOW  # texts encoded at a time: as many as an encoder packs together
SAMPLE = 16_384  # vectors that a projection is found from


class Teacher(Protocol):
    """What there is to know of a teacher; an Encoder is one."""

    @property
    def prompts(self) -> Prompts:
        """What its own files want in front of texts."""

    @property
    def digest(self) -> str:
        """A hash of all that decides its vectors, but for prompts and `max_length`."""

    @property
    def max_length(self) -> int | None:
        """Tokens of a text, special ones included; longer ones are cut."""

    def encode(self, texts: list[str]) -> np.ndarray:
        """-> float32 [len(texts), E], unit norm, in order, with nothing put in front of the texts."""


def open_teacher(name: str) -> Teacher:
    """`sentence-transformers:NAME_OR_DIR`, or whatever `Encoder.load` takes; all devices share the texts.

    Raises UserError where it cannot be opened.
    """
    if name.startswith(SENTENCE_TRANSFORMERS):
        return SentenceTransformerTeacher.load(name.removeprefix(SENTENCE_TRANSFORMERS))
    return Encoder.load(name, mesh=local_mesh())


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class SentenceTransformerTeacher:
    """A model that sentence-transformers runs, of any architecture and pooling."""

    model: Any
    prompts: Prompts
    digest: str
    max_length: int | None

    @classmethod
    def load(cls, name: str) -> "SentenceTransformerTeacher":
        """A folder or a hub name; weights from safetensors only. UserError where it cannot be opened."""
        model = open_sentence_transformer(name)
        prompts = st_format.read_prompts(model.prompts, Path(places.named(name)))
        return cls(model=model, prompts=prompts, digest=_torch_digest(model), max_length=model.max_seq_length)

    def encode(self, texts: list[str]) -> np.ndarray:
        """-> float32 [len(texts), E], unit norm, in order, with nothing put in front of the texts."""
        # An empty prompt, since None would be the model's default one.
        vectors = self.model.encode(texts, prompt="", normalize_embeddings=True, show_progress_bar=False)
        return np.asarray(vectors, np.float32)


def _torch_digest(model) -> str:
    """sha256 over modules and their settings, tokenizer and weights."""
    import torch

    configs = [getattr(module, "config", None) for module in model.modules()]
    settings = dict.fromkeys(config.to_json_string() for config in configs if hasattr(config, "to_json_string"))
    fast = getattr(model.tokenizer, "backend_tokenizer", None)
    tokenizer = sorted(model.tokenizer.get_vocab().items()) if fast is None else fast.to_str()
    digest = hashlib.sha256(f"{model} {[*settings]} {tokenizer}".encode())
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        # As bytes: NumPy has no bfloat16.
        digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
    return digest.hexdigest()


def prepare(
    teacher: Teacher,
    name: str,
    source: records.Source,
    store: data.Store,
    prompts: Prompts,
    max_negatives: int,
    on_bad_record: Literal["stop", "skip"],
    cache: Path,
) -> np.ndarray:
    """Vectors of a store's texts, from the cache or made now -> float16 [X, E] on disk, row by row as in the store.

    `source`, `max_negatives` and `on_bad_record` are those that the store was made with. In front of queries stands
    what `prompts` has for them, with the record's task where it has a place for one, in front of passages its passage
    prompt. Half precision leaves a length of one to three digits: scale rows before cosines must be exact. While the
    blocks are put together, they are on disk twice.
    Raises UserError for vectors that are not finite, and where the source is not what the store was made from.
    """
    directory = Path(cache).expanduser() / f"teacher-{_key(teacher, source, store, prompts)}"
    whole = directory / "vectors.npy"
    if not whole.exists():
        directory.mkdir(parents=True, exist_ok=True)
        texts = _texts(source, prompts, max_negatives, on_bad_record)
        try:
            _join(_blocks(directory, teacher, name, source, store, texts), whole)
        except FileNotFoundError:  # another process was faster and has tidied up
            if not whole.exists():
                raise
    # As a plain array over the same mapping: slicing a memmap costs ten times as much.
    return np.asarray(np.load(whole, mmap_mode="r", allow_pickle=False))


def _key(teacher: Teacher, source: records.Source, store: data.Store, prompts: Prompts) -> str:
    """A hash of all that the vectors depend on."""
    stats = [(str(file.absolute()), file.stat()) for file in records.files(source)]
    parts = {
        "store": store.digest,
        "teacher": teacher.digest,
        "prompts": dataclasses.asdict(prompts),
        "max_length": teacher.max_length,
        # The store does not tell what was cut off its texts, nor the tasks that a student may not read.
        "source": dataclasses.asdict(dataclasses.replace(source, weight=None, own_negatives_only=False)),
        "files": [(name, stat.st_size, stat.st_mtime_ns) for name, stat in stats],
        "version": VERSION,
    }
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()


def _texts(source: records.Source, prompts: Prompts, max_negatives: int, on_bad_record: str) -> Iterator[list[str]]:
    """What the teacher reads of each record that the store holds."""
    # One whose files ask for nothing is left bare: it has not learnt to read the paper's template.
    prompts = dataclasses.replace(prompts, query=prompts.query or "")
    for where, record in records.read(source):
        if isinstance(record, records.Record):
            yield data.texts_of(record, prompts, max_negatives)
        elif on_bad_record == "stop":
            raise UserError(f"{where}: {record.reason}")


def _blocks(
    directory: Path, teacher: Teacher, name: str, source: records.Source, store: data.Store, texts: Iterator
) -> list[Path]:
    """Encode the blocks that are not there yet -> the files of all, in order."""
    starts, files = store.record_starts, []
    changed = f"{source.path} is not what it was when its texts were tokenised: start again"
    with tqdm.tqdm(
        total=int(starts[-1]), desc=f"{source.path}: vectors of {name}", unit=" texts", delay=1, disable=None
    ) as progress:
        for first, last in itertools.pairwise(_bounds(starts)):
            block = list(itertools.islice(texts, last - first))
            if [len(of_record) for of_record in block] != np.diff(starts[first : last + 1]).tolist():
                raise UserError(changed)
            # Named by its texts, so that blocks of another size are no blocks of these.
            files.append(directory / f"{starts[first]}-{starts[last]}.npy")
            if not files[-1].exists():
                with whole(files[-1]) as file:
                    np.save(file, _encoded(teacher, name, [*itertools.chain(*block)]), allow_pickle=False)
            progress.update(int(starts[last] - starts[first]))
    if next(texts, None) is not None:
        raise UserError(changed)
    return files


def _bounds(record_starts: np.ndarray) -> list[int]:
    """Records at which blocks begin, and the end: at most BLOCK texts in each, if not in one record."""
    bounds = [0]
    while bounds[-1] < len(record_starts) - 1:
        full = np.searchsorted(record_starts, record_starts[bounds[-1]] + BLOCK, side="right") - 1
        bounds.append(max(int(full), bounds[-1] + 1))
    return bounds


def _encoded(teacher: Teacher, name: str, texts: Sequence[str]) -> np.ndarray:
    """float16 [len(texts), E], each different text encoded once."""
    row = {text: i for i, text in enumerate(dict.fromkeys(texts))}
    vectors = teacher.encode(list(row))
    if not np.isfinite(vectors).all():
        text = list(row)[np.flatnonzero(~np.isfinite(vectors).all(axis=1))[0]]
        raise UserError(f"{name}: its vector of {text[:80]!r} holds NaN or infinity: take another teacher")
    return vectors.astype("<f2")[[row[text] for text in texts]]


def _join(files: Sequence[Path], whole: Path) -> None:
    """Blocks end to end in one file; whatever else is in its folder goes."""
    blocks = [np.load(file, mmap_mode="r", allow_pickle=False) for file in files]
    shape = (sum(map(len, blocks)), blocks[0].shape[1])
    aside, end = partial(whole), 0
    joined = np.lib.format.open_memmap(aside, mode="w+", dtype="<f2", shape=shape)
    for block in blocks:
        joined[end : end + len(block)] = block
        end += len(block)
    joined.flush()
    os.replace(aside, whole)
    for file in whole.parent.iterdir():
        if file != whole:
            file.unlink(missing_ok=True)


def projection(vectors_XE: np.ndarray, dims: int) -> np.ndarray:
    """A matrix from a teacher's vectors to a student's width -> float32 [E, dims], orthonormal as far as there is room.

    Cosines of rows of `vectors_XE @ projection` are the teacher's where `dims` >= E (components of zero are added),
    and approximate them where it is less: the basis of PCA without centring, which keeps inner products best in the
    least squares of all their pairs (Eckart and Young 1936), of at most 16,384 vectors, evenly spread. The same
    vectors give the same matrix.
    """
    texts, width = vectors_XE.shape
    if dims >= width:
        return np.eye(width, dims, dtype=np.float32)
    # Multiples of the golden ratio are evenly spread; a fixed step would meet queries alone, or positives alone.
    spread = np.sort(np.arange(SAMPLE) * (5**0.5 - 1) / 2 % 1)
    rows = np.arange(texts) if texts <= SAMPLE else (spread * texts).astype(int)
    gram_EE = np.zeros((width, width))
    for chunk in np.array_split(rows, -(-len(rows) // 1024)):
        x_ME = vectors_XE[chunk].astype(np.float64)
        gram_EE += x_ME.T @ x_ME
    _, basis_EE = np.linalg.eigh(gram_EE)  # ascending
    basis_ED = basis_EE[:, ::-1][:, :dims]
    largest_D = np.abs(basis_ED).argmax(axis=0)
    return (basis_ED * np.sign(basis_ED[largest_D, np.arange(dims)])).astype(np.float32)  # either sign is as good
