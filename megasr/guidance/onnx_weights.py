"""Weights of the convolutions of an ONNX file, read without the packages onnx and onnxruntime."""

from __future__ import annotations

from collections.abc import Iterator
from functools import reduce
from pathlib import Path

import numpy as np
import torch

# Numbers of protobuf fields, from onnx.proto: of a model, a graph, a node and a tensor.
_GRAPH = 7
_NODE, _INITIALIZER, _IMAGE = 1, 5, 11
_SHAPE, _SIZE = (2, 1, 2), 1  # from an input to the shape of its tensor type, and a dimension's value
_INPUT, _OP_TYPE = 1, 4
_DIMS, _DATA_TYPE, _NAME, _RAW_DATA = 1, 2, 8, 9
_FLOAT = 1  # the data type float32


def read_convolutions(path: Path) -> dict[str, torch.Tensor]:
    """Weights and biases of an ONNX file's convolutions in the order of its nodes: `0.weight`, `0.bias`, `1.weight`...

    `input` is the shape of the first input, a vector; 0 where the file leaves a size open.

    Raises:
        ValueError: the file is no ONNX file, is truncated, or a convolution's weights are not float32 in the file.
    """
    graph = _first(memoryview(path.read_bytes()), _GRAPH)
    parts = [(field, value) for field, value in _fields(graph) if isinstance(value, memoryview)]
    tensors = {name: tensor for field, value in parts if field == _INITIALIZER for name, tensor in _tensor(value)}
    convolutions = [inputs for field, value in parts if field == _NODE for inputs in _convolution(value)]
    shape = reduce(_first, _SHAPE, _first(graph, _IMAGE))
    sizes = [dict(_fields(size)).get(_SIZE, 0) for _, size in _fields(shape) if isinstance(size, memoryview)]
    state = {"input": torch.tensor(sizes)}
    for place, (_, *names) in enumerate(convolutions):
        if len(names) != 2 or not all(name in tensors for name in names):
            raise ValueError(f"convolution {place} has no weight and bias of float32")
        state |= {f"{place}.{part}": tensors[name] for part, name in zip(("weight", "bias"), names, strict=True)}
    return state


def _first(message: memoryview, number: int) -> memoryview:
    """The first field of this number, which is a message itself."""
    found = next((value for field, value in _fields(message) if field == number), None)
    if not isinstance(found, memoryview):
        raise ValueError("it is no ONNX file of a network")
    return found


def _tensor(message: memoryview) -> Iterator[tuple[str, torch.Tensor]]:
    """Name and value of a float32 tensor; nothing of another type."""
    fields = list(_fields(message))
    values = dict(fields)
    if values.get(_DATA_TYPE) == _FLOAT and isinstance(values.get(_RAW_DATA), memoryview):
        shape = [value for field, value in fields if field == _DIMS]
        array = np.frombuffer(values[_RAW_DATA], "<f4").reshape(shape).copy()  # type: ignore[arg-type]
        yield bytes(values[_NAME]).decode(), torch.from_numpy(array)  # type: ignore[arg-type]


def _convolution(message: memoryview) -> Iterator[list[str]]:
    """Names of the inputs of a convolution; nothing of another node."""
    fields = [(field, bytes(value).decode()) for field, value in _fields(message) if field in (_INPUT, _OP_TYPE)]  # type: ignore[arg-type]
    if (_OP_TYPE, "Conv") in fields:
        yield [value for field, value in fields if field == _INPUT]


def _fields(message: memoryview) -> Iterator[tuple[int, int | memoryview]]:
    """Number and value of a protobuf message's fields: integers, and bytes of everything else."""
    place = 0

    def varint() -> int:
        nonlocal place
        value = shift = 0
        while True:
            byte = message[place]
            value |= (byte & 0x7F) << shift
            place, shift = place + 1, shift + 7
            if byte < 0x80:
                return value

    try:
        while place < len(message):
            key = varint()
            kind = key & 7
            if kind == 0:
                yield key >> 3, varint()
                continue
            if kind not in (1, 2, 5):
                raise ValueError("it is no ONNX file")
            size = varint() if kind == 2 else {1: 8, 5: 4}[kind]
            if place + size > len(message):
                raise ValueError("it is truncated")
            yield key >> 3, message[place : place + size]
            place += size
    except IndexError as error:
        raise ValueError("it is truncated") from error
