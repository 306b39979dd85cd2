"""Train on the GPU and on the CPU, and compare what is learnt. Run by `test_gpu_step` where there is a GPU."""

import numpy as np

from conftest import records, to_events
from ipinsights.evaluation import comparison, simulation
from ipinsights.hyperparameters import Hyperparameters
from ipinsights.model.scoring import Scorer
from ipinsights.training.fit import fit
from ipinsights.training.progress import Listener, Plan


class Planned(Listener):
    """Wants training to be where it is to be, at full speed."""

    def __init__(self, device: str) -> None:
        self.device = device

    def training_planned(self, plan: Plan) -> None:
        expected = {"cpu": "native", "cuda": "graph"}[self.device]
        assert (plan.device, plan.step, plan.slower_because) == (self.device, expected, "")


rng = np.random.default_rng(0)
ranges = simulation.Ranges.synthetic(rng)
train, case = simulation.split(simulation.simulate(100, ranges, rng), ranges, 2000, rng)
events, later = to_events(records(train), 200), records(case.normal)
hp = Hyperparameters(num_entity_vectors=200, vector_dim=16, mini_batch_size=700, epochs=5, learning_rate=0.01)
areas = []
for device in ("cpu", "cuda"):
    scorer = Scorer(fit(events, hp, listener=Planned(device), device=device))
    areas.append([comparison.auc for comparison in comparison.evaluate(scorer, later, threshold=0.0)])
assert np.allclose(areas[0], areas[1], atol=0.01), areas
print("recorded")
