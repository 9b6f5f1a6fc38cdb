"""Pickles read as data: tensors, containers, numbers and text. No name in a pickle is ever imported or called.

``torch.load(weights_only=True)`` runs nothing either, but it allocates what a file merely claims to hold, and
lets a file call ``torch.Tensor``, ``bytearray`` and others with arguments of the file's choice. Here every tensor
is a view of bytes that are in the file, and whatever is neither tensor nor container becomes a blank stand-in.
"""

import math
import pickle
from _compat_pickle import IMPORT_MAPPING, NAME_MAPPING
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from types import FunctionType
from typing import IO, Any, ClassVar

import torch

from convert.errors import ConvertError, listing

MAX_PICKLE = 4 << 20
"""Bytes. A checkpoint's pickle names tensors and is far smaller; small pickles can grow a hundredfold in memory."""

_MAX_DIMENSIONS = 8
_MAX_COPIED = 1_000_000
_LONGEST_NAME = 1_000
_LONGEST_NUMBER = 127  # bytes, which a float holds
_LARGEST_KEY = 1 << 60  # numbers from there on can be made to have one hash, and a dictionary of them to take for ever

# torch.float32 and so on, under the names that pickles have for them.
_DTYPES = {name: value for name, value in vars(torch).items() if isinstance(value, torch.dtype)}

_STORAGE_DTYPES = {
    "FloatStorage": torch.float32,
    "DoubleStorage": torch.float64,
    "HalfStorage": torch.float16,
    "BFloat16Storage": torch.bfloat16,
    "LongStorage": torch.int64,
    "IntStorage": torch.int32,
    "ShortStorage": torch.int16,
    "CharStorage": torch.int8,
    "ByteStorage": torch.uint8,
    "BoolStorage": torch.bool,
    "ComplexFloatStorage": torch.complex64,
    "ComplexDoubleStorage": torch.complex128,
    "UntypedStorage": torch.uint8,
}


class DamagedPickleError(ConvertError):
    """A pickle that ends too early, or is none."""


@dataclass(frozen=True)
class Storage:
    """Bytes of the file, and what they are numbers of."""

    buffer: bytearray | memoryview
    dtype: torch.dtype


@dataclass(eq=False)
class StandIn:
    """Stands for an object of any class: it keeps the attributes it is given and does nothing."""

    class_name: str = ""
    attributes: dict[str, Any] = field(default_factory=dict)

    @property
    def is_module(self) -> bool:
        """It has what a pickled ``torch.nn.Module`` has."""
        return all(isinstance(self.attributes.get(name), dict) for name in ("_parameters", "_buffers", "_modules"))


@dataclass(eq=False)
class ClassName:
    """Stands for a class or function that is not looked at. ``called`` takes the names of those that the pickle calls
    and that data has no business with; None for those that may be."""

    name: str
    called: dict[str, None] | None = None

    def make(self) -> StandIn:
        return StandIn(self.name)


def view_tensor(storage: Storage, offset: int, size: Sequence[int], stride: Sequence[int]) -> torch.Tensor:
    """A tensor on a storage's own bytes.

    Raises:
        ConvertError: it claims more than the storage has.
    """
    if not isinstance(storage, Storage) or len(size) > _MAX_DIMENSIONS or len(size) != len(stride):
        raise ConvertError(f"a tensor of {len(size)} dimensions that no net has; the file is damaged")
    if not all(type(number) is int and 0 <= number < 2**63 for number in (offset, *size, *stride)):
        raise ConvertError("a tensor with an impossible size; the file is damaged")
    count, available = math.prod(size), len(storage.buffer) // storage.dtype.itemsize
    last = offset + sum((length - 1) * step for length, step in zip(size, stride, strict=True))
    if count > available or (count and last >= available):
        raise ConvertError(
            f"a tensor of {list(size)} claims more than the {len(storage.buffer):,} bytes stored for it; "
            "the file is damaged, or it was expanded: save a clone() of it"
        )
    if not count:
        return torch.empty(tuple(size), dtype=storage.dtype)
    whole = memoryview(storage.buffer)[: available * storage.dtype.itemsize]
    return torch.frombuffer(whole, dtype=storage.dtype).as_strided(tuple(size), tuple(stride), offset)


def _tensor(storage: Storage, offset: int, size: Sequence[int], stride: Sequence[int], *_: Any) -> torch.Tensor:
    return view_tensor(storage, offset, size, stride)


