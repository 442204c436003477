"""Personalised passkey retrieval (Wang et al. 2024, section 5.2): does a vector hold what stands deep in a long text?

Each of 100 documents is filler of a given length with one person's pass key at a random place; 50 queries ask for one
person's each; the score is how often the right document comes first. What differs between documents is a name and a
number, so a model that does not see that far, or mixes it up, finds them by chance: 1 %.
"""

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from e5jax import pictures
from e5jax.errors import UserError
from e5jax.formats import Tokenizer
from e5jax.results import Results, TaskResult


DOCUMENTS, QUERIES = 100, 50
SEED = 0
DATA = f"{QUERIES} of {DOCUMENTS} people, seed {SEED}"
METRIC = "top1_accuracy"
REACH = ("window", "rope_theta", "rope_scale")  # what `evaluate` may change of a model
# The paper names no instruction for this task, nor does mteb for its LEMBPasskeyRetrieval.
INSTRUCTION = "Given a question, retrieve passages that answer the question"
QUERY = "what is the pass key for {name}?"
NEEDLE = "{name}'s pass key is {key}. Remember it. {key} is the pass key for {name}."
FILLER = (
    "The grass is green.",
    "The sky is blue.",
    "The sun is yellow.",
    "Here we go.",
    "There and back again.",
)

# Figure 5: percent at these lengths. Which (window, base of the rotary angles) -> E5-mistral-7b's accuracy.
LENGTHS = (256, 512, 1024, 2048, 4096, 8192, 16_384, 32_768)
PAPER = {
    "window 4k, base 10⁴": (100, 100, 100, 100, 100, 70, 30, 26),
    "window 32k, base 10⁴": (100, 100, 100, 100, 100, 50, 0, 0),
    "window 32k, base 10⁵": (92, 100, 98, 100, 100, 100, 88, 92),
    "window 32k, base 10⁶": (82, 72, 80, 88, 74, 50, 36, 42),
}

# No two people of a test share a first name or a surname.
FIRST_NAMES = """
Abena Adam Aiko Alba Alma Amara Anders Anja Anton Arjun Astrid Aylin Beatriz Bela Benno Bianca Boris Bruno Camila
Carlos Cecilia Chiara Clara Conrad Dalia Daniel Daria Diego Dmitri Doris Edgar Eileen Elena Elif Emil Enzo Erik Esther
Fabian Farah Felix Fiona Frida Gavin Gemma Georg Greta Hamid Hanna Harald Hector Helga Henrik Ibrahim Ida Igor Ines
Ingrid Irma Ivan Jakob Jana Jasper Jelena Joao Jonas Judith Kamal Karin Kenji Kiran Klara Lars Laura Leila Leon Lidia
Linus Lucia Magnus Maja Marco Marta Maya Milan Mina Nadia Naomi Nils Nora Olga Omar Oscar Paolo Petra Priya Rafael Rania
Rosa Ruben Samir Sara Selma Simon Sofia Stefan Tamar Tariq Thea Tomas Ulla Uma Vera Viktor Wanda Xenia Yara Yusuf Zoe
""".split()
SURNAMES = """
Abbott Acheampong Adler Aguilar Ahmed Albrecht Almeida Andrade Aoki Arslan Baker Bakshi Barnes Becker Bennett Berg
Bianchi Blanc Borg Brandt Burke Campos Castro Chandra Clarke Cohen Costa Cruz Dahl Davies Delgado Demir Dietrich Dixon
Duarte Dubois Eklund Eriksen Farkas Fernandes Ferrari Fischer Fleming Foster Fuchs Garcia Gibson Gomez Graham Gupta
Haddad Hansen Harris Hayashi Hoffmann Holm Horvat Hughes Ibarra Ivanov Jansen Jensen Johnson Kaplan Kaya Keller Kim
Klein Kowalski Kumar Lambert Larsen Lehmann Lindgren Lopez Mancini Marino Mehta Mendes Meyer Morris Murphy Nagy Nakamura
Nielsen Novak Nunez Obi Okafor Olsen Osman Park Patel Pereira Petrov Quinn Ramos Reid Ricci Rojas Rossi Russo Santos
Schmidt Schulz Sharma Silva Singh Sokolov Suzuki Takeda Torres Turner Varga Vogel Walker Weber Yilmaz Zhang Ziegler
""".split()


def make(length: int, tokenizer: Tokenizer, seed: int) -> tuple[list[str], list[str], np.ndarray]:
    """-> 50 queries, 100 documents, int [50] with the number of each query's document.

    A document has at most `length` tokens, special ones included, and falls short of that by two sentences of filler
    at most. Raises UserError where there is no room for a pass key, or filler cannot be counted with this tokenizer.
    """
    rng = np.random.default_rng((seed, length))
    firsts, lasts = (rng.choice(names, DOCUMENTS, replace=False) for names in (FIRST_NAMES, SURNAMES))
    names = [f"{first} {last}" for first, last in zip(firsts, lasts, strict=True)]
    keys = 10_000 + rng.choice(90_000, DOCUMENTS, replace=False)
    needles = [NEEDLE.format(name=name, key=key) for name, key in zip(names, keys, strict=True)]
    documents = _fill(needles, rng.uniform(size=DOCUMENTS), length, tokenizer)
    right = rng.choice(DOCUMENTS, QUERIES, replace=False)
    return [QUERY.format(name=names[i]) for i in right], documents, right


