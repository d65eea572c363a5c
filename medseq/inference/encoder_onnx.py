"""Patch encoders in ONNX files, run by onnxruntime on the CPU. Any network with one image input."""

import hashlib
from pathlib import Path
from typing import Any, Literal

import numpy as np

from medseq.errors import BackendError, FormatError, InputError
from medseq.inference.encoders import EncoderInfo, Preprocess, require_features, require_tiles
from medseq.io.privacy import path_label

__all__ = ["OnnxEncoder"]

# Where a network takes images of any size, this one is tried to learn the number of features.
_PROBE_SIDE = 224
_MAX_BYTES = (1 << 31) - 1


class OnnxEncoder:
    """An image network in ONNX; a `medseq.inference.encoders.PatchEncoder`.

    Args:
        path: The file.
        preprocess: What is done to tiles first.
        output: Node whose output is the feature, also one inside the network; default: the first output.
        mpp: Microns per pixel the network is made for, if known.

    Raises:
        InputError: No such file, or no such output.
        FormatError: Not ONNX, not an image network, or no features come out.
        BackendError: onnxruntime is not installed.
    """

    def __init__(
        self, path: Path, preprocess: Preprocess, *, output: str | None = None, mpp: float | None = None
    ) -> None:
        self._where = path_label(path)
        if not path.is_file():
            raise InputError("no such encoder", where=self._where, wanted="an ONNX file")
        self._preprocess = preprocess
        digest = _digest(path)
        self._session = self._open(path, output)
        self._input, self._layout, side = self._image_input()
        self._output = output or self._session.get_outputs()[0].name
        probe = np.zeros((1, side or _PROBE_SIDE, side or _PROBE_SIDE, 3), np.uint8)
        dim = self._run(probe).shape[1]
        settings = {
            "mean": list(preprocess.mean),
            "sd": list(preprocess.sd),
            "scale": preprocess.scale,
            "colours": preprocess.colours,
            "output": self._output,
        }
        # The file's name may be anything; the hash says which weights these are.
        self.info = EncoderInfo(f"onnx-{digest[:12]}", "onnx", dim, mpp, side, digest, settings)

    def encode(self, tiles: np.ndarray) -> np.ndarray:
        require_tiles(tiles, self.info.tile_size, self.info.name)
        return self._run(tiles) if len(tiles) else np.empty((0, self.info.dim), np.float32)

    def _open(self, path: Path, output: str | None) -> Any:
        try:
            import onnxruntime
        except ImportError:
            raise BackendError("onnxruntime is not installed", remedy="pip install onnxruntime") from None
        errors = onnxruntime.capi.onnxruntime_pybind11_state
        options = onnxruntime.SessionOptions()
        # Its warnings name nodes and files on standard error.
        options.log_severity_level = 3
        words = {"sess_options": options, "providers": ["CPUExecutionProvider"]}
        try:
            session = onnxruntime.InferenceSession(path, **words)
            if output is None or output in [node.name for node in session.get_outputs()]:
                return session
            if path.stat().st_size > _MAX_BYTES:
                raise InputError("no such output", where=self._where, found=output, wanted="one of a file below 2 GB")
            return onnxruntime.InferenceSession(path.read_bytes() + _further_output(output), **words)
        except (errors.InvalidGraph, errors.InvalidArgument, errors.Fail) as error:
            if output is not None and output in str(error):
                raise InputError("no such output", where=self._where, found=output) from None
            raise self._unreadable(error) from None
        except (errors.InvalidProtobuf, errors.NotImplemented, errors.RuntimeException) as error:
            raise self._unreadable(error) from None

    def _unreadable(self, error: Exception) -> FormatError:
        return FormatError(
            "not a network that onnxruntime runs", where=self._where, found=type(error).__name__, wanted="an ONNX file"
        )

    def _image_input(self) -> tuple[str, Literal["nchw", "nhwc"], int | None]:
        """Name, order of axes and side of the input."""
        inputs = self._session.get_inputs()
        shape = list(inputs[0].shape) if inputs else []
        if len(inputs) != 1 or len(shape) != 4 or inputs[0].type != "tensor(float)":
            found = ", ".join(f"{node.type} {node.shape}" for node in inputs) or "no input"
            raise FormatError("not an image network", where=self._where, found=found, wanted="float (n, 3, row, col)")
        if shape[1] == 3:
            layout, sides = "nchw", shape[2:]
        elif shape[3] == 3:
            layout, sides = "nhwc", shape[1:3]
        else:
            raise FormatError("not an image network", where=self._where, found=shape, wanted="(n, 3, row, col)")
        known = {side for side in sides if isinstance(side, int)}
        if len(known) > 1:
            raise FormatError("takes images that are not square", where=self._where, found=shape)
        return inputs[0].name, layout, next(iter(known), None)  # type: ignore[return-value]

    def _run(self, tiles: np.ndarray) -> np.ndarray:
        import onnxruntime

        images = self._preprocess(tiles)
        if self._layout == "nchw":
            images = images.transpose(0, 3, 1, 2)
        errors = onnxruntime.capi.onnxruntime_pybind11_state
        try:
            values = self._session.run([self._output], {self._input: np.ascontiguousarray(images)})[0]
        except (errors.InvalidArgument, errors.Fail, errors.RuntimeException) as error:
            raise FormatError(
                "the encoder cannot take these tiles",
                where=self._where,
                found=f"{type(error).__name__} for tiles of {tiles.shape[1]} pixels",
                remedy="try the side the network was made for with --tile",
            ) from None
        return require_features(np.asarray(values), self._where)


def _further_output(name: str) -> bytes:
    """Bytes that, behind a serialised ``ModelProto``, make a node inside the graph one of its outputs.

    Protocol buffers merge a message that comes twice: this is a model of nothing but one more output.

    Reference:
        Protocol Buffers encoding guide, "Last One Wins"; onnx.proto: ModelProto.graph 7, GraphProto.output 12,
        ValueInfoProto.name 1.
    """
    return _field(7, _field(12, _field(1, name.encode())))


def _field(number: int, payload: bytes) -> bytes:
    """A length-delimited field."""
    length, size = len(payload), b""
    while length >= 0x80:
        size += bytes([length & 0x7F | 0x80])
        length >>= 7
    return bytes([number << 3 | 2]) + size + bytes([length]) + payload


def _digest(path: Path) -> str:
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
