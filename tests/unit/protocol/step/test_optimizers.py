from __future__ import annotations

import numpy as np

from protocol.plan_sections import Server
from protocol.step.optimizers import Moments, step


def test_server_optimisers_follow_their_papers() -> None:
    mean, zero = np.array([0.5, -0.25, 0.0], np.float32), Moments.zeros(3)
    moved, _ = step(Server(), mean, zero)
    assert moved is mean
    moved, once = step(Server(optimizer="fedavgm", beta1=0.5), mean, zero)
    again, _ = step(Server(optimizer="fedavgm", beta1=0.5), mean, once)
    assert np.allclose(moved, mean)
    assert np.allclose(again, 1.5 * mean)
    adam = Server(optimizer="fedadam", beta1=0.9, beta2=0.99, tau=1e-3, learning_rate=0.1)
    moved, after = step(adam, mean, zero)
    assert np.allclose(after.second, 0.01 * mean**2, rtol=1e-5)
    assert np.allclose(moved, 0.1 * 0.1 * mean / (np.sqrt(0.01 * mean**2) + 1e-3), rtol=1e-5)
    _, after = step(adam.model_copy(update={"optimizer": "fedyogi"}), mean, zero)
    assert np.allclose(after.second, 0.01 * mean**2, rtol=1e-5)
