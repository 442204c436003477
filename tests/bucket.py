"""A stand-in for Google Cloud Storage's JSON API on loopback: what gcsfs and TensorStore ask of it, in memory."""

import base64
import email
import hashlib
import json
import re
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, unquote, urlsplit


OBJECT = re.compile(r"(?:/download)?/storage/v1/b/([^/]+)/o/(.+)")
REWRITE = re.compile(r"/storage/v1/b/([^/]+)/o/(.+)/(?:rewriteTo|copyTo)/b/([^/]+)/o/(.+)")
MOVE = re.compile(r"/storage/v1/b/([^/]+)/o/(.+)/moveTo/o/(.+)")
LIST, BUCKET = re.compile(r"/storage/v1/b/([^/]+)/o"), re.compile(r"/storage/v1/b/([^/]+)")
UPLOAD = re.compile(r"/upload/storage/v1/b/([^/]+)/o")


class Refused(Exception):
    """(status, why)"""


class Objects:
    """{(bucket, name): (generation, bytes)}, changed one at a time."""

    def __init__(self, buckets):
        self.buckets, self.stored, self.uploads = set(buckets), {}, {}
        self._lock, self._generation = threading.Lock(), 1_000

    def find(self, bucket, name):
        if bucket not in self.buckets or (bucket, name) not in self.stored:
            raise Refused(404, f"no {name} in {bucket}")
        return self.stored[bucket, name]

    def put(self, bucket, name, content, match):
        with self._lock:
            if bucket not in self.buckets:
                raise Refused(404, f"no bucket {bucket}")
            self._check(bucket, name, match)
            self._generation += 1
            self.stored[bucket, name] = self._generation, content
        return self.told(bucket, name)

    def remove(self, bucket, name, match):
        with self._lock:
            self.find(bucket, name)
            self._check(bucket, name, match)
            del self.stored[bucket, name]

    def _check(self, bucket, name, match):
        there = self.stored.get((bucket, name), (0,))[0]
        if match is not None and int(match) != there:
            raise Refused(412, f"generation {there}, not {match}")

    def told(self, bucket, name):
        generation, content = self.find(bucket, name)
        md5 = base64.b64encode(hashlib.md5(content).digest()).decode()
        facts = {"kind": "storage#object", "bucket": bucket, "name": name, "size": str(len(content)), "md5Hash": md5}
        return facts | {"generation": str(generation), "metageneration": "1", "etag": f"{generation}"}

    def listed(self, bucket, prefix, delimiter):
        if bucket not in self.buckets:
            raise Refused(404, f"no bucket {bucket}")
        below = lambda n: n[: n.index(delimiter, len(prefix)) + 1] if delimiter in n[len(prefix) :] else None
        with self._lock:  # a listing is of one moment
            names = sorted(n for b, n in self.stored if b == bucket and n.startswith(prefix))
            items = [self.told(bucket, n) for n in names if not delimiter or below(n) is None]
        folders = sorted({below(n) for n in names} - {None}) if delimiter else []
        return {"kind": "storage#objects", "items": items, "prefixes": folders}


