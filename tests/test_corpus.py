"""Texts to encode: every format gives the same texts, shard by shard; what is wrong is named by file and line."""

import io
import json

import pyarrow as pa
import pytest
from pyarrow import parquet

from e5jax import corpus
from e5jax.corpus import Corpus
from e5jax.errors import UserError


TEXTS = ["first", "", "third \u2028 with a line separator", "четвёртый", "五"]


def source(path, field=None, id_field=None):
    return Corpus(path=str(path), field=field, id_field=id_field, split="train")


def read(path, size=2, wanted=lambda shard: True, **fields):
    return list(corpus.shards(source(path, **fields), size, wanted))


def texts(shards):
    return [text for _, here in shards for _, text in here]


def write(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def lines(tmp_path, monkeypatch):
    path = tmp_path / "texts.txt"
    path.write_bytes("\n".join(TEXTS).encode())
    return path


def jsonl(tmp_path, monkeypatch):
    return write(tmp_path / "texts.jsonl", [{"text": text} for text in TEXTS])


def parquet_folder(tmp_path, monkeypatch):
    (tmp_path / "parts").mkdir()
    for name, part in (("a", TEXTS[:3]), ("b", TEXTS[3:])):
        parquet.write_table(pa.table({"text": part}), tmp_path / "parts" / f"{name}.parquet")
    return tmp_path / "parts"


def stdin(tmp_path, monkeypatch):
    data = "\r\n".join([*TEXTS, ""]).encode()
    monkeypatch.setattr(corpus, "standard_input", lambda: io.BytesIO(data))
    return "-"


@pytest.mark.parametrize("make", [lines, jsonl, parquet_folder, stdin])
def test_every_format_gives_the_texts_in_shards_an_empty_one_included(make, tmp_path, monkeypatch):
    shards = read(make(tmp_path, monkeypatch))
    assert [shard for shard, _ in shards] == [0, 1, 2]
    assert texts(shards) == TEXTS
    assert [id_ for _, here in shards for id_, _ in here] == [0, 1, 2, 3, 4]


@pytest.mark.parametrize("make", [lines, jsonl, parquet_folder])
def test_texts_are_counted_without_being_parsed(make, tmp_path, monkeypatch):
    assert corpus.count(source(make(tmp_path, monkeypatch))) == 5


def test_a_tfds_dataset_is_a_corpus(tmp_path):
    import tensorflow_datasets as tfds

    class Passages(tfds.core.GeneratorBasedBuilder):
        VERSION = tfds.core.Version("1.0.0")

        def _info(self):
            text = tfds.features.Text()
            return tfds.core.DatasetInfo(builder=self, features=tfds.features.FeaturesDict({"id": text, "text": text}))

        def _split_generators(self, manager):
            return {"train": ((i, {"id": f"p{i}", "text": text}) for i, text in enumerate(TEXTS))}

        def _generate_examples(self):
            raise NotImplementedError

    builder = Passages(data_dir=tmp_path, file_format="array_record")
    builder.download_and_prepare()
    found = {id_: text for _, here in read(builder.data_dir) for id_, text in here}
    assert found == {f"p{i}": text for i, text in enumerate(TEXTS)}
    assert corpus.count(source(builder.data_dir)) == 5


def test_shards_that_are_not_wanted_are_not_even_parsed(tmp_path):
    path = tmp_path / "texts.jsonl"
    path.write_text('not json\n{"text": "b"}\n{"text": "c"}\n{"text": "d"}\n{"text": "e"}\n')
    shards = read(path, wanted=lambda shard: shard == 1)
    assert shards == [(0, None), (1, [(2, "c"), (3, "d")]), (2, None)]


def test_a_title_goes_in_front_of_its_text_as_in_beir(tmp_path):
    path = write(tmp_path / "corpus.jsonl", [{"_id": "d1", "title": "Bread", "text": "rises"}, {"_id": 7, "text": "x"}])
    assert read(path) == [(0, [("d1", "Bread rises"), (7, "x")])]


def test_a_field_can_be_named(tmp_path):
    path = write(tmp_path / "mine.jsonl", [{"name": "n", "body": "a body", "title": "no"}])
    assert read(path, field="body", id_field="name") == [(0, [("n", "a body")])]


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b'{"text": "a"}\n{"text": 3}\n', "2: text is 3, not a string"),
        (b'{"text": "a"}\n{"txt": "b"}\n', "2: no field text"),
        (b'{"text": "a"}\n\n', "2: blank line"),
        (b'{"text": "a"}\n{"text": \n', "2: not JSON"),
        (b'{"text": "a"}\n[1]\n', "2: [1] is not a JSON object"),
        (b'{"text": "a"}\n{"text": "\xff"}\n', "2: not UTF-8 at byte 10"),
        (b'{"text": "\\ud83d"}\n', "1: text is not valid Unicode"),
        (b'{"text": "a", "id": [1]}\n', "1: id is [1], neither"),
    ],
)
def test_a_bad_row_is_named_by_file_and_line(content, said, tmp_path):
    path = tmp_path / "texts.jsonl"
    path.write_bytes(content)
    with pytest.raises(UserError) as error:
        read(path)
    assert str(error.value).startswith(f"{path}:{said}")


def test_bytes_that_are_not_utf8_are_named_by_line_in_plain_text(tmp_path):
    path = tmp_path / "texts.txt"
    path.write_bytes(b"a\nb\xff\n")
    with pytest.raises(UserError, match=r"texts.txt:2: not UTF-8 at byte 1"):
        read(path)


def test_a_table_is_not_taken_for_lines_and_a_wrong_name_gets_the_nearest(tmp_path):
    (tmp_path / "table.csv").write_text("a,b\n")
    with pytest.raises(UserError, match=r"cannot read .csv"):
        read(tmp_path / "table.csv")
    with pytest.raises(UserError, match=r"did you mean .*table.csv"):
        read(tmp_path / "tabel.csv")
    with pytest.raises(UserError, match=r"no .parquet files"):
        read(tmp_path)


def test_the_fingerprint_changes_with_the_file(tmp_path):
    path = tmp_path / "texts.txt"
    path.write_text("one\n")
    first = corpus.fingerprint(source(path))
    assert first == corpus.fingerprint(source(path))
    for changed in ("two\n", "oNe\n"):
        path.write_text(changed)
        assert corpus.fingerprint(source(path)) != first
