import asyncio
import collections
import dataclasses
import json
import logging
import sys
import threading
import time
import traceback

import pytest

from e5jax.errors import UserError
from e5jax.synthetic import clients, entries, faults
from e5jax.synthetic.budget import Spent
from e5jax.synthetic.keys import Key, read_key, redact_logs
from e5jax.synthetic.request import (
    Answer,
    AskError,
    OutOfQuotaError,
    Refused,
    Request,
    Sampling,
    Throttled,
    Unavailable,
)
from tests.synthetic.servers import ERRORS, Fault, Server


KEY = "fake-key-1234567890"
SDKS = {"gemini": "google.genai", "gemini-legacy": "google.generativeai", "openai": "openai"}
VARIABLES = (
    *("GEMINI_API_KEY", "GOOGLE_API_KEY", "OPENAI_API_KEY", "AZURE_OPENAI_API_KEY", "AZURE_OPENAI_ENDPOINT"),
    *("OPENAI_API_VERSION", "GOOGLE_GEMINI_BASE_URL", "OPENAI_BASE_URL"),
)
OBJECT = {
    "type": "object",
    "properties": {"user_query": {"type": "string"}, "positive_document": {"type": "string"}},
    "required": ["user_query", "positive_document"],
    "additionalProperties": False,
}
LIST = {"type": "array", "items": {"type": "string"}}


def request(number: int, prompt: str, schema: dict = OBJECT) -> Request:
    return Request(
        kind="example",
        task_type="short-long",
        number=number,
        prompt_version="1",
        prompt=prompt,
        schema=schema,
        drawn={},
        sampling=Sampling(model="gemini-2.5-flash", temperature=0.7, top_p=0.9, max_tokens=512),
    )


@pytest.fixture
def server(monkeypatch):
    for name in VARIABLES:
        monkeypatch.delenv(name, raising=False)
    with Server() as server:
        monkeypatch.setenv("GOOGLE_GEMINI_BASE_URL", server.url)
        monkeypatch.setenv("OPENAI_BASE_URL", f"{server.url}/v1")
        monkeypatch.setenv("GEMINI_API_KEY", KEY)
        monkeypatch.setenv("OPENAI_API_KEY", KEY)
        yield server


@pytest.fixture(params=SDKS)
def name(request):
    pytest.importorskip(SDKS[request.param])
    return request.param


def ask(name: str, *requests: Request, timeout_s: float = 5.0, key_file: str | None = None) -> list[Answer | Exception]:
    """The answers or errors, in order; asked at once."""

    async def work():
        client = clients.open_client(
            name, model="gemini-2.5-flash", key_file=key_file, timeout_s=timeout_s, replay=None
        )
        try:
            return await asyncio.gather(*(client.ask(r) for r in requests), return_exceptions=True)
        finally:
            await client.close()

    return asyncio.run(work())


def test_an_answer_says_what_it_cost_and_where_it_comes_from(server, name):
    [answer] = ask(name, request(1, "write in French"))
    assert set(json.loads(answer.text)) == set(OBJECT["properties"])
    assert (answer.finish_reason, answer.model_version) == ("stop", "gemini-2.5-flash-001")
    # Thoughts are billed as answer.
    assert (answer.prompt_tokens, answer.answer_tokens) == (server.usage["prompt"], server.usage["answer"])
    assert server.keys == {KEY}


@pytest.mark.parametrize("name", ["gemini", "openai"])
def test_close_lets_go_of_the_connections(server, name):
    pytest.importorskip(SDKS[name])
    before = threading.active_count()
    ask(name, *(request(i, "write") for i in range(20)))
    for _ in range(100):  # the server has a thread a connection
        if threading.active_count() <= before:
            return
        time.sleep(0.02)
    pytest.fail(f"{threading.active_count() - before} connections are still open")


def test_the_sampling_goes_out_as_it_was_asked_for(server, name):
    ask(name, request(1, "write in French"))
    [body] = server.bodies
    sent = body.get("generationConfig", body)
    assert sent["temperature"] == pytest.approx(0.7)
    assert sent.get("topP", sent.get("top_p")) == pytest.approx(0.9)
    assert sent.get("maxOutputTokens", sent.get("max_tokens")) == 512


