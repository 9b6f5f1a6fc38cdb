"""Only the classifier is trained where the backbone is frozen, and the rest keeps its bits."""

import dataclasses
import json
import signal
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from flax import nnx

import flax_shufflenet as fs
from convert.proof.verify import relative_difference
from flax_shufflenet.datasets import data
from flax_shufflenet.errors import OptionError, TrainingError
from flax_shufflenet.system.interruption import Interrupted
from flax_shufflenet.training import loop
from flax_shufflenet.training.batches import Batches
from flax_shufflenet.training.config import Config
from flax_shufflenet.training.freezing import freeze_backbone
from flax_shufflenet.training.program import Program
from flax_shufflenet.weights import flat_arrays
from tests.net_tools import new_net
from tests.parity_tools import FLOAT64_BAR

TINY = fs.Architecture(stage_widths=(4,), stage_blocks=(1,), stem_width=4, last_width=8, num_classes=3)
HEAD = {"classifier.kernel", "classifier.bias"}


def net(dtype=jnp.float32, **fields):
    """In train mode, with statistics that no batch has."""
    model = new_net(dataclasses.replace(TINY, **fields), dtype=dtype)
    for path, variable in nnx.to_flat_state(nnx.state(model, nnx.BatchStat)):
        if path[-1] != "num_batches_tracked":
            value = np.asarray(variable.get_value())
            variable.set_value(jnp.asarray(value + 0.1 * np.arange(value.size), value.dtype))
    return model


def bits(model):
    return {name: np.asarray(array).tobytes() for name, array in flat_arrays(model).items()}


def test_the_classifier_learns_as_a_layer_of_pytorch_on_features_in_eval_mode(small_dataset, float64):
    # Powers of two: normalised images are then exact, wherever a compiler rounds.
    dataset = dataclasses.replace(small_dataset, mean=(0.0,) * 3, std=tuple(n / 255 for n in (32, 64, 128)))
    config = Config(
        init=Path("net"),
        freeze="backbone",
        batch_size=8,
        epochs=8,
        learning_rate=0.125,
        momentum=0.75,
        weight_decay=0.25,
    )
    model = net(jnp.float64)
    program = Program(model, config, dataset)  # leaves the net in eval mode
    program.compile()
    layer = torch.nn.Linear(8, 3).double()
    layer.load_state_dict({"weight": to_torch(model.classifier.kernel).T, "bias": to_torch(model.classifier.bias)})
    sgd = torch.optim.SGD(layer.parameters(), 0.125, 0.75, weight_decay=0.25, nesterov=True)

    train_set = jnp.asarray(dataset.train_images), jnp.asarray(dataset.train_labels)
    order = program.order(1)
    assert order is not None
    images, labels = jax.jit(partial(Batches.of(config, dataset).pick, 0))(*train_set, order)
    features = nnx.jit(lambda model, images: model.features(images))(model, images)
    loss = torch.nn.functional.cross_entropy(layer(to_torch(features)), to_torch(labels).long())
    loss.backward()
    sgd.step()

    state, metrics = program.step(program.initial, order)
    after = program.net(state).classifier
    assert abs(float(metrics.loss) - loss.item()) <= FLOAT64_BAR * loss.item()
    assert relative_difference(np.asarray(after.kernel).T, layer.weight.detach().numpy()) <= FLOAT64_BAR
    assert relative_difference(np.asarray(after.bias), layer.bias.detach().numpy()) <= FLOAT64_BAR


def to_torch(array):
    return torch.from_numpy(np.array(array))


def test_features_are_still_dropped_where_the_net_does_that():
    model = net(dropout=0.3)
    freeze_backbone(model)
    assert model.stem.bn.use_running_average
    assert not model.dropout.deterministic


def test_all_but_the_classifier_keeps_its_bits_in_the_net_and_in_its_average(small_dataset):
    config = Config(init=Path("net"), freeze="backbone", batch_size=4, epochs=2, ema=0.9, weight_decay=0.1)
    model = net(dropout=0.3, stem_relu=False, conv_bias=True)
    model.stem.conv.kernel[...] *= -0.0  # as pruned weights are
    before = bits(model)
    program = Program(model, config, small_dataset)
    program.compile()
    momentum = [leaf.shape for leaf in jax.tree.leaves(program.initial.optimizer) if leaf.ndim]
    assert sorted(momentum) == [(3,), (8, 3)]
    state, losses = program.initial, []
    for _ in range(3):
        state, metrics = program.step(state, program.order(1))
        losses.append(float(metrics.loss))
    averaged, raw = bits(program.net(state)), bits(program.net(state._replace(averages=())))
    for after in averaged, raw:
        assert {name for name in before if after[name] != before[name]} == HEAD
    assert averaged["classifier.kernel"] != raw["classifier.kernel"]


@pytest.mark.usefixtures("without_report")
def test_a_frozen_run_that_is_stopped_ends_with_the_same_bits(tmp_path, small_dataset, monkeypatch, capsys):
    monkeypatch.setattr(data, "load", lambda *_, **__: small_dataset)
    fs.save(net(num_classes=5), tmp_path / "init.safetensors")
    options: dict[str, Any] = {"init": tmp_path / "init.safetensors", "freeze": "backbone", "dataset": "digits"}
    options |= {"ema": 0.9, "epochs": 2, "batch_size": 8, "no_compilation_cache": True}
    loop.train(Config(out=tmp_path / "one", **options))
    assert "recipe  classifier alone, 2 epochs" in capsys.readouterr().out

    original = Program.step

    def step_and_signal(self, state, order):
        if int(state.step) == 2:
            signal.raise_signal(signal.SIGINT)
        return original(self, state, order)

    with monkeypatch.context() as patch:
        patch.setattr(Program, "step", step_and_signal)
        with pytest.raises(Interrupted):
            loop.train(Config(out=tmp_path / "two", **options))
    with pytest.raises(TrainingError, match=r"^--freeze is none, but .* was started with backbone"):
        loop.train(dataclasses.replace(Config(out=tmp_path / "two", **options), freeze="none"))
    loop.train(Config(out=tmp_path / "two", **options))
    one, two = ((tmp_path / name / "net.safetensors").read_bytes() for name in ("one", "two"))
    assert one == two

    file, after = (bits(fs.load(path)) for path in (options["init"], tmp_path / "two" / "net.safetensors"))
    assert {name for name in file if after[name] != file[name]} == HEAD
    description = json.loads((tmp_path / "one" / "metrics.jsonl").read_text().splitlines()[0])
    assert description["config"]["freeze"] == "backbone"


def test_a_backbone_is_frozen_only_where_there_is_one():
    with pytest.raises(OptionError, match=r"^--freeze backbone needs a net to start from: give --init"):
        Config(freeze="backbone")
