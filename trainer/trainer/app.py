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
from lightning.pytorch.plugins.io import TorchCheckpointIO
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from lightning.pytorch.utilities.model_helpers import is_overridden

from trainer import class_paths, workspace
from trainer.checkpoints import ckpt_path, files, resume
from trainer.checkpoints.callbacks import BestCheckpoint, LastCheckpoint, require_kept
from trainer.checkpoints.changed_settings import ConfiguredSettings
from trainer.checkpoints.exact_resume import ExactResume
from trainer.checkpoints.whole_io import WholeCheckpointIO
from trainer.config_error import cause, one_line, wrong_option
from trainer.errors import UserError
from trainer.progress import progress
from trainer.tracking import client
from trainer.tracking.job import Job


class TrainingCLI(LightningCLI):
    """Reads the configuration and builds model, data and trainer; runs nothing.

    Args:
        job: Where checkpoints go.
        arguments: The command line, as words.

    Raises:
        UserError: The arguments or the configuration make no sense.
    """

    def __init__(self, job: Job, arguments: list[str]) -> None:
        self.job = job
        workspace.require_config_files(arguments)
        workspace.make_importable(arguments)
        class_paths.check(arguments)
        try:
            self._read_and_build(arguments)
        except ArgumentError as error:
            raise UserError(wrong_option(str(error), [*self.parser.get_defaults().keys(), *LAUNCH_OPTIONS])) from error
        except AssertionError:
            raise
        except Exception as error:  # a class refuses an argument, or fails in its __init__
            raise UserError(cause(error)) from error

    def _read_and_build(self, arguments: list[str]) -> None:
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
        parser.add_argument("--monitor", default=MONITOR, help="The metric that decides which checkpoint is best.")
        parser.add_argument(
            "--mode", default="min", choices=["min", "max"], help="Whether less of it is better, or more."
        )
        parser.add_argument(
            "--ckpt_path",
            type=str | None,
            default=None,
            help="A checkpoint to go on from: weights, optimizer and epoch. It is unpickled: only load what you trust.",
        )

    def before_instantiate_classes(self) -> None:
        given = self.config["trainer"]
        for name, launched in _launched().items():
            if given[name] not in (LEFT_TO_LAUNCH[name], launched):
                raise UserError(
                    f"trainer.{name} is {given[name]}, but the command decides on it: take it out, and use --devices N "
                    "and ACCELERATOR=nvidia|cpu"
                )
            given[name] = launched
        require_kept(given)
        # a job that goes on by itself does not need it any more
        if self.config["ckpt_path"] is not None and not files.any_in(self.job.checkpoints):
            ckpt_path.require_start(self.config["ckpt_path"], given["max_epochs"])
        if given["default_root_dir"] is None:
            # Not where best.ckpt and last.ckpt are: a user's ModelCheckpoint writes here, under any name.
            given["default_root_dir"] = str(self.job.folder / "lightning")

    def instantiate_trainer(self, **kwargs: Any) -> Trainer:
        monitor = self.config_init["monitor"]
        if monitor == MONITOR and not is_overridden("validation_step", self.model):
            monitor = None
        every_epoch = self.config_init["trainer"]["val_check_interval"] in (None, 1.0)
        # The best one first: the last one holds its state.
        self.best = BestCheckpoint(self.job.checkpoints, monitor, self.config_init["mode"], every_epoch)
        self.last = LastCheckpoint(self.job.checkpoints)
        self.exact_resume = ExactResume()
        # Behind the configured ones: what those make of the optimizers is what ConfiguredSettings compares.
        resuming = [self.exact_resume, ConfiguredSettings()]
        self.trainer_defaults["callbacks"] = [self.best, self.last, *resuming, *progress(self.config_init["trainer"])]
        trainer = super().instantiate_trainer(**kwargs)
        self.checkpoint_io = WholeCheckpointIO(self.job.checkpoints)
        if type(trainer.strategy.checkpoint_io) is TorchCheckpointIO:  # else it is the user's own, or the strategy's
            trainer.strategy.checkpoint_io = self.checkpoint_io
        return trainer

    def resolved_config(self) -> dict[str, Any]:
        """The configuration as plain values, defaults included, without the names of the files it came from."""
        config = self.config.clone()
        config.pop("config", None)
        return yaml.safe_load(self.parser.dump(config, skip_none=False, skip_validation=True))