@pytest.mark.parametrize("name", ["gemini", "openai"])
def test_the_seed_is_the_requests_own(server, name):
    pytest.importorskip(SDKS[name])
    same = [request(1, "same"), request(2, "same"), request(1, "same")]
    first, other, again = ask(name, *same)
    assert first.text == again.text != other.text


def test_a_list_is_asked_for_too(server, name):
    [answer] = ask(name, request(1, "think up tasks", LIST))
    assert len(json.loads(answer.text)) == 20


def test_gemini_is_told_to_think_as_little_as_it_can(server):
    ask("gemini", request(1, "write"))
    assert server.bodies[0]["generationConfig"]["thinkingConfig"] in ({"thinking_budget": 0}, {"thinkingBudget": 0})


FAULTS = {
    "throttled": Throttled,
    "throttled_retry_info": Throttled,
    "throttled_header": Throttled,
    "daily_quota": OutOfQuotaError,
    "timeout": Unavailable,
    "internal": Unavailable,
    "unavailable": Unavailable,
    "dropped": Unavailable,
    "html": Unavailable,
    "empty": Unavailable,
    "bad_request": Refused,
    "bad_key": OutOfQuotaError,
    "unauthorized": OutOfQuotaError,
    "forbidden": OutOfQuotaError,
    "no_model": OutOfQuotaError,
}


def test_a_fault_is_the_error_that_the_runner_knows_and_is_not_tried_again(server, name):
    server.faults = [Fault(kind=kind, match=f"<{kind}>") for kind in FAULTS]
    errors = ask(name, *(request(1, f"write <{kind}>") for kind in FAULTS))
    assert {kind: type(error) for kind, error in zip(FAULTS, errors, strict=True)} == FAULTS
    assert max(server.prompts.values()) == 1


def test_a_slow_answer_is_unavailable_after_the_time_out(server, name):
    server.faults = [Fault(kind="slow", seconds=2.0)]
    [error] = ask(name, request(1, "write"), timeout_s=0.3)
    assert type(error) is Unavailable
    assert sum(server.asked.values()) == 1


def test_a_server_that_is_down_is_unavailable(server, name, monkeypatch):
    monkeypatch.setenv("GOOGLE_GEMINI_BASE_URL", "http://127.0.0.1:9")
    monkeypatch.setenv("OPENAI_BASE_URL", "http://127.0.0.1:9/v1")
    [error] = ask(name, request(1, "write"))
    assert type(error) is Unavailable


def test_the_servers_waiting_time_is_passed_on(server, name):
    waits = {"throttled": None, "throttled_retry_info": 0.25, "throttled_header": 1.0}
    server.faults = [Fault(kind=kind, match=f"<{kind}>") for kind in waits]
    errors = ask(name, *(request(1, f"write <{kind}>") for kind in waits))
    assert [error.retry_after_s for error in errors] == list(waits.values())


def test_an_answer_that_was_stopped_says_why(server, name):
    stops = {"safety": "safety", "recitation": "recitation", "max_tokens": "max_tokens", "blocked": "blocked"}
    if name == "openai":
        stops["recitation"] = "safety"  # one word for both
    server.faults = [Fault(kind=kind, match=f"<{kind}>") for kind in stops]
    answers = ask(name, *(request(1, f"write <{kind}>") for kind in stops))
    assert [answer.finish_reason for answer in answers] == list(stops.values())


def test_what_the_model_says_comes_back_as_it_is(server, name):
    kinds = ("invalid_json", "wrong_schema", "extra_fields", "huge")
    server.faults = [Fault(kind=kind, match=f"<{kind}>") for kind in kinds]
    answers = ask(name, *(request(1, f'write <{kind}>: "user_query", "positive_document"') for kind in kinds))
    assert {answer.finish_reason for answer in answers} == {"stop"}
    invalid, wrong, extra, huge = (answer.text for answer in answers)
    assert invalid.startswith("Here you are: {")
    assert json.loads(wrong) == {"query": 7, "documents": []}
    assert set(json.loads(extra)) == {"user_query", "positive_document", "explanation"}
    assert len(huge) > 5_000_000


