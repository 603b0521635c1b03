"""Forms: how an adapter may act on the answering graph, whatever method it is of. (P-1.11)

Each is an optional input of the graph, a *slot*, named by a module path and one of these ends. A linear with
all of them computes ``x W^T + bias + shift + (x A) B``, a norm
``scale * (norm(x) + shift)``; unfilled ones change nothing. The soft prompt and the head have slots of their
own name.
"""

from __future__ import annotations

SCALE, SHIFT = ".scale", ".shift"
