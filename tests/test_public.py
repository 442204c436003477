"""Public copies of the paper's training sets, each in its source's own format, become records that training reads."""

import gzip
import json

import pytest

from e5jax import command, records
from e5jax.errors import UserError
from e5jax.public import PublicConfig, main, public
from e5jax.public_sets import judged, sets
from e5jax.public_sets.formats import Choice
from e5jax.public_sets.judged import Columns
from e5jax.public_sets.sets import SETS, task
from e5jax.records import Record, Source


TITLED = {"title": "Bread", "text": "Yeast lifts it."}
TREC = "{}\t0\t{}\t{}\n"


def put(path, content):
    """A file with this content; .gz is packed, anything but text is JSON."""
    path.parent.mkdir(parents=True, exist_ok=True)
    text = content if isinstance(content, str) else json.dumps(content, indent=4, ensure_ascii=False)
    path.write_bytes(gzip.compress(text.encode()) if path.suffix == ".gz" else text.encode())


def jsonl(*rows):
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)


def parquet(path, *rows):
    import pyarrow
    from pyarrow import parquet

    path.parent.mkdir(parents=True, exist_ok=True)
    parquet.write_table(pyarrow.Table.from_pylist(list(rows)), path)


def made(folder, name, **settings):
    """[(query, positive, negatives)] of a set, as training reads what the command wrote."""
    output = folder / "output"
    public(PublicConfig(input=str(folder / "in"), output=str(output), sets=(name,), **settings))
    read = [record for _, record in records.read(Source(path=str(output / f"{name}.jsonl")))]
    assert all(isinstance(record, Record) and record.task in SETS[name].instructions for record in read)
    return [(record.query, record.positive, list(record.negatives)) for record in read]


def report(folder, name):
    return json.loads((folder / "output" / "public.json").read_text())[name]


def refused(folder, said, **settings):
    with pytest.raises(UserError, match=said):
        public(PublicConfig(input=str(folder / "in"), output=str(folder / "output"), **settings))


# Formats


def dpr(question="why does bread rise", **changes):
    other = {"title": "Chess", "text": "It has clocks.", "score": 9.1, "title_score": 0, "passage_id": "7"}
    item = {"dataset": "nq_train_psgs_w100", "question": question, "answers": ["yeast"]}
    item |= {"positive_ctxs": [TITLED, other], "negative_ctxs": [other], "hard_negative_ctxs": [other]}
    return item | changes


@pytest.mark.parametrize(
    ("name", "file"),
    [
        ("nq", "biencoder-nq-train.json"),
        ("triviaqa", "biencoder-trivia-train.json.gz"),
        ("squad", "downloads/data/retriever/biencoder-squad1-train.json"),
    ],
)
def test_dpr_s_list_gives_the_first_positive_and_a_hard_negative(tmp_path, name, file):
    put(tmp_path / "in" / name / file, [dpr(), dpr("empty", positive_ctxs=[])])
    assert made(tmp_path, name) == [("why does bread rise", "Bread Yeast lifts it.", ["Chess It has clocks."])]
    assert report(tmp_path, name)["left_out"] == {"no positive passage": 1}


def test_a_list_is_read_in_blocks_wherever_they_end(tmp_path, monkeypatch):
    items = [dpr(f'q{i} "é\\\n]', positive_ctxs=[{"title": "", "text": "long " * i}]) for i in range(1, 40)]
    put(tmp_path / "in" / "nq" / "biencoder-nq-train.json", items)
    for block in (1, 7, 1 << 20):
        monkeypatch.setattr("e5jax.public_sets.formats.BLOCK", block)
        assert [query for query, _, _ in made(tmp_path, "nq", force=True)] == [item["question"] for item in items]


def test_an_item_with_a_mistake_is_named_by_line_before_the_rest_of_the_file_is_read(tmp_path):
    path = tmp_path / "in" / "nq" / "biencoder-nq-train.json"
    put(path, "[\n" + json.dumps(dpr()) + ',\n{"question" "why"}' + " " * 100 + "]")
    refused(tmp_path, r"biencoder-nq-train.json:3: not JSON", sets=("nq",))
    put(path, json.dumps([dpr()])[:-30])
    refused(tmp_path, r"biencoder-nq-train.json:1: not JSON.*is the download whole\?", sets=("nq",))