def test_a_hundred_requests_are_under_way_at_once(server, name):
    server.faults = [Fault(kind="slow", seconds=0.5)]
    answers = ask(name, *(request(i, f"write {i}") for i in range(100)), timeout_s=20.0)
    assert collections.Counter(type(a) for a in answers) == {Answer: 100}
    assert server.most_at_once > 50
    assert max(server.asked.values()) == 1


@pytest.mark.parametrize(("kind", "formats"), [("no_schema", ["json_object"]), ("no_format", [None])])
def test_a_response_format_that_the_server_does_not_know_is_left_out_from_then_on(server, kind, formats):
    pytest.importorskip("openai")
    server.faults = [Fault(kind=kind)]
    prompts = [request(i, 'write {"user_query", "positive_document"}') for i in range(20)]
    assert {type(a) for a in ask("openai", *prompts)} == {Answer}

    async def one_after_the_other():
        client = clients.open_client("openai", model="m", key_file=None, timeout_s=5.0, replay=None)
        for r in prompts[:3]:
            server.bodies.clear()
            await client.ask(r)
        await client.close()

    asyncio.run(one_after_the_other())
    assert [(body.get("response_format") or {}).get("type") for body in server.bodies] == formats


def test_a_model_that_wants_max_completion_tokens_gets_them(server):
    pytest.importorskip("openai")
    server.faults = [Fault(kind="no_max_tokens")]
    [answer] = ask("openai", request(1, "write"))
    assert answer.finish_reason == "stop"
    assert server.bodies[-1]["max_completion_tokens"] == 512


def test_azure_is_found_by_its_own_variables(server, monkeypatch):
    pytest.importorskip("openai")
    monkeypatch.delenv("OPENAI_API_KEY")
    monkeypatch.delenv("OPENAI_BASE_URL")
    monkeypatch.setenv("AZURE_OPENAI_ENDPOINT", server.url)
    monkeypatch.setenv("OPENAI_API_VERSION", "2024-10-21")
    with pytest.raises(UserError, match="AZURE_OPENAI_API_KEY"):
        ask("openai", request(1, "write"))
    monkeypatch.setenv("AZURE_OPENAI_API_KEY", KEY)
    [answer] = ask("openai", request(1, "write"))
    assert answer.finish_reason == "stop"
    monkeypatch.delenv("OPENAI_API_VERSION")
    with pytest.raises(UserError, match="OPENAI_API_VERSION"):
        ask("openai", request(1, "write"))


def test_a_server_of_ones_own_needs_no_key(server, monkeypatch):
    pytest.importorskip("openai")
    monkeypatch.delenv("OPENAI_API_KEY")
    [answer] = ask("openai", request(1, "write"))
    assert answer.finish_reason == "stop"


def test_without_a_key_one_sentence_names_the_variables(server, name, monkeypatch):
    for variable in ("GEMINI_API_KEY", "OPENAI_API_KEY", "OPENAI_BASE_URL"):
        monkeypatch.delenv(variable)
    with pytest.raises(UserError, match=r"no API key: set (GOOGLE_API_KEY or GEMINI|OPENAI)_API_KEY"):
        ask(name, request(1, "write"))


def test_the_second_variable_and_the_key_file_work_too(server, name, monkeypatch, tmp_path):
    file = tmp_path / "key"
    file.write_text("key-of-a-file\n")
    file.chmod(0o600)
    ask(name, request(1, "write"), key_file=str(file))
    assert server.keys == {"key-of-a-file"}
    if name != "openai":
        monkeypatch.delenv("GEMINI_API_KEY")
        monkeypatch.setenv("GOOGLE_API_KEY", "key-of-google")
        ask(name, request(2, "write"))
        assert "key-of-google" in server.keys


@pytest.mark.parametrize(
    ("content", "mode", "said"),
    [("", 0o600, "0 words"), ("a b", 0o600, "2 words"), ("a", 0o644, "chmod 600"), (None, 0, "No such file")],
)
def test_a_bad_key_file_is_named(tmp_path, content, mode, said):
    file = tmp_path / "key"
    if content is not None:
        file.write_text(content)
        file.chmod(mode)
    with pytest.raises(UserError, match=said):
        read_key((), str(file))


def test_an_address_that_is_none_is_named(server, monkeypatch):
    monkeypatch.setenv("GOOGLE_GEMINI_BASE_URL", "localhost:8000")
    with pytest.raises(UserError, match="GOOGLE_GEMINI_BASE_URL"):
        ask("gemini", request(1, "write"))


