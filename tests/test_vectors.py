"""Vectors on disk: whole shards, an index at the end, nothing of another job mixed in."""

import json

import numpy as np
import pytest
from sentence_transformers.util import quantize_embeddings

from e5jax import vectors
from e5jax.errors import UserError


FACTS = {"tokens": 5, "truncated": 1}


@pytest.fixture
def unit():
    x = np.random.default_rng(0).normal(size=(50, 32)).astype(np.float32)
    return x / np.linalg.norm(x, axis=1, keepdims=True)


def test_shards_come_back_in_order_whatever_order_they_were_written_in(tmp_path, unit):
    vectors.open_job(tmp_path / "v", {"dims": 32, "dtype": "float32"})
    vectors.write_shard(tmp_path / "v", 1, ["c"], unit[2:3], FACTS)
    assert vectors.write_index(tmp_path / "v", 2) is None
    with pytest.raises(UserError, match=r"not finished \(1 shards so far\)"):
        vectors.load(tmp_path / "v")
    vectors.write_shard(tmp_path / "v", 0, ["a", 7], unit[:2], FACTS)
    index = vectors.write_index(tmp_path / "v", 2)
    assert (index["count"], index["tokens"], index["truncated"], index["dims"]) == (3, 10, 2, 32)
    ids, found = vectors.load(tmp_path / "v")
    assert ids == ["a", 7, "c"]
    np.testing.assert_array_equal(found, unit[:3])


def test_a_folder_of_another_job_is_refused_by_what_differs(tmp_path):
    vectors.open_job(tmp_path, {"digest": "a", "model": "x"})
    vectors.open_job(tmp_path, {"digest": "a", "model": "the same elsewhere"})
    with pytest.raises(UserError, match="digest was 'a', now 'b'"):
        vectors.open_job(tmp_path, {"digest": "b", "model": "x"})


def test_a_folder_with_other_files_is_refused(tmp_path):
    (tmp_path / "thesis.tex").write_text("mine")
    with pytest.raises(UserError, match=r"thesis.tex"):
        vectors.check_folder(tmp_path)
    with pytest.raises(UserError, match="is a file"):
        vectors.check_folder(tmp_path / "thesis.tex")


def test_a_folder_without_an_index_is_no_folder_of_vectors(tmp_path):
    with pytest.raises(UserError, match=r"no index.json"):
        vectors.load(tmp_path / "nowhere")


def test_ids_are_plain_json(tmp_path, unit):
    vectors.open_job(tmp_path, {})
    vectors.write_shard(tmp_path, 0, ["ö"], unit[:1], FACTS)
    assert json.loads((tmp_path / "ids-00000.json").read_text(encoding="utf-8"))["ids"] == ["ö"]


def test_fewer_dimensions_have_length_one_again(unit):
    cut = vectors.quantized(unit, 8, "float32")
    np.testing.assert_allclose(cut, unit[:, :8] / np.linalg.norm(unit[:, :8], axis=1)[:, None], rtol=1e-6)


def test_binary_is_what_sentence_transformers_calls_ubinary(unit):
    np.testing.assert_array_equal(vectors.quantized(unit, None, "binary"), quantize_embeddings(unit, "ubinary"))


def test_int8_uses_its_whole_range_and_keeps_the_cosine(unit):
    small = vectors.quantized(unit, None, "int8")
    assert small.dtype == np.int8 and (np.abs(small).max(axis=1) == 127).all()
    back = small / np.linalg.norm(small.astype(np.float32), axis=1, keepdims=True)
    assert np.abs((back * unit).sum(axis=1) - 1).max() < 1e-4
    assert vectors.quantized(unit[:0], None, "int8").shape == (0, 32)


def kept(unit, dims=None, quantize=None):
    return vectors.Kept(dims=dims, quantize=quantize).apply(unit)


@pytest.mark.parametrize("dims", [None, 8, 24])
def test_what_is_kept_of_a_vector_has_length_one(unit, dims):
    for quantize in (None, "int8", "binary"):
        found = kept(unit, dims, quantize)
        assert found.dtype == np.float32 and found.shape == (50, dims or 32)
        np.testing.assert_allclose(np.linalg.norm(found, axis=1), 1, atol=1e-6)
    np.testing.assert_array_equal(kept(unit), unit)


def test_int8_vectors_are_compared_as_they_were_stored(unit):
    stored = vectors.quantized(unit, 16, "int8")
    found = kept(unit, 16, "int8")
    np.testing.assert_allclose(found * np.linalg.norm(stored, axis=1, keepdims=True), stored, atol=1e-4)
    assert 0 < np.abs(found - kept(unit, 16)).max() < 0.01


@pytest.mark.parametrize("dims", [None, 8, 16])
def test_binary_vectors_are_compared_by_how_many_signs_differ(unit, dims):
    bits = np.unpackbits(vectors.quantized(unit, dims, "binary"), axis=1)
    differ = (bits[:, None] != bits[None]).sum(axis=2)
    found = kept(unit, dims, "binary")
    np.testing.assert_allclose(found @ found.T, 1 - 2 * differ / (dims or 32), atol=1e-6)
    assert (np.sign(found) == np.where(unit[:, :dims] > 0, 1, -1)).all()


def test_more_dimensions_than_there_are_or_half_a_byte_are_refused():
    assert vectors.Kept(dims=None, quantize=None).check(30) == 30
    assert vectors.Kept(dims=24, quantize="binary").check(30) == 24
    with pytest.raises(UserError, match="dims 31: the model's vectors have 30"):
        vectors.Kept(dims=31, quantize=None).check(30)
    with pytest.raises(UserError, match="dims 30 is not a multiple of 8"):
        vectors.Kept(dims=None, quantize="binary").check(30)
