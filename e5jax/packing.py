"""Texts of any length -> token bins of one static shape, so that a whole run compiles one step.

A bin is `[T]` tokens: rows of one or two fixed widths laid end to end, a row holding several texts, a text lying whole
in one row. A batch is `[chunks, shards, T]`: chunks run one after the other, the shards of a chunk side by side on
the devices. Chunks fill from the front; spare ones at the end stay empty and are skipped at run time.

Where each text goes (`place`) follows from the token lengths alone, so every process works out the same plan and reads
only the texts of its own shards (`fill`).

Shapes: C chunks, S shards, T tokens of a bin, N slots (texts a bin can hold), B = C · S bins.
"""

import dataclasses
from collections.abc import Callable, Sequence

import jax
import numpy as np

from e5jax.attention import Rows


@dataclasses.dataclass(frozen=True, kw_only=True)
class BinShape:
    """The one static shape of every batch."""

    chunks: int
    shards: int
    rows: Rows
    slots: int

    @property
    def tokens(self) -> int:
        """Tokens of one bin, padding included."""
        return sum(width * count for width, count in self.rows)

    @property
    def longest(self) -> int:
        """The longest text that fits."""
        return self.rows[0][0]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Placement:
    """Where each text of a batch lies."""

    chunks_used: int
    bin: np.ndarray  # chunk · S + shard
    offset: np.ndarray  # first token, counted in the bin
    slot: np.ndarray  # which of the bin's texts

    def vector(self, slots: int) -> np.ndarray:
        """Index of each text's vector among all `[C · S · N]` vectors."""
        return (self.bin * slots + self.slot).astype(np.int32)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True)
class Bins:
    """A batch as the encoder reads it."""

    tokens_CST: np.ndarray
    positions_CST: np.ndarray
    segments_CST: np.ndarray  # 1-based text of the bin; 0: padding
    last_CSN: np.ndarray  # index of each text's last token; 0 for an empty slot
    texts_CSN: np.ndarray  # row of each text in the global batch; 0 for an empty slot
    used_C: np.ndarray  # False for a spare chunk


