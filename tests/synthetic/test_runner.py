import asyncio
import itertools
import os
import random
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from e5jax.errors import FailedError
from e5jax.synthetic import entries
from e5jax.synthetic.budget import NOTHING, Budget
from e5jax.synthetic.config import CapsConfig
from e5jax.synthetic.ledger import Ledger
from e5jax.synthetic.pace import Pace, wait_s
from e5jax.synthetic.progress import Progress
from e5jax.synthetic.request import OutOfQuotaError, Refused, Throttled, Unavailable
from e5jax.synthetic.tally import Snapshot
from tests.synthetic.asking import PRICES, FakeClient, answer, ask_all, bill, plan, request


ROOT = Path(__file__).parents[2]


def by_number(folder: Path) -> dict[int, dict]:
    return {entry["request"]["number"]: entry for entry in entries.read(folder)}


def worst(number: int) -> int:
    return Budget(CapsConfig(), PRICES, "m", batch=False, spent=NOTHING).worst_case(request(number)).nanodollars


def test_every_request_is_asked_once_and_kept(tmp_path):
    client = FakeClient()
    report = ask_all(tmp_path, plan(50), client)
    assert sorted(client.asked) == list(range(50))
    assert (report.done, report.gave_up, report.stopped) == (50, {}, None)
    assert report.finish_reasons == {"stop": 50}
    kept = by_number(tmp_path)
    assert [kept[n]["answer"]["text"] for n in range(50)] == [f"answer to {n}" for n in range(50)]
    assert report.spent.nanodollars == sum(bill(answer(request(n))) for n in range(50))
    assert report.spent.nanodollars == sum(entry["cost"] for entry in kept.values())


def test_what_the_ledger_has_is_not_asked_again(tmp_path):
    ask_all(tmp_path, plan(20), FakeClient())
    client = FakeClient()
    report = ask_all(tmp_path, plan(30), client)
    assert sorted(client.asked) == list(range(20, 30))
    assert (report.done, report.skipped) == (10, 20)


def test_the_plan_is_drawn_only_as_far_as_there_is_room(tmp_path):
    drawn, answered = [], []

    class Watching(FakeClient):
        async def ask(self, asked):
            assert len(drawn) <= len(answered) + 8
            said = await super().ask(asked)
            answered.append(asked.number)
            return said

    client = Watching({n: [Unavailable("503"), answer(request(n))] for n in range(40)})
    ask_all(tmp_path, (drawn.append(r.number) or r for r in plan(40)), client, concurrency=8)
    assert client.most == 8
    assert len(by_number(tmp_path)) == 40


def test_a_fault_that_passes_is_tried_again_after_a_while(tmp_path):
    client = FakeClient({3: [Unavailable("503"), Unavailable("dropped"), answer(request(3))]})
    report = ask_all(tmp_path, plan(5), client)
    assert client.asked.count(3) == 3
    assert (report.done, report.gave_up) == (5, {})
    entry = by_number(tmp_path)[3]
    assert entry["tries"] == 3
    assert entry["cost"] == 2 * worst(3) + bill(answer(request(3)))  # both may have been billed
    times = [when for when, number in zip(client.times, client.asked, strict=True) if number == 3]
    waits = [wait_s(request(3).key, failures) for failures in (1, 2)]
    assert [b - a - 0.01 for a, b in itertools.pairwise(times)] == pytest.approx(waits)


def test_waits_are_spread_over_a_bound_that_doubles_up_to_a_minute():
    for failures, bound in [(1, 1), (2, 2), (3, 4), (4, 8), (30, 60)]:
        waits = [wait_s(request(n).key, failures) for n in range(200)]
        assert 0.9 * bound < max(waits) <= bound
        assert min(waits) < 0.1 * bound


def test_a_request_is_given_up_after_so_many_tries_and_stays_so(tmp_path):
    report = ask_all(tmp_path, plan(4), FakeClient({2: [Unavailable("500")]}), attempts=4)
    assert (report.done, report.gave_up) == (3, {"500": 1})
    entry = by_number(tmp_path)[2]
    assert (entry["answer"], entry["gave_up"], entry["tries"], entry["cost"]) == (None, "500", 4, 4 * worst(2))
    client = FakeClient()
    assert ask_all(tmp_path, plan(4), client).skipped == 4
    assert client.asked == []


