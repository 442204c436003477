"""A step's batch depends on the seed and the step alone, and holds every source's share."""

import collections
import dataclasses

import numpy as np
import pytest

from e5jax import mixture
from e5jax.errors import UserError
from e5jax.records import Source


@dataclasses.dataclass(frozen=True)
class Sized:
    """What the mixture sees of a store."""

    source: Source
    digest: str
    size: int

    def __len__(self):
        return self.size


@pytest.fixture
def stores():
    return [Sized(Source(path=f"{name}.jsonl"), name, size) for name, size in {"a": 120, "b": 90}.items()]


def mix(stores, weights=(1, 1), batch_size=10, seed=0, same_source=False):
    return mixture.mixed(stores, weights, batch_size, seed, same_source)


def take(batches, steps):
    return [batches[i].tolist() for i in steps]


@pytest.mark.parametrize("same_source", [False, True])
def test_a_step_is_the_same_whatever_was_asked_before(stores, same_source):
    steps = list(range(40))
    in_order = take(mix(stores, same_source=same_source), steps)
    backwards = take(mix(stores, same_source=same_source), steps[::-1])[::-1]
    late = take(mix(stores, same_source=same_source), steps[25:])
    assert in_order == backwards
    assert in_order[25:] == late


def test_seeds_differ_and_do_not_share_epochs(stores):
    # Grain seeds epoch e with seed + e, so that seed 1 could begin with the second epoch of seed 0.
    runs = [take(mix(stores[:1], [1], seed=seed), range(36)) for seed in (0, 1, 2)]
    epochs = [str(run[e * 12 : e * 12 + 12]) for run in runs for e in range(3)]
    assert len(set(epochs)) == 9


def test_sources_of_one_size_are_shuffled_differently_in_all_epochs(stores):
    examples = np.concatenate(take(mix([stores[0], stores[0]]), range(48)))
    orders = [examples[examples[:, 0] == source][:, 1].reshape(2, 120) for source in (0, 1)]
    assert len({str(epoch) for order in orders for epoch in order}) == 4


@pytest.mark.parametrize("same_source", [False, True])
def test_weights_are_the_shares_of_a_thousand_examples(stores, same_source):
    batches = mix(stores, weights=[0.35, 0.15], same_source=same_source)
    examples = np.concatenate(take(batches, range(100)))
    assert (examples[:, 0] == 0).sum() == pytest.approx(700, abs=20)


def test_a_batch_of_one_source_has_one_source(stores):
    batches = take(mix(stores, same_source=True), range(20))
    sources = [{source for source, _ in batch} for batch in batches]
    assert all(len(s) == 1 for s in sources)
    assert set.union(*sources) == {0, 1}
    mixed = take(mix(stores), range(20))
    assert all({source for source, _ in batch} == {0, 1} for batch in mixed)


def test_every_record_comes_once_an_epoch_each_time_in_a_new_order(stores):
    examples = np.concatenate(take(mix(stores[:1], [1]), range(36)))[:, 1]
    epochs = examples.reshape(3, 120)
    assert (np.sort(epochs) == np.arange(120)).all()
    assert len({str(epoch) for epoch in epochs}) == 3


def test_weighted_by_size_all_sources_end_their_epochs_together_to_a_record_or_two(stores):
    examples = np.concatenate(take(mix(stores, [120, 90]), range(21)))
    seen = collections.Counter(map(tuple, examples.tolist()))
    assert len(seen) >= 208
    assert seen.total() == 210


WEIGHTS = [*[0.4 / 8] * 8, *[0.55 / 6] * 6, *[0.05 / 20] * 20]


def test_every_batch_holds_the_share_of_every_source_and_of_neighbours_together_to_within_a_record():
    edges = mixture.edges(WEIGHTS)
    for step in [*range(200), 10**6, 10**9 + 7]:
        counts = np.bincount([source for source, _ in mixture.drawn(step, edges, 32)], minlength=34)
        assert counts.sum() == 32
        assert (np.abs(counts - 32 * np.array(WEIGHTS)) < 1).all()
        assert counts[:8].sum() in (12, 13)
        assert counts[14:].sum() in (1, 2)


def test_step_after_step_each_source_goes_on_where_it_was():
    edges, drawn = mixture.edges([3, 1, 0.2]), []
    for step in range(300):
        drawn += mixture.drawn(step, edges, 5)
    for source, share in enumerate([3 / 4.2, 1 / 4.2, 0.2 / 4.2]):
        numbers = [n for which, n in drawn if which == source]
        assert numbers == list(range(len(numbers)))
        assert len(numbers) == pytest.approx(1500 * share, abs=3)


def test_two_to_the_k_steps_from_a_multiple_of_it_hold_every_share_exactly():
    edges = mixture.edges([5, 2, 1])
    for first in (0, 64, 2**20):
        block = [source for step in range(first, first + 64) for source, _ in mixture.drawn(step, edges, 1)]
        assert np.bincount(block).tolist() == [40, 16, 8]


@pytest.mark.parametrize(
    ("which", "batch_size", "same_source"),
    [([0], 110, False), ([0], 120, False), ([0, 1], 100, False), ([0, 1], 70, True)],
)
def test_no_batch_holds_a_record_twice_not_even_where_an_epoch_ends(stores, which, batch_size, same_source):
    some = [stores[i] for i in which]
    batches = take(mix(some, [1] * len(some), batch_size, 0, same_source), range(8))
    assert all(len(set(map(tuple, batch))) == batch_size for batch in batches)


def test_a_source_smaller_than_its_share_repeats_itself_rather_than_lose_its_weight(stores):
    batch = mix(stores, weights=[1, 4], batch_size=200)[0]
    sources, distinct = batch[:, 0], np.unique(batch, axis=0)
    assert (sources == 1).sum() == 160
    assert (distinct[:, 0] == 1).sum() == 90


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"weights": [1, 0]}, "positive weight"),
        ({"weights": [1]}, "positive weight"),
        ({"seed": -1}, "negative seed"),
        ({"batch_size": 211}, r"batch_size 211 is more than the 210 records of .*a.jsonl, .*b.jsonl"),
        ({"batch_size": 91, "same_source": True}, r"more than the 90 records of .*b.jsonl.*lower"),
    ],
)
def test_impossible_mixtures_are_refused(stores, settings, says):
    with pytest.raises(UserError, match=says):
        mix(stores, **settings)


def test_a_batch_larger_than_the_only_source_is_refused(stores):
    with pytest.raises(UserError, match=r"batch_size 121 is more than the 120 records of \S*a.jsonl"):
        mix(stores[:1], weights=[1], batch_size=121)


def test_the_fingerprint_changes_with_all_that_decides_the_examples(stores):
    base = {"stores": stores, "weights": [1, 1], "seed": 0, "batch_size": 8, "same_source": False}
    changes = [
        {},
        {"stores": stores[::-1]},
        {"weights": [1, 2]},
        {"seed": 1},
        {"batch_size": 16},
        {"same_source": True},
    ]
    assert len({mixture.fingerprint(**(base | change)) for change in changes}) == len(changes)
    assert mixture.fingerprint(**base) == mixture.fingerprint(**base)
