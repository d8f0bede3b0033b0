"""The classifier: where its weights come from, and that it fits its data."""

from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.error import URLError

import pytest
import torch
from lightning import Trainer
from torch import nn
from torchvision.models import mobilenet_v2

from trainer.errors import UserError
from trainer.vision import ImageClassifier, ImageDataModule, model

OneLine = Callable[[BaseException], str]


def fit(images: Path, classifier: ImageClassifier, **arguments: Any) -> Trainer:
    data = ImageDataModule(str(images), batch_size=12, num_workers=0, image_size=32)
    trainer = Trainer(
        accelerator="cpu",
        max_epochs=1,
        use_distributed_sampler=False,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(classifier, data, weights_only=False, **arguments)
    return trainer


def classifier(**arguments: Any) -> ImageClassifier:
    return ImageClassifier(**{"num_classes": 3, "image_size": 32, "lr": 0.0, **arguments})


def test_weights_from_a_local_file(image_root: Path, tmp_path: Path) -> None:
    """Without internet, a file of torchvision's weights is the only way; its classifier has 1000 classes."""
    network = mobilenet_v2()
    torch.save(network.state_dict(), tmp_path / "weights.pth")
    ours = classifier(weights=str(tmp_path / "weights.pth"))
    fit(image_root, ours)
    assert torch.equal(ours.backbone.features[0][0].weight, network.features[0][0].weight)


def test_a_checkpoint_needs_no_weights(image_root: Path, tmp_path: Path) -> None:
    """A resumed or tested job must not want a download again, nor a file that is gone."""
    first = classifier()
    path = tmp_path / "last.ckpt"
    fit(image_root, first).save_checkpoint(path)
    gone = classifier(weights=str(tmp_path / "gone.pth"))
    trainer = fit(image_root, gone, ckpt_path=path)
    trainer.test(gone, trainer.datamodule, ckpt_path=path, weights_only=False, verbose=False)
    ImageClassifier.load_from_checkpoint(path, weights="imagenet", weights_only=False)


@pytest.mark.parametrize("content", ["none", "text", "tensor", "other network"])
def test_wrong_weights_are_refused(image_root: Path, tmp_path: Path, content: str, one_line: OneLine) -> None:
    """load_state_dict answers with a page of missing keys, torch.load with a lecture on pickles."""
    path = tmp_path / "weights.pth"
    if content == "text":
        path.write_text("<html>not found</html>")
    elif content == "tensor":
        torch.save(torch.zeros(3), path)
    elif content == "other network":
        torch.save(nn.Linear(2, 2).state_dict(), path)
    with pytest.raises(UserError) as raised:
        fit(image_root, classifier(weights=str(path)))
    assert str(path) in one_line(raised.value)


def test_imagenet_without_a_network(image_root: Path, monkeypatch: pytest.MonkeyPatch, one_line: OneLine) -> None:
    """The user of a machine without internet learns which file to fetch and where to give it."""

    def refuse(*_: Any, **__: Any) -> None:
        raise URLError("Name or service not known")

    monkeypatch.setattr(type(model.IMAGENET), "get_state_dict", refuse)
    with pytest.raises(UserError) as raised:
        fit(image_root, classifier(weights="imagenet"))
    assert model.IMAGENET.url in one_line(raised.value)
    assert "--model.init_args.weights=" in str(raised.value)


def test_imagenet_is_loaded_into_the_backbone(image_root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Weights that are fetched and not used would go unnoticed."""
    network = mobilenet_v2()
    monkeypatch.setattr(type(model.IMAGENET), "get_state_dict", lambda *_, **__: network.state_dict())
    ours = classifier(weights="imagenet")
    fit(image_root, ours)
    assert torch.equal(ours.backbone.features[18][0].weight, network.features[18][0].weight)


@pytest.mark.parametrize("wrong", [{"num_classes": 4}, {"image_size": 64}])
def test_model_and_data_must_agree(image_root: Path, wrong: dict[str, int], one_line: OneLine) -> None:
    """Too few classes are a device-side assert on a GPU; too many train without a word."""
    with pytest.raises(UserError) as raised:
        fit(image_root, classifier(architecture="small_cnn", **wrong))
    assert f"model.init_args.{next(iter(wrong))}" in one_line(raised.value)


@pytest.mark.parametrize("architecture", ["mobilenet_v2", "small_cnn"])
def test_example_input_fits(architecture: Any) -> None:
    """The summary and the logged model's signature are made from it."""
    ours = classifier(architecture=architecture).eval()
    assert ours(ours.example_input_array).shape == (2, 3)


def test_a_loss_that_is_nan_shows(image_root: Path) -> None:
    """torchmetrics' MeanMetric leaves NaN out by default: a diverged training would look healthy."""
    ours = classifier(architecture="small_cnn")
    nn.init.constant_(ours.head[1].bias, float("nan"))
    assert fit(image_root, ours).callback_metrics["val_loss"].isnan()
