"""The device: verify, activate, swap, roll back, infer. onnxruntime + numpy + tokenizers."""
