"""ONNX graphs: export, precisions, profiles."""
