"""An experiment: one TOML file that says which base, data, population and plan a simulation has.

The ``[plan]`` table is a Plan (``protocol.plan``) that may leave out what a simulation finds out by
itself: ``base.fingerprint`` and ``task.labels``. It stays a dictionary until both are known.
"""

from __future__ import annotations

import os
from importlib import resources
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, PrivateAttr, model_validator

from protocol.documents import MOST_TOML, OddError, parse_toml
from protocol.errors import MachineError, PlanError
from protocol.head import HeadStart
from protocol.layout import HEAD_TURNS
from protocol.legality import verify_legal
from protocol.manifest import DOCUMENTS
from protocol.media import MEDIA
from protocol.plan import Plan, plan_from, validated
from protocol.section import (
    MOST_RANK,
    MOST_SECONDS,
    Fraction,
    Name,
    Positive,
    PositiveReal,
    Section,
)
from protocol.start import Start
from protocol.tasks import TASKS
from protocol.tasks.classification import Classification
from simulations.experiment_legality import verify_possible
from simulations.experiment_measures import Memorisation, Natural, Samples, Yardsticks
from simulations.overrides import override_all
from storage.regular import read_settings_text

MOST_SLOWNESS = 1000.0
SHARED = "shared:"
SHARED_VARIABLE = "FEDGE_SHARED"
PROJECT = Path(__file__).resolve().parent.parent


class BaseSource(Section):
    """The base: a folder that is built, or where it comes from and how it is built."""

    folder: str = Field(default="", description="a base that `fedge base build` wrote")
    source: str = Field(
        default="",
        description="a folder, `package:module/folder`, `shared:` and a path, or a Hub id",
    )
    bits: Literal[4, 8, 16, 32] = Field(default=4, description="of a weight of the base")
    pooling: Literal["auto", "mean", "cls", "pooler"] = Field(
        default="auto", description="one vector of a text's many; auto: what the source names"
    )
    scales: bool = Field(
        default=False, description="slots of methods that scale linears, such as ia3"
    )
    context: Natural = Field(
        default=0, description="positions of a base that writes text; 0: 32768, or what it has"
    )
    seconds: Natural = Field(
        default=0, description="of a sound, of a base that hears samples, as wav2vec 2.0's"
    )
    sha256: str = Field(
        default="",
        pattern=r"^([0-9a-f]{64})?$",
        description="of the source's weights: the file's, or of the lines `name sha256` of its shards",
    )

    @model_validator(mode="after")
    def _one_origin(self) -> BaseSource:
        if bool(self.folder) == bool(self.source):
            raise ValueError("give either folder, a base that is built, or source")
        fields = type(self).model_fields.items()
        others = [name for name, field in fields if getattr(self, name) != field.default]
        if self.folder and others != ["folder"]:
            odd = next(name for name in others if name != "folder")
            raise ValueError(f"{odd} is for a source, not for a folder that is built")
        return self


class Data(Section):
    """Training and test rows: two files, one that is divided, or a generator that ships with the project."""

    train: str = Field(
        default="", description="JSONL, CSV or Parquet beside this file, or `shared:` and a path"
    )
    test: str = Field(default="", description="the same, to measure on")
    holdout: Annotated[float, Field(ge=0, lt=1)] = Field(
        default=0.0,
        description="without a test file: the share of train's rows, by label, to test on",
    )
    generator: Literal["", "home-commands", "home-chats"] = Field(
        default="", description="rows that fedge makes, in the place of files"
    )

    @model_validator(mode="after")
    def _one_origin(self) -> Data:
        if bool(self.generator) == bool(self.train or self.test):
            raise ValueError("give either train and test, or a generator")
        if self.generator and self.holdout:
            raise ValueError("holdout is for a train file, the generator makes its own test rows")
        if self.train and bool(self.test) == bool(self.holdout):
            raise ValueError("train belongs together with test or holdout, not both")
        if self.test and not self.train:
            raise ValueError("train and test belong together; one is missing")
        return self


class Population(Section):
    """How many devices there are and how the rows are spread over them."""

    clients: Positive = Field(default=30, description="how many devices there are")
    partition: Literal["iid", "dirichlet", "column", "shards"] = Field(
        default="dirichlet", description="how rows are dealt out; column: a device per value"
    )
    alpha: PositiveReal = Field(
        default=0.5, description="dirichlet: the smaller, the fewer labels a device knows"
    )
    column: str = Field(default="", description="column: its name")
    shards_per_client: Positive = Field(
        default=2, description="shards: pieces of rows sorted by label that a device gets"
    )
    min_rows: Positive = Field(default=1, description="fewest rows of a device")

    @model_validator(mode="after")
    def _column_is_named(self) -> Population:
        if (self.partition == "column") != bool(self.column):
            raise ValueError('partition = "column" and the name of a column belong together')
        return self


