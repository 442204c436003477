import asyncio
import dataclasses
from pathlib import Path

import pytest

from e5jax.errors import FailedError
from e5jax.synthetic import batches, clients
from e5jax.synthetic.budget import FREE, Budget
from e5jax.synthetic.config import CapsConfig
from e5jax.synthetic.ledger import Ledger
from e5jax.synthetic.request import OutOfQuotaError, Unavailable
from tests.synthetic.servers import Fault, Server
from tests.synthetic.test_clients import request


pytest.importorskip("google.genai")
NO_CAPS = CapsConfig()


@pytest.fixture
def server(monkeypatch):
    with Server() as server:
        monkeypatch.setenv("GOOGLE_GEMINI_BASE_URL", server.url)
        monkeypatch.setenv("GEMINI_API_KEY", "fake-key-1234567890")
        yield server


def plan(count: int) -> list:
    return [request(number, f"write in English, number {number}.") for number in range(count)]


def open_client():
    return clients.open_client("gemini-batch", model="gemini-2.5-flash", key_file=None, timeout_s=5.0, replay=None)


def ask_all(folder: Path, requests: list, *, client=None, caps=NO_CAPS, attempts=3, lines=10, tell=None, stop_s=None):
    async def work():
        asked = client or open_client()
        with Ledger(folder) as ledger:
            budget = Budget(caps, FREE, "gemini-2.5-flash", batch=True, spent=ledger.spent)
            running = batches.run(
                requests,
                asked,
                ledger,
                budget,
                folder=folder / "batches",
                client_name="gemini-batch",
                attempts=attempts,
                lines=lines,
                at_once=3,
                poll_s=0.01,
                retry_given_up=False,
                tell=tell or (lambda snapshot: None),
            )
            try:
                async with asyncio.timeout(stop_s):
                    report = await running
            except TimeoutError:
                report = None
            await asked.close()
            return report, {entry["key"]: entry for entry in ledger.read()} if len(ledger) else {}

    return asyncio.run(work())


def answered(entries: dict) -> set:
    return {entry["request"]["number"] for entry in entries.values() if entry["answer"] is not None}


def test_every_request_is_answered_under_its_key(server, tmp_path):
    requests = plan(25)
    report, entries = ask_all(tmp_path, requests)
    assert (report.done, report.gave_up, report.stopped) == (25, {}, None)
    assert set(entries) == {r.key for r in requests}
    assert all(entries[r.key]["request"]["prompt"] == r.prompt for r in requests)
    assert sorted(len(job.lines) for job in server.batches.values()) == [5, 10, 10]
    assert report.spent.requests == 25


def test_a_second_run_sends_nothing(server, tmp_path):
    ask_all(tmp_path, plan(12))
    report, _ = ask_all(tmp_path, plan(12))
    assert (report.done, report.skipped, len(server.batches)) == (0, 12, 2)


@pytest.mark.parametrize("kind", ["missing", "null", "null_response", "torn", "unavailable", "empty", "throttled"])
def test_lines_without_an_answer_are_asked_again_in_another_batch(server, tmp_path, kind):
    server.faults = [Fault(kind=kind, match="number 3.", times=1)]
    report, entries = ask_all(tmp_path, plan(10))
    assert answered(entries) == set(range(10))
    assert [len(job.lines) for job in server.batches.values()] == [10, 1]
    assert report.spent.requests == 11


def test_a_line_that_is_never_answered_is_given_up_after_its_attempts(server, tmp_path):
    server.faults = [Fault(kind="missing", match="number 3.")]
    report, entries = ask_all(tmp_path, plan(10))
    assert answered(entries) == set(range(10)) - {3}
    assert len(server.batches) == 3
    assert list(report.gave_up) == ["a batch SUCCEEDED without an answer to it"]


def test_a_refused_line_is_given_up_at_once(server, tmp_path):
    server.faults = [Fault(kind="bad_request", match="number 3.")]
    report, _ = ask_all(tmp_path, plan(10))
    assert (report.gave_up, len(server.batches)) == ({"HTTP 400: The input is too long": 1}, 1)


def test_blocked_and_cut_off_answers_are_kept_as_they_are(server, tmp_path):
    server.faults = [Fault(kind="safety", match="number 3."), Fault(kind="max_tokens", match="number 4.")]
    report, _ = ask_all(tmp_path, plan(10))
    assert (report.finish_reasons, len(server.batches)) == ({"stop": 8, "safety": 1, "max_tokens": 1}, 1)


@pytest.mark.parametrize("outcome", ["EXPIRED", "FAILED", "CANCELLED"])
def test_requests_of_a_job_that_ends_without_results_are_asked_again(server, tmp_path, outcome):
    server.jobs = [outcome]
    _, entries = ask_all(tmp_path, plan(10))
    assert answered(entries) == set(range(10))
    assert len(server.batches) == 2


def test_a_job_that_is_pending_for_long_is_waited_for(server, tmp_path):
    server.polls = 10
    told = []
    report, _ = ask_all(tmp_path, plan(10), tell=told.append)
    assert (report.done, len(server.batches)) == (10, 1)
    assert {snapshot.in_flight for snapshot in told} == {0, 10}


