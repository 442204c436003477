"""Whatever goes wrong, the command ends with every other request done, pays nothing twice and says what it lacks."""

import collections
import json
import os
import random
import subprocess
import sys
import time
from pathlib import Path

import pytest

from e5jax import package, synthesize
from e5jax.synthetic import batches, entries
from tests.synthetic.servers import Fault, Server


ROOT = Path(__file__).parents[2]
SMALL = ["--config", str(ROOT / "configs" / "synthesize_small.py")]
EXAMPLES = "Answer with that JSON object"  # in every prompt for an example, in none for a list of tasks
# A process whose batch jobs are small and looked at often.
COMMAND = """
import sys
from e5jax import synthesize
from e5jax.synthetic import batches
batches.LINES, batches.AT_ONCE, batches.POLL_S = 20, 3, 0.05
sys.exit(synthesize.main(sys.argv[1:]))
"""


@pytest.fixture
def server(monkeypatch):
    with Server() as server:
        monkeypatch.setenv("GEMINI_API_KEY", "sk-not-a-real-key")
        monkeypatch.delenv("GOOGLE_API_KEY", raising=False)
        monkeypatch.setenv("GOOGLE_GEMINI_BASE_URL", server.url)
        monkeypatch.setenv("OPENAI_API_KEY", "sk-not-a-real-key")
        monkeypatch.setenv("OPENAI_BASE_URL", server.url + "/v1")
        yield server


def asked_for(workdir: Path, *more: str) -> dict:
    """The report of a run of the command. The cap is high: a huge answer costs more than was asked for."""
    argv = [*SMALL, "--workdir", str(workdir), "--caps.dollars", "50", *more]
    assert synthesize.main(argv) == 0
    return json.loads((workdir / "report.json").read_text())


def packaged(workdir: Path) -> dict:
    """The statistics of the dataset made of it."""
    assert package.main(["--workdir", str(workdir), "--no-check-language", "--near-duplicates", "1"]) == 0
    (found,) = (workdir / "dataset").rglob("statistics.json")
    return json.loads(found.read_text())


def examples(workdir: Path) -> list[dict]:
    lines = (workdir / "filtered" / "examples.jsonl").read_text().splitlines()
    dropped = ("provenance",)  # times and response ids are the run's own
    return [{k: v for k, v in json.loads(line).items() if k not in dropped} for line in lines]


PASSING = {
    "429": Fault(kind="throttled", share=0.3, times=1),
    "429 with RetryInfo": Fault(kind="throttled_retry_info", share=0.3, times=1),
    "500": Fault(kind="internal", share=0.3, times=1),
    "a burst of 503": Fault(kind="unavailable", total=12),
    "a slow answer": Fault(kind="slow", share=0.1, times=1, seconds=4.0),
    "dropped in the middle": Fault(kind="dropped", share=0.3, times=1),
    "a proxy's page": Fault(kind="html", share=0.3, times=1),
}


@pytest.mark.faults
@pytest.mark.parametrize("client", ["gemini", "openai"])
@pytest.mark.parametrize("what", PASSING)
def test_a_fault_that_passes_costs_time_and_no_example(what, client, server, tmp_path):
    server.faults = [PASSING[what]]
    report = asked_for(tmp_path / "s", "--client", client, "--timeout-s", "2")
    assert all(phase["gave_up"] == {} for phase in report["phases"].values())
    assert report["phases"]["examples"]["done"] == 60 and report["stopped"] is None
    assert max(server.asked.values()) > 1


# kind of fault -> (what the command says, reason for which `package` rejects it)
FINAL = {
    "bad_request": ("gave up on {}: HTTP 400", "given up"),
    "blocked": ("{} of no use, ended by blocked", "ended by blocked"),
    "safety": ("{} of no use, ended by safety", "ended by safety"),
    "recitation": ("{} of no use, ended by recitation", "ended by recitation"),
    "max_tokens": ("{} of no use, ended by max_tokens", "ended by max_tokens"),
    "empty": ("gave up on {}: ", "given up"),
    "invalid_json": ("", "not JSON"),
    "wrong_schema": ("", "other fields"),
    "extra_fields": ("", "other fields"),
    "huge": ("", "too long"),
}


@pytest.mark.faults
@pytest.mark.parametrize("kind", FINAL)
def test_what_is_no_answer_is_counted_by_reason_and_every_other_example_is_there(kind, server, tmp_path, capsys):
    server.faults = [Fault(kind=kind, match=EXAMPLES, share=0.2)]
    report = asked_for(tmp_path / "s", "--attempts", "2")["phases"]["examples"]
    assert report["done"] + sum(report["gave_up"].values()) == 60
    said, reason = FINAL[kind]
    out = capsys.readouterr().out
    statistics = packaged(tmp_path / "s")
    struck = sum(statistics["rejected"][reason].values())
    assert said.format(struck) in out and 3 <= struck <= 25
    (others,) = [{k: v for k, v in statistics["rejected"].items() if k not in (reason, "duplicate")}]
    assert not others and statistics["examples"] + sum(map(total, statistics["rejected"].values())) == 60


def total(by_type: dict) -> int:
    return sum(by_type.values())