def test_behind_a_mistake_the_file_is_not_read_into_memory(tmp_path, monkeypatch):
    put(tmp_path / "in" / "nq" / "biencoder-nq-train.json", '[{"question" "why"}, ' + '"x", ' * 100_000 + "3]")
    raw = (tmp_path / "in" / "nq" / "biencoder-nq-train.json").open("rb")
    monkeypatch.setattr("e5jax.public_sets.formats.opened", lambda path: raw)
    monkeypatch.setattr("e5jax.public_sets.formats.BLOCK", 100)
    monkeypatch.setattr(raw, "close", lambda: None)
    refused(tmp_path, "not JSON", sets=("nq",))
    assert raw.tell() < 100_000


TEVATRON = {
    "query_id": "3",
    "query": "why does bread rise",
    "positive_passages": [{"docid": "39#0", **TITLED}],
    "negative_passages": [{"docid": "8#1", "title": "", "text": "Chess clocks."}],
}
EXPECTED = [("why does bread rise", "Bread Yeast lifts it.", ["Chess clocks."])]


@pytest.mark.parametrize(
    ("name", "file"),
    [
        ("miracl", "train.ar.jsonl"),
        ("mrtydi", "mrtydi-v1.1-english/train.jsonl.gz"),
        ("msmarco_passage", "train.jsonl.gz"),
        ("nq", "train.jsonl.gz"),
        ("dureader", "train.jsonl.gz"),
    ],
)
def test_tevatron_s_lines_are_read_with_titles_in_front(tmp_path, name, file):
    put(tmp_path / "in" / name / file, jsonl(TEVATRON))
    assert made(tmp_path, name) == EXPECTED


def test_tevatron_s_passages_need_no_title_and_come_as_parquet_too(tmp_path):
    bare = [{"docid": "39#0", "text": "Yeast lifts it."}]
    parquet(tmp_path / "in" / "msmarco_passage" / "train-00000.parquet", TEVATRON | {"positive_passages": bare})
    assert made(tmp_path, "msmarco_passage")[0][1] == "Yeast lifts it."
    for name in ("wikipedia-trivia-train-00000-of-00008", "wikipedia-trivia-dev-00000-of-00001"):
        parquet(tmp_path / "in" / "triviaqa" / "default" / f"{name}.parquet", TEVATRON)
    parquet(tmp_path / "in" / "squad" / "default" / "train" / "0000.parquet", TEVATRON)
    parquet(tmp_path / "in" / "squad" / "default" / "dev" / "0000.parquet", TEVATRON)
    assert made(tmp_path, "triviaqa") == made(tmp_path, "squad") == EXPECTED


def test_mr_tydi_s_combined_file_stands_for_those_of_its_languages(tmp_path):
    for language in ("combined", "english"):
        put(tmp_path / "in" / "mrtydi" / f"mrtydi-v1.1-{language}" / "train.jsonl", jsonl(TEVATRON))
    assert made(tmp_path, "mrtydi") == EXPECTED


def beir(folder):
    documents = [{"_id": "Bread_-LRB-x-RRB-", "metadata": {}, **TITLED}, {"_id": "z", "text": "-"}]
    put(folder / "corpus.jsonl", jsonl(*documents))
    put(folder / "queries.jsonl", jsonl({"_id": "q1", "text": "bread rises"}, {"_id": "q2", "text": "of another part"}))
    judged = "q1\tBread_-LRB-x-RRB-\t1\nq1\tz\t0\nq9\tgone\t1\n"
    put(folder / "qrels" / "train.tsv", "query-id\tcorpus-id\tscore\n" + judged)


@pytest.mark.parametrize("name", ["hotpotqa", "fever"])
def test_beir_s_folder_gives_the_judged_queries_of_its_training_part(tmp_path, name):
    beir(tmp_path / "in" / name / name)  # as its zip unpacks
    assert made(tmp_path, name) == [("bread rises", "Bread Yeast lifts it.", [])]
    assert report(tmp_path, name)["left_out"] == {"no query": 1}


def test_a_passage_that_the_collection_lacks_leaves_its_query_out(tmp_path):
    beir(tmp_path / "in" / "fever")
    with (tmp_path / "in" / "fever" / "qrels" / "train.tsv").open("a") as file:
        file.write("q2\tgone\t1\n")
    made(tmp_path, "fever")
    assert report(tmp_path, "fever")["left_out"]["its passage is not in the collection"] == 1


