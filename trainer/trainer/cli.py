"""The command `trainer`. Nothing heavy is imported until a job needs it, so that `--help` answers at once."""

import argparse
import os
import re
import sys
from pathlib import Path

from trainer import workspace
from trainer.errors import UserError
from trainer.terminal import outlive_the_reader, say

JOB_OPTIONS = ("--accelerator", "--devices", "--experiment", "--name", "--max-restarts", "--offline")
DESCRIPTION = "Trains with Lightning DDP on every GPU of this machine; each job is exactly one MLflow run, a true one."


def main() -> None:
    """Entry point of the `trainer` command."""
    outlive_the_reader()
    arguments, rest = _parser().parse_known_args()
    if rest and arguments.command != "fit":
        _parser().error(f"unknown arguments: {' '.join(rest)}")
    try:
        sys.exit(arguments.run(arguments, rest))
    except UserError as error:
        print(f"trainer: error: {error}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        sys.exit(130)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="trainer", description=DESCRIPTION, allow_abbrev=False)
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")

    fit = commands.add_parser(
        "fit",
        allow_abbrev=False,
        help="train a LightningModule, test its best checkpoint, log all of it as one MLflow run",
        epilog="Every other argument goes to the LightningCLI: `--config FILE`, `--trainer.max_epochs 3`, "
        "`--model.init_args.lr 0.01`, `--print_config`, `--model.help CLASS`.",
    )
    _add_job_options(fit)
    resume = fit.add_mutually_exclusive_group()
    resume.add_argument("--new", action="store_true", help="start a new run also where this job was cut off")
    resume.add_argument(
        "--resume", choices=["auto", "must"], default="auto", help="must: refuse to start unless this job was cut off"
    )
    fit.set_defaults(run=_fit)

    run = commands.add_parser(
        "run",
        allow_abbrev=False,
        help="run your own Lightning script, unmodified, on all devices, as one MLflow run",
        epilog="What stands behind SCRIPT goes to the script: `trainer run --devices 2 train.py --lr 0.1`.",
    )
    _add_job_options(run)
    run.add_argument("script", type=Path, metavar="SCRIPT", help="a Python file; its Trainer gets the job's devices")
    run.add_argument("arguments", nargs=argparse.REMAINDER, metavar="...", help="the script's own arguments")
    run.set_defaults(run=_run)

    runs = commands.add_parser("runs", help="list this lab's jobs, the newest last")
    runs.add_argument("--all", action="store_true", help="also those that ended before they had a run, at a typo say")
    runs.add_argument("--stale", action="store_true", help="the same as `trainer sync`")
    runs.set_defaults(run=_runs)

    sync = commands.add_parser(
        "sync",
        help="deliver what jobs have left that ended without a word (power loss, kill -9) or without a server, and "
        "close their runs",
    )
    sync.set_defaults(run=_sync)

    data = commands.add_parser("data", help="download and sort a dataset")
    datasets = data.add_subparsers(dest="dataset", required=True, metavar="DATASET")
    food11 = datasets.add_parser("food11", help="Food-11: 16,643 photographs in 11 classes")
    food11.add_argument("--archive", type=Path, help="a zip that you have already, instead of the download")
    food11.add_argument("--to", type=Path, required=True, metavar="DIR", help="the folder to make")
    food11.set_defaults(run=_data_food11)

    server = commands.add_parser("server", help="the embedded MLflow server: SQLite and local files, no Docker")
    server.add_argument("--port", type=_port, default=os.environ.get("PORT") or "8000")
    mode = server.add_mutually_exclusive_group()
    mode.add_argument("--detach", action="store_true", help="start it in the background, unless it answers already")
    mode.add_argument("--stop", action="store_true", help="stop the one that --detach started")
    server.set_defaults(run=_server)
    return parser


def _add_job_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--accelerator",
        default=os.environ.get("ACCELERATOR") or "auto",
        help="auto, nvidia or cpu (default: $ACCELERATOR)",
    )
    parser.add_argument(
        "--devices",
        default=os.environ.get("DEVICES") or "auto",
        help="number of workers, or auto: every GPU, or one on CPU",
    )
    parser.add_argument(
        "--experiment", help="MLflow experiment (default: $MLFLOW_EXPERIMENT_NAME, else the job's name)"
    )
    parser.add_argument("--name", help="the job's name (default: the file's)")
    parser.add_argument(
        "--offline",
        action="store_true",
        help="start although the MLflow server is away; the job delivers when it is back, or `trainer sync` does",
    )
    parser.add_argument(
        "--max-restarts",
        type=_count,
        default=os.environ.get("MAX_RESTARTS") or "0",
        metavar="N",
        help="start all workers again, up to N times, when one has failed (default: $MAX_RESTARTS, else 0)",
    )


