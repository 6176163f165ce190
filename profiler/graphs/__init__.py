"""ONNX graphs: export, half precision, 8-bit quantisation."""
