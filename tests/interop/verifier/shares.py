"""P-5.6: what of an adapter is published."""

from __future__ import annotations

import math

import numpy as np

from .basics import Tensors
from .documents import Documents, role_of


def cut_down(documents: Documents, plain: Tensors) -> Tensors:
    """P-5.6: of each tensor but the head's the share with the largest magnitudes."""
    keep = documents.plan["release"].get("keep", 1)
    assert keep < 1 or "keep" not in documents.plan["release"]  # P-1.2
    cut = dict(plain)
    for name, value in plain.items():
        if keep == 1 or role_of(documents.owner(name)[1]) == "head":
            continue
        count = math.ceil(keep * value.size)
        places = sorted(range(value.size), key=lambda at: (-abs(float(value[at])), at))[:count]
        cut[name] = np.zeros_like(value)
        for at in places:
            cut[name][at] = value[at]
    return cut
