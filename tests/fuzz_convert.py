"""Damages real checkpoints at random and tries to convert them: ``python -m tests.fuzz_convert --runs 20000``.

Each damaged file must either be converted or be refused with one line, whatever was done to it. The work is done in
other processes, which say what they try before they try it, so that a crash or a hang has a culprit.
"""

import argparse
import collections
import functools
import io
import os
import random
import resource
import signal
import struct
import subprocess
import sys
import tempfile
import threading
import time
import traceback
import zipfile
from collections.abc import Iterable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))  # where pytest finds the tests' helpers too

import torch
from checkpoint_tools import all_formats, in_safetensors, legacy, saved, small_net, small_state_dict, take
from convert_tools import small_architecture

from convert import job, mapping, pipeline
from convert.across import rewrite
from convert.errors import ConvertError
from convert.files.read import Source, read
from convert.layouts import LAYOUTS
from convert.origin import restore_origin
from convert.proof.verify import verify
from flax_shufflenet.weights import ARCHITECTURE_KEY, to_bytes

SECONDS_PER_FILE = 10
MEMORY = 512 << 20  # bytes by which a file of about a megabyte may grow the process that reads it
INTERESTING = (0, 1, 2, 3, 127, 128, 255, 256, 32767, 65535, 2**31 - 1, 2**31, 2**32 - 1, 2**63 - 1, 2**63, 2**64 - 1)


def make_files(layouts: Iterable[str]) -> dict[str, bytes]:
    """Each layout in every format, and wrapped."""
    files = {}
    for layout in layouts:
        for form, data in all_formats(layout).items():
            files[f"{layout} {form}"] = data
        tensors = small_state_dict(layout)
        wrapped = {
            "model": {f"module.{name}": tensor for name, tensor in tensors.items()},
            "optimizer": {"state": {0: {"momentum": torch.ones(5)}}, "lr": 0.1},
            "args": argparse.Namespace(lr=0.1, path=Path("a")),
            "epoch": 3,
        }
        files[f"{layout} wrapped zip"] = saved(wrapped)
        files[f"{layout} wrapped legacy"] = legacy(wrapped)
        files[f"{layout} whole module"] = saved({"model": small_net(layout), "epoch": 3})
        files[f"{layout} whole module, legacy"] = legacy(small_net(layout))
        files[f"{layout} pruned"] = saved(_pruned(tensors))
        architecture = small_architecture(layout)
        arrays = mapping.to_arrays(LAYOUTS[layout], architecture, tensors)
        files[f"{layout} Flax"] = to_bytes(architecture, arrays, {"layout": layout, "half_precision": "{}"})
        files[f"{layout} half safetensors"] = in_safetensors(
            {name: tensor.half() if tensor.is_floating_point() else tensor for name, tensor in tensors.items()}
        )
    return files


