"Files of weights that are all zero: of full size to a reader, next to nothing on the disk."

import json
from collections.abc import Mapping, Sequence
from math import prod
from pathlib import Path

from avsrepro.nn.backbones import encoder_shapes
from avsrepro.nn.weights import weights_file


def blank_file(path: Path, shapes: Mapping[str, Sequence[int]]) -> Path:
    "A safetensors file of zeros, float32: a header and a hole."
    table, end = {}, 0
    for name, shape in shapes.items():
        start, end = end, end + 4 * prod(shape)
        table[name] = dict(dtype='F32', shape=list(shape), data_offsets=[start, end])
    header = json.dumps(table).encode()
    header += b' ' * (-len(header) % 8)
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, 'wb') as f:
        f.write(len(header).to_bytes(8, 'little') + header)
        f.truncate(8 + len(header) + end)
    return path


def blank_weights(folder: Path, encoder: str) -> Path:
    "The file that `find_weights` finds for an encoder in a folder, of the names and shapes that it has."
    return blank_file(Path(folder) / weights_file(encoder).stored, encoder_shapes(encoder))
