"""Programs: loss and gradients of an adapter as one ONNX graph over a base's own bytes."""
