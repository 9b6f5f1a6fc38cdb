"""PyTorch's contenders: eager and compiled, in both memory formats."""

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812, the field's name for it

from benchmarks import settings
from benchmarks.case import CLASSES, LEARNING_RATE, MOMENTUM, WEIGHT_DECAY, Case, Program
from torch_ref import ShuffleNetV2


def build(case: Case, *, compiled: bool, channels_last: bool) -> Program:
    torch.set_num_threads(settings.THREADS)
    memory_format = torch.channels_last if channels_last else torch.contiguous_format
    net = ShuffleNetV2(case.size, CLASSES)
    net.load_state_dict(torch.load(case.torch_weights, weights_only=True))
    net.to(memory_format=memory_format)  # pyrefly: ignore[no-matching-overload], a form that its stubs do not know
    images = torch.from_numpy(case.images()).permute(0, 3, 1, 2).contiguous(memory_format=memory_format)
    if case.task == "train":
        return _train_step(net.train(), images, torch.from_numpy(case.labels()).long(), compiled)
    return _forward(net.eval(), images, compiled)


def _train_step(net: ShuffleNetV2, images: torch.Tensor, labels: torch.Tensor, compiled: bool) -> Program:
    optimizer = torch.optim.SGD(
        net.parameters(), LEARNING_RATE, MOMENTUM, weight_decay=WEIGHT_DECAY, nesterov=True, fused=True
    )

    def compile_step() -> list:
        forward = torch.compile(net) if compiled else net

        def step() -> float:
            optimizer.zero_grad(set_to_none=True)
            loss = F.cross_entropy(forward(images), labels)
            loss.backward()
            optimizer.step()
            return loss.item()

        return [step]

    return compile_step


def _forward(net: ShuffleNetV2, images: torch.Tensor, compiled: bool) -> Program:
    def compile_forward() -> list:
        # Frozen weights let it fold batch normalisation, as the engines for inference do.
        forward = torch.compile(net, options={"freezing": True}) if compiled else net

        def step() -> np.ndarray:
            with torch.no_grad():
                return forward(images).numpy()

        return [step]

    return compile_forward
