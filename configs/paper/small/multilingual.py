"""The models of tables 2 and 4 at small scale: MiniLM as it is, and fine-tuned on 20 languages."""

import setting

from configs import minilm_multilingual
from e5jax.rows import Row


def rows(*, with_bm25: bool) -> tuple[Row, ...]:
    untrained = Row(name="all-MiniLM-L6-v2", model=setting.MINILM)
    bm25 = (Row(name="BM25", model="bm25"),) * with_bm25
    config = minilm_multilingual.get_config()
    trained = Row(name="fine-tuned on 20 languages", train=config, against=untrained.name)
    return (*bm25, untrained, trained)
