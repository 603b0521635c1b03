"""One running server, releases of every method, a hundred swaps under load: nothing fails, nothing is opened anew."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from base_model.release import release_adapter
from edge_runtime.base import EdgeBase
from edge_runtime.runtime import EdgeRuntime
from edge_runtime.service import Service
from tests.delivery_world import World, update
from tests.integration.device_load import asked, listening
from tests.methods import SORTING
from tests.tiny_model import TEXTS

SWAPS = 100
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def adapters(
    tiny_base: Path,
    write_adapter: Callable[..., Path],
    tmp_path_factory: pytest.TempPathFactory,
) -> dict[str, Path]:
    """A release of every method."""
    folder, made = tmp_path_factory.mktemp("every-method"), {}
    for seed, method in enumerate(SORTING):
        made[method] = write_adapter(folder / method, method=method, seed=seed)
        release_adapter(made[method], tiny_base, texts=TEXTS, bound=1e-4)
    return made


def test_a_hundred_swaps_through_all_methods_under_load_fail_no_request(
    tiny_base: Path, adapters: dict[str, Path], tmp_path: Path
) -> None:
    runtime, alone, rows = EdgeRuntime(EdgeBase.open(tiny_base, threads=1)), dict[str, Any](), []
    for method, folder in adapters.items():
        runtime.activate(folder)
        alone[method] = np.asarray([p.score for p in runtime.infer(TEXTS)])
        (own,) = runtime.infer([method])
        rows.append({"text": method, "label": own.label})  # each release has one right
    world = World.make(tmp_path / "world", tiny_base, adapters, rows)
    probe = json.loads((world.folder / "probe.json").read_text()) | {"least_correct": 1}
    (world.folder / "probe.json").write_text(json.dumps(probe))
    device = world.device()
    world.publish(SORTING[0])
    update(device)
    service = Service(device, clock=time.monotonic)
    session = service.runtime.base.session
    with listening(service) as port, asked(port, TEXTS) as load:
        by_release = {service.serving.release: SORTING[0]}
        for number in range(1, SWAPS + 1):
            method = SORTING[number % len(SORTING)]
            world.publish(method)
            update(device)
            service.follow()
            by_release[service.serving.release] = method
            load.wait_for(3)  # one at least began after the swap
    assert (load.faults, service.swaps, service.failures) == ([], SWAPS + 1, 0)
    assert service.runtime.base.session is session
    assert {by_release[said["release"]] for said in load.answers} == set(SORTING)
    for said in load.answers:
        scores = [answer["score"] for answer in said["answers"]]
        np.testing.assert_allclose(scores, alone[by_release[said["release"]]], atol=2e-6)
