"""Training the classifier alone: the rest of the net, its running statistics included, stays as it is."""

from typing import NamedTuple

import jax
from flax import nnx
from jaxtyping import Array

from flax_shufflenet.model import ShuffleNetV2


class Trained(NamedTuple):
    """Some of a net's parameters, as places in the list of all."""

    places: tuple[int, ...]

    def of(self, parameters: list[Array]) -> list[Array]:
        """Those parameters alone."""
        return [parameters[place] for place in self.places]

    def put(self, parameters: list[Array], trained: list[Array]) -> list[Array]:
        """All parameters, with these in their places."""
        new = dict(zip(self.places, trained, strict=True))
        return [new.get(place, parameter) for place, parameter in enumerate(parameters)]


def freeze_backbone(model: ShuffleNetV2) -> Trained:
    """Lets a net in train mode normalise with its running statistics, which then stay; the features are still
    dropped before the classifier where the net does that. Returns the classifier's parameters.

    The places are those in the list that ``functional.split`` makes.
    """
    model.set_attributes(use_running_average=True)
    paths = [path for path, _ in jax.tree.leaves_with_path(nnx.state(model, nnx.Param))]
    return Trained(tuple(place for place, path in enumerate(paths) if path[0].key == "classifier"))
