"""A training run from start to end: data, net, epochs, the saved net."""

import contextlib
import dataclasses
import json
import os
from pathlib import Path

import numpy as np
from jax.sharding import Mesh
from rich.console import Console

from flax_shufflenet.datasets.streamed import AnyDataset
from flax_shufflenet.errors import OptionError, TrainingError
from flax_shufflenet.model import ShuffleNetV2
from flax_shufflenet.runs.metrics import MetricsWriter
from flax_shufflenet.runs.run import METRICS_FILE, RunError, read_run
from flax_shufflenet.system import allocator, user_cache
from flax_shufflenet.system.interruption import Interruption
from flax_shufflenet.system.platforms import check_platforms
from flax_shufflenet.training import checkpoints, devices, pipeline, processes, run_folder
from flax_shufflenet.training.checkpoints import Checkpoints
from flax_shufflenet.training.config import Config
from flax_shufflenet.training.description import (
    StartLines,
    describe_run,
    net_metadata,
    print_start,
)
from flax_shufflenet.training.epochs import Epochs, Start, evaluation_of
from flax_shufflenet.training.evaluation import Evaluation
from flax_shufflenet.training.identity import check_same, has_same_options, identity
from flax_shufflenet.training.optimizer import warmup_steps
from flax_shufflenet.training.program import Program
from flax_shufflenet.training.report import REPORT_FILE, REPORT_FILES, try_report
from flax_shufflenet.training.start import as_expected, image_size, initial_model, read_init
from flax_shufflenet.weights import read_metadata, save

NET_FILE = "net.safetensors"
BEST_FILE = "best.safetensors"
CHECKPOINTS = "checkpoints"


def train(config: Config) -> Evaluation:
    """Trains a net as ``config`` says, and saves it with its figures in ``config.out_dir``; returns its test result.

    An unfinished run in that folder is gone on with, and ends with the same bits as one that was never stopped. Where
    ``config`` names other processes, all of them train together, and process 0 prints and writes.

    Raises:
        OptionError: a batch larger than the training set or not a multiple of the number of devices, a warm-up that
            takes all steps, a size that the net to start from does not have, a share to test on of a folder that has a
            test part, or no device of those that JAX_PLATFORMS names.
        TrainingError: no data, or more than the device has room for, no net to start from, a finished, another or a
            running run in ``config.out_dir``, checkpoints that cannot be read or written, or a loss that is not finite.
        OSError: the results cannot be written.
        Interrupted: Ctrl-C or SIGTERM ended the run, after its state was saved.
    """
    allocator.begin_steps_one_by_one()
    processes.join(config)
    check_platforms()
    if not config.no_compilation_cache:
        user_cache.keep_compiled_programs()
    with processes.end_together(), processes.only_first_process_prints(), contextlib.ExitStack() as claims:
        # Names of files and folders are printed as they are, [brackets] and :colons: too.
        console = Console(highlight=False, soft_wrap=True, markup=False, emoji=False)
        with processes.all_or_none():
            if processes.is_first_process():
                _refuse_replacing(config)
                claims.enter_context(run_folder.claim(config.out_dir, console.print))
        return _train(config, console)


def _refuse_replacing(config: Config) -> None:
    """Raises:
    TrainingError: there are results that this run would not go on with, but replace.
    """
    if config.force:
        return
    out_dir, net_file = config.out_dir, config.out_dir / NET_FILE
    try:
        run = read_run(out_dir)
    except RunError:
        run = None
    done = len(run.epochs) if run is not None and has_same_options(config, run.options) else None
    saved = out_dir / CHECKPOINTS
    resumable = os.path.isdir(saved) and any(name.isdecimal() for name in os.listdir(saved))
    reported = os.path.exists(out_dir / REPORT_FILE)
    if os.path.exists(net_file):
        accuracy, epochs = _finished(net_file)
        if done == config.epochs and resumable and not reported:  # goes on from the end, and makes the report
            return
        raise TrainingError(
            f"the run in {out_dir} is finished, with a test accuracy of {accuracy:.2%} after epoch {epochs}: for "
            "another run, such as one of more --epochs, choose another --out, or replace this one with --force"
        )
    found = [name for name in (BEST_FILE, METRICS_FILE, REPORT_FILE) if os.path.exists(out_dir / name)]
    if run is not None and not run.epochs:
        found.remove(METRICS_FILE)
    # The same run, killed before its first checkpoint was whole, makes its first epoch's results again.
    killed_early = done in (0, 1) and not reported
    if found and not resumable and not killed_early:
        raise TrainingError(
            f"{out_dir} has results of a run, but no checkpoint to go on from ({', '.join(found)}): choose another "
            "--out, or replace them with --force"
        )


def _finished(net_file: Path) -> tuple[float, str]:
    """The test accuracy of the net that a finished run has saved, and after how many epochs that was.

    Raises:
        TrainingError: it is no such net.
    """
    try:
        metadata = read_metadata(net_file)
        return float(metadata["test_accuracy"]), metadata["epochs"]
    except (OSError, ValueError, KeyError):
        raise TrainingError(
            f"{net_file} exists, and is no net of a finished run: choose another --out, or replace it with --force"
        ) from None