@pytest.mark.faults
def test_a_quota_of_the_day_is_a_failure_that_says_so_and_tomorrow_goes_on(server, tmp_path, capsys):
    argv = [*SMALL, "--workdir", str(tmp_path / "s")]
    server.faults = [Fault(kind="daily_quota", match=EXAMPLES, share=0.3)]
    assert synthesize.main(argv) == 1
    assert "quota" in capsys.readouterr().err
    kept = {entry["request"]["prompt"] for entry in entries.read(tmp_path / "s" / "ledger")}
    asked, server.faults = server.prompts.copy(), []
    assert asked_for(tmp_path / "s")["phases"]["examples"]["skipped"] == sum(EXAMPLES in prompt for prompt in kept)
    assert all(server.prompts[prompt] == asked[prompt] for prompt in kept)
    assert packaged(tmp_path / "s")["examples"] > 50


BATCH = ["missing", "null", "null_response", "torn"]


@pytest.mark.faults
@pytest.mark.parametrize("what", [*BATCH, "EXPIRED", "FAILED", "CANCELLED"])
def test_whatever_a_batch_does_not_answer_is_asked_again_in_another(what, server, tmp_path, monkeypatch):
    for name, value in {"LINES": 20, "POLL_S": 0.01}.items():
        monkeypatch.setattr(batches, name, value)
    server.faults = [Fault(kind=what, share=0.3, times=1)] if what in BATCH else []
    server.jobs = [] if what in BATCH else ["SUCCEEDED", what]
    server.polls = 3
    report = asked_for(tmp_path / "s", "--client", "gemini-batch")
    assert report["phases"]["examples"]["done"] == 60
    assert all(phase["gave_up"] == {} for phase in report["phases"].values())
    submitted = collections.Counter(json.dumps(line) for job in server.batches.values() for line in job.lines)
    assert 1 < max(submitted.values()) <= 2


def test_all_faults_at_once_leave_every_other_example_and_a_report(server, tmp_path, capsys):
    server.faults = [
        Fault(kind=kind, share=0.1, match="" if kind in ("unavailable", "dropped") else EXAMPLES, times=times)
        for kind, times in {"unavailable": 1, "dropped": 1, **dict.fromkeys(FINAL)}.items()
    ]
    report = asked_for(tmp_path / "s", "--attempts", "4")["phases"]["examples"]
    assert report["done"] + sum(report["gave_up"].values()) == 60 and report["gave_up"]
    out = capsys.readouterr().out
    assert "gave up on" in out and "of no use, ended by" in out
    statistics = packaged(tmp_path / "s")
    assert 10 < statistics["examples"] == 60 - sum(map(total, statistics["rejected"].values()))


def killed_and_restarted(workdir: Path, argv: list[str], server: Server, times: int, longest_s: float) -> None:
    """Kills the command at random moments of its start and of its work; asserts that nothing settled is sent again."""
    draw, asked_again = random.Random(times), collections.Counter()
    for turn in range(times + 1):
        settled, before = prompts_in(workdir / "ledger"), server.prompts.copy()
        child = subprocess.Popen(
            [sys.executable, "-c", COMMAND, *argv], cwd=ROOT, stdout=subprocess.PIPE, text=True, env=dict(os.environ)
        )
        if turn < times:
            if turn % 4:  # the others are killed while it starts
                child.stdout.readline()
            time.sleep(draw.uniform(0, longest_s))
            assert child.poll() is None, "it was done before it could be killed"
            child.kill()
        child.communicate(timeout=300)
        asked_again += collections.Counter({p: server.prompts[p] - before[p] for p in settled})
    assert child.returncode == 0
    # STS has few different prompts: those that the plan has twice prove nothing.
    assert not [p for p, requests in prompts_in(workdir / "ledger").items() if requests == 1 and asked_again[p]]


def prompts_in(ledger: Path) -> collections.Counter:
    written = any(path.stat().st_size for path in ledger.glob("answers-*.jsonl"))
    return collections.Counter(entry["request"]["prompt"] for entry in (entries.read(ledger) if written else ()))


@pytest.mark.faults
@pytest.mark.parametrize(("client", "longest_s"), [("gemini", 0.8), ("openai", 0.8), ("gemini-batch", 0.4)])
def test_twenty_kills_of_the_command_end_in_the_same_dataset(client, longest_s, server, tmp_path):
    more = ["--client", client, "--examples", "400", "--concurrency", "8"]
    argv = [*SMALL, "--workdir", str(tmp_path / "killed"), *more]
    server.faults = [] if client == "gemini-batch" else [Fault(kind="slow", seconds=0.25)]
    server.polls = 4
    killed_and_restarted(tmp_path / "killed", argv, server, 20, longest_s)
    if client == "gemini-batch":  # not even those in flight: their job is found again
        lines = collections.Counter(json.dumps(line) for job in server.batches.values() for line in job.lines)
        assert set(lines.values()) == {1}
    server.faults = []
    never = [*SMALL, "--workdir", str(tmp_path / "never"), *more]
    assert subprocess.run([sys.executable, "-c", COMMAND, *never], cwd=ROOT, timeout=300).returncode == 0
    for workdir in ("killed", "never"):
        packaged(tmp_path / workdir)
    assert len(examples(tmp_path / "killed")) > 300
    assert examples(tmp_path / "killed") == examples(tmp_path / "never")
