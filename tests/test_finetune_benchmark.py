"""The side-by-side fine-tuning benchmark: both trainers read the same, nothing held out is read, the figures add up."""

import dataclasses
import json
import sys
from pathlib import Path

import numpy as np
import pytest
import tokenizers
from tokenizers import normalizers, pre_tokenizers
from tokenizers.processors import TemplateProcessing

from benchmarks import finetune, finetune_data, finetune_peer, finetune_table, measured
from benchmarks.finetune_data import HELDOUT_ARTICLES, HELDOUT_PAIRS, STSB, TASKS, TATOEBA, XQUAD, Order
from benchmarks.finetune_table import Side
from e5jax import command, formats, local_tasks
from e5jax import config as configs
from e5jax.batch import prepare_data
from e5jax.encoder import Encoder
from e5jax.errors import FailedError, UserError
from e5jax.logbook import read_rows
from e5jax.optim import learning_rate
from e5jax.records import Source
from e5jax.train import train


WORDS = "a cat sat on the mat and dog ran far from its home while rain fell over hills".split()
STEPS, BATCH = 3, 4


def some_text(rng, longest=9):
    return " ".join(rng.choice(WORDS, rng.integers(2, longest)))


@pytest.fixture(scope="module")
def bert(tmp_path_factory):
    """A folder of sentence-transformers: a random BERT, the mean of its tokens."""
    transformers = pytest.importorskip("transformers")
    pytest.importorskip("sentence_transformers")
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.sentence_transformer import modules

    folder = tmp_path_factory.mktemp("bert")
    vocab = {word: number for number, word in enumerate(["[PAD]", "[UNK]", "[CLS]", "[SEP]", *WORDS])}
    words = tokenizers.Tokenizer(tokenizers.models.WordPiece(vocab, unk_token="[UNK]"))
    words.normalizer, words.pre_tokenizer = normalizers.BertNormalizer(), pre_tokenizers.BertPreTokenizer()
    words.post_processor = TemplateProcessing(single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)])
    special = {"pad_token": "[PAD]", "unk_token": "[UNK]", "cls_token": "[CLS]", "sep_token": "[SEP]"}
    transformers.PreTrainedTokenizerFast(tokenizer_object=words, **special).save_pretrained(folder / "bare")
    shape = {"hidden_size": 24, "intermediate_size": 40, "num_hidden_layers": 2, "num_attention_heads": 3}
    transformers.set_seed(0)
    model = transformers.BertModel(
        transformers.BertConfig(vocab_size=len(vocab), max_position_embeddings=32, initializer_range=0.3, **shape)
    )
    model.save_pretrained(folder / "bare")
    base = modules.Transformer(str(folder / "bare"))
    parts = [base, modules.Pooling(24, pooling_mode="mean"), modules.Normalize()]
    SentenceTransformer(modules=parts, device="cpu").save_pretrained(str(folder / "model"), create_model_card=False)
    return folder / "model"


def run_of(bert, folder, names, **changes):
    """A TrainConfig on FOLDER/NAME.jsonl of each name."""
    sources = tuple(Source(path=str(folder / f"{name}.jsonl")) for name in names)
    bare = {"query_prompt": "", "max_length": 8, "max_negatives": 0, "cache": str(folder / "cache")}
    settings = {"workdir": str(folder / "ours"), "steps": STEPS, "batch_size": BATCH, "lora": None, "temperature": 0.05}
    settings |= {"model": configs.Pretrained(base=str(bert), dtype="float32"), "seed": 7}
    settings |= {"data": configs.DataConfig(train=sources, same_source_batches=True, **bare)}
    return configs.TrainConfig(**settings | {"packing": configs.PackingConfig(widths=(8,))} | changes)


