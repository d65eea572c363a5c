"""Damage as it happens, and as somebody would do it on purpose: bytes, lengths, numbers, words of a text.

`mutate` is a function of its generator alone, so that the seed of a mutant is the mutant.
"""

import io
import random
import struct

import numpy as np

__all__ = ["mutate"]

_TEXT = (".yaml", ".json", ".csv", ".txt", ".hdr", ".md")
# Fields of headers that are wrong on purpose: nothing, all bits, the largest and the smallest of each size.
_NUMBERS = (
    *(struct.pack("<h", n) for n in (0, -1, 1, 0x7FFF, -0x8000)),
    *(struct.pack("<i", n) for n in (0, -1, 1, 0x7FFFFFFF, -0x80000000, 1 << 30)),
    *(struct.pack(">i", n) for n in (-1, 1, 0x7FFFFFFF, 1 << 28)),
    *(struct.pack("<q", n) for n in (0, -1, 1 << 62, 1 << 40, -(1 << 63))),
    *(struct.pack("<f", n) for n in (float("nan"), float("inf"), -1.0, 1e38, 0.0)),
    *(struct.pack("<d", n) for n in (float("nan"), float("-inf"), 1e308, -0.0)),
)
_WORDS = (
    *("-1", "0", "1e999", ".nan", "-.inf", "99999999999999999999", "null", "true", "[]", "{}", "''", "~", "x" * 5000),
    *(
        "[[[[[[[[[[[[[[[[[[[[",
        "../../../etc/passwd",
        "/dev/zero",
        "\0",
        "é\ud7ff",
        "!!python/object/apply:os.getcwd []",
    ),
    *("&a [*a, *a]", "(a+)+$", "(?P<", "2001-99-99", "0x1F", "1_000", "<<: *a", "%s%n", "\t", "- - - -", "? :", "|2-"),
)


def mutate(data: bytes, name: str, draw: random.Random) -> bytes:
    """A damaged copy of a file's content; which damage is drawn by chance.

    Args:
        data: The content.
        name: Tells what it is by its suffix.
        draw: Where chance comes from.
    """
    if not data:
        return data
    lower = name.lower()
    if lower.endswith(_TEXT) and draw.random() < 0.8:
        return _text(data, draw)
    if lower.endswith((".h5", ".hdf5", ".mrd")) and draw.random() < 0.4:
        return _hdf5(data, draw)
    if lower.endswith(".dcm") and draw.random() < 0.4:
        return _dicom(data, draw)
    if lower.endswith(".safetensors") and draw.random() < 0.5:
        return _json_header(data, draw)
    for _ in range(draw.choice((1, 1, 1, 2, 4))):
        if not data:
            break
        data = draw.choice((_flip, _flip, _field, _field, _field, _cut, _splice, _double, _blank))(data, draw)
    return data


def _place(data: bytes, draw: random.Random) -> int:
    """Where: as often as not in the first bytes, where headers are."""
    reach = draw.choice((len(data), len(data), 64, 512, 4096))
    return draw.randrange(max(1, min(reach, len(data))))


def _flip(data: bytes, draw: random.Random) -> bytes:
    out = bytearray(data)
    for _ in range(draw.choice((1, 1, 2, 8, 40))):
        at = _place(data, draw)
        out[at] = draw.randrange(256) if draw.random() < 0.5 else out[at] ^ (1 << draw.randrange(8))
    return bytes(out)


def _field(data: bytes, draw: random.Random) -> bytes:
    at, value = _place(data, draw), draw.choice(_NUMBERS)
    # Most fields are aligned to their size.
    at -= at % min(len(value), 4) if draw.random() < 0.8 else 0
    return data[:at] + value + data[at + len(value) :]


def _cut(data: bytes, draw: random.Random) -> bytes:
    return data[: draw.choice((_place(data, draw), len(data) - 1, len(data) - draw.randrange(1, 200)))]


def _splice(data: bytes, draw: random.Random) -> bytes:
    size, here, there = draw.choice((1, 16, 300)), _place(data, draw), draw.randrange(len(data))
    return data[:here] + data[there : there + size] + data[here + (0 if draw.random() < 0.5 else size) :]


def _double(data: bytes, draw: random.Random) -> bytes:
    return data + data[_place(data, draw) :] if draw.random() < 0.5 else data + draw.randbytes(draw.randrange(64))


def _blank(data: bytes, draw: random.Random) -> bytes:
    at, size = _place(data, draw), draw.choice((4, 64, 600))
    return data[:at] + draw.choice((b"\0", b"\xff")) * len(data[at : at + size]) + data[at + size :]


def _text(data: bytes, draw: random.Random) -> bytes:
    lines = data.decode("utf-8", "replace").splitlines(keepends=True)
    for _ in range(draw.choice((1, 1, 2, 5))):
        at = draw.randrange(len(lines))
        line, word = lines[at], draw.choice(_WORDS)
        separator = draw.choice((":", " ", ",", "/"))
        parts = line.split(separator)
        part = draw.randrange(len(parts))
        what = draw.random()
        if what < 0.5:
            lines[at] = separator.join([*parts[:part], word, *parts[part + 1 :]])
        elif what < 0.6:
            lines[at] = separator.join([*parts[:part], *parts[part + 1 :]])
        elif what < 0.7:
            lines[at] = line * draw.choice((2, 3, 500))
        elif what < 0.8:
            lines[at] = ""
        elif what < 0.9:
            lines[at] = " " * draw.randrange(6) + line.lstrip()
        else:
            lines[at] = line.rstrip("\n") + word + "\n"
    return "".join(lines).encode("utf-8", "surrogatepass")


