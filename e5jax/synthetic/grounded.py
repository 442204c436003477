"""Examples from the user's own passages, after Gecko (Lee et al. 2024, arXiv 2403.20327, section 3).

Two steps. For a passage the LLM writes a task and a query; BM25 finds candidates for the query, and the LLM ranks them.
The best becomes the positive, which need not be the passage that the query was written for; the worst of what BM25
found becomes the negative. As in `plan`, requests are functions of config, corpus, seed and number.
"""

import json
import logging
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

import numpy as np

from e5jax import corpus
from e5jax.corpus import Corpus
from e5jax.errors import UserError
from e5jax.heldout import bm25
from e5jax.synthetic import templates
from e5jax.synthetic.config import SynthesizeConfig
from e5jax.synthetic.plan import MAX_TASK_CHARACTERS, one_line, uniform
from e5jax.synthetic.request import Request, Sampling
from e5jax.synthetic.task_types import ANY_LANGUAGE, GROUNDED, object_schema, render


QUERY_SCHEMA = object_schema(("task", "query"))
CANDIDATES = 10
MAX_PASSAGE_CHARACTERS = 4_000


def load(path: str) -> list[str]:
    """The different passages of a corpus, in its order; blank ones and those over 4,000 characters are left out.

    Raises UserError where fewer than two remain.
    """
    read = corpus.shards(_corpus(path), 1_000, lambda _: True)
    texts = dict.fromkeys(text.strip() for _, shard in read for _, text in shard)
    passages = [text for text in texts if 0 < len(text) <= MAX_PASSAGE_CHARACTERS]
    if long := sum(len(text) > MAX_PASSAGE_CHARACTERS for text in texts):
        logging.getLogger(__name__).warning(
            "%s: %d passages of more than %d characters left out", path, long, MAX_PASSAGE_CHARACTERS
        )
    if len(passages) < 2:
        raise UserError(f"{path}: {len(passages)} passages of 1 to {MAX_PASSAGE_CHARACTERS} characters; it takes two")
    return passages


def fingerprint(path: str) -> str:
    """Of the corpus: another one makes other requests."""
    return corpus.fingerprint(_corpus(path))


def _corpus(path: str) -> Corpus:
    return Corpus(path=path, field=None, id_field=None, split="train")


def queries(config: SynthesizeConfig, sampling: Sampling, passages: Sequence[str]) -> Iterator[Request]:
    """The requests for a task and a query, one an example; every passage has its turn before any has a second."""
    order = sorted(range(len(passages)), key=lambda i: uniform(config.seed, "passage", passages[i]))
    for number in range(config.examples):
        values = GROUNDED.placeholders
        drawn = {name: of[int(uniform(config.seed, number, name) * len(of))] for name, of in values.items()}
        drawn["passage"] = passages[order[number % len(order)]]
        prompt = render(templates.QUERY + templates.OBJECT_ONLY, drawn)
        yield _request("query", number, prompt, QUERY_SCHEMA, drawn, sampling)


def rankings(
    config: SynthesizeConfig,
    sampling: Sampling,
    passages: Sequence[str],
    answers: Iterable[tuple[Mapping, Mapping[str, str]]],
) -> Iterator[Request]:
    """The requests for a ranking of candidates, by number, of (request, its {task, query}).

    The passage that a query was written for is always a candidate. An answer gives none where task or query is blank or
    has more than 500 characters, or where no other passage shares a word with the query.
    """
    retrieve = _retriever(passages)
    for request, fields in sorted(answers, key=lambda answer: answer[0]["number"]):
        number, (task, query) = request["number"], map(one_line, (fields["task"], fields["query"]))
        if task is None or query is None:
            continue
        candidates = list(dict.fromkeys([request["drawn"]["passage"], *retrieve(query)]))[:CANDIDATES]
        if len(candidates) > 1:
            # A model leans towards what stands first, so the order must say nothing.
            candidates.sort(key=lambda text: uniform(config.seed, number, "candidate", text))
            yield _ranking(number, task, query, candidates, sampling)


def costliest_ranking(sampling: Sampling, passages: Sequence[str]) -> Request:
    """A ranking that costs no less than any of these passages, for what a plan costs at the most."""
    longest = sorted(passages, key=lambda text: len(json.dumps(text, ensure_ascii=False).encode()))[-CANDIDATES:]
    # No character takes more than the four bytes of this one.
    return _ranking(0, "🂡" * MAX_TASK_CHARACTERS, "🂡" * MAX_TASK_CHARACTERS, longest, sampling)


def _ranking(number: int, task: str, query: str, candidates: Sequence[str], sampling: Sampling) -> Request:
    drawn = {"language": ANY_LANGUAGE, "task": task, "query": query}
    numbered = "\n".join(f"{i}. {json.dumps(text, ensure_ascii=False)}" for i, text in enumerate(candidates, 1))
    prompt = GROUNDED.example_prompt(drawn | {"candidates": numbered})
    kept = drawn | {"candidates": json.dumps(candidates, ensure_ascii=False)}
    return _request("ranking", number, prompt, GROUNDED.schema, kept, sampling)


def _request(kind: str, number: int, prompt: str, schema: dict, drawn: dict[str, str], sampling: Sampling) -> Request:
    return Request(
        kind=kind,
        task_type=GROUNDED.name,
        number=number,
        prompt_version=GROUNDED.version,
        prompt=prompt,
        schema=schema,
        drawn=drawn,
        sampling=sampling,
    )


def _retriever(passages: Sequence[str]) -> Callable[[str], list[str]]:
    """query -> the passages that share a word with it, best first, at most CANDIDATES; of equal ones the earlier."""
    search = bm25(passages)
    count = min(CANDIDATES, len(passages))

    def retrieve(query: str) -> list[str]:
        scores = search(query)
        last = np.partition(scores, -count)[-count]
        found = np.flatnonzero((scores >= last) & (scores > 0))
        best_first = found[np.argsort(-scores[found], kind="stable")]
        return [passages[i] for i in best_first[:count]]

    return retrieve