def write_rows(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


@pytest.fixture(scope="module")
def mixed(bert, tmp_path_factory):
    """-> (TrainData of two sources as a run makes it, the texts of each record, the tokenizer)."""
    folder, rng = tmp_path_factory.mktemp("records"), np.random.default_rng(0)
    written = []
    for name, count in (("a", 8), ("b", 12)):
        rows = [{"query": some_text(rng), "positive": f"{some_text(rng)} {WORDS[i % 6]}"} for i in range(count)]
        write_rows(folder / f"{name}.jsonl", rows)
        written.append(rows)
    tokenizer = formats.Tokenizer.load(bert)
    return prepare_data(run_of(bert, folder, "ab"), tokenizer), written, tokenizer


@pytest.fixture
def batches(mixed, tmp_path):
    """-> (batches.jsonl, what is known of it)."""
    path = tmp_path / "batches.jsonl"
    return path, finetune_data.write_batches(mixed[0], STEPS, path)


def lines(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_the_batches_are_the_records_of_the_run_in_its_order(mixed, batches):
    train_data, written, tokenizer = mixed
    rows = lines(batches[0])
    assert len(rows) == STEPS * BATCH and len({row["source"] for row in rows}) == 2
    for step in range(STEPS):
        for row, (source, record) in zip(
            rows[step * BATCH :][:BATCH], train_data.examples[step].tolist(), strict=False
        ):
            assert row == {"source": source, **written[source][record]}
            ids = tokenizer.encode([row["query"], row["positive"]], 8)
            assert [i.tolist() for i in ids] == [i.tolist() for i in train_data.stores[source].texts(record)]


def test_the_tokens_of_a_step_count_every_text_cut_and_with_its_special_tokens(batches, mixed):
    rows, tokenizer = lines(batches[0]), mixed[2]
    lengths = [sum(map(len, tokenizer.encode([row["query"], row["positive"]], 8))) for row in rows]
    assert batches[1].tokens == tuple(sum(lengths[step * BATCH :][:BATCH]) for step in range(STEPS))
    assert batches[1].truncated > 0


def test_shared_positives_are_counted_within_a_batch_only(bert, tmp_path):
    positives = ["a cat", "a dog", "a cat", "the mat"]
    write_rows(
        tmp_path / "rows.jsonl",
        [{"query": f"a {word}", "positive": p} for word, p in zip(WORDS, positives * 2, strict=False)],
    )
    train_data = prepare_data(run_of(bert, tmp_path, ["rows"]), formats.Tokenizer.load(bert))
    examples = np.array([[[0, i] for i in range(4)], [[0, i] for i in (0, 1, 3, 5)]])  # 1 and 5 are "a dog"
    train_data = dataclasses.replace(train_data, examples=examples)
    assert finetune_data.write_batches(train_data, 2, tmp_path / "out.jsonl").shared == 4 / 8


def test_hard_negatives_are_refused(mixed, tmp_path):
    with pytest.raises(UserError, match="max_negatives"):
        finetune_data.write_batches(dataclasses.replace(mixed[0], max_negatives=1), 1, tmp_path / "out.jsonl")


@pytest.fixture(scope="module")
def heldout(tmp_path_factory):
    """-> (a made-up $E5JAX_DATA, its held-out tasks by name)."""
    folder = tmp_path_factory.mktemp("data")
    for name in ("xquad", "stsb", "tatoeba"):
        (folder / name).mkdir()
    for language in XQUAD:
        article = lambda n, language=language: {
            "context": f"passage {n} in {language}",
            "qas": [{"id": f"{n}-{k}", "question": f"question {k} of {n} in {language}"} for k in range(2)],
        }
        articles = [{"paragraphs": [article(n)]} for n in range(39)]
        (folder / "xquad" / f"{language}.json").write_text(json.dumps({"data": articles}))
    for language in STSB:
        for part in ("train", "dev", "test"):
            (folder / "stsb" / f"{language}-{part}.csv").write_text(f"{part} one,{part} two,3.0\n")
    for number, language in enumerate(TATOEBA):  # each shares its first held-out sentence with the next one's training
        english = [f"sentence {number * 504 + n}" for n in range(504)]
        if number:
            english[3] = f"sentence {(number - 1) * 504 + 500}"
        (folder / "tatoeba" / f"{language}-eng.eng").write_text("".join(f"{text}\n" for text in english))
        (folder / "tatoeba" / f"{language}-eng.{language}").write_text("".join(f"{language} {t}\n" for t in english))
    finetune_data.write_heldout(folder, folder / "heldout")
    return folder, local_tasks.discover(folder / "heldout")


def test_every_task_of_the_table_is_among_the_held_out_ones(heldout):
    assert {task for group in TASKS.values() for task in group} == set(heldout[1])


def test_held_out_questions_are_those_of_the_last_articles_against_all_passages(heldout):
    assert HELDOUT_ARTICLES == "36:"
    for language in XQUAD:
        task = local_tasks.load(heldout[1][f"xquad-{language}"])
        asked = [f"question {k} of {n} in {language}" for n in (36, 37, 38) for k in range(2)]
        assert list(task.queries.values()) == asked and len(task.corpus) == 39
        right = [task.corpus[next(iter(task.relevant[query]))][1] for query in task.queries]
        assert right == [f"passage {n} in {language}" for n in (36, 36, 37, 37, 38, 38)]


def test_no_held_out_translation_has_an_english_side_that_any_language_trained_on(heldout):
    assert HELDOUT_PAIRS == "500:"
    folder, tasks = heldout
    english = {language: (folder / "tatoeba" / f"{language}-eng.eng").read_text().splitlines() for language in TATOEBA}
    trained = {text for texts in english.values() for text in texts[:500]}
    for language in TATOEBA:
        pairs = local_tasks.load(tasks[f"tatoeba-{language}"])
        assert not trained & set(pairs.second)
        assert len(pairs.first) == (4 if language == TATOEBA[-1] else 3)
        assert pairs.first == [f"{language} {text}" for text in pairs.second]


def test_held_out_similarities_are_the_test_part(heldout):
    assert local_tasks.load(heldout[1]["stsb-de"]).first == ["test one"]


def peer(bert, batches, output, **changes):
    settings = {"peak_lr": 1e-3, "warmup_steps": 2, "weight_decay": 0.01, "clip_norm": 1.0, "b1": 0.9, "b2": 0.999}
    settings |= {"model": str(bert), "batches": str(batches), "output": str(output), "steps": STEPS}
    settings |= {"batch_size": BATCH, "max_length": 8, "temperature": 0.05, "own_batches": False, "merged": True}
    return finetune_peer.Peer(**settings | changes)


@pytest.fixture(scope="module")
def trained(bert, mixed, tmp_path_factory):
    """-> (what a run of the peer says of itself, its folder, its rows, their tokens)."""
    folder = tmp_path_factory.mktemp("peer")
    order = finetune_data.write_batches(mixed[0], STEPS, folder / "batches.jsonl")
    facts = finetune_peer.finetune(peer(bert, folder / "batches.jsonl", folder))
    return facts, folder, lines(folder / "batches.jsonl"), order.tokens


def info_nce_of(bert, rows, temperature=0.05):
    """The loss of a batch by the model in a folder, in NumPy."""
    from sentence_transformers import SentenceTransformer

    model = SentenceTransformer(str(bert), device="cpu")
    model.max_seq_length = 8
    queries, positives = (model.encode([row[side] for row in rows]).astype(float) for side in ("query", "positive"))
    scores = queries @ positives.T / temperature
    return np.mean(np.log(np.exp(scores).sum(axis=1)) - scores.diagonal())


def test_the_peer_reads_the_very_tokens_of_the_batches_and_starts_from_their_loss(bert, trained):
    facts, _, rows, tokens = trained
    assert tuple(facts["tokens"]) == tokens
    assert facts["loss"][0] == pytest.approx(info_nce_of(bert, rows[:BATCH]), rel=1e-3)  # it logs four figures
    assert len(facts["loss"]) == len(facts["seconds"]) == STEPS and min(facts["seconds"]) > 0


def test_the_peer_s_schedule_is_ours(trained):
    assert trained[0]["learning_rate"] == pytest.approx([5e-4, 1e-3, 1e-3])
    for warmup, steps in ((0, 5), (3, 9), (4, 4), (10, 4)):
        ours = learning_rate(1.0, warmup, steps)
        for count in range(steps + 1):
            assert finetune_peer.schedule_factor(count, warmup, steps) == pytest.approx(float(ours(count)))


def test_the_peer_decays_what_e5jax_decays_matrices_alone(bert, trained):
    from sentence_transformers import SentenceTransformer

    dims = {name: p.ndim for name, p in SentenceTransformer(str(bert), device="cpu").named_parameters()}
    assert {*trained[0]["decayed"]} == {name for name, ndim in dims.items() if ndim > 1}
    assert {*trained[0]["not_decayed"]} == {name for name, ndim in dims.items() if ndim == 1}


def test_the_peer_s_padding_is_that_of_the_passes_it_makes(bert, tmp_path):
    rows = [{"source": 0, "query": f"{word} far", "positive": f"the {word} fell over"} for word in WORDS[:BATCH]]
    write_rows(tmp_path / "rows.jsonl", rows)  # 4 and 6 tokens
    run = lambda merged: finetune_peer.finetune(
        peer(bert, tmp_path / "rows.jsonl", tmp_path, steps=1, merged=merged, max_length=16)
    )
    together, apart = run(True), run(False)
    assert (together["padded"], apart["padded"]) == ([2 * BATCH * 6], [BATCH * (4 + 6)])
    assert together["loss"] == pytest.approx(apart["loss"], rel=2e-3)


def test_both_trainers_make_the_same_steps(bert, tmp_path, monkeypatch):
    # No text twice in a batch, where the two differ; the rate is high and the weights are random, so that clipping,
    # decay, betas and schedule all show.
    words = [(one, other) for one in WORDS[:4] for other in WORDS[5:8]]
    rows = [{"query": f"{one} {other}", "positive": f"{other} far {one}"} for one, other in words]
    write_rows(tmp_path / "rows.jsonl", rows)
    optim = configs.OptimConfig(peak_lr=3e-3, warmup_steps=2, weight_decay=1.0)
    config = run_of(bert, tmp_path, ["rows"], steps=5, batch_size=8, optim=optim)
    finetune_data.write_batches(
        prepare_data(config, formats.Tokenizer.load(bert)), config.steps, tmp_path / "batches.jsonl"
    )
    facts = finetune_peer.finetune(finetune.peer_settings(config, tmp_path, "theirs"))
    train(config)
    losses = [row["loss"] for row in read_rows(tmp_path / "ours" / "metrics.jsonl") if "loss" in row]
    assert losses == pytest.approx(facts["loss"], rel=1e-3)
    from sentence_transformers import SentenceTransformer

    texts = [row["query"] for row in rows]
    theirs = SentenceTransformer(str(tmp_path / "theirs" / "model"), device="cpu").encode(texts)
    base = SentenceTransformer(str(bert), device="cpu").encode(texts)
    ours = Encoder.load(str(tmp_path / "ours")).encode(texts)
    assert np.abs(theirs - base).max() > 0.1  # there was something to learn
    np.testing.assert_allclose(ours, theirs, atol=2e-4)


def test_the_peer_s_own_batches_hold_no_text_twice_and_one_source_each(bert, mixed, tmp_path, monkeypatch):
    from sentence_transformers.sentence_transformer.losses import MultipleNegativesRankingLoss

    seen, forward = [], MultipleNegativesRankingLoss.forward

    def look(self, features, labels):
        seen.append([tuple(ids) for ids in features[1]["input_ids"].tolist()])
        return forward(self, features, labels)

    monkeypatch.setattr(MultipleNegativesRankingLoss, "forward", look)
    rows = [{"source": s, "query": f"{w} far", "positive": f"{['cat', 'dog'][s]} {WORDS[i % 3]}"}
            for i, w in enumerate(WORDS[:6]) for s in (0, 1)]  # fmt: skip
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    finetune_peer.finetune(
        peer(bert, tmp_path / "rows.jsonl", tmp_path, steps=4, batch_size=3, own_batches=True, max_length=16)
    )
    assert len(seen) == 4
    for batch in seen:
        assert len(set(batch)) == len(batch) == 3
        assert len({ids[1] for ids in batch}) == 1  # its first word is its source's


def test_a_command_s_memory_is_that_of_all_its_processes(tmp_path):
    hold = "import time; held = bytearray(60_000_000); time.sleep(0.6)"
    parent = f"import subprocess, sys; held = bytearray(60_000_000); subprocess.run([sys.executable, '-c', {hold!r}])"
    alone = measured.run([sys.executable, "-c", hold], {}, tmp_path / "alone.log")
    both = measured.run([sys.executable, "-c", parent], {}, tmp_path / "both.log")
    assert 60e6 < alone.peak_bytes < 110e6 and 120e6 < both.peak_bytes < 200e6
    assert 0.6 < alone.seconds < 10


def test_a_command_that_fails_says_its_last_words(tmp_path):
    line = [sys.executable, "-c", "import os; print(os.environ['WORD']); raise SystemExit(3)"]
    with pytest.raises(FailedError, match=r"(?s)exited with 3.*alas"):
        measured.run(line, {"WORD": "alas"}, tmp_path / "log")


RAN = {"seconds": 50.0, "peak_bytes": 2_000_000_000}


def test_the_first_steps_do_not_count_in_the_speed():
    found = finetune_table.side(RAN, [10, 10, 30, 50], [100.0, 9.0, 1.0, 3.0], [4.0, 3.0, 2.0, 1.0], [1, 1, 40, 120])
    assert (found.seconds_per_step, found.tokens_per_second, found.computed_share) == (2.0, 20.0, 0.5)
    assert (found.steps, found.whole_seconds, found.peak_gb, found.last_loss) == (4, 50.0, 2.0, 1.0)
    with pytest.raises(FailedError, match="too few"):
        finetune_table.side(RAN, [1, 1], [1.0, 1.0], [1.0, 1.0], None)


def test_verdicts_are_better_above_zero_faster_above_one_and_leaner_below():
    score = lambda value: {task: value for tasks in TASKS.values() for task in tasks}
    figures = {"steps": 9, "computed_share": 0.5, "whole_seconds": 1.0, "last_loss": 0.0}
    ours = Side(seconds_per_step=1.0, tokens_per_second=300.0, peak_gb=1.0, **figures)
    theirs = Side(seconds_per_step=2.0, tokens_per_second=200.0, peak_gb=4.0, **figures)
    scores = {"before": score(0.1), "e5jax": score(0.5) | {"stsb-de": 0.2}, "theirs": score(0.4)}
    found = finetune_table.verdicts(scores, {"e5jax": ours, "theirs": theirs}, "theirs")
    assert found["STS-B, Spearman"] == pytest.approx(0.1 - 0.3 / 6) and found["Tatoeba, F1"] == pytest.approx(0.1)
    assert found["worst task"] == pytest.approx(-0.2)
    assert found["tokens per second, ratio"] == 1.5 and found["seconds a step, ratio"] == 2.0
    assert found["peak memory, ratio"] == 0.25
    order = Order(tokens=(100, 300), shared=0.25, truncated=7)
    lines = finetune_table.table(scores, {"e5jax": ours, "theirs": theirs}, order, 64, 256).splitlines()
    assert lines[0] == "|  | before | e5jax | theirs |"
    assert "| · de | 0.1000 | 0.2000 | 0.4000 |" in lines
    assert "| seconds a step |  | 1.00 | 2.00 |" in lines and "200 tokens in the mean; 25.0%" in lines[-1]


def test_the_benchmark_s_config_trains_on_no_held_out_rows():
    from configs import minilm_multilingual as names

    trained = {"xquad": names.TRAINED_ARTICLES, "tatoeba": names.TRAINED_PAIRS, "stsb": ":"}
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("E5JAX_DATA", "/data")
        config = names.get_config()
    for source in config.data.train:
        path = Path(source.path)
        assert source.rows == trained[path.parent.name] and not path.stem.endswith(("-test", "-dev"))
    assert names.TRAINED_ARTICLES == ":36" and names.TRAINED_PAIRS == ":500"


def test_our_run_is_the_config_s_without_measurements_on_the_way(tmp_path, monkeypatch):
    monkeypatch.setenv("E5JAX_DATA", "/data")
    (tmp_path / "ours.py").write_text(finetune.OURS.format(path=str(finetune.CONFIG)))
    ours, whole = (command.load_config(str(path)) for path in (tmp_path / "ours.py", finetune.CONFIG))
    assert whole.eval and ours == dataclasses.replace(whole, eval=())


def test_what_was_done_is_not_done_again_and_not_taken_for_something_else(tmp_path):
    line = [sys.executable, "-c", "open('count', 'a').write('x')"]
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path)
        first, second = (finetune._once(tmp_path, "part", line) for _ in range(2))
    assert first == second and (tmp_path / "count").read_text() == "x"
    with pytest.raises(UserError, match="another command"):
        finetune._once(tmp_path, "part", [*line, "more"])


def test_a_peer_that_read_other_tokens_is_refused(tmp_path, monkeypatch, bert):
    config = run_of(bert, tmp_path, ["rows"])
    facts = {"tokens": [5, 6, 7], "seconds": [1.0] * 3, "loss": [1.0] * 3, "padded": [9] * 3}
    (tmp_path / "theirs").mkdir()
    (tmp_path / "theirs" / "facts.json").write_text(json.dumps(facts))
    monkeypatch.setattr(finetune, "_once", lambda *_: RAN)
    order = lambda *tokens: Order(tokens=tokens, shared=0.0, truncated=0)
    assert finetune.train_peer(config, tmp_path, "theirs", order(5, 6, 7)).tokens_per_second == 7
    with pytest.raises(FailedError, match="18 tokens, but the batches have 19"):
        finetune.train_peer(config, tmp_path, "theirs", order(5, 6, 8))


UNTOLD = {"lora": configs.LoraConfig(), "matryoshka": (12, 6), "dropout": 0.1}


@pytest.mark.parametrize("field", UNTOLD)
def test_what_the_peer_cannot_be_told_is_refused(bert, tmp_path, field):
    config = dataclasses.replace(run_of(bert, tmp_path, ["rows"]), **{field: UNTOLD[field]})
    with pytest.raises(UserError, match=field):
        finetune.peer_settings(config, tmp_path, "theirs")
