"""The public training sets of E5-Mistral (arXiv 2401.00368, appendix A, Table 14), and the copies that are read.

Share, instructions and copies of a set stand here alone: `configs/e5_mistral_7b.py` trains with the first two,
`python -m e5jax.public` looks for the copies, in this order.
"""

import dataclasses
import hashlib

from e5jax.public_sets import copies
from e5jax.public_sets.copies import Copy, beir, collections, dpr, tevatron


WIKIPEDIA = (
    "Given a question, retrieve Wikipedia passages that answer the question",
    "Retrieve Wikipedia passages that answer the question",
)
CHINESE = ("Given a Chinese search query, retrieve web passages that answer the question",)


@dataclasses.dataclass(frozen=True, kw_only=True)
class PublicSet:
    """A training set."""

    share: float
    """Of its records, what is trained on."""
    instructions: tuple[str, ...]
    """Of two, each is for half of the queries."""
    copies: tuple[Copy, ...]


def task(name: str, query: str) -> str:
    """The instruction of a query of a set: always the same for the same query."""
    instructions = SETS[name].instructions
    number = int.from_bytes(hashlib.blake2b(query.encode(), digest_size=8).digest())
    return instructions[number % len(instructions)]


def _set(share: float, instructions: tuple[str, ...], bge: str, echo: str, *own: Copy) -> PublicSet:
    return PublicSet(share=share, instructions=instructions, copies=(*own, *collections(bge, echo)))


SETS = {
    "eli5": _set(
        0.1,
        ("Provided a user question, retrieve the highest voted answers on Reddit ELI5 forum",),
        "eli5",
        "eli5_question_answer",
        copies.ELI5,
    ),
    "hotpotqa": _set(
        1.0,
        ("Given a multi-hop question, retrieve documents that can help answer the question",),
        "hotpot*",
        "hotpot_qa",
        beir("hotpotqa"),
    ),
    "fever": _set(
        1.0,
        ("Given a claim, retrieve documents that support or refute the claim",),
        "fever",
        "fever",
        beir("fever"),
    ),
    "miracl": _set(
        1.0, WIKIPEDIA, "miracl*", "miracl", tevatron("miracl", "hub: miracl/miracl, as JSONL"), copies.MIRACL
    ),
    "msmarco_passage": _set(
        0.5,
        ("Given a web search query, retrieve relevant passages that answer the query",),
        "msmarco_passage",
        "msmarco_passage",
        tevatron("msmarco_passage", "hub: Tevatron/msmarco-passage"),
        copies.MSMARCO_PASSAGE,
    ),
    "msmarco_document": _set(
        0.2,
        ("Given a web search query, retrieve relevant documents that answer the query",),
        "msmarco_document",
        "msmarco_document",
        copies.MSMARCO_DOCUMENT,
    ),
    "nq": _set(
        1.0,
        WIKIPEDIA,
        "nq",
        "nq",
        dpr("nq", "biencoder-nq-train.json"),
        tevatron("nq", "hub: Tevatron/wikipedia-nq"),
    ),
    "nli": _set(
        1.0,
        (
            "Given a premise, retrieve a hypothesis that is entailed by the premise",
            "Retrieve semantically similar text",
        ),
        "*nli*",
        "allnli_split*",
        copies.NLI,
    ),
    "squad": _set(
        1.0,
        WIKIPEDIA,
        "squad",
        "squad",
        dpr("squad", "biencoder-squad1-train.json"),
        tevatron("squad", "hub: Tevatron/wikipedia-squad"),
    ),
    "triviaqa": _set(
        1.0,
        WIKIPEDIA,
        "trivia*",
        "trivia_qa",
        dpr("triviaqa", "biencoder-trivia-train.json"),
        tevatron("triviaqa", "hub: Tevatron/wikipedia-trivia"),
    ),
    "quora": _set(
        0.1,
        (
            "Given a question, retrieve questions that are semantically equivalent to the given question",
            "Find questions that have the same meaning as the input question",
        ),
        "quora*",
        "quora_duplicates_split*",
        copies.QUORA,
    ),
    "mrtydi": _set(1.0, WIKIPEDIA, "mr_tydi*", "mrtydi", copies.MRTYDI, tevatron("mrtydi", "hub: castorini/mr-tydi")),
    "dureader": _set(1.0, CHINESE, "dureader", "dureader", *copies.DUREADER),
    "t2ranking": _set(0.5, CHINESE, "t2ranking", "t2ranking", copies.T2RANKING),
}
