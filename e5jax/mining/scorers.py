"""Who finds a query's candidates in the pool, and who scores them once more.

A finder is opened by name and says what its scores depend on; `index` takes in the passages and gives the search.

Shapes: Q queries, C candidates, D components of a vector.
"""

import dataclasses
import hashlib
import logging
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from tqdm import tqdm

from e5jax import heldout, places
from e5jax.errors import UserError
from e5jax.formats import Prompts
from e5jax.mining import pool
from e5jax.mteb_model import BM25
from e5jax.search import top_k
from e5jax.teacher import Teacher, open_teacher


@dataclasses.dataclass(frozen=True, kw_only=True)
class Found:
    """The best candidates of each query, and the score of its positive by the same model."""

    scores_QC: np.ndarray
    """float32, descending; equal ones by number."""
    ids_QC: np.ndarray
    """Numbers in the pool; -1 where a query has fewer candidates."""
    positive_Q: np.ndarray


Query = tuple[str | None, str]  # (task, text)
Search = Callable[[Sequence[Query], Sequence[int], int], Found]
"""(queries, the number of each one's positive, how many candidates) -> what is found."""


class Finder(Protocol):
    """A model that searches."""

    unit: str
    """What a score is called."""

    @property
    def about(self) -> dict[str, Any]:
        """All that its scores depend on beside the texts; JSON values."""

    def index(self, texts: Sequence[str], digest: str, folder: Path) -> Search:
        """Take in the passages. `digest`: a hash of them; `folder`: where vectors go, of a model that has some."""


def open_finder(name: str) -> Finder:
    """`bm25`, `sentence-transformers:NAME`, or whatever `Encoder.load` takes. UserError where it cannot be opened."""
    if name == BM25:
        return Lexical()
    teacher = open_teacher(name)
    # One whose files ask for nothing is left bare: it has not learnt to read the paper's template.
    prompts = dataclasses.replace(teacher.prompts, query=teacher.prompts.query or "")
    return Dense(name=name, teacher=teacher, prompts=prompts)


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Dense:
    """An embedder: cosines, by exact search."""

    name: str
    teacher: Teacher
    prompts: Prompts
    unit: str = "cosine"

    @property
    def about(self) -> dict[str, Any]:
        prompts = dataclasses.asdict(self.prompts)
        return {"digest": self.teacher.digest, "max_length": self.teacher.max_length, "prompts": prompts}

    def index(self, texts: Sequence[str], digest: str, folder: Path) -> Search:
        job = {**self.about, "passages": digest}
        shards = pool.vectors(self.teacher, self.name, texts, self.prompts.passage, job, folder)

        def search(queries: Sequence[Query], positives: Sequence[int], k: int) -> Found:
            asked = [self.prompts.before_query(task) + text for task, text in queries]
            query_QD = pool.encode(self.teacher, self.name, asked)
            scores_QC, ids_QC = top_k(query_QD, iter(shards), k)
            positive_QD = np.stack([shards[i // pool.SHARD][i % pool.SHARD] for i in positives])
            positive_Q = np.einsum("QD,QD->Q", query_QD, positive_QD)
            return Found(scores_QC=scores_QC, ids_QC=ids_QC, positive_Q=positive_Q)

        return search


@dataclasses.dataclass(frozen=True, kw_only=True)
class Lexical:
    """BM25 over `heldout.words`, of bare texts (Lucene's variant, k1 1.5, b 0.75).

    A passage without a word of the query is no candidate.
    """

    unit: str = "BM25 score"

    @property
    def about(self) -> dict[str, Any]:
        return {"digest": BM25}

    def index(self, texts: Sequence[str], digest: str, folder: Path) -> Search:
        import bm25s

        logging.getLogger("bm25s").setLevel(logging.WARNING)  # it says a line at every index
        # As numbers: a million lists of words would take gigabytes.
        number: dict[str, int] = {}
        with tqdm(texts, desc="index of words", unit=" texts", delay=1, disable=None) as progress:
            ids = [[number.setdefault(word, len(number)) for word in heldout.words(text) or ["∅"]] for text in progress]
        index = bm25s.BM25(method="lucene")
        index.index((ids, number), show_progress=False)

        def search(queries: Sequence[Query], positives: Sequence[int], k: int) -> Found:
            scores_QC = np.full((len(queries), k), -np.inf, np.float32)
            ids_QC = np.full((len(queries), k), -1, np.int64)
            positive_Q = np.zeros(len(queries), np.float32)
            for row, ((_, text), positive) in enumerate(zip(queries, positives, strict=True)):
                known = [number[word] for word in heldout.words(text) if word in number]
                if not known:
                    continue
                scores = index.get_scores_from_ids(known)
                best = _largest(scores, k)
                scores_QC[row, : len(best)], ids_QC[row, : len(best)] = scores[best], best
                positive_Q[row] = scores[positive]
            return Found(scores_QC=scores_QC, ids_QC=ids_QC, positive_Q=positive_Q)

        return search


def _largest(scores: np.ndarray, k: int) -> np.ndarray:
    """Places of the k largest scores above zero, descending, equal ones in order."""
    some = np.flatnonzero(scores > 0)
    if len(some) > k:
        some = some[scores[some] >= np.partition(scores[some], -k)[-k]]
    return some[np.argsort(-scores[some], kind="stable")[:k]]


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class CrossEncoder:
    """Reads query and passage together: dearer and better than two vectors."""

    name: str
    model: Any
    unit: str = "cross-encoder's probability"

    @classmethod
    def load(cls, name: str) -> "CrossEncoder":
        """sentence-transformers' CrossEncoder of a folder or hub name, with one score a pair.

        Weights from safetensors only, no code of the folder. UserError where it cannot be opened.
        """
        try:
            from sentence_transformers import CrossEncoder as Theirs
        except ImportError as error:
            raise UserError(f"--rescore {name} needs pip install sentence-transformers ({error})") from None
        try:
            model = Theirs(places.named(name), model_kwargs={"use_safetensors": True}, trust_remote_code=False)
        except Exception as error:  # of many kinds: no such folder, no network, no safetensors, ...
            raise UserError(f"--rescore {name}: sentence-transformers cannot open it: {error}") from error
        if model.num_labels != 1:
            raise UserError(f"--rescore {name} gives {model.num_labels} scores a pair: take a model with a single one")
        return cls(name=name, model=model)

    @property
    def about(self) -> dict[str, Any]:
        """All that its scores depend on beside the texts."""
        import torch

        digest = hashlib.sha256(f"{self.model} {sorted(self.model.tokenizer.get_vocab().items())}".encode())
        for name, tensor in sorted(self.model.state_dict().items()):
            digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
            # As bytes: NumPy has no bfloat16.
            digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
        return {"digest": digest.hexdigest()}

    def score(self, query: str, passages: Sequence[str]) -> np.ndarray:
        """float32 [len(passages)] in 0 to 1: the sigmoid of the model's score, whatever its own files put behind it.

        A share of a score means something only above zero, and scores of many models are logits.
        """
        import torch

        pairs = [(query, passage) for passage in passages]
        scores = self.model.predict(pairs, activation_fn=torch.nn.Sigmoid(), show_progress_bar=False)
        scores = np.asarray(scores, np.float32)
        if not np.isfinite(scores).all():
            raise UserError(f"--rescore {self.name}: a score of {query[:80]!r} is not a number: take another model")
        return scores