MONITOR = "val_loss"
LAUNCH_OPTIONS = ("accelerator", "devices", "experiment", "max-restarts", "name", "new", "offline", "resume")
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
    cli = TrainingCLI(job, arguments)
    config = cli.resolved_config()
    with client.run():
        text = yaml.safe_dump(_repeatable(config), sort_keys=False)
        del config["trainer"]["default_root_dir"]  # differs in every job, and would in every comparison of two
        client.log_config(config, text)
        cli.checkpoint_io.on_written = client.log_checkpoint
        try:
            _fit_and_test(cli)
        except MisconfigurationException as error:
            raise UserError(one_line(str(error))) from error


def _repeatable(config: dict[str, Any]) -> dict[str, Any]:
    """The configuration without what belongs to this job alone: `trainer fit --config` takes it on any machine."""
    return {**config, "trainer": {**config["trainer"], **LEFT_TO_LAUNCH, "default_root_dir": None}}


def _fit_and_test(cli: TrainingCLI) -> None:
    trainer, model = cli.trainer, cli.model
    train(cli)
    checkpoint = cli.best.best_model_path
    if not checkpoint:  # fast_dev_run, or no epoch at all
        if trainer.is_global_zero:
            print("no checkpoint was written, so nothing is tested and no model is logged")
        return
    outcome = _outcome(cli)
    client.log_metrics(outcome, int(outcome["best_epoch"]))
    if trainer.is_global_zero:
        print(f"testing and logging the best checkpoint, of epoch {int(outcome['best_epoch'])}", flush=True)
    if _can_test(cli):
        # ours is trusted: this very job wrote it
        trainer.test(model, datamodule=cli.datamodule, ckpt_path=checkpoint, verbose=False, weights_only=False)
    elif trainer.is_global_zero:
        model.load_state_dict(torch.load(checkpoint, map_location="cpu", weights_only=False)["state_dict"])
    if trainer.is_global_zero and not client.has_model(int(outcome["best_epoch"])):
        _log_best_model(model, int(outcome["best_epoch"]))


def _can_test(cli: TrainingCLI) -> bool:
    """Whether there are both a step and data: Lightning fails on one without the other, after all the training."""
    owners = [owner for owner in (cli.datamodule, cli.model) if owner is not None]
    return is_overridden("test_step", cli.model) and any(is_overridden("test_dataloader", owner) for owner in owners)


def train(cli: TrainingCLI) -> None:
    """Fit: on from where this job was cut off, else from `--ckpt_path` where it is given.

    Raises:
        UserError: The checkpoint is of another model, or a metric that decides is not logged.
    """
    trainer, start = cli.trainer, cli.config_init["ckpt_path"]
    resumed = None if trainer.fast_dev_run else resume.find(trainer, cli.job.checkpoints, cli.best.state_key)
    if resumed:
        resume.require_epochs(resumed, trainer.max_epochs)
        start = str(resumed.path)
        cli.best.adopt(resumed.best)
        cli.exact_resume.resumed = True
        if trainer.is_global_zero:
            cli.checkpoint_io.hand_over_what_stands()
            print(f"going on {f'after epoch {resumed.epoch}' if resumed.epoch >= 0 else 'within epoch 0'}", flush=True)
    try:
        trainer.fit(cli.model, datamodule=cli.datamodule, ckpt_path=start, weights_only=False if start else None)
    except (RuntimeError, ValueError, KeyError) as error:
        if str(error).startswith("Early stopping conditioned on metric"):
            raise UserError(one_line(str(error))) from error
        if start and (why := ckpt_path.does_not_fit(error, start, cli.model)):
            raise UserError(f"{why}; --new starts a new run" if resumed else f"--ckpt_path: {why}") from error
        raise
    cli.best.settle(trainer)  # Lightning says no `on_train_end` where all epochs were done already


def _outcome(cli: TrainingCLI) -> dict[str, float]:
    """Which epoch was best (counted from 0), and how good it was."""
    # mmap: of the whole file, optimizer included, one number is read
    checkpoint = torch.load(cli.best.best_model_path, map_location="cpu", weights_only=False, mmap=True)
    outcome = {"best_epoch": float(checkpoint["epoch"])}
    score = cli.best.best_model_score
    if score is not None and not torch.isfinite(score):
        print(f"{cli.best.monitor} was never a finite number, so the first epoch counts as the best", flush=True)
    elif score is not None:
        outcome[f"best_{cli.best.monitor}"] = float(score)
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
    except UserError as error:
        print(f"trainer: error: {' '.join(str(error).split())}", file=sys.stderr)
        sys.exit(2)


if __name__ == "__main__":
    main()
