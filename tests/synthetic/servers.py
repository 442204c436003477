"""A stand-in for Gemini's and OpenAI's servers: their wire formats on loopback, with faults that a test scripts.

    with Server(faults=[Fault(kind="unavailable", share=0.1, times=1)]) as server:
        monkeypatch.setenv("GOOGLE_GEMINI_BASE_URL", server.url)        # OPENAI_BASE_URL: server.url + "/v1"

    python -m tests.synthetic.servers --port 0 --log asked.jsonl --fault unavailable,share=0.1,times=1

An answer is a pure function of the request's body: JSON with the keys its schema (or else its prompt) asks for, in the
languages that the prompt names. Knows Gemini's generateContent, Files and batches, and OpenAI's chat completions.
"""

import argparse
import collections
import dataclasses
import hashlib
import json
import os
import random
import re
import socket
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, urlsplit

from tests.synthetic.sentences import PHRASES, task, text


KEYS = (
    *("user_query", "positive_document", "hard_negative_document", "input_text", "label", "misleading_label", "input"),
    *("S1", "S2", "S3"),
)
LONG = ("positive_document", "hard_negative_document", "input_text")
PROTO_TYPES = {1: "STRING", 2: "NUMBER", 3: "INTEGER", 4: "BOOLEAN", 5: "ARRAY", 6: "OBJECT"}
# google-generativeai asks for enums as numbers.
PROTO_FINISH = {"STOP": 1, "MAX_TOKENS": 2, "SAFETY": 3, "RECITATION": 4, "OTHER": 5}
GOOGLE = "type.googleapis.com/google.rpc."
PER_DAY = {"quotaId": "GenerateRequestsPerDayPerProjectPerModel-FreeTier", "quotaMetric": "generate_requests"}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Fault:
    """What goes wrong, with which requests, and how often."""

    kind: str
    """One of ERRORS, ANSWERS or slow, dropped, html, blocked, empty, missing, null, null_response, torn (the last four
    for lines of a batch only)."""
    match: str = ""
    """Only prompts that hold this."""
    share: float = 1.0
    """Only this share of them, drawn by their content."""
    times: int | None = None
    """So many times each prompt; None: always."""
    total: int | None = None
    """So many times in all: a burst."""
    seconds: float = 30.0
    """How slow `slow` is."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Error:
    """An HTTP error as both APIs put it; `details` is Gemini's, `code` OpenAI's."""

    status: int
    name: str
    message: str
    details: tuple = ()
    headers: tuple[tuple[str, str], ...] = ()
    code: str | None = None


ERRORS = {
    "throttled": Error(status=429, name="RESOURCE_EXHAUSTED", message="Too many requests", code="rate_limit_exceeded"),
    "throttled_retry_info": Error(
        status=429,
        name="RESOURCE_EXHAUSTED",
        message="Too many requests a minute",
        details=({"@type": f"{GOOGLE}RetryInfo", "retryDelay": "0.250s"},),
        headers=(("Retry-After-Ms", "250"),),
        code="rate_limit_exceeded",
    ),
    "throttled_header": Error(
        status=429, name="RESOURCE_EXHAUSTED", message="Too many requests", headers=(("Retry-After", "1"),)
    ),
    "daily_quota": Error(
        status=429,
        name="RESOURCE_EXHAUSTED",
        message="You exceeded your current quota",
        details=(
            {"@type": f"{GOOGLE}QuotaFailure", "violations": [PER_DAY]},
            {"@type": f"{GOOGLE}RetryInfo", "retryDelay": "12s"},
        ),
        code="insufficient_quota",
    ),
    "timeout": Error(status=408, name="CANCELLED", message="The request took too long"),
    "internal": Error(status=500, name="INTERNAL", message="An internal error has occurred"),
    "unavailable": Error(status=503, name="UNAVAILABLE", message="The model is overloaded"),
    "bad_request": Error(status=400, name="INVALID_ARGUMENT", message="The input is too long", code="invalid_request"),
    "bad_key": Error(
        status=400,
        name="INVALID_ARGUMENT",
        message="API key not valid: KEY",  # KEY: some gateways say the key that they refuse
        details=({"@type": f"{GOOGLE}ErrorInfo", "reason": "API_KEY_INVALID", "domain": "googleapis.com"},),
        code="invalid_api_key",
    ),
    "unauthorized": Error(status=401, name="UNAUTHENTICATED", message="Incorrect key: KEY", code="invalid_api_key"),
    "forbidden": Error(status=403, name="PERMISSION_DENIED", message="The key KEY may not use this model"),
    "no_model": Error(status=404, name="NOT_FOUND", message="No such model", code="model_not_found"),
    "no_schema": Error(status=400, name="INVALID_ARGUMENT", message="response_format of type json_schema is unknown"),
    "no_format": Error(status=400, name="INVALID_ARGUMENT", message="response_format is unknown"),
    "no_max_tokens": Error(
        status=400, name="INVALID_ARGUMENT", message="'max_tokens' is not supported: use 'max_completion_tokens'"
    ),
}
# What the model says -> what it says instead, and why it stopped.
ANSWERS = {
    "safety": lambda said: ("", "SAFETY"),
    "recitation": lambda said: ("", "RECITATION"),
    "max_tokens": lambda said: (said[: len(said) // 2], "MAX_TOKENS"),
    "invalid_json": lambda said: (f"Here you are: {said[:-1]}", "STOP"),
    "wrong_schema": lambda said: (json.dumps({"query": 7, "documents": []}), "STOP"),
    "extra_fields": lambda said: (re.sub(r'"}$', '", "explanation": "It fits."}', said), "STOP"),
    "huge": lambda said: (re.sub(r'"}$', " " + "word " * 1_000_000 + '"}', said), "STOP"),
}


@dataclasses.dataclass(kw_only=True)
class Job:
    """A batch job of Gemini's."""

    name: str
    display_name: str
    model: str
    lines: list[dict]
    outcome: str
    polls: int
    file: str | None = None
    """Its answers, once it was found done."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Asked:
    """A request for one answer, of either API, by itself or as a line of a batch."""

    body: dict
    prompt: str
    schema: dict | None
    max_tokens: int
    content: str
    """sha256 of the body: two requests with it are the same one, asked twice."""


class Server:
    """Serves in threads while the `with` block lasts. Change `faults`, `jobs` and `polls` at any time."""

    def __init__(self, *, faults: tuple | list = (), port: int = 0, log: str | None = None):
        self.faults = list(faults)
        self.jobs: list[str] = []
        """Outcomes of the next batch jobs: SUCCEEDED (also when the list is empty), EXPIRED, FAILED, CANCELLED."""
        self.polls = 1
        """How often a job is PENDING or RUNNING before it ends."""
        self.asked = collections.Counter()
        """Requests by content: above 1 where one was sent twice."""
        self.prompts = collections.Counter()
        self.bodies: list[dict] = []
        self.keys: set[str] = set()
        self.usage = collections.Counter()
        """prompt and answer tokens that were billed."""
        self.most_at_once = 0
        self.batches: dict[str, Job] = {}
        self._files: dict[str, bytes] = {}
        self._suffered = collections.Counter()
        self._lock = threading.Lock()
        self._at_once = 0
        self._log = None if log is None else os.open(log, os.O_CREAT | os.O_WRONLY | os.O_APPEND)
        self._http = _HTTPServer(("127.0.0.1", port), _Handler)
        self._http.stand_in = self
        self.url = f"http://127.0.0.1:{self._http.server_address[1]}"

    def __enter__(self):
        threading.Thread(target=self._http.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
        return self

    def __exit__(self, *exc):
        self._http.shutdown()
        self._http.server_close()

    def serve_forever(self):
        """Serve in this thread."""
        self._http.serve_forever()

    def count(self, asked: Asked) -> Fault | None:
        """Write a request down -> what is to go wrong with it."""
        with self._lock:
            self.asked[asked.content] += 1
            self.prompts[asked.prompt] += 1
            self.bodies.append(asked.body)
            fault = next((fault for fault in self.faults if self._strikes(fault, asked)), None)
        if self._log is not None:
            line = {"content": asked.content, "fault": fault.kind if fault else None, "time": time.time()}
            os.write(self._log, (json.dumps(line) + "\n").encode())
        return fault

    def _strikes(self, fault: Fault, asked: Asked) -> bool:
        drawn = int(hashlib.sha256(f"{fault.kind}{asked.content}".encode()).hexdigest()[:8], 16) / 2**32
        if fault.match not in asked.prompt or drawn >= fault.share:
            return False
        if fault.times is not None and self._suffered[fault, asked.content] >= fault.times:
            return False
        if fault.total is not None and self._suffered[fault] >= fault.total:
            return False
        self._suffered[fault, asked.content] += 1
        self._suffered[fault] += 1
        return True

    def bill(self, prompt: int, answer: int):
        """Add to what the caller owes."""
        with self._lock:
            self.usage.update(prompt=prompt, answer=answer)

    def entered(self, by: int):
        """One request more or less under way."""
        with self._lock:
            self._at_once += by
            self.most_at_once = max(self.most_at_once, self._at_once)

    def keep(self, content: bytes) -> str:
        """A file's content -> its name."""
        with self._lock:
            name = f"files/{len(self._files) + 1:06d}"
            self._files[name] = content
        return name

    def file(self, name: str) -> bytes:
        """A file's content."""
        return self._files[name]

    def submit(self, model: str, display_name: str, file: str) -> Job:
        """A new batch job."""
        lines = [json.loads(line) for line in self._files[file].splitlines()]
        with self._lock:
            outcome = self.jobs.pop(0) if self.jobs else "SUCCEEDED"
            job = Job(
                name=f"batches/job{len(self.batches) + 1:06d}",
                display_name=display_name,
                model=model,
                lines=lines,
                outcome=outcome,
                polls=self.polls,
            )
            self.batches[job.name] = job
        return job


