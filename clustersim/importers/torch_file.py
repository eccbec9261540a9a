"""Reads the `.pt` files of torch.save without torch and without unpickling: tensors, dicts, lists, tuples, numbers and text only.

A `.pt` is a zip that holds a pickle program and the bytes of its tensors. The program is walked here, one instruction at a time;
of what it may call only the building of a tensor and of an ordered dict are known, and both are our own. Everything else is an
error, so nothing that a file says is ever run.
"""

from __future__ import annotations

import pickletools
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from clustersim.types import InputError

MOST_BYTES = 16 << 30               # of all that a file unpacks to
BFLOAT16 = "bfloat16"
STORAGES = {
    "DoubleStorage": "<f8", "FloatStorage": "<f4", "HalfStorage": "<f2", "BFloat16Storage": BFLOAT16, "LongStorage": "<i8",
    "IntStorage": "<i4", "ShortStorage": "<i2", "CharStorage": "i1", "ByteStorage": "u1", "BoolStorage": "?",
}  # fmt: skip


class _Unsafe(Exception):
    """What the pickle asks for is not built here."""


@dataclass(frozen=True)
class _Named:
    """A global that the pickle names: known to be harmless, and never looked up."""

    name: str


_KNOWN = {("torch", name) for name in STORAGES} | {
    ("torch._utils", "_rebuild_tensor_v2"), ("collections", "OrderedDict"), ("torch", "Size"),
}  # fmt: skip
_MARK = object()


