"""Which records of which sources are in the batch of a step.

The state of the data is the step number: a batch is a pure function of (seed, step), and a fingerprint says whether two
runs see the same.

Sources lie side by side on [0, 1), each as long as its weight. The batch of a step is B points at equal distances,
(b + u) / B: every source, and every group of neighbours, gets its share of every batch to within one record. The start
u of a step is the van der Corput sequence (0, 1/2, 1/4, 3/4, 1/8 …), which keeps the shares over many steps as well;
and 2^k steps from a multiple of 2^k have their starts at equal distances, so how often a source has been drawn before a
step takes a sum over that step's bits, and a run goes on at any step.

Shapes: B records of a batch, S sources.
"""

import functools
import hashlib
import json
from collections.abc import Sequence

import grain
import numpy as np

from e5jax.data import Store
from e5jax.errors import UserError


BITS = 40  # of a place on [0, 1); steps may be as many
FORM = 2  # of the order of records: raise it when a step's batch changes


def mixed(
    stores: Sequence[Store], weights: Sequence[float], batch_size: int, seed: int, same_source: bool
) -> grain.MapDataset:
    """Element i is the examples of step i: int64 [B, 2] of (source, record).

    Every source runs through its records again and again, each epoch in a new order. With `same_source` a batch is of
    one source. Where an epoch ends inside a batch, a record that the batch already holds is exchanged for one it lacks:
    no record stands twice in a batch unless the source is smaller than its share of one.
    """
    paths, sizes = [store.source.path for store in stores], [len(store) for store in stores]
    if not (weights and len(weights) == len(stores) and min(weights) > 0 and seed >= 0):
        raise UserError(f"not a positive weight a source, or a negative seed: {weights}, {seed}")
    pools = zip(paths, sizes, strict=True) if same_source else [(", ".join(paths), sum(sizes))]
    for path, size in pools:
        if batch_size > size:
            raise UserError(
                f"batch_size {batch_size} is more than the {size} records of {path}, so a batch "
                f"would hold some twice; lower batch_size to {size} or add records"
            )
    sources = [_endless(index, size, seed) for index, size in enumerate(sizes)]
    draw = functools.partial(drawn, edges=edges(weights), size=1 if same_source else batch_size)
    if same_source:
        sources = [source.batch(batch_size) for source in sources]
    batch = lambda step: np.concatenate([sources[source][n].reshape(-1, 2) for source, n in draw(step)])
    return grain.MapDataset.range(1 << BITS).map(batch).map(functools.partial(_distinct, sizes=sizes))


def edges(weights: Sequence[float]) -> np.ndarray:
    """Where sources begin, and the last one ends, in units of 2^-BITS -> [S + 1]."""
    ends_S = np.cumsum(weights) / np.sum(weights)
    return np.concatenate([[0], np.round(ends_S * (1 << BITS)).astype(np.int64)])


def drawn(step: int, edges: np.ndarray, size: int) -> list[tuple[int, int]]:
    """(source, how often it was drawn before) of the records of a batch of so many, source by source."""
    before_S, after_S = np.diff(_points_below(step, edges, size)), np.diff(_points_below(step + 1, edges, size))
    ranges = map(range, before_S.tolist(), after_S.tolist())
    return [(source, n) for source, numbers in enumerate(ranges) for n in numbers]


def _points_below(steps: int, edges, size):
    """How many points of the first so many steps lie below each edge."""
    below, first = np.zeros_like(edges), 0
    for k in reversed(range(steps.bit_length())):
        if steps >> k & 1:
            # The points of 2^k steps from `first`: a distance of 2^-k, in units of 1 / size, from the start of `first`.
            start = int(f"{first:0{BITS}b}"[::-1], 2)
            below -= (start - edges * size) >> (BITS - k)
            first += 1 << k
    return below


def _endless(index: int, size: int, seed: int) -> grain.MapDataset:
    """The (source, record) pairs of one source, shuffled anew each epoch, without end."""
    # Grain shuffles epoch e by seed + e, so near seeds would share orders: hash them far apart.
    hashed = int(np.random.SeedSequence((seed, index)).generate_state(1)[0])
    order = grain.MapDataset.range(size).shuffle(seed=hashed).repeat()
    return order.map(lambda record: np.array([index, record]))


def _distinct(examples_B2: np.ndarray, sizes: Sequence[int]) -> np.ndarray:
    """The batch, each repeated record replaced by the next one of its source that is not in it."""
    examples_B2 = examples_B2.copy()
    _, first = np.unique(examples_B2, axis=0, return_index=True)
    held = set(map(tuple, examples_B2.tolist()))
    for row in np.setdiff1d(np.arange(len(examples_B2)), first):
        source, record = examples_B2[row].tolist()
        others = ((source, (record + k) % sizes[source]) for k in range(1, sizes[source]))
        examples_B2[row] = free = next((o for o in others if o not in held), (source, record))
        held.add(free)
    return examples_B2


def fingerprint(
    stores: Sequence[Store], weights: Sequence[float], seed: int, batch_size: int, same_source: bool
) -> str:
    """sha256 of all that decides the tokens of every step: equal for runs that see the same."""
    digests, weights = [store.digest for store in stores], [*map(float, weights)]
    parts = [FORM, digests, weights, seed, batch_size, same_source]
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()
