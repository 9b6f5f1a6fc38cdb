"""``flax-shufflenet export NET``: the net as a file that JAX alone can run; ``--help`` lists the options."""

import dataclasses
import json
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import numpy as np
from tyro.conf import Positional, arg

from flax_shufflenet.commands.command_line import run
from flax_shufflenet.errors import OptionError
from flax_shufflenet.images.options import ImageOptions, note
from flax_shufflenet.other_files import explain_missing
from flax_shufflenet.shipped import nets as shipped_nets
from flax_shufflenet.system.files import open_whole

if TYPE_CHECKING:
    from flax_shufflenet.images.preprocessing import Preprocessing

PROGRAM, METADATA = "program.jax", "metadata.json"

# Of the largest score. An accelerator multiplies in TF32 or bfloat16 unless told otherwise.
_BAR_ON_CPU, _BAR_ON_ACCELERATOR = 1e-4, 5e-2

_CHECKED_BATCHES = (1, 5)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options(ImageOptions):
    """Writes a net as a program that runs without this package.

    The program takes images as they are in image files, uint8 [N, SIZE, SIZE, 3] with values from 0 to 255 in the
    order red, green, blue, any N, and returns float32 [N, CLASSES], the class scores before the softmax.
    Normalisation is inside, and so are the weights. The file is a zip archive of program.jax, for
    jax.export.deserialize, and metadata.json, with the class names and how images are brought to size:

        import json, zipfile, jax.export
        with zipfile.ZipFile("net.exported.zip") as file:
            program = jax.export.deserialize(file.read("program.jax"))
            names = json.loads(file.read("metadata.json"))["class_names"]
        scores = program.call(images)

    It is written once it has been reloaded and compared with the net. For ONNX: python -m convert NET -o net.onnx.
    Exit codes: 0 written; 2 the command line is wrong; 1 anything else, and then nothing is written.
    """

    net: Annotated[Positional[Path], arg(metavar="NET")]
    """The net: a file that training, convert or flax_shufflenet.save wrote, or the name of one that comes with the
    package."""

    output: Annotated[
        Path | None, arg(aliases=["-o"], metavar="FILE", help_behavior_hint="(default: beside NET, as .exported.zip)")
    ] = None
    """Where to write."""

    platforms: tuple[Literal["cpu", "cuda", "tpu"], ...] = ("cpu", "cuda", "tpu")
    """What the program is to run on; one of them must be here, to check it."""

    force: bool = False
    """Overwrite a file that exists."""


def export(options: Options) -> int:
    """Writes the program; returns 0.

    Raises:
        OptionError, OSError, ValueError: nothing was written; the message is one line.
    """
    file = shipped_nets.find(options.net)
    if not file.is_file():
        raise FileNotFoundError(explain_missing(file))
    # A name is no path: it may have a dot in it.
    stem = options.net.with_suffix("") if file == options.net else options.net
    output = options.output or stem.with_name(f"{stem.name}.exported.zip")
    if output.exists() and not options.force:
        raise ValueError(f"{output} exists: name another --output, or overwrite it with --force")
    if not output.parent.is_dir():
        raise ValueError(f"{output}: there is no folder {output.parent}; make it first")
    # Imported here: JAX takes a second that --help and a wrong option need not wait for.
    import jax

    from flax_shufflenet import fuse
    from flax_shufflenet.images.pixel_net import of_pixels, open_net
    from flax_shufflenet.system.platforms import check_platforms

    check_platforms()
    device = _device_here(options.platforms)
    model, expected = open_net(file, options)
    note(expected.assumed, options)
    program = serialise(of_pixels(fuse(model), expected), expected.size, options.platforms)
    largest = compare(program, jax.jit(of_pixels(model, expected)), expected.size, device)
    description = _describe(options, expected, model.architecture.num_classes, largest)
    for name in ("input", "output"):
        print(f"{name:<10}{description[name]}")
    print(f"{'platforms':<10}{', '.join(options.platforms)}")
    batches = " and ".join(map(str, _CHECKED_BATCHES))
    print(f"{'checked':<10}batches of {batches} on {device.platform}: at most {largest:.1e} of the largest score apart")
    sys.stdout.flush()  # where that fails, nothing is written
    with open_whole(output) as file, zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr(PROGRAM, program)
        archive.writestr(METADATA, json.dumps(description, indent=1))
    print(f"{'wrote':<10}{output} ({output.stat().st_size:,} bytes)")
    return 0


def _device_here(platforms: tuple[str, ...]) -> Any:
    import jax

    for platform in platforms:  # the CPU first, whose arithmetic is exact
        try:
            return jax.devices(platform)[0]
        except RuntimeError:
            continue
    raise OptionError(f"--platforms {' '.join(platforms)}: none of them is here to check the program on; add cpu")


def serialise(net: Callable, size: int, platforms: tuple[str, ...]) -> bytes:
    """A net of uint8 images of ``size`` x ``size``, in any number, as the bytes that ``jax.export`` reads."""
    import jax
    import jax.export

    images = jax.ShapeDtypeStruct(jax.export.symbolic_shape(f"n,{size},{size},3"), np.uint8)
    return bytes(jax.export.export(jax.jit(net), platforms=platforms)(images).serialize())


def compare(program: bytes, net: Callable, size: int, device: Any) -> float:
    """The largest difference between a serialised net and the one that it was made from, on random images, as a
    share of the largest score.

    Raises:
        ValueError: it is larger than rounding.
    """
    import jax
    import jax.export

    reloaded = jax.export.deserialize(bytearray(program))
    random = np.random.default_rng(0)
    largest = 0.0
    with jax.default_device(device):
        for count in _CHECKED_BATCHES:
            images = random.integers(0, 256, (count, size, size, 3), dtype=np.uint8)
            expected, found = np.asarray(net(images)), np.asarray(reloaded.call(images))
            difference = float(np.abs(found - expected).max() / np.abs(expected).max())
            bar = _BAR_ON_CPU if device.platform == "cpu" else _BAR_ON_ACCELERATOR
            if not difference <= bar:
                raise ValueError(
                    f"the exported program differs from the net by {difference:.1e} of the largest score "
                    f"(bar {bar:g}); nothing was written"
                )
            largest = max(largest, difference)
    return largest


def _describe(options: Options, expected: "Preprocessing", classes: int, largest: float) -> dict[str, Any]:
    from flax_shufflenet.system.versions import versions

    what = f"[n, {classes}], class scores before the softmax" if classes else "features"
    return {
        "net": options.net.name,
        "input": f"uint8 [n, {expected.size}, {expected.size}, 3], values from 0 to 255, red, green, blue",
        "output": f"float32 {what}",
        "platforms": options.platforms,
        "image_size": expected.size,
        "resize": expected.resize,
        "class_names": expected.class_names,
        "assumed": expected.assumed,
        "largest_difference": largest,
        "versions": versions("flax-shufflenet", "jax", "jaxlib"),
    }


def main() -> int:
    return run("flax-shufflenet export", Options, export)