def test_nothing_but_expired_jobs_ends_in_a_failure_that_says_so(server, tmp_path):
    server.jobs = ["EXPIRED"] * 9
    with pytest.raises(FailedError, match="3 batches in a row without one answer; the last one EXPIRED"):
        ask_all(tmp_path, plan(40))


def test_a_restart_collects_the_job_under_way_instead_of_submitting_it_again(server, tmp_path):
    server.polls = 10**6
    ask_all(tmp_path, plan(10), stop_s=0.5)
    assert len(server.batches) == 1
    next(iter(server.batches.values())).polls = 1
    report, _ = ask_all(tmp_path, plan(10))
    assert (report.done, len(server.batches)) == (10, 1)
    assert report.spent.requests == 10
    assert max(server.asked.values()) == 1
    assert not list((tmp_path / "batches").glob("e5jax-*"))


def test_after_a_restart_too_what_a_job_did_not_answer_is_asked_once_more_and_not_twice(server, tmp_path):
    server.polls = 10**6
    ask_all(tmp_path, plan(30), stop_s=0.7)
    assert len(server.batches) == 3
    for job in server.batches.values():
        job.polls = 0
    server.polls, server.faults = 0, [Fault(kind="missing", match="number 25.", times=1)]
    report, entries = ask_all(tmp_path, plan(40))
    assert answered(entries) == set(range(40))
    assert (report.spent.requests, sum(server.asked.values())) == (41, 41)


def test_a_job_whose_submission_was_not_confirmed_is_found_again_and_not_paid_twice(server, tmp_path):
    class Deaf:
        """Submits, and never hears of it."""

        def __init__(self, inner):
            self.inner, self.deaf = inner, True

        def __getattr__(self, name):
            return getattr(self.inner, name)

        async def submit(self, name, requests):
            job = await self.inner.submit(name, requests)
            if self.deaf:
                self.deaf = False
                raise Unavailable("dropped")
            return job

    report, _ = ask_all(tmp_path, plan(10), client=Deaf(open_client()))
    assert (report.done, len(server.batches)) == (10, 1)


def test_a_kill_between_submission_and_its_note_is_no_second_job(server, tmp_path):
    class Killed(BaseException):
        pass

    class Dies:
        def __init__(self, inner):
            self.inner = inner

        async def submit(self, name, requests):
            await self.inner.submit(name, requests)
            raise Killed

    with pytest.raises(Killed):
        ask_all(tmp_path, plan(10), client=Dies(open_client()))
    report, _ = ask_all(tmp_path, plan(10))
    assert (report.done, len(server.batches), report.spent.requests) == (10, 1, 10)


def test_a_cap_holds_with_all_jobs_under_way_and_is_reported(server, tmp_path):
    report, _ = ask_all(tmp_path, plan(40), caps=CapsConfig(requests=23))
    assert "23 requests" in report.stopped
    assert (report.done, report.spent.requests, sum(server.asked.values())) == (23, 23, 23)


def test_a_restart_counts_jobs_under_way_once(server, tmp_path):
    server.polls = 10**6
    ask_all(tmp_path, plan(10), stop_s=0.5)
    next(iter(server.batches.values())).polls, server.polls = 1, 1
    report, _ = ask_all(tmp_path, plan(30), caps=CapsConfig(requests=15))
    assert (report.done, report.spent.requests) == (15, 15)


def test_a_restart_under_a_lower_cap_collects_what_is_under_way_and_sends_nothing(server, tmp_path):
    server.polls = 10**6
    ask_all(tmp_path, plan(10), stop_s=0.5)
    next(iter(server.batches.values())).polls, server.polls = 1, 1
    report, _ = ask_all(tmp_path, plan(30), caps=CapsConfig(requests=5))
    assert (report.done, report.spent.requests, len(server.batches)) == (10, 10, 1)
    assert "5 requests" in report.stopped


@pytest.mark.parametrize("kind", ["daily_quota", "bad_key", "no_model"])
def test_a_quota_of_the_day_ends_the_run_with_the_rest_of_the_job_in_the_ledger(server, tmp_path, kind):
    server.faults = [Fault(kind=kind, match="number 3.")]
    with pytest.raises(OutOfQuotaError):
        ask_all(tmp_path, plan(10))
    with Ledger(tmp_path) as ledger:
        assert len(ledger) == 9


def test_a_server_that_is_down_ends_in_a_failure_and_the_next_run_goes_on(server, tmp_path, monkeypatch):
    monkeypatch.setenv("GOOGLE_GEMINI_BASE_URL", "http://127.0.0.1:9")
    with pytest.raises(FailedError, match="the next run goes on with it"):
        ask_all(tmp_path, plan(10))
    monkeypatch.setenv("GOOGLE_GEMINI_BASE_URL", server.url)
    report, _ = ask_all(tmp_path, plan(10))
    assert (report.done, len(server.batches)) == (10, 1)


def test_a_request_survives_the_journal(tmp_path):
    journal = batches.Journal(tmp_path)
    odd = dataclasses.replace(request(1, "line\u2028separator \U0001f600\n"), drawn={"task": "a\x85b"})
    journal.begin("e5jax-1", [odd])
    journal.counted("e5jax-1")
    [(name, remote, [again])] = journal.open_jobs()
    assert (name, remote, again, again.key) == ("e5jax-1", None, odd, again.key)
