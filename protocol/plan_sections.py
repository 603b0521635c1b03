"""The tables of a plan: which keys each has, with bounds, defaults and what they mean. (P-1.2)"""

from __future__ import annotations

from bisect import bisect_left
from typing import Annotated, Literal

from pydantic import Field, model_validator

from protocol.section import (
    MOST_ATTEMPTS,
    MOST_BATCH,
    MOST_CLIENTS,
    MOST_EPOCHS,
    MOST_MEMORY,
    MOST_ROUNDS,
    MOST_STEPS,
    MOST_TRIM,
    MOST_WITNESSES,
    ClientName,
    Fraction,
    Hex64,
    Hex64OrNone,
    NonNegativeReal,
    Positive,
    PositiveReal,
    Seconds,
    Section,
    Share,
    VerifierText,
)

MAX_TOTAL_WEIGHT = 2**24  # of a round


class Base(Section):
    """The frozen base everyone trains on and serves."""

    fingerprint: Hex64 = Field(description="identity of the base, from `fedge base inspect DIR`")
    program: Hex64OrNone = Field(
        default="",
        description="sha256 of the program.json that trains, from `fedge program build`; empty: what "
        "each client derives from its base",
    )


class Rule(Section):
    """How updates become the next adapter; see `fedge rules`."""

    name: Annotated[str, Field(max_length=64)] = Field(
        default="alternating", description="what is sent and how it is combined"
    )


LATE_DECAY = 0.5  # FedBuff's (Nguyen et al., arXiv 2106.06639)


