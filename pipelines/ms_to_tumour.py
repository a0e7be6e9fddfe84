"""The main job in plain sight: train a source, learn its filter prior, transfer, predict.

Run: python pipelines/ms_to_tumour.py OUT
A researcher copies this file and changes the parts.
"""

import sys
from pathlib import Path

from medseg.config.build import load_plan
from medseg.experiment.run import plan_key
from medseg.experiment.single import finetune_target, load_source_model
from medseg.experiment.sources import train_members
from medseg.inference.model import load_model
from medseg.inference.outputs import write_prediction
from medseg.inference.predict import predict_case
from medseg.priors.fit import FitPriorSettings, fit_priors
from medseg.priors.harvest import HarvestSettings, harvest
from medseg.training.transfer import MethodSettings


def main(out: Path) -> None:
    """Run the five stages of the method and write one prediction."""
    plan = load_plan("experiment/demo")
    key = plan_key(plan)

    members = train_members(plan, "both", out, key=key)
    networks = [load_model(folder, ignore_calibration=True).network for folder in members]

    kernels = harvest(networks, settings=HarvestSettings())
    prior = fit_priors(kernels, FitPriorSettings(kind="vae", grouping="layer"), seed=0)
    prior.save(out / "prior")

    source = load_source_model(members[0], prior=out / "prior")
    method = MethodSettings(method="dwp")
    model = finetune_target(plan, method, source=source, out=out / "model", key=key)

    prediction = predict_case(model, plan.target.source[0])
    write_prediction(prediction, out / "prediction", provenance={"pipeline": "ms_to_tumour"})


if __name__ == "__main__":
    main(Path(sys.argv[1]))
