"""Whether running statistics tell a net's graph from others with the same tensors: ``python -m benchmarks.graph_fit``.

Trains nets in PyTorch for a few hundred steps, as ``benchmarks.evidence`` does, some of them changed in a way that no
tensor shows: another activation, shuffle or split. Each is then taken for the layout that its names say. Files of
others are weighed as they are, and taken for what they are not. Prints a table, and writes it with ``--json``.
"""

import argparse
import dataclasses
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import nn

from benchmarks.evidence import Net, hypotheses, train
from benchmarks.report import installed_versions
from convert.contents.select import find_net
from convert.evidence.choices import STEM
from convert.evidence.graph import Fit, weigh_graph
from convert.files.read import read
from flax_shufflenet.datasets import data
from torch_ref.seed import ShuffleBlock, SplitBlock


class OtherHalf(nn.Module):
    """Passes the second half on, and takes the first."""

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, ...]:
        return x.chunk(2, 1)[::-1]


def _replaced(kind: type[nn.Module], by: Callable[[], nn.Module]) -> Callable[[nn.Module], None]:
    def replace(net: nn.Module) -> None:
        for name in [name for name, module in net.named_modules() if isinstance(module, kind)]:
            net.set_submodule(name, by())

    return replace


CHANGES: dict[str, Callable[[nn.Module], None]] = {
    "as it is": lambda net: None,
    "Hardswish for ReLU": _replaced(nn.ReLU, nn.Hardswish),
    "SiLU for ReLU": _replaced(nn.ReLU, nn.SiLU),
    "LeakyReLU of slope 0.1 for ReLU": _replaced(nn.ReLU, lambda: nn.LeakyReLU(0.1)),
    "no shuffle": _replaced(ShuffleBlock, nn.Identity),
    "the other half passes": _replaced(SplitBlock, OtherHalf),
}
"""What is done to a net under chenyaofo's names."""


def measure(files: list[Path], data_dir: Path | None, steps: int) -> Iterator[dict[str, Any]]:
    """A row for each net: its name, its graph, and how well it fits what it is taken for."""
    for file in files:
        net = find_net(read(file).content)
        down_relu = not net.architecture.down_relu
        taken_as: dict[str, dict[str, Any]] = {
            "as it is": {},
            "taken for one that shuffles the other way": {"shuffle": "reverse"},
            f"taken for one with{'' if down_relu else 'out'} ReLUs in its down blocks": {"down_relu": down_relu},
        }
        for graph, changes in taken_as.items():
            taken_for = dataclasses.replace(net.architecture, **changes)
            yield _row(file.name, graph, weigh_graph(net.layout, taken_for, net.tensors))
    datasets = {"digits": data.load("digits", Path())}
    if data_dir is not None:
        datasets["cifar10"] = data.load("cifar10", data_dir)
    for name, dataset in datasets.items():
        for graph, change in CHANGES.items():
            net = Net(STEM, 0, name, 32, steps=steps)
            layout, architecture = hypotheses(net.question, net.size, 10)[net.truth]
            found = weigh_graph(layout, architecture, train(net, dataset, change))
            yield _row(f"{name}, size {net.size}, {steps} steps", graph, found)


def _row(net: str, graph: str, fit: Fit | None) -> dict[str, Any]:
    assert fit is not None
    return {"net": net, "graph": graph, "median": fit.median, "tenth": fit.tenth, "fits": fit.is_good}


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.graph_fit", description=__doc__)
    parser.add_argument("files", type=Path, nargs="*", help="checkpoints of others")
    parser.add_argument("--data_dir", type=Path, help="folder of TensorFlow Datasets, for CIFAR-10")
    parser.add_argument("--steps", type=int, default=200, help="of each training (default: 200)")
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    rows = []
    for row in measure(arguments.files, arguments.data_dir, arguments.steps):
        rows.append(row)
        print(f"{row['net']}  {row['graph']}  {row['median']:.3f}  {row['tenth']:.3f}  {row['fits']}", flush=True)
        if arguments.json:
            arguments.json.write_text(json.dumps({"versions": installed_versions(), "rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