def miracl(folder, language, text):
    stem = f"miracl-v1.0-{language}"
    put(folder / stem / "topics" / f"topics.{stem}-train.tsv", "0\tquestion " + language + "\n")
    put(folder / stem / "qrels" / f"qrels.{stem}-train.tsv", "0\tQ0\t39#0\t1\n0\tQ0\t39#1\t0\n")
    put(folder / stem / "qrels" / f"qrels.{stem}-dev.tsv", "0\tQ0\t39#1\t1\n")
    passages = [{"docid": f"39#{i}", "title": text, "text": f"passage {i}"} for i in range(2)]
    put(folder / f"miracl-corpus-v1.0-{language}" / "docs-0.jsonl.gz", jsonl(*passages))


def test_miracl_s_own_files_are_joined_within_a_language_with_what_was_judged_wrong(tmp_path):
    for language, text in (("ar", "خبز"), ("en", "Bread")):
        miracl(tmp_path / "in" / "miracl", language, text)
    assert made(tmp_path, "miracl") == [
        ("question ar", "خبز passage 0", ["خبز passage 1"]),
        ("question en", "Bread passage 0", ["Bread passage 1"]),
    ]


def test_a_language_without_its_corpus_is_named(tmp_path):
    miracl(tmp_path / "in" / "miracl", "ar", "خبز")
    put(tmp_path / "in" / "miracl" / "qrels.miracl-v1.0-sw-train.tsv", "0\tQ0\t39#0\t1\n")
    refused(tmp_path, "sw-train.tsv: the queries and documents of sw are not there", sets=("miracl",))


def test_ms_marco_s_documents_are_title_and_body_with_one_of_the_top_100_against_them(tmp_path):
    folder = tmp_path / "in" / "msmarco_document"
    docs = [("D1", "Bread", "Yeast lifts it."), ("D2", "Chess", "Clocks."), ("D3", "", "Untitled.")]
    put(folder / "msmarco-docs.tsv.gz", "".join(f"{d}\thttp://x/{d}\t{title}\t{body}\n" for d, title, body in docs))
    put(folder / "msmarco-doctrain-queries.tsv.gz", "3\twhy does bread rise\n4\tuntitled\n5\tnot judged\n")
    put(folder / "msmarco-doctrain-qrels.tsv.gz", "3 0 D1 1\n4 0 D3 1\n")
    put(folder / "msmarco-doctrain-top100.gz", "3 Q0 D1 1 -4.8 IndriQueryLikelihood\n3 Q0 D2 2 -5.0 Indri\n")
    assert made(tmp_path, "msmarco_document") == [
        ("why does bread rise", "Bread Yeast lifts it.", ["Chess Clocks."]),
        ("untitled", "Untitled.", []),
    ]


def test_ms_marco_s_passages_are_read_from_its_own_tables(tmp_path):
    folder = tmp_path / "in" / "msmarco_passage"
    put(folder / "collection.tsv", "0\tYeast lifts it.\n1\tClocks.\n")
    put(folder / "queries.train.tsv", "7\twhy does bread rise\n")
    put(folder / "qrels.train.tsv", TREC.format(7, 0, 1))
    put(folder / "qidpidtriples.train.full.2.tsv", "7\t0\t1\n")
    assert made(tmp_path, "msmarco_passage") == [("why does bread rise", "Yeast lifts it.", ["Clocks."])]


def t2ranking(folder):
    put(folder / "data" / "collection.tsv", 'pid\tpara\n0\t酵母"让面包\n1\t棋钟\n2\t无关\n')
    put(folder / "data" / "queries.train.tsv", "qid\tquery\n0\t面包为什么\n")
    put(folder / "data" / "qrels.retrieval.train.tsv", "qid\tpid\n0\t0\n")
    put(folder / "data" / "qrels.train.tsv", "qid\t-\tpid\trel\n0\t0\t0\t3\n0\t0\t1\t0\n0\t0\t2\t1\n")


def test_t2ranking_s_tables_have_headers_and_quotes_that_quote_nothing(tmp_path):
    t2ranking(tmp_path / "in" / "t2ranking")
    assert made(tmp_path, "t2ranking", negatives=9) == [("面包为什么", '酵母"让面包', ["棋钟"])]
    put(tmp_path / "in" / "t2ranking" / "data" / "train.mined.tsv", "qid\tpid\tindex\tscore\n0\t0\t1\t9\n0\t2\t2\t8\n")
    assert made(tmp_path, "t2ranking", force=True)[0][2] == ["无关"]


