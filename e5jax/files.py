"""Files that are there whole or not at all, on a disk or (epath's paths) in a bucket, which has only whole ones."""

import contextlib
import json
import os
import secrets
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

import fsspec


DELETED = ".deleted-"


def partial(path: Path) -> Path:
    """A name beside a file that no other writer has, on this machine or another: process numbers are not enough."""
    return path.with_name(f".{path.name}.{secrets.token_hex(6)}")


@contextlib.contextmanager
def whole(path: Path) -> Iterator[BinaryIO]:
    """Written beside its place, then renamed: a reader never sees half of it, a killed writer leaves the old one."""
    aside = partial(path) if isinstance(path, Path) else path
    try:
        with aside.open("wb") as file:
            yield file
        if aside is not path:
            os.replace(aside, path)
    except BaseException:
        if aside is not path:
            aside.unlink(missing_ok=True)
        raise


def write_text(path: Path, text: str) -> None:
    """UTF-8, whole or not at all."""
    with whole(path) as file:
        file.write(text.encode("utf-8"))


def write_json(path: Path, value) -> None:
    """A JSON value, indented for people."""
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False) + "\n")


def sizes(folder: Path) -> dict[str, int]:
    """{name within the folder: bytes} of every file in it, however deep. A link counts as one, wherever it points."""
    if isinstance(folder, Path):
        found = (path for path in folder.rglob("*") if path.is_symlink() or not path.is_dir())
        return {path.relative_to(folder).as_posix(): path.lstat().st_size for path in found}
    fs, root = fsspec.url_to_fs(str(folder))
    return {path[len(root) + 1 :]: told["size"] for path, told in fs.find(root, detail=True).items()}


def remove_tree(folder: Path) -> None:
    """The folder and all in it. Renamed first, where it can be: who is killed here leaves no half of it."""
    if isinstance(folder, Path):
        shutil.rmtree(folder.rename(folder.with_name(f"{DELETED}{folder.name}")))
    else:
        folder.rmtree()
