"""The errors that users can cause, and what commands say of any error: one line."""


class OptionError(ValueError):
    """An option's value cannot be used; the message names the option."""


class TrainingError(RuntimeError):
    """Training cannot start or go on; the message is one line that says why and what to do."""


# Which extra brings a package that not every use of the library needs.
_EXTRAS = {
    **dict.fromkeys(("torch", "torchinfo"), "torch"),
    **dict.fromkeys(("onnx", "onnxscript", "onnxruntime"), "onnx"),
    "tensorboardX": "tensorboard",
    **dict.fromkeys(
        ("optax", "orbax", "tensorflow_datasets", "array_record", "sklearn", "matplotlib", "grain"), "train"
    ),
    **dict.fromkeys(("absl", "requests", "importlib_resources"), "train"),
}


def one_line(error: BaseException) -> str:
    """The first line of an error's message, or its type where there is none; for a package that is not installed, the
    command that installs it."""
    if isinstance(error, ModuleNotFoundError) and error.name is not None:
        package = error.name.partition(".")[0]
        if package in _EXTRAS:
            return f"this needs {package}, which is not installed: pip install 'flax-shufflenet[{_EXTRAS[package]}]'"
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__
