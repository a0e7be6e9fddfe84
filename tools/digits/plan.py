"""What is measured, and how large."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass

#: Kind of prior -> its name in tables; "none" is a network without a posterior.
PRIORS = {
    "vae": "dwp (VAE)",
    "gaussian": "full Gaussian",
    "diagonal": "diagonal Gaussian",
    "log_uniform": "log-uniform",
    "normal": "N(0, 1)",
    "none": "none (deterministic)",
}
#: Where the convolutions start -> its name in tables.
INITS = {"prior": "VAE samples", "source": "source network", "xavier": "Xavier"}
#: Accuracy on MNIST with filters of notMNIST, by prior and number of digits: Atanov et al. (2019),
#: The deep weight prior.
PUBLISHED = {
    "vae": {50: 0.800, 100: 0.867, 200: 0.915, 500: 0.945, 1000: 0.961},
    "log_uniform": {50: 0.766, 100: 0.839, 200: 0.894, 500: 0.938, 1000: 0.958},
    "normal": {50: 0.717, 100: 0.816, 200: 0.890, 500: 0.938, 1000: 0.959},
    "none": {50: 0.751, 100: 0.827, 200: 0.879, 500: 0.926, 1000: 0.954},
}


@dataclass(frozen=True)
class Sizes:
    """Data, networks and training, the same for every arm.

    A kernel of 3 x 3 is to a picture of 12 x 12 what one of 7 x 7 is to MNIST's 28 x 28.
    """

    picture: int = 12
    widths: tuple[int, int] = (16, 32)
    letters: int = 4000
    test_letters: int = 1000
    networks: int = 20
    source_steps: int = 1000
    weight_decay: float = 1e-2
    latent: int = 4
    prior_steps: int = 500
    examples: tuple[int, ...] = (50, 100, 200, 500, 1000)
    steps: int = 300
    batch: int = 32
    learning_rate: float = 3e-3
    relative_std: float = 0.1
    samples: int = 10
    #: Numbers of digits at which every start is measured, and at which the weight of the KL is.
    ablated: tuple[int, ...] = (50,)
    swept: int = 50
    betas: tuple[float, ...] = (0.0, 0.01, 0.1)

    @property
    def key(self) -> str:
        """What a cell depends on besides its arm, its number of digits and the draws."""
        choice = {"examples", "ablated", "swept", "betas"}
        return json.dumps({k: v for k, v in asdict(self).items() if k not in choice})

    def cells(self) -> Iterator[tuple[int, Arm]]:
        """Return what is measured: a number of digits and an arm, the main table first."""
        yield from ((n, Arm(prior, "prior")) for n in self.examples for prior in PRIORS)
        others = [init for init in INITS if init != "prior"]
        yield from (
            (n, Arm(prior, init)) for n in self.ablated for init in others for prior in PRIORS
        )
        yield from (
            (self.swept, Arm(prior, "prior", beta))
            for beta in self.betas
            for prior in PUBLISHED
            if prior != "none"
        )


@dataclass(frozen=True)
class Arm:
    """A prior, a start, and the weight of the KL; 1 is the evidence lower bound."""

    prior: str
    init: str
    beta: float = 1.0


QUICK = Sizes(
    widths=(4, 6),
    letters=200,
    test_letters=20,
    networks=6,
    source_steps=5,
    prior_steps=5,
    examples=(20, 40),
    steps=2,
    samples=2,
    ablated=(20,),
    swept=20,
    betas=(0.1,),
)
