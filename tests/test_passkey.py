"""Personalised passkey retrieval: documents of a length counted in tokens, and what is made of the vectors."""

import re

import numpy as np
import pytest
import tokenizers

from e5jax import passkey, pictures
from e5jax.errors import UserError
from e5jax.formats import BOS, EOS, Tokenizer, train_tokenizer
from e5jax.results import Results


NEEDLE = re.compile(r"(\w+) (\w+)'s pass key is (\d{5})\. Remember it\. \3 is the pass key for \1 \2\.")


@pytest.fixture(scope="module")
def tokenizer():
    """Small pieces: a document's first word has no space in front and may take another number of them."""
    return train_tokenizer([" ".join(passkey.FILLER), "Remember it. It is the pass key for"], 330)


def count(texts, tokenizer):
    return np.array([len(ids) for ids in tokenizer.encode(texts, 10**6)])


def words(merge_sentences):
    """A tokenizer that knows words; or whole runs of filler, as one piece."""
    cycle = " ".join(passkey.FILLER)
    runs = {cycle * 2: 3, f"{cycle} {cycle} {cycle}": 3} if merge_sentences else {}
    vocab = {BOS: 0, EOS: 1, "[UNK]": 2, **runs}
    tokens = tokenizers.Tokenizer(tokenizers.models.WordLevel(vocab, unk_token="[UNK]"))
    pattern = tokenizers.Regex(rf"({re.escape(f'{cycle} {cycle} {cycle}')})|\s" if merge_sentences else r"\s")
    tokens.pre_tokenizer = tokenizers.pre_tokenizers.Split(pattern, "isolated" if merge_sentences else "removed")
    return Tokenizer.around(tokens, prefix=(0,), suffix=(1,))


@pytest.mark.parametrize("length", [160, 256, 1000, 4096])
def test_documents_reach_the_length_and_never_pass_it(length, tokenizer):
    _, documents, _ = passkey.make(length, tokenizer, 0)
    tokens = count(documents, tokenizer)
    longest = max(count(passkey.FILLER, tokenizer))
    assert len(documents) == 100 and tokens.max() <= length and tokens.min() > length - 2 * longest


@pytest.mark.parametrize("length", passkey.LENGTHS)
def test_the_mistral_tokenizer_counts_the_same(length, data_dir):
    mistral = Tokenizer.load(data_dir / "mistral-tokenizer")
    _, documents, _ = passkey.make(length, mistral, 0)
    some = documents if length < 4096 else documents[::20]  # tokenising all takes 10 s, making them 0.1
    tokens = count(some, mistral)
    assert tokens.max() <= length and tokens.min() > length - 10


def test_a_document_is_filler_around_one_person_s_key_which_their_query_asks_for(tokenizer):
    queries, documents, right = passkey.make(1000, tokenizer, 0)
    found = [NEEDLE.findall(document) for document in documents]
    assert all(len(keys) == 1 for keys in found)
    firsts, lasts, keys = (set(parts) for parts in zip(*(key[0] for key in found), strict=True))
    assert len(firsts) == len(lasts) == len(keys) == 100  # nobody shares even a first name
    assert len(queries) == len(right) == len(set(right)) == 50
    for query, document in zip(queries, right, strict=True):
        first, last, _ = found[document][0]
        assert query == f"what is the pass key for {first} {last}?"
    around = NEEDLE.sub("", documents[0]).replace("  ", " ").strip()
    cycle = " ".join(passkey.FILLER)
    assert " ".join([cycle] * 100).startswith(around)  # it goes on where it was


def test_the_key_may_stand_anywhere(tokenizer):
    _, documents, _ = passkey.make(4096, tokenizer, 0)
    places = np.array([NEEDLE.search(d).start() / (len(d) - 70) for d in documents])
    counts, _ = np.histogram(places, bins=5, range=(0, 1.01))
    assert counts.min() >= 8 and places.min() < 0.05 and places.max() > 0.95


