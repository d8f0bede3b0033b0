"""The training application: a LightningCLI that fits, tests the best checkpoint and logs it as the run's model.

Any LightningModule and LightningDataModule by `class_path`, every Trainer option from YAML or flags:
    trainer fit --config configs/digits.yaml --model.init_args.lr=0.002 --trainer.max_epochs=3
"""

import os
import sys
from pathlib import Path
from typing import Any

import torch
import yaml
from jsonargparse import ArgumentError
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from lightning.pytorch.utilities.model_helpers import is_overridden

from trainer.checkpoints import best_and_last
from trainer.config_error import one_line
from trainer.errors import UserError
from trainer.progress import progress
from trainer.tracking import client
from trainer.tracking.job import Job


class TrainingCLI(LightningCLI):
    """Reads the configuration and builds model, data and trainer; runs nothing.

    Args:
        job: Where checkpoints go.
        arguments: The command line, as words.
    """

    def __init__(self, job: Job, arguments: list[str]) -> None:
        self._job = job
        super().__init__(
            args=arguments,
            run=False,
            # The resolved config is an artifact of the run; Lightning's callback fails on a second run.
            save_config_callback=None,
            parser_kwargs={"exit_on_error": False, "allow_abbrev": False},
            trainer_defaults={
                # Left to launch; the same as Lightning's own defaults, so that a printed config can be used as it is.
                **LEFT_TO_LAUNCH,
                "logger": False,  # autolog writes to the run; a logger beside it would write each metric twice
                "enable_model_summary": False,  # it is an artifact of the run
            },
        )

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        parser.add_argument("--monitor", default="val_loss", help="The metric that decides which checkpoint is best.")
        parser.add_argument(
            "--mode", default="min", choices=["min", "max"], help="Whether less of it is better, or more."
        )

    def before_instantiate_classes(self) -> None:
        given = self.config["trainer"]
        for name, launched in _launched().items():
            if given[name] not in (LEFT_TO_LAUNCH[name], launched):
                raise UserError(
                    f"trainer.{name} is {given[name]}, but launch decides on it: take it out, and use --devices N and "
                    "ACCELERATOR=nvidia|cpu"
                )
            given[name] = launched
        if given["default_root_dir"] is None:
            given["default_root_dir"] = str(self._job.folder)

    def instantiate_trainer(self, **kwargs: Any) -> Trainer:
        validates = is_overridden("validation_step", self.model)
        self.best, self.last = best_and_last(
            self._job.checkpoints, self.config_init["monitor"] if validates else None, self.config_init["mode"]
        )
        self.trainer_defaults["callbacks"] = [self.best, self.last, *progress()]
        return super().instantiate_trainer(**kwargs)

    def resolved_config(self) -> dict[str, Any]:
        """The configuration as plain values, defaults included, without the names of the files it came from."""
        config = self.config.clone()
        config.pop("config", None)
        return yaml.safe_load(self.parser.dump(config, skip_none=False, skip_validation=True))


LEFT_TO_LAUNCH: dict[str, Any] = {"accelerator": "auto", "devices": "auto", "num_nodes": 1}


def _launched() -> dict[str, Any]:
    """What launch has decided from --devices and ACCELERATOR; torchrun demands that the Trainer agrees."""
    return {
        "accelerator": "gpu" if os.environ["ACCELERATOR"] == "nvidia" else "cpu",
        "devices": int(os.environ["LOCAL_WORLD_SIZE"]),
        "num_nodes": int(os.environ["GROUP_WORLD_SIZE"]),
    }


def fit(arguments: list[str], job: Job) -> None:
    """Train, test the best checkpoint, log it.

    Args:
        arguments: The LightningCLI's command line.
        job: Where checkpoints go.

    Raises:
        UserError: The arguments or the configuration make no sense.
    """
    try:
        try:
            cli = TrainingCLI(job, arguments)
        except ValueError as error:  # a class refuses an argument; jsonargparse wraps what it says
            raise UserError(one_line(str(error))) from error
        config = cli.resolved_config()
        with client.run():
            text = yaml.safe_dump(_repeatable(config), sort_keys=False)
            del config["trainer"]["default_root_dir"]  # differs in every job, and would in every comparison of two
            client.log_config(config, text)
            client.log_params(_early_stopping(cli.trainer))
            _fit_and_test(cli)
    except (ArgumentError, MisconfigurationException) as error:
        raise UserError(one_line(str(error))) from error