def test_what_was_given_up_is_asked_again_on_demand(tmp_path):
    ask_all(tmp_path, plan(4), FakeClient({2: [Refused("400")]}))
    client = FakeClient()
    report = ask_all(tmp_path, plan(4), client, retry_given_up=True)
    assert (client.asked, report.done, report.skipped) == ([2], 1, 3)
    assert by_number(tmp_path)[2]["answer"]["text"] == "answer to 2"


def test_a_refusal_is_final_and_free(tmp_path):
    client = FakeClient({1: [Refused("400: too long")]})
    report = ask_all(tmp_path, plan(3), client)
    assert client.asked.count(1) == 1
    assert report.gave_up == {"400: too long": 1}
    assert by_number(tmp_path)[1]["cost"] == 0


@pytest.mark.parametrize("reason", ["max_tokens", "safety", "recitation", "blocked", "other"])
def test_an_answer_that_was_paid_for_is_kept_however_it_ended(tmp_path, reason):
    client = FakeClient({1: [answer(request(1), reason)]})
    report = ask_all(tmp_path, plan(3), client)
    assert client.asked.count(1) == 1
    assert report.finish_reasons == {"stop": 2, reason: 1}
    assert by_number(tmp_path)[1]["answer"]["finish_reason"] == reason


def test_an_answer_that_does_not_come_is_not_waited_for(tmp_path):
    client = FakeClient({1: [3_600.0]})
    report = ask_all(tmp_path, plan(3), client, attempts=2)
    assert client.asked.count(1) == 2
    assert report.gave_up == {"no answer in 30 s": 1}
    assert by_number(tmp_path)[1]["cost"] == 2 * worst(1)


def test_a_burst_of_429_slows_down_once_and_answers_speed_up_again():
    pace = Pace(100)
    for _ in range(50):
        pace.throttled(10.0, None)
    assert pace.limit == 75
    pace.throttled(12.0, None)
    assert pace.limit == 56.25
    assert pace.may_send(55, 12.0) and not pace.may_send(56, 12.0)
    for _ in range(25 * 10):
        pace.answered()
    assert pace.limit == 66.25
    for _ in range(25 * 100):
        pace.answered()
    assert pace.limit == 100
    for now in range(100, 200, 2):
        pace.throttled(float(now), None)
    assert pace.may_send(0, 200.0)  # one at least


def test_429_is_no_reason_to_give_a_request_up_and_costs_nothing(tmp_path):
    client = FakeClient({1: [*[Throttled("429", None)] * 9, answer(request(1))]})
    report = ask_all(tmp_path, plan(3), client, attempts=2)
    assert client.asked.count(1) == 10
    assert (report.done, report.gave_up) == (3, {})
    entry = by_number(tmp_path)[1]
    assert (entry["tries"], entry["cost"]) == (10, bill(answer(request(1))))


def test_nothing_is_sent_while_the_server_wants_a_pause(tmp_path):
    client = FakeClient({5: [Throttled("429", 37.0), answer(request(5))]})
    ask_all(tmp_path, plan(60), client, concurrency=4)
    pause = client.times[5] + 0.01, client.times[5] + 0.01 + 37.0
    assert not [when for when in client.times if pause[0] < when < pause[1]]
    assert len([when for when in client.times if when >= pause[1]]) > 40
    assert len(by_number(tmp_path)) == 60


def test_fewer_are_in_flight_after_429(tmp_path):
    flying = []

    class Watching(FakeClient):
        async def ask(self, asked):
            try:
                return await super().ask(asked)
            finally:
                flying.append(self.in_flight + 1)

    client = Watching({0: [Throttled("429", None), answer(request(0))]})
    ask_all(tmp_path, plan(400), client, concurrency=40)
    assert max(flying[:40]) == 40
    assert max(flying[80:200]) <= 30 + 200 // 25
    assert max(flying[80:200]) < max(flying[250:])


def test_a_server_that_only_throttles_ends_the_job(tmp_path):
    client = FakeClient({n: [Throttled("429: slow down", None)] for n in range(10)})
    with pytest.raises(OutOfQuotaError, match=r"10 minutes.*429: slow down"):
        ask_all(tmp_path, plan(10), client)
    assert 600 < client.times[-1] - client.times[0] < 700
    assert list(entries.read(tmp_path)) == []