def test_the_seed_decides_everything_and_each_length_has_its_own_people(tokenizer):
    once, again = passkey.make(256, tokenizer, 7), passkey.make(256, tokenizer, 7)
    assert once[:2] == again[:2] and (once[2] == again[2]).all()
    assert passkey.make(256, tokenizer, 8)[0] != once[0]
    assert passkey.make(512, tokenizer, 7)[0] != once[0]


@pytest.mark.parametrize("length", [8, 40])
def test_a_length_without_room_for_a_key_is_refused(length, tokenizer):
    with pytest.raises(UserError, match=f"a document of {length} tokens has no room for a pass key"):
        passkey.make(length, tokenizer, 0)


def test_a_tokenizer_that_drops_text_cannot_reach_a_length():
    tokens = tokenizers.Tokenizer(tokenizers.models.WordLevel({BOS: 0, EOS: 1, "[UNK]": 2}, unk_token="[UNK]"))
    tokens.normalizer = tokenizers.normalizers.Replace(tokenizers.Regex(r"\S"), "")
    tokens.pre_tokenizer = tokenizers.pre_tokenizers.WhitespaceSplit()
    with pytest.raises(UserError, match=r"counts \[0, 0, 0, 0, 0\] tokens .* cannot reach a length"):
        passkey.make(256, Tokenizer.around(tokens, prefix=(0,), suffix=(1,)), 0)


def test_a_tokenizer_of_whole_paragraphs_cannot_be_measured_out():
    assert count(passkey.make(256, words(False), 0)[1], words(False)).max() <= 256
    with pytest.raises(UserError, match="merges words across sentences"):
        passkey.make(256, words(True), 0)


def test_only_the_most_similar_document_counts():
    documents = np.eye(4, dtype=np.float32)
    queries = np.array([[0.9, 0.1, 0, 0], [0.6, 0.8, 0, 0], [0, 0, 0, 1]], np.float32)
    assert passkey.accuracy(queries, documents, np.array([0, 0, 3])).tolist() == [1.0, 0.0, 1.0]


def result_of(length, share):
    return passkey.task_result(length, np.array([1.0] * share + [0.0] * (50 - share)), {"query": "q", "passage": ""})


def test_the_result_of_a_length_is_a_task_s():
    result = result_of(256, 40)
    assert (result.task, result.metric, result.value, result.n) == ("passkey-256", "top1_accuracy", 0.8, 50)
    assert result.examples["score"].mean() == result.value


def test_the_picture_has_the_paper_s_four_lines_behind_what_was_measured(tmp_path, monkeypatch):
    identity = {"window": 0, "rope_theta": 1e5, "max_length": 512}
    changed = Results(
        model="m", identity=identity, results=(result_of(512, 50), result_of(256, 40)), paper={}, versions={}
    )
    plain = Results(model="m", identity={"window": None}, results=(result_of(256, 10),), paper={}, versions={})
    other = Results(model="bm25", identity={}, results=(), paper={}, versions={})
    curves = passkey.curves([changed, plain, other])
    assert curves == {"m, window 0, rope_theta 100000": {256: 0.8, 512: 1.0}, "m": {256: 0.2}}
    figures = []
    save = pictures.save
    monkeypatch.setattr(pictures, "save", lambda *args: (figures.append(args[0]), save(*args)))
    passkey.draw(curves, tmp_path / "passkey.png")
    axis = figures[0].axes[0]
    lines = {line.get_label(): line for line in axis.get_lines()}
    assert len(lines) == 6 and axis.get_xscale() == "log"
    assert list(lines["m, window 0, rope_theta 100000"].get_ydata()) == [80.0, 100.0]
    assert list(lines["paper, window 4k, base 10⁴"].get_ydata()) == [100, 100, 100, 100, 100, 70, 30, 26]
    assert {line.get_linestyle() for label, line in lines.items() if label.startswith("paper")} == {":"}
    assert [tick.get_text() for tick in axis.get_xticklabels()] == "256 512 1k 2k 4k 8k 16k 32k".split()
    assert (tmp_path / "passkey.png").read_bytes()[:4] == b"\x89PNG"
