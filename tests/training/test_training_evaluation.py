"""Evaluation counts every image once, and agrees with plain NumPy."""

import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from flax_shufflenet import Architecture
from flax_shufflenet.functional import split
from flax_shufflenet.training.evaluation import make_evaluate, make_predict
from tests.net_tools import apply, new_net


@pytest.fixture(scope="module")
def model():
    net = new_net(Architecture(stage_widths=(4,), stage_blocks=(1,), stem_width=4, last_width=8, num_classes=3))
    rng = np.random.default_rng(0)
    for _, variable in nnx.to_flat_state(nnx.state(net, nnx.BatchStat)):
        value = variable.get_value()
        if value.dtype == jnp.float32:
            variable.set_value(jnp.asarray(rng.uniform(0.5, 1.5, value.shape), jnp.float32))
    net.classifier.kernel[...] *= 100  # so that the classes differ
    net.eval()
    return net


@pytest.mark.parametrize("batch_size", [1, 3, 4, 5, 10, 64])
def test_every_batch_size_gives_numpys_result(model, small_dataset, batch_size):
    images, labels = small_dataset.test_images, small_dataset.test_labels
    logits = np.asarray(
        apply(model, jnp.asarray((images / 255 - np.array(small_dataset.mean)) / small_dataset.std, jnp.float32)),
        np.float64,
    )
    shifted = logits - logits.max(1, keepdims=True)
    losses = np.log(np.exp(shifted).sum(1)) - shifted[np.arange(10), labels]

    network, parameters, statistics = split(model)
    predict = make_predict(
        network, jnp.asarray(images), mean=small_dataset.mean, std=small_dataset.std, batch_size=batch_size
    )
    result = make_evaluate(predict, labels)(parameters, statistics)
    assert result.accuracy == np.mean(logits.argmax(1) == labels)
    np.testing.assert_allclose(result.loss, losses.mean(), rtol=1e-4)


def test_a_flipped_test_takes_the_mean_of_both_views_logits(model, small_dataset):
    images = (small_dataset.test_images / 255 - np.array(small_dataset.mean)) / small_dataset.std
    views = [apply(model, jnp.asarray(view, jnp.float32)) for view in (images, images[:, :, ::-1])]
    network, parameters, statistics = split(model)
    predict = make_predict(
        network,
        jnp.asarray(small_dataset.test_images),
        mean=small_dataset.mean,
        std=small_dataset.std,
        flip=True,
        batch_size=4,
    )
    assert np.abs(views[0] - views[1]).max() > 0.1
    np.testing.assert_allclose(predict(parameters, statistics), (views[0] + views[1]) / 2, rtol=1e-4, atol=1e-5)
