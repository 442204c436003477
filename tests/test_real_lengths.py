"""On lengths of real text: few compiled shapes, and nearly every token that is computed is one of a text."""

import functools

import numpy as np
import pytest

from e5jax import encoder, formats, heldout
from e5jax.packing import choose_shape, place
from e5jax.records import Source
from tests.test_packing import msmarco_like


LANGUAGES = ("en", "de", "es", "ru", "zh", "ar", "vi", "tr")
TASK = "Given a question, retrieve Wikipedia passages that answer the question"


@functools.cache
def xquad(folder):
    """Of all languages: tokens of each question with its instruction, of each passage, and each question's passage."""
    tokenizer = formats.Tokenizer.load(folder / "mistral-tokenizer")
    sources = [Source(path=str(folder / "xquad" / f"{language}.json"), task=TASK) for language in LANGUAGES]
    pairs = heldout.load("xquad", sources, (), formats.PAPER, "stop")
    tokens = lambda texts: np.array([len(ids) for ids in tokenizer.encode(texts, 512)])
    return tokens(pairs.instructed), tokens(pairs.passages), np.array([min(right) for right in pairs.relevant])


def encoded(lengths, small):
    """-> (tokens of the texts, tokens of the bins that encoding runs, the shapes it compiles)"""
    shapes, computed = set(), 0

    def run(bins, rows, *_):
        nonlocal computed
        computed += bins.tokens_CST.size
        shapes.add((rows, bins.tokens_CST.shape, bins.last_CSN.shape))
        return np.zeros((bins.last_CSN.size, 1))

    texts = [np.full(length, 7, np.int32) for length in lengths]
    encoder.encode_tokens(run, texts, 1, shards=1, small=small, tell=encoder.silent)
    return lengths.sum(), computed, shapes


def of_xquad(folder):
    """Name -> tokens of each text that is encoded together."""
    questions, passages, _ = xquad(folder)
    return {"questions": questions, "passages": passages, "questions and passages": np.append(questions, passages)}


def like_msmarco():
    lengths = msmarco_like(4096, seed=0)
    return {"instructed queries": lengths[:4096], "passages": lengths[4096:]}


def check(corpora):
    """At most a twentieth is padding -> compiled shapes of all, a few texts of each included."""
    shapes = set()
    for name, lengths in corpora.items():
        tokens, computed, seen = encoded(lengths, small=True)
        print(f"encoding {len(lengths):,} {name}: useful tokens {tokens / computed:.3f}, {len(seen)} shapes")
        assert tokens / computed >= 0.95
        shapes |= seen.union(*(encoded(lengths[:n], small=True)[2] for n in (1, 5, 20)))
    return shapes


def test_encoding_xquad_computes_little_padding_in_at_most_eight_shapes(data_dir):
    assert len(check(of_xquad(data_dir))) <= 8


def test_encoding_lengths_like_ms_marco_s_computes_little_padding_in_at_most_eight_shapes():
    assert len(check(like_msmarco())) <= 8


@pytest.mark.parametrize(("queries", "chunks"), [(256, 8), (1024, 8), (1024, 1)])
def test_training_on_real_text_computes_little_padding(queries, chunks, data_dir):
    questions, passages, owner = xquad(data_dir)
    rng = np.random.default_rng(0)

    def batch():
        asked = rng.choice(len(questions), queries, replace=False)
        return np.append(questions[asked], passages[np.unique(owner[asked])])

    sample = [batch() for _ in range(12)]
    shape = choose_shape(sample, shards=1, chunks=chunks, spare=0.25, widths=(512, 128))
    unseen = [batch() for _ in range(8)]
    useful = [b.sum() / (place(b, shape).chunks_used * shape.tokens) for b in unseen]
    print(f"{queries} questions of XQuAD in {chunks} chunks of {shape.rows}: useful tokens {np.mean(useful):.3f}")
    assert np.mean(useful) >= 0.93
