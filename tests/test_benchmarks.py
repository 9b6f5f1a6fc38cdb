"""The benchmarks' own claims: the stock net is the same net, the figures follow from the samples, the command runs."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import flax_shufflenet as fs
from benchmarks import floor, layouts, photographs, profile, refusals, summary, variations, vary
from benchmarks.case import Case
from benchmarks.harness import Result
from benchmarks.stock_flax import with_weights_of
from flax_shufflenet.datasets import image_folder
from flax_shufflenet.functional import split
from flax_shufflenet.ops.batch_norm import batch_norm
from flax_shufflenet.ops.convolution import conv2d
from flax_shufflenet.training.batches import Batches
from flax_shufflenet.training.config import Config
from flax_shufflenet.weights import flat_arrays, shapes
from tests.net_tools import random_net
from tests.training.random_data import random_dataset

ROOT = Path(__file__).parents[1]


@pytest.mark.parametrize("train", [False, True])
def test_the_stock_net_is_the_same_function(float64, train):
    architecture = fs.Architecture(
        stage_widths=(8, 12), stage_blocks=(1, 2), last_width=16, down_relu=False, num_classes=5
    )
    model = random_net(architecture, jnp.float64)
    stock = with_weights_of(model)
    (model.train if train else model.eval)()
    (stock.train if train else stock.eval)()
    images = jnp.asarray(np.random.default_rng(1).standard_normal((3, 9, 7, 3)))

    def output(net):
        network, parameters, statistics = split(net)
        return jax.jit(lambda *arrays: network.apply(*arrays)[0])(parameters, statistics, images)

    expected = output(model)
    np.testing.assert_allclose(output(stock), expected, rtol=0, atol=1e-10 * float(np.abs(expected).max()))


@pytest.mark.parametrize("size", [0.5, 1.0])
def test_the_stock_net_has_the_same_parameters(size):
    model = random_net(fs.seed(size), jnp.float32)
    stock = with_weights_of(model)

    def without_counts(net):
        return {name: array.shape for name, array in flat_arrays(net).items() if "num_batches" not in name}

    assert without_counts(stock) == without_counts(model)


def result(contender, samples, case):
    return Result(contender, case, 1.0, 0.5, 1000, samples)


def test_ratios_are_paired_round_by_round():
    case = Case("infer", 0.5, 2, Path())
    # The second round is ten times slower for both: the medians' ratio would be 3, that of each round is 2.
    ours, theirs = (
        result("flax-shufflenet", [[1.0], [10.0], [2.0]], case),
        result("torch-eager", [[2.0], [20.0], [6.0]], case),
    )
    rows = {row.contender: row for row in summary.summarise([theirs, ours])}
    assert rows["torch-eager"].seconds == 6.0
    assert rows["torch-eager"].ratio == 2.0
    assert rows["flax-shufflenet"].ratio == 1.0
    assert rows["flax-shufflenet"].floor_ratio is None


def test_the_floor_takes_each_product_from_whoever_is_faster():
    case = Case("infer", 0.5, 2, Path())
    counts = np.array(list(floor.products(case).values()))
    fast = np.where(np.arange(len(counts)) % 2, 1.0, 3.0)
    one, other = result("floor-torch", [list(fast)] * 3, case), result("floor-jax", [list(4 - fast)] * 3, case)
    ours = result("flax-shufflenet", [[5.0 * counts.sum()]] * 3, case)
    assert summary.floor_seconds([one, other], case) == pytest.approx(counts.sum())
    assert summary.summarise([ours, one, other])[0].floor_ratio == pytest.approx(5)


def test_the_floor_counts_every_pointwise_convolution():
    kernels = [shape for name, shape in shapes(fs.seed(1.0)).items() if name.endswith("conv.kernel")]
    expected = sorted(shape[2:] for shape in kernels if shape[:2] == (1, 1))
    assert sorted(shape[1:] for shape in floor.pointwise_shapes(fs.seed(1.0), 1)) == expected
    assert floor.flops(Case("train", 1.0, 4, Path())) == 3 * floor.flops(Case("infer", 1.0, 4, Path()))


def test_the_floor_multiplies_what_it_says():
    case = Case("train", 0.5, 2, Path())
    ours, theirs = ([step() for step in build(case)()] for build in (floor.jax_products, floor.torch_products))
    for product, a, b in zip(floor.products(case), ours, theirs, strict=True):
        assert a.shape == (product.m, product.n)
        np.testing.assert_allclose(a, b, rtol=0, atol=1e-5 * float(np.abs(a).max()))


def test_a_profile_says_what_each_operation_belongs_to():
    x, kernel = jnp.ones((2, 8, 8, 4)), jnp.ones((3, 3, 1, 4))
    scale = bias = jnp.ones(4)

    def loss(kernel, scale):
        found = batch_norm(conv2d(x, kernel, groups=4), scale, bias, 1e-5, True)
        y, _, _ = found
        return jnp.sum(y * x)

    program = jax.jit(jax.grad(loss, argnums=(0, 1))).lower(kernel, scale).compile().as_text()
    assert program is not None
    found = profile.operations(program)
    assert {"depthwise, gradient to the kernel", "batch normalisation and ReLU, backward"} <= {
        operation.part for operation in found.values()
    }
    times = [(name, 0.5) for name in found]
    measured = profile.parts(found, times * 3, steps=3)
    counted = [one for one in found.values() if one.kind not in ("call", "conditional", "while")]
    assert sum(part.operations for part in measured.values()) == len(counted)
    assert sum(part.seconds for part in measured.values()) == pytest.approx(0.5 * len(counted))


def test_a_profile_counts_the_bytes_that_an_operation_reads_and_writes():
    x = jnp.ones((100, 25))
    program = jax.jit(lambda x, y: x * 2 + y).lower(x, x).compile().as_text()
    assert program is not None
    assert max(operation.bytes for operation in profile.operations(program).values()) == 3 * x.nbytes


def benchmarks(*arguments):
    return subprocess.run(
        [sys.executable, "-m", "benchmarks", *map(str, arguments)],
        cwd=ROOT,
        env=os.environ | {"PYTHONWARNINGS": ""},
        capture_output=True,
        text=True,
        timeout=120,
    )


@pytest.mark.slow
def test_a_run_prints_a_table_and_writes_every_sample(tmp_path):
    file, chart = tmp_path / "out.json", tmp_path / "out.png"
    only = ("torch-eager", "flax-shufflenet")
    quick = ("--sizes", 0.5, "--batches", 2, "--rounds", 1)
    done = benchmarks("infer", *quick, "--only", *only, "--json", file, "--plot", chart)
    assert done.returncode == 0, done.stderr
    assert "PyTorch eager" in done.stdout
    found = json.loads(file.read_text())
    assert set(found) == {
        "date",
        "command",
        "commit",
        "hardware",
        "versions",
        "settings",
        "results",
        "summary",
        "floors",
    }
    assert found["commit"] is None or re.fullmatch(r"[0-9a-f]{12}(-dirty)?", found["commit"])
    assert [one["contender"] for one in found["results"]] == list(only)
    for one in found["results"]:
        assert len(one["samples_seconds"]) == 1
        assert all(seconds > 0 for seconds in one["samples_seconds"][0])
        assert one["startup_seconds"] > one["compile_seconds"] >= 0
        assert one["peak_bytes"] > 50e6
    ratios = {one["contender"]: one["ratio"] for one in found["summary"]}
    assert ratios["flax-shufflenet"] == 1
    assert chart.read_bytes().startswith(b"\x89PNG")


def test_a_wrong_command_line_is_exit_code_2():
    for arguments in (("train", "--rounds", "0"), ("train", "--only", "openvino"), ("fly",)):
        done = benchmarks(*arguments)
        assert done.returncode == 2
        assert "Traceback" not in done.stderr


def test_what_is_missing_is_one_line():
    """This Python pretends that matplotlib is not installed."""
    code = (
        "import sys; sys.modules['matplotlib'] = None; sys.argv[1:] = ['infer', '--only', 'torch-eager']\n"
        "from benchmarks.__main__ import main; sys.exit(main())"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert done.returncode == 1
    assert done.stderr == "benchmarks: matplotlib missing: pip install -e '.[benchmarks]'\n"


def test_the_table_of_layouts_has_them_all() -> None:
    names = [case.name for case in layouts.cases()]
    assert {name.partition(":")[0] for name in names} > set(fs.FAMILIES)
    page = (ROOT / "docs" / "layouts.md").read_text()
    assert [name for name in names if f"| {name} |" not in page] == []
    assert [family for family in fs.FAMILIES if f"| `{family}` |" not in page] == []


def test_a_refusal_in_the_table_of_layouts_is_the_converters_own() -> None:
    case = next(case for case in layouts.cases() if case.name == "fastestdet: without --backbone")
    assert layouts.outcome(case)[0] == "refused"
    assert "detect_head.conv1x1.0.weight" in layouts.outcome(case)[1]


def test_the_page_of_refusals_is_what_is_said() -> None:
    page = (ROOT / "docs" / "refusals.md").read_text().splitlines()
    assert list(refusals.table()) == [line for line in page if line.startswith("|")]


def test_the_photographs_are_a_folder_to_train_on_whose_parts_share_no_pixel(tmp_path):
    folder = tmp_path / "photographs"
    assert photographs.write_folder(folder, copies=2) == 2 * 480 + 60
    parts = image_folder.find_parts(folder, None)
    assert parts.train.class_names == ("china", "flower")
    assert (len(parts.train.paths), len(parts.test.paths)) == (960, 60)
    train, test = ({int(path.name.split("_")[1]) for path in files.paths} for files in (parts.train, parts.test))
    assert max(train) + 192 <= min(test)


def test_alternating_flips_mirror_every_image_in_every_other_epoch():
    dataset = random_dataset(24)
    batches, images = Batches.of(Config(batch_size=24), dataset), jnp.arange(24)
    epochs = [np.asarray(variations.alternately_mirrored(batches, images, number)) for number in range(3)]
    np.testing.assert_array_equal(epochs[1], ~epochs[0])
    np.testing.assert_array_equal(epochs[2], epochs[0])
    assert 0 < epochs[0].sum() < 24
    np.testing.assert_array_equal(variations.alternately_mirrored(batches, images[5:], 1), epochs[1][5:])


def test_every_part_that_can_be_exchanged_is_there_and_no_other_is_taken(capsys, monkeypatch):
    assert all(callable(getattr(variations, name)) for name in vary.PARTS)
    monkeypatch.setattr(sys, "argv", ["vary", "dropout"])
    assert vary.main() == 2
    assert "must be one of alternating_flip, linear_decay, " in capsys.readouterr().err
