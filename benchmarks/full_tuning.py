"""Full fine-tuning on the rows of a finished run: every weight of its base, pooled or averaged over devices.

    python benchmarks/full_tuning.py RUN [--federated] [--rate 5e-5]

What few parameters are compared with (`benchmarks/methods.py`). It begins with the weights that the base's codes stand
for, in float32, trains by torch's AdamW in the plan's batches and as many passes, and averages in plaintext. One JSON
object: accuracy on the run's test rows, numbers that are trained, processor seconds and peak memory of this process.
"""

from __future__ import annotations

import argparse
import json
import resource
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from base_model.quant_linear import QuantLinear
from base_model.store import open_base
from client.batches import Encoded, by_length, collate, training_batches
from client.data import load_rows
from client.worker import Worker
from protocol.encoding import seed_from
from protocol.plan import plan_from_text

EVALUATION_BATCH = 64


class FullModel:
    """The base with all weights to be trained."""

    def __init__(self, base: Path, labels: int) -> None:
        self.model = open_base(base, labels=labels, verify=False).model
        for name, module in list(self.model.named_modules()):
            if isinstance(module, QuantLinear):
                parent, _, child = name.rpartition(".")
                setattr(self.model.get_submodule(parent), child, _plain(module))
        for parameter in self.model.parameters():
            parameter.requires_grad_(True)
        nn.init.normal_(self.model.get_submodule("classifier").weight, std=0.02)
        self.model.eval()  # without dropout, as adapters are trained

    @property
    def numbers(self) -> int:
        """Trained numbers."""
        return sum(parameter.numel() for parameter in self.model.parameters())

    def state(self) -> dict[str, torch.Tensor]:
        """A copy of the weights."""
        return {name: value.detach().clone() for name, value in self.model.named_parameters()}

    def load(self, state: dict[str, torch.Tensor]) -> None:
        """Begin again from a copy."""
        with torch.no_grad():
            for name, value in self.model.named_parameters():
                value.copy_(state[name])

    def logits(self, rows: Encoded, index: Any) -> torch.Tensor:
        """(rows, labels)."""
        batch = collate(rows, index)
        ids, mask = torch.from_numpy(batch.ids), torch.from_numpy(batch.mask)
        answer: torch.Tensor = self.model(input_ids=ids, attention_mask=mask).logits
        return answer

    def train(
        self, rows: Encoded, *, rates: tuple[float, float], batch: int, seed: int, epochs: float
    ) -> None:
        """AdamW without decay; ``rates`` of the encoder and of the head."""
        head = [p for n, p in self.model.named_parameters() if n.startswith("classifier.")]
        body = [p for n, p in self.model.named_parameters() if not n.startswith("classifier.")]
        groups = [{"params": body, "lr": rates[0]}, {"params": head, "lr": rates[1]}]
        optimizer = torch.optim.AdamW(groups, weight_decay=0.0)
        targets = torch.from_numpy(rows.targets)
        for _, index in training_batches(rows.lengths, batch_size=batch, seed=seed, epochs=epochs):
            optimizer.zero_grad()
            loss = nn.functional.cross_entropy(self.logits(rows, index), targets[index])
            loss.backward()
            nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
            optimizer.step()

    def accuracy(self, rows: Encoded) -> float:
        """Share of rows classified rightly."""
        right = 0
        with torch.no_grad():
            for index in by_length(rows.lengths, batch_size=EVALUATION_BATCH):
                right += int(
                    (self.logits(rows, index).argmax(1).numpy() == rows.targets[index]).sum()
                )
        return right / len(rows)


def _plain(module: QuantLinear) -> nn.Linear:
    linear = nn.Linear(module.in_features, module.out_features, bias=module.bias is not None)
    with torch.no_grad():
        linear.weight.copy_(module.weight)
        if module.bias is not None:
            linear.bias.copy_(module.bias)
    return linear


def averaged(states: Iterable[dict[str, torch.Tensor]]) -> dict[str, torch.Tensor]:
    """The mean of equal weights, summed one by one: a device's copy is not kept."""
    total: dict[str, torch.Tensor] = {}
    count = 0
    for state in states:
        count += 1
        total = {name: total[name] + value if total else value for name, value in state.items()}
    return {name: value / count for name, value in total.items()}


def main() -> None:
    """See the module."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("run", type=Path)
    parser.add_argument(
        "--federated", action="store_true", help="average over devices, in plaintext"
    )
    parser.add_argument("--rate", type=float, default=5e-5, help="of the encoder's weights")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    run: Path = arguments.run
    plan = plan_from_text((run / "plan.json").read_text(), source="plan.json")
    base = Path(json.loads((run / "summary.json").read_text())["base"])
    worker = Worker(plan, base, threads=1)
    devices = [
        worker.encode(load_rows(path, plan.task))
        for path in sorted((run / "clients").glob("client-????.jsonl"))
    ]
    test = worker.encode(load_rows(run / "test.jsonl", plan.task))
    full = FullModel(base, plan.task.outputs)
    local, rates = plan.local, (arguments.rate, arguments.rate * 20)
    begun = time.process_time()
    if arguments.federated:
        for number in range(1, plan.rounds + 1):
            start = full.state()
            drawn = np.random.default_rng([plan.seed, number])
            chosen = drawn.choice(len(devices), plan.cohort.size, replace=False)

            def trained(
                device: int, start: dict[str, torch.Tensor] = start, number: int = number
            ) -> Any:
                full.load(start)
                seed = seed_from("full", plan.seed, number, device)
                full.train(
                    devices[device],
                    rates=rates,
                    batch=local.batch_size,
                    seed=seed,
                    epochs=local.epochs,
                )
                return full.state()

            full.load(averaged(trained(int(device)) for device in chosen))
    else:
        passes = plan.rounds * plan.cohort.size / len(devices) * local.epochs
        everything = worker.encode(_joined(run, plan))
        full.train(everything, rates=rates, batch=local.batch_size, seed=plan.seed, epochs=passes)
    seconds = time.process_time() - begun
    print(
        json.dumps(
            {
                "accuracy": full.accuracy(test),
                "numbers": full.numbers,
                "cpu_seconds": seconds,
                "peak_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
            }
        )
    )


def _joined(run: Path, plan: Any) -> Any:
    """All devices' rows."""
    whole = run / "pooled.jsonl"
    whole.write_text(
        "".join(path.read_text() for path in sorted((run / "clients").glob("client-????.jsonl")))
    )
    rows = load_rows(whole, plan.task)
    whole.unlink()
    return rows


if __name__ == "__main__":
    main()