def test_rocketqa_s_table_gives_one_record_a_query_with_its_negatives(tmp_path):
    rows = [("面包", "酵母", "棋"), ("面包", "酵母", "钟"), ("棋", "王", "酵母")]
    table = "".join(f"{query}\t\t{positive}\t\t{negative}\t0\n" for query, positive, negative in rows)
    put(tmp_path / "in" / "dureader" / "train" / "dual.train.tsv", table)
    assert [(q, p, set(n)) for q, p, n in made(tmp_path, "dureader", negatives=9)] == [
        ("面包", "酵母", {"棋", "钟"}),
        ("棋", "王", {"酵母"}),
    ]


def test_dureader_s_own_json_lines_have_no_negatives(tmp_path):
    paragraphs = [{"paragraph_id": "p", "paragraph_text": "酵母"}]
    row = {"question_id": "a", "question": "面包", "answer_paragraphs": paragraphs}
    put(tmp_path / "in" / "dureader" / "train.json", jsonl(row, row | {"question": "棋"}))
    assert made(tmp_path, "dureader") == [("面包", "酵母", []), ("棋", "酵母", [])]


def test_simcse_s_nli_has_the_contradiction_as_hard_negative(tmp_path):
    put(tmp_path / "in" / "nli" / "nli_for_simcse.csv", 'sent0,sent1,hard_neg\n"A man, old.",A man.,A cat.\nx,,z\n')
    assert made(tmp_path, "nli") == [("A man, old.", "A man.", ["A cat."])]


def test_quora_s_duplicates_are_its_records(tmp_path):
    rows = '0\t1\t2\t"What is ""x""?"\tWhat does x mean?\t1\n1\t3\t4\tWhat is y?\tWhy z?\t0\n'
    header = "id\tqid1\tqid2\tquestion1\tquestion2\tis_duplicate\n"
    put(tmp_path / "in" / "quora" / "quora_duplicate_questions.tsv", header + rows)
    assert made(tmp_path, "quora") == [('What is "x"?', "What does x mean?", [])]
    assert report(tmp_path, "quora")["left_out"] == {"not a duplicate": 1}


def test_eli5_s_pairs_are_read_and_of_a_thread_the_answer_with_the_most_votes(tmp_path):
    parquet(tmp_path / "in" / "eli5" / "pair" / "train-0.parquet", {"question": "why bread", "answer": "Yeast."})
    assert made(tmp_path, "eli5") == [("why bread", "Yeast.", [])]
    answers = {"a_id": ["a", "b", "c"], "text": ["No idea.", "Yeast.", "Air."], "score": [2, 30, 4]}
    thread = {"q_id": "q", "title": "why bread", "selftext": "", "subreddit": "explainlikeimfive", "answers": answers}
    put(tmp_path / "other" / "in" / "eli5" / "train.jsonl", jsonl(thread))
    assert made(tmp_path / "other", "eli5") == [("why bread", "Yeast.", [])]


BGE = {"query": "why bread", "pos": ["Yeast."], "neg": ["Clocks."], "category": "r", "type": "r", "prompt": "Given"}


@pytest.mark.parametrize(
    ("name", "files"),
    [
        ("miracl", ["miracl_sw-00000-of-00001", "miracl_te-00000-of-00001"]),
        ("mrtydi", ["mr_tydi_english-00000-of-00001", "mr_tydi_thai-00000-of-00001"]),
        ("msmarco_document", ["msmarco_document-00000-of-00163", "msmarco_document-00001-of-00163"]),
        ("nq", ["nq-00000-of-00002", "nq-00001-of-00002"]),
    ],
)
def test_bge_s_collection_has_a_part_for_each_set(tmp_path, name, files):
    for stem in files:
        parquet(tmp_path / "in" / "bge-e5data" / "data" / f"{stem}.parquet", BGE)
    assert made(tmp_path, name) == [("why bread", "Yeast.", ["Clocks."])] * 2