def _typed_tensor(
    storage: Storage,
    offset: int,
    size: Sequence[int],
    stride: Sequence[int],
    requires_grad: bool,
    hooks: Any,
    dtype: torch.dtype,
    *_: Any,
) -> torch.Tensor:
    return view_tensor(Storage(storage.buffer, dtype), offset, size, stride)


def _subclass_tensor(build: Callable[..., Any], kind: Any, arguments: tuple[Any, ...], *_: Any) -> Any:
    if build in (_dictionary, _set, _subclass_tensor):
        raise pickle.UnpicklingError("a tensor that is built like none")
    return _call(build, arguments)


def _first(value: Any, *_: Any) -> Any:
    return value


def _dictionary(pairs: Sequence[tuple[Any, Any]] | None = None, *_: Any) -> dict[Any, Any]:
    """What an OrderedDict is rebuilt from in old files; of a defaultdict or Counter the items follow."""
    items: dict[Any, Any] = {}
    for key, value in pairs if isinstance(pairs, list) else ():
        _set_item(items, key, value)
    return items


def _set(items: Sequence[Any] = (), *_: Any) -> set[str]:
    """Of a module's names, such as those of the buffers that are none of its state."""
    return {item for item in items if isinstance(item, str)} if isinstance(items, list | tuple) else set()


def _refuse(what: str) -> Callable[..., Any]:
    def refuse(*_: Any) -> Any:
        raise ConvertError(what)

    return refuse


_BUILDERS: dict[str, Callable[..., Any]] = {
    "collections.OrderedDict": _dictionary,
    "collections.defaultdict": _dictionary,
    "collections.Counter": _dictionary,
    "builtins.set": _set,
    "torch.Size": _first,
    "torch._utils._rebuild_tensor": _tensor,
    "torch._utils._rebuild_tensor_v2": _tensor,
    "torch._utils._rebuild_tensor_v3": _typed_tensor,
    "torch._utils._rebuild_parameter": _first,
    "torch._utils._rebuild_parameter_with_state": _first,
    "torch._tensor._rebuild_from_type_v2": _subclass_tensor,
    "torch._utils._rebuild_qtensor": _refuse(
        "an int8-quantised net; save the float net's state_dict() before quantising"
    ),
    "torch._utils._rebuild_sparse_tensor": _refuse(
        "holds a sparse tensor, which no ShuffleNetV2 has; save the net's state_dict() alone"
    ),
    "torch._utils._rebuild_meta_tensor_no_storage": _refuse(
        "holds tensors on the meta device, which have no values; save the net's state_dict() once it has some"
    ),
    "torch._utils._rebuild_nested_tensor": _refuse(
        "holds a nested tensor, which no ShuffleNetV2 has; save the net's state_dict() alone"
    ),
}

# Harmless values that training scripts put beside the weights. Nothing looks at them.
_BYSTANDERS = {
    "argparse.Namespace",
    "types.SimpleNamespace",
    *(f"builtins.{name}" for name in ("bool", "bytearray", "bytes", "complex", "dict", "float", "frozenset", "int")),
    *(f"builtins.{name}" for name in ("list", "object", "range", "slice", "str", "tuple")),
    "_codecs.encode",
    "collections.deque",
    "datetime.date",
    "datetime.datetime",
    "datetime.timedelta",
    *(f"pathlib.{name}" for name in ("Path", "PosixPath", "WindowsPath", "PurePosixPath", "PureWindowsPath")),
    *(f"numpy.{core}.multiarray.{name}" for core in ("core", "_core") for name in ("scalar", "_reconstruct")),
    "numpy.dtype",
    "numpy.ndarray",
    "torch.device",
    "torch.Tensor",
    "torch.nn.parameter.Parameter",
    "torch.nn.parameter.Buffer",
    "torch.serialization._get_layout",
}


def _call(build: Any, arguments: Any) -> Any:
    """Calls one of this module's own functions; a class is only ever stood in for."""
    if not isinstance(arguments, tuple):
        raise pickle.UnpicklingError("arguments that are no tuple")
    if isinstance(build, ClassName):
        if build.called is not None:
            build.called[build.name] = None
        return build.make()
    if not isinstance(build, FunctionType):  # the functions above are all there are
        raise pickle.UnpicklingError("a call of what is no function")
    return build(*arguments)