class Handler(BaseHTTPRequestHandler):
    """One request; `objects` is the server's."""

    protocol_version, disable_nagle_algorithm, wbufsize = "HTTP/1.1", True, -1
    objects: Objects

    def log_message(self, *_):
        pass

    def answer(self, status, content=b"", headers=()):
        content = content if isinstance(content, bytes) else json.dumps(content).encode()
        self.send_response(status)
        for name, value in (*headers, ("Content-Length", str(len(content)))):
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(content)

    def handle_any(self):
        url = urlsplit(self.path)
        words = {key: values[0] for key, values in parse_qs(url.query).items()}
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        try:
            self.answer(*self.reply(self.command, url.path, words, body))
        except Refused as refused:
            status, why = refused.args
            self.answer(status, {"error": {"code": status, "message": why}})

    do_GET = do_POST = do_PUT = do_DELETE = handle_any

    def reply(self, verb, path, words, body):
        match = words.get("ifGenerationMatch")
        if path.startswith("/batch/"):
            return self.batch(body)
        if "upload_id" in words:
            return self.chunk(words["upload_id"], body)
        if found := UPLOAD.fullmatch(path):
            return self.upload(found[1], words, body, match)
        if found := REWRITE.fullmatch(path):
            content = self.objects.find(found[1], unquote(found[2]))[1]
            made = self.objects.put(found[3], unquote(found[4]), content, match)
            return 200, {"kind": "storage#rewriteResponse", "done": True, "resource": made}
        if found := MOVE.fullmatch(path):
            bucket, name, to = found[1], unquote(found[2]), unquote(found[3])
            made = self.objects.put(bucket, to, self.objects.find(bucket, name)[1], None)
            self.objects.remove(bucket, name, None)
            return 200, made
        if found := OBJECT.fullmatch(path):
            bucket, name = found[1], unquote(found[2])
            if verb == "DELETE":
                self.objects.remove(bucket, name, match)
                return (204,)
            if words.get("alt") != "media":
                return 200, self.objects.told(bucket, name)
            return self.content(*self.objects.find(bucket, name), words)
        if found := LIST.fullmatch(path):
            return 200, self.objects.listed(found[1], words.get("prefix", ""), words.get("delimiter"))
        if (found := BUCKET.fullmatch(path)) and found[1] in self.objects.buckets:
            return 200, {"kind": "storage#bucket", "name": found[1]}
        raise Refused(404, path)

    def content(self, generation, content, words):
        headers = [("X-Goog-Generation", str(generation))]
        if words.get("ifGenerationNotMatch") == str(generation):
            return 304, b"", headers
        if found := re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", "")):
            start, end = int(found[1]), min(int(found[2] or len(content)), len(content) - 1)
            if start >= len(content):
                raise Refused(416, "beyond its end")
            headers.append(("Content-Range", f"bytes {start}-{end}/{len(content)}"))
            return 206, content[start : end + 1], headers
        return 200, content, headers

    def upload(self, bucket, words, body, match):
        kind, name = words["uploadType"], words.get("name")
        if kind == "multipart":
            # by hand: Python's parser takes a content's last "\r" for a part of the line end before the boundary
            boundary = b"\n--" + self.headers["Content-Type"].split('boundary="')[1].rstrip('"').encode()
            facts, content = (part.partition(b"\n\n")[2] for part in (b"\n" + body).split(boundary)[1:3])
            name, body = json.loads(facts)["name"], content
        if kind == "resumable":
            id_ = str(len(self.objects.uploads))
            self.objects.uploads[id_] = [bucket, name or json.loads(body)["name"], match, b""]
            where = f"http://{self.headers['Host']}/upload/storage/v1/b/{bucket}/o?uploadType=resumable&upload_id={id_}"
            return 200, b"", [("Location", where)]
        return 200, self.objects.put(bucket, name, body, match)

    def chunk(self, id_, body):
        upload = self.objects.uploads[id_]
        upload[3] += body
        bucket, name, match, content = upload
        if self.headers["Content-Range"].endswith("*"):
            return 308, b"", [("Range", f"bytes=0-{len(content) - 1}")]
        return 200, self.objects.put(bucket, name, content, match)

    def batch(self, body):
        told = f"Content-Type: {self.headers['Content-Type']}\r\n\r\n".encode()
        parts, answers = email.message_from_bytes(told + body).get_payload(), []
        for part in parts:
            verb, path = part.get_payload().strip().split()[:2]
            url = urlsplit(path)
            try:
                status = self.reply(verb, url.path, {}, b"")[0]
            except Refused as refused:
                status = refused.args[0]
            answers.append(
                f"Content-ID: <response-{part['Content-ID'].strip('<>')}>\r\n\r\nHTTP/1.1 {status} X\r\n\r\n"
            )
        text = "".join(f"--x\r\nContent-Type: application/http\r\n{answer}\r\n" for answer in answers) + "--x--"
        return 200, text.encode(), [("Content-Type", "multipart/mixed; boundary=x")]


def serve(*buckets):
    """-> (server, already running, its address)."""
    ThreadingHTTPServer.handle_error = lambda *_: None  # who asked has gone away
    handler = type("Handler", (Handler,), {"objects": Objects(buckets)})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, daemon=True).start()
    return server, f"http://127.0.0.1:{server.server_port}"
