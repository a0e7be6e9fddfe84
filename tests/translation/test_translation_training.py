"""From cases to a translator and back to scans."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from medseg.data.training_set import PatchSampler
from medseg.errors import DataError, GeometryError, ModelError, ScanError, ShapeError, TrainingError
from medseg.geometry import Grid
from medseg.scan import Case, Scan
from medseg.translation.apply import translate
from medseg.translation.fit import halves, train_translator
from medseg.translation.model import Translator, load_translator
from medseg.translation.sampler import UnpairedSampler
from medseg.translation.slices import stack_neighbours

AFFINE = {"a": lambda t: t, "b": lambda t: 1.5 - t}


def error(made: dict[str, Scan], case: Case, name: str = "b") -> float:
    """Return the rms difference of the z-scores in the brain: 0 to 2."""
    inside = case.brain.data > 0
    found, true = (scan.data[inside].double() for scan in (made[name], case.scans[name]))
    return float(((found - found.mean()) / found.std() - (true - true.mean()) / true.std()).std())


def tensors(translator: Translator) -> dict[str, torch.Tensor]:
    return translator.network.state_dict()


def test_a_linear_change_of_contrast_is_learned(source, settings) -> None:
    """b = 1.5 - a: the copy is as far as can be, and few steps bring it near."""
    chosen = settings("pix2pix")
    fast = replace(chosen.training, steps=50, learning_rate=0.05)
    trained = train_translator(replace(chosen, training=fast), source(AFFINE))
    case = source(AFFINE, first=9, n=1)[0]
    assert error({"b": case.scans["a"]}, case) > 1.99
    assert error(translate(trained, case), case) < 0.5


def test_the_same_contrast_stays_what_it_is(source, settings) -> None:
    same = {"a": lambda t: t, "b": lambda t: t}
    trained = train_translator(settings("pix2pix", steps=20), source(same))
    case = source(same, first=9, n=1)[0]
    assert error(translate(trained, case), case) < 0.1


@pytest.mark.parametrize("method", ["pix2pix", "cyclegan", "super_resolution"])
def test_a_resumed_training_ends_with_the_same_weights(
    source, settings, method, tmp_path, monkeypatch
) -> None:
    chosen, cases = settings(method), source(AFFINE, n=2, shape=(20, 18, 8))
    whole = train_translator(chosen, cases)
    again = train_translator(chosen, cases)
    assert all(torch.equal(tensors(whole)[k], v) for k, v in tensors(again).items())

    import medseg.translation.fit as module

    every = module.Checkpoints

    def often(**options: object) -> object:
        return every(**options, every_steps=2)

    monkeypatch.setattr(module, "Checkpoints", often)
    ask = PatchSampler.batch

    def dies(self: PatchSampler, step: int):
        if step == 5:
            raise KeyboardInterrupt
        return ask(self, step)

    monkeypatch.setattr(PatchSampler, "batch", dies)
    with pytest.raises(KeyboardInterrupt):
        train_translator(chosen, cases, folder=tmp_path)
    monkeypatch.setattr(PatchSampler, "batch", ask)
    with pytest.raises(TrainingError, match="resumes with the data and settings"):
        train_translator(replace(chosen, seed=1), cases, folder=tmp_path)
    resumed = train_translator(chosen, cases, folder=tmp_path)
    assert all(torch.equal(tensors(whole)[k], v) for k, v in tensors(resumed).items())
    loaded = load_translator(tmp_path)
    assert loaded.fingerprint() == resumed.fingerprint()
    assert loaded.settings == chosen


def test_made_scans_lie_on_the_cases_own_grid(source, settings) -> None:
    trained = train_translator(settings("cyclegan"), source(AFFINE, n=4))
    case = source(AFFINE, n=1)[0]
    made = translate(trained, case)["b"]
    assert made.grid.matches(case.grid, tolerance_mm=1e-6)
    assert (made.data[case.brain.data == 0] == 0).all()
    assert float(made.data.max()) > 0


def test_missing_pairs_grids_slices_and_people_are_refused(source, settings) -> None:
    with pytest.raises(DataError, match=r"lacks \['b'\]"):
        train_translator(settings("pix2pix"), source({"a": lambda t: t}))
    case = source(AFFINE, n=1)[0]
    moved = Grid(case.grid.shape, case.grid.affine + 3 * torch.eye(4).roll(3, 1).numpy())
    with pytest.raises(GeometryError, match="share one grid"):
        Case("x", "x", {"a": case.scans["a"], "b": Scan(case.scans["b"].data, moved)})
    with pytest.raises(ShapeError, match="at least 3 slices, but the scan has 1"):
        stack_neighbours(torch.zeros(1, 4, 4, 1), reach=1)
    with pytest.raises(DataError, match="different people"):
        train_translator(settings("cyclegan"), source(AFFINE), source(AFFINE))
    with pytest.raises(DataError, match="two people at least"):
        train_translator(settings("cyclegan"), source(AFFINE, n=1))
    with pytest.raises(DataError, match="at least one case"):
        train_translator(settings("pix2pix"), source(AFFINE, n=0))
    trained = train_translator(settings("pix2pix", steps=1), source(AFFINE, n=1))
    with pytest.raises(ScanError, match="is missing"):
        translate(trained, Case("x", "x", {"b": case.scans["b"]}))
    flat = source(AFFINE, n=1, shape=(20, 18, 1))[0]
    with pytest.raises(ShapeError, match="slices"):
        translate(trained, flat)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"target": "a"}, "must not be among the channels"),
        ({"target": None}, "needs a modality"),
        ({"method": "super_resolution"}, "makes the modality it is given"),
        ({"method": "super_resolution", "target": None, "factor": 3}, "multiple"),
    ],
)
def test_settings_that_do_not_fit_are_refused(settings, changes, words) -> None:
    with pytest.raises(ValueError, match=words):
        replace(settings("pix2pix"), **changes)


def test_a_damaged_folder_is_refused(source, settings, tmp_path) -> None:
    train_translator(settings("pix2pix", steps=1), source(AFFINE, n=1), folder=tmp_path)
    text = tmp_path / "translator.json"
    text.write_text(text.read_text().replace('"neighbours": 1', '"neighbours": 0'))
    with pytest.raises(ModelError, match="hash"):
        load_translator(tmp_path)


def test_neighbours_stand_beside_their_slice() -> None:
    volume = torch.arange(10.0).reshape(2, 1, 1, 5)
    stack = stack_neighbours(volume, reach=1)[:, 0, 0]
    assert stack[1].tolist() == [0, 1, 2, 3, 4]
    assert stack[0].tolist() == [0, 0, 1, 2, 3]
    assert stack[5].tolist() == [6, 7, 8, 9, 9]


def test_halves_share_nobody(source) -> None:
    first, second = halves(source(AFFINE, n=5))
    assert set(first.subjects) | set(second.subjects) == set(source(AFFINE, n=5).subjects)
    assert not set(first.subjects) & set(second.subjects)
    samplers = [object(), object()]
    with pytest.raises(DataError, match="different people"):
        UnpairedSampler(*samplers, subjects=(("p",), ("p", "q")))
