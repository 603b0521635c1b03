"""Plans as text, for tests that change a line of one."""

from __future__ import annotations

from fedge.plan_files import plan_text
from fedge.plans import plan_to_start_from


def commented_plan(fingerprint: str) -> str:
    """What ``fedge init`` writes for a base."""
    return plan_text(plan_to_start_from(fingerprint))
