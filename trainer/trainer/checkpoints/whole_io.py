"""How Lightning writes the job's checkpoints: whole or not at all, and without ending a training on a full disk."""

import io
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch.plugins.io import TorchCheckpointIO

from trainer.checkpoints.files import BEST, LAST, PREVIOUS
from trainer.terminal import say
from trainer.whole_file import write_whole


class WholeCheckpointIO(TorchCheckpointIO):
    """Writes beside the target, syncs, then renames; of last.ckpt the one before is kept as previous.ckpt.

    Lightning's own writes to /tmp and moves: a copy where that is another file system, and never synced, so that a
    `kill -9` or a power loss leaves a torn file (fsspec's transactions; Lightning #21253).

    Where the disk is full (or fails) a line says so, the standing file stays, and the training goes on: Lightning calls
    this on rank 0 alone, and an exception there would leave the others waiting. The newest content of each file waits
    in memory until there is room, in order: a last.ckpt never names a best.ckpt that is not there yet.
    """

    def __init__(self, folder: Path) -> None:
        """
        Args:
            folder: The job's `checkpoints`: where a previous last.ckpt is kept and `on_written` is called.
        """
        super().__init__()
        self._folder = Path(os.path.realpath(folder))
        self._waiting: dict[Path, io.BytesIO] = {}
        self._said = False
        self.on_written: Callable[[Path], None] = lambda path: None
        """Called with each file of the job's folder that has just been written."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any = None) -> None:
        if "://" in str(path) or storage_options is not None:  # a user's own ModelCheckpoint, to S3 say
            super().save_checkpoint(checkpoint, path, storage_options)
            return
        target = Path(path)
        buffer = io.BytesIO()
        torch.save(checkpoint, buffer)  # not to the file: on a full disk torch raises RuntimeErrors of many kinds
        self._waiting.pop(target, None)
        self._waiting[target] = buffer
        error = self._write()
        if error is not None and not self._said:
            self._said = True
            say(
                f"cannot write {target} ({error.strerror or error}); the training goes on, and the checkpoints of "
                "before stay"
            )

    def write_out(self, patience: float) -> None:
        """Write what waits for room on the disk, trying again for `patience` seconds. For rank 0.

        Raises:
            OSError: There is still none.
        """
        deadline = time.monotonic() + patience
        while (error := self._write()) is not None:
            if time.monotonic() > deadline:
                names = " and ".join(path.name for path in self._waiting)
                raise OSError(error.errno, f"{names} cannot be written: {error.strerror or error}")
            time.sleep(0.5)

    def _write(self) -> OSError | None:
        while self._waiting:
            target, buffer = next(iter(self._waiting.items()))
            try:
                write_whole(target, buffer.getbuffer(), self._previous(target))
            except OSError as error:
                return error
            del self._waiting[target]
            if target.parent == self._folder:
                self.on_written(target)
        if self._said:
            self._said = False
            say("checkpoints are written again")
        return None

    def hand_over_what_stands(self) -> None:
        """Call `on_written` with what was written just before the job was cut off, and perhaps not handed over."""
        for name in (BEST, LAST):
            if (self._folder / name).is_file():
                self.on_written(self._folder / name)

    def _previous(self, target: Path) -> Path | None:
        return target.with_name(PREVIOUS) if target == self._folder / LAST else None
