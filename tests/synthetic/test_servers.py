import json
import subprocess
import sys
import urllib.error
import urllib.request

import pytest

from tests.synthetic.sentences import PHRASES
from tests.synthetic.servers import Fault, Server


def post(url: str, prompt: str, schema: dict | None = None) -> str:
    body = {"contents": [{"parts": [{"text": prompt}]}], "generationConfig": {"responseJsonSchema": schema}}
    asked = urllib.request.Request(
        f"{url}/v1beta/models/m:generateContent", json.dumps(body).encode(), {"x-goog-api-key": "k"}
    )
    with urllib.request.urlopen(asked, timeout=10) as response:
        return json.load(response)["candidates"][0]["content"]["parts"][0]["text"]


def strings(*keys: str) -> dict:
    return {"type": "object", "properties": {key: {"type": "string"} for key in keys}}


def test_the_same_request_has_the_same_answer_and_is_counted():
    with Server() as one, Server() as other:
        assert post(one.url, "write") == post(one.url, "write") == post(other.url, "write")
        assert post(one.url, "write more") != post(one.url, "write")
        assert sorted(one.asked.values()) == [1, 3]


def test_answers_have_the_keys_of_the_schema_or_else_of_the_prompt():
    with Server() as server:
        assert set(json.loads(post(server.url, "write", strings("label", "input_text")))) == {"label", "input_text"}
        assert set(json.loads(post(server.url, 'write "S1" and "S2"'))) == {"S1", "S2"}
        assert len(set(json.loads(post(server.url, "a list", {"type": "array", "items": {"type": "string"}})))) == 20
        ranking = json.loads(post(server.url, "[1] a\n[2] b\n[3] c", {"type": "array", "items": {"type": "integer"}}))
        assert sorted(ranking) == [1, 2, 3]


@pytest.mark.parametrize("language", ["Polish", "Japanese", "Arabic"])
def test_answers_are_in_the_language_asked_for(language):
    written = "".join(PHRASES[language])
    with Server() as server:
        said = json.loads(post(server.url, f"All in {language}.", strings("user_query")))["user_query"]
        pair = json.loads(post(server.url, f"S1 in English, both in {language}", strings("S1", "S2")))
    assert any(word in said for word in written.split("|"))
    assert any(phrase in pair["S2"] for phrase in written.split("|"))
    assert any(phrase in pair["S1"] for phrase in "".join(PHRASES["English"]).split("|"))


def test_a_fault_strikes_each_prompt_so_many_times_and_all_of_them_so_many():
    def status(prompt):
        try:
            post(server.url, prompt)
            return 200
        except urllib.error.HTTPError as error:
            return error.code

    with Server(faults=[Fault(kind="unavailable", match="a", times=1), Fault(kind="internal", total=2)]) as server:
        assert [status("a"), status("a"), status("b"), status("b"), status("a")] == [503, 500, 500, 200, 200]
    with Server(faults=[Fault(kind="internal", share=0.3)]) as server:
        struck = [status(f"prompt {i}") for i in range(100)]
        assert 15 < struck.count(500) < 45
        assert struck == [status(f"prompt {i}") for i in range(100)]


def test_the_command_prints_its_address_and_logs_what_it_is_asked(tmp_path):
    log = tmp_path / "asked.jsonl"
    command = [
        sys.executable,
        "-m",
        "tests.synthetic.servers",
        "--log",
        str(log),
        "--fault",
        "internal,match=bad,times=1",
    ]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            url = process.stdout.readline().strip()
            post(url, "good")
            with pytest.raises(urllib.error.HTTPError):
                post(url, "bad")
        finally:
            process.terminate()
    assert [json.loads(line)["fault"] for line in log.read_text().splitlines()] == [None, "internal"]