class FaultRates(Section):
    """Probabilities per client and round; how long clients train, on the run's virtual clock."""

    dropout: Fraction = Field(default=0.0, description="a device that is asked leaves the round")
    straggler: Fraction = Field(default=0.0, description="it answers after the deadline")
    training_s: Annotated[float, Field(ge=0, le=MOST_SECONDS, allow_inf_nan=False)] = Field(
        default=0.0, description="virtual seconds that a device trains in a round"
    )
    slow: Fraction = Field(
        default=0.0, description="share of the devices that take longer, the same in every round"
    )
    slowness: Annotated[float, Field(ge=1, le=MOST_SLOWNESS, allow_inf_nan=False)] = Field(
        default=10.0, description="how many times as long they take"
    )

    @model_validator(mode="after")
    def _sum_fits(self) -> FaultRates:
        if self.dropout + self.straggler > 1:
            raise ValueError("dropout + straggler is above 1")
        if self.slow and not self.training_s:
            raise ValueError("slow: a share of no time is no time: training_s is 0")
        return self


class LabelHead(Section):
    """What the head of a classification begins with; the plan gets it as `[head]`."""

    start: Literal["random", "labels"] = Field(
        default="random", description="labels: vectors of the labels' names, as the base reads them"
    )
    length: PositiveReal = Field(default=4.0, description="labels: of a label's vector")
    trained: bool = Field(
        default=True,
        description="labels: false leaves the vectors as they are, and sends biases alone",
    )
    rank: Annotated[int, Field(ge=0, le=MOST_RANK)] = Field(
        default=0,
        description="labels: directions in which the head moves, those of names first; 0: all at once",
    )
    turns: Annotated[int, Field(ge=1, le=len(HEAD_TURNS))] = Field(
        default=1, description="labels: rounds that share the directions"
    )

    @model_validator(mode="after")
    def _only_of_labels(self) -> LabelHead:
        fields = type(self).model_fields
        said = [name for name in fields if getattr(self, name) != fields[name].default]
        if self.start == "random" and said:
            raise ValueError(f'`{said[0]}` is for start = "labels"')
        if self.turns > max(self.rank, 1):
            raise ValueError(f"{self.turns} turns share {self.rank} directions, the rank")
        if self.rank and not self.trained:
            raise ValueError("with a rank it is trained: leave one of them out")
        return self


class Experiment(Section):
    """A whole experiment.

    ``plan`` is raw; :meth:`plan_for` completes and validates it.
    """

    format: Literal[1] = Field(default=1, description="of this file")
    name: Name = Field(description="of the run's folder, and of the plan without a name")
    start: Annotated[str, Field(max_length=4096)] = Field(
        default="",
        description="another run to go on from: its folder, or that of a round's adapter",
    )
    base: BaseSource
    data: Data
    population: Population = Population()
    faults: FaultRates = FaultRates()
    yardsticks: Yardsticks = Yardsticks()
    head: LabelHead = LabelHead()
    samples: Samples = Samples()
    memorisation: Memorisation = Memorisation()
    plan: dict[str, Any] = Field(description="a plan without base and, if you like, labels")
    _folder: Path = PrivateAttr(default_factory=Path)

    @property
    def folder(self) -> Path:
        """The folder of the file: relative paths start here."""
        return self._folder

    @property
    def has_labels(self) -> bool:
        """Whether rows have labels."""
        task = TASKS.get(self._kind)
        return task is not None and task.ANSWERS in ("labels", "images")

    @property
    def has_texts(self) -> bool:
        """Whether rows are texts."""
        return self.base_task not in {*MEDIA, DOCUMENTS}

    @property
    def base_task(self) -> str:
        """What the base is built for."""
        task = TASKS.get(self._kind)
        return Classification.BASE if task is None else task.BASE

    @property
    def _kind(self) -> str:
        task = self.plan.get("task", {})
        return str(task.get("kind", Classification.KIND) if isinstance(task, dict) else "")

    @property
    def has_pairs(self) -> bool:
        """Whether rows have two texts."""
        task = self.plan.get("task", {})
        return isinstance(task, dict) and bool(task.get("text_pair"))

    @property
    def lists_labels(self) -> bool:
        """Whether the labels are listed; else they are those of the rows."""
        task = self.plan.get("task", {})
        return isinstance(task, dict) and "labels" in task

    @property
    def start_folder(self) -> Path | None:
        """Where the adapter lies that the run goes on from."""
        return self.folder / self.start if self.start else None

    def plan_for(
        self,
        *,
        fingerprint: str,
        labels: list[str],
        start: Start | None = None,
        head: HeadStart | None = None,
    ) -> Plan:
        """The plan with base, start, head and, unless the experiment lists them, the labels filled in."""
        document = dict(self.plan)
        for key, remedy in (
            ("base", "name the base under [base]; its fingerprint is filled in"),
            ("head", 'write [head] above [plan]: start = "labels"'),
            ("start", 'name the run: start = "runs/x", above all tables; the rest is filled in'),
        ):
            if key in document:
                raise PlanError(
                    f"experiment {self.name}: `plan.{key}` is not for an experiment", remedy
                )
        if start is not None:
            document["start"] = start.model_dump(mode="json")
        if head is not None:
            document["head"] = head.model_dump(mode="json")
        document["base"] = {"fingerprint": fingerprint}
        document.setdefault("name", self.name)
        task = document.get("task", {})
        if isinstance(task, dict) and self.has_labels:
            document["task"] = {"labels": labels, **task}
        return plan_from(document, source=f"experiment {self.name}: [plan]")