def test_a_quota_of_the_day_ends_the_job_with_all_that_was_in_flight_kept(tmp_path):
    client = FakeClient({3: [OutOfQuotaError("quota of the day")], 1: [5.0]})
    with pytest.raises(OutOfQuotaError, match="quota of the day"):
        ask_all(tmp_path, plan(100), client, concurrency=8)
    assert set(by_number(tmp_path)) == set(client.asked) - {3}
    assert len(client.asked) < 20
    ask_all(tmp_path, plan(100), FakeClient())
    assert len(by_number(tmp_path)) == 100


def test_a_fault_of_the_client_ends_the_job_with_all_that_was_in_flight_kept(tmp_path):
    client = FakeClient({3: [ZeroDivisionError("bug")], 1: [5.0]})
    with pytest.raises(ZeroDivisionError):
        ask_all(tmp_path, plan(100), client)
    assert set(by_number(tmp_path)) == set(client.asked) - {3}


def test_a_fault_of_the_plan_ends_the_job_with_all_that_was_in_flight_kept(tmp_path):
    def broken():
        yield from plan(5)
        raise ValueError("the plan")

    client = FakeClient()
    with pytest.raises(ValueError, match="the plan"):
        ask_all(tmp_path, broken(), client)
    assert sorted(by_number(tmp_path)) == sorted(client.asked) == list(range(5))


def test_nothing_but_failures_end_the_job(tmp_path):
    client = FakeClient({n: [Refused("400: no such model")] for n in range(1_000)})
    with pytest.raises(FailedError, match=r"100 requests in a row.*no such model"):
        ask_all(tmp_path, plan(1_000), client)
    assert len(client.asked) < 110
    some = {n: [Refused("400")] for n in range(2_000, 3_000) if n % 50}
    report = ask_all(tmp_path, [request(n) for n in range(2_000, 3_000)], FakeClient(some))
    assert report.gave_up == {"400": 980}


def test_a_full_disk_ends_the_job_with_all_that_was_in_flight_kept(tmp_path, monkeypatch):
    class Filling(FakeClient):
        async def ask(self, asked):
            said = await super().ask(asked)
            if asked.number == 20:
                monkeypatch.setattr(os, "write", full)
            return said

    def full(fd, data, write=os.write):
        if (tmp_path / "ballast").exists():
            raise OSError(28, "No space left on device")
        return write(fd, data)

    client = Filling(delay_s=0.02)
    with pytest.raises(FailedError, match="the disk is full"):
        ask_all(tmp_path, plan(200), client)
    monkeypatch.undo()
    assert set(by_number(tmp_path)) == set(client.asked)
    assert len(client.asked) < 60


def test_a_dollar_is_not_passed_by_a_cent_with_64_in_flight(tmp_path):
    draw = random.Random(1)
    faults = {n: [Unavailable("503"), answer(request(n))] for n in range(2_000) if draw.random() < 0.1}
    client = FakeClient(faults)
    report = ask_all(tmp_path, plan(2_000), client, caps=CapsConfig(dollars=1.0), concurrency=64)
    billed = sum(bill(answer(request(n))) for n in client.asked)  # lost answers, too
    assert client.most == 64
    assert 0.7e9 < billed <= report.spent.nanodollars <= 1e9
    assert report.spent.nanodollars > 0.98e9  # room that cheap answers left was used
    assert "cap of $1.00" in report.stopped
    again = FakeClient()
    report = ask_all(tmp_path, plan(2_000), again, caps=CapsConfig(dollars=1.0), concurrency=64)
    assert again.asked == [] and "cap of $1.00" in report.stopped


@pytest.mark.parametrize("caps", [CapsConfig(requests=30), CapsConfig(tokens=20_000)])
def test_other_caps_hold_over_restarts(tmp_path, caps):
    asked = []
    for _ in range(3):
        client = FakeClient({n: [Unavailable("503"), answer(request(n))] for n in range(0, 200, 4)})
        report = ask_all(tmp_path, plan(200), client, caps=caps, concurrency=16)
        asked += client.asked
        assert report.stopped is not None
    assert len(asked) <= 30 if caps.requests else report.spent.tokens <= 20_000
    assert len(asked) >= 10


def signalled(folder: Path, numbers: list[int], delays: list[float]):
    """A run of long answers that gets so many signals; -> what it returned or raised, and its client."""
    client = FakeClient(delay_s=0.5)

    def plan_with_signals():
        loop = asyncio.get_running_loop()
        for number, delay in zip(numbers, delays, strict=True):
            loop.call_later(delay, os.kill, os.getpid(), number)
        yield from plan(100)

    return client, lambda: ask_all(folder, plan_with_signals(), client, loop_factory=None)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_sends_no_more_and_keeps_what_is_in_flight(tmp_path, number):
    client, run = signalled(tmp_path, [number], [0.2])
    report = run()
    assert number.name in report.stopped
    assert len(client.asked) == 8 == report.done
    assert set(by_number(tmp_path)) == set(client.asked)


