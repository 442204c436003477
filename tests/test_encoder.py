"""Encoder: any model folder in, unit vectors out, whatever else is in the batch."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import e5jax
from e5jax import encoder as encoders
from e5jax import formats, heldout, hf, lora, peft_format
from e5jax.decoder import Decoder
from e5jax.errors import UserError
from e5jax.records import Source
from tests import tiny
from tests.sample import TRAIN


CFG = tiny.FOLDER_CFG
TEXTS = ["one", "", "two words", "слова", "三个字", "long " * 300, "middling " * 60]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A model folder in Hugging Face's format with its tokenizer."""
    path = tmp_path_factory.mktemp("model")
    model = Decoder(CFG, jnp.float32, rngs=nnx.Rngs(0))
    hf.save(nnx.to_pure_dict(nnx.state(model)), CFG, "float32", path)
    texts = heldout.all_texts([Source(path=TRAIN, rows=":100")], formats.PAPER, "stop")
    formats.train_tokenizer(texts, CFG.vocab_size).save(path)
    return path


@pytest.fixture(scope="module")
def encoder(folder):
    return e5jax.Encoder.load(str(folder))


def test_vectors_have_unit_length_and_keep_the_order(encoder):
    vectors = encoder.encode(TEXTS)
    assert vectors.shape == (len(TEXTS), CFG.dim) and vectors.dtype == np.float32
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-5)
    np.testing.assert_allclose(encoder.encode(TEXTS[::-1])[::-1], vectors, atol=1e-5)


def test_a_vector_does_not_depend_on_what_else_is_encoded(encoder):
    together = encoder.encode(TEXTS)
    for text, vector in zip(TEXTS, together, strict=True):
        np.testing.assert_allclose(encoder.encode([text])[0], vector, atol=1e-5)


def test_no_texts_give_no_vectors(encoder):
    assert encoder.encode([]).shape == (0, CFG.dim)


def test_an_instruction_is_the_paper_s_template(encoder):
    with_instruction = encoder.encode(["a query"], instruction="Do this.")
    np.testing.assert_array_equal(with_instruction, encoder.encode(["Instruct: Do this.\nQuery: a query"]))


def test_many_short_texts_use_few_shapes(encoder):
    rng = np.random.default_rng(0)
    lengths = rng.integers(1, 513, 3000)
    tokens = [np.full(n, 7, np.int32) for n in lengths]
    shapes, seen = set(), []
    for bins, rows, which, _ in encoders.pack_corpus(lengths, tokens.__getitem__, shards=2, small=True):
        shapes.add((rows, bins.tokens_CST.shape, bins.last_CSN.shape))
        seen.extend(which.tolist())
    assert len(shapes) <= 2 and sorted(seen) == list(range(3000))


def test_an_adapter_in_peft_s_format_is_merged_into_the_base_it_names(folder, tmp_path, encoder):
    model = Decoder(CFG, jnp.float32, rngs=nnx.Rngs(1))
    lora.adapt(model, 2, 4.0, ("q", "down"), jax.random.key(0))
    _, adapters, _ = nnx.split(model, nnx.LoRAParam, ...)
    adapters = jax.tree.map(lambda x: x + 0.1, adapters)
    config = peft_format.AdapterConfig(rank=2, alpha=4.0, dropout=0.0, targets=("q", "down"), base=str(folder))
    peft_format.save_adapter(nnx.to_pure_dict(adapters), CFG, config, tmp_path / "adapter")
    adapted = e5jax.Encoder.load(str(tmp_path / "adapter"))
    beside = peft_format.load_adapter(tmp_path / "adapter", encoder.model)
    graphdef, state = nnx.split(beside)
    run = lambda bins, rows: encoders.embed(graphdef, (state,), bins, rows, jnp.dtype("float32"))
    unmerged = encoders.encode_tokens(
        run, encoder.tokenizer.encode(TEXTS, 512), CFG.dim, shards=1, small=True, tell=encoders.silent
    )
    np.testing.assert_allclose(adapted.encode(TEXTS), unmerged, atol=1e-5)
    assert np.abs(unmerged - encoder.encode(TEXTS)).max() > 0.01


def test_a_name_that_is_no_model_is_refused_in_words(tmp_path):
    with pytest.raises(UserError, match="nothing-here"):
        e5jax.Encoder.load(str(tmp_path / "nothing-here"))


def test_a_text_as_long_as_the_passkey_s_longest_fits_and_one_text_is_no_list(folder):
    encoder = e5jax.Encoder.load(str(folder), max_length=32_768)
    vectors = encoder.encode(["long " * 9_000, "short"])
    np.testing.assert_allclose(vectors[1], encoder.encode(["short"])[0], atol=1e-5)
    with pytest.raises(UserError, match="a list of texts"):
        encoder.encode("short")
    with pytest.raises(UserError, match="texts, not 3"):
        encoder.encode(["short", 3])
    with pytest.raises(UserError, match="32768"):
        e5jax.Encoder.load(str(folder), max_length=32_769)


def test_texts_that_are_cut_are_counted_in_a_warning(encoder, caplog):
    encoder.encode(["long " * 600, "short"])
    assert "1 texts were longer than 512 tokens and cut" in caplog.text


def test_an_iterator_is_as_good_as_a_list(encoder, monkeypatch):
    monkeypatch.setattr(encoders, "WINDOW", 3)
    np.testing.assert_allclose(encoder.encode(iter(TEXTS)), encoder.encode(TEXTS), atol=1e-5)


def test_any_texts_compile_at_most_eight_shapes(encoder):
    rng = np.random.default_rng(0)
    batches = [np.exp(rng.uniform(0, np.log(limit), n)).astype(int) for limit, n in [(32_769, 99), (999, 50), (200, 7)]]
    batches += [np.array([5]), np.array([400]), np.array([20] * 500), np.array([300] * 40), np.array([9_000] * 3)]
    shapes = set()
    for batch in batches:
        tokens = [np.full(n, 7, np.int32) for n in batch]
        for bins, rows, _, _ in encoders.pack_corpus(batch, tokens.__getitem__, shards=1, small=True):
            shapes.add((rows, bins.tokens_CST.shape, bins.last_CSN.shape))
    assert len(shapes) <= 8


def test_long_texts_share_no_row_that_is_twice_as_wide():
    texts = [np.full(9_000, 7, np.int32)] * 2
    packed = encoders.pack_corpus(np.array([9_000] * 2), texts.__getitem__, shards=1, small=True)
    assert [rows for _, rows, _, _ in packed] == [((16_384, 1),)] * 2


def test_another_window_and_rope_base_change_the_vectors_of_long_texts_alone(encoder):
    wider = encoder.attending(window=None, rope_theta=1e4)
    turned = encoder.attending(window=CFG.window, rope_theta=1e5)
    for other in (wider, turned):
        assert np.abs(other.encode(["long " * 60]) - encoder.encode(["long " * 60])).max() > 1e-4
    np.testing.assert_array_equal(wider.encode(["short"]), encoder.encode(["short"]))


def test_in_bfloat16_too_a_vector_does_not_depend_on_what_else_is_encoded(folder):
    encoder = e5jax.Encoder.load(str(folder), dtype="bfloat16")
    together = encoder.encode(TEXTS)
    for text, vector in zip(TEXTS, together, strict=True):
        np.testing.assert_allclose(encoder.encode([text])[0], vector, atol=1e-5)