def _repeatable(config: dict[str, Any]) -> dict[str, Any]:
    """The configuration without what belongs to this job alone: `trainer fit --config` takes it on any machine."""
    return {**config, "trainer": {**config["trainer"], **LEFT_TO_LAUNCH, "default_root_dir": None}}


def _fit_and_test(cli: TrainingCLI) -> None:
    trainer, model = cli.trainer, cli.model
    trainer.fit(model, datamodule=cli.datamodule)
    checkpoint = cli.best.best_model_path
    if not checkpoint:  # fast_dev_run, or no epoch at all
        if trainer.is_global_zero:
            print("no checkpoint was written, so nothing is tested and no model is logged")
        return
    outcome = _outcome(cli)
    client.log_metrics(outcome)
    if trainer.is_global_zero:
        print(f"testing and logging the best checkpoint, of epoch {int(outcome['best_epoch'])}", flush=True)
    if is_overridden("test_step", model):
        # ours is trusted: this very job wrote it
        trainer.test(model, datamodule=cli.datamodule, ckpt_path=checkpoint, verbose=False, weights_only=False)
    elif trainer.is_global_zero:
        model.load_state_dict(torch.load(checkpoint, map_location="cpu", weights_only=False)["state_dict"])
    if trainer.is_global_zero:
        _log_best_model(model, int(outcome["best_epoch"]))


def _early_stopping(trainer: Trainer) -> dict[str, Any]:
    """Parameters of early stopping; autolog knows `pytorch_lightning`'s class only, not `lightning`'s."""
    return {
        f"early_stopping.{name}": getattr(callback, name)
        for callback in trainer.early_stopping_callbacks
        for name in ("monitor", "mode", "patience", "min_delta")
    }


def _outcome(cli: TrainingCLI) -> dict[str, float]:
    """Which epoch was best (counted from 0), how good it was, and where early stopping ended the training."""
    checkpoint = torch.load(cli.best.best_model_path, map_location="cpu", weights_only=False)
    outcome = {"best_epoch": float(checkpoint["epoch"])}
    if cli.best.best_model_score is not None:
        outcome[f"best_{cli.best.monitor}"] = float(cli.best.best_model_score)
    if stopped := [stop.stopped_epoch for stop in cli.trainer.early_stopping_callbacks if stop.stopped_epoch]:
        outcome["stopped_epoch"] = float(min(stopped))
    return outcome


def _log_best_model(model: LightningModule, epoch: int) -> None:
    """Log the module that the best checkpoint has just been loaded into."""
    example = model.example_input_array
    if not isinstance(example, torch.Tensor):
        print("no model is logged: the module sets no `example_input_array` (one tensor), which its signature needs")
        return
    model.trainer = None
    if client.log_model(model.cpu().eval(), example, epoch) == "pickle":
        print("the model is logged as a pickle, since torch.export cannot export it: loading it needs its code")


def main() -> None:
    """Print what was asked for (`--print_config`, `--model.help=…`) and exit; no job is started for it."""
    for name, alone in {"LOCAL_WORLD_SIZE": "1", "GROUP_WORLD_SIZE": "1", "WORLD_SIZE": "1"}.items():
        os.environ.setdefault(name, alone)
    os.environ.setdefault("ACCELERATOR", "cpu")
    arguments, sys.argv = sys.argv[1:], sys.argv[:1]
    try:
        TrainingCLI(Job(Path(".")), arguments)
        sys.exit("trainer: error: nothing was asked for")
    except (ArgumentError, UserError) as error:
        print(f"trainer: error: {one_line(str(error))}", file=sys.stderr)
        sys.exit(2)


if __name__ == "__main__":
    main()
