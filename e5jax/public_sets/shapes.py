"""The shapes of rows in public training sets: which fields are the query, its positive passages, its hard negatives.

A function is given a row and returns these three, or the reason why the row is no example. A field that is not there,
or of another kind, raises what Python raises; formats.py says where.
"""

from collections.abc import Iterable

from e5jax.public_sets.formats import joined


def as_it_is(row: tuple) -> tuple:
    """A row that is an example already."""
    return row


def tevatron(row: dict):
    """Tevatron's, also MIRACL's and Mr. TyDi's as datasets."""
    return row["query"], _passages(row["positive_passages"]), _passages(row.get("negative_passages") or ())


def dpr(row: dict):
    """DPR's: of the positives the first, which DPR trains on."""
    return row["question"], _passages(row["positive_ctxs"][:1]), _passages(row["hard_negative_ctxs"])


def _passages(passages: Iterable[dict]) -> list[str]:
    return [joined(passage.get("title"), passage["text"]) for passage in passages]


def bge(row: dict):
    """FlagEmbedding's."""
    return row["query"], list(row["pos"]), list(row["neg"] or ())


def echo(row: dict):
    """The triples of echo-embeddings."""
    return row["query"], [row["positive"]], [row["negative"]]


def simcse(row: dict):
    """SimCSE's NLI: premise, entailed and contradicting hypothesis."""
    return row["sent0"], [row["sent1"]], [row["hard_neg"]]


def quora(row: dict):
    """Quora's question pairs, the duplicates of them."""
    return (row["question1"], [row["question2"]], []) if row["is_duplicate"] == "1" else "not a duplicate"


def eli5(row: dict):
    """A question with one answer, or a thread with all of them: the one with the most votes."""
    if "answers" not in row:
        return row["question"], [row["answer"]], []
    voted = zip(row["answers"]["score"], row["answers"]["text"], strict=True)
    return row["title"], [text for _, text in sorted(voted, key=lambda one: -one[0])[:1]], []


def dureader(row: dict):
    """DuReader-retrieval's own."""
    return row["question"], [paragraph["paragraph_text"] for paragraph in row["answer_paragraphs"]], []
