"""What an experiment goes on from: a round of another run, as that run's log has it. (P-1.2)"""

from __future__ import annotations

from audit.continued import start_of
from audit.log_copy import Trust
from audit.sources import Folder
from audit.verify import load_run
from protocol.start import Start
from server.starting import round_of
from simulations.experiment import Experiment


def start_for(experiment: Experiment) -> Start | None:
    """What the log of the run says that the experiment goes on from. Raises ArtefactError, ProofError."""
    if experiment.start_folder is None:
        return None
    folder = round_of(experiment.start_folder)
    run = load_run(Folder(folder.parent.parent), Trust())
    return start_of(run, int(folder.name))
