"""Where files are: a path of this machine, or one in a bucket (gs://, s3://, az://).

What is read is brought here first, and again only where it changed. What is written goes up from a copy here, as it
changes. Only checkpoints and config.json, which many hosts read and write, are opened in the bucket itself.
"""

import contextlib
import functools
import hashlib
import json
import os
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path, PurePath

import fsspec
from etils import epath
from fsspec.config import conf

from e5jax import files
from e5jax.errors import FailedError, UserError


# Kept listings would hide what other hosts, and Orbax, have written since.
KINDS = ("gs", "s3", "az")
for _protocol in ("gcs", *KINDS):
    conf.setdefault(_protocol, {})["use_listings_cache"] = False

STAMP = ("size", "etag", "ETag", "generation", "md5Hash", "created", "mtime", "LastModified")
"""What a bucket says of an object that changes with its bytes."""
EVERY_S = 60.0
LISTING = ".listing.json"


def is_remote(name: str | PurePath) -> bool:
    """Whether a name is one of a bucket."""
    return "://" in str(name)


def place(name: str) -> Path | epath.Path:
    """The path itself, ~ expanded; what both kinds have in common can be done with it."""
    if not is_remote(name):
        return Path(name).expanduser()
    if name.split("://")[0] not in KINDS:
        raise UserError(f"{name}: no kind of place that is known; {', '.join(f'{k}://' for k in KINDS)} are")
    return epath.Path(name)


def beside(folder: Path | epath.Path) -> Path:
    """Where a folder's copy on this machine is: itself, or a folder in the cache."""
    if not is_remote(folder):
        return folder
    cache = Path(os.environ.get("XDG_CACHE_HOME", "~/.cache")).expanduser() / "e5jax" / "buckets"
    return cache / hashlib.sha256(str(folder).encode()).hexdigest()[:16] / PurePath(folder).name


@functools.cache
def local(name: str) -> Path:
    """A path to read from: the path itself, or a copy of the bucket's file or folder. Raises UserError without one.

    It is the same copy all along a process.
    """
    if not is_remote(name):
        return Path(name).expanduser()
    copy = Mirror(place(name), ())
    if not copy.pull():
        raise UserError(f"{name}: no such file or folder")
    return copy.here


def try_writing(folder: epath.Path) -> None:
    """Raises, in words, where the bucket takes no file: no such bucket, no credentials, no package for it."""
    with _said(str(folder)):
        probe = files.partial(folder / "probe")
        probe.write_text("e5jax")
        probe.unlink()


def send(folder: Path, to: epath.Path, last: str) -> None:
    """Every file of a folder into the bucket; the one named `last` when all others are there."""
    fs, root = fsspec.url_to_fs(str(to))
    names = sorted(files.sizes(folder), key=lambda name: name == last)
    with _said(str(to)):
        for part in (names[:-1], names[-1:]):
            fs.put([str(folder / name) for name in part], [f"{root}/{name}" for name in part])


def named(name: str) -> str:
    """A name that may be a hub's, a path's or a bucket's, as a library that knows no buckets takes it."""
    return str(local(name)) if is_remote(name) else name


@contextlib.contextmanager
def output(name: str) -> Iterator[Path]:
    """A folder (or file) to write to. One in a bucket is brought here, and goes up every minute and at the end."""
    if not is_remote(name):
        yield Path(name).expanduser()
        return
    copy = Mirror(place(name), ())
    copy.pull()
    ended = threading.Event()

    def now_and_then():
        while not ended.wait(EVERY_S):
            with contextlib.suppress(FailedError):  # the last one says it
                copy.push()

    pusher = threading.Thread(target=now_and_then, daemon=True)
    pusher.start()
    try:
        yield copy.here
    finally:
        ended.set()
        pusher.join()
        copy.push()


class Mirror:
    """A bucket's file or folder and its copy here."""

    def __init__(self, remote: epath.Path, without: Sequence[str]):
        """`without`: folders in it that stay where they are."""
        self._url, self._without = str(remote).rstrip("/"), tuple(f"{name}/" for name in without)
        self.here = beside(remote)
        self._listing = self.here.parent / LISTING
        self._sent: dict[str, tuple] = {}
        """What the copy's files were when both were the same."""
        self._lock = threading.Lock()

    def pull(self) -> bool:
        """Make the copy what the bucket has -> whether it has anything."""
        with self._lock, _said(self._url):
            there = self._there()
            before = json.loads(self._listing.read_text()) if self._listing.exists() else {}
            names = [n for n in there if there[n] != before.get(n) or not self._path(n).is_file()]
            for name in self._here().keys() - there.keys():
                self._path(name).unlink()
            pairs = [(self._path(name), files.partial(self._path(name))) for name in names]
            for path, _ in pairs:
                path.parent.mkdir(parents=True, exist_ok=True)
            fs, root = fsspec.url_to_fs(self._url)
            if pairs:
                fs.get([f"{root}/{name}".rstrip("/") for name in names], [str(partial) for _, partial in pairs])
            for path, partial in pairs:
                os.replace(partial, path)
            self.here.parent.mkdir(parents=True, exist_ok=True)
            files.write_json(self._listing, there)
            self._sent = self._here()
            return bool(there)

    def push(self) -> None:
        """Send what changed here since, and take away there what was taken away here."""
        with self._lock, _said(self._url):
            here = self._here()
            names = [name for name in here if here[name] != self._sent.get(name)]
            fs, root = fsspec.url_to_fs(self._url)
            if names:
                fs.put([str(self._path(name)) for name in names], [f"{root}/{name}".rstrip("/") for name in names])
            if gone := self._sent.keys() - here.keys():
                fs.rm([f"{root}/{name}" for name in gone])
            self._sent = here
            files.write_json(self._listing, self._there())

    def _path(self, name):
        return self.here / name if name else self.here

    def _here(self):
        """{name: what changes with its bytes} of the copy; a file's own name is empty."""
        if self.here.is_file():
            return {"": _state(self.here)}
        found = (path for path in self.here.rglob("*") if path.is_file() and not path.name.startswith("."))
        return {path.relative_to(self.here).as_posix(): _state(path) for path in found}

    def _there(self):
        fs, root = fsspec.url_to_fs(self._url)
        fs.invalidate_cache()
        found = {}
        for path, told in fs.find(root, detail=True).items():
            name = path[len(root) :].lstrip("/")
            if not name.startswith(self._without) and not name.endswith("/"):
                found[name] = {key: str(told[key]) for key in STAMP if key in told}
                if ".." in PurePath(name).parts:
                    raise UserError(f"{self._url}: {name} leads out of its folder")
        return found


def _state(path):
    told = path.stat()
    return told.st_size, told.st_mtime_ns


@contextlib.contextmanager
def _said(url):
    """Errors of a bucket, of many kinds, in words."""
    try:
        yield
    except (UserError, FailedError):
        raise
    except ImportError as error:
        raise UserError(f"{url}: {error}; pip install 'e5jax[gcs]' brings what gs:// needs") from error
    except Exception as error:
        raise FailedError(f"{url}: {type(error).__name__}: {error}") from error
