"""The models of tables 2 and 4 at small scale: MiniLM as it is, and fine-tuned on 20 languages.

All its weights learn XQuAD's questions in 8 languages, STS-B's paraphrases in 6 and Tatoeba's translations of 20, every
pair as likely as any other, as bare texts.
"""

import dataclasses

import setting

from configs import minilm_multilingual
from e5jax.rows import Row


def rows(*, with_bm25: bool) -> tuple[Row, ...]:
    untrained = Row(name="all-MiniLM-L6-v2", model=setting.MINILM)
    bm25 = (Row(name="BM25", model="bm25"),) * with_bm25
    weighted = minilm_multilingual.get_config().data.train
    pairs = tuple(dataclasses.replace(source, weight=None) for source in weighted)
    trained = Row(name="fine-tuned on 20 languages", train=setting.bare(pairs, steps=60), against=untrained.name)
    return (*bm25, untrained, trained)
