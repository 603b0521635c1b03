"""What the masked counters of a round say of its clients: failures, and updates cut at the clip. (P-6.11)"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from server.store import Record

MANY = 0.5  # of the updates: then the clip, not the training, decides how far a round goes


def counted(metrics: Mapping[str, float], summands: int) -> Record:
    """``failures`` and ``clipped_share`` of a record; both null where no counters travel."""
    if "failures" not in metrics:
        return {"failures": None, "clipped_share": None}
    failures = round(metrics["failures"])
    trained = max(summands - failures, 1)
    return {"failures": failures, "clipped_share": round(metrics["clipped"]) / trained}


def warnings_of(record: Record) -> Iterator[str]:
    """What an operator should hear of a round."""
    if failures := record["failures"]:
        yield (
            f"{failures} of {record['weight']} clients failed and contributed zeros; which, and why, only "
            "their own logs say"
        )
    if (share := record["clipped_share"]) is not None and share > MANY:
        yield f"{share:.0%} of the updates were cut at secrecy.clip: a larger one loses less, and bounds less"
