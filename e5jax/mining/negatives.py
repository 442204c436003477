"""Which of a query's candidates become its hard negatives: arrays in, arrays out.

What scores as high as the positive is often a right answer that nobody has labelled. So a candidate is kept only below
a limit that the positive's own score sets: 0.95 of it is NV-Retriever's TopK-PercPos (arXiv 2407.15831), with which
NV-Embed's retrieval gained 2.3 points (arXiv 2405.17428, table 4).

Shapes: Q queries; C candidates of each, best first by the score of the model that found them.
"""

from collections.abc import Mapping, Sequence

import numpy as np


FATES = (
    "candidate",
    "absent",  # a query with fewer of them than another fills up with these
    "own positive",
    "other positive",  # of another record of the same query
    "query itself",
    "own negative",  # which its record brought along, and keeps
    "before the ranks",
    "behind the ranks",
    "relative",
    "absolute",
    "ceiling",
)
"""What becomes of a candidate; the first that applies, in this order."""
CODE = {fate: code for code, fate in enumerate(FATES)}

# Rule -> (positive's score, the rule's value) -> what a negative must score below. A share of a score below zero would
# lie above it, so the margin is a share of its size: below such a positive, too, stands what is kept.
LIMITS = {
    "relative": lambda positive_Q, share: positive_Q - (1 - share) * np.abs(positive_Q),
    "absolute": lambda positive_Q, margin: positive_Q - margin,
    "ceiling": lambda positive_Q, most: np.full_like(positive_Q, most),
}

# Way of choosing -> (columns of the candidates, their scores, a generator) -> the columns in the order they are taken.
WAYS = {
    "top": lambda at, scores, rng: at[np.argsort(-scores, kind="stable")],
    "sample": lambda at, scores, rng: rng.permutation(at),
}


def in_ranks(ids_QC: np.ndarray, barred: Sequence[Mapping[int, str]], ranks: tuple[int, int]) -> np.ndarray:
    """The fates that need no score -> uint8 [Q, C], codes of `FATES`.

    `ids_QC`: passages, -1 where there is none. `barred`: of each query, {passage: fate} of those that are no negatives
    of it. `ranks` (first, last) count from 0 what is left without these, as a slice does.
    """
    fate_QC = np.where(ids_QC < 0, CODE["absent"], CODE["candidate"]).astype(np.uint8)
    for ids_C, fate_C, fate_of in zip(ids_QC, fate_QC, barred, strict=True):
        for at in np.flatnonzero(np.isin(ids_C, list(fate_of))):
            fate_C[at] = CODE[fate_of[int(ids_C[at])]]
    first, last = ranks
    free_QC = fate_QC == CODE["candidate"]
    rank_QC = np.cumsum(free_QC, axis=1) - 1
    fate_QC[free_QC & (rank_QC < first)] = CODE["before the ranks"]
    fate_QC[free_QC & (rank_QC >= last)] = CODE["behind the ranks"]
    return fate_QC


def below_limits(
    fate_QC: np.ndarray, scores_QC: np.ndarray, positive_Q: np.ndarray, limits: Mapping[str, float]
) -> np.ndarray:
    """The fates of `in_ranks`, and those of the candidates that do not score below a limit -> uint8 [Q, C].

    `limits`: {name in `LIMITS`: its value}. A score that is no number is below nothing.
    """
    fate_QC = fate_QC.copy()
    for name, value in limits.items():
        limit_Q = LIMITS[name](positive_Q.astype(np.float64), value)
        beyond_QC = ~(scores_QC < limit_Q[:, None])
        fate_QC[(fate_QC == CODE["candidate"]) & beyond_QC] = CODE[name]
    return fate_QC


def above(fate_QC: np.ndarray, scores_QC: np.ndarray, positive_Q: np.ndarray, fates: Sequence[str]) -> np.ndarray:
    """How many candidates of these fates score above the positive -> int64 [Q]."""
    counted_QC = np.isin(fate_QC, [CODE[fate] for fate in fates])
    return (counted_QC & (scores_QC > positive_Q[:, None])).sum(axis=1)


def pick(
    fate_QC: np.ndarray, scores_QC: np.ndarray, wanted: Sequence[int], way: str, seeds: Sequence[tuple[int, ...]]
) -> list[np.ndarray]:
    """The columns of at most so many candidates of each query, in the order in which a trainer should use them.

    `way` in `WAYS`: the hardest first, or drawn at random by each query's own seed, so that a query's draw does not
    depend on which others are mined with it.
    """
    chosen = []
    for fate_C, scores_C, count, seed in zip(fate_QC, scores_QC, wanted, seeds, strict=True):
        at = np.flatnonzero(fate_C == CODE["candidate"])
        chosen.append(WAYS[way](at, scores_C[at], np.random.default_rng(seed))[:count])
    return chosen
