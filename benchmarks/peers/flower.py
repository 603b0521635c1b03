"""Flower's simulation with transformers and peft, in the form of its own examples for language models.

    python benchmarks/peers/flower.py RUN OUT

Each message builds the model, loads the adapter, trains an epoch, answers with the adapter; FedAvg averages;
the server evaluates. As in :mod:`sequential` but over Flower's engine: actors of one core each, as many as the
machine has cores or ``PEER_CORES`` says.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections import OrderedDict
from pathlib import Path

os.environ.update(
    {
        "FLWR_TELEMETRY_ENABLED": "0",
        "FLWR_DISABLE_UPDATE_CHECK": "1",
        "RAY_USAGE_STATS_ENABLED": "0",
        "OMP_NUM_THREADS": "1",
    }
)

from flwr.app import ArrayRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid, ServerApp
from flwr.serverapp.strategy import FedAvg
from flwr.simulation import run_simulation

RUN, OUT = Path(os.environ.get("PEER_RUN", "")), Path(os.environ.get("PEER_OUT", ""))
client, server = ClientApp(), ServerApp()


@client.train()
def train(message: Message, context: Context) -> Message:
    from work import load_state, model_and_tokenizer, read_work, train_epoch, trained_state

    work = read_work(RUN)
    partition = int(context.node_config["partition-id"])
    rows = work.clients[partition]
    model, tokenizer = model_and_tokenizer(work)
    load_state(model, message.content["arrays"].to_torch_state_dict())  # type: ignore[union-attr]
    number = int(message.content["config"]["server-round"])  # type: ignore[index,arg-type]
    loss = train_epoch(model, tokenizer, rows, work, seed=1000 * number + partition)
    content = {
        "arrays": ArrayRecord(OrderedDict(trained_state(model))),
        "metrics": MetricRecord({"train_loss": loss, "num-examples": 1}),
    }
    return Message(RecordDict(content), reply_to=message)  # type: ignore[arg-type]


@server.main()
def main(grid: Grid, context: Context) -> None:
    from work import accuracy, load_state, model_and_tokenizer, read_work, trained_state

    work = read_work(RUN)
    model, tokenizer = model_and_tokenizer(work)
    state, rounds, started = trained_state(model), [], time.perf_counter()

    def evaluate(number: int, arrays: ArrayRecord) -> MetricRecord:
        if number:
            seconds = time.perf_counter() - started
            load_state(model, arrays.to_torch_state_dict())
            share = accuracy(model, tokenizer, work.test, work)
            rounds.append({"seconds": seconds, "accuracy": share, "at": time.time()})
        return MetricRecord({})

    strategy = FedAvg(
        fraction_train=1.0, fraction_evaluate=0.0, min_available_nodes=len(work.clients)
    )
    strategy.start(
        grid,
        initial_arrays=ArrayRecord(OrderedDict(state)),
        num_rounds=work.rounds,
        evaluate_fn=evaluate,
    )
    size = 4 * sum(value.numel() for value in state.values())
    OUT.write_text(json.dumps({"rounds": rounds, "bytes_up": size, "bytes_down": size}))


if __name__ == "__main__":
    os.environ |= {"PEER_RUN": sys.argv[1], "PEER_OUT": sys.argv[2]}
    os.environ["PYTHONPATH"] = os.pathsep.join([str(Path(__file__).parent), *sys.path[1:]])
    RUN, OUT = Path(sys.argv[1]), Path(sys.argv[2])
    from work import read_work

    cores = os.environ.get("PEER_CORES")
    run_simulation(
        server,
        client,
        num_supernodes=len(read_work(RUN).clients),
        backend_config={
            "init_args": {"num_cpus": int(cores)} if cores else {},
            "client_resources": {"num_cpus": 1.0, "num_gpus": 0.0},
        },
    )
