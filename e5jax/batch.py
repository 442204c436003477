"""The examples of one step -> the arrays the step reads.

Texts of a batch, in this order: the queries, then the passages, each different passage once: a passage that two
records share is encoded once, and is nobody's own negative.

Shapes: Q queries, K = max_negatives, P passages at most = Q · (1 + K), E dims of a teacher; bins as in packing.py.
"""

import dataclasses
import logging
from collections.abc import Container, Iterator, Sequence
from functools import partial
from pathlib import Path

import grain
import jax
import numpy as np

from e5jax import data, formats, mixture
from e5jax.config import PackingConfig, TrainConfig
from e5jax.data import Store
from e5jax.errors import UserError
from e5jax.packing import Bins, BinShape, choose_shape, fill, place


log = logging.getLogger("e5jax")


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True)
class Batch:
    """One step's input; vector indices count the slots of all bins."""

    bins: Bins
    query_Q: np.ndarray
    passage_P: np.ndarray
    positive_Q: np.ndarray  # which passage is query i's own
    negative_QK: np.ndarray  # which passages are its hard negatives
    has_QK: np.ndarray
    valid_P: np.ndarray
    same_Q: np.ndarray  # the first query of the batch that reads the same
    own_only_Q: np.ndarray | None  # queries that are compared with their own negatives alone; None: no source has such
    teacher_QE: np.ndarray | None  # a teacher's vectors, float16, of any length; None: nobody teaches from the cache
    teacher_PE: np.ndarray | None


@dataclasses.dataclass(frozen=True, kw_only=True)
class Texts:
    """The distinct texts of a batch, as (source, record, which text of the record), and who belongs to whom."""

    where: np.ndarray  # [texts, 3]
    lengths: np.ndarray  # [texts], in tokens
    positive_Q: np.ndarray
    negative_QK: np.ndarray
    has_QK: np.ndarray
    same_Q: np.ndarray

    @property
    def passages(self) -> int:
        """How many different passages there are."""
        return len(self.where) - len(self.positive_Q)


def texts_of(stores: Sequence[Store], examples: np.ndarray, max_negatives: int) -> Texts:
    """List a batch's texts from lengths and hashes alone, without reading a token."""
    owner, where, lengths, hashes = [], [], [], []
    for query, (source, record) in enumerate(examples.tolist()):
        for which, (length, hash_) in enumerate(stores[source].describe(record)):
            owner.append(query)
            where.append((source, record, which))
            lengths.append(length)
            hashes.append(hash_)
    where, lengths, hashes = np.array(where), np.array(lengths), np.array(hashes, np.uint64)
    is_query = where[:, 2] == 0
    _, first, passage_of = np.unique(hashes[~is_query], return_index=True, return_inverse=True)
    keep = np.concatenate([np.flatnonzero(is_query), np.flatnonzero(~is_query)[first]])
    which, owner = where[~is_query][:, 2], np.array(owner)[~is_query]
    hard = which > 1
    at = owner[hard], which[hard] - 2
    negative_QK, has_QK = np.zeros((2, len(examples), max_negatives), np.int32)
    negative_QK[at], has_QK[at] = passage_of[hard], 1
    _, of_query, equal = np.unique(hashes[is_query], return_index=True, return_inverse=True)
    return Texts(
        where=where[keep],
        lengths=lengths[keep],
        positive_Q=passage_of[which == 1],
        negative_QK=negative_QK,
        has_QK=has_QK.astype(bool),
        same_Q=of_query[equal].astype(np.int32),
    )


def make_batch(
    stores: Sequence[Store],
    teachers: Sequence[np.ndarray] | None,
    examples: np.ndarray,
    shape: BinShape,
    local: Container[int],
    max_negatives: int,
) -> Batch:
    """`teachers`: vectors of each store's texts (`teacher.prepare`). Only texts of the shards `local` are read.

    Raises UserError where the texts do not fit the shape, naming the setting to raise.
    """
    texts = texts_of(stores, examples, max_negatives)
    placement = place(texts.lengths, shape)
    if placement is None:
        raise UserError(
            f"a batch of {texts.lengths.sum():,} tokens in {len(texts.lengths):,} texts does not fit "
            f"{shape.chunks} chunks × {shape.shards} shards × {shape.tokens:,} tokens: raise packing.spare"
        )

    def text(i):
        if placement.bin[i] % shape.shards not in local:
            return 0  # another process reads it
        source, record, which = texts.where[i]
        return stores[source].texts(record)[which]

    queries = len(examples)
    own_only = np.array([store.source.own_negatives_only for store in stores])
    vector = placement.vector(shape.slots)
    room = queries * (1 + max_negatives)
    passage_P = np.zeros(room, np.int32)
    passage_P[: texts.passages] = vector[queries:]
    teacher_QE = teacher_PE = None
    if teachers is not None:
        taught = np.stack([teachers[s][stores[s].record_starts[record] + which] for s, record, which in texts.where])
        teacher_QE, teacher_PE = taught[:queries], np.zeros((room, taught.shape[1]), taught.dtype)
        teacher_PE[: texts.passages] = taught[queries:]
    return Batch(
        bins=fill(text, texts.lengths, placement, shape),
        query_Q=vector[:queries],
        passage_P=passage_P,
        positive_Q=texts.positive_Q.astype(np.int32),
        negative_QK=texts.negative_QK,
        has_QK=texts.has_QK,
        valid_P=np.arange(room) < texts.passages,
        same_Q=texts.same_Q,
        own_only_Q=own_only[examples[:, 0]] if own_only.any() else None,
        teacher_QE=teacher_QE,
        teacher_PE=teacher_PE,
    )


