"""`trainer data food11`: Food-11 from the internet or a local archive, verified, as class folders.

Imports neither torch nor Lightning, so that the command answers at once.
"""

import fcntl
import hashlib
import os
import re
import shutil
import stat
import urllib.request
import zipfile
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from io import BytesIO
from pathlib import Path, PurePosixPath

from PIL import Image
from tqdm import tqdm

from trainer.errors import UserError

URL = "https://nyu.box.com/shared/static/m5kvcl25hfpljul3elhu6xz8y2w61op4.zip"
COUNTS = {"training": 9866, "validation": 3430, "evaluation": 3347}
CLASSES = 11
BY_HAND = f"fetch {URL} (or your own copy) by hand and pass it with --archive ZIP"


def prepare_food11(
    archive: Path | None,
    to: Path,
    *,
    url: str = URL,
    sha256: str | None = None,
    counts: Mapping[str, int] = COUNTS,
) -> None:
    """Writes Food-11 to TO/{training,validation,evaluation}/class_NN/N_M.jpg.

    TO appears complete or not at all; when it is complete already, nothing is done.

    Args:
        archive: A local zip file; None downloads it.
        to: Folder of the dataset.
        url: Where the archive is downloaded from.
        sha256: The archive's checksum, if known; none is published.
        counts: Number of images that each split must have.
    """
    to = to.expanduser().absolute()
    if to.is_dir() and any(to.iterdir()):
        if _count(to) != dict(counts):
            raise UserError(f"{to} holds something else than the complete Food-11: move it away or choose another --to")
        print(f"Food-11 is complete in {to}: nothing to do")
        return
    if archive is not None and not archive.is_file():
        raise UserError(f"no archive at {archive}: {BY_HAND}")
    if os.path.ismount(to):
        raise UserError(f"{to} is a mount point and cannot appear at once: choose a folder in it, --to {to / 'food11'}")
    try:
        with _partial(to) as partial:
            if archive is None:
                archive = partial / "archive.zip"
                _download(url, archive)
            if sha256 is not None:
                _verify_hash(archive, sha256)
            tree = partial / "tree"
            _unpack(archive, tree, counts)
            tree.rename(to)
    except OSError as error:  # no space, no permission
        raise UserError(f"cannot write Food-11 to {to}: {error.strerror or error}") from error
    print(f"Food-11 is in {to}: {sum(counts.values())} images in {CLASSES} classes")


@contextmanager
def _partial(to: Path) -> Iterator[Path]:
    """A folder beside `to` for what is not complete yet; what a killed command left in it is deleted."""
    folder = to.with_name(f".{to.name}.partial")
    folder.mkdir(parents=True, exist_ok=True)
    lock = os.open(folder, os.O_RDONLY)
    try:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise UserError(f"another `trainer data food11` is writing {to}: wait for it to end") from error
        for left in folder.iterdir():
            shutil.rmtree(left) if left.is_dir() else left.unlink()
        try:
            yield folder
        finally:
            shutil.rmtree(folder, ignore_errors=True)
    finally:
        os.close(lock)


def _download(url: str, target: Path) -> None:
    try:
        with urllib.request.urlopen(url, timeout=60) as response, target.open("wb") as file:
            size = int(response.headers.get("Content-Length") or 0)
            with tqdm(total=size or None, unit="B", unit_scale=True, desc="download") as progress:
                while chunk := response.read(1 << 20):
                    try:
                        file.write(chunk)
                    except OSError as error:
                        raise UserError(f"cannot write {target}: {error.strerror}") from error
                    progress.update(len(chunk))
    except OSError as error:  # urllib's errors are OSErrors
        raise UserError(f"cannot download Food-11 ({getattr(error, 'reason', error)}): {BY_HAND}") from error
    if size and target.stat().st_size != size:
        raise UserError(f"the download of Food-11 broke off at {target.stat().st_size} of {size} bytes: try again")


def _verify_hash(archive: Path, sha256: str) -> None:
    with archive.open("rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    if found != sha256.lower():
        raise UserError(f"{archive} has sha256 {found}, not {sha256}: {BY_HAND}")


def _unpack(archive: Path, tree: Path, counts: Mapping[str, int]) -> None:
    try:
        with zipfile.ZipFile(archive) as zipped:
            members = _members(zipped, archive, counts)
            needed, free = sum(info.file_size for info in members.values()), shutil.disk_usage(tree.parent).free
            if needed > free:
                raise UserError(f"Food-11 needs {needed >> 20} MiB, {tree.parent.parent} has {free >> 20} MiB free")
            for target, info in tqdm(members.items(), unit="image", desc="unpack and verify"):
                data = zipped.read(info)  # checks the CRC
                _decode(data, f"{info.filename} in {archive}")
                path = tree / target
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(data)
    # the last two: encrypted, and compressed in a way that this Python lacks
    except (zipfile.BadZipFile, zipfile.LargeZipFile, EOFError, RuntimeError, NotImplementedError) as error:
        raise UserError(f"{archive} is not a whole zip file ({error}): {BY_HAND}") from error


def _members(zipped: zipfile.ZipFile, archive: Path, counts: Mapping[str, int]) -> dict[PurePosixPath, zipfile.ZipInfo]:
    """What the archive holds of the dataset, by its place in the tree."""
    members: dict[PurePosixPath, zipfile.ZipInfo] = {}
    for info in zipped.infolist():
        path = PurePosixPath(info.filename.replace("\\", "/"))
        is_link = stat.S_ISLNK(info.external_attr >> 16)
        if path.is_absolute() or ".." in path.parts or ":" in path.parts[0] or is_link:
            raise UserError(f"{archive} is refused: its entry {info.filename!r} would leave the folder")
        image = re.fullmatch(r"(\d+)_\d+\.jpe?g", path.name, re.IGNORECASE)
        # __MACOSX holds `._N_M.jpg` files, which are no images
        if info.is_dir() or image is None or len(path.parts) < 2 or path.parent.name not in counts:
            continue
        label = int(image[1])
        if label >= CLASSES:
            raise UserError(f"{archive} is not Food-11: {info.filename} would be class {label} of {CLASSES}")
        target = PurePosixPath(path.parent.name, f"class_{label:02d}", path.name)
        if target in members:
            raise UserError(f"{archive} is not Food-11: it holds {path.parent.name}/{path.name} twice")
        members[target] = info
    found = Counter(target.parts[0] for target in members)
    for split, expected in counts.items():
        if found[split] != expected:
            raise UserError(
                f"{archive} is not Food-11: {found[split]} images in {split}, expected {expected}; {BY_HAND}"
            )
    return members


def _decode(data: bytes, name: str) -> None:
    try:
        with Image.open(BytesIO(data)) as image:
            image.draft("RGB", (64, 64))  # reads the whole file at a fraction of the work
            image.load()
    except (OSError, SyntaxError, ValueError) as error:
        raise UserError(f"broken image {name}: {BY_HAND}") from error


def _count(tree: Path) -> dict[str, int]:
    return {
        split.name: sum(1 for image in split.glob("class_*/*") if image.is_file())
        for split in tree.iterdir()
        if split.is_dir()
    }
