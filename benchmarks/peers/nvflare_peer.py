"""NVFlare's simulator with its Hugging Face client API, transformers and peft.

    python benchmarks/peers/nvflare_peer.py RUN OUT

Its job of federated averaging for PyTorch with a site a device and as many threads as ``PEER_CORES`` says, else two:
with fewer threads than sites the simulator starts a site's process anew for each task. In an environment of
``nvflare.txt``.
"""

from __future__ import annotations

import os
import shutil
import sys
from pathlib import Path

os.environ["OMP_NUM_THREADS"] = "1"  # for each of the sites that train at a time

from nvflare.app_opt.pt.job_config.fed_avg import FedAvgJob
from nvflare.job_config.script_runner import ScriptRunner
from nvflare_server import Adapter, Evaluation
from work import read_work

HERE = Path(__file__).resolve().parent
THREADS = int(os.environ.get("PEER_CORES", "2"))


def main(run: Path, out: Path) -> None:
    work, workspace = read_work(run), out.parent / "nvflare"
    shutil.rmtree(workspace, ignore_errors=True)  # of a measurement that was cut off
    sites = len(work.clients)
    job = FedAvgJob(
        initial_model=Adapter(run=str(run)),
        n_clients=sites,
        num_rounds=work.rounds,
        min_clients=sites,
        name="peer",
    )
    job.to_server(Evaluation(run=str(run), out=str(out)), id="evaluation")
    job.to_clients(ScriptRunner(str(HERE / "nvflare_client.py"), script_args=f"--run {run}"))
    status = job.simulator_run(str(workspace), n_clients=sites, threads=THREADS)
    if status or not out.exists():
        raise SystemExit(f"the simulator ended with {status}: its logs are in {workspace}")


if __name__ == "__main__":
    main(Path(sys.argv[1]).resolve(), Path(sys.argv[2]).resolve())
