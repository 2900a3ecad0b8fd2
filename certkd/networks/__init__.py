"""Networks by name, checkpoints, and ONNX files."""