def test_echo_embeddings_triples_are_read_both_halves_of_a_set(tmp_path):
    triple = {"query": "why bread", "positive": "Yeast.", "negative": "Clocks."}
    for half in (1, 2):
        put(tmp_path / "in" / "echo-data" / f"allnli_split{half}.jsonl", jsonl(triple))
    assert made(tmp_path, "nli") == [("why bread", "Yeast.", ["Clocks."])] * 2


def test_of_a_copy_that_is_a_sample_it_is_said_that_no_share_must_be_taken_once_more(tmp_path, capsys):
    for name in ("t2ranking", "nq"):
        put(tmp_path / "in" / "bge-e5data" / f"{name}.jsonl", jsonl(BGE))
        made(tmp_path, name)
    said = capsys.readouterr().out
    assert "t2ranking: this copy is a sample already: give its Source sample=1, not 0.5" in said
    assert "nq: this copy" not in said  # all of it is used anyway
    assert report(tmp_path, "nq")["sampled"]


# The table


def test_the_table_has_exactly_the_sets_that_the_paper_s_config_reads(monkeypatch):
    config = command.load_config("configs/e5_mistral_7b.py")
    read = {source.path.rsplit("/", 1)[1]: source for source in config.data.train[1:]}
    assert read.keys() == {f"{name}.jsonl" for name in SETS} and len(SETS) == 14
    for name, known in SETS.items():
        source = read[f"{name}.jsonl"]
        assert (source.sample, source.task) == (known.share, known.instructions[0])


def test_half_of_the_queries_get_the_second_instruction_and_keep_it():
    for name, known in SETS.items():
        tasks = [task(name, f"query {i}") for i in range(400)]
        for instruction in known.instructions:
            assert abs(tasks.count(instruction) / 400 - 1 / len(known.instructions)) < 0.1
    assert {name for name in SETS if len(SETS[name].instructions) == 2} == set(
        "miracl mrtydi nq squad triviaqa nli quora".split()
    )
    which = [sets.WIKIPEDIA.index(task("nq", f"query {i}")) for i in range(12)]
    assert which == [0, 1, 0, 0, 1, 1, 0, 0, 0, 1, 0, 0]  # in every process


def test_every_set_is_in_both_collections_and_every_pattern_begins_with_a_known_folder():
    for name, known in SETS.items():
        folders = [{p.split("/")[0] for found in copy.files.values() for p in found} for copy in known.copies]
        assert folders[-2:] == [{"bge-e5data"}, {"echo-data"}] and folders[:-2] == [{name}] * len(folders[:-2])


# Choice


def test_of_many_negatives_some_are_drawn_by_the_seed_and_the_query_alone(tmp_path):
    rows = [{"query": f"q{i}", "pos": ["p"], "neg": [f"n{j}" for j in range(50)]} for i in range(30)]
    put(tmp_path / "in" / "bge-e5data" / "nq.jsonl", jsonl(*rows))
    first = made(tmp_path, "nq", negatives=3)
    assert all(len(set(negatives)) == 3 for _, _, negatives in first)
    assert len({tuple(negatives) for _, _, negatives in first}) > 20
    put(tmp_path / "in" / "bge-e5data" / "nq.jsonl", jsonl(*rows[::-1]))
    assert made(tmp_path, "nq", negatives=3, force=True) == first[::-1]
    assert made(tmp_path, "nq", negatives=3, seed=1, force=True) != first[::-1]
    assert made(tmp_path, "nq", negatives=0, force=True)[0][2] == []


def test_of_a_ranking_no_more_is_kept_than_is_asked_for_and_its_end_as_often_as_its_head(tmp_path):
    put(tmp_path / "mined.tsv", "".join(f"{query}\t{document}\n" for query in range(300) for document in range(20)))
    relevant = {str(query): ["0"] for query in range(300)}
    choice = Choice(seed=0, negatives=2, characters=10)
    columns = {"mined": Columns(query=0, document=1, grade=None)}
    kept = judged._against({"mined": [tmp_path / "mined.tsv"]}, columns, relevant, choice)
    assert all(len(documents) == 2 for documents in kept.values()) and len(kept) == 300
    late = sum(int(document) > 10 for documents in kept.values() for document in documents)
    assert abs(late / 600 - 9 / 19) < 0.06