class Cohort(Section):
    """Who takes part in a round, and when the round stops waiting."""

    size: Annotated[int, Field(gt=0, le=MOST_CLIENTS)] = Field(
        default=10, description="clients whose updates a round waits for"
    )
    spare: Annotated[int, Field(ge=0, le=MOST_CLIENTS)] = Field(
        default=0,
        description="over-selection: clients asked beyond `size`; the round closes with `size` updates, "
        "whoever is slower is in none of its sums",
    )
    late_rounds: Annotated[int, Field(ge=0, le=MOST_ROUNDS)] = Field(
        default=0,
        description="rounds after its own in which an update that came too late for its sum may enter "
        "another: its client keeps it and trains no other meanwhile; 0 = it is forgotten",
    )
    late_decay: NonNegativeReal = Field(
        default=LATE_DECAY,
        description="such an update counts `(1 + age)^-late_decay` times, age in rounds",
    )
    quorum: Positive = Field(default=8, description="fewest usable updates; fewer fail the round")
    deadline_s: Seconds = Field(
        default=600.0,
        description="seconds a round waits, for clients to be there and for their updates",
    )
    attempts: Annotated[int, Field(gt=0, le=MOST_ATTEMPTS)] = Field(
        default=3,
        description="tries at a round before the run stops; as many again when it is resumed",
    )
    weighting: Literal["uniform", "examples"] = Field(
        default="uniform", description="examples: by their rows, which only `plain` may know"
    )
    clients: Annotated[list[ClientName], Field(max_length=MOST_CLIENTS)] = Field(
        default=[], description="who may take part, names in rising order; none: everybody"
    )

    @model_validator(mode="after")
    def _quorum_fits(self) -> Cohort:
        if self.quorum > self.size:
            raise ValueError(f"quorum {self.quorum} is above size {self.size}")
        if self.late_decay != LATE_DECAY and not self.late_rounds:
            raise ValueError("late_decay is for late_rounds above 0")
        if self.clients != sorted(set(self.clients)):
            raise ValueError("clients are not in rising order, each once")
        if 0 < len(self.clients) < self.quorum:
            raise ValueError(f"quorum {self.quorum} is above the {len(self.clients)} clients named")
        return self

    @property
    def unsaid(self) -> set[str]:
        """See :class:`protocol.section.Section`."""
        unsaid = {key for key in ("clients", "spare", "late_rounds") if not getattr(self, key)}
        return unsaid | ({"late_decay"} if "late_rounds" in unsaid else set())

    @property
    def asked(self) -> int:
        """Most clients of a round: those that it waits for, and those to spare."""
        return self.size + self.spare

    def awaited(self, asked: int, of: int) -> int:
        """How many of ``asked`` clients, a group of the ``of`` that a round asks, it waits for. (P-4.5)"""
        return -(-asked * min(of, self.size) // of) if self.spare and of else asked

    def takes(self, client: str) -> bool:
        """Whether a client of this name may take part. (P-4.1)"""
        place = bisect_left(self.clients, client)
        return not self.clients or self.clients[place : place + 1] == [client]

    @property
    def max_weight(self) -> int:
        """The largest weight of one client: 1 when uniform, else such that no sum can wrap. (P-3.3)"""
        return 1 if self.weighting == "uniform" else MAX_TOTAL_WEIGHT // self.asked


class Local(Section):
    """Training on one client in one round."""

    epochs: Annotated[int, Field(gt=0, le=MOST_EPOCHS)] = Field(
        default=1, description="passes over a client's rows in a round"
    )
    max_steps: Annotated[int, Field(ge=0, le=MOST_STEPS)] = Field(
        default=0, description="most steps of a client in a round; 0 = no limit"
    )
    batch_size: Annotated[int, Field(gt=0, le=MOST_BATCH)] = Field(
        default=32, description="rows of a step"
    )
    learning_rate: PositiveReal = Field(default=2e-3, description="of the adapter")
    head_learning_rate: PositiveReal = Field(default=1e-2, description="of the classifier's head")
    optimizer: Literal["adamw", "sgd"] = Field(
        default="adamw", description="starts anew in every round"
    )
    weight_decay: NonNegativeReal = Field(default=0.0, description="of the local optimiser")
    clip_norm: PositiveReal = Field(default=1.0, description="L2 norm of one step's gradient")
    proximal_mu: NonNegativeReal = Field(
        default=0.0, description="FedProx: pull to what the round began with; 0 = off"
    )
    l2_sp: NonNegativeReal = Field(
        default=0.0,
        description="L2-SP: pull to round 0, or what the run goes on from, over all rounds; 0 = off",
    )
    scaffold: Fraction = Field(
        default=0.0,
        description="SCAFFOLD: share of all clients in a cohort, by which control variates follow; 0 = off",
    )
    orthogonality: NonNegativeReal = Field(
        default=0.0,
        description="of factors with a rank: times half the sum, over pairs of a factor's rows along it, of "
        "their inner product squared; 0 = off",
    )
    engine: Literal["auto", "onnx", "torch"] = Field(
        default="auto",
        description="what computes gradients; auto: torch where there are CUDA and torch, else ONNX Runtime",
    )
    precision: Literal["auto", "fp32", "bf16"] = Field(
        default="auto",
        description="of torch's products with the base; auto: what the processor is fast at",
    )
    memory: Annotated[int, Field(ge=0, le=MOST_MEMORY)] = Field(
        default=0,
        description="MiB that a client's process may take to train a base that writes text with ONNX "
        "Runtime, at the cost of time; 0 = no limit",
    )

    @property
    def unsaid(self) -> set[str]:
        """See :class:`protocol.section.Section`."""
        later = ("l2_sp", "scaffold", "orthogonality", "memory")
        return {key for key in later if not getattr(self, key)}


class Server(Section):
    """The server optimiser, applied to the mean update (Reddi et al., arXiv 2003.00295)."""

    optimizer: Literal["fedavg", "fedavgm", "fedadam", "fedyogi"] = Field(
        default="fedavg", description="what the mean update becomes before it is added"
    )
    learning_rate: PositiveReal = Field(
        default=1.0,
        description="1 with fedavg: the mean itself; 1e-3 to 1e-1 with fedadam, fedyogi",
    )
    beta1: Fraction = Field(default=0.9, description="share of the earlier movement that is kept")
    beta2: Fraction = Field(default=0.99, description="fedadam, fedyogi: the same of the squares")
    tau: PositiveReal = Field(default=1e-3, description="fedadam, fedyogi: added to their root")


class Evaluation(Section):
    """What is measured while the run goes on."""

    every: Positive = Field(default=1, description="rounds between evaluations")
    holdout: Annotated[float, Field(ge=0, le=0.5)] = Field(
        default=0.0, description="share of local rows kept for local evaluation"
    )


class Release(Section):
    """Which rounds become artefacts for devices, and how equal they must be."""

    every: Annotated[int, Field(ge=0, le=MOST_ROUNDS)] = Field(
        default=0, description="0 = the last round only"
    )
    parity_max_relative: PositiveReal = Field(
        default=1e-4, description="bound on |torch - onnx| / |torch| of a row's logits"
    )
    parity_max_absolute: NonNegativeReal = Field(
        default=0.0,
        description="absolute difference of logits that passes in any row; 0 = the bound above "
        "times the median over rows of a row's largest logit",
    )
    keep: Share = Field(
        default=1.0,
        description="share of each tensor's numbers that is published: the largest in magnitude; the others "
        "are 0, and not sent to devices; the head stays whole",
    )

    @property
    def unsaid(self) -> set[str]:
        """See :class:`protocol.section.Section`."""
        return {"keep"} if self.keep == 1 else set()


class Secrecy(Section):
    """How updates travel: summed in secret, or `plain`, which shows every one: insecure."""

    exchange: Literal["secagg", "plain"] = Field(
        default="secagg", description="plain: the coordinator sees every update; research only"
    )
    bits: Literal[16, 20, 24, 32] = Field(default=16, description="secagg: of the ring")
    clip: PositiveReal = Field(default=32.0, description="secagg: L2 norm of one client's update")
    suite: Literal["aes-256-ctr", "chacha20"] = Field(
        default="aes-256-ctr", description="secagg: of the masks; chacha20 without AES instructions"
    )
    groups: Annotated[int, Field(ge=1, le=1024)] = Field(
        default=1, description="secagg: disjoint sums per round; far ones are left out"
    )
    combination: Literal["geometric-median", "trimmed-mean"] = Field(
        default="geometric-median",
        description="with groups: of those that are not far, or of each coordinate's middle values",
    )
    trim: Annotated[int, Field(ge=1, le=MOST_TRIM)] = Field(
        default=1,
        description="trimmed-mean: groups left out at either end of every coordinate; so many may lie while "
        "more than twice as many are left",
    )
    voids: Annotated[int, Field(ge=0, le=1000)] = Field(
        default=3, description="secagg: rounds whose sum was asked for in vain before clients stop"
    )
    keys: Literal["x25519", "x25519+ml-kem-768"] = Field(
        default="x25519",
        description="secagg: of masks and shares; the hybrid withstands a later break of X25519",
    )

    @property
    def unsaid(self) -> set[str]:
        """See :class:`protocol.section.Section`."""
        usual = (self.combination, self.trim) == ("geometric-median", 1)
        return {"combination", "trim"} if usual else set()


class Privacy(Section):
    """Differential privacy of one client's whole update: noise, and a budget that stops the run."""

    mechanism: Literal["none", "distributed", "central"] = Field(
        default="none", description="distributed: clients add it; central: plaintext research"
    )
    clip: Annotated[float, Field(ge=1e-6, le=1e6)] = Field(
        default=1.0, description="L2 norm of one client's update"
    )
    noise_multiplier: Annotated[float, Field(ge=0.01, le=1000)] = Field(
        default=4.0, description="noise of the sum over clip"
    )
    epsilon: PositiveReal = Field(default=10.0, description="what a client may spend in the run")
    delta: Annotated[float, Field(ge=1e-100, lt=0.01)] = Field(
        default=1e-6, description="of (epsilon, delta); below one over the number of clients"
    )
    rounds_per_client: Annotated[int, Field(ge=0, le=MOST_ROUNDS)] = Field(
        default=0, description="most rounds that one client takes part in; 0 = all"
    )
    corrupt: Annotated[int, Field(ge=0, le=MOST_CLIENTS)] = Field(
        default=0, description="distributed: clients that may leave their noise out"
    )
    allow_groups: bool = Field(
        default=False, description="with secrecy.groups: accept sqrt(groups) times the noise"
    )
    sampling: Fraction = Field(
        default=0.0, description="central: probability that a client is drawn into a round"
    )


class Audit(Section):
    """What auditors get, and who watches the log."""

    retention_days: Annotated[int, Field(ge=0, le=3650)] = Field(
        default=30, description="masked vectors are kept so long; 0 = sums cannot be repeated"
    )
    log: VerifierText = Field(
        default="", description="with witnesses: the verifier key of the run's log"
    )
    witnesses: list[VerifierText] = Field(
        default=[], max_length=MOST_WITNESSES, description="verifier keys of cosignatures"
    )
    witness_quorum: Annotated[int, Field(ge=0, le=MOST_WITNESSES)] = Field(
        default=0, description="cosignatures without which no sum is opened"
    )
