"""The net as a pure function of flat lists of arrays: what ``jax.jit`` dispatches fastest."""

from typing import NamedTuple

import jax
from flax import nnx
from jax.tree_util import PyTreeDef
from jaxtyping import Array


class Functional(NamedTuple):
    """A net's structure, apart from its arrays; hashable, so it may be a static argument of ``jax.jit``."""

    graph: nnx.GraphDef
    parameter_tree: PyTreeDef
    statistics_tree: PyTreeDef

    def model(self, parameters: list[Array], statistics: list[Array]) -> nnx.Module:
        """The module that holds these arrays, in the mode that the split one was in."""
        return nnx.merge(
            self.graph,
            jax.tree.unflatten(self.parameter_tree, parameters),
            jax.tree.unflatten(self.statistics_tree, statistics),
        )

    def apply(
        self, parameters: list[Array], statistics: list[Array], *inputs: Array, **options
    ) -> tuple[Array, list[Array]]:
        """The module's result, and its batch statistics after the call. ``options`` go to the
        module, such as the ``rngs`` that a net with dropout needs in train mode."""
        model = self.model(parameters, statistics)
        result = model(*inputs, **options)
        return result, jax.tree.leaves(nnx.state(model, nnx.BatchStat))


def split(model: nnx.Module) -> tuple[Functional, list[Array], list[Array]]:
    """A module as structure, parameters and batch statistics; the lists are in the order of ``nnx.state``."""
    graph, parameters, statistics = nnx.split(model, nnx.Param, nnx.BatchStat)
    parameter_leaves, parameter_tree = jax.tree.flatten(parameters)
    statistic_leaves, statistics_tree = jax.tree.flatten(statistics)
    return Functional(graph, parameter_tree, statistics_tree), parameter_leaves, statistic_leaves
