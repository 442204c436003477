"""synthesize → package → train, on the answers of a server that speaks the APIs' wire formats."""

import json
from pathlib import Path

import pytest

from e5jax import package, synthesize
from e5jax.command import load_config
from tests.synthetic.servers import Fault, Server


pytestmark = pytest.mark.usefixtures("quickly_compiled")


ROOT = Path(__file__).parents[2]
KEY = "sk-not-a-real-key-0123456789"
SMALL = ["--config", str(ROOT / "configs" / "synthesize_small.py")]


@pytest.fixture
def server(monkeypatch):
    with Server(faults=[Fault(kind="unavailable", share=0.1, times=1)]) as server:
        for name in ("GEMINI_API_KEY", "OPENAI_API_KEY"):
            monkeypatch.setenv(name, KEY)
        monkeypatch.delenv("GOOGLE_API_KEY", raising=False)
        monkeypatch.setenv("GOOGLE_GEMINI_BASE_URL", server.url)
        monkeypatch.setenv("OPENAI_BASE_URL", server.url + "/v1")
        yield server


def files_below(folder):
    return [path for path in folder.rglob("*") if path.is_file()]


@pytest.mark.parametrize("client", ["gemini", "gemini-legacy", "openai"])
def test_every_client_gets_all_examples_once_and_its_key_is_nowhere(client, server, tmp_path, capfd):
    argv = [*SMALL, "--client", client, "--workdir", str(tmp_path / "s")]
    assert synthesize.main(argv) == 0
    report = json.loads((tmp_path / "s" / "report.json").read_text())
    assert report["phases"]["examples"]["done"] == 60 and report["stopped"] is None
    assert 0 < report["spent"]["dollars"] < 1
    asked = sum(server.asked.values())
    assert synthesize.main(argv) == 0  # all of it is there: nothing is asked again
    assert sum(server.asked.values()) == asked
    said = "".join(capfd.readouterr())
    assert KEY not in said and not any(KEY.encode() in path.read_bytes() for path in files_below(tmp_path))


def test_what_was_written_is_packaged_and_trained_on(server, tmp_path, capsys):
    from e5jax import train

    assert synthesize.main([*SMALL, "--workdir", str(tmp_path / "s")]) == 0
    assert package.main(["--workdir", str(tmp_path / "s"), "--heldout", "0.2"]) == 0
    (info,) = (tmp_path / "s" / "dataset").rglob("dataset_info.json")
    assert (info.parent / "README.md").is_file()
    argv = ["--config", str(ROOT / "configs" / "quickstart.py"), "--workdir", str(tmp_path / "run"), "--steps", "2"]
    argv += ["--data.train.0.path", str(info.parent), "--batch-size", "16", "--eval-every", "2"]
    argv += ["--eval.0.sources.0.path", str(info.parent)]
    assert train.main([*argv, "--data.cache", str(tmp_path / "cache")]) == 0
    assert (tmp_path / "run" / "checkpoints" / "2").is_dir()


def test_a_second_plan_in_a_workdir_is_refused_and_a_dry_run_asks_nothing(server, tmp_path, capsys):
    argv = [*SMALL, "--workdir", str(tmp_path / "s"), "--examples", "6"]
    assert synthesize.main([*argv, "--dry-run"]) == 0
    assert "at most $" in capsys.readouterr().out and not server.asked and not (tmp_path / "s").exists()
    assert synthesize.main(argv) == 0
    assert synthesize.main([*argv, "--seed", "1"]) == 2
    assert "seed was 0, now 1" in capsys.readouterr().err


def test_without_a_key_one_sentence_names_the_variable(monkeypatch, tmp_path, capsys):
    for name in ("GEMINI_API_KEY", "GOOGLE_API_KEY"):
        monkeypatch.delenv(name, raising=False)
    assert synthesize.main([*SMALL, "--workdir", str(tmp_path / "s")]) == 2
    assert "GEMINI_API_KEY" in capsys.readouterr().err and not (tmp_path / "s").exists()


def test_a_cap_stops_the_job_and_more_money_goes_on_with_it(server, tmp_path, capsys):
    argv = [*SMALL, "--workdir", str(tmp_path / "s")]
    assert synthesize.main([*argv, "--caps.dollars", "0.03"]) == 0
    stopped = json.loads((tmp_path / "s" / "report.json").read_text())
    assert "the cap of" in stopped["stopped"] and stopped["spent"]["dollars"] <= 0.03
    assert synthesize.main(argv) == 0
    assert json.loads((tmp_path / "s" / "report.json").read_text())["phases"]["examples"]["skipped"] > 0


def test_the_paper_s_config_is_a_plan():
    config = load_config(str(ROOT / "configs" / "synthesize_paper.py"))
    assert config.examples == 500_000 and config.client == "gemini-batch"


def test_passages_of_one_s_own_become_examples_by_query_and_ranking(server, tmp_path):
    from e5jax.records import Source, read

    passages = [f"Passage {i} is about {topic} and the {topic} of the year." for i in range(8) for topic in TOPICS]
    (tmp_path / "corpus.txt").write_text("\n".join(passages))
    argv = [*SMALL, "--workdir", str(tmp_path / "s"), "--grounded", str(tmp_path / "corpus.txt"), "--examples", "20"]
    assert synthesize.main(argv) == 0
    assert package.main(["--workdir", str(tmp_path / "s"), "--near-duplicates", "1"]) == 0
    (info,) = (tmp_path / "s" / "dataset").rglob("dataset_info.json")
    records = [record for _, record in read(Source(path=str(info.parent), split="train"))]
    assert records and all(record.positive in passages and record.negatives[0] in passages for record in records)
    (tmp_path / "corpus.txt").write_text("\n".join(passages[::-1]))
    assert synthesize.main(argv) == 2  # another corpus is another plan


TOPICS = ("bread", "chess", "tides", "maps")
