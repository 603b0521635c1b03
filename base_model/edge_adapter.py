"""Writing ``.onnx_adapter`` as devices do. (P-5.2)"""

from edge_runtime.edge_adapter import write_edge_adapter

__all__ = ["write_edge_adapter"]
