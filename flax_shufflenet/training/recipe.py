"""Whole recipes, as values of the options in ``TrainingOptions``, and how a run's recipe is told."""

from typing import Any

from flax_shufflenet.training.config import TrainingOptions

# The published recipe of the CIFAR-10 nets of chenyaofo/pytorch-cifar-models is the options' own defaults. The fast one
# takes four times as many steps an epoch, with four times the learning rate for each image and a warm-up that lets it
# begin with that; most parameters go by Muon, and images are shifted less. It does not average: at the end of a cosine
# to 0 the last steps are all but the same net.
RECIPES: dict[str, dict[str, Any]] = {
    "published": {},
    # That of torchvision's ShuffleNetV2 1.5 and 2.0, as far as there are options for it; docs/data.md says what is not.
    "imagenet": {
        "epochs": 600,
        "batch_size": 1024,
        "learning_rate": 0.5,
        "warmup_epochs": 5.0,
        "weight_decay": 2e-5,
        "decayed": "kernels",
        "label_smoothing": 0.1,
        "random_erasing": 0.1,
        "ema": 0.99997,
    },
    "fast": {
        "epochs": 20,
        "batch_size": 64,
        "optimizer": "muon",
        "warmup_epochs": 0.5,
        "decayed": "kernels",
        "crop_padding": 2,
        "crop_padding_mode": "reflect",
    },
}


def describe(options: TrainingOptions, *, flip: bool, resized: bool = False) -> str:
    """One line that names every part of a recipe that is in use. ``flip``: images are mirrored at random; ``resized``:
    so are the sizes of their crops."""
    warmup = f" after {options.warmup_epochs:g} epochs of warm-up" if options.warmup_epochs else ""
    decayed = "" if options.decayed == "all" else " on kernels alone"
    reflected = "reflected " if options.crop_padding_mode == "reflect" else ""
    padded_crop = f"crop with {reflected}padding {options.crop_padding}" if options.crop_padding else "no crop"
    crop = "random resized crop" if resized else padded_crop
    parts = [
        *(["classifier alone"] if options.freeze == "backbone" else []),
        f"{options.epochs} epochs",
        f"batch {options.batch_size}",
        f"SGD with Nesterov momentum {options.momentum}",
        f"learning rate {options.learning_rate} to 0 along a cosine{warmup}",
        f"weight decay {options.weight_decay}{decayed}",
        f"{crop}{' and flip' if flip else ''}",
    ]
    if options.optimizer == "muon" and options.freeze == "none":
        parts.append(
            f"Muon for 1x1 kernels with learning rate {options.muon_learning_rate}, weight decay "
            f"{options.muon_weight_decay}"
        )
    if options.random_erasing:
        parts.append(f"random erasing {options.random_erasing}")
    if options.label_smoothing:
        parts.append(f"label smoothing {options.label_smoothing}")
    if options.batch_statistics == "per_device":
        parts.append("batch statistics per device")
    if options.ema:
        parts.append(f"averaged with decay {options.ema}")
    return ", ".join(parts)