@dataclasses.dataclass(frozen=True, kw_only=True)
class TrainData:
    """Tokenised sources and their mixture: `examples[i]` is what step i + 1 reads."""

    stores: tuple[data.Store, ...]
    teachers: tuple[np.ndarray, ...] | None
    """A teacher's vectors of each store's texts."""
    examples: grain.MapDataset
    fingerprint: str
    max_negatives: int

    def batches(self, first: int, last: int, shape: BinShape, local: Container[int]) -> Iterator[Batch]:
        """Batches of steps first + 1 … last, with the texts of the shards `local`, made ahead in the background."""
        ahead = grain.ReadOptions(num_threads=2, prefetch_buffer_size=4)
        return iter(self.examples[first:last].map(partial(self.batch_of, shape, local)).to_iter_dataset(ahead))

    def batch_of(self, shape: BinShape, local: Container[int], examples: np.ndarray) -> Batch:
        """The batch of a step's examples."""
        return make_batch(self.stores, self.teachers, examples, shape, local, self.max_negatives)

    def where(self, step: int) -> list[str]:
        """The places in the user's files that the examples of a step came from."""
        return [self.stores[source].where(record) for source, record in self.examples[step - 1]]


def prepare_data(config: TrainConfig, tokenizer: formats.Tokenizer) -> TrainData:
    """Tokenise what is not in the cache yet, and mix."""
    settings, cache = config.data, Path(config.data.cache).expanduser()
    stores = tuple(
        data.prepare(
            source,
            tokenizer,
            settings.prompts,
            settings.max_length,
            settings.max_negatives,
            settings.on_bad_record,
            cache,
        )
        for source in settings.train
    )
    for store in stores:
        if store.source.own_negatives_only and not (store.counts(np.arange(len(store))) > 2).any():
            raise UserError(
                f"{store.source.path}: own_negatives_only, and no record has a negative: python -m e5jax.mine finds "
                f"some, data.max_negatives ({settings.max_negatives}) lets them in"
            )
        notes = [f"{len(store):,} records"]
        notes += [f"{store.truncated:,} texts cut to {settings.max_length} tokens"] * bool(store.truncated)
        notes += [f"{store.skipped:,} bad records left out"] * bool(store.skipped)
        log.info("%s: %s", store.source.path, ", ".join(notes))
    weights = [store.source.weight or len(store) for store in stores]
    same_source = settings.same_source_batches
    return TrainData(
        stores=stores,
        teachers=None,
        examples=mixture.mixed(stores, weights, config.batch_size, config.seed, same_source),
        fingerprint=mixture.fingerprint(stores, weights, config.seed, config.batch_size, same_source),
        max_negatives=settings.max_negatives,
    )


def sample_lengths(config: TrainConfig, train_data: TrainData) -> list[np.ndarray]:
    """Tokens of each text of batches all along the run; of a short run, of all."""
    steps = np.unique(np.linspace(0, config.steps - 1, min(config.steps, 1000)).astype(int))
    lengths = lambda step: texts_of(train_data.stores, train_data.examples[step], train_data.max_negatives).lengths
    return [lengths(int(step)) for step in steps]


def fits(shape: BinShape, sample: Sequence[np.ndarray]) -> bool:
    """Whether every batch of the sample finds room."""
    return all(place(lengths, shape) is not None for lengths in sample)


def fit_shape(packing: PackingConfig, chunks: int, sample: Sequence[np.ndarray], whole: bool, shards: int) -> BinShape:
    """The one shape of a run's batches, in so many chunks; raises UserError where one of the sample does not fit.

    `whole`: the sample is the run.
    """
    if chunks == 1:  # one that does not fit has no second chunk to go to; of a short run we know them all
        spread, spare = sorted(sample, key=np.sum, reverse=True), packing.spare * (not whole)
    else:
        spread, spare = [*sample[:: max(1, len(sample) // 32)], max(sample, key=np.sum)], packing.spare
    shape = choose_shape(spread, shards, chunks, spare, packing.widths)
    if shape is None or not fits(shape, sample):
        raise UserError(
            f"batches of {min(map(sum, sample)):,} to {max(map(sum, sample)):,} tokens do not fit one shape: "
            f"raise packing.spare (now {packing.spare}) or packing.chunks (now {chunks})"
        )
    return shape
