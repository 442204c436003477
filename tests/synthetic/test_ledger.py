import asyncio
import errno
import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from e5jax.errors import FailedError, UserError
from e5jax.synthetic import entries, ledger
from e5jax.synthetic.budget import NOTHING, Spent
from e5jax.synthetic.ledger import Ledger
from tests.synthetic.asking import answer, request


COST = Spent(5_000, 30, 2)
ROOT = Path(__file__).parents[2]


def settled(number: int, gave_up: str | None = None, spent: Spent = COST) -> dict:
    asked = request(number)
    return entries.entry(asked, None if gave_up else answer(asked), gave_up, spent, "fake")


def fill(folder: Path, numbers, gave_up: str | None = None) -> list[bytes]:
    """-> the lines of the first file."""
    with Ledger(folder) as book:
        for number in numbers:
            book.write(settled(number, gave_up))
    return (folder / "answers-00000.jsonl").read_bytes().splitlines(keepends=True)


def numbers(folder: Path) -> list[int]:
    return [entry["request"]["number"] for entry in entries.read(folder)]


def keys(book: Ledger, count: int) -> list[int]:
    return [number for number in range(count) if request(number).key in book]


def test_what_was_appended_is_read_back_and_known_again(tmp_path):
    with Ledger(tmp_path) as book:
        asyncio.run(book.append(settled(0)))
        asyncio.run(book.append(settled(1, "refused: too long")))
    [first, second] = entries.read(tmp_path)
    assert first["request"]["drawn"] == {"language": "el"}
    assert first["request"]["sampling"]["max_tokens"] == 1_000
    assert first["answer"]["text"] == "answer to 0"
    assert (first["client"], first["cost"], first["tokens"], first["tries"]) == ("fake", 5_000, 30, 2)
    assert (second["answer"], second["gave_up"]) == (None, "refused: too long")
    with Ledger(tmp_path) as book:
        assert keys(book, 3) == [0, 1]
        assert [book.gave_up(request(n).key) for n in range(3)] == [False, True, False]
        assert book.spent == Spent(10_000, 60, 4)
        assert len(book) == 2


def test_a_line_is_plain_json_and_keeps_all_letters(tmp_path):
    [line] = fill(tmp_path, [0])
    assert "Ελληνικά".encode() in line
    assert list(json.loads(line)) == [
        *("crc32", "key", "cost", "tokens", "tries", "gave_up", "time", "client", "request", "answer")
    ]


def test_half_an_emoji_and_line_separators_survive(tmp_path):
    entry = settled(0)
    entry["answer"]["text"] = "half \ud83d, \u2028, \x85, \r\n, \0"
    with Ledger(tmp_path) as book:
        book.write(entry)
    assert [found["answer"]["text"] for found in entries.read(tmp_path)] == [entry["answer"]["text"]]


def test_files_have_a_fixed_number_of_records(tmp_path, monkeypatch):
    monkeypatch.setattr(ledger, "RECORDS_A_SEGMENT", 3)
    fill(tmp_path, range(4))
    fill(tmp_path, range(4, 8))
    assert [len(path.read_bytes().splitlines()) for path in entries.segments(tmp_path)] == [3, 3, 2]
    assert numbers(tmp_path) == list(range(8))
    assert [e["request"]["number"] for e in entries.read_segment(entries.segments(tmp_path)[1])] == [3, 4, 5]


def test_an_append_is_done_only_after_its_fsync(tmp_path, monkeypatch):
    synced = []

    async def work(book):
        fsync = os.fsync
        monkeypatch.setattr(os, "fsync", lambda fd: (time.sleep(0.05), fsync(fd), synced.append(1)))
        task = asyncio.create_task(book.append(settled(0)))
        await asyncio.sleep(0.02)
        assert not task.done() and not synced
        await task
        assert synced

    with Ledger(tmp_path) as book:
        asyncio.run(work(book))


def test_what_was_written_during_an_fsync_waits_for_another(tmp_path, monkeypatch):
    done = []

    async def append(book, number):
        await book.append(settled(number))
        done.append((number, len(synced)))

    async def work(book):
        fsync = os.fsync
        monkeypatch.setattr(os, "fsync", lambda fd: (time.sleep(0.05), fsync(fd), synced.append(1)))
        first = asyncio.create_task(append(book, 0))
        await asyncio.sleep(0.02)
        await asyncio.gather(first, append(book, 1))

    synced = []
    with Ledger(tmp_path) as book:
        asyncio.run(work(book))
    assert done == [(0, 1), (1, 2)]


def test_hundreds_of_appends_share_a_few_fsyncs(tmp_path, monkeypatch):
    synced = []

    async def work(book):
        fsync = os.fsync
        monkeypatch.setattr(os, "fsync", lambda fd: (fsync(fd), synced.append(1)))
        await asyncio.gather(*(book.append(settled(number)) for number in range(300)))

    with Ledger(tmp_path) as book:
        asyncio.run(work(book))
        assert len(synced) <= 3
    assert len(numbers(tmp_path)) == 300


