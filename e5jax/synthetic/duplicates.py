"""Examples that are the same, or nearly: MinHash signatures, bands of them, and who gives way to whom.

An example gives way to a lower one (in the order of the plan) that is as similar as the threshold says, whether that
one stays or not: so the result depends on no order of work, and a group of a Beam pipeline finds what one machine does.

Shapes: N examples, W words of one, P permutations, G examples that share a band.
"""

import re
import zlib

import numpy as np


BANDS, ROWS = 20, 6
PERMUTATIONS = BANDS * ROWS
"""Pairs of similarity 0.8 share a band with probability 0.998, those of 0.5 with 0.27."""
CROWD = 50
"""Within a band everyone is compared with so many of the lowest: a thousand copies take no million comparisons."""
# Scripts without spaces: two neighbouring characters are a word there.
_SPACELESS = "\u3040-\u30ff\u3400-\u9fff\uf900-\ufaff\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff"
_RUN = re.compile(f"[{_SPACELESS}]+")
_WORD = re.compile(rf"[^\W{_SPACELESS}]+")
# The permutations of 32-bit words x are (a x + b) >> 32 modulo 2**64: multiply-shift, universal for odd a.
_rng = np.random.Generator(np.random.PCG64(0))
_A_P = _rng.integers(0, 2**64, PERMUTATIONS, np.uint64) | np.uint64(1)
_B_P = _rng.integers(0, 2**64, PERMUTATIONS, np.uint64)


def words(text: str) -> set[str]:
    """The lower-case words of a text; in scripts without spaces the pairs of neighbouring characters."""
    text = text.lower()
    found = set(_WORD.findall(text))
    for run in _RUN.findall(text):
        found.update(run[i : i + 2] for i in range(max(len(run) - 1, 1)))
    return found or {text}


def signature(text: str) -> np.ndarray:
    """MinHash of the text's words -> [P] uint32: the share of equal places estimates their Jaccard similarity."""
    hashes_W = np.array([zlib.crc32(word.encode()) for word in words(text)], np.uint64)
    values_WP = hashes_W[:, None] * _A_P + _B_P
    return (values_WP.min(0) >> np.uint64(32)).astype(np.uint32)


def band(signatures_NP: np.ndarray, number: int) -> np.ndarray:
    """-> [N] uint64: who has the same number shares this band (of `BANDS`)."""
    rows = slice(number * ROWS, (number + 1) * ROWS)
    mixed = (signatures_NP[:, rows].astype(np.uint64) + np.uint64(1)) * _A_P[rows]
    return (mixed ^ (mixed >> np.uint64(29))).sum(-1, dtype=np.uint64)


def giving_way(signatures_GP: np.ndarray, threshold: float) -> list[tuple[int, int]]:
    """(higher, lower) places in a band, lowest first, of two as similar as `threshold`; each higher one once."""
    pairs = []
    for i in range(1, len(signatures_GP)):
        same = (signatures_GP[: min(i, CROWD)] == signatures_GP[i]).mean(-1)
        if len(similar := np.flatnonzero(same >= threshold)):
            pairs.append((i, int(similar[0])))
    return pairs


def near(signatures_NP: np.ndarray, threshold: float) -> dict[int, int]:
    """{example: the lowest one that it gives way to}, of examples in the order of the plan."""
    lowest: dict[int, int] = {}
    for number in range(BANDS):
        band_N = band(signatures_NP, number)
        order = np.argsort(band_N, kind="stable")
        ends = np.flatnonzero(np.diff(band_N[order])) + 1
        starts, stops = np.r_[0, ends], np.r_[ends, len(order)]
        for start, stop in zip(*(edge[stops - starts > 1] for edge in (starts, stops)), strict=True):
            members = order[start:stop]
            for higher, lower in giving_way(signatures_NP[members], threshold):
                higher, lower = int(members[higher]), int(members[lower])
                lowest[higher] = min(lowest.get(higher, lower), lower)
    return lowest


def first_of_each(values_N: np.ndarray) -> np.ndarray:
    """-> [N]: the place at which each value stands for the first time."""
    _, first, where = np.unique(values_N, return_index=True, return_inverse=True)
    return first[where]
