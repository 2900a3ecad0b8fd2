"""Build networks by name, and read and write checkpoints and ONNX files."""