def load_experiment(path: Path, overrides: list[str] | None = None) -> Experiment:
    """Read an experiment and apply ``a.b=c`` overrides.

    Raises:
        PlanError: not TOML, an unknown key (with the nearest known one), or a wrong value.
        MachineError: there is no such file.
    """
    document = _document(path)
    override_all(document, overrides or [])
    if "task" in document and "plan" not in document:
        raise PlanError(
            f"{path}: this is a plan, not an experiment",
            "write an experiment and put the plan below its [plan]; docs/guide.md shows one",
        )
    experiment = validated(Experiment, document, source=str(path), inner={"plan": Plan})
    experiment._folder = path.resolve().parent
    # Validated now with stand-ins, so that a wrong plan costs no preparation.
    plan = experiment.plan_for(fingerprint="0" * 64, labels=["a", "b"])
    verify_legal(plan)
    verify_possible(experiment, plan, path)
    return experiment


def _document(path: Path) -> dict[str, Any]:
    try:
        return parse_toml(read_settings_text(path, most=MOST_TOML))
    except OddError as odd:
        raise PlanError(f"{path}: {odd}", "correct the line named") from None
    except (OSError, UnicodeDecodeError) as error:
        raise MachineError(
            f"experiment {path} cannot be read: {_reason(error)}",
            f"name a file, or one that ships with fedge: {', '.join(shipped())}",
        ) from None


def shipped() -> list[str]:
    """Names of the experiments that ship with fedge."""
    folder = resources.files("simulations") / "experiments"
    names = [file.name for file in folder.iterdir()]
    return sorted(name.removesuffix(".toml") for name in names if name.endswith(".toml"))


def experiment_path(argument: str) -> Path:
    """A path, or the name of an experiment that ships with fedge."""
    if "/" not in argument and not argument.endswith(".toml") and argument in shipped():
        return Path(str(resources.files("simulations") / "experiments" / f"{argument}.toml"))
    return Path(argument)


def expanded(text: str) -> str:
    """``shared:…`` as the path that it stands for; anything else as it is."""
    if not text.startswith(SHARED):
        return text
    root = Path(os.environ.get(SHARED_VARIABLE) or PROJECT.parent / "shared")
    return str(root / text.removeprefix(SHARED))


def resolve_source(text: str, *, folder: Path) -> Path:
    """A data path: ``shared:…``, absolute, or relative to ``folder``. Raises MachineError."""
    path = folder / expanded(text)
    if text.startswith(SHARED):
        remedy = f"set {SHARED_VARIABLE} to the folder with the shared data"
    else:
        remedy = "correct the path; it is relative to the experiment's file"
    if not path.is_file():
        raise MachineError(f"data file {text} is not there (looked at {path})", remedy)
    return path


def _reason(error: Exception) -> str:
    return error.strerror or "unreadable" if isinstance(error, OSError) else "not UTF-8 text"
