"""``python -m benchmarks.ship RUN_FOLDER --data_dir DIR``: a run's net becomes one of those that come with the package.

RUN_FOLDER is what ``train.py`` left: ``metrics.jsonl`` and ``net.safetensors``. The net is evaluated, and goes into
``flax_shufflenet/shipped/`` as shufflenet_SIZE_DATASET, with its card and its SHA-256 in the registry; a net of that
name is replaced. The run's log and the evaluation go into ``results/``, under the folder's name.
Exit codes: 0 done; 2 the command line is wrong; 1 anything else, with one line on stderr.
"""

import argparse
import contextlib
import io
import json
import sys
from pathlib import Path

from benchmarks.model_card import DATA, EVALUATION_FILE, card
from benchmarks.tables.markdown import ROOT
from flax_shufflenet.commands import evaluate
from flax_shufflenet.errors import one_line
from flax_shufflenet.runs.run import METRICS_FILE, Run, read_run
from flax_shufflenet.shipped import nets
from flax_shufflenet.system.files import write_whole
from flax_shufflenet.training.loop import NET_FILE
from flax_shufflenet.weights import read_metadata


def ship(folder: Path, data_dir: Path) -> str:
    """Does what the module says, and returns the net's name.

    Raises:
        OSError, ValueError: no finished run is in ``folder``, or one that a card cannot describe, or ``results/`` has
            another one of its name.
    """
    run = read_run(folder)
    net = folder / NET_FILE
    _check_finished(run, net)
    dataset = run.options["dataset"]
    if dataset not in DATA:
        raise ValueError(f"{folder} is a run on {dataset}: benchmarks/model_card.py describes {', '.join(DATA)} alone")
    if run.options.get("family") or run.options.get("init"):
        raise ValueError(
            f"{folder} is a run with --family or --init, of which neither the net's name nor its card tells"
        )
    log = ROOT / "results" / folder.resolve().name
    content = (folder / METRICS_FILE).read_bytes()
    if (log / METRICS_FILE).exists() and (log / METRICS_FILE).read_bytes() != content:
        raise ValueError(f"{log / METRICS_FILE} is the log of another run: give {folder} another name")
    evaluation = _evaluation(net, data_dir)

    name = f"shufflenet_{run.options['net_size']}_{dataset}"
    shipped = nets.ShippedNet(
        file=f"{name}.safetensors",
        sha256=nets.sha256(net),
        card=f"{name}.md",
        log=log.relative_to(ROOT).as_posix(),
    )
    log.mkdir(exist_ok=True)
    write_whole(log / METRICS_FILE, content)
    write_whole(log / EVALUATION_FILE, evaluation.encode())
    write_whole(nets.FOLDER / shipped.file, net.read_bytes())
    entries = {known: entry._asdict() for known, entry in nets.registry().items()} | {name: shipped._asdict()}
    write_whole(nets.FOLDER / nets.REGISTRY_FILE, f"{json.dumps(dict(sorted(entries.items())), indent=1)}\n".encode())
    write_whole(nets.FOLDER / shipped.card, card(name, nets.FOLDER / shipped.file, log).encode())
    return name


def _check_finished(run: Run, net: Path) -> None:
    metadata = read_metadata(net)
    last = run.last or {}
    if (metadata.get("epochs"), metadata.get("test_accuracy")) != (
        str(last.get("epoch")),
        str(last.get("test_accuracy")),
    ):
        raise ValueError(f"{net} is not the net of the last epoch in {run.folder / METRICS_FILE}")


def _evaluation(net: Path, data_dir: Path) -> str:
    """What ``evaluate`` finds, as JSON, without what is of the moment alone."""
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        evaluate.evaluate(evaluate.Options(net=net, data_dir=data_dir, robustness=True, json=True))
    found = json.loads(printed.getvalue())
    kept = {key: value for key, value in found.items() if key not in ("net", "source", "images_per_second")}
    return f"{json.dumps(kept, indent=1)}\n"


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.ship", description=__doc__)
    parser.add_argument("run", type=Path, metavar="RUN_FOLDER")
    parser.add_argument("--data_dir", type=Path, required=True, metavar="DIR", help="folder of TensorFlow Datasets")
    options = parser.parse_args()
    try:
        name = ship(options.run, options.data_dir)
    except (OSError, ValueError, RuntimeError) as error:
        print(f"ship: {one_line(error)}", file=sys.stderr)
        return 1
    print(f"shipped {name}; its card is {nets.FOLDER / nets.registry()[name].card}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
