"""The tokens that a model reads: instruction in front, `<s>` and `</s>` around, text untouched."""

import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
import tokenizers
from tokenizers import decoders, models, pre_tokenizers, processors, trainers

from e5jax.errors import UserError
from e5jax.formats import PAPER, Tokenizer


needs_data = pytest.mark.skipif(
    "E5JAX_DATA" not in os.environ, reason="E5JAX_DATA does not name the folder of real data"
)
DATA = Path(os.environ.get("E5JAX_DATA", "."))
BOS = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 0)])
BOTH = processors.TemplateProcessing(single="<s> $A </s>", special_tokens=[("<s>", 0), ("</s>", 1)])


def tiny_tokenizer(directory, post_processor=BOS, config=None):
    """A byte-level BPE that knows every text, as a folder; `<s>` is 0 and `</s>` is 1."""
    tokens = tokenizers.Tokenizer(models.BPE())
    tokens.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokens.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=300,
        special_tokens=["<s>", "</s>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokens.train_from_iterator(["the cat sat on the mat; which cat sat on what mat?"], trainer)
    if post_processor is not None:
        tokens.post_processor = post_processor
    directory.mkdir(parents=True, exist_ok=True)
    tokens.save(str(directory / "tokenizer.json"))
    config = {"eos_token": "</s>"} if config is None else config
    (directory / "tokenizer_config.json").write_text(json.dumps(config))
    return directory


def test_a_query_stands_under_its_instruction():
    assert PAPER.before_query("Find it.") + "where?" == "Instruct: Find it.\nQuery: where?"


def test_a_query_without_task_stays_bare():
    assert PAPER.before_query(None) == ""


@pytest.fixture(scope="module")
def passages():
    """1,000 passages, 125 of each of 8 languages."""
    texts = []
    for file in sorted((DATA / "xquad").glob("*.json")):
        articles = json.loads(file.read_text(encoding="utf-8"))["data"]
        contexts = [p["context"] for article in articles for p in article["paragraphs"]]
        texts += contexts[:125]
    assert len(texts) == 1_000
    return texts


@needs_data
@pytest.mark.parametrize("add_eos_token", [None, True, False])
def test_mistral_ids_are_bos_own_ids_eos_whatever_add_eos_token_says(passages, tmp_path, add_eos_token):
    directory = tmp_path / "tokenizer"
    shutil.copytree(DATA / "mistral-tokenizer", directory)
    config = directory / "tokenizer_config.json"
    config.chmod(0o644)
    directory.chmod(0o755)
    if add_eos_token is not None:
        facts = json.loads(config.read_text()) | {"add_eos_token": add_eos_token}
        config.write_text(json.dumps(facts))
    own = tokenizers.Tokenizer.from_file(str(directory / "tokenizer.json"))
    encodings = own.encode_batch(passages, add_special_tokens=False)
    ours = Tokenizer.load(directory).encode(passages, max_length=100_000)
    assert [ids.tolist() for ids in ours] == [[1, *e.ids, 2] for e in encodings]


@needs_data
def test_mistral_ids_decode_to_the_passages(passages):
    tokenizer = Tokenizer.load(DATA / "mistral-tokenizer")
    ids = tokenizer.encode(passages, max_length=100_000)
    assert [tokenizer.tokens.decode(i[1:-1].tolist()) for i in ids] == passages


@pytest.mark.parametrize(
    ("post_processor", "config"),
    [
        (BOS, {"eos_token": "</s>"}),
        (BOS, {"eos_token": "</s>", "add_eos_token": True}),
        (BOS, {"eos_token": "</s>", "add_eos_token": False}),
        (BOS, {"eos_token": {"content": "</s>", "lstrip": False}}),
        (BOTH, {"add_eos_token": False}),
        (processors.Sequence([processors.ByteLevel(), BOS]), {"eos_token": "</s>"}),
        (processors.RobertaProcessing(("</s>", 1), ("<s>", 0)), {}),
    ],
)
def test_both_ends_are_marked_once_however_the_folder_says_it(tmp_path, post_processor, config):
    tokenizer = Tokenizer.load(tiny_tokenizer(tmp_path, post_processor, config))
    body = tokenizer.tokens.encode("the cat", add_special_tokens=False).ids
    assert tokenizer.encode(["the cat"], 64)[0].tolist() == [0, *body, 1]


def test_nothing_stands_in_front_where_the_tokenizer_puts_nothing(tmp_path):
    tokenizer = Tokenizer.load(tiny_tokenizer(tmp_path, post_processor=None))
    assert (tokenizer.prefix, tokenizer.suffix) == ((), (1,))


def test_what_the_post_processor_appends_comes_before_the_configured_eos(tmp_path):
    appended = processors.TemplateProcessing(single="$A <s>", special_tokens=[("<s>", 0)])
    assert Tokenizer.load(tiny_tokenizer(tmp_path, appended)).suffix == (0,)


def test_eos_is_also_found_in_special_tokens_map(tmp_path):
    directory = tiny_tokenizer(tmp_path, config={"eos_token": None})
    (directory / "special_tokens_map.json").write_text('{"eos_token": {"content": "</s>"}}')
    assert Tokenizer.load(directory).suffix == (1,)


@pytest.mark.parametrize("max_length", [3, 4, 7, 16])
def test_a_cut_text_still_ends_with_eos_and_is_counted(tmp_path, max_length):
    tokenizer = Tokenizer.load(tiny_tokenizer(tmp_path))
    whole = tokenizer.encode(["xyz " * 40], 10_000)[0]
    (cut, short), truncated = tokenizer.encode_counting(["xyz " * 40, "a"], max_length)
    assert cut.tolist() == [*whole[: max_length - 1], 1]
    assert short[-1] == 1
    assert truncated == 1


def test_a_text_of_exactly_max_length_is_whole(tmp_path):
    tokenizer = Tokenizer.load(tiny_tokenizer(tmp_path))
    whole = tokenizer.encode(["xyz"], 10_000)[0]
    (same,), truncated = tokenizer.encode_counting(["xyz"], len(whole))
    assert truncated == 0
    assert same.tolist() == whole.tolist()
    assert same.dtype == np.int32


def test_truncation_and_padding_of_the_file_are_switched_off(tmp_path):
    directory = tiny_tokenizer(tmp_path)
    tokens = tokenizers.Tokenizer.from_file(str(directory / "tokenizer.json"))
    tokens.enable_truncation(4)
    tokens.enable_padding(length=50)
    tokens.save(str(directory / "tokenizer.json"))
    ids = Tokenizer.load(directory).encode(["xyz" * 20, "a"], 512)
    assert [len(i) for i in ids] == [62, 3]


@pytest.mark.parametrize(
    "text",
    [
        "e\u0301 \u00e9 \u1e9b\u0323",
        "👩‍👩‍👧 🏳️‍🌈 𝒳",
        "שלום (עולם) ‏مرحبا",
        "nul\x00 bell\x07",
        " \t a \n ",
        "ﬁ Ⅳ ①",
    ],
    ids=["combining", "emoji", "right-to-left", "control", "white space", "compatibility"],
)
def test_unicode_reaches_the_tokens_unchanged(tmp_path, text):
    tokenizer = Tokenizer.load(tiny_tokenizer(tmp_path))
    assert tokenizer.tokens.decode(tokenizer.encode([text], 512)[0][1:-1].tolist()) == text


def test_a_saved_tokenizer_is_the_same_tokenizer(tmp_path):
    tokenizer = Tokenizer.load(tiny_tokenizer(tmp_path / "a"))
    tokenizer.save(tmp_path / "b")
    saved = Tokenizer.load(tmp_path / "b")
    assert saved.digest == tokenizer.digest
    assert (saved.prefix, saved.suffix) == (tokenizer.prefix, tokenizer.suffix)


def test_transformers_reads_a_saved_tokenizer_as_we_do(tmp_path):
    transformers = pytest.importorskip("transformers")
    tokenizer = Tokenizer.load(tiny_tokenizer(tmp_path / "a"))
    tokenizer.save(tmp_path / "b")
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path / "b")
    assert theirs("the cat").input_ids == tokenizer.encode(["the cat"], 64)[0].tolist()
    assert (theirs.eos_token, theirs.pad_token, theirs.bos_token) == ("</s>", "</s>", "<s>")