def test_a_second_signal_ends_at_once(tmp_path):
    client, run = signalled(tmp_path, [signal.SIGTERM, signal.SIGINT], [0.1, 0.2])
    with pytest.raises(KeyboardInterrupt):
        run()
    assert list(entries.read(tmp_path)) == []
    with Ledger(tmp_path) as book:
        assert book.spent.nanodollars == sum(map(worst, client.asked))


def kill_again_and_again(folder: Path, times: int, count: int, dollars: float, longest_s: float) -> list[str]:
    """-> the log of all that was asked; asserts that nothing is asked that was in the ledger when a process began."""
    draw, log, kills = random.Random(times), folder / "asked.log", 0
    log.touch()
    command = [sys.executable, "-m", "tests.synthetic.killed", str(folder / "ledger"), str(log), str(count)]
    for turn in range(times + 1):
        before = set(by_number(folder / "ledger")) if turn else set()
        lines = len(log.read_text().splitlines())
        child = subprocess.Popen([*command, str(dollars)], cwd=ROOT, stdout=subprocess.PIPE, text=True)
        if turn < times and child.stdout.readline() == "asking\n":
            with pytest.raises(subprocess.TimeoutExpired):
                child.wait(draw.uniform(0, longest_s))
            child.kill()
            kills += 1
        child.communicate(timeout=120)
        asked = log.read_text().splitlines()[lines:]
        assert not before & {int(line.split()[0]) for line in asked}
    assert (kills, child.returncode) == (times, 0)
    return log.read_text().splitlines()


def the_same_after_kills(folder: Path, times: int, count: int, longest_s: float):
    asked = kill_again_and_again(folder, times, count, 0, longest_s)
    kept = by_number(folder / "ledger")
    assert {n: entry["answer"]["text"] for n, entry in kept.items()} == {n: f"answer to {n}" for n in range(count)}
    assert 0 < len(asked) - count <= 64 * times  # those in flight
    assert sum(entry["cost"] for entry in kept.values()) >= sum(int(line.split()[1]) for line in asked)


def test_three_kills_change_nothing_and_nothing_finished_is_asked_again(tmp_path):
    the_same_after_kills(tmp_path, 3, 1_500, 0.1)


@pytest.mark.faults
def test_twenty_kills_change_nothing_and_nothing_finished_is_asked_again(tmp_path):
    the_same_after_kills(tmp_path, 20, 8_000, 0.1)


@pytest.mark.faults
def test_twenty_kills_do_not_pass_the_cap(tmp_path):
    billed = [int(line.split()[1]) for line in kill_again_and_again(tmp_path, 20, 20_000, 40.0, 0.1)]
    assert 20e9 < sum(billed) <= 40e9


def test_progress_is_a_line_now_and_then_and_one_at_the_end(capsys):
    def at(seconds: float, done: int, **more) -> Snapshot:
        fields = {"failed": 2, "skipped": 10, "in_flight": 64, "waiting": 1, "tokens": 5_000, "spent": 123_400_000}
        return Snapshot(**{**fields, "left": 876_600_000, "paused_s": 0.0, **more}, seconds=seconds, done=done)

    show = Progress(110)
    show(at(1.0, 3))
    show(at(10.0, 48))
    show(at(11.0, 50))
    show(at(20.0, 98, left=None, paused_s=30.0))
    show.close()
    first, second, third = capsys.readouterr().out.splitlines()
    assert first == (
        "60 of 110 requests: 48 done, 2 failed, 64 in flight, $0.1234 spent ($0.8766 left), 500 tokens/s, 10 s left"
    )
    assert second.endswith("$0.1234 spent, 250 tokens/s, paused for 30 s")
    assert third == second


def test_the_ledger_and_the_budget_agree_after_a_run_of_faults(tmp_path):
    draw = random.Random(3)
    outcomes = [Unavailable("503"), Throttled("429", None), Refused("400")]
    script = {n: [draw.choice(outcomes), answer(request(n))] for n in range(0, 100, 2)}
    report = ask_all(tmp_path, plan(100), FakeClient(script))
    with Ledger(tmp_path) as book:
        assert book.spent == report.spent
