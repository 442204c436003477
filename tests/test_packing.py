"""Texts go into rows whole, once, from the front; the shape fits the sample and wastes little."""

import dataclasses

import numpy as np
import pytest

from e5jax.packing import BinShape, _place_in, best_fit, choose_shape, fill, place
from tests import tiny


def random_trials(count):
    """(lengths, shape), from half empty to more than full."""
    for seed in range(count):
        rng = np.random.default_rng(seed)
        rows = ((16, int(rng.integers(1, 4))), (6, int(rng.integers(1, 4))))[: rng.integers(1, 3)]
        shape = BinShape(chunks=int(rng.integers(1, 5)), shards=int(rng.integers(1, 4)), rows=rows, slots=9)
        room = shape.tokens * shape.shards * shape.chunks
        lengths = rng.integers(1, 17, max(1, int(rng.uniform(0.1, 1.1) * room / 8.5)))
        yield lengths, shape


def test_best_fit_never_overlaps_texts_nor_crosses_a_row():
    for seed in range(300):
        rng = np.random.default_rng(seed)
        widths = rng.integers(4, 40, rng.integers(1, 30))
        lengths = rng.integers(1, widths.max() + 1, rng.integers(1, 60))
        fitted = best_fit(lengths, widths)
        if fitted is None:
            continue
        taken = np.zeros((len(widths), widths.max()), int)
        for row, start, length in zip(*fitted, lengths, strict=True):
            assert 0 <= start and start + length <= widths[row]
            taken[row, start : start + length] += 1
        assert taken.max() == 1 and taken.sum() == lengths.sum()


def test_best_fit_takes_the_tightest_row():
    row, start = best_fit(np.array([5, 3]), np.array([9, 6, 4]))
    assert row.tolist() == [1, 2] and start.tolist() == [0, 0]


def test_placed_texts_lie_in_the_rows_of_the_first_chunks_and_use_as_few_as_possible():
    placed = 0
    for lengths, shape in random_trials(300):
        placement = place(lengths, shape)
        if placement is None:
            assert all(_place_in(lengths, shape, chunks) is None for chunks in range(1, shape.chunks + 1))
            continue
        placed += 1
        used = placement.chunks_used
        assert used == 1 or _place_in(lengths, shape, used - 1) is None
        assert placement.bin.max() < used * shape.shards
        # Whole in one row: the row of the first token is that of the last one.
        row_of_token = np.repeat(np.arange(sum(n for _, n in shape.rows)), np.repeat(*np.transpose(shape.rows)))
        assert (row_of_token[placement.offset] == row_of_token[placement.offset + lengths - 1]).all()
        assert placement.slot.max() < shape.slots
        assert len(np.unique(placement.vector(shape.slots))) == len(lengths)
    assert 100 < placed < 290  # both outcomes were seen


def test_a_text_too_long_or_a_batch_too_large_has_no_placement():
    shape = BinShape(chunks=2, shards=2, rows=((8, 1), (4, 2)), slots=9)
    assert place(np.array([8] * 4 + [4] * 8), shape).chunks_used == 2
    assert place(np.array([8] * 4 + [4] * 8 + [1]), shape) is None
    assert place(np.array([9]), shape) is None


def test_no_bin_holds_more_texts_than_it_has_slots():
    lengths = np.full(12, 4)
    shape = BinShape(chunks=3, shards=2, rows=((8, 2),), slots=4)
    assert place(lengths, shape).chunks_used == 2
    placement = place(lengths, dataclasses.replace(shape, slots=3))
    assert placement.chunks_used == 3
    assert np.bincount(placement.bin).tolist() == [2] * 6
    assert place(lengths, dataclasses.replace(shape, slots=1)) is None


def test_the_placement_follows_from_the_lengths_alone():
    lengths, shape = next(t for t in random_trials(20) if place(*t) is not None)
    state = np.random.get_state()[1].copy()
    first, second = place(lengths, shape), place(lengths.astype(np.int32), shape)
    assert (np.random.get_state()[1] == state).all()
    for name in ("bin", "offset", "slot"):
        np.testing.assert_array_equal(getattr(first, name), getattr(second, name))


def test_every_text_can_be_read_back_from_its_bin():
    trials = [t for t in random_trials(40) if place(*t) is not None]
    assert len(trials) > 10
    for lengths, shape in trials:
        texts = tiny.texts(lengths)
        placement = place(lengths, shape)
        bins = fill(lambda i, texts=texts: texts[i], lengths, placement, shape)
        assert bins.used_C.tolist() == [c < placement.chunks_used for c in range(shape.chunks)]
        for i, text in enumerate(texts):
            chunk, shard = divmod(placement.bin[i], shape.shards)
            slot, last = placement.slot[i], bins.last_CSN[chunk, shard, placement.slot[i]]
            assert bins.texts_CSN[chunk, shard, slot] == i
            (where,) = np.nonzero(bins.segments_CST[chunk, shard] == slot + 1)
            np.testing.assert_array_equal(where, np.arange(last - len(text) + 1, last + 1))
            np.testing.assert_array_equal(bins.tokens_CST[chunk, shard, where], text)
            np.testing.assert_array_equal(bins.positions_CST[chunk, shard, where], np.arange(len(text)))
        padding = bins.segments_CST == 0
        assert (~padding).sum() == lengths.sum()
        assert not bins.tokens_CST[padding].any() and not bins.positions_CST[padding].any()


def msmarco_like(queries, seed):
    """Token lengths of queries with their instruction, positives and one hard negative each."""
    rng = np.random.default_rng(seed)
    asked = 22 + rng.gamma(4.0, 2.0, queries)
    passages = rng.lognormal(np.log(78), 0.42, 2 * queries)
    return np.clip(np.concatenate([asked, passages]), 4, 512).astype(int)


# A single chunk has room for longer batches inside its one bin, so it wastes more.
@pytest.mark.parametrize(("chunks", "at_least"), [(1, 0.91), (8, 0.95)])
def test_the_chosen_shape_holds_the_sample_and_is_mostly_text(chunks, at_least, capsys):
    sample = [msmarco_like(2048, seed) for seed in range(4)]
    shape = choose_shape(sample, shards=8, chunks=chunks, spare=0.25, widths=(512, 128))
    placements = [place(lengths, shape) for lengths in sample]
    assert None not in placements and shape.longest == 512
    assert shape.chunks == 1 if chunks == 1 else shape.chunks > max(p.chunks_used for p in placements)
    useful = [
        lengths.sum() / (p.chunks_used * shape.shards * shape.tokens)
        for lengths, p in zip(sample, placements, strict=True)
    ]
    with capsys.disabled():
        print(f"\n{chunks} chunks of {shape.rows}: useful tokens {min(useful):.3f} to {max(useful):.3f}")
    assert min(useful) >= at_least
    # A batch nobody has seen fits, too.
    assert place(msmarco_like(2048, 99), shape) is not None
