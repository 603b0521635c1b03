"""The publisher: prepare a base once (quantise, export the edge graph), release adapters. torch."""

import os

os.environ.setdefault(
    "ORT_DISABLE_TELEMETRY", "1"
)  # as in edge_runtime, which is not imported here
