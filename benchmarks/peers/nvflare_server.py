"""What NVFlare's server has of its own in ``nvflare_peer.py``: the first adapter, and an evaluation of each round."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import torch
from nvflare.apis.event_type import EventType
from nvflare.apis.fl_component import FLComponent
from nvflare.apis.fl_context import FLContext
from nvflare.app_common.app_constant import AppConstants
from nvflare.app_common.app_event_type import AppEventType
from peft import get_peft_model_state_dict, set_peft_model_state_dict
from work import accuracy, model_and_tokenizer, read_work


class Adapter(torch.nn.Module):
    """The model whose state is what sites exchange: LoRA's factors and the head, by peft's names."""

    def __init__(self, run: str) -> None:
        super().__init__()
        self.run = run
        self.peft, _ = model_and_tokenizer(read_work(Path(run)))

    def state_dict(self, *_: Any, **__: Any) -> dict[str, torch.Tensor]:
        return dict(get_peft_model_state_dict(self.peft))


class Evaluation(FLComponent):
    """Accuracy after each aggregation; at the end of the run all of it is written to ``out``."""

    def __init__(self, run: str, out: str) -> None:
        super().__init__()
        self.run, self.out = run, out
        self._rounds: list[dict[str, float]] = []
        self._started = self._size = 0.0

    def handle_event(self, event_type: str, fl_ctx: FLContext) -> None:
        if event_type == EventType.START_RUN:
            self._work = read_work(Path(self.run))
            self._model, self._tokenizer = model_and_tokenizer(self._work)
        elif event_type == AppEventType.ROUND_STARTED and not self._started:
            self._started = time.perf_counter()
        elif event_type == AppEventType.AFTER_AGGREGATION:
            self._evaluate(fl_ctx.get_prop(AppConstants.AGGREGATION_RESULT).params)
        elif event_type == EventType.END_RUN and len(self._rounds) == self._work.rounds:
            sizes = {"bytes_up": self._size, "bytes_down": self._size}
            Path(self.out).write_text(json.dumps({"rounds": self._rounds, **sizes}))

    def _evaluate(self, parameters: dict[str, Any]) -> None:
        seconds = time.perf_counter() - self._started
        self._size = sum(value.nbytes for value in parameters.values())
        tensors = {name: torch.as_tensor(value) for name, value in parameters.items()}
        set_peft_model_state_dict(self._model, tensors)
        share = accuracy(self._model, self._tokenizer, self._work.test, self._work)
        self._rounds.append({"seconds": seconds, "accuracy": share, "at": time.time()})
