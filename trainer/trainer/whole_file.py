"""Files that are on disk whole or not at all, whatever ends the process or the machine."""

import os
from pathlib import Path


def write_whole(target: Path, content: str | bytes | memoryview, previous: Path | None = None) -> None:
    """Put a file in place so that at every moment the old or the new one stands there, whole, through a power loss too.

    The old file is never written to: others may hold hard links to it.

    Args:
        target: The file; its folder is made.
        content: All of it.
        previous: Gets the old file, where there is one.

    Raises:
        OSError: It cannot be written; nothing of it remains, and the old file stays.
    """
    rest = memoryview(content.encode() if isinstance(content, str) else content)
    target.parent.mkdir(parents=True, exist_ok=True)
    partial = target.with_name(f"{target.name}.partial")
    try:
        partial.unlink(missing_ok=True)  # of a writer that was killed
        with open(partial, "xb", buffering=0) as file:
            while rest:
                rest = rest[file.write(rest) :]
            os.fsync(file.fileno())
        if previous is not None and target.exists():
            link_or_copy(target, previous)
        os.replace(partial, target)
    except OSError:
        partial.unlink(missing_ok=True)
        raise
    sync_folder(target.parent)


def link_or_copy(file: Path, name: Path) -> None:
    """Give a file a second name, in place of whatever has it; on a file system without hard links, a copy.

    Raises:
        OSError: It cannot be written; what has the name keeps it.
    """
    partial = name.with_name(f"{name.name}.partial")
    partial.unlink(missing_ok=True)
    try:
        try:
            os.link(file, partial)
        except OSError:
            with open(file, "rb") as source, open(partial, "xb") as copy:
                while chunk := source.read(2**24):
                    copy.write(chunk)
                copy.flush()
                os.fsync(copy.fileno())
        os.replace(partial, name)
    finally:
        # rename() does nothing where both are names of one file already, and so leaves the first
        partial.unlink(missing_ok=True)


def sync_folder(folder: Path) -> None:
    """Return once the names in a folder are on disk."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
