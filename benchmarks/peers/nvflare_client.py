"""A site of ``nvflare_peer.py``: a Trainer of transformers that NVFlare's Hugging Face client API has patched."""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import nvflare.client.hf as flare
import torch
from nvflare.app_common.abstract.fl_model import MetaKey
from torch.utils.data import Dataset
from transformers import Trainer, TrainingArguments
from work import Work, collator, model_and_tokenizer, read_work

Row = tuple[str, int]


class SiteTrainer(Trainer):
    """Two learning rates, and an order of rows that is drawn from the round and the site."""

    work: Work
    site: int

    def compute_loss(self, model: Any, inputs: Any, *_: Any, **__: Any) -> Any:
        labels = inputs.pop("labels")
        return torch.nn.functional.cross_entropy(model(**inputs), labels)

    def create_optimizer(self, *_: Any, **__: Any) -> Any:
        own = [(n, p) for n, p in self.model.named_parameters() if p.requires_grad]
        groups = [
            {"params": [p for n, p in own if "classifier" not in n], "lr": self.work.rate},
            {"params": [p for n, p in own if "classifier" in n], "lr": self.work.head_rate},
        ]
        self.optimizer = torch.optim.AdamW(groups, weight_decay=0.0)
        return self.optimizer

    def _get_train_sampler(self, *_: Any, **__: Any) -> Any:
        number = flare.receive().current_round + 1  # NVFlare counts from 0
        seed = 1000 * number + self.site
        return np.random.default_rng(seed).permutation(len(self.train_dataset)).tolist()


def site_trainer(work: Work, site: int, folder: str) -> SiteTrainer:
    model, tokenizer = model_and_tokenizer(work)
    model.__fl_meta__ = {MetaKey.NUM_STEPS_CURRENT_ROUND: 1}  # sites weigh alike

    arguments = TrainingArguments(
        output_dir=folder,
        num_train_epochs=1,
        per_device_train_batch_size=work.batch,
        max_grad_norm=work.clip,
        lr_scheduler_type="constant",
        remove_unused_columns=False,
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
        use_cpu=True,
        dataloader_pin_memory=False,
    )
    rows: list[Row] = list(zip(*work.clients[site], strict=True))
    trainer = SiteTrainer(
        model=model,
        args=arguments,
        train_dataset=_Rows(rows),
        data_collator=collator(tokenizer, work),
    )
    trainer.work, trainer.site = work, site
    return trainer


class _Rows(Dataset[Row]):
    def __init__(self, rows: list[Row]) -> None:
        self._rows = rows

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, index: int) -> Row:
        return self._rows[index]


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--run", type=Path, required=True)
    work = read_work(parser.parse_args().run)
    flare.init()
    site = int(flare.get_site_name().removeprefix("site-")) - 1
    with tempfile.TemporaryDirectory() as folder:
        trainer = site_trainer(work, site, folder)
        flare.patch(trainer, restore_state=False, local_epochs=1)
        while flare.is_running():
            trainer.train()


if __name__ == "__main__":
    main()
