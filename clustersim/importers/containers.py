"""Files that recorders write into, as plain arrays and dicts: npy, npz, safetensors, GGUF, JSON. Knows nothing of routing."""

from __future__ import annotations

import json
import struct
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from clustersim.importers.torch_file import from_bfloat16, read_pt
from clustersim.types import InputError

MOST_BYTES = 16 << 30
MOST_HEADER = 100 << 20
SAFETENSORS = {
    "F64": "<f8", "F32": "<f4", "F16": "<f2", "I64": "<i8", "I32": "<i4", "I16": "<i2", "I8": "i1", "U64": "<u8", "U32": "<u4",
    "U16": "<u2", "U8": "u1", "BOOL": "?", "BF16": "<u2",
}  # fmt: skip
Arrays = dict[str, NDArray[Any]]


def read_arrays(path: Path) -> Arrays:
    """name -> array, of a .npy (name ""), .npz, .safetensors or .pt (a tensor, or a dict of tensors).

    Raises:
        InputError: another kind of file, or one that is not whole.
    """
    suffix = path.suffix.lower()
    if suffix == ".npy":
        return {"": read_npy(path)}
    if suffix == ".npz":
        return read_npz(path)
    if suffix == ".safetensors":
        return read_safetensors(path)
    if suffix in (".pt", ".pth", ".bin"):
        found = read_pt(path)
        if isinstance(found, np.ndarray):
            return {"": found}
        if isinstance(found, dict) and all(isinstance(value, np.ndarray) for value in found.values()) and found:
            return {str(name): value for name, value in found.items()}
        raise InputError(f"{path}: holds a {type(found).__name__}; a tensor or a dict of tensors is needed here")
    raise InputError(f"{path}: arrays are read from .npy, .npz, .safetensors and .pt, and this is {suffix or 'something else'}")


def read_npy(path: Path) -> NDArray[Any]:
    """The array of a .npy; arrays of Python objects are refused.

    Raises:
        InputError: not such a file, or not whole.
    """
    try:
        with path.open("rb") as file:
            return npy_from(file, str(path), path.stat().st_size)
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror})") from error


def npy_from(file: IO[bytes], name: str, size: int) -> NDArray[Any]:
    """The array of an open .npy of `size` bytes, by the dtype and shape in its header; `name` is what an error calls it.

    Raises:
        InputError: not such a file, not whole, or of Python objects.
    """
    try:
        version = np.lib.format.read_magic(file)
        if version not in ((1, 0), (2, 0)):
            raise ValueError(f"version {version} of the format")
        read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        shape, fortran, dtype = read(file)
        if dtype.hasobject or dtype.names is not None:
            raise ValueError("it holds Python objects or records, not numbers")
        count = int(np.prod([int(n) for n in shape], dtype=object)) if shape else 1
        if min(shape, default=0) < 0 or count * dtype.itemsize > size:
            raise ValueError(f"shape {shape} does not fit into {size} bytes")
        raw = file.read(count * dtype.itemsize)
        values = np.frombuffer(raw, dtype, count)
    except Exception as error:                  # NumPy reads the header as Python's: tokenize, ast and struct each have their own
        raise InputError(f"{name}: not a whole .npy of numbers ({' '.join(str(error).split())[:120]})") from error
    return values.reshape(shape, order="F" if fortran else "C")


def read_npz(path: Path) -> Arrays:
    """name -> array of a .npz.

    Raises:
        InputError: not such a file, or not whole.
    """
    arrays = {}
    try:
        with zipfile.ZipFile(path) as archive:
            if sum(entry.file_size for entry in archive.infolist()) > MOST_BYTES:
                raise InputError(f"{path}: unpacks to more than {MOST_BYTES >> 30} GiB")
            for entry in archive.infolist():
                if entry.filename.endswith(".npy"):
                    name = entry.filename.removesuffix(".npy")
                    with archive.open(entry) as file:
                        arrays[name] = npy_from(file, f"{path}: {entry.filename}", entry.file_size)
    except InputError:
        raise
    except Exception as error:                  # a zip that is broken in some way: zipfile, zlib, lzma each have their own
        raise InputError(f"{path}: not a whole .npz ({' '.join(str(error).split())[:120] or type(error).__name__})") from error
    if not arrays:
        raise InputError(f"{path}: a zip without any .npy in it, so no .npz")
    return arrays


