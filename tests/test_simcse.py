"""Plain texts as training data (SimCSE): a text and itself are two rows of a batch, told apart by dropout alone."""

import jax
import numpy as np

from e5jax.batch import make_batch
from e5jax.layers import Dropout
from e5jax.packing import BinShape
from tests import tiny
from tests.test_batch import store


SHAPE = BinShape(chunks=1, shards=1, rows=((16, 3),), slots=8)
TEXTS = ([5, 6, 7], [8, 9], [5, 6, 7], [3, 4, 5, 6])  # a file may hold a line twice


def batch():
    stores = (store(*((text, text) for text in TEXTS)),)
    return make_batch(stores, None, np.array([[0, i] for i in range(4)]), SHAPE, range(1), 0)


def test_every_text_is_a_query_and_a_passage_of_its_own():
    made = batch()
    assert made.valid_P.sum() == 3  # a line that stands twice is one passage, right for both
    passages = made.passage_P[made.valid_P]
    assert len({*made.query_Q.tolist(), *passages.tolist()}) == 7
    assert made.positive_Q[0] == made.positive_Q[2] and len({*made.positive_Q.tolist()}) == 3


def test_dropout_sees_a_text_and_itself_as_two():
    made, model = batch(), tiny.adapted(tiny.decoder())
    pairs = [(made.query_Q[i], made.passage_P[made.positive_Q[i]]) for i in range(4)]

    def cosines(**dropout):
        v_ND = np.asarray(tiny.encode(model, made.bins, SHAPE, **dropout))
        return np.array([v_ND[query] @ v_ND[passage] for query, passage in pairs])

    np.testing.assert_allclose(cosines(), 1, atol=1e-5)
    assert cosines(dropout=Dropout(adapters=0.0, hidden=0.5), dropout_key=jax.random.key(0)).max() < 1 - 1e-3
