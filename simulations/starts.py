"""What an experiment goes on from: a round of another run, as that run's log has it. (P-1.2)"""

from __future__ import annotations

from pathlib import Path

from audit.continued import start_of
from audit.log_copy import Trust
from audit.sources import Folder
from audit.verify import load_run
from protocol.start import Start
from server.starting import round_of
from simulations.experiment import Experiment


def start_for(experiment: Experiment) -> Start | None:
    """What the log of the run says that the experiment goes on from. Raises ArtefactError, ProofError."""
    return None if experiment.start_folder is None else start_at(experiment.start_folder)


def start_at(folder: Path) -> Start:
    """The same of a run's folder, or that of a round's adapter."""
    folder = round_of(folder)
    return start_of(load_run(Folder(folder.parent.parent), Trust()), int(folder.name))