def _pruned(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """As torch.nn.utils.prune leaves a net: weights in two parts."""
    parts = {}
    for name, tensor in tensors.items():
        if tensor.ndim == 4:
            parts |= {f"{name}_orig": tensor, f"{name}_mask": (tensor > 0).float()}
        else:
            parts[name] = tensor
    return parts


def _flip_bits(data: bytearray, choose: random.Random, start: int, end: int) -> None:
    for _ in range(choose.choice((1, 1, 1, 2, 4, 16))):
        data[choose.randrange(start, end)] ^= 1 << choose.randrange(8)


def _set_bytes(data: bytearray, choose: random.Random, start: int, end: int) -> None:
    for _ in range(choose.choice((1, 1, 2, 4))):
        data[choose.randrange(start, end)] = choose.randrange(256)


def _set_number(data: bytearray, choose: random.Random, start: int, end: int) -> None:
    form = choose.choice(("<B", "<H", "<I", "<Q"))
    position = choose.randrange(start, max(end - struct.calcsize(form), start + 1))
    number = choose.choice(INTERESTING) & (1 << 8 * struct.calcsize(form)) - 1
    data[position : position + struct.calcsize(form)] = struct.pack(form, number)


def _splice(data: bytearray, choose: random.Random, start: int, end: int) -> None:
    length = choose.choice((1, 4, 16, 64, 1024))
    source, target = choose.randrange(len(data)), choose.randrange(start, end)
    data[target : target + length] = data[source : source + length]


def _duplicate(data: bytearray, choose: random.Random, start: int, end: int) -> None:
    length = choose.choice((1, 8, 64, 512, 4096))
    source = choose.randrange(start, end)
    data[source:source] = data[source : source + length] * choose.choice((1, 1, 2, 50))


def _delete(data: bytearray, choose: random.Random, start: int, end: int) -> None:
    position = choose.randrange(start, end)
    del data[position : position + choose.choice((1, 2, 8, 64, 1024))]


def _insert(data: bytearray, choose: random.Random, start: int, end: int) -> None:
    position = choose.randrange(start, end)
    data[position:position] = choose.randbytes(choose.choice((1, 2, 8, 64)))


def _edit_digits(data: bytearray, choose: random.Random, start: int, end: int) -> None:
    """Another number in text, such as a shape in a JSON header."""
    digits = [position for position in range(start, min(end, start + 50_000)) if 48 <= data[position] < 58]
    for position in choose.sample(digits, min(len(digits), choose.choice((1, 2, 5)))):
        data[position : position + 1] = choose.choice((b"0", b"9", b"-1", b"1e9", b"99999999999999999999", b"null"))


def _swap_opcode(data: bytearray, choose: random.Random, start: int, end: int) -> None:
    """An opcode of pickle somewhere."""
    opcode = choose.choice(
        b"().012FIJKLMNPQRSTUVX\x80\x81\x82\x85\x86\x87\x88\x8a\x8b\x8c\x93\x94\x95\x96]abcdeghijlopqrstu}"
    )
    data[choose.randrange(start, end)] = opcode


MUTATIONS = (_flip_bits, _set_bytes, _set_number, _splice, _duplicate, _delete, _insert, _edit_digits, _swap_opcode)


def _repack(data: bytes, choose: random.Random) -> bytes:
    """One entry of a zip archive damaged, under a right checksum: what a bit flip in the whole file rarely reaches."""
    with tempfile.TemporaryFile() as file:
        with zipfile.ZipFile(io.BytesIO(data)) as source, zipfile.ZipFile(file, "w") as target:
            names = source.namelist()
            structural = [name for name in names if name.endswith(("data.pkl", "_weights_config.json"))]
            chosen = choose.choice(structural if choose.random() < 0.8 else names)
            for name in names:
                entry = source.read(name)
                target.writestr(name, _mutate_part(entry, choose) if name == chosen and entry else entry)
        file.seek(0)
        return file.read()


def _mutate_part(data: bytes, choose: random.Random) -> bytes:
    mutated = bytearray(data)
    for _ in range(choose.choice((1, 1, 1, 2, 3))):
        if mutated:
            choose.choice(MUTATIONS)(mutated, choose, 0, len(mutated))
    return bytes(mutated)


def mutate(data: bytes, seed: int) -> bytes:
    """One damaged file; the same for the same seed."""
    choose = random.Random(seed)
    kind = choose.random()
    if kind < 0.08:
        return data[: choose.randrange(len(data))]
    if kind < 0.45 and data.startswith(b"PK"):
        return _repack(data, choose)
    mutated = bytearray(data)
    for _ in range(choose.choice((1, 1, 2, 4))):
        # Headers, pickles and directories are at the ends; most of the middle is weights.
        end = len(mutated)
        start, end = choose.choice(((0, min(end, 4096)), (0, min(end, 40_000)), (max(0, end - 20_000), end), (0, end)))
        if end > start:
            choose.choice(MUTATIONS)(mutated, choose, start, end)
    return bytes(mutated)


def try_file(path: Path, prove: bool) -> str:
    """Whether a file was "converted" or "refused"; anything else that happens is raised.

    Raises:
        AssertionError: the refusal is not one line.
    """
    try:
        source = read(path)
        if ARCHITECTURE_KEY in source.metadata:
            _try_flax(source)
        else:
            net = take(path)
            if prove:
                arrays = mapping.to_arrays(net.layout, net.architecture, net.tensors)
                verify(net.layout, net.architecture, net.tensors, net.architecture, arrays)
    except ConvertError as error:
        if not str(error) or not str(error).isprintable():
            raise AssertionError(f"not one line of text: {str(error)!r}") from error
        if "MemoryError" in str(error) or "allocate" in str(error):
            raise AssertionError(f"refused only for want of memory: {error}") from error
        return "refused"
    return "converted"


def _try_flax(source: Source) -> None:
    """The way from Flax to PyTorch, but for the proof."""
    try:
        architecture, arrays = job._read_flax(source)
    except ValueError as error:
        raise ConvertError(str(error)) from None
    target = pipeline.choose_layout(architecture, source.metadata)
    rewritten = rewrite(architecture, arrays, target)
    tensors = mapping.to_tensors(rewritten.layout, rewritten.architecture, rewritten.arrays)
    restore_origin(rewritten, tensors, arrays, source.metadata)


# What Python announces when a program is started, a connection opened or a name of a pickle looked up.
_RUNNING = ("os.system", "os.exec", "os.fork", "os.posix_spawn", "os.spawn", "subprocess.Popen", "socket.connect")


def _refuse_to_run(event: str, arguments: tuple[object, ...]) -> None:
    if event in (*_RUNNING, "pickle.find_class"):
        raise AssertionError(f"the file made the converter run {event} {arguments}")


def work(folder: Path, seed: int, first: int, step: int, runs: int, prove_every: int) -> None:
    """Tries every ``step``-th file from ``first`` on; says so before and after each."""
    torch.set_num_threads(1)
    sys.addaudithook(_refuse_to_run)
    mapping.expected_shapes = functools.lru_cache(mapping.expected_shapes)  # the same few nets again and again
    files = [(path.name, path.read_bytes()) for path in sorted((folder / "whole").iterdir())]
    path = folder / f"damaged-{os.getpid()}"
    for _, data in files:
        path.write_bytes(data)
        assert try_file(path, prove=False) == "converted"
    unlimited = resource.RLIM_INFINITY
    peak = Peak()
    for index in range(first, runs, step):
        path.write_bytes(mutate(files[index % len(files)][1], seed * 1_000_003 + index))
        prove = bool(prove_every) and index % prove_every == 0
        print("try", index, flush=True)
        # Signals whose default is to end the process, wherever it is. Seconds of its own, which a busy machine does not
        # use up, and of the clock, for one that waits.
        signal.setitimer(signal.ITIMER_PROF, 120 if prove else SECONDS_PER_FILE)
        signal.alarm(12 * SECONDS_PER_FILE)
        # More memory than this the system refuses, wherever it is asked for. A proof compiles, and may have more.
        allowed = unlimited if prove else _memory("VmSize") + MEMORY
        resource.setrlimit(resource.RLIMIT_AS, (allowed, unlimited))
        peak.before = sys.maxsize if prove else _memory("VmRSS")
        start = time.monotonic()
        try:
            result = try_file(path, prove)
        except BaseException as error:
            lines = traceback.format_exception(error)
            result = "traceback " + " ".join(" | ".join([lines[-1], *lines[-4:-1]]).split())
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.alarm(0)
        print("done", index, 0 if prove else time.monotonic() - start, result, flush=True)
    path.unlink()
    print("peak", peak.most, flush=True)


def _memory(field: str) -> int:
    """Bytes that this process has in memory, VmRSS, or in its addresses, VmSize; of Linux."""
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(field))
    return int(line.split()[1]) * 1024


