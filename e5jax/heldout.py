"""Held-out pairs as a small retrieval task: every query against every passage of the set.

Shapes: Q queries, P passages of the pool.
"""

import dataclasses
import logging
import re
from collections.abc import Callable, Iterable

import numpy as np

from e5jax.errors import UserError
from e5jax.formats import Prompts
from e5jax.records import BadRecord, Record, Source, read


@dataclasses.dataclass(frozen=True, kw_only=True)
class HeldOut:
    """Queries, a pool of passages, and which passages are right for which query."""

    name: str
    queries: tuple[str, ...]
    """As the user typed them."""
    instructed: tuple[str, ...]
    """As the model reads them."""
    passages: tuple[str, ...]
    """Without a prompt."""
    relevant: tuple[frozenset[int], ...]


def load(name: str, sources: Iterable[Source], pool: Iterable[Source], prompts: Prompts, on_bad_record: str) -> HeldOut:
    """Read a held-out set; equal passages are one passage, equal instructed queries one query."""
    passages: dict[str, int] = {}
    asked: dict[str, tuple[str, set[int]]] = {}
    add = lambda passage: passages.setdefault(passage, len(passages))
    for record in _records(sources, on_bad_record):
        instructed = prompts.before_query(record.task) + record.query
        asked.setdefault(instructed, (record.query, set()))[1].add(add(record.positive))
        for negative in record.negatives:
            add(negative)
    for record in _records(pool, on_bad_record):
        add(record.positive)
        for negative in record.negatives:
            add(negative)
    return HeldOut(
        name=name,
        queries=tuple(query for query, _ in asked.values()),
        instructed=tuple(asked),
        passages=tuple(passages),
        relevant=tuple(frozenset(right) for _, right in asked.values()),
    )


def _records(sources, on_bad_record) -> Iterable[Record]:
    for source in sources:
        for where, record in read(source):
            if not isinstance(record, BadRecord):
                yield record
            elif on_bad_record == "stop":
                raise UserError(f"{where}: {record.reason} (--data.on-bad-record skip leaves it out)")


def all_texts(sources: Iterable[Source], prompts: Prompts, on_bad_record: str) -> Iterable[str]:
    """Every text of the sources as a model reads it."""
    for record in _records(sources, on_bad_record):
        yield prompts.before_query(record.task) + record.query
        yield from (prompts.passage + text for text in (record.positive, *record.negatives))


def ranking_metrics(scores_QP: np.ndarray, relevant: Iterable[frozenset[int]]) -> dict[str, float]:
    """Mean nDCG@10, recall@10 and reciprocal rank, as trec_eval defines them for binary relevance."""
    discount = 1 / np.log2(np.arange(2, 12))
    ndcg, recall, mrr = [], [], []
    for scores, right in zip(scores_QP, relevant, strict=True):
        order = np.argsort(-scores, kind="stable")
        hits = np.isin(order, list(right))
        best = discount[: len(right)].sum()
        ndcg.append((hits[:10] * discount[: len(hits[:10])]).sum() / best)
        recall.append(hits[:10].sum() / len(right))
        mrr.append(1 / (1 + np.argmax(hits)))
    return {
        "ndcg@10": float(np.mean(ndcg)),
        "recall@10": float(np.mean(recall)),
        "mrr": float(np.mean(mrr)),
    }


def bm25(passages: Iterable[str]) -> Callable[[str], np.ndarray]:
    """Lexical search: -> query -> float32 [P], the score of every passage (Lucene's BM25, k1 1.5, b 0.75)."""
    import bm25s  # half a second: only where a baseline is wanted

    logging.getLogger("bm25s").setLevel(logging.WARNING)  # it says a line at every index
    index = bm25s.BM25(method="lucene")
    index.index([words(passage) or ["∅"] for passage in passages], show_progress=False)
    known, count = index.vocab_dict, index.scores["num_docs"]

    def scores(query: str) -> np.ndarray:
        terms = [word for word in words(query) if word in known]
        return index.get_scores(terms) if terms else np.zeros(count, np.float32)

    return scores


def bm25_scores(heldout: HeldOut) -> np.ndarray:
    """BM25 of the bare query against every passage -> [Q, P]."""
    return np.stack(list(map(bm25(heldout.passages), heldout.queries)))


# Han, kana, Thai and Lao are written without spaces: each character is a word, as in Lucene's standard analysis.
_WORD = re.compile(r"[\u3040-\u30ff\u3400-\u9fff\uf900-\ufaff\u0e00-\u0eff]|\w+")


def words(text: str) -> list[str]:
    """Lower-case words, as a lexical search engine sees them."""
    return _WORD.findall(text.lower())
