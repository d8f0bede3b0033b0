"""The reference workload: image folders, staged fine-tuning of a small network. A start to copy for your own.

Names load on first use, so `trainer data …` and the DataLoader workers do not pay for importing Lightning.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from trainer.vision.data import ImageDataModule
    from trainer.vision.digits import DigitsDataModule
    from trainer.vision.food11 import Food11DataModule
    from trainer.vision.model import ImageClassifier

__all__ = ["DigitsDataModule", "Food11DataModule", "ImageClassifier", "ImageDataModule"]

_HOME = {
    "DigitsDataModule": "digits",
    "Food11DataModule": "food11",
    "ImageClassifier": "model",
    "ImageDataModule": "data",
}


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOME[name]}"), name)
