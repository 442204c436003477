"""What both sides read: small Mistrals, batches of token ids, texts to encode.

Real text is that of $E5JAX_DATA with the real Mistral tokenizer. MS-MARCO-like lengths are drawn: passages lognormal
with mean 80 and sigma 0.42 (the longest of 32 is then 2.2 times the mean), queries with mean 10 behind an instruction
of 22 tokens.
"""

import csv
import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from e5jax.errors import UserError
from e5jax.formats import PAPER, Tokenizer


MODELS = {  # grouped-query attention 4:1
    "512x8": {"dim": 512, "layers": 8, "heads": 8, "kv_heads": 2, "head_dim": 64, "hidden": 1792},
    "1024x12": {"dim": 1024, "layers": 12, "heads": 16, "kv_heads": 4, "head_dim": 64, "hidden": 3584},
}
VOCABULARY = 32_000
LONGEST = 512
LANGUAGES = ("en", "de", "es", "ru", "zh", "ar", "vi", "tr")
INSTRUCTION = "Given a question, retrieve Wikipedia passages that answer the question"
INSTRUCTION_TOKENS = 22
SIGMA = 0.42


@dataclasses.dataclass(frozen=True, kw_only=True)
class Triples:
    """A batch: token ids of queries, of each one's passage, of each one's hard negative; no text twice."""

    queries: list[list[int]]
    positives: list[list[int]]
    negatives: list[list[int]]

    @property
    def lengths(self) -> np.ndarray:
        """Of all texts: queries, positives, negatives."""
        return np.array([len(text) for text in (*self.queries, *self.positives, *self.negatives)])

    @property
    def tokens(self) -> int:
        """Real tokens of a step."""
        return int(self.lengths.sum())


class Texts:
    """The real texts and their tokenizer. Raises UserError where the folder lacks them."""

    def __init__(self, data: Path):
        if not (data / "mistral-tokenizer" / "tokenizer.json").is_file():
            raise UserError(f"{data}: no mistral-tokenizer/tokenizer.json; the README says what belongs to E5JAX_DATA")
        self.tokenizer = Tokenizer.load(data / "mistral-tokenizer")
        self._data = data
        self.before_query = PAPER.before_query(INSTRUCTION)

    def ids(self, texts: Sequence[str]) -> list[list[int]]:
        """Token ids, special ones included, cut at LONGEST."""
        return [text.tolist() for text in self.tokenizer.encode(texts, LONGEST)]

    def xquad(self, language: str) -> list[tuple[str, list[str]]]:
        """[(passage, questions on it)]."""
        articles = json.loads((self._data / "xquad" / f"{language}.json").read_text(encoding="utf-8"))["data"]
        paragraphs = [paragraph for article in articles for paragraph in article["paragraphs"]]
        return [(p["context"], [qa["question"] for qa in p["qas"]]) for p in paragraphs]

    def sentences(self, count: int) -> list[str]:
        """So many of STS-B, English, each once, and as many of Tatoeba."""
        with (self._data / "stsb" / "en-train.csv").open(encoding="utf-8", newline="") as file:
            sts = list(dict.fromkeys(row[0] for row in csv.reader(file)))[:count]
        tatoeba = (self._data / "tatoeba" / "deu-eng.eng").read_text(encoding="utf-8").splitlines()
        return sts + list(dict.fromkeys(tatoeba))[:count]

    def xquad_batches(self, triples: int, count: int, seed: int) -> list[Triples]:
        """Batches of English questions, their passages, and as many other passages; no passage twice in one."""
        paragraphs = self.xquad("en")
        if 2 * triples > len(paragraphs):
            raise UserError(f"{triples} triples need {2 * triples} passages, and XQuAD has {len(paragraphs)}")
        passages = self.ids([passage for passage, _ in paragraphs])
        rng, batches = np.random.default_rng(seed), []
        for _ in range(count):
            drawn = rng.permutation(len(paragraphs))[: 2 * triples]
            asked = [paragraphs[i][1] for i in drawn[:triples]]
            questions = [self.before_query + questions[rng.integers(len(questions))] for questions in asked]
            batches.append(
                Triples(
                    queries=self.ids(questions),
                    positives=[passages[i] for i in drawn[:triples]],
                    negatives=[passages[i] for i in drawn[triples:]],
                )
            )
        return batches

    def cut(self, lengths: Sequence[np.ndarray]) -> Triples:
        """A batch of the given lengths (of queries, positives, negatives), cut out of XQuAD's passages."""
        stream = iter([i for passage, _ in self.xquad("en") for i in self.ids([passage])[0][1:-1]])
        first, last = self.tokenizer.prefix, self.tokenizer.suffix
        room = len(first) + len(last)
        text = lambda length: [*first, *(next(stream) for _ in range(length - room)), *last]
        queries, positives, negatives = ([text(int(length)) for length in column] for column in lengths)
        return Triples(queries=queries, positives=positives, negatives=negatives)


def uniform_lengths(triples: int, length: int) -> list[np.ndarray]:
    """All texts of one length."""
    return [np.full(triples, length)] * 3


def marco_lengths(triples: int, longest_query: int, longest_passage: int, rng: np.random.Generator) -> list[np.ndarray]:
    """MS-MARCO-like tokens of queries with their instruction, of positives, of negatives."""

    def drawn(mean, longest):
        lengths = rng.lognormal(np.log(mean) - SIGMA**2 / 2, SIGMA, triples)
        return np.clip(np.rint(lengths), 4, longest).astype(int)

    queries = INSTRUCTION_TOKENS + drawn(10, longest_query - INSTRUCTION_TOKENS)
    return [queries, drawn(80, longest_passage), drawn(80, longest_passage)]


def random_triples(lengths: Sequence[np.ndarray], vocabulary: int, rng: np.random.Generator) -> Triples:
    """Random tokens of the given lengths (of queries, positives, negatives)."""
    draw = lambda column: [rng.integers(3, vocabulary, length).tolist() for length in column]
    return Triples(**dict(zip(("queries", "positives", "negatives"), map(draw, lengths), strict=True)))


def write_batch(path: Path, batch: Triples, sample: Sequence[np.ndarray]) -> str:
    """A batch for the workers, and the lengths of batches like it, from which ours takes its shape; -> the path."""
    content = {**dataclasses.asdict(batch), "sample": [lengths.tolist() for lengths in sample]}
    path.write_text(json.dumps(content), encoding="utf-8")
    return str(path)


def read_batch(path: str) -> tuple[Triples, list[np.ndarray]]:
    """What `write_batch` wrote."""
    content = json.loads(Path(path).read_text(encoding="utf-8"))
    sample = [np.array(lengths) for lengths in content.pop("sample")]
    return Triples(**content), sample


def typical(batches: Sequence[Triples]) -> Triples:
    """The batch in the middle by tokens."""
    return sorted(batches, key=lambda batch: batch.tokens)[len(batches) // 2]
