"""Examples to arrays: every different passage once, everyone's own passage found, one shape for every batch."""

import dataclasses
import hashlib
import itertools

import jax
import numpy as np
import pytest

from e5jax.batch import TrainData, fit_shape, fits, make_batch, sample_lengths, texts_of
from e5jax.config import PackingConfig
from e5jax.data import Store
from e5jax.errors import UserError
from e5jax.packing import BinShape
from e5jax.records import Source


SHAPE = BinShape(chunks=3, shards=2, rows=((16, 2), (8, 2)), slots=12)
ALL = range(2)  # the shards of one process


def store(*records):
    """A store of (query, positive, *negatives), each text a list of token ids."""
    texts = [np.array(text, np.int32) for record in records for text in record]
    starts = lambda counts: np.array([0, *itertools.accumulate(counts)])
    hash_ = lambda text: int.from_bytes(hashlib.blake2b(text.tobytes(), digest_size=8).digest())
    return Store(
        source=Source(path="x.jsonl"),
        digest="",
        skipped=0,
        truncated=0,
        tokens=np.concatenate(texts),
        hashes=np.array([hash_(text) for text in texts], np.uint64),
        text_starts=starts(map(len, texts)),
        record_starts=starts(map(len, records)),
        places=np.zeros(0, np.uint8),
        place_starts=np.zeros(len(records) + 1, int),
    )


# Shared passages: [1, 1] of two records (and once also a query), [9] as someone's positive and another's negative.
FIRST = store(([5], [1, 1], [9]), ([6, 6], [1, 1]), ([1, 1], [9], [2] * 16))
SECOND = store(([5], [7, 8, 9], [3]), ([4], [1, 1], [1, 1]))
EXAMPLES = np.array([[0, 2], [1, 1], [0, 0], [1, 0], [0, 1]])
POSITIVES = [[9], [1, 1], [1, 1], [7, 8, 9], [1, 1]]
QUERIES = [[1, 1], [4], [5], [5], [6, 6]]
PASSAGES = [[1, 1], [2] * 16, [3], [7, 8, 9], [9]]


def text_at(batch, vector, shape=SHAPE):
    """The tokens behind the index of a vector."""
    bin_, slot = divmod(int(vector), shape.slots)
    chunk, shard = divmod(bin_, shape.shards)
    return batch.bins.tokens_CST[chunk, shard, batch.bins.segments_CST[chunk, shard] == slot + 1].tolist()


def test_every_different_passage_stands_once_and_every_query_finds_its_own():
    batch = make_batch((FIRST, SECOND), None, EXAMPLES, SHAPE, ALL, max_negatives=1)
    assert [text_at(batch, vector) for vector in batch.query_Q] == QUERIES
    passages = [text_at(batch, vector) for vector in batch.passage_P[batch.valid_P]]
    assert sorted(passages) == PASSAGES
    assert [passages[own] for own in batch.positive_Q] == POSITIVES


def test_a_query_is_no_passage_though_its_text_may_be_one():
    batch = make_batch((FIRST, SECOND), None, EXAMPLES, SHAPE, ALL, max_negatives=1)
    assert not set(batch.query_Q) & set(batch.passage_P[batch.valid_P])
    assert len(set(batch.query_Q)) == len(EXAMPLES)  # equal queries are encoded each


def test_texts_are_counted_without_reading_a_token(monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(Store, "texts", lambda *_: pytest.fail("a text was read"))
        texts = texts_of((FIRST, SECOND), EXAMPLES, 1)
    assert texts.passages == len(PASSAGES)
    assert texts.lengths[: len(QUERIES)].tolist() == [len(query) for query in QUERIES]
    assert sorted(texts.lengths[len(QUERIES) :]) == sorted(map(len, PASSAGES))
    read = [(FIRST, SECOND)[source].texts(record)[which].tolist() for source, record, which in texts.where]
    assert read[:5] == QUERIES and sorted(read[5:]) == PASSAGES


def test_the_order_of_texts_follows_from_the_stored_hashes():
    """Not from Python's hash of bytes, which is another one in every process."""
    texts = texts_of((FIRST,), np.array([[0, 0], [0, 2]]), 1)
    hashes = [FIRST.describe(record)[which][1] for _, record, which in texts.where[2:]]
    assert hashes == sorted(hashes)


def test_batches_of_other_lengths_and_fewer_passages_have_the_same_shapes():
    large = make_batch((FIRST, SECOND), None, EXAMPLES, SHAPE, ALL, max_negatives=1)
    small = make_batch((FIRST, SECOND), None, EXAMPLES[[1, 4, 1, 4, 1]], SHAPE, ALL, max_negatives=1)
    assert large.valid_P.sum() == 5 and small.valid_P.sum() == 1
    assert large.passage_P.shape == (10,)
    facts = lambda batch: jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype), batch)
    assert facts(large) == facts(small)


def test_a_process_reads_the_texts_of_its_own_shards_and_plans_all_of_them():
    whole, *parts = (
        make_batch((FIRST, SECOND), None, EXAMPLES, SHAPE, local, max_negatives=1) for local in (ALL, {0}, {1})
    )
    for shard, part in enumerate(parts):
        np.testing.assert_array_equal(part.bins.tokens_CST[:, shard], whole.bins.tokens_CST[:, shard])
        assert not part.bins.tokens_CST[:, 1 - shard].any() and whole.bins.tokens_CST[:, 1 - shard].any()
        planned = lambda batch: dataclasses.replace(batch, bins=dataclasses.replace(batch.bins, tokens_CST=None))
        jax.tree.map(np.testing.assert_array_equal, planned(part), planned(whole))


@pytest.mark.parametrize("shape", [{"chunks": 1, "shards": 1, "slots": 4}, {"rows": ((8, 9),)}], ids=str)
def test_a_batch_that_does_not_fit_is_refused_with_the_setting_to_raise(shape):
    settings = dict(chunks=3, shards=2, rows=((16, 2), (8, 2)), slots=12) | shape
    with pytest.raises(UserError, match=r"packing\.spare"):
        make_batch((FIRST, SECOND), None, EXAMPLES, BinShape(**settings), ALL, max_negatives=1)


def shape_of(lengths, whole):
    return fit_shape(PackingConfig(widths=(16,)), 1, [np.array(texts) for texts in lengths], whole, shards=1)


def test_a_run_whose_batches_are_all_known_gets_a_bin_without_a_spare_row():
    assert shape_of([(1, 8), (1, 14)], whole=True).rows == ((16, 1),)
    assert shape_of([(1, 8), (1, 14)], whole=False).rows == ((16, 2),)
    assert shape_of([(1, 8), (1, 16)], whole=True).rows == ((16, 2),)


def test_lengths_are_looked_up_all_along_the_run():
    records = store(*(([5], [step] * (step + 1)) for step in range(3)))
    examples = [np.array([[0, step]]) for step in range(3)]
    data = TrainData(stores=(records,), teachers=None, examples=examples, fingerprint="", max_negatives=0)
    sample = sample_lengths(Run(steps=3), data)
    assert [lengths.tolist() for lengths in sample] == [[1, 1], [1, 2], [1, 3]]
    assert fits(BinShape(chunks=1, shards=1, rows=((4, 1),), slots=2), sample)
    assert not fits(BinShape(chunks=1, shards=1, rows=((3, 1),), slots=2), sample)


@dataclasses.dataclass(frozen=True)
class Run:
    """What sample_lengths reads of a config."""

    steps: int
