"""One run of ``python -m convert``, from a file to a file."""

import dataclasses
import io
import os
import sys
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch

from convert import onnx_file, pipeline
from convert.across import Rewritten
from convert.errors import ConvertError, printable
from convert.files.read import Source, read
from convert.layouts import LAYOUTS
from convert.options import Options
from convert.origin import restore_origin
from convert.proof.images import read_images
from convert.proof.report import Report, failure_table
from convert.proof.verify import Proof
from flax_shufflenet import Architecture
from flax_shufflenet.images.preprocessing import expected_by
from flax_shufflenet.system.files import write_whole
from flax_shufflenet.weights import ARCHITECTURE_KEY, check_arrays, to_bytes

_TORCH_ENDINGS = (".pt", ".pth", ".ckpt", ".bin", ".tar")


def run(options: Options) -> None:
    """Converts as the options say, prints the report, and writes only what is proven.

    Raises:
        ConvertError: one line on what is wrong.
    """
    for path in (options.report, options.plot, options.output):
        _refuse_overwriting(path, options.force)
    _check_files_differ(options, options.output)
    if options.size is not None and not _is_onnx(options.output):
        raise ConvertError(f"{options.output or options.file}: --size is for outputs in .onnx, leave it out")
    source = read(options.file)
    if ARCHITECTURE_KEY in source.metadata:
        _from_flax(source, options)
    else:
        _from_torch(source, options)


def _from_torch(source: Source, options: Options) -> None:
    output = options.output or _beside(source.path, f".{options.to}.pt" if options.to else ".safetensors")
    if _is_onnx(output):
        raise ConvertError(f"{output}: ONNX is made from a Flax net; convert {source.path} to .safetensors first")
    _check_output(output, options, to_torch=options.to is not None)
    images = None if options.images is None else read_images(options.images)
    conversion = pipeline.convert_source(
        source,
        stem=options.stem,
        activation=options.activation,
        shuffle=options.shuffle,
        epsilon=options.epsilon,
        use_ema=options.use_ema,
        backbone=options.backbone,
        key=options.key,
        images=images,
        target=options.to,
    )
    architecture, arrays = conversion.net.architecture, conversion.arrays
    if options.to is None:
        _finish(conversion.report, options, output, to_bytes(architecture, arrays, conversion.metadata))
        return
    _stop_unless_proven(conversion.report.proof, source.path)
    tensors, rewritten, report = _to_layout(
        source, architecture, arrays, options.to, conversion.net.layout.name, conversion.report.kind, images
    )
    restored = restore_origin(rewritten, tensors, arrays, conversion.metadata)
    report = dataclasses.replace(report, notes=(*conversion.report.notes, *report.notes, *restored.notes))
    _finish(report, options, output, _torch_bytes(restored.tensors))


def _from_flax(source: Source, options: Options) -> None:
    for name in ("stem", "activation", "shuffle", "epsilon", "key", "use_ema", "backbone"):
        if getattr(options, name):
            raise ConvertError(f"{source.path}: a Flax net; --{name} is for PyTorch checkpoints, leave it out")
    output = options.output or _beside(source.path, ".pt")
    as_onnx = _is_onnx(output)
    if as_onnx:
        onnx_file.require_packages()
    _check_output(output, options, to_torch=True)
    images = None if options.images is None else read_images(options.images)
    try:
        architecture, arrays = _read_flax(source)
        target = options.to or pipeline.choose_layout(architecture, source.metadata)
        expected = expected_by(architecture, source.metadata, size=options.size)
        came_in = source.metadata.get("layout")
        tensors, rewritten, report = _to_layout(source, architecture, arrays, target, came_in, "Flax net", images)
        if as_onnx and not report.proof.failure:
            onnx = onnx_file.make(rewritten, tensors, architecture, arrays, expected)
            assumed = "; ".join(f"{name} {what}" for name, what in expected.assumed.items())
            notes = [*report.notes, *([f"assumed: {assumed}"] if assumed else []), f"onnx: {onnx.summary}"]
            report = dataclasses.replace(report, notes=tuple(notes))
            data = onnx.data
        else:
            restored = restore_origin(rewritten, tensors, arrays, source.metadata)
            report = dataclasses.replace(report, notes=(*report.notes, *restored.notes))
            data = _torch_bytes(restored.tensors)
    except (ConvertError, ValueError) as error:
        raise ConvertError(f"{source.path}: {error}") from None
    _finish(report, options, output, data)


def _read_flax(source: Source) -> tuple[Architecture, dict[str, np.ndarray]]:
    """The net in a file that ``flax_shufflenet.save`` wrote.

    Raises:
        ConvertError, ValueError: its architecture cannot be read or is another net's, or its dtypes are no net's.
    """
    tensors = source.content
    weights = {t.dtype for name, t in tensors.items() if not name.endswith(".num_batches_tracked")}
    counts = {t.dtype for name, t in tensors.items() if name.endswith(".num_batches_tracked")}
    if weights not in ({torch.float32}, {torch.float64}) or counts != {torch.int32}:
        found = ", ".join(sorted(str(dtype).removeprefix("torch.") for dtype in weights | counts))
        raise ConvertError(f"holds {found}; a net's weights are all float32 or all float64, and its counts int32")
    architecture = Architecture.from_json(source.metadata[ARCHITECTURE_KEY])
    arrays = {name: tensor.numpy() for name, tensor in tensors.items()}
    check_arrays(architecture, arrays)
    return architecture, arrays


