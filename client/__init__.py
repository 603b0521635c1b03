"""The client: local data, the frozen base, local training, Flower's ClientApp. ONNX Runtime."""
