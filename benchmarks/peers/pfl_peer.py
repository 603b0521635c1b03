"""Apple's pfl: federated averaging of a PyTorch model over its simulated backend.

    python benchmarks/peers/pfl_peer.py RUN OUT

One model in one process, devices one after the other: the model goes back to the round's start for each device and
differences are added up. In an environment of ``pfl.txt``.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from pfl.aggregate.simulate import SimulatedBackend
from pfl.aggregate.weighting import WeightByUser
from pfl.algorithm.base import NNAlgorithmParams
from pfl.algorithm.federated_averaging import FederatedAveraging
from pfl.callback.base import TrainingProcessCallback
from pfl.data.federated_dataset import FederatedDataset
from pfl.data.pytorch import PyTorchDataDataset
from pfl.data.sampling import get_user_sampler
from pfl.hyperparam import NNEvalHyperParams, NNTrainHyperParams
from pfl.metrics import Metrics
from pfl.model.pytorch import PyTorchModel
from work import Work, accuracy, collator, model_and_tokenizer, read_work

Row = tuple[str, int]


class Classifier(torch.nn.Module):
    """The model of all peers with the two methods that pfl asks for."""

    def __init__(self, peft: Any) -> None:
        super().__init__()
        self.peft = peft

    def loss(self, input_ids: Any, attention_mask: Any, labels: Any) -> Any:
        self.train()
        logits = self.peft(input_ids=input_ids, attention_mask=attention_mask)
        return torch.nn.functional.cross_entropy(logits, labels)

    def metrics(self, **_: Any) -> dict[str, Any]:
        """None of a user's own rows, which pfl would count twice in the first round: no peer looks at them."""
        return {}


class Rows(torch.utils.data.Dataset[Row]):
    """A device's, in the order that its round has drawn."""

    def __init__(self, texts: list[str], labels: list[int], seed: int) -> None:
        order = np.random.default_rng(seed).permutation(len(texts))
        self._rows = [(texts[i], labels[i]) for i in order]

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, index: int) -> Row:
        return self._rows[index]


class Evaluation(TrainingProcessCallback[Any]):
    """Accuracy on the test rows after each iteration, and what the update of one is in size."""

    def __init__(self, work: Work, tokenizer: Any) -> None:
        self._work, self._tokenizer = work, tokenizer
        self.rounds: list[dict[str, float]] = []
        self.numbers = 0

    def on_train_begin(self, *, model: Any) -> Metrics:
        self._started = time.perf_counter()
        return Metrics()

    def after_central_iteration(
        self, aggregate_metrics: Metrics, model: Any, *, central_iteration: int
    ) -> tuple[bool, Metrics]:
        seconds = time.perf_counter() - self._started
        peft = model.pytorch_model.peft
        share = accuracy(peft, self._tokenizer, self._work.test, self._work)
        self.rounds.append({"seconds": seconds, "accuracy": share, "at": time.time()})
        self.numbers = sum(value.numel() for value in model.get_parameters().values())
        return False, Metrics()


def federated_rows(work: Work, tokenizer: Any) -> FederatedDataset:
    """A user of pfl for each round and device, for the order of rows is another one in each round."""

    def user(identity: tuple[int, int]) -> PyTorchDataDataset:
        number, client = identity
        rows = Rows(*work.clients[client], seed=1000 * number + client)
        return PyTorchDataDataset(
            rows, user_id=f"{number}/{client}", collate_fn=collator(tokenizer, work)
        )

    users = [(n, c) for n in range(1, work.rounds + 1) for c in range(len(work.clients))]
    return FederatedDataset(user, get_user_sampler("minimize_reuse", users))


def model_of(work: Work, peft: Any) -> PyTorchModel:
    classifier = Classifier(peft)
    own = [(n, p) for n, p in classifier.named_parameters() if p.requires_grad]

    def local_optimizer(_: Any, lr: float) -> torch.optim.Optimizer:
        groups = [
            {"params": [p for n, p in own if "classifier" not in n], "lr": lr},
            {"params": [p for n, p in own if "classifier" in n], "lr": work.head_rate},
        ]
        return torch.optim.AdamW(groups, weight_decay=0.0)

    central = torch.optim.SGD([p for _, p in own], lr=1.0)  # the mean of the differences, as it is
    return PyTorchModel(classifier, local_optimizer, central)


def main(run: Path, out: Path) -> None:
    work = read_work(run)
    peft, tokenizer = model_and_tokenizer(work)
    data, evaluation = federated_rows(work, tokenizer), Evaluation(work, tokenizer)
    FederatedAveraging().run(
        algorithm_params=NNAlgorithmParams(
            central_num_iterations=work.rounds,
            evaluation_frequency=work.rounds,
            train_cohort_size=len(work.clients),
            val_cohort_size=None,
        ),
        backend=SimulatedBackend(data, data, postprocessors=[WeightByUser()]),
        model=model_of(work, peft),
        model_train_params=NNTrainHyperParams(
            local_num_epochs=1,
            local_learning_rate=work.rate,
            local_batch_size=work.batch,
            local_max_grad_norm=work.clip,
        ),
        model_eval_params=NNEvalHyperParams(local_batch_size=work.batch),
        callbacks=[evaluation],
    )
    size = 4 * evaluation.numbers
    result = {"rounds": evaluation.rounds, "bytes_up": size, "bytes_down": size}
    out.write_text(json.dumps(result))


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
