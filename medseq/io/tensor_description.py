"""What a file of torch says of its tensors, read without torch and without running anything.

torch describes tensors in the pickle language, which can call any function. Here a description is read by a small
machine that knows tensors, lists, dictionaries, numbers and text, and refuses the file at anything else: nothing is
imported, nothing is called.
"""

import pickletools
from collections.abc import Callable
from typing import IO, Any, NamedTuple

import numpy as np

from medseq.errors import FormatError

__all__ = ["StoredTensor", "read_description"]

_STORAGES: dict[str, np.dtype | str] = {
    "FloatStorage": np.dtype("<f4"),
    "DoubleStorage": np.dtype("<f8"),
    "HalfStorage": np.dtype("<f2"),
    "BFloat16Storage": "bfloat16",
    "LongStorage": np.dtype("<i8"),
    "IntStorage": np.dtype("<i4"),
    "ShortStorage": np.dtype("<i2"),
    "ByteStorage": np.dtype("u1"),
    "CharStorage": np.dtype("i1"),
    "BoolStorage": np.dtype("?"),
}
_CALLS = {
    ("torch._utils", "_rebuild_tensor_v2"),
    ("torch._utils", "_rebuild_parameter"),
    ("collections", "OrderedDict"),
}
_MARK = object()
_PLAIN = {"BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8", "UNICODE", "BININT", "BININT1", "BININT2", "LONG1", "LONG4"}
_PLAIN |= {"INT", "LONG", "BINFLOAT", "FLOAT", "SHORT_BINSTRING", "BINSTRING", "STRING"}
_MADE: dict[str, Any] = {
    "MARK": lambda: _MARK,
    "NONE": lambda: None,
    "NEWTRUE": lambda: True,
    "NEWFALSE": lambda: False,
    "EMPTY_TUPLE": tuple,
    "EMPTY_LIST": list,
    "EMPTY_DICT": dict,
}


class StoredTensor(NamedTuple):
    """A tensor as a file describes it.

    Attributes:
        key: Name of its storage.
        dtype: Type of the numbers, or ``bfloat16``.
        first: Its first number in the storage.
        shape: Shape.
        stride: Numbers from one element to the next, along every axis.
    """

    key: str
    dtype: np.dtype | str
    first: int
    shape: tuple[int, ...]
    stride: tuple[int, ...]

    @property
    def itemsize(self) -> int:
        """Bytes a number."""
        return 2 if isinstance(self.dtype, str) else self.dtype.itemsize

    @property
    def is_contiguous(self) -> bool:
        """Whether the rows lie behind each other."""
        wanted = 1
        for size, step in zip(reversed(self.shape), reversed(self.stride), strict=True):
            if size != 1 and step != wanted:
                return False
            wanted *= size
        return True


class _Name(NamedTuple):
    """A function or class that a description names; never imported."""

    module: str
    name: str


def read_description(stream: IO[bytes], where: str) -> Any:
    """One pickle, read without running it; leaves the stream behind it.

    Args:
        stream: At the first byte.
        where: What messages call the file.

    Returns:
        Tensors as `StoredTensor`, lists, tuples, dictionaries, numbers, text.

    Raises:
        FormatError: It wants anything to be called that does not rebuild a tensor, or is damaged.
    """
    machine = _Machine(where)
    try:
        for opcode, argument, _ in pickletools.genops(stream):
            if opcode.name == "STOP":
                return machine.stack.pop()
            machine.step(opcode.name, argument)
    except FormatError:
        raise
    except (ValueError, IndexError, KeyError, TypeError, EOFError, AttributeError):
        pass
    raise FormatError("the description of the tensors is damaged", where=where, remedy="copy the file again")