class _HTTPServer(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 1_024
    stand_in: Server

    def handle_error(self, request, client_address):
        """A client that hung up is no news."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def setup(self):
        super().setup()
        self.connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def log_message(self, *args):
        pass

    def do_GET(self):
        self._route("GET")

    def do_POST(self):
        self._route("POST")

    def do_DELETE(self):
        self._route("DELETE")

    def _route(self, verb: str):
        self.server.stand_in.entered(1)
        try:
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            key = self.headers.get("x-goog-api-key") or (self.headers.get("Authorization") or "").removeprefix(
                "Bearer "
            )
            self.key = key or self.headers.get("api-key") or ""
            self.server.stand_in.keys.add(self.key)
            path = urlsplit(self.path)
            for pattern, handle in ROUTES:
                if match := re.fullmatch(pattern, f"{verb} {path.path}"):
                    self.query = parse_qs(path.query)
                    return handle(self, body, *match.groups())
            self._send(404, {"error": {"code": 404, "message": f"no {self.path}", "status": "NOT_FOUND"}}, ())
        finally:
            self.server.stand_in.entered(-1)

    def _gemini(self, body: bytes, model: str):
        asked = _asked_gemini(json.loads(body))
        fault = self.server.stand_in.count(asked)
        if self._fails(fault, lambda error: _gemini_error(error, self.key)):
            return
        numbers = any("enum-encoding=int" in value for values in self.query.values() for value in values)
        content = _gemini_content(asked, model, fault, numbers, self.server.stand_in)
        self._send_or_drop(fault, content)

    def _openai(self, body: bytes):
        parsed = json.loads(body)
        asked = _asked_openai(parsed)
        fault = self.server.stand_in.count(asked)
        wanted = (parsed.get("response_format") or {}).get("type")
        known = {"no_schema": wanted != "json_schema", "no_format": wanted is None}
        known["no_max_tokens"] = "max_tokens" not in parsed
        if fault is not None and known.get(fault.kind):
            fault = None  # what the server does not know was not asked for
        if self._fails(fault, lambda error: _openai_error(error, self.key)):
            return
        if fault and fault.kind == "blocked":
            error = {"message": "The prompt was filtered", "code": "content_filter", "type": None, "param": "prompt"}
            return self._send(400, {"error": error}, ())
        self._send_or_drop(fault, _openai_content(asked, parsed["model"], fault, self.server.stand_in))

    def _upload_start(self, body: bytes):
        self._send(200, {}, (("X-Goog-Upload-URL", f"{self.server.stand_in.url}/upload/part"),))

    def _upload_part(self, body: bytes):
        name = self.server.stand_in.keep(body)
        file = {"name": name, "uri": f"{self.server.stand_in.url}/v1beta/{name}", "sizeBytes": str(len(body))}
        self._send(200, {"file": file}, (("X-Goog-Upload-Status", "final"),))

    def _download(self, body: bytes, name: str):
        self._send_bytes(200, self.server.stand_in.file(name), ())

    def _create_batch(self, body: bytes, model: str):
        batch = json.loads(body)["batch"]
        job = self.server.stand_in.submit(model, batch.get("displayName", ""), batch["inputConfig"]["fileName"])
        self._send(200, _operation(job, "PENDING", None), ())

    def _batch(self, body: bytes, name: str):
        server = self.server.stand_in
        job = server.batches[name]
        if job.polls > 0:
            job.polls -= 1
            return self._send(200, _operation(job, "RUNNING" if job.polls else "PENDING", None), ())
        if job.outcome == "SUCCEEDED" and job.file is None:  # read again, it is answered no second time
            job.file = server.keep(_batch_lines(job, server))
        self._send(200, _operation(job, job.outcome, job.file), ())

    def _list_batches(self, body: bytes):
        jobs = [_operation(job, "PENDING", None) for job in self.server.stand_in.batches.values()]
        self._send(200, {"operations": jobs}, ())

    def _deleted(self, body: bytes, name: str):
        self._send(200, {}, ())

    def _fails(self, fault: Fault | None, dialect) -> bool:
        """Send the error that a fault is, if it is one."""
        if fault is None or fault.kind not in (*ERRORS, "slow", "html"):
            return False
        if fault.kind == "slow":
            time.sleep(fault.seconds)
            return False
        if fault.kind == "html":
            self._send_bytes(200, b"<html>a proxy's page</html>", ())
            return True
        error = ERRORS[fault.kind]
        self._send(error.status, dialect(error), (*error.headers, ("X-Echo", self.key)))
        return True

    def _send_or_drop(self, fault: Fault | None, content: dict):
        data = json.dumps(content, ensure_ascii=False).encode()
        if fault is None or fault.kind != "dropped":
            return self._send_bytes(200, data, ())
        self._send_bytes(200, data[: len(data) // 2], (), length=len(data))
        self.close_connection = True
        self.connection.shutdown(socket.SHUT_RDWR)

    def _send(self, status: int, content: dict, headers: tuple):
        self._send_bytes(status, json.dumps(content).encode(), headers)

    def _send_bytes(self, status: int, data: bytes, headers: tuple, length: int | None = None):
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data) if length is None else length))
        for name, value in headers:
            self.send_header(name, value)
        self._headers_buffer.append(b"\r\n" + data)  # one packet: two would wait for each other's receipt
        self.flush_headers()


ROUTES = (
    (r"POST /v1beta/models/([^:]+):generateContent", _Handler._gemini),
    (r"POST /v1beta/models/([^:]+):batchGenerateContent", _Handler._create_batch),
    (r"GET /v1beta/(batches/[^/:]+)", _Handler._batch),
    (r"GET /v1beta/batches", _Handler._list_batches),
    (r"DELETE /v1beta/((?:files|batches)/[^/:]+)", _Handler._deleted),
    (r"POST /upload/v1beta/files", _Handler._upload_start),
    (r"POST /upload/part", _Handler._upload_part),
    (r"GET /v1beta/(files/[^/:]+):download", _Handler._download),
    (r"POST (?:/v1|/openai/deployments/[^/]+|/openai/v1)/chat/completions", _Handler._openai),
)


def _content(body: dict) -> str:
    return hashlib.sha256(json.dumps(body, sort_keys=True).encode()).hexdigest()


def _asked_gemini(body: dict) -> Asked:
    config = body.get("generationConfig", {})
    prompt = "".join(part.get("text", "") for content in body["contents"] for part in content["parts"])
    return Asked(
        body=body,
        prompt=prompt,
        schema=config.get("responseJsonSchema") or config.get("responseSchema"),
        max_tokens=config.get("maxOutputTokens", 8_192),
        content=_content(body),
    )


def _asked_openai(body: dict) -> Asked:
    return Asked(
        body=body,
        prompt="".join(message["content"] for message in body["messages"]),
        schema=((body.get("response_format") or {}).get("json_schema") or {}).get("schema"),
        max_tokens=body.get("max_tokens") or body.get("max_completion_tokens") or 8_192,
        content=_content(body),
    )


def answer(asked: Asked) -> str:
    """What the model says: JSON by the schema, or by the keys that the prompt names, or a list of tasks."""
    rng = random.Random(asked.content)
    schema = asked.schema
    if schema is None:
        named = [key for key in KEYS if re.search(rf"[\"'`]{key}[\"'`]", asked.prompt)]
        schema = (
            {"type": "object", "properties": {key: {"type": "string"} for key in named}} if named else {"type": "array"}
        )
    return json.dumps(_value(schema, "", _languages(asked.prompt), asked.prompt, rng), ensure_ascii=False)


def _value(schema: dict, key: str, languages: list[str], prompt: str, rng: random.Random):
    kind = str(PROTO_TYPES.get(schema.get("type"), schema.get("type"))).lower()
    if key == "ranking":
        numbers = re.findall(r"^(\d+)\. ", prompt, re.MULTILINE)
        return " ".join(rng.sample(numbers, len(numbers)))
    if kind == "object":
        return {k: _value(v, k, languages, prompt, rng) for k, v in schema.get("properties", {}).items()}
    if kind == "array":
        items = schema.get("items", {"type": "string"})
        if str(PROTO_TYPES.get(items.get("type"), items.get("type"))).lower() in ("integer", "number"):
            numbers = sorted({int(n) for n in re.findall(r"^\W*(\d+)\W", prompt, re.MULTILINE)}) or list(range(1, 21))
            return rng.sample(numbers, len(numbers))
        return [task(rng) for _ in range(20)]
    if kind in ("integer", "number"):
        return rng.randrange(1, 6)
    if key == "task":
        return task(rng)
    language = languages[-1] if key in ("S2", "S3") else languages[0]
    return text(language, 4 if key in LONG else 1, rng)


def _languages(prompt: str) -> list[str]:
    """Languages that a prompt wants things in, in its order; English where it names none that we write."""
    names = "|".join(PHRASES)
    return re.findall(rf"\bin ({names})\b", prompt) or re.findall(rf"\b({names})\b", prompt) or ["English"]


def _said(asked: Asked, fault: Fault | None, server: Server) -> tuple[str, str, int, int]:
    """-> text, why it stopped, prompt tokens, answer tokens; billed."""
    said, finish = answer(asked), "STOP"
    if fault is not None and fault.kind in ANSWERS:
        said, finish = ANSWERS[fault.kind](said)
    elif len(said) // 4 > asked.max_tokens - 5:
        said, finish = said[: (asked.max_tokens - 5) * 4], "MAX_TOKENS"
    tokens = len(asked.prompt) // 4 + 1, len(said) // 4 + 1
    server.bill(tokens[0], tokens[1] + 4)
    return said, finish, *tokens


def _gemini_content(asked: Asked, model: str, fault: Fault | None, numbers: bool, server: Server) -> dict:
    usage = {"promptTokenCount": len(asked.prompt) // 4 + 1, "totalTokenCount": len(asked.prompt) // 4 + 1}
    about = {"modelVersion": f"{model}-001", "responseId": asked.content[:16]}
    if fault is not None and fault.kind == "blocked":
        return {"promptFeedback": {"blockReason": 1 if numbers else "SAFETY"}, "usageMetadata": usage, **about}
    if fault is not None and fault.kind == "empty":
        return {"candidates": [], "usageMetadata": usage, **about}
    said, finish, prompt, written = _said(asked, fault, server)
    candidate = {"finishReason": PROTO_FINISH[finish] if numbers else finish, "index": 0}
    if said:
        candidate["content"] = {"role": "model", "parts": [{"text": said}]}
    usage = {
        "promptTokenCount": prompt,
        "candidatesTokenCount": written,
        "thoughtsTokenCount": 4,
        "totalTokenCount": prompt + written + 4,
    }
    return {"candidates": [candidate], "usageMetadata": usage, **about}


def _openai_content(asked: Asked, model: str, fault: Fault | None, server: Server) -> dict:
    finishes = {"STOP": "stop", "MAX_TOKENS": "length", "SAFETY": "content_filter", "RECITATION": "content_filter"}
    said, finish, prompt, written = _said(asked, fault, server)
    choice = {"index": 0, "finish_reason": finishes[finish], "message": {"role": "assistant", "content": said}}
    return {
        "id": asked.content[:16],
        "object": "chat.completion",
        "created": 0,
        "model": f"{model}-001",
        "choices": [] if fault is not None and fault.kind == "empty" else [choice],
        "usage": {"prompt_tokens": prompt, "completion_tokens": written + 4, "total_tokens": prompt + written + 4},
    }


def _gemini_error(error: Error, key: str) -> dict:
    said = error.message.replace("KEY", key)
    return {"error": {"code": error.status, "message": said, "status": error.name, "details": list(error.details)}}


def _openai_error(error: Error, key: str) -> dict:
    said = error.message.replace("KEY", key)
    return {
        "error": {"message": said, "type": error.code or "invalid_request_error", "param": None, "code": error.code}
    }


def _operation(job: Job, state: str, file: str | None) -> dict:
    metadata = {
        "@type": "type.googleapis.com/google.ai.generativelanguage.v1main.GenerateContentBatch",
        "name": job.name,
        "model": f"models/{job.model}",
        "displayName": job.display_name,
        "state": f"BATCH_STATE_{state}",
        "createTime": "2026-01-01T00:00:00Z",
        "batchStats": {"requestCount": str(len(job.lines))},
    }
    if file is not None:
        metadata["output"] = {"responsesFile": file}
    return {"name": job.name, "metadata": metadata, "done": state not in ("PENDING", "RUNNING")}


def _batch_lines(job: Job, server: Server) -> bytes:
    lines = []
    for line in job.lines:
        asked = _asked_gemini(line["request"])
        fault = server.count(asked)
        kind = fault.kind if fault else None
        if kind == "missing":
            continue
        if kind in ERRORS:
            lines.append({"key": line["key"], "error": _gemini_error(ERRORS[kind], "")["error"]})
        elif kind in ("null", "null_response"):
            lines.append(None if kind == "null" else {"key": line["key"], "response": None})
        else:
            lines.append({"key": line["key"], "response": _gemini_content(asked, job.model, fault, False, server)})
            if kind == "torn":
                lines[-1] = json.dumps(lines[-1])[:100]
    written = [line if isinstance(line, str) else json.dumps(line, ensure_ascii=False) for line in lines]
    return "".join(line + "\n" for line in written).encode()


def _fault(words: str) -> Fault:
    """`unavailable,share=0.1,times=1` -> a Fault."""
    kind, *settings = words.split(",")
    types = {"match": str, "share": float, "times": int, "total": int, "seconds": float}
    given = dict(setting.split("=", 1) for setting in settings)
    return Fault(kind=kind, **{name: types[name](value) for name, value in given.items()})


if __name__ == "__main__":
    parser = argparse.ArgumentParser(prog="python -m tests.synthetic.servers")
    parser.add_argument("--port", type=int, default=0, help="0: any free one; the URL is the first line of the output")
    parser.add_argument("--log", help="a file that gets a line for each request, appended")
    parser.add_argument("--fault", action="append", default=[], type=_fault, help="KIND[,match=…][,share=…][,times=…]")
    arguments = parser.parse_args()
    server = Server(faults=arguments.fault, port=arguments.port, log=arguments.log)
    print(server.url, flush=True)
    server.serve_forever()
