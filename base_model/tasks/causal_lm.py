"""Cross-entropy of the tokens that count, in nats; its programs are :mod:`base_model.programs.language`'s."""

from __future__ import annotations

from base_model.programs.token_loss import ELEMENT as ELEMENT
from base_model.programs.token_loss import TARGET as TARGET

JUDGES = True  # logits of every token would be too many to hand out