class Peak(threading.Thread):
    """The most memory that was seen beyond what there was ``before``, looked at all the time."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self.before = _memory("VmRSS")
        self.most = 0
        self.start()

    def run(self) -> None:
        while True:
            self.most = max(self.most, _memory("VmRSS") - self.before)
            time.sleep(0.002)


class Tally:
    """What came of all files."""

    def __init__(self) -> None:
        self.results = collections.Counter[str]()
        self.failures: list[tuple[int, str]] = []
        self.peak_memory = 0
        self.slowest = 0.0

    def add(self, index: int, result: str) -> None:
        self.results[result.split()[0]] += 1
        if result not in ("converted", "refused"):
            self.failures.append((index, result))


def watch(tally: Tally, folder: Path, seed: int, first: int, step: int, runs: int, prove_every: int) -> None:
    """Keeps one worker going, with the next file after each that a worker did not survive."""
    while first < runs:
        command = [sys.executable, "-m", "tests.fuzz_convert", "--work", str(folder), str(first), str(step)]
        command += ["--seed", str(seed), "--runs", str(runs), "--prove_every", str(prove_every)]
        with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as worker:
            assert worker.stdout is not None
            trying = None
            for line in worker.stdout:
                kind, number, *rest = line.split(maxsplit=3)
                if kind == "try":
                    trying = int(number)
                elif kind == "peak":
                    tally.peak_memory = max(tally.peak_memory, int(number))
                else:
                    trying, first = None, int(number) + step
                    tally.add(int(number), rest[1].strip())
                    tally.slowest = max(tally.slowest, float(rest[0]))
        if trying is not None:
            name = signal.Signals(-worker.returncode).name if worker.returncode < 0 else f"exit {worker.returncode}"
            tally.add(trying, "hang" if name in ("SIGALRM", "SIGPROF") else f"crash {name}")
            first = trying + step
        elif worker.returncode:
            raise RuntimeError(f"a worker failed before it tried a file: {' '.join(command)}")


def fuzz(
    runs: int,
    seed: int,
    prove_every: int = 0,
    workers: int | None = None,
    keep: Path | None = None,
    layouts: Iterable[str] = tuple(LAYOUTS),
) -> Tally:
    """Tries ``runs`` damaged files; those that fail are written to ``keep``."""
    tally = Tally()
    workers = workers or os.cpu_count() or 1
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "whole").mkdir()
        files = make_files(layouts)
        for file_name, data in files.items():
            (folder / "whole" / file_name).write_bytes(data)
        threads = [
            threading.Thread(target=watch, args=(tally, folder, seed, first, workers, runs, prove_every))
            for first in range(workers)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    names = sorted(files)
    for index, result in tally.failures:
        file_name = names[index % len(names)]
        print(f"{index} ({file_name}): {result}")
        if keep is not None:
            keep.mkdir(exist_ok=True)
            (keep / f"{seed}-{index}").write_bytes(mutate(files[file_name], seed * 1_000_003 + index))
    return tally


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=20_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--prove_every", type=int, default=0, help="also run the proof on every so many-th file")
    parser.add_argument("--keep", type=Path, default=Path("fuzz-failures"), help="folder for the files that fail")
    parser.add_argument("--work", nargs=3, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.work:
        folder, first, step = options.work
        work(Path(folder), options.seed, int(first), int(step), options.runs, options.prove_every)
        return 0
    start = time.monotonic()
    tally = fuzz(options.runs, options.seed, options.prove_every, keep=options.keep)
    results = tally.results
    print(
        f"{results.total():,} damaged files: {results['refused']:,} refused, {results['converted']:,} converted; "
        f"{results['crash']} crashes, {results['hang']} hangs, {results['traceback']} tracebacks; "
        f"at most {tally.peak_memory / 2**20:.0f} MB more memory (limit {MEMORY >> 20}), "
        f"slowest {tally.slowest:.2f} s; {time.monotonic() - start:.0f} s in all"
    )
    return 1 if tally.failures else 0


if __name__ == "__main__":
    sys.exit(main())
