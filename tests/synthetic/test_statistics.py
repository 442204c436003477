"""The numbers of a dataset are those of its examples; card and pictures show them."""

import json

import matplotlib.image
import pytest

from e5jax.errors import UserError
from e5jax.synthetic import filters, statistics
from tests.synthetic.answered import entry, ledger, rules


@pytest.fixture
def counted(tmp_path):
    rows = [entry(i, "short-long", task=f"Task {i // 2}") for i in range(6)]
    rows += [entry(i, "bitext", src_lang="en", tgt_lang="pl") for i in range(4)]
    rows += [
        entry(9, "sts", finish_reason="max_tokens"),
        entry(8, "sts", text="no"),
        entry(7, "bitext", text="no"),
        entry(6, "bitext", text="no"),
    ]
    filters.run(ledger(tmp_path / "ledger", rows), tmp_path / "filtered", rules(), 0.8, 1)
    return statistics.count(tmp_path / "filtered", "all")


def test_examples_are_counted_by_type_language_and_task_and_bitext_half_for_each_language(counted):
    numbers = statistics.to_json(counted, {}, "words")
    assert numbers["types"] == {"short-long": 6, "bitext": 4}
    assert numbers["languages"] == {"en": 8.0, "pl": 2.0}
    assert numbers["unique_tasks"] == {"short-long": 3, "bitext": 1}
    assert numbers["models"] == {"m-1": 10}
    assert sum(numbers["splits"].values()) == numbers["examples"] == 10


def test_rejections_are_counted_by_reason_and_type_and_the_cost_is_that_of_all_answers(counted):
    numbers = statistics.to_json(counted, {}, "words")
    assert numbers["rejected"] == {"not JSON": {"bitext": 2, "sts": 1}, "ended by max_tokens": {"sts": 1}}
    assert numbers["ledger"]["dollars"] == {"m-1": 14 * 1_000 / 1e9}
    assert numbers["ledger"]["tokens"] == {"answers": 280, "prompts": 140}
    assert counted.said() == "10 examples; rejected: 3 not JSON, 1 ended by max_tokens"


def test_lengths_are_in_words_or_in_tokens_of_a_tokenizer(counted, tmp_path):
    from tokenizers import Tokenizer, models, pre_tokenizers

    tokenizer = Tokenizer(models.WordLevel({"[UNK]": 0}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split("", "isolated")  # a token a character
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    words = statistics.lengths(counted.sample, None)
    assert words["bitext"] == {part: [26] * 4 for part in ("query", "positive", "negative")}
    tokens = statistics.lengths(counted.sample, str(tmp_path / "tokenizer.json"))
    assert sorted(tokens["bitext"]["query"]) == sorted(
        len(row["query"]) for row in counted.sample if row["task_type"] == "bitext"
    )
    with pytest.raises(UserError, match=r"nothing\.json: not a tokenizer\.json"):
        statistics.lengths(counted.sample, str(tmp_path / "nothing.json"))


def test_a_large_dataset_is_measured_on_an_even_sample(tmp_path, monkeypatch):
    monkeypatch.setattr(statistics, "SAMPLE", 10)
    filters.run(ledger(tmp_path / "ledger", [entry(i) for i in range(100)]), tmp_path / "filtered", rules(), 1.0, 1)
    sample = statistics.count(tmp_path / "filtered", "all").sample
    assert 10 <= len(sample) < 20
    numbers = [i for i in range(100) if entry(i)["answer"]["text"].count(sample[1]["query"])]
    assert numbers == [8]  # every eighth


def test_numbers_card_and_pictures_are_written(counted, tmp_path):
    folder = tmp_path / "all" / "1.0.0"
    folder.mkdir(parents=True)
    statistics.write(folder, counted, None)
    assert json.loads((folder / "statistics.json").read_text())["examples"] == 10
    card = (folder / "README.md").read_text()
    assert "| short-long | 6 | 60.0 % | 65.2 % | 3 |" in card
    assert "| Polish (pl) | 2.0 | 20.0 % |" in card
    assert "| not JSON | 3 | bitext 2, sts 1 |" in card
    for name in ("types", "languages", "lengths", "rejections"):
        assert f"pictures/{name}.png" in card
        assert matplotlib.image.imread(folder / "pictures" / f"{name}.png").std() > 0.05