def read_pt(path: Path) -> Any:
    """What torch.save wrote to `path`; tensors as NumPy arrays, bfloat16 as float32.

    Raises:
        InputError: not such a file, truncated, or one that holds anything else than tensors, dicts, lists, tuples, numbers, text.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            if sum(entry.file_size for entry in archive.infolist()) > MOST_BYTES:
                raise InputError(f"{path}: unpacks to more than {MOST_BYTES >> 30} GiB")
            programs = [name for name in archive.namelist() if name.endswith("/data.pkl")]
            if len(programs) != 1:
                raise InputError(f"{path}: not a file of torch.save: a zip without one data.pkl")
            root = programs[0][: -len("data.pkl")]
            return _Walk(archive, root).run(archive.read(programs[0]))
    except _Unsafe as error:
        raise InputError(
            f"{path}: refused: its pickle asks for {error}; only tensors, dicts, lists, tuples, numbers and text are read"
        ) from error
    except InputError:
        raise
    except zipfile.BadZipFile as error:
        raise InputError(f"{path}: not a whole file of torch.save ({error})") from error
    except (OSError, MemoryError) as error:
        raise InputError(f"{path}: cannot be read ({error or 'out of memory'})") from error
    except Exception as error:                  # of a hostile file anything may come: zip, pickletools, NumPy
        said = " ".join(str(error).split())[:120] or type(error).__name__
        raise InputError(f"{path}: not a file of torch.save ({said})") from error


class _Walk:
    """The pickle machine, of which only the harmless part is built."""

    def __init__(self, archive: zipfile.ZipFile, root: str) -> None:
        self._archive, self._root = archive, root
        self._stack: list[Any] = []
        self._memo: dict[int, Any] = {}
        self._storages: dict[str, NDArray[Any]] = {}

    def run(self, program: bytes) -> Any:
        act: dict[str, Callable[[Any], None]] = {
            "PROTO": _nothing, "FRAME": _nothing,
            "MARK": lambda _: self._stack.append(_MARK),
            "NONE": lambda _: self._stack.append(None),
            "NEWTRUE": lambda _: self._stack.append(True),
            "NEWFALSE": lambda _: self._stack.append(False),
            "EMPTY_DICT": lambda _: self._stack.append({}),
            "EMPTY_LIST": lambda _: self._stack.append([]),
            "EMPTY_TUPLE": lambda _: self._stack.append(()),
            "TUPLE": lambda _: self._stack.append(tuple(self._marked())),
            "TUPLE1": lambda _: self._tuple(1), "TUPLE2": lambda _: self._tuple(2), "TUPLE3": lambda _: self._tuple(3),
            "APPEND": lambda _: self._extend([self._stack.pop()]),
            "APPENDS": lambda _: self._extend(self._marked()),
            "SETITEM": lambda _: self._set([self._stack.pop(-2), self._stack.pop()]),
            "SETITEMS": lambda _: self._set(self._marked()),
            "BINPUT": self._keep, "LONG_BINPUT": self._keep,
            "MEMOIZE": lambda _: self._keep(len(self._memo)),
            "BINGET": lambda at: self._stack.append(self._memo[at]), "LONG_BINGET": lambda at: self._stack.append(self._memo[at]),
            "GLOBAL": lambda name: self._global(*name.split(" ", 1)),
            "STACK_GLOBAL": lambda _: self._global(self._stack.pop(-2), self._stack.pop()),
            "BINPERSID": lambda _: self._storage(self._stack.pop()),
            "REDUCE": lambda _: self._call(self._stack.pop(-2), self._stack.pop()),
        }  # fmt: skip
        for name in ("BININT", "BININT1", "BININT2", "LONG1", "BINFLOAT", "BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8"):
            act[name] = self._stack.append
        for instruction, argument, _ in pickletools.genops(program):
            if instruction.name == "STOP":
                return self._stack.pop()
            if instruction.name not in act:
                raise _Unsafe(f"the instruction {instruction.name}")
            act[instruction.name](argument)
        raise _Unsafe("nothing: it has no end")

    def _marked(self) -> list[Any]:
        at = len(self._stack) - 1
        while self._stack[at] is not _MARK:
            if (at := at - 1) < 0:
                raise _Unsafe("a mark that is not there")
        items = self._stack[at + 1 :]
        del self._stack[at:]
        return items

    def _tuple(self, length: int) -> None:
        items = tuple(self._stack[-length:])
        if len(items) != length:
            raise _Unsafe("more than it has")
        del self._stack[-length:]
        self._stack.append(items)

    def _extend(self, items: list[Any]) -> None:
        if type(self._stack[-1]) is not list:
            raise _Unsafe(f"items in a {type(self._stack[-1]).__name__}")
        self._stack[-1].extend(items)

    def _set(self, items: list[Any]) -> None:
        if type(self._stack[-1]) is not dict:
            raise _Unsafe(f"keys in a {type(self._stack[-1]).__name__}")
        self._stack[-1].update(zip(items[::2], items[1::2], strict=True))

    def _keep(self, at: int) -> None:
        self._memo[at] = self._stack[-1]

    def _global(self, module: str, name: str) -> None:
        if (module, name) not in _KNOWN:
            raise _Unsafe(f"{module}.{name}")
        self._stack.append(_Named(name))

    def _call(self, function: Any, arguments: Any) -> None:
        if function == _Named("OrderedDict") and arguments == ():
            self._stack.append({})
        elif function == _Named("Size") and isinstance(arguments, tuple) and len(arguments) == 1:
            self._stack.append(tuple(arguments[0]))
        elif function == _Named("_rebuild_tensor_v2"):
            self._stack.append(_tensor(*arguments[:4]))
        else:
            raise _Unsafe(f"a call of {getattr(function, 'name', type(function).__name__)}")

    def _storage(self, description: Any) -> None:
        """("storage", type, key, device, elements): the bytes `data/<key>` of the archive."""
        kind, storage, key, _, elements = description
        if kind != "storage" or not isinstance(storage, _Named) or storage.name not in STORAGES or not str(key).isalnum():
            raise _Unsafe(f"a storage {storage!r}")
        if key not in self._storages:
            raw = self._archive.read(f"{self._root}data/{key}")
            dtype = STORAGES[storage.name]
            if dtype == BFLOAT16:
                self._storages[key] = from_bfloat16(np.frombuffer(raw, "<u2"))
            else:
                self._storages[key] = np.frombuffer(raw, dtype)
            if self._storages[key].size != elements:
                raise _Unsafe(f"{elements} elements of a storage of {self._storages[key].size}")
        self._stack.append(self._storages[key])


def _nothing(argument: Any) -> None:
    return None


def _tensor(storage: Any, offset: Any, size: Any, stride: Any) -> NDArray[Any]:
    """A view of the storage, no element of it outside."""
    if not isinstance(storage, np.ndarray) or len(size) != len(stride) or min((*size, *stride, offset), default=0) < 0:
        raise _Unsafe("a tensor without a storage")
    if 0 in size:
        return np.zeros(tuple(size), storage.dtype)
    last = offset + sum((n - 1) * step for n, step in zip(size, stride, strict=True))
    if last >= storage.size:
        raise _Unsafe(f"element {last} of a storage of {storage.size}")
    steps = tuple(step * storage.itemsize for step in stride)
    return np.lib.stride_tricks.as_strided(storage[offset:], tuple(size), steps, writeable=False)


def from_bfloat16(bits: NDArray[np.uint16]) -> NDArray[np.float32]:
    """float32 of bfloat16's 16 bits: the upper half of the same number."""
    return (bits.astype(np.uint32) << 16).view(np.float32)
