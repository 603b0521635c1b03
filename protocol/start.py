"""The adapter that a run begins with, when it goes on from another run's. (P-4.11, docs/adr/0038)

A plan names it by digest, with the runs that it is of and what their clients spent: whoever agrees to the
plan agrees to that. Where the files are is each party's own business.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

MOST_RUNS, MOST_COUNT = 64, 2**31
Digest = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
Count = Annotated[int, Field(ge=0, le=MOST_COUNT)]
Zcdp = Annotated[float, Field(ge=0, le=1e30, allow_inf_nan=False)]


class _Table(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, defer_build=True)


class SpentBefore(_Table):
    """What the client that was charged most has spent in the runs before: it counts for everybody."""

    mechanism: Literal["none", "distributed", "central"] = Field(
        default="none", description="none: nobody was protected there"
    )
    rho: Zcdp = Field(default=0.0, description="distributed: zCDP, added up (P-7.3)")
    xi: Zcdp = Field(default=0.0, description="distributed: added to every order (P-7.3)")
    sums: Count = Field(default=0, description="central: rounds with noise")
    noise_multiplier: Annotated[float, Field(ge=0, le=1000)] = Field(
        default=0.0, description="central: of these rounds"
    )
    sampling: Annotated[float, Field(ge=0, le=1)] = Field(
        default=0.0, description="central: of these rounds"
    )


NOTHING_BEFORE = SpentBefore()


class Start(_Table):
    """The adapter of round 0, and the log that tells where it comes from."""

    adapter: Digest = Field(description="as clients receive it (P-2.4)")
    settings: Digest = Field(
        description="of the plan before's [adapter]: with others its tensors mean another model"
    )
    round: Count = Field(description="of the run before that made it")
    rounds: Count = Field(description="that it is made of, of all runs before together")
    plans: Annotated[list[Digest], Field(min_length=1, max_length=MOST_RUNS)] = Field(
        description="digests of the plans of these runs, oldest first"
    )
    origin: Annotated[str, Field(min_length=1, max_length=400)] = Field(
        description="of the last one's log"
    )
    size: Annotated[int, Field(ge=1, le=2**40)] = Field(description="leaves of that log")
    root: Digest = Field(description="of its tree of that size")
    spent: SpentBefore = NOTHING_BEFORE

    @model_validator(mode="after")
    def _counts_fit(self) -> Start:
        if self.round == 0:
            raise ValueError("round 0 is what a plan begins with: start anew, without [start]")
        if self.round > self.rounds:
            raise ValueError(f"round {self.round} of {self.rounds} rounds in all runs before")
        if len(set(self.plans)) < len(self.plans):
            raise ValueError("a plan is listed twice: of a plan there is one run")
        return self
