"""`trainer data food11`: what ends up on disk is the complete, verified dataset or nothing."""

import hashlib
import io
import os
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image

from trainer.errors import UserError
from trainer.vision.food11_download import prepare_food11

COUNTS = {"training": 22, "validation": 11, "evaluation": 11}
OneLine = Callable[[BaseException], str]


def jpeg() -> bytes:
    buffer = io.BytesIO()
    Image.effect_noise((20, 16), 50).convert("RGB").save(buffer, "JPEG")
    return buffer.getvalue()


def make_archive(path: Path, extra: dict[str, bytes] | None = None, leave_out: str = "", top: str = "Food-11/") -> Path:
    """An archive of the real one's shape, with few images."""
    with zipfile.ZipFile(path, "w") as zipped:
        for split, size in COUNTS.items():
            for index in range(size):
                if (name := f"{top}{split}/{index % 11}_{index // 11}.jpg") != leave_out:
                    zipped.writestr(name, jpeg())
        zipped.writestr(f"__MACOSX/{top}training/._0_0.jpg", b"resource fork")
        zipped.writestr(f"{top}training/Thumbs.db", b"")
        for name, data in (extra or {}).items():
            zipped.writestr(name, data)
    return path


@pytest.mark.parametrize("top", ["", "Food-11/"])
def test_archive_becomes_class_folders(tmp_path: Path, top: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Class 10 sorted as text would come second; nothing but the dataset may be left."""
    archive = make_archive(tmp_path / "food.zip", top=top)
    prepare_food11(archive, tmp_path / "data" / "food11", counts=COUNTS)
    root = tmp_path / "data" / "food11"
    for split, size in COUNTS.items():
        assert sorted(path.name for path in (root / split).iterdir()) == [f"class_{label:02d}" for label in range(11)]
        assert len(list((root / split).glob("class_*/*.jpg"))) == size
    assert (root / "training" / "class_10" / "10_1.jpg").is_file()
    assert os.listdir(tmp_path / "data") == ["food11"]
    prepare_food11(None, root, counts=COUNTS)  # again: complete, so no download
    assert "nothing to do" in capsys.readouterr().out


@pytest.mark.parametrize(
    "name", ["../evil.jpg", "/etc/evil", "training/../../evil.jpg", "..\\evil.jpg", "C:\\evil.jpg"]
)
def test_entries_that_would_leave_the_folder_are_refused(tmp_path: Path, name: str, one_line: OneLine) -> None:
    """An archive from the internet must not write where it likes."""
    archive = make_archive(tmp_path / "food.zip", {name: jpeg()})
    refused(archive, tmp_path, "would leave the folder", one_line)


def test_links_are_refused(tmp_path: Path, one_line: OneLine) -> None:
    """A link in an archive points anywhere."""
    archive = make_archive(tmp_path / "food.zip")
    with zipfile.ZipFile(archive, "a") as zipped:
        link = zipfile.ZipInfo("training/link")
        link.external_attr = 0o120777 << 16
        zipped.writestr(link, "/etc")
    refused(archive, tmp_path, "would leave the folder", one_line)


def test_other_archives_are_refused(tmp_path: Path, one_line: OneLine) -> None:
    """Training on part of a dataset gives plausible, wrong numbers."""
    few = make_archive(tmp_path / "few.zip", leave_out="Food-11/validation/3_0.jpg")
    refused(few, tmp_path, "10 images in validation, expected 11", one_line)
    refused(make_archive(tmp_path / "a.zip", {"training/11_0.jpg": jpeg()}), tmp_path, "class 11", one_line)
    refused(make_archive(tmp_path / "b.zip", {"x/training/0_0.jpg": jpeg()}), tmp_path, "twice", one_line)
    page = tmp_path / "page.zip"
    page.write_text("<html>log in first</html>")
    refused(page, tmp_path, "not a whole zip file", one_line)
    refused(tmp_path / "gone.zip", tmp_path, "no archive at", one_line)


def test_broken_content_is_refused(tmp_path: Path, one_line: OneLine) -> None:
    """A flipped byte or a truncated image would otherwise surface in the middle of an epoch."""
    archive = make_archive(tmp_path / "food.zip")
    data = bytearray(archive.read_bytes())
    data[data.find(b"\xff\xda") + 20] ^= 0xFF  # inside the first image
    flipped = tmp_path / "flipped.zip"
    flipped.write_bytes(data)
    refused(flipped, tmp_path, "Bad CRC-32", one_line)
    name = "Food-11/training/0_0.jpg"
    truncated = make_archive(tmp_path / "truncated.zip", {name: jpeg()[:-200]}, leave_out=name)
    refused(truncated, tmp_path, f"broken image {name}", one_line)
    cut = tmp_path / "cut.zip"
    cut.write_bytes(archive.read_bytes()[:-500])
    refused(cut, tmp_path, "not a whole zip file", one_line)


def test_checksum(tmp_path: Path, one_line: OneLine) -> None:
    """A site that knows its archive's hash can insist on it."""
    archive = make_archive(tmp_path / "food.zip")
    with pytest.raises(UserError, match="sha256") as raised:
        prepare_food11(archive, tmp_path / "food11", counts=COUNTS, sha256="0" * 64)
    one_line(raised.value)
    sha256 = hashlib.sha256(archive.read_bytes()).hexdigest()
    prepare_food11(archive, tmp_path / "food11", counts=COUNTS, sha256=sha256)


def test_download(tmp_path: Path, one_line: OneLine) -> None:
    """Without network the user is told where the archive is and how to give it."""
    archive = make_archive(tmp_path / "food.zip")
    prepare_food11(None, tmp_path / "food11", url=archive.as_uri(), counts=COUNTS)
    assert (tmp_path / "food11" / "evaluation").is_dir()
    with pytest.raises(UserError) as raised:
        prepare_food11(None, tmp_path / "other", url="http://127.0.0.1:9/food.zip", counts=COUNTS)
    assert "--archive" in one_line(raised.value) and "nyu.box.com" in str(raised.value)


def test_other_folders_are_left_alone(tmp_path: Path, one_line: OneLine) -> None:
    """A mistyped --to must not mix the dataset into somebody's files, nor delete them."""
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("…")
    with pytest.raises(UserError, match="something else") as raised:
        prepare_food11(make_archive(tmp_path / "food.zip"), tmp_path / "mine", counts=COUNTS)
    one_line(raised.value)
    assert os.listdir(tmp_path / "mine") == ["thesis.txt"]


def test_what_a_killed_command_left_is_cleared(tmp_path: Path) -> None:
    """kill -9 leaves the work folder behind: it must neither count as the dataset nor stay for ever."""
    left = tmp_path / ".food11.partial"
    (left / "tree" / "training").mkdir(parents=True)
    (left / "archive.zip").write_text("half")
    prepare_food11(make_archive(tmp_path / "food.zip"), tmp_path / "food11", counts=COUNTS)
    assert not left.exists()


def test_no_space(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, one_line: OneLine) -> None:
    """A full disk is said before an hour of unpacking."""
    monkeypatch.setattr("shutil.disk_usage", lambda _: type("Usage", (), {"free": 100})())
    refused(make_archive(tmp_path / "food.zip"), tmp_path, "free", one_line)


def test_command_does_not_wait_for_torch() -> None:
    """`trainer data` would take seconds to answer."""
    code = "import sys, trainer.vision.food11_download; sys.exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


def refused(archive: Path, folder: Path, words: str, one_line: OneLine) -> None:
    with pytest.raises(UserError) as raised:
        prepare_food11(archive, folder / "food11", counts=COUNTS)
    assert words in one_line(raised.value)
    assert str(archive) in str(raised.value) or words == "free"
    assert not (folder / "food11").exists() and not (folder / ".food11.partial").exists()