def test_a_positive_is_no_negative_and_long_passages_are_cut(tmp_path):
    rows = [{"query": "q", "pos": ["p" * 99], "neg": ["p" * 99, "n" * 99, "  "]}]
    put(tmp_path / "in" / "bge-e5data" / "nq.jsonl", jsonl(*rows))
    assert made(tmp_path, "nq", negatives=3, max_characters=10) == [("q", "p" * 10, ["n" * 10])]


def test_half_an_emoji_is_left_out(tmp_path):
    put(tmp_path / "in" / "bge-e5data" / "nq.jsonl", jsonl(BGE) + '{"query": "\\ud83d", "pos": ["p"], "neg": []}\n')
    assert len(made(tmp_path, "nq")) == 1 and report(tmp_path, "nq")["left_out"] == {"no query": 1}


# What is there already


def test_what_was_written_stays_and_is_said(tmp_path, capsys):
    put(tmp_path / "in" / "nq" / "train.jsonl", jsonl(TEVATRON))
    made(tmp_path, "nq")
    before = (tmp_path / "output" / "nq.jsonl").stat()
    capsys.readouterr()
    made(tmp_path, "nq")
    assert capsys.readouterr().out == "nq: there already, 1 records of the same files\n"
    assert (tmp_path / "output" / "nq.jsonl").stat().st_mtime_ns == before.st_mtime_ns


def test_what_was_made_of_other_files_or_settings_is_not_replaced_unless_forced(tmp_path):
    put(tmp_path / "in" / "nq" / "train.jsonl", jsonl(TEVATRON))
    made(tmp_path, "nq")
    refused(tmp_path, r"nq.jsonl is there already, of other seed: .*--force", sets=("nq",), seed=1)
    put(tmp_path / "in" / "nq" / "train.jsonl", jsonl(TEVATRON | {"query": "another"}))
    refused(tmp_path, "of other files", sets=("nq",))
    assert made(tmp_path, "nq", force=True)[0][0] == "another"
    (tmp_path / "output" / "nq.jsonl").write_text("mine\n")
    refused(tmp_path, "of other content", sets=("nq",))
    assert (tmp_path / "output" / "nq.jsonl").read_text() == "mine\n"


def test_a_file_that_breaks_off_leaves_neither_a_set_nor_the_loss_of_another(tmp_path):
    put(tmp_path / "in" / "nq" / "train.jsonl", jsonl(TEVATRON))
    packed = gzip.compress(jsonl(*[TEVATRON | {"query": str(i)} for i in range(5_000)]).encode())
    put(tmp_path / "in" / "squad" / "train.jsonl.gz", "")
    (tmp_path / "in" / "squad" / "train.jsonl.gz").write_bytes(packed[: len(packed) // 2])
    refused(tmp_path, r"train.jsonl.gz:\d+: cannot be read.*is the download whole\?")
    assert sorted(p.name for p in (tmp_path / "output").iterdir() if p.name[0] != ".") == ["nq.jsonl", "public.json"]
    assert report(tmp_path, "nq")["records"] == 1


def test_the_report_has_the_sha256_of_the_files_that_were_read(tmp_path):
    import hashlib

    put(tmp_path / "in" / "nq" / "train.jsonl", jsonl(TEVATRON))
    made(tmp_path, "nq")
    content = (tmp_path / "in" / "nq" / "train.jsonl").read_bytes()
    expected = {"nq/train.jsonl": {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}}
    assert report(tmp_path, "nq")["files"] == expected
    assert report(tmp_path, "nq")["with_negatives"] == 1


# What is not there, or not right


def test_sets_that_are_not_there_are_listed_or_where_they_were_asked_for_refused(tmp_path, capsys):
    put(tmp_path / "in" / "nq" / "train.jsonl", jsonl(TEVATRON))
    public(PublicConfig(input=str(tmp_path / "in"), output=str(tmp_path / "output")))
    assert "not there: eli5, hotpotqa, fever" in capsys.readouterr().out
    refused(tmp_path, r"(?s)fever: no whole copy.*fever/\*\*/corpus.jsonl.*beir.*bge-e5data", sets=("nq", "fever"))
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="none of eli5, hotpotqa"):
        public(PublicConfig(input=str(tmp_path / "empty"), output=str(tmp_path / "output")))
    with pytest.raises(UserError, match="gone: no such folder"):
        public(PublicConfig(input=str(tmp_path / "gone"), output=str(tmp_path / "output")))


def test_a_copy_that_is_passed_over_is_said_and_hidden_folders_are_none(tmp_path, capsys):
    put(tmp_path / "in" / "nq" / "biencoder-nq-train.json", [dpr()])
    put(tmp_path / "in" / "nq" / "train.jsonl", jsonl(TEVATRON))
    put(tmp_path / "in" / "nq" / ".cache" / "biencoder-nq-train.json", [dpr("hidden")])
    put(tmp_path / "in" / "nq" / "biencoder-nq-train.json.gz", [dpr("the same, packed")])
    assert len(made(tmp_path, "nq")) == 1
    assert "nq: another copy is passed over" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("name", "file", "content", "said"),
    [
        ("nq", "train.jsonl", "{}\n", r"train.jsonl:1: no field 'query'"),
        ("nq", "train.jsonl", jsonl(TEVATRON) + "{\n", r"train.jsonl:2: not JSON"),
        ("nq", "train.jsonl", jsonl(TEVATRON | {"positive_passages": "text"}), r"train.jsonl:1: a field is of another"),
        ("nq", "train.jsonl", jsonl(TEVATRON | {"query": 3}), r"train.jsonl:1: .*3 is not a string"),
        ("nq", "train.jsonl", "3\n", r"train.jsonl:1: a field is of another kind"),
        ("nq", "train.jsonl", jsonl(TEVATRON | {"positive_passages": []}), r"no record for nq; left out 1"),
        ("nq", "biencoder-nq-train.json", "[" * 3 + "]", r"nq-train.json: no record for nq"),
        ("nli", "nli_for_simcse.csv", "sent0,sent1,hard_neg\na,b\n", r"simcse.csv:2: 2 cells for 3 columns"),
        ("nli", "nli_for_simcse.csv", "a,b\nx,y\n", r"simcse.csv:2: no field 'sent0'; there are a, b"),
        ("dureader", "dual.train.tsv", "q\t\tp\n", r"dual.train.tsv:1: 3 cells; RocketQA's"),
    ],
)
def test_a_row_of_another_form_is_named_by_line(tmp_path, name, file, content, said):
    put(tmp_path / "in" / name / file, content)
    refused(tmp_path, said, sets=(name,))


