"""The floor: the net's 1x1 convolutions as plain float32 matrix products, which nothing else of a step can undercut.

In training each convolution is three products: forward, gradient to the input, gradient to the kernel. Every
distinct product is timed in PyTorch and in JAX, and the faster of the two counts.
"""

import collections
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np

from benchmarks import settings
from benchmarks.case import CLASSES, IMAGE_SIDE, Case, Program, Step
from flax_shufflenet import Architecture, seed


def pointwise_shapes(architecture: Architecture, batch: int) -> Iterator[tuple[int, int, int]]:
    """(rows, input channels, output channels) of each 1x1 convolution of a net of the seed's family."""
    side, width = IMAGE_SIDE, architecture.stem_width
    for stage_width, blocks in zip(architecture.stage_widths, architecture.stage_blocks, strict=True):
        half = stage_width // 2
        rows_before, rows = batch * side**2, batch * ((side + 1) // 2) ** 2
        yield from ((rows, width, half), (rows_before, width, half), (rows, half, half))  # left, right, right
        yield from [(rows, half, half)] * (2 * blocks)
        side, width = (side + 1) // 2, stage_width
    yield batch * side**2, width, architecture.last_width


class Product(NamedTuple):
    """[m, k] x [k, n]. A kernel gradient's left side is ``transposed``: it lies in memory as [k, m]."""

    m: int
    k: int
    n: int
    transposed: bool = False


def products(case: Case) -> dict[Product, int]:
    """Each distinct product of a step, and how often it is needed."""
    counts: collections.Counter[Product] = collections.Counter()
    for rows, inputs, outputs in pointwise_shapes(seed(case.size, CLASSES), case.batch):
        counts[Product(rows, inputs, outputs)] += 1
        if case.task == "train":
            counts[Product(rows, outputs, inputs)] += 1
            counts[Product(inputs, rows, outputs, transposed=True)] += 1
    return dict(counts)


def flops(case: Case) -> int:
    return sum(2 * product.m * product.k * product.n * count for product, count in products(case).items())


def seconds(case: Case, samples: Sequence[Sequence[Sequence[float]]]) -> float:
    """The floor of a step; ``samples`` are those of each contender: its rounds, and in each the products' times."""
    best = np.min([np.median(rounds, axis=0) for rounds in samples], axis=0)
    return float(best @ np.array(list(products(case).values())))


def _operands(product: Product) -> tuple[np.ndarray, np.ndarray]:
    random = np.random.default_rng(0)
    left = (product.k, product.m) if product.transposed else (product.m, product.k)
    return random.standard_normal(left, np.float32), random.standard_normal((product.k, product.n), np.float32)


def torch_products(case: Case) -> Program:
    import torch

    torch.set_num_threads(settings.THREADS)

    def step(product: Product) -> Step:
        a, b = map(torch.from_numpy, _operands(product))
        a = a.T if product.transposed else a
        return lambda: torch.mm(a, b)

    steps = list(map(step, products(case)))
    return lambda: steps


def jax_products(case: Case) -> Program:
    import jax
    import jax.numpy as jnp

    def step(product: Product) -> Step:
        a, b = map(jnp.asarray, _operands(product))
        dot = jax.jit(lambda a, b: jnp.dot(a.T if product.transposed else a, b))
        return lambda: jax.block_until_ready(dot(a, b))

    steps = list(map(step, products(case)))
    return lambda: steps