def _train(config: Config, console: Console) -> Evaluation:
    out_dir = config.out_dir
    mesh = devices.make_mesh()
    writes = processes.is_first_process()
    with processes.all_or_none():
        dataset, model, said = _prepare(config, mesh)
        if writes and config.force:
            _remove_results(out_dir)
    advice = "make room, and the same command goes on from the last checkpoint, if it is given without --force"
    with run_folder.full_disk_is_one_line(out_dir, advice), Checkpoints(out_dir / CHECKPOINTS) as saved:
        print_start(console, config, dataset, said)
        program = Program(model, config, dataset, mesh)
        with contextlib.closing(program.feed):
            start = _start(config, dataset, program, saved, console)
            console.print("compiling the train step")
            program.compile()
            allocator.give_back_freed_memory()
            board = out_dir / "tensorboard" if config.tensorboard and writes else None
            metrics_file = out_dir / METRICS_FILE if writes else None
            with (
                Interruption() as interruption,
                MetricsWriter(metrics_file, start.records, tensorboard=board) as metrics,
            ):
                try:
                    best_file = out_dir / BEST_FILE
                    epochs = Epochs(config, dataset, program, start, saved, metrics, interruption, best_file)
                    state = epochs.run(console)
                except FloatingPointError as error:
                    raise TrainingError(_not_finite(error, saved)) from None
        evaluation = evaluation_of(metrics.records[-1])
        if writes:
            save(program.net(state), out_dir / NET_FILE, net_metadata(config, dataset, evaluation, config.epochs))
    if writes:
        console.print(f"saved   {out_dir / NET_FILE}, test accuracy {evaluation.accuracy:.2%}")
        try_report(out_dir, out_dir / NET_FILE, dataset, console)
    processes.wait_for_all()  # for process 0's report
    return evaluation


def _prepare(config: Config, mesh: Mesh | None) -> tuple[AnyDataset, ShuffleNetV2, StartLines]:
    """The data, the net to start from, and what there is to say of them."""
    saved = read_init(config)
    dataset, why = pipeline.load(config, image_size(config, saved))
    dataset = as_expected(dataset, saved)
    dataset = dataclasses.replace(dataset, flip=dataset.flip and not config.no_flip)
    count = len(dataset.train_labels)
    if config.batch_size > count:
        raise OptionError(
            f"--batch_size must be at most {count}, the size of {config.dataset}, not {config.batch_size}"
        )
    devices.check_batch_size(config.batch_size, count, mesh)
    steps = config.epochs * (count // config.batch_size)
    if warmup_steps(config, steps) == steps:
        raise OptionError(
            f"--warmup_epochs must leave one of the run's {steps} steps for the cosine at least, and "
            f"{config.warmup_epochs:g} epochs take all: choose fewer, or a smaller --batch_size"
        )
    side = min(dataset.image_shape[:2])
    if dataset.short_side is None and config.crop_padding >= side:
        raise OptionError(f"--crop_padding must be below {side}, the images' side, not {config.crop_padding}")
    model, net = initial_model(config, dataset, saved)
    return dataset, model, StartLines(why, net, saved.assumed if saved else "")


def _remove_results(out_dir: Path) -> None:
    """Those of an earlier run that would be taken for the new one's."""
    checkpoints.remove(out_dir / CHECKPOINTS)
    for name in (NET_FILE, BEST_FILE, METRICS_FILE, *REPORT_FILES):
        (out_dir / name).unlink(missing_ok=True)


def _start(config: Config, dataset: AnyDataset, program: Program, saved: Checkpoints, console: Console) -> Start:
    """The newest checkpoint, or the very beginning."""
    ours = identity(config, dataset, program.architecture)
    description = describe_run(config, dataset)
    weights = b"".join(np.asarray(leaf).tobytes() for leaf in program.initial.parameters)
    processes.check_same_everywhere(
        json.dumps(ours).encode() + weights,
        "has other options, data or first weights than process 0: start all with the same command on the same data",
    )
    processes.check_same_everywhere(
        repr(saved.steps()).encode(),
        f"finds other checkpoints than process 0: {config.out_dir} has to be one folder that all processes share",
    )
    found = saved.restore(
        program.initial, lambda record: check_same(ours, record["identity"], config.out_dir), console.print
    )
    if found is None:
        if config.resume:
            raise TrainingError(f"--resume: there is no checkpoint in {saved.folder} to go on from")
        return Start(0, program.initial, ours, [description])
    console.print(f"resume  {saved.path(found.step)}, {found.step} of {program.total_steps} steps are done")
    program.feed.restore(found.record["feed"])
    records = found.record["metrics"]
    for name in ("device", "devices", "processes", "platform", "engine", "versions"):
        before = records[0].get(name, description[name])  # runs of earlier versions do not say all
        if before != description[name]:
            console.print(f"resume  {name} was {before} and is {description[name]}: bits may differ")
    return Start(found.step, found.state, ours, records, found.record["sums"])


def _not_finite(error: FloatingPointError, saved: Checkpoints) -> str:
    saved.wait()
    step = saved.latest_step()
    good = "there is no checkpoint" if step is None else f"the last good checkpoint is {saved.path(step)}"
    return f"{error}: try a smaller --learning_rate, with --force or in another --out; {good}"
