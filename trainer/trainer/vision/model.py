"""An image classifier in two parts, so that staged fine-tuning can treat them differently: backbone and head."""

import pickle
from collections import OrderedDict
from pathlib import Path
from typing import Any, Literal

import torch
from lightning import LightningModule
from torch import Tensor, nn
from torchmetrics import Metric
from torchmetrics.classification import MulticlassAccuracy
from torchvision.models import MobileNet_V2_Weights, mobilenet_v2

from trainer.errors import UserError

STAGES = ("train", "val", "test")
IMAGENET = MobileNet_V2_Weights.DEFAULT


class ImageClassifier(LightningModule):
    """A convolutional backbone and a head of dropout and one linear layer, trained with Adam.

    Logs loss and accuracy per epoch as train_loss, train_acc, val_loss, val_acc, test_loss and test_acc, exact over
    all samples of all processes.
    """

    def __init__(
        self,
        num_classes: int,
        architecture: Literal["mobilenet_v2", "small_cnn"] = "mobilenet_v2",
        weights: str | None = None,
        dropout: float = 0.5,
        lr: float = 1e-4,
        image_size: int = 224,
    ) -> None:
        """
        Args:
            num_classes: Number of classes.
            architecture: The backbone: mobilenet_v2 for photographs, small_cnn for small images without weights.
            weights: What mobilenet_v2 starts from: `imagenet`, a file of torchvision's weights, or null for random.
            dropout: Share of the features that the head drops in training.
            lr: Learning rate.
            image_size: Side of the images in pixels, the same as the data's.
        """
        super().__init__()
        if weights and architecture != "mobilenet_v2":
            raise UserError(f"model: there are no weights for {architecture}: leave out `weights`")
        self.save_hyperparameters()
        self.lr = lr
        self.weights = weights
        self.backbone, features = _mobilenet_v2() if architecture == "mobilenet_v2" else _small_cnn()
        self.head = nn.Sequential(nn.Dropout(dropout), nn.Linear(features, num_classes))
        # two images, since torch.export takes a batch of one for a constant
        self.example_input_array = torch.zeros(2, 3, image_size, image_size)
        self.losses = nn.ModuleDict({f"{stage}_loss": MeanLoss() for stage in STAGES})
        self.accuracies = nn.ModuleDict({f"{stage}_acc": _accuracy(num_classes) for stage in STAGES})

    def forward(self, images: Tensor) -> Tensor:
        return self.head(self.backbone(images))

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.Adam(self.parameters(), lr=self.lr)

    # ---- weights to start from

    def setup(self, stage: str) -> None:
        self._check_data()

    def on_fit_start(self) -> None:
        # only here is it known whether a checkpoint brings the weights: a resumed job needs neither file nor network
        if self.weights is None or self.trainer.ckpt_path is not None:
            return
        if self.weights == "imagenet":
            if self.trainer.local_rank == 0:  # one download on each node
                _imagenet_weights()
            self.trainer.strategy.barrier("weights")
            state = _imagenet_weights()
        else:
            state = _weights_from(Path(self.weights))
        _load_features(self.backbone, state, self.weights)

    def _check_data(self) -> None:
        data = getattr(self.trainer, "datamodule", None)
        for name in ("num_classes", "image_size"):
            ours, theirs = self.hparams[name], getattr(data, name, None)
            if theirs is not None and theirs != ours:
                raise UserError(
                    f"the data has {name} {theirs}, the model {ours}: set model.init_args.{name} to {theirs}"
                )

    # ---- steps. Metrics are logged here and not in on_train_epoch_end: callbacks' hooks of that name run before the
    # module's, so that MLflow's autolog would see them one epoch late and the last ones never.

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        return self._step("train", batch)

    def validation_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
        self._step("val", batch)

    def test_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
        self._step("test", batch)

    def _step(self, stage: str, batch: tuple[Tensor, Tensor]) -> Tensor:
        images, labels = batch
        logits = self(images)
        loss = nn.functional.cross_entropy(logits, labels)
        self.losses[f"{stage}_loss"].update(loss.detach(), len(labels))
        self.accuracies[f"{stage}_acc"].update(logits.detach(), labels)
        # metric objects, not numbers: torchmetrics adds up sums and counts of all processes
        for metrics, name in ((self.losses, f"{stage}_loss"), (self.accuracies, f"{stage}_acc")):
            self.log(name, metrics[name], on_step=False, on_epoch=True, prog_bar=True, batch_size=len(labels))
        return loss


class MeanLoss(Metric):
    """The mean over all samples of all processes.

    Not torchmetrics' MeanMetric: by default it leaves NaN out, so that a diverged training looks healthy, and told not
    to (nan_strategy="disable") version 1.9.0 forgets the weights, so that a small last batch counts like a full one.
    """

    full_state_update = False
    total: Tensor
    count: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.add_state("total", torch.tensor(0.0), dist_reduce_fx="sum")
        self.add_state("count", torch.tensor(0), dist_reduce_fx="sum")

    def update(self, mean: Tensor, size: int) -> None:
        self.total += mean * size
        self.count += size

    def compute(self) -> Tensor:
        return self.total / self.count


def _accuracy(num_classes: int) -> Metric:
    return MulticlassAccuracy(num_classes, average="micro", validate_args=False)


# ---- backbones: a module that makes a vector of an image, and the vector's length


def _mobilenet_v2() -> tuple[nn.Module, int]:
    network = mobilenet_v2()
    for module in network.modules():
        if isinstance(module, nn.ReLU6):
            module.inplace = False  # in place it clones its input for backward: 1.1-1.3x slower on a CPU
    pool = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten())
    return nn.Sequential(OrderedDict(features=network.features, pool=pool)), network.last_channel


def _small_cnn() -> tuple[nn.Module, int]:
    layers: list[nn.Module] = []
    for before, after in ((3, 16), (16, 32), (32, 64)):
        layers += [nn.Conv2d(before, after, 3, padding=1, bias=False), nn.BatchNorm2d(after), nn.ReLU()]
        layers += [nn.MaxPool2d(2)]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(2), nn.Flatten()), 256


# ---- weights


def _imagenet_weights() -> dict[str, Tensor]:
    try:
        return dict(IMAGENET.get_state_dict(progress=True, check_hash=True))
    except (OSError, RuntimeError) as error:  # no network, or the file's hash is wrong
        raise UserError(
            f"cannot download the ImageNet weights ({error}): fetch {IMAGENET.url} by hand "
            "and pass --model.init_args.weights=/path/to/it"
        ) from error


def _weights_from(path: Path) -> dict[str, Tensor]:
    if not path.is_file():
        raise UserError(f"no weights at {path}: set model.init_args.weights to a file, to `imagenet` or to null")
    try:
        state: Any = torch.load(path, map_location="cpu", weights_only=True)
    except (OSError, RuntimeError, EOFError, ValueError, pickle.UnpicklingError) as error:
        raise UserError(f"cannot read weights from {path}: it is not a file of torchvision's weights") from error
    if not isinstance(state, dict):
        raise UserError(f"cannot read weights from {path}: it holds a {type(state).__name__}, not a state_dict")
    return state


def _load_features(backbone: nn.Module, state: dict[str, Tensor], source: str) -> None:
    """Loads the convolutions of a whole network's weights; its own classifier is left behind."""
    try:
        backbone.load_state_dict({name: value for name, value in state.items() if name.startswith("features.")})
    except (RuntimeError, TypeError, AttributeError) as error:
        raise UserError(f"weights {source} do not fit mobilenet_v2: take the file from {IMAGENET.url}") from error
