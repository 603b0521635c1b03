"""The device: verify, activate, swap, roll back, infer. onnxruntime + numpy + tokenizers."""

import os

# Before ONNX Runtime is loaded: its wheels report to their maker, and keep a number of this machine for it.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