@pytest.mark.parametrize(
    ("file", "content", "said"),
    [
        ("data/qrels.retrieval.train.tsv", "qid\tpid\n0\n", r"qrels.retrieval.train.tsv:2: 1 cells"),
        ("data/qrels.train.tsv", "0\t0\t1\tbad\n", r"qrels.train.tsv:1: the grade is 'bad'"),
        ("data/train.mined.tsv", "qid\tpid\n0\n", r"train.mined.tsv:2: 1 cells"),
        ("data/collection.tsv", "0\n", r"collection.tsv:1: 1 cells between tabs"),
    ],
)
def test_a_table_of_another_form_is_named_by_line(tmp_path, file, content, said):
    t2ranking(tmp_path / "in" / "t2ranking")
    put(tmp_path / "in" / "t2ranking" / file, content)
    refused(tmp_path, said, sets=("t2ranking",))


def test_what_is_not_utf8_is_named_by_line(tmp_path):
    put(tmp_path / "in" / "nq" / "train.jsonl", jsonl(TEVATRON))
    with (tmp_path / "in" / "nq" / "train.jsonl").open("ab") as file:
        file.write(b'{"query": "caf\xe9"}\n')
    refused(tmp_path, r"train.jsonl:2: not UTF-8 at byte 14", sets=("nq",))
    put(tmp_path / "in" / "nq" / "biencoder-nq-train.json", "[]")
    (tmp_path / "in" / "nq" / "biencoder-nq-train.json").write_bytes(b'[{"question": "caf\xe9"}]')
    refused(tmp_path, r"biencoder-nq-train.json: not UTF-8", sets=("nq",))


def test_the_command_ends_with_2_for_what_the_user_can_mend(tmp_path, capsys):
    argv = ["--input", str(tmp_path), "--output", str(tmp_path / "o")]
    with pytest.raises(SystemExit, match="2"):
        main([*argv, "--sets", "fevr"])
    assert "did you mean fever" in capsys.readouterr().err.replace("\n", " ")
    assert main([*argv, "--sets", "fever"]) == 2
    put(tmp_path / "nq" / "train.jsonl", jsonl(TEVATRON))
    assert main([*argv, "--sets", "nq"]) == 0
