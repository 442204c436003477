"""Files are there whole or not at all."""

import pytest

from e5jax import files


def test_a_writer_that_fails_leaves_the_old_file_and_nothing_beside_it(tmp_path):
    path = tmp_path / "table.json"
    files.write_json(path, {"old": 1})
    with pytest.raises(RuntimeError), files.whole(path) as file:
        file.write(b"half of")
        raise RuntimeError
    assert [found.name for found in tmp_path.iterdir()] == ["table.json"]
    assert path.read_text() == '{\n  "old": 1\n}\n'


def test_a_file_that_is_replaced_is_never_half_there(tmp_path):
    path = tmp_path / "vectors"
    path.write_bytes(b"old")
    with files.whole(path) as file:
        file.write(b"new, and longer")
        file.flush()
        assert path.read_bytes() == b"old"
    assert path.read_bytes() == b"new, and longer"
