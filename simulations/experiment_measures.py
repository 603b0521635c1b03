"""What an experiment measures beside its rounds: sections of its file."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from protocol.section import Positive, PositiveReal, Section

Natural = Annotated[int, Field(ge=0)]


class Yardsticks(Section):
    """What federated training is compared with, in the same run."""

    pooled: bool = Field(default=True, description="one machine with all rows, the same passes")
    alone: Natural = Field(default=10, description="devices trained alone; 0 = none")
    alone_test_rows: Natural = Field(default=0, description="test rows for them; 0 = all")
    personal: Natural = Field(
        default=0,
        description="devices that go on from the last round's adapter on their own rows; 0 = none. They are "
        "trained alone too",
    )
    personal_epochs: Positive = Field(
        default=2, description="passes of such a device over its rows"
    )
    personal_rate: PositiveReal = Field(
        default=0.25, description="of such a device: times the plan's learning rates"
    )
    personal_parts: Literal["all", "head"] = Field(
        default="all", description="what such a device trains: all that a rule would, or the head"
    )


class Samples(Section):
    """Texts that a device writes to test prompts, before and after; for tasks whose answers are texts."""

    rows: Annotated[int, Field(ge=0, le=10_000)] = Field(
        default=4, description="test rows that are answered, and compared with their own answers"
    )
    tokens: Positive = Field(default=48, description="of an answer at most")


class Memorisation(Section):
    """What is measured of what the adapter has learnt by heart; for text that follows text."""

    canaries: Annotated[int, Field(ge=0, le=100)] = Field(
        default=0, description="secrets planted in the rows of the first device"
    )
    repeats: Annotated[int, Field(gt=0, le=1000)] = Field(
        default=1, description="rows with each of them"
    )
    members: Natural = Field(
        default=0, description="training rows to tell from as many test rows, 0 = none"
    )