def _fill(needles: Sequence[str], where: np.ndarray, length: int, tokenizer: Tokenizer) -> list[str]:
    """Each needle in filler up to `length` tokens, at its place `where` in it, from 0 to 1."""
    costs = _costs(tokenizer)
    sentences = np.array([_fitting(length - tokens, costs) for tokens in _count(needles, tokenizer)])
    while sentences.min() >= 0:
        before = (where * (sentences + 1)).astype(int)
        parts = list(zip(needles, before, sentences - before, strict=True))
        tokens = _measure(parts, sum(costs), tokenizer)
        if tokens.max() <= length:
            break
        sentences -= tokens > length  # the seams between a needle and filler were not counted in
    else:
        raise UserError(f"a document of {length:,} tokens has no room for a pass key: take longer ones")
    documents = [_document(*part) for part in parts]
    if (whole := _count(documents[:1], tokenizer)[0]) != tokens[0]:
        raise UserError(
            f"{tokens[0]:,} tokens of filler are {whole:,} in one text: the tokenizer merges words across sentences, "
            "so no documents of a given length can be made for it"
        )
    return documents


def _count(texts: Sequence[str], tokenizer: Tokenizer) -> np.ndarray:
    """Tokens of each text, special ones included."""
    return np.array([len(ids) for ids in tokenizer.encode(texts, sys.maxsize)])


def _costs(tokenizer: Tokenizer) -> list[int]:
    """Tokens that each sentence of filler adds to running text."""
    running = [" ".join(FILLER + FILLER[:i]) for i in range(len(FILLER) + 1)]
    costs = np.diff(_count(running, tokenizer)).tolist()
    if min(costs) < 1:
        raise UserError(
            f"the tokenizer counts {costs} tokens for the sentences of the filler: it cannot reach a length"
        )
    return costs


def _fitting(budget: int, costs: list[int]) -> int:
    """How many sentences of filler take at most `budget` tokens; negative where the budget is."""
    cycles, rest = divmod(budget, sum(costs))
    return cycles * len(costs) + int(np.searchsorted(np.cumsum(costs), rest, side="right"))


def _measure(parts: Sequence[tuple[str, int, int]], cycle: int, tokenizer: Tokenizer) -> np.ndarray:
    """Tokens of each document, its whole cycles of filler multiplied out: 100 × 32k tokens take their time to count."""
    left_out = [[max(0, n // len(FILLER) - 1) for n in sentences] for _, *sentences in parts]
    short = [
        _document(needle, before - first * len(FILLER), after - last * len(FILLER))
        for (needle, before, after), (first, last) in zip(parts, left_out, strict=True)
    ]
    return _count(short, tokenizer) + cycle * np.sum(left_out, axis=1)


def _document(needle: str, before: int, after: int) -> str:
    """The needle behind and in front of so many sentences of filler, which goes on where it was."""
    filler = [FILLER[i % len(FILLER)] for i in range(before + after)]
    return " ".join([*filler[:before], needle, *filler[before:]])


def accuracy(query_vectors: np.ndarray, document_vectors: np.ndarray, right: np.ndarray) -> np.ndarray:
    """1.0 for each query whose document is the most similar one, else 0.0 -> [Q]; vectors are rows of unit length."""
    return (np.argmax(query_vectors @ document_vectors.T, axis=1) == right).astype(np.float64)


def task_result(length: int, hits: np.ndarray, prompt: dict[str, str]) -> TaskResult:
    """What `accuracy` found at one length, as the result of the task passkey-LENGTH."""
    return TaskResult(
        task=f"passkey-{length}",
        metric=METRIC,
        value=float(hits.mean()),
        n=len(hits),
        subsets={},
        prompt=prompt,
        data=DATA,
        examples={"score": hits},
    )


def curves(runs: Sequence[Results]) -> dict[str, dict[int, float]]:
    """{model and its overrides: {length: accuracy}} of all that was measured."""
    found = {}
    for name, run in zip(pictures.short_names([run.model for run in runs]), runs, strict=True):
        changed = [f"{key} {run.identity[key]:g}" for key in REACH if run.identity.get(key) is not None]
        line = {int(r.task.removeprefix("passkey-")): r.value for r in run.results if r.metric == METRIC}
        if line:
            found[", ".join([name, *changed])] = dict(sorted(line.items()))
    return found


def draw(measured: Mapping[str, Mapping[int, float]], path: Path) -> None:
    """Accuracy over length: what `curves` gives, in front of the four lines of the paper's figure 5."""
    pictures.draw_lengths(measured, {name: dict(zip(LENGTHS, line, strict=True)) for name, line in PAPER.items()}, path)