def test_a_file_that_fails_to_sync_fails_for_good(tmp_path, monkeypatch):
    def broken(fd):
        raise OSError(errno.EIO, "Input/output error")

    with Ledger(tmp_path) as book:
        with monkeypatch.context() as patch, pytest.raises(FailedError, match="answers-00000"):
            patch.setattr(os, "fsync", broken)
            asyncio.run(book.append(settled(0)))
        with pytest.raises(FailedError, match="Input/output"):
            asyncio.run(book.append(settled(1)))
        with pytest.raises(FailedError):
            book.close()
        monkeypatch.setattr(book, "close", lambda: None)


@pytest.mark.parametrize("kept", [1, 50, -1])
def test_a_torn_last_line_is_set_aside_and_asked_again(tmp_path, kept, caplog):
    lines = fill(tmp_path, range(3))
    (tmp_path / "answers-00000.jsonl").write_bytes(b"".join(lines[:2]) + lines[2][:kept])
    with Ledger(tmp_path) as book:
        assert keys(book, 3) == [0, 1]
        assert book.damaged == 0
        book.write(settled(2))
    assert "answers-00000.jsonl:3" in caplog.text
    assert numbers(tmp_path) == [0, 1, 2]
    [row] = map(json.loads, (tmp_path / "damaged.jsonl").read_text().splitlines())
    assert (row["file"], row["line"]) == ("answers-00000.jsonl", 3)


def test_a_changed_letter_in_the_middle_is_set_aside_by_line_and_asked_again(tmp_path, caplog):
    lines = fill(tmp_path, range(3))
    changed = lines[1].replace(b"answer to 1", b"answer to 7")  # still JSON
    (tmp_path / "answers-00000.jsonl").write_bytes(lines[0] + changed + lines[2])
    for _ in range(2):
        with Ledger(tmp_path) as book:
            assert keys(book, 3) == [0, 2]
            assert book.damaged == 1
            assert book.spent.nanodollars == 15_000  # as if it had cost as much as the dearest
    assert numbers(tmp_path) == [0, 2]
    assert "answers-00000.jsonl:2" in caplog.text
    assert len((tmp_path / "damaged.jsonl").read_text().splitlines()) == 1
    assert (tmp_path / "answers-00000.jsonl").read_bytes() == lines[0] + changed + lines[2]


def test_bytes_that_are_no_text_are_set_aside(tmp_path):
    lines = fill(tmp_path, range(3))
    (tmp_path / "answers-00000.jsonl").write_bytes(lines[0] + b"\0" * 100 + b"\xff\n" + lines[2])
    with Ledger(tmp_path) as book:
        assert (keys(book, 3), book.damaged) == ([0, 2], 1)
    assert numbers(tmp_path) == [0, 2]


def test_a_line_of_other_hands_needs_no_checksum(tmp_path):
    lines = fill(tmp_path, range(2))
    plain = {name: value for name, value in json.loads(lines[1]).items() if name not in ("crc32", "tokens", "tries")}
    (tmp_path / "answers-00000.jsonl").write_text(json.dumps(plain, indent=None) + "\n[1]\n3\n", encoding="utf-8")
    with Ledger(tmp_path) as book:
        assert (keys(book, 3), book.damaged, book.spent.nanodollars) == ([1], 2, 15_000)


def test_a_second_process_is_refused_in_words(tmp_path):
    code = "import sys; from e5jax.synthetic.ledger import Ledger; Ledger(sys.argv[1])"
    with Ledger(tmp_path) as book:
        book.write(settled(0))
        tried = subprocess.run(
            [sys.executable, "-c", code, str(tmp_path)], cwd=ROOT, capture_output=True, text=True, timeout=60
        )
        assert f"process {os.getpid()} is writing this ledger" in tried.stderr
        assert numbers(tmp_path) == [0]  # reading is free
    Ledger(tmp_path).close()


def test_a_try_that_nobody_heard_of_again_counts_at_its_worst(tmp_path):
    book, key = Ledger(tmp_path), request(0).key
    asyncio.run(book.sending(key, Spent(900, 9, 1)))
    asyncio.run(book.sending(key, Spent(900, 9, 1)))
    os.close(book._lock)  # as a kill does
    with Ledger(tmp_path) as again:
        assert again.unsettled(key) == again.spent == Spent(1_800, 18, 2)
        asyncio.run(again.sending(key, Spent(900, 9, 1)))
        again.tried(key, Spent(400, 4, 1))
        again.write(settled(0, spent=again.unsettled(key)))
        assert again.spent == Spent(2_200, 22, 3)
        assert again.unsettled(key) == NOTHING
    with Ledger(tmp_path) as again:
        assert again.spent == Spent(2_200, 22, 3)


def test_what_became_of_a_try_outlives_a_kill(tmp_path):
    book, key = Ledger(tmp_path), request(0).key
    asyncio.run(book.sending(key, Spent(900, 9, 1)))
    book.tried(key, Spent(0, 0, 1))
    os.close(book._lock)
    with Ledger(tmp_path) as again:
        assert again.unsettled(key) == Spent(0, 0, 1)


