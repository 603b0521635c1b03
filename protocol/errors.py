"""Every error a user of fedge can meet, split by whose fault it is.

    FedgeError            one line of cause, one line of remedy, an exit code
    |- PlanError       3  the plan or experiment is wrong: its author mends it
    |- DataError       4  local data is wrong: the owner of the data mends it
    |- ArtefactError   5  a base, adapter or run folder is damaged or does not fit: fetch or rebuild it
    |- UpdateError     6  a client sent something unusable: the coordinator drops that client
    |- RoundError      7  a round could not be completed (quorum, deadline): run again or resume
    |- MachineError    8  this machine lacks something (an extra, a file, memory)
    |- SecrecyError    9  somebody broke the rules of secure aggregation; nothing was revealed
    |- PrivacyError   10  a sum the privacy budget does not allow
    |- ProofError     11  a log, a proof or a signature does not hold: keep it as evidence
    `- DeliveryError  12  a release that must not be published or cannot be taken; what runs stays

Exit code 0 is success, 1 an unexpected failure (a bug of ours), 2 wrong use of the command line.
"""

from __future__ import annotations

MOST_SHOWN = 1500  # characters of a line that is shown


def printable(text: str) -> str:
    """One line in which a stranger's text cannot steer a terminal, nor fill it: for whatever is shown.

    What is not printable is escaped, and of a line beyond all measure the middle is left out.
    """
    text = shortened(text, MOST_SHOWN)
    if text.isprintable():
        return text
    return shortened(
        "".join(one if one.isprintable() else ascii(one)[1:-1] for one in text), MOST_SHOWN
    )


def shortened(text: str, most: int) -> str:
    """At most ``most`` characters: the beginning and the end of a longer text."""
    if len(text) <= most:
        return text
    end = most // 3
    return f"{text[: most - end - 1]}\u2026{text[-end:]}"


class FedgeError(Exception):
    """An expected failure: ``cause`` says what is wrong and where, ``remedy`` what to do."""

    exit_code = 1

    def __init__(self, cause: str, remedy: str) -> None:
        self.cause, self.remedy = printable(cause), printable(remedy)
        super().__init__(f"{self.cause} ({self.remedy})")


class PlanError(FedgeError):
    """A plan or experiment that cannot be run as it stands."""

    exit_code = 3


class DataError(FedgeError):
    """Local data that does not fit the plan; names the file, and the line where there is one.

    ``public`` is what may leave this machine: never a value, a name or a path of the data's owner.
    """

    exit_code = 4

    def __init__(
        self, cause: str, remedy: str, *, public: str = "the local data does not fit the plan"
    ) -> None:
        super().__init__(cause, remedy)
        self.public = public


class ArtefactError(FedgeError):
    """A base, an adapter or a run folder that is damaged, incomplete or of another origin."""

    exit_code = 5


class UpdateError(FedgeError):
    """A client's update that must not enter the aggregate."""

    exit_code = 6


class RoundError(FedgeError):
    """A round that could not be completed; the model is unchanged."""

    exit_code = 7


class MachineError(FedgeError):
    """Something this machine lacks."""

    exit_code = 8


class SecrecyError(FedgeError):
    """A message that secure aggregation must refuse; whoever raises it has revealed nothing.

    ``code`` names the broken rule (``cohort.duplicate``), so that a record, a log and a test can tell
    one refusal from another.
    """

    exit_code = 9

    def __init__(self, code: str, cause: str, remedy: str) -> None:
        super().__init__(f"{code}: {cause}", remedy)
        self.code = code


class PrivacyError(FedgeError):
    """A sum that the privacy budget does not allow; the adapter of the last round stands."""

    exit_code = 10


class ProofError(FedgeError):
    """A proof, a signature or a log that does not hold: of the log, of what it says, or of a copy."""

    exit_code = 11


class DeliveryError(FedgeError):
    """A release that is not published, or that a device does not take; what is running stays.

    ``code`` names the reason (``gate.quality``, ``repository.refused``, ``probe.labels``): the first word
    says whose it is.
    """

    exit_code = 12

    def __init__(self, code: str, cause: str, remedy: str) -> None:
        super().__init__(f"{code}: {cause}", remedy)
        self.code = code