def _count(word: str) -> int:
    if not re.fullmatch("[0-9]{1,6}", word):
        raise argparse.ArgumentTypeError(f"{word} is no number of restarts; use 0 or more")
    return int(word)


def _port(word: str) -> int:
    if not (word.isdecimal() and 0 < int(word) < 65536):
        raise argparse.ArgumentTypeError(f"{word} is no port; use a number from 1 to 65535")
    return int(word)


def _fit(arguments: argparse.Namespace, rest: list[str]) -> int:
    from trainer.launch import devices, launcher

    if any(re.match(r"--(print_config|[\w.]+\.help)(=|$)", word) for word in rest):
        os.execv(sys.executable, [sys.executable, "-m", "trainer.app", *rest])
    workspace.require_config_files(rest)
    files = workspace.config_files(rest)
    name = arguments.name or (_name_of(files[-1]) if files else "fit")
    picked = devices.pick(arguments.accelerator, arguments.devices)
    resume = "never" if arguments.new else arguments.resume
    return launcher.launch(
        name,
        ["fit", *rest],
        picked,
        arguments.experiment,
        workspace.folder(rest),
        workspace.sources(rest),
        resume,
        arguments.max_restarts,
        arguments.offline,
    )


def _name_of(file: Path) -> str:
    """The job's name by its configuration file; every project has a config.yaml, so that one is named by its folder."""
    return file.resolve().parent.name if file.stem == "config" else file.stem


def _run(arguments: argparse.Namespace, rest: list[str]) -> int:
    from trainer.launch import devices, launcher

    script = arguments.script
    if not script.is_file():
        raise UserError(f"no script at {script}: give the path of a Python file")
    for word in arguments.arguments:
        if word.partition("=")[0] in JOB_OPTIONS:
            say(f"{word} stands behind {script}, so it goes to the script")
    picked = devices.pick(arguments.accelerator, arguments.devices)
    words = ["run", str(script.resolve()), *arguments.arguments]
    name = arguments.name or script.stem
    # A script loads no checkpoint unless it does so itself, so each start is a run of its own.
    return launcher.launch(
        name,
        words,
        picked,
        arguments.experiment,
        script.resolve().parent,
        resume="never",
        max_restarts=arguments.max_restarts,
        offline=arguments.offline,
    )


def _runs(arguments: argparse.Namespace, rest: list[str]) -> int:
    if arguments.stale:
        return _sync(arguments, rest)
    from trainer.launch import jobs

    print(jobs.table(arguments.all))
    return 0


def _sync(arguments: argparse.Namespace, rest: list[str]) -> int:
    from trainer.launch import stale

    stale.close_all(say)
    return 0


def _data_food11(arguments: argparse.Namespace, rest: list[str]) -> int:
    from trainer.vision.food11_download import prepare_food11

    prepare_food11(arguments.archive, arguments.to)
    return 0


def _server(arguments: argparse.Namespace, rest: list[str]) -> int:
    from trainer import embedded_server as server

    if arguments.detach:
        return server.detach(arguments.port)
    if arguments.stop:
        return server.stop()
    return server.serve(arguments.port)
