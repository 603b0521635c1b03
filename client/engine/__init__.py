"""What computes a client's gradients: ONNX Runtime on a program of the base, or torch. (docs/adr/0041)"""