def place(lengths: np.ndarray, shape: BinShape) -> Placement | None:
    """The placement that uses the fewest chunks; None where the texts do not fit."""
    bins_at_least = -(-int(lengths.sum()) // shape.tokens)
    first = max(1, -(-bins_at_least // shape.shards))
    for chunks in range(first, shape.chunks + 1):
        if (placement := _place_in(lengths, shape, chunks)) is not None:
            return placement
    return None


def _place_in(lengths, shape, chunks):
    bins = chunks * shape.shards
    widths = np.concatenate([np.full(count * bins, width) for width, count in shape.rows])
    fitted = best_fit(lengths, widths)
    if fitted is None:
        return None
    row, start = fitted

    # Rows of one width are interchangeable: deal them out so that bins hold about equally many texts.
    texts_of_row = np.bincount(row, minlength=len(widths))
    texts_of_bin = np.zeros(bins, np.int64)
    bin_of_row, offset_of_row = np.empty_like(widths), np.empty_like(widths)
    first_row = first_token = 0
    for width, count in shape.rows:
        rows = slice(first_row, first_row + count * bins)
        bin_of_row[rows], nth = _deal(texts_of_row[rows], texts_of_bin)
        offset_of_row[rows] = first_token + nth * width
        first_row, first_token = rows.stop, first_token + count * width
    if texts_of_bin.max() > shape.slots:
        return None

    bin_, offset = bin_of_row[row], offset_of_row[row] + start
    order = np.lexsort((offset, bin_))
    slot = np.empty_like(bin_)
    slot[order] = np.arange(len(order)) - np.searchsorted(bin_[order], bin_[order])
    return Placement(chunks_used=chunks, bin=bin_, offset=offset, slot=slot)


def best_fit(lengths: np.ndarray, widths: np.ndarray) -> tuple[np.ndarray, np.ndarray] | None:
    """Best-fit decreasing -> (row, start in the row) of each text; None where one finds no room.

    `rows_with[n]` stacks the rows that have n tokens left, and bit n of the integer `room` says whether there are any,
    so the tightest row is one shift and one lowest-set-bit away: about a microsecond a text.
    """
    rows_with = [[] for _ in range(int(widths.max()) + 1)]
    for row in range(len(widths) - 1, -1, -1):
        rows_with[widths[row]].append(row)
    room = sum(1 << n for n, rows in enumerate(rows_with) if rows)
    row_of, start_of = np.empty(len(lengths), np.int64), np.empty(len(lengths), np.int64)
    for text in np.argsort(-lengths, kind="stable").tolist():
        length = int(lengths[text])
        enough = room >> length
        if not enough:
            return None
        left = length + (enough & -enough).bit_length() - 1
        row = rows_with[left].pop()
        if not rows_with[left]:
            room ^= 1 << left
        row_of[text], start_of[text] = row, widths[row] - left
        rows_with[left - length].append(row)
        room |= 1 << (left - length)
    return row_of, start_of


def _deal(weights: np.ndarray, load: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Deal items, heaviest first, one a hand in each round, the heaviest to the lightest hand.

    -> (hand, how many that hand had before) of each item; `load` is updated in place. Items are a multiple of hands.
    """
    hands = len(load)
    hand, nth = np.empty(len(weights), np.int64), np.empty(len(weights), np.int64)
    order = np.argsort(-weights, kind="stable").reshape(-1, hands)
    for round_, items in enumerate(order):
        lightest_first = np.argsort(load, kind="stable")
        hand[items], nth[items] = lightest_first, round_
        load[lightest_first] += weights[items]
    return hand, nth


def fill(text: Callable[[int], np.ndarray], lengths: np.ndarray, placement: Placement, shape: BinShape) -> Bins:
    """Write the texts into their bins; `text(i)` is the token ids of the batch's i-th text."""
    bins = shape.chunks * shape.shards
    tokens, positions, segments = np.zeros((3, bins, shape.tokens), np.int32)
    last, texts = np.zeros((2, bins, shape.slots), np.int32)
    for i, (b, start, slot, length) in enumerate(
        zip(placement.bin, placement.offset, placement.slot, lengths, strict=True)
    ):
        stop = start + length
        tokens[b, start:stop] = text(i)
        positions[b, start:stop] = np.arange(length)
        segments[b, start:stop] = slot + 1
        last[b, slot], texts[b, slot] = stop - 1, i
    by_chunk = lambda x: x.reshape(shape.chunks, shape.shards, -1)
    return Bins(
        tokens_CST=by_chunk(tokens),
        positions_CST=by_chunk(positions),
        segments_CST=by_chunk(segments),
        last_CSN=by_chunk(last),
        texts_CSN=by_chunk(texts),
        used_C=np.arange(shape.chunks) < placement.chunks_used,
    )


def choose_shape(
    sample: Sequence[np.ndarray], shards: int, chunks: int, spare: float, widths: Sequence[int]
) -> BinShape | None:
    """The shape that runs the fewest tokens on `sample` (text lengths of a dozen batches or more).

    Aims at `chunks` chunks for the mean batch and allocates enough for the longest of the sample, and `spare` of that
    more: skipped when empty, they cost nothing. A single chunk has no spare ones, since it keeps its activations; it is
    made for the longest batch and, unless `spare` is 0, a row of each width and `spare` of that batch's excess over the
    mean longer. `widths`: row widths, widest first. Tries bins from the mean load up; wide rows get what the sample
    needs (mean + 3 standard deviations; in a single chunk no less than any batch), the narrowest width the rest. None
    where no such shape holds every batch of the sample; that is found soonest where the longest come first.
    """
    bins = shards * chunks
    wanted = np.array([_rows_wanted(lengths, widths) for lengths in sample])
    wide_rows = wanted.mean(axis=0) + 3 * wanted.std(axis=0)
    if chunks == 1:
        wide_rows = np.maximum(wide_rows, wanted.max(axis=0))
    wide_rows = np.ceil(wide_rows / bins).astype(int)
    loads = np.array([lengths.sum() for lengths in sample]) / bins
    mean_load = loads.mean()
    # A second chunk would double a single one's activations: it must hold the longest batch by itself.
    allocated, stretch, tries = 1, 2 * loads.max() / mean_load, 64
    if chunks > 1:
        allocated = max(chunks + 1, int(np.ceil(chunks * (1 + spare) * loads.max() / mean_load)))
        stretch, tries = 4 / 3, 16

    best = None
    widths_and_counts = {_rows(mean_load * x, wide_rows, widths) for x in np.geomspace(1, stretch, tries)}
    for rows in sorted(widths_and_counts, key=lambda rows: sum(width * count for width, count in rows)):
        shape = BinShape(chunks=allocated, shards=shards, rows=rows, slots=1 << 30)
        if (placements := _place_all(sample, shape)) is None:
            continue
        cost = np.mean([p.chunks_used for p in placements]) * shape.tokens
        if best is None or cost < best[0]:
            fullest = max(int(p.slot.max()) for p in placements) + 1
            best = cost, dataclasses.replace(shape, slots=int(fullest * (1 + spare)) + 4)
        if chunks == 1:  # the shortest bin that holds them
            break
    if best is None:
        return None
    return _with_margin(best[1], sample, spare) if chunks == 1 and spare else best[1]


def _place_all(sample, shape):
    placements = []
    for lengths in sample:
        if (placement := place(lengths, shape)) is None:
            return None
        placements.append(placement)
    return placements


def _with_margin(shape, sample, spare):
    loads = [lengths.sum() / shape.shards for lengths in sample]
    excess = spare * (max(loads) - np.mean(loads))
    rows = tuple((width, count + 1 + int(excess * count / shape.tokens)) for width, count in shape.rows)
    return dataclasses.replace(shape, rows=rows)


def _rows_wanted(lengths, widths):
    """Rows of each width that best fit opens when every text takes the narrowest row it fits in."""
    row, _ = best_fit(lengths, np.repeat(widths, len(lengths)))
    return np.bincount(np.unique(row) // len(lengths), minlength=len(widths))


def _rows(load, wide_rows, widths) -> Rows:
    """Rows for a bin of about `load` tokens, at least one of the widest."""
    *wide, narrowest = widths
    left = max(widths[0], -(-int(load) // narrowest) * narrowest)
    rows = []
    for width, wanted in zip(wide, wide_rows, strict=False):
        rows.append((width, min(left // width, max(1, int(wanted)) if width == widths[0] else int(wanted))))
        left -= width * rows[-1][1]
    rows.append((narrowest, left // narrowest))
    return tuple(row for row in rows if row[1])