def read_safetensors(path: Path) -> Arrays:
    """name -> array of a .safetensors; bfloat16 as float32.

    Raises:
        InputError: not such a file, or not whole.
    """
    try:
        raw = np.fromfile(path, np.uint8)
    except (OSError, MemoryError) as error:
        raise InputError(f"{path}: cannot be read ({error})") from error
    if raw.size < 8 or not 2 <= (length := int(raw[:8].view("<u8")[0])) <= min(raw.size - 8, MOST_HEADER):
        raise InputError(f"{path}: not a whole .safetensors: its header does not fit into it")
    arrays = {}
    try:
        header = json.loads(raw[8 : 8 + length].tobytes())
        data = raw[8 + length :]
        for name, about in header.items():
            if name == "__metadata__":
                continue
            begin, end = about["data_offsets"]
            dtype = np.dtype(SAFETENSORS[about["dtype"]])
            shape = [int(n) for n in about["shape"]]
            if not 0 <= begin <= end <= data.size or min(shape, default=0) < 0:
                raise ValueError(f"{name} lies outside of the file")
            values = data[begin:end].view(dtype).reshape(shape)
            arrays[name] = from_bfloat16(values) if about["dtype"] == "BF16" else values
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError, OverflowError) as error:
        raise InputError(f"{path}: not a whole .safetensors ({' '.join(str(error).split())[:120]})") from error
    return arrays


def read_json(path: Path) -> Any:
    """The value of a .json, or the list of the values of a .jsonl, one per line.

    Raises:
        InputError: it is neither.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeError, MemoryError) as error:
        raise InputError(f"{path}: cannot be read as text ({str(error)[:100]})") from error
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        if "\n" not in text.strip():
            raise InputError(f"{path}: not JSON ({error})") from error
    return list(read_lines(path))


def read_lines(path: Path) -> Iterator[Any]:
    """The value of each line of a .jsonl that is not empty.

    Raises:
        InputError: a line that is not JSON.
    """
    try:
        with path.open(encoding="utf-8") as file:
            for number, line in enumerate(file, 1):
                if line.strip():
                    try:
                        yield json.loads(line)
                    except (ValueError, RecursionError) as error:
                        raise InputError(f"{path}: line {number} is not JSON ({error})") from error
    except (OSError, UnicodeError) as error:
        raise InputError(f"{path}: cannot be read as text ({str(error)[:100]})") from error


def read_gguf(path: Path) -> tuple[dict[str, Any], Arrays]:
    """(metadata, name -> float32 array) of a .gguf; tensors of other types are left out, dimensions as in C: slowest first.

    Raises:
        InputError: not such a file, or not whole.
    """
    try:
        raw = path.read_bytes()
    except (OSError, MemoryError) as error:
        raise InputError(f"{path}: cannot be read ({error})") from error
    try:
        return _gguf(raw)
    except (struct.error, ValueError, IndexError, KeyError, OverflowError, UnicodeError, MemoryError, RecursionError) as error:
        raise InputError(f"{path}: not a whole GGUF ({' '.join(str(error).split())[:120]})") from error


def _gguf(raw: bytes) -> tuple[dict[str, Any], Arrays]:
    at = 0

    def number(form: str) -> Any:
        nonlocal at
        (value,) = struct.unpack_from(f"<{form}", raw, at)
        at += struct.calcsize(f"<{form}")
        return value

    def text() -> str:
        nonlocal at
        length = number("Q")
        if length > len(raw) - at:
            raise ValueError("a text longer than the file")
        at += length
        return raw[at - length : at].decode()

    def value(kind: int, depth: int = 0) -> Any:
        if kind == 8:
            return text()
        if kind == 9:
            inner, length = number("I"), number("Q")
            if length > len(raw) - at or depth > 4:
                raise ValueError("a list longer than the file")
            return [value(inner, depth + 1) for _ in range(length)]
        return number({0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}[kind])

    if raw[:4] != b"GGUF":
        raise ValueError(f"begins with {raw[:4]!r}")
    at = 4
    if (version := number("I")) not in (2, 3):
        raise ValueError(f"version {version}")
    n_tensors, n_keys = number("Q"), number("Q")
    if max(n_tensors, n_keys) > len(raw):
        raise ValueError("more tensors than bytes")
    meta = {}
    for _ in range(n_keys):
        key = text()
        meta[key] = value(number("I"))
    places = []
    for _ in range(n_tensors):
        name, rank = text(), number("I")
        if rank > 4:
            raise ValueError(f"{name} has {rank} dimensions")
        size = [number("Q") for _ in range(rank)]
        places.append((name, size[::-1], number("I"), number("Q")))
    align = int(meta.get("general.alignment", 32))
    if align < 1:
        raise ValueError(f"alignment {align}")
    data = (at + align - 1) // align * align
    arrays = {}
    for name, size, kind, offset in places:
        if kind == 0:           # GGML_TYPE_F32
            count = int(np.prod(size, dtype=object)) if size else 1
            if data + offset + 4 * count > len(raw):
                raise ValueError(f"{name} lies outside of the file")
            arrays[name] = np.frombuffer(raw, "<f4", count, data + offset).reshape(size)
    return meta, arrays
