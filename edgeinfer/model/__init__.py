"""A handle on an ONNX graph: reading, checking, identity."""
