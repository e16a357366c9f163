"""Files and folders are there when they are whole, or not at all."""

from __future__ import annotations

from pathlib import Path

import pytest

from keystep.errors import BadInput
from keystep.files import whole, write_text


def test_nothing_half_written(tmp_path):
    out = tmp_path / "deep" / "out"
    with pytest.raises(ZeroDivisionError), whole(out) as part:
        part.mkdir()
        (part / "x").write_text("half")
        raise ZeroDivisionError
    assert not out.exists() and list(out.parent.iterdir()) == []
    with whole(out) as part:
        part.write_text("1")
    with pytest.raises(BadInput, match="is there already"), whole(out) as part:
        pytest.fail("asked too late")
    with whole(out, replace=True) as part:
        part.write_text("2")
    assert out.read_text() == "2"
    folder = tmp_path / "folder"
    for text in ("1", "2"):
        with whole(folder, replace=True) as part:
            part.mkdir()
            (part / text).write_text(text)
        assert [file.name for file in folder.iterdir()] == [text]
    for taken, make in ((folder, Path.touch), (out, Path.mkdir)):  # a folder does not give way to a file, nor a file to a folder
        with pytest.raises(BadInput, match="cannot be written"), whole(taken, replace=True) as part:
            make(part)
        assert (folder / "2").exists() and out.read_text() == "2"
    with pytest.raises(BadInput, match="cannot be written"), whole(out / "in a file"):
        pytest.fail("asked too late")


def test_a_text_takes_the_place_of_what_stood_there(tmp_path):
    file = tmp_path / "new" / "é.txt"
    for text in ("one", "zwölf\n"):
        write_text(file, text)
        assert file.read_text("utf-8") == text and list(file.parent.iterdir()) == [file]
    for wrong in (tmp_path / "new", file / "below", Path("a" * 300)):
        with pytest.raises(BadInput, match="cannot be written"):
            write_text(wrong, "x")
    with pytest.raises(UnicodeEncodeError):
        write_text(file, "\ud800")
    assert file.read_text("utf-8") == "zwölf\n" and list(file.parent.iterdir()) == [file]
