#!/usr/bin/env python3
"""Writes testdata/formats/: golden blocks for every block format.

NAME.decode.bin: blocks, then their numbers as f32, by gguf.quants.dequantize of gguf-py; for FP8 and its scales
all 256 bytes, by ml_dtypes.
NAME.encode.bin: numbers as f32, then their blocks, by gguf.quants.quantize (formats where that exists) or ml_dtypes.
Blocks are random bytes with finite scales of every magnitude, among them zero, subnormal and the largest, and one
block whose bytes are all ones. Run: pip install gguf==0.19.0 ml_dtypes==0.6.0 numpy; python format_blocks.py; commit
with SHA256SUMS.
"""

import hashlib
import pathlib

import ml_dtypes
import numpy as np
from gguf import GGML_QUANT_SIZES, GGMLQuantizationType, quants

OUT = pathlib.Path(__file__).parent.parent / "formats"
# Name and the byte offsets of its f16 fields.
FORMATS = {
    "F16": [0], "BF16": [], "Q4_0": [0], "Q4_1": [0, 2], "Q5_0": [0], "Q5_1": [0, 2], "Q8_0": [0],
    "Q2_K": [80, 82], "Q3_K": [108], "Q4_K": [0, 2], "Q5_K": [0, 2], "Q6_K": [208], "IQ4_NL": [0], "IQ4_XS": [0],
    "MXFP4": [],
}
ENCODED = ["BF16", "Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0", "MXFP4"]
EXTREMES = np.array([0.0, -0.0, 6e-8, -6.1e-5, 65504.0, -65504.0, 1.0, -0.0123], np.float16)


def decode_blocks(rng, name, fields):
    elems, size = GGML_QUANT_SIZES[GGMLQuantizationType[name]]
    n = 8 if elems > 1 else 256
    blocks = rng.integers(0, 256, (n, size), np.uint8)
    for i, at in enumerate(fields):
        scales = rng.normal(0, 1, n).astype(np.float16)
        scales[: n // 2] = np.resize(np.roll(EXTREMES, i * 3), n // 2)
        blocks[:, at : at + 2] = scales.view(np.uint8).reshape(n, 2)
    blocks[-1] = 0xFF
    return blocks


def encode_numbers(rng, name):
    elems = GGML_QUANT_SIZES[GGMLQuantizationType[name]][0]
    x = rng.normal(0, 1, (8, max(elems, 32))).astype(np.float32)
    x[0] = 0
    x[1] = 0.25
    x[2] *= 1e-6
    x[3] *= 1e4
    x[4] = -np.abs(x[4])
    x[5, 7] = 40
    return x


def main():
    OUT.mkdir(exist_ok=True)
    sums = []
    for name, fields in FORMATS.items():
        rng = np.random.default_rng(list(name.encode()))  # its own, so that a new format changes no other's file
        kind = GGMLQuantizationType[name]
        blocks = decode_blocks(rng, name, fields)
        with np.errstate(all="ignore"):
            numbers = quants.dequantize(blocks, kind).astype("<f4")
        files = {f"{name}.decode.bin": blocks.tobytes() + numbers.tobytes()}
        if name in ENCODED:
            x = encode_numbers(rng, name)
            files[f"{name}.encode.bin"] = x.astype("<f4").tobytes() + quants.quantize(x, kind).tobytes()
        write(files, sums)
    for name, kind in {"F8_E4M3": ml_dtypes.float8_e4m3fn, "UE8M0": ml_dtypes.float8_e8m0fnu}.items():
        blocks = np.arange(256, dtype=np.uint8)
        write({f"{name}.decode.bin": blocks.tobytes() + blocks.view(kind).astype("<f4").tobytes()}, sums)
    rng = np.random.default_rng(8)
    x = np.concatenate([rng.normal(0, s, 64) for s in (1e-4, 1e-2, 1, 100)]).clip(-448, 448).astype("<f4")
    x = np.concatenate([x, np.arange(-32, 32, dtype="<f4") / 1024 + np.float32(1 / 2048), np.zeros(1, "<f4")])
    write({"F8_E4M3.encode.bin": x.tobytes() + x.astype(ml_dtypes.float8_e4m3fn).tobytes()}, sums)
    (OUT / "SHA256SUMS").write_text("".join(sums))


def write(files, sums):
    for file, data in files.items():
        (OUT / file).write_bytes(data)
        sums.append(f"{hashlib.sha256(data).hexdigest()}  {file}\n")


main()