def test_a_torn_note_of_a_try_was_never_sent(tmp_path):
    fill(tmp_path, [1])
    book, key = Ledger(tmp_path), request(0).key
    asyncio.run(book.sending(key, Spent(900, 9, 1)))
    os.close(book._lock)
    path = tmp_path / "sent.jsonl"
    path.write_bytes(path.read_bytes() * 2 + b'{"key": "ab')
    with Ledger(tmp_path) as again:
        assert again.spent == COST + Spent(900, 9, 1)


def test_a_damaged_note_of_a_try_counts_as_the_dearest_request(tmp_path):
    fill(tmp_path, [1])
    (tmp_path / "sent.jsonl").write_bytes(b"\0\0\0\n")
    with Ledger(tmp_path) as book:
        assert book.spent == COST + COST


def test_the_notes_of_settled_requests_are_dropped(tmp_path, monkeypatch):
    monkeypatch.setattr(ledger, "RECORDS_A_SEGMENT", 5)
    with Ledger(tmp_path) as book:
        asyncio.run(book.sending(request(99).key, COST))
        for number in range(12):
            asyncio.run(book.sending(request(number).key, COST))
            book.write(settled(number))
        assert len((tmp_path / "sent.jsonl").read_text().splitlines()) == 1 + 2  # since the third file was begun
    assert len((tmp_path / "sent.jsonl").read_text().splitlines()) == 1
    with Ledger(tmp_path) as book:
        assert book.unsettled(request(99).key) == COST
        assert book.spent.nanodollars == 13 * COST.nanodollars


def test_a_request_asked_again_after_it_was_given_up_counts_all_and_is_read_once(tmp_path):
    key = request(0).key
    with Ledger(tmp_path) as book:
        asyncio.run(book.sending(key, COST))
        book.write(settled(0, "503", spent=Spent(100, 1, 1)))
        book.write(settled(1))
    book = Ledger(tmp_path)
    asyncio.run(book.sending(key, Spent(900, 9, 1)))
    os.close(book._lock)  # killed while it was asked again
    with Ledger(tmp_path) as book:
        assert book.gave_up(key)
        assert book.unsettled(key) == Spent(900, 9, 1)
        book.write(settled(0, spent=book.unsettled(key)))
        assert not book.gave_up(key) and key in book
        assert book.spent == Spent(100 + 5_000 + 900, 1 + 30 + 9, 1 + 2 + 1)
    assert [(e["request"]["number"], e["gave_up"]) for e in entries.read(tmp_path)] == [(1, None), (0, None)]
    with Ledger(tmp_path) as book:
        assert book.spent == Spent(6_000, 40, 4)


def test_a_full_disk_keeps_what_is_in_flight_and_sends_no_more(tmp_path, monkeypatch):
    write, room = os.write, {"of the disk": 20, "of the ballast": 900}

    def limited(fd, data):
        if not (tmp_path / "ballast").exists():
            room["of the disk"] += room.pop("of the ballast", 0)
        if room["of the disk"] == 0:
            raise OSError(errno.ENOSPC, "No space left on device")
        written = write(fd, bytes(data)[: room["of the disk"]])
        room["of the disk"] -= written
        return written

    with Ledger(tmp_path) as book:
        book.write(settled(0))
        assert (tmp_path / "ballast").stat().st_blocks * 512 >= ledger.BALLAST_BYTES
        monkeypatch.setattr(os, "write", limited)
        book.write(settled(1))
        with pytest.raises(FailedError, match="the disk is full"):
            asyncio.run(book.sending(request(2).key, COST))
        with pytest.raises(FailedError, match="No space left"):
            book.write(settled(2))
    monkeypatch.undo()
    assert (tmp_path / "answers-00000.jsonl").read_bytes().endswith(b"\n")
    assert numbers(tmp_path) == [0, 1]


def test_a_disk_too_full_for_another_file_goes_on_in_the_last(tmp_path, monkeypatch):
    open_ = os.open

    def full(path, flags, *mode):
        if (tmp_path / "ballast").exists() and "answers-00001" in str(path):
            raise OSError(errno.ENOSPC, "No space left on device")
        return open_(path, flags, *mode)

    monkeypatch.setattr(ledger, "RECORDS_A_SEGMENT", 2)
    with Ledger(tmp_path) as book, monkeypatch.context() as patch:
        patch.setattr(os, "open", full)
        for number in range(3):
            asyncio.run(book.append(settled(number)))
        assert book.full
    assert len(entries.segments(tmp_path)) == 1
    fill(tmp_path, [3])  # with room again
    assert len(entries.segments(tmp_path)) == 2
    assert numbers(tmp_path) == [0, 1, 2, 3]


def test_no_ledger_and_no_place_for_one_are_named(tmp_path):
    with pytest.raises(UserError, match="no ledger here"):
        list(entries.read(tmp_path))
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="no ledger can be kept here"):
        Ledger(tmp_path / "file" / "ledger")


def test_the_data_half_does_not_import_jax():
    code = "import sys, e5jax.synthetic.runner, e5jax.synthetic.progress; assert 'jax' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True, timeout=60)
