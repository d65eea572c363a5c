"""Small ONNX networks written byte by byte, so that the tests need no package to make them."""

import numpy as np


def varint(value):
    out = b""
    while value >= 0x80:
        out += bytes([value & 0x7F | 0x80])
        value >>= 7
    return out + bytes([value])


def field(number, payload):
    """An integer, or anything length-delimited."""
    if isinstance(payload, int):
        return varint(number << 3) + varint(payload)
    payload = payload.encode() if isinstance(payload, str) else payload
    return varint(number << 3 | 2) + varint(len(payload)) + payload


def tensor(name, array):
    array = np.asarray(array)
    kind = {"float32": 1, "int64": 7}[array.dtype.name]
    dims = b"".join(field(1, int(size)) for size in array.shape)
    return dims + field(2, kind) + field(8, name) + field(9, array.tobytes())


def node(kind, inputs, outputs, **attributes):
    body = b"".join(field(1, name) for name in inputs) + b"".join(field(2, name) for name in outputs) + field(4, kind)
    for name, value in attributes.items():
        values = (
            b"".join(field(8, int(v)) for v in value) + field(20, 7)
            if isinstance(value, list)
            else field(3, value) + field(20, 2)
        )
        body += field(5, field(1, name) + values)
    return body


def value(name, shape):
    dims = b"".join(field(1, field(1, side) if isinstance(side, int) else field(2, side)) for side in shape)
    return field(1, name) + field(2, field(1, field(1, 1) + field(2, dims)))


def write_network(path, weights, *, layout="nchw", side=None, input_shape=None):
    """Convolution 3x3 of stride 2 with ``weights (dim, 3, 3, 3)``, ReLU; outputs: its mean, and a score of that.

    Nodes: ``map`` (n, dim, r, c), ``pooled`` (n, dim), ``score`` (n, 1), of which only ``score`` is an output.
    """
    dim = len(weights)
    sides = [side or "rows", side or "cols"]
    shape = input_shape or (["n", 3, *sides] if layout == "nchw" else ["n", *sides, 3])
    nodes = [] if layout == "nchw" else [node("Transpose", ["image"], ["moved"], perm=[0, 3, 1, 2])]
    nodes += [
        node("Conv", ["image" if layout == "nchw" else "moved", "weights"], ["raw"], strides=[2, 2]),
        node("Relu", ["raw"], ["map"]),
        node("GlobalAveragePool", ["map"], ["large"]),
        node("Reshape", ["large", "shape"], ["pooled"]),
        node("MatMul", ["pooled", "head"], ["score"]),
    ]
    graph = b"".join(field(1, one) for one in nodes) + field(2, "network")
    initial = {
        "weights": weights.astype(np.float32),
        "shape": np.array([-1, dim]),
        "head": np.ones((dim, 1), np.float32),
    }
    graph += b"".join(field(5, tensor(name, array)) for name, array in initial.items())
    graph += field(11, value("image", shape)) + field(12, value("score", ["n", 1]))
    path.write_bytes(field(1, 8) + field(7, graph) + field(8, field(1, "") + field(2, 13)))
    return path


def convolved(tiles, weights):
    """What ``map`` is of ``(n, row, col, 3)`` float tiles, by the definition."""
    windows = np.lib.stride_tricks.sliding_window_view(tiles, (3, 3), axis=(1, 2))[:, ::2, ::2]
    return np.maximum(np.einsum("nrcijk,dijk->ndrc", windows, weights), 0)