def _hdf5(data: bytes, draw: random.Random) -> bytes:
    """An intact file whose content makes no sense."""
    import h5py

    buffer = io.BytesIO(data)
    try:
        with h5py.File(buffer, "r+") as file:
            names: list[str] = []
            file.visit(names.append)
            for _ in range(draw.choice((1, 1, 2))):
                _change(file, draw.choice(names) if names else "x", draw)
    except (OSError, ValueError, KeyError, TypeError, RuntimeError, MemoryError):
        return _flip(data, draw)
    return buffer.getvalue()


def _change(file, name: str, draw: random.Random) -> None:
    node, what = file[name], draw.random()
    attributes = list(node.attrs)
    if attributes and what < 0.3:
        node.attrs[draw.choice(attributes)] = draw.choice((-1, 0, float("nan"), "x" * 999, b"\xff", [1, 2, 3], 1 << 62))
        return
    if what < 0.4:
        del file[name]
        return
    if not getattr(node, "shape", ()) or not node.size:
        node.attrs["patch_size"] = draw.choice((-5, 0, "huge"))
        return
    if what < 0.6:
        array = node[()]
        flat = np.array(array).reshape(-1)
        if flat.dtype.kind in "fc":
            flat[draw.randrange(flat.size)] = draw.choice((np.nan, np.inf, 1e38, 0))
        elif flat.dtype.kind in "iu":
            flat[draw.randrange(flat.size)] = draw.choice((0, 1, np.iinfo(flat.dtype).max, np.iinfo(flat.dtype).min))
        node[()] = flat.reshape(np.shape(array))
        return
    _replace(file, name, draw)


def _replace(file, name: str, draw: random.Random) -> None:
    """Another data set under the same name, with the same attributes."""
    what, array, rest = draw.random(), np.array(file[name][()]), dict(file[name].attrs)
    del file[name]
    if what < 0.25:
        file[name] = draw.choice((array[..., :0], array[:0], array.ravel(), array[None], np.zeros(()), b"text"))
    elif what < 0.5:
        # As large as nothing on this machine, written by nobody: it costs no byte.
        shape = draw.choice(((1 << 40,), (1 << 20, 1 << 20), (100_000, 100, 512, 512), (0, 5), (1,) * 9))
        file.create_dataset(
            name, shape, draw.choice(("f4", "c8", "i8", "S10")), chunks=True if 0 not in shape else None
        )
    elif what < 0.8:
        file[name] = array.astype(draw.choice(("i1", "f8", "bool", "S4"))) if array.dtype.kind in "fiub" else "text"
    else:
        file[name] = np.array(["", "x" * 300, "\n<xml>"][draw.randrange(3)], dtype=h5py_text())
    for key, value in rest.items():
        file[name].attrs[key] = value


def h5py_text():
    """Type of text in HDF5."""
    import h5py

    return h5py.string_dtype()


def _dicom(data: bytes, draw: random.Random) -> bytes:
    """An intact file with elements that make no sense: written by a machine that is wrong, not by a broken cable."""
    import pydicom
    from pydicom.errors import InvalidDicomError

    numbers = ("0", "-1", "1e400", "nan", "65535", "x", "", "1\\2\\3\\4\\5\\6\\7", "-99999999999", "1.5")
    try:
        ds = pydicom.dcmread(io.BytesIO(data))
        for _ in range(draw.choice((1, 1, 2, 4))):
            elements = [element for element in ds if element.tag.group not in (0x0002, 0x7FE0)]
            element = draw.choice(elements)
            what = draw.random()
            if what < 0.25:
                del ds[element.tag]
            elif element.VR in ("US", "SS"):
                element._value = draw.choice((0, 1, 2, 8, 16, 32, 64, 65535, 4096))
            elif element.VR in ("DS", "IS"):
                element._value = draw.choice(numbers)
                element.VR = "LO"
            elif element.VR == "SQ":
                element.value = [] if what < 0.5 else [element.value[0]] * 40 if element.value else []
            elif element.VR == "UI":
                element._value = draw.choice(("", "1.2..3", "1" * 70, "1.2.840.10008.5.1.4.1.1.2.1", "abc"))
            else:
                element._value = draw.choice((*numbers, "\\" * 30, "x" * 70000, "\x1b$B\x1b("))
                element.VR = "LO" if element.VR not in ("OB", "OW", "UN") else "LO"
        buffer = io.BytesIO()
        ds.save_as(buffer)
    except (InvalidDicomError, ValueError, TypeError, KeyError, AttributeError, OSError, IndexError, struct.error):
        return _field(data, draw)
    except (NotImplementedError, OverflowError, LookupError):
        return _flip(data, draw)
    return buffer.getvalue()


def _json_header(data: bytes, draw: random.Random) -> bytes:
    """safetensors: the length of the header, or its JSON, with the length corrected as often as not."""
    (size,) = struct.unpack("<Q", data[:8])
    header, body = data[8 : 8 + size], data[8 + size :]
    if draw.random() < 0.3:
        return struct.pack("<Q", draw.choice((0, 1 << 63, 1 << 40, size + 1, size - 1))) + data[8:]
    words = (b"-1", b"0", b"99999999999999", b"[]", b"F64", b"BF16", b"null", b"{}", b'"x"')
    for _ in range(draw.choice((1, 2))):
        at = draw.randrange(len(header))
        header = header[:at] + draw.choice(words) + header[at + draw.choice((0, 1, 3)) :]
    return struct.pack("<Q", len(header) if draw.random() < 0.6 else size) + header + body
