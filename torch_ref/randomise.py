"""Random weights and statistics, for comparisons that a fresh net would pass by accident."""

from typing import TypeVar

import torch
from torch import nn

Net = TypeVar("Net", bound=nn.Module)


def randomise(net: Net, seed: int = 0) -> Net:
    """The same net, with every parameter, running statistic and batch count drawn anew.

    Fresh batch normalisations (scale 1, bias 0, mean 0, variance 1) hide swaps of the four, and equal channels
    hide shuffles.
    """
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for module in net.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.weight.uniform_(0.5, 1.5, generator=generator)
                module.bias.normal_(0, 0.5, generator=generator)
                assert module.running_mean is not None
                assert module.running_var is not None
                assert module.num_batches_tracked is not None
                module.running_mean.normal_(0, 0.5, generator=generator)
                module.running_var.uniform_(0.5, 2, generator=generator)
                module.num_batches_tracked.random_(1, 1000, generator=generator)
            elif isinstance(module, nn.Conv2d | nn.Linear):
                module.weight.normal_(0, (2 / module.weight[0].numel()) ** 0.5, generator=generator)
                if module.bias is not None:
                    module.bias.normal_(0, 0.5, generator=generator)
    return net


def keep_from_kinks(net: Net, seed: int = 0) -> Net:
    """The same net, with biases under which each ReLU passes or stops a channel as a whole, whatever the batch.

    A gradient jumps where a ReLU is at its kink: rounding tips one of millions, and from there on the difference
    is thousands of times rounding, on either side and by chance. A bias of 12 standard deviations keeps every
    value away from zero, and three channels in four open.
    """
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for module in net.modules():
            if isinstance(module, nn.BatchNorm2d):
                signs = (torch.rand(module.bias.shape, generator=generator) < 0.75) * 2.0 - 1
                module.bias.copy_(12 * signs * module.weight)
    return net