class _Machine:
    """Carries out a description, one instruction after the other; what it does not know, it refuses."""

    def __init__(self, where: str) -> None:
        self.stack: list[Any] = []
        self._where = where
        self._memo: dict[int, Any] = {}

    def step(self, name: str, argument: Any) -> None:
        if name in _PLAIN:
            self.stack.append(argument)
        elif name in _MADE:
            self.stack.append(_MADE[name]())
        elif name in _FILLED:
            self._fill(name)
        elif name.endswith("PUT") or name == "MEMOIZE":
            self._memo[len(self._memo) if argument is None else argument] = self.stack[-1]
        elif name.endswith("GET"):
            self.stack.append(self._memo[argument])
        elif name in _STEPS:
            _STEPS[name](self, argument)
        elif name not in ("PROTO", "FRAME"):
            raise _refused(f"the instruction {name}", self._where)

    def _fill(self, name: str) -> None:
        """Make a collection of what lies on the stack, or add it to the one below."""
        values = self._popped(name)
        if name.startswith("TUPLE"):
            self.stack.append(tuple(values))
        elif name == "LIST":
            self.stack.append(values)
        elif name.startswith("APPEND"):
            self.stack[-1].extend(values)
        elif name == "DICT":
            self.stack.append(dict(zip(values[::2], values[1::2], strict=True)))
        else:
            self.stack[-1].update(zip(values[::2], values[1::2], strict=True))

    def _popped(self, name: str) -> list[Any]:
        """As many values as the instruction takes: a number, or all above the last mark, which goes too."""
        count = _FILLED[name]
        if count is None:
            place = max(i for i, value in enumerate(self.stack) if value is _MARK)
            values = self.stack[place + 1 :]
            del self.stack[place:]
        else:
            values = self.stack[-count:]
            if len(values) < count:
                raise IndexError
            del self.stack[-count:]
        return values

    def _name(self, argument: str | None) -> None:
        """A function or a class: admitted by name, never imported."""
        if argument is None:
            attribute, module = self.stack.pop(), self.stack.pop()
        else:
            module, _, attribute = argument.partition(" ")
        if (module, attribute) not in _CALLS and not (module == "torch" and attribute in _STORAGES):
            raise _refused(f"{module}.{attribute}", self._where)
        self.stack.append(_Name(module, attribute))

    def _storage(self, _: Any) -> None:
        self.stack.append(_storage(self.stack.pop(), self._where))

    def _call(self, _: Any) -> None:
        arguments, function = self.stack.pop(), self.stack.pop()
        self.stack.append(_rebuilt(function, arguments, self._where))

    def _set_state(self, _: Any) -> None:
        # Attributes of an OrderedDict, such as a state dict's metadata: not needed.
        self.stack.pop()


# Values that each takes from the stack; None for all above the last mark.
_FILLED: dict[str, int | None] = {"TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3, "SETITEM": 2, "APPEND": 1}
_FILLED |= dict.fromkeys(("TUPLE", "LIST", "DICT", "SETITEMS", "APPENDS"))
_STEPS: dict[str, Callable[[_Machine, Any], None]] = {
    "GLOBAL": _Machine._name,
    "STACK_GLOBAL": _Machine._name,
    "BINPERSID": _Machine._storage,
    "REDUCE": _Machine._call,
    "BUILD": _Machine._set_state,
}


def _refused(what: str, where: str) -> FormatError:
    return FormatError(
        "the file wants code to be run and is not opened further",
        where=where,
        found=what,
        wanted="a tensor (n, d), or a dictionary of tensors, numbers and text",
        remedy="where you trust its source, load it there and save only the tensor, or HDF5",
    )


def _storage(described: Any, where: str) -> tuple[str, np.dtype | str]:
    """Key and type of a storage: ``('storage', type, key, device, size[, view])``."""
    kind, found, key = described[:3]
    if kind != "storage" or not isinstance(found, _Name) or (len(described) > 5 and described[5] is not None):
        raise _refused("a storage of another kind", where)
    return str(key), _STORAGES[found.name]


def _rebuilt(function: Any, arguments: tuple[Any, ...], where: str) -> Any:
    """What a call of an admitted function stands for."""
    if not isinstance(function, _Name) or tuple(function) not in _CALLS:
        raise _refused("a call of something else", where)
    if function.name == "OrderedDict":
        return dict(*arguments)
    if function.name == "_rebuild_parameter":
        return arguments[0]
    (key, dtype), first, shape, stride = arguments[:4]
    numbers = (first, *shape, *stride)
    if len(shape) != len(stride) or any(not isinstance(n, int) or n < 0 for n in numbers):
        raise ValueError
    return StoredTensor(key, dtype, first, tuple(shape), tuple(stride))
