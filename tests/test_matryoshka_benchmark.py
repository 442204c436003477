"""benchmarks/matryoshka.py: losses are relative to a model's own whole vectors, and no text is encoded twice."""

import numpy as np
import pytest

from benchmarks.matryoshka import Remembered, forms, loss, report, verdict
from e5jax.vectors import Kept


SCORES = {
    "plain": {"384 dims": {"STS": 0.8, "XQuAD": 0.5}, "128 dims": {"STS": 0.72, "XQuAD": 0.4}},
    "matryoshka": {"384 dims": {"STS": 0.5, "XQuAD": 0.4}, "128 dims": {"STS": 0.48, "XQuAD": 0.34}},
}


def test_what_is_measured_is_whole_cut_and_quantised_vectors():
    assert forms((384, 128)) == {
        "384 dims": Kept(dims=384, quantize=None),
        "128 dims": Kept(dims=128, quantize=None),
        "384 dims, int8": Kept(dims=None, quantize="int8"),
        "384 dims, binary": Kept(dims=None, quantize="binary"),
    }


def test_a_loss_is_a_share_of_the_same_model_s_whole_score():
    assert loss(SCORES["plain"], "128 dims", "STS") == pytest.approx(0.1)
    assert loss(SCORES["matryoshka"], "128 dims", "STS") == pytest.approx(0.04)
    assert loss(SCORES["plain"], "384 dims", "XQuAD") == 0


def test_the_verdict_asks_for_less_than_half():
    assert verdict(SCORES, "128 dims", "STS").endswith("plain loses 10.00%, Matryoshka 4.00%: less than half of it")
    assert verdict(SCORES, "128 dims", "XQuAD").endswith(
        "plain loses 20.00%, Matryoshka 15.00%: not less than half of it"
    )


def test_the_table_has_a_row_for_what_is_kept_and_a_column_for_each_model():
    head, _, whole, cut, *said = report(SCORES, "128 dims").splitlines()
    assert head == "| kept | STS: plain | STS: matryoshka | XQuAD: plain | XQuAD: matryoshka |"
    assert whole == "| 384 dims | 0.8000 (+0.0%) | 0.5000 (+0.0%) | 0.5000 (+0.0%) | 0.4000 (+0.0%) |"
    assert cut == "| 128 dims | 0.7200 (-10.0%) | 0.4800 (-4.0%) | 0.4000 (-20.0%) | 0.3400 (-15.0%) |"
    assert len([line for line in said if line]) == 2


def test_a_text_is_encoded_once_and_told_every_time():
    class Counting:
        max_length = 7
        encoded, told = 0, 0

        def encode_ids(self, ids, tell):
            self.encoded += len(ids)
            return np.array([[len(text), text[0]] for text in ids], np.float32).reshape(-1, 2)

    encoder, told = Counting(), []
    remembered = Remembered(encoder)
    texts = [np.array(text, np.int32) for text in ([3, 1], [4], [3, 1], [5, 9, 2])]
    for _ in range(2):
        found = remembered.encode_ids(texts, lambda which: told.append(len(which)))
        np.testing.assert_array_equal(found, [[2, 3], [1, 4], [2, 3], [3, 5]])
    assert encoder.encoded == 3 and told == [4, 4] and remembered.max_length == 7
