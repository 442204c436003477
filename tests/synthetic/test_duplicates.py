"""MinHash estimates what it should, and of what is the same the lowest number stays."""

import json
import random

import numpy as np
import pytest

from e5jax.synthetic import duplicates, filters
from tests.synthetic.answered import entry, ledger, rules, sentence


def overlapping(share, seed, size=300):
    """Two texts whose word sets have this Jaccard similarity."""
    names = [f"w{seed}x{i}" for i in range(2 * size)]
    both = round(2 * size * share / (1 + share))
    return " ".join(names[:size]), " ".join(names[:both] + names[size : 2 * size - both])


@pytest.mark.parametrize("share", [0.2, 0.5, 0.8, 0.95])
def test_equal_places_of_signatures_estimate_the_similarity_of_word_sets(share):
    pairs = [map(duplicates.signature, overlapping(share, seed)) for seed in range(40)]
    estimates = [(left == right).mean() for left, right in pairs]
    assert abs(np.mean(estimates) - share) < 0.03
    assert np.std(estimates) < 1.5 * np.sqrt(share * (1 - share) / duplicates.PERMUTATIONS)


def test_similar_examples_give_way_to_the_lowest_and_others_stay():
    similar, other = overlapping(0.95, 1), overlapping(0.4, 2)
    texts = [other[0], similar[0], other[1], similar[1], similar[0]]
    signatures = np.stack([duplicates.signature(text) for text in texts])
    assert duplicates.near(signatures, 0.8) == {3: 1, 4: 1}


def test_bands_find_what_comparing_everyone_with_everyone_finds():
    rng = random.Random(0)
    texts = [overlapping(rng.choice([0.3, 0.9]), seed, 60)[rng.randrange(2)] for seed in range(16) for _ in range(3)]
    signatures = np.stack([duplicates.signature(text) for text in texts])
    assert duplicates.near(signatures, 0.8) == dict(duplicates.giving_way(signatures, 0.8))


def test_an_example_gives_way_to_the_lowest_whichever_band_they_share():
    third = np.arange(duplicates.PERMUTATIONS, dtype=np.uint32)
    first, second = third.copy(), third.copy()
    first[: 3 * duplicates.ROWS : duplicates.ROWS] += 1_000  # shares band 3 and those behind it
    second[duplicates.ROWS :: duplicates.ROWS] += 2_000  # shares band 0 alone
    assert duplicates.near(np.stack([first, second, third]), 0.8) == {2: 0}


def test_a_crowd_of_copies_leaves_one():
    signatures = np.repeat(duplicates.signature(sentence(0))[None], 3_000, 0)
    assert duplicates.near(signatures, 0.8) == dict.fromkeys(range(1, 3_000), 0)


def test_words_of_scripts_without_spaces_are_pairs_of_characters():
    assert duplicates.words("Das AI模型很大 ok") == {"das", "ai", "模型", "型很", "很大", "ok"}
    assert duplicates.words("中") == {"中"}
    assert duplicates.words("?!") == {"?!"}


def run(tmp_path, rows, near):
    filters.run(ledger(tmp_path / "ledger", rows), tmp_path / "filtered", rules(), near, 1)
    read = lambda name: [json.loads(line) for line in (tmp_path / "filtered" / f"{name}.jsonl").open()]
    return [row["number"] for row in read("examples")], [(row["key"], row["detail"]) for row in read("rejected")]


FIELDS = {
    "user_query": "cold bread",
    "positive_document": sentence("p", 40),
    "hard_negative_document": sentence("n", 40),
}
OTHER_CASE = {**FIELDS, "user_query": "Cold  Bread", "hard_negative_document": "Another."}
ONE_WORD_MORE = {**FIELDS, "positive_document": FIELDS["positive_document"] + " Indeed."}


def test_a_pair_that_is_there_already_is_rejected_case_and_spacing_aside(tmp_path):
    rows = [entry(5, fields=FIELDS), entry(3, fields=OTHER_CASE), entry(4, fields=ONE_WORD_MORE)]
    assert run(tmp_path, rows, 1.0) == ([3, 4], [("short-long-5", "of short-long-3")])


def test_a_pair_with_a_word_more_is_a_near_duplicate(tmp_path):
    rows = [entry(5, fields=FIELDS), entry(3, fields=ONE_WORD_MORE), entry(4)]
    assert run(tmp_path, rows, 0.8) == ([3, 4], [("short-long-5", "of short-long-3")])