def _set_item(items: Any, key: Any, value: Any) -> None:
    if isinstance(items, StandIn):
        return
    if type(items) is not dict:
        raise pickle.UnpicklingError("items of what is no dictionary")
    if isinstance(key, int) and abs(key) >= _LARGEST_KEY:
        raise pickle.UnpicklingError("a number beyond all measure for a key")
    # No net's tensors are under other keys, and hashing deeply nested tuples overflows Python's own stack.
    if isinstance(key, str | int | float | bytes | None):
        items[key] = value


def _opcodes(*names: str) -> dict[int, Any]:
    return {getattr(pickle, name)[0]: pickle._Unpickler.dispatch[getattr(pickle, name)[0]] for name in names}


# Python's own unpickler, not the C one: that sizes its table by numbers in the file.
class InertUnpickler(pickle._Unpickler):
    """Builds containers, stand-ins, and tensors within their storage's bounds.

    Args:
        file: where the pickle starts.
        find_storage: the storage that a persistent id names.
        is_module: of a class's full name, whether it may be stood in for without being foreign.

    Foreign classes are stood in for as well, where the pickle only makes objects of them, as it does of a module and of
    what is in it. A pickle that calls what is foreign, or that has foreign objects and no module, is refused.
    """

    # pickle's own, which its type stubs leave out.
    stack: list[Any]
    pop_mark: Callable[[], list[Any]]
    read: Callable[[int], bytes]

    # Only what torch.save writes in any protocol: others hash, or allocate before they read.
    dispatch: ClassVar[dict[int, Any]] = _opcodes(
        "PROTO", "FRAME", "STOP", "MARK", "POP", "POP_MARK", "DUP", "NONE", "NEWTRUE", "NEWFALSE",
        "BININT", "BININT1", "BININT2", "BINFLOAT",
        "BINSTRING", "SHORT_BINSTRING", "BINBYTES", "SHORT_BINBYTES", "BINBYTES8",
        "BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8",
        "EMPTY_TUPLE", "TUPLE", "TUPLE1", "TUPLE2", "TUPLE3", "EMPTY_LIST", "LIST", "EMPTY_DICT",
        "BINGET", "LONG_BINGET", "BINPUT", "LONG_BINPUT", "MEMOIZE", "GLOBAL", "STACK_GLOBAL", "BINPERSID",
    )  # fmt: skip

    def __init__(
        self,
        file: IO[bytes],
        find_storage: Callable[..., Storage],
        is_module: Callable[[str], bool] = lambda name: False,
    ) -> None:
        super().__init__(file, encoding="utf-8", errors="surrogateescape")
        self._find_storage = find_storage
        self._is_module = is_module
        self.foreign: dict[str, None] = {}  # an ordered set, as is the next
        self.called: dict[str, None] = {}
        self.has_modules = False
        self._copied = 0

    def load(self) -> Any:
        """What is pickled.

        Raises:
            ConvertError: it needs names that data does not need, or it is damaged.
        """
        try:
            loaded = super().load()
        except ConvertError:
            if not self.called:
                raise
        except Exception as error:  # whatever a damaged pickle makes the unpickler raise
            if not self.called:
                reason = type(error).__name__ if isinstance(error, KeyError) else str(error) or type(error).__name__
                raise DamagedPickleError(f"the file is damaged ({reason[:100]}); copy or download it again") from None
        else:
            if not self.called and (self.has_modules or not self.foreign):
                return loaded
        raise ConvertError(_explain_foreign(list(self.called or self.foreign)))

    def find_class(self, module: str, name: str) -> Any:
        if len(module) + len(name) > _LONGEST_NAME:
            raise pickle.UnpicklingError("a name beyond all measure")
        # Protocol 2 has Python 2's names.
        renamed = NAME_MAPPING.get((module, name)) or (IMPORT_MAPPING.get(module, module), name)
        full_name = ".".join(renamed)
        if full_name in _BUILDERS:
            return _BUILDERS[full_name]
        if module in ("torch", "torch.storage") and name in _STORAGE_DTYPES:
            return _STORAGE_DTYPES[name]
        if module == "torch" and name in _DTYPES:
            return _DTYPES[name]
        if module == "torch" and name.startswith("Q") and name.endswith("Storage"):
            return _refuse("an int8-quantised net; save the float net's state_dict() before quantising")()
        if module == "torch.jit._pickle" and (name.startswith("build_") or name == "restore_type_tag"):
            return _first
        if full_name not in _BYSTANDERS and not self._is_module(full_name):
            self.foreign[full_name] = None
            return ClassName(full_name, self.called)
        return ClassName(full_name)

    def persistent_load(self, pid: Any) -> Any:
        if pid[0] == "module":  # legacy files; the class is on record
            return pid[1]
        if len(pid) > 6 or pid[0] != "storage" or not isinstance(pid[1], torch.dtype) or not isinstance(pid[2], str):
            raise pickle.UnpicklingError("a persistent id that is no storage's")
        if len(pid) < 5 or type(pid[4]) is not int or not 0 <= pid[4] < 2**63:
            raise pickle.UnpicklingError("a storage of no size")
        return self._find_storage(*pid[1:])

    def _count_copied(self, items: Any) -> None:
        """A few bytes can have one large container copied again and again."""
        self._copied += len(items) if isinstance(items, dict | list | tuple) else 0
        if self._copied > _MAX_COPIED:
            raise pickle.UnpicklingError(f"copies of more than {_MAX_COPIED:,} items")

    def _load_long1(self) -> None:
        self._load_number(self.read(1)[0])

    def _load_long4(self) -> None:
        self._load_number(int.from_bytes(self.read(4), "little"))

    def _load_number(self, length: int) -> None:
        if length > _LONGEST_NUMBER:
            raise ConvertError(
                f"holds a number of {length:,} bytes, which no net has; save the net's state_dict() alone"
            )
        self.stack.append(pickle.decode_long(self.read(length)))

    def _load_reduce(self) -> None:
        arguments = self.stack.pop()
        self._count_copied(arguments)
        if self.stack[-1] in (_dictionary, _set) and arguments:
            self._count_copied(arguments[0])
        self.stack[-1] = _call(self.stack[-1], arguments)

    def _load_newobj(self) -> None:
        arguments = self.stack.pop()
        build = self.stack[-1]
        made_only = isinstance(build, ClassName) and (arguments == () or build.called is None)
        self.stack[-1] = build.make() if made_only else _call(build, ())

    def _load_build(self) -> None:
        state = self.stack.pop()
        built = self.stack[-1]
        if isinstance(built, StandIn) and isinstance(state, dict):
            self._count_copied(state)
            built.attributes |= {name: value for name, value in state.items() if isinstance(name, str)}
            self.has_modules |= built.is_module

    def _load_append(self) -> None:
        self._extend([self.stack.pop()])

    def _load_appends(self) -> None:
        self._extend(self.pop_mark())

    def _extend(self, values: list[Any]) -> None:
        if type(self.stack[-1]) is list:
            self.stack[-1] += values
        elif not isinstance(self.stack[-1], StandIn):
            raise pickle.UnpicklingError("an item of what is no list")

    def _load_empty_set(self) -> None:
        self.stack.append(set())

    def _load_additems(self) -> None:
        items = self.pop_mark()
        if type(self.stack[-1]) is set:
            self.stack[-1] |= _set(items)

    def _load_setitem(self) -> None:
        value, key = self.stack.pop(), self.stack.pop()
        _set_item(self.stack[-1], key, value)

    def _load_setitems(self) -> None:
        items = self.pop_mark()
        for key, value in zip(items[::2], items[1::2], strict=True):
            _set_item(self.stack[-1], key, value)

    dispatch |= {
        pickle.LONG1[0]: _load_long1,
        pickle.LONG4[0]: _load_long4,
        pickle.REDUCE[0]: _load_reduce,
        pickle.NEWOBJ[0]: _load_newobj,
        pickle.BUILD[0]: _load_build,
        pickle.APPEND[0]: _load_append,
        pickle.APPENDS[0]: _load_appends,
        pickle.EMPTY_SET[0]: _load_empty_set,
        pickle.ADDITEMS[0]: _load_additems,
        pickle.SETITEM[0]: _load_setitem,
        pickle.SETITEMS[0]: _load_setitems,
    }


def _explain_foreign(names: list[str]) -> str:
    return (
        f"needs to run {listing(names)}, which a file of data has no business with; "
        "if you trust it, load it where it was made and torch.save(net.state_dict(), path)"
    )