def _to_layout(
    source: Source,
    architecture: Architecture,
    arrays: dict[str, np.ndarray],
    target: str,
    came_in: str | None,
    kind: str,
    images: list[np.ndarray] | None,
) -> tuple[dict[str, torch.Tensor], Rewritten, Report]:
    tensors, rewritten, proof = pipeline.write_layout(architecture, arrays, target, images, came_in)
    report = Report(
        source=printable(source.path.name, 300),
        sha256=source.sha256,
        kind=kind,
        layout=f"{target} ({LAYOUTS[target].repository})",
        architecture=architecture,
        tensors=len(tensors),
        parameters=pipeline.count_parameters(arrays),
        notes=rewritten.notes,
        proof=proof,
        target=f"PyTorch, {target} layout",
        mapped="by name, none left over",
    )
    return tensors, rewritten, report


def _finish(report: Report, options: Options, output: Path, data: bytes) -> None:
    """Prints and writes, the net last; a failed proof keeps its certificate, but writes no net."""
    for line in report.lines():
        print(line)
    sys.stdout.flush()  # where that fails, nothing is written
    files = {}
    if options.report is not None:
        files[options.report] = report.markdown().encode()
    if options.plot is not None:
        files[options.plot] = _picture(report)
    if not report.proof.failure:
        files[output] = data
    _write_all(files)
    _stop_unless_proven(report.proof, options.file)
    print(f"{'wrote':<10}{printable(str(output), 2000)} ({len(data):,} bytes)")


def _picture(report: Report) -> bytes:
    from convert.proof.plot import plot_layers  # matplotlib takes a second to import

    return plot_layers(report)


def _stop_unless_proven(proof: Proof, path: Path) -> None:
    if proof.failure:
        for line in failure_table(proof):
            print(f"{'':<10}{line}")
        raise ConvertError(f"{path}: the proof failed, {proof.failure}; no net was written")


def _is_onnx(output: Path | None) -> bool:
    return output is not None and output.suffix.lower() == onnx_file.ENDING


def _beside(path: Path, ending: str) -> Path:
    output = path.with_suffix(ending)
    return path.with_suffix(f".flax{ending}") if output == path else output


def _check_output(output: Path, options: Options, *, to_torch: bool) -> None:
    """The output's name, given or by default. One that says another format than the file has would be opened by the
    wrong program."""
    _check_files_differ(options, output)
    _refuse_overwriting(output, options.force)
    ending = output.suffix.lower()
    if to_torch and ending == ".safetensors":
        raise ConvertError(f"{output}: a PyTorch state_dict is written with torch.save; end its name in .pt")
    if not to_torch and ending in _TORCH_ENDINGS:
        raise ConvertError(
            f"{output}: a Flax net is a safetensors file; end its name in .safetensors, or name a PyTorch layout "
            "with --to"
        )


def _check_files_differ(options: Options, output: Path | None) -> None:
    """Raises:
    ConvertError: two of the files of a run are one.
    """
    named = {"the input": options.file, "the output": output}
    named |= {"--report": options.report, "--plot": options.plot}
    seen: dict[str, str] = {}
    for what, path in named.items():
        if path is not None and (other := seen.setdefault(os.path.realpath(path), what)) != what:
            raise ConvertError(f"{path}: is {other} and {what} as well; name another file for {what}")


def _refuse_overwriting(path: Path | None, force: bool) -> None:
    if path is None:
        return
    if os.path.isdir(path):
        raise ConvertError(f"{path}: a folder; name a file")
    if not os.path.isdir(path.parent):
        raise ConvertError(f"{path}: there is no folder {path.parent}; make it first")
    if os.path.exists(path) and not os.path.isfile(path):
        raise ConvertError(f"{path}: exists and is no regular file, which is not overwritten; name another")
    if os.path.lexists(path) and not force:
        raise ConvertError(f"{path}: exists; name another output, or overwrite it with --force")


def _torch_bytes(tensors: dict[str, torch.Tensor]) -> bytes:
    buffer = io.BytesIO()
    torch.save(tensors, buffer)
    return buffer.getvalue()


def _write_all(files: Mapping[Path, bytes]) -> None:
    """Raises:
    ConvertError: one cannot be written, and none is left.
    """
    before = {path: _version(path) for path in files}
    try:
        for path, data in files.items():
            _write(path, data)
    except BaseException:  # Ctrl-C too, also when the last file has just got its name
        for path in files:
            if _version(path) != before[path]:
                path.unlink(missing_ok=True)
        raise


def _version(path: Path) -> tuple[int, int] | None:
    """Another for each file that is written to a path; None where there is none."""
    try:
        status = path.lstat()
    except OSError:
        return None
    return status.st_ino, status.st_mtime_ns


def _write(path: Path, data: bytes) -> None:
    try:
        write_whole(path, data)
    except OSError as error:
        raise ConvertError(f"{path}: cannot be written ({error.strerror})") from None