def test_the_digest_tells_apart_what_gives_other_ids(tmp_path):
    folders = [
        tiny_tokenizer(tmp_path / "a"),
        tiny_tokenizer(tmp_path / "b", post_processor=None),
        tiny_tokenizer(tmp_path / "c", config={"eos_token": "<s>"}),
    ]
    assert len({Tokenizer.load(folder).digest for folder in folders}) == 3


def test_a_folder_without_tokenizer_json_says_how_to_get_one(tmp_path):
    with pytest.raises(UserError, match=r"tokenizer.json: no such file.*save_pretrained"):
        Tokenizer.load(tmp_path)


def test_a_broken_tokenizer_json_is_named(tmp_path):
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(UserError, match=r"tokenizer.json: not a tokenizer"):
        Tokenizer.load(tmp_path)


@pytest.mark.parametrize(
    ("config", "says"),
    [
        ({}, "set eos_token"),
        ({"eos_token": None}, "set eos_token"),
        ({"eos_token": "<end>"}, "eos_token '<end>' is not in"),
        ([], "tokenizer_config.json: not a JSON object"),
    ],
)
def test_a_tokenizer_without_eos_is_refused(tmp_path, config, says):
    with pytest.raises(UserError, match=says):
        Tokenizer.load(tiny_tokenizer(tmp_path, config=config))


def test_max_length_must_leave_room_for_text(tmp_path):
    with pytest.raises(UserError, match="max_length 2 leaves no room"):
        Tokenizer.load(tiny_tokenizer(tmp_path)).encode(["a"], 2)