def test_the_key_is_in_no_log_and_no_traceback_even_where_the_server_repeats_it(server, name, caplog):
    caplog.set_level(logging.DEBUG)
    for logger in [logging.getLogger(n) for n in logging.Logger.manager.loggerDict]:
        caplog.set_level(logging.DEBUG, logger=logger.name)
    server.faults = [Fault(kind=kind, match=f"<{kind}>") for kind in (*ERRORS, "dropped", "html")]
    prompts = [request(i, f"write <{kind}>") for i, kind in enumerate((*ERRORS, "dropped", "html", "fine"))]
    answers = ask(name, *prompts)
    said = [caplog.text, *(repr(record.args) for record in caplog.records)]
    for answer in answers:
        said.append(repr(answer))
        if isinstance(answer, Exception):
            said.extend(traceback.format_exception(answer))
    assert KEY in server.keys
    assert sum(isinstance(a, AskError | OutOfQuotaError) for a in answers) >= 10
    assert len(caplog.records) > 10
    assert KEY not in "".join(said)


def test_a_logged_exception_and_a_malformed_record_do_not_show_the_key(caplog):
    logger = logging.getLogger("somesdk.transport")
    redact_logs(Key(KEY), ("somesdk",))
    try:
        raise ValueError(f"bad {KEY}")
    except ValueError:
        logger.exception("refused %s", KEY)
        logger.error("%d %d", KEY)
    assert KEY not in caplog.text
    assert caplog.text.count("[key]") == 3


def test_a_key_does_not_print():
    key = Key(KEY)
    assert KEY not in f"{key} {key!r} {[key]} {vars(key).keys()}"
    assert key.redact(f"bad {KEY}") == "bad [key]"


def test_an_unknown_client_names_the_known_ones():
    with pytest.raises(UserError, match="gemini, gemini-batch, gemini-legacy, openai, replay"):
        clients.open_client("claude", model="m", key_file=None, timeout_s=1.0, replay=None)


def test_a_missing_sdk_names_the_command_that_gets_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "openai", None)
    monkeypatch.delitem(sys.modules, "e5jax.synthetic.openai_client", raising=False)
    with pytest.raises(UserError, match="pip install openai"):
        clients.open_client("openai", model="m", key_file=None, timeout_s=1.0, replay=None)


def test_retry_after_may_be_a_date():
    assert faults.retry_after({"Retry-After": "Thu, 01 Jan 1970 00:00:00 GMT"}) == 0.0
    assert faults.retry_after({"retry-after": "7"}) == 7.0
    assert faults.retry_after({"retry-after": "soon"}) is None


def test_replay_answers_what_the_ledger_was_asked_also_under_another_models_name(tmp_path):
    asked, lost = request(1, "write"), request(2, "write")
    answer = Answer(
        text="{}", finish_reason="stop", prompt_tokens=1, answer_tokens=2, model_version="v", response_id="r"
    )
    lines = [
        entries.to_line(entries.entry(asked, answer, None, Spent(1, 3, 1), "gemini")),
        entries.to_line(entries.entry(lost, None, "HTTP 400", Spent(0, 0, 1), "gemini")),
    ]
    (tmp_path / "answers-00000.jsonl").write_bytes(b"".join(lines))
    client = clients.open_client("replay", model="m", key_file=None, timeout_s=1.0, replay=str(tmp_path))
    other = dataclasses.replace(asked, sampling=Sampling(model="m", temperature=0.0, top_p=1.0, max_tokens=9))
    assert other.key != asked.key
    assert asyncio.run(client.ask(other)) == answer
    for refused, said in ((lost, "given up: HTTP 400"), (request(3, "write"), "never"), (request(1, "other"), "never")):
        with pytest.raises(Refused, match=said):
            asyncio.run(client.ask(refused))


def test_no_client_imports_jax():
    import subprocess

    modules = "clients, gemini, gemini_batch, gemini_legacy, openai_client, replay"
    code = f"import sys\nfrom e5jax.synthetic import {modules}\nassert 'jax' not in sys.modules"
    for sdk in SDKS.values():
        pytest.importorskip(sdk)
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)
