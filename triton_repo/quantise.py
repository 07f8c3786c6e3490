"""A graph whose dense layers compute with 8-bit integers."""

from __future__ import annotations

import logging
import tempfile
from pathlib import Path
from typing import Any

import onnx


def quantised(model: Any) -> Any:
    """Dynamic quantisation: weights become int8, activations uint8 with a scale per call.

    Embedding tables and products of activations stay float32: only layers with constant weights
    gain. Scores change in the second or third digit, so orders of close candidates do.

    Args:
        model: onnx.ModelProto; it stays as it is.
    Returns:
        onnx.ModelProto with the same inputs and outputs.
    Source: ONNX Runtime, "Quantize ONNX models", dynamic quantization.
    """
    from onnxruntime.quantization import QuantType, quantize_dynamic

    root = logging.getLogger()  # where the library advises a step that our graphs do not need
    level = root.level
    with tempfile.TemporaryDirectory(prefix="marquee-") as folder:
        path = Path(folder) / "model.onnx"
        root.setLevel(logging.ERROR)
        try:
            quantize_dynamic(
                onnx.ModelProto.FromString(model.SerializeToString()),
                str(path),
                op_types_to_quantize=["MatMul", "Gemm"],
                weight_type=QuantType.QInt8,
                per_channel=True,
            )
        finally:
            root.setLevel(level)
        return onnx.load(str(path))
