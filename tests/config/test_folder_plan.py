"""A bare folder of scans with masks, as the target of a fine-tuning."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from medseg.config.catalog import DEFINITIONS
from medseg.config.folder import KINDS, plan_for_folder
from medseg.data.regions import RegionSettings
from medseg.errors import ConfigError, DataError, MedsegError, ScanError
from medseg.experiment.plan import ProtocolSettings
from medseg.experiment.record import plan_key
from medseg.inference.model import ModelSpec
from medseg.networks.presets import unet_short_3d
from medseg.networks.unet import UNetSettings
from medseg.preprocess.prepare import PreprocessSettings
from medseg.training.loop import TrainingSettings


def write_case(
    folder: Path,
    mask: str = "seg",
    *,
    labels: Sequence[int] = (1, 2, 3, 4),
    images: Sequence[str] = ("flair", "t1c"),
) -> None:
    folder.mkdir(parents=True)
    data = np.zeros((6, 5, 4), dtype=np.float32)
    data.reshape(-1)[: len(labels)] = labels
    for name in (mask, *images):
        if name:
            nib.save(nib.Nifti1Image(data, np.eye(4)), folder / f"{name}.nii.gz")


def tumours(root: Path) -> Path:
    for name in ("pat1", "pat2"):
        write_case(root / name)
    return root


def spec(
    *regions: str,
    channels: tuple[str, ...] = ("flair", "t1c"),
    dims: int = 3,
    mode: str = "regions",
) -> ModelSpec:
    settings = RegionSettings(mode=mode, names=regions)
    architecture = UNetSettings(
        dims=dims,
        in_channels=len(channels),
        out_channels=settings.channels,
        widths=(4, 6),
        activation="elu",
    )
    return ModelSpec(
        architecture=architecture,
        channels=channels,
        regions=settings,
        region_definition=dict.fromkeys(regions, (1,)),
        preprocess=PreprocessSettings(spacing_mm=(2.5, 2.5, 2.5), margin_mm=1.0),
        method="source",
    )


# --- the kind -------------------------------------------------------------------------------------


def test_names_tell_the_kind_without_reading_a_scan(tmp_path: Path) -> None:
    for mask, kind in (("lesion", "ms"), ("mask", "ms"), ("segm", "brats"), ("ot", "brats")):
        folder = tmp_path / mask / "case"
        folder.mkdir(parents=True)
        for name in (mask, "flair", "t1c"):
            (folder / f"{name}.nii.gz").write_bytes(b"not a scan")
        assert plan_for_folder(tmp_path / mask).target.definition == DEFINITIONS[kind]


def test_labels_tell_the_kind_where_names_do_not(tmp_path: Path) -> None:
    write_case(tmp_path / "t" / "a", labels=[1])
    write_case(tmp_path / "t" / "b", labels=[1, 2])
    assert plan_for_folder(tmp_path / "t").target.source.name == "brats"


def test_a_folder_that_fits_two_kinds_needs_to_be_told(tmp_path: Path) -> None:
    write_case(tmp_path / "a", labels=[1])
    with pytest.raises(ConfigError, match=r"fit each of \['ms', 'brats'\].*--kind ms or --kind br"):
        plan_for_folder(tmp_path)
    for kind in KINDS:
        assert plan_for_folder(tmp_path, kind=kind).target.source.name == kind
        named = plan_for_folder(tmp_path, [f"target.kind={kind}"], kind="ms")
        assert named.target.source.name == kind, "an override wins"


@pytest.mark.parametrize("kind", ["folder", "phantom", "magic", ""])
def test_an_unknown_kind_is_refused(tmp_path: Path, kind: str) -> None:
    with pytest.raises(ConfigError, match=r"must be one of \['ms', 'brats'\].*YAML"):
        plan_for_folder(tumours(tmp_path), kind=kind)


def test_a_folder_without_cases_says_what_was_tried(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"As ms or brats: .* needs NIfTI files.*--kind.*YAML"):
        plan_for_folder(tmp_path)
    with pytest.raises(DataError, match="not there"):
        plan_for_folder(tmp_path / "absent")
    write_case(tmp_path / "a")
    write_case(tmp_path / "b", mask="")
    with pytest.raises(DataError, match=r"Case 'b' must have a mask.*--kind"):
        plan_for_folder(tmp_path)
    with pytest.raises(ScanError, match=r"Case 'b' must have a mask.*Add the mask"):
        plan_for_folder(tmp_path, kind="brats")


def test_labels_that_fit_no_kind_say_what_speaks_against_each(tmp_path: Path) -> None:
    write_case(tmp_path / "a", labels=[1, 2, 3])
    with pytest.raises(DataError) as caught:
        plan_for_folder(tmp_path)
    text = str(caught.value)
    assert "As ms: Labels must be among [0, 1]" in text
    assert "As brats: Masks must follow one label convention" in text
    assert "Set 'label_convention'" in text
    # A setting that one kind alone has decides, too.
    plan = plan_for_folder(tmp_path, ["target.settings.label_convention=1234"])
    assert plan.target.source.name == "brats"


# --- what the source says -------------------------------------------------------------------------


def test_without_a_source_the_usual_protocol_holds(tmp_path: Path) -> None:
    plan = plan_for_folder(tumours(tmp_path / "t"))
    usual = ProtocolSettings(target_training=TrainingSettings(steps=900))
    assert plan.protocol == usual
    assert plan.architecture(2, 2) == unet_short_3d(2, 2)
    assert len(plan.target.source) == 2
    assert (dict(plan.sources), list(plan.arms)) == ({}, [])
    write_case(tmp_path / "m" / "a", "lesion", labels=[1])
    plan = plan_for_folder(tmp_path / "m")
    assert plan.protocol == replace(usual, regions=RegionSettings(names=("lesion",)))


@pytest.mark.parametrize(
    ("known", "expected"),
    [
        (("core", "whole"), ("core", "whole")),
        (("whole", "lesion", "enhancing"), ("whole", "enhancing")),
        (("lesion",), ("core", "whole")),
    ],
)
def test_the_source_says_architecture_channels_preprocessing_and_regions(
    tmp_path: Path, known: tuple[str, ...], expected: tuple[str, ...]
) -> None:
    source = spec(*known, channels=("t1c", "flair"))
    protocol = (plan := plan_for_folder(tumours(tmp_path), source=source)).protocol
    assert protocol.channels == ("t1c", "flair")
    assert protocol.preprocess == source.preprocess
    assert protocol.regions == RegionSettings(names=expected)
    wanted = replace(source.architecture, in_channels=5, out_channels=7)
    assert plan.architecture(5, 7) == wanted


def test_a_source_of_classes_stays_one_as_long_as_its_classes_are_known(tmp_path: Path) -> None:
    folder = tumours(tmp_path)
    source = spec("necrosis", "oedema", mode="classes")
    assert plan_for_folder(folder, source=source).protocol.regions == source.regions
    other = spec("lesion", mode="classes")
    assert plan_for_folder(folder, source=other).protocol.regions.mode == "regions"


def test_a_source_of_slices_makes_patches_of_slices(tmp_path: Path) -> None:
    plan = plan_for_folder(tumours(tmp_path), source=spec("core", dims=2))
    assert plan.protocol.patch.size == (32, 32)
    with pytest.raises(ConfigError, match="2 numbers for the source model"):
        plan_for_folder(tmp_path, ["protocol.patch.size=[8,8,8]"], source=spec("core", dims=2))


def test_overrides_win(tmp_path: Path) -> None:
    overrides = [
        "protocol.regions.names=[enhancing]",
        "protocol.target_training.steps=50",
        "protocol.patch.size.1=24",
        "protocol.channels=[t1c]",
        "protocol.preprocess.margin_mm=2",
        "target.settings.name=ours",
    ]
    plan = plan_for_folder(tumours(tmp_path), overrides, source=spec("core"))
    protocol = plan.protocol
    assert protocol.regions.names == ("enhancing",)
    assert protocol.target_training.steps == 50
    assert protocol.patch.size == (32, 24, 32)
    assert protocol.channels == ("t1c",)
    assert protocol.preprocess.margin_mm == 2
    assert protocol.preprocess.spacing_mm == (2.5, 2.5, 2.5), "what is not named stays"
    assert plan.target.source.name == "ours"
    whole = plan_for_folder(tmp_path, ["target.settings={name: ours}"])
    assert len(whole.target.source) == 2, "the root is that of the folder"
    own = plan_for_folder(tmp_path, ["target.regions={tumour: [1, 2]}"], source=spec("core"))
    assert own.protocol.regions.names == ("tumour",)
    assert own.target.definition == {"tumour": (1, 2)}


def test_the_key_is_of_all_that_the_training_depends_on(tmp_path: Path) -> None:
    folder, source = tumours(tmp_path), spec("core")
    elsewhere = replace(source, architecture=replace(source.architecture, activation="relu"))

    def key(*overrides: str, source: ModelSpec = source) -> str:
        return plan_key(plan_for_folder(folder, overrides, source=source))

    assert key() == key()
    others = {key("protocol.seed=1"), key(source=elsewhere), key(source=spec("whole"))}
    assert len({key(), *others}) == 4


# --- wrong input ----------------------------------------------------------------------------------


def test_a_source_whose_channels_the_data_lack_is_refused_by_names(tmp_path: Path) -> None:
    write_case(tmp_path / "a")
    write_case(tmp_path / "b", images=["flair"])
    with pytest.raises(ScanError, match=r"Case 'b'.*'t1c'.*channels of the source model") as caught:
        plan_for_folder(tmp_path, source=spec("core"))
    assert "it has ['flair']" in str(caught.value)
    with pytest.raises(ScanError, match=r"Case 'b'.*protocol.channels"):
        plan_for_folder(tmp_path)
    assert plan_for_folder(tmp_path, source=spec("core", channels=("flair",)))


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("protocol.sed=1", "did you mean 'seed'"),
        ("protocol.patch.size=[8,8]", "3 numbers"),
        ("protocol.regions.names=[lesion]", r"\['lesion'\] are not"),
        ("target.settings.alow_empty=true", "did you mean 'allow_empty'"),
        ("target.settings=3", "one setting at a time"),
        ("target=3", "one setting at a time"),
        ("target.regions=3", "target: regions"),
        ("arms=[]", "arms is not a key"),
        ("network=unet_5d", "network"),
        ("protocol.seed", "key=value"),
    ],
)
def test_wrong_overrides_are_refused(tmp_path: Path, override: str, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        plan_for_folder(tumours(tmp_path), [override])


def test_the_network_is_that_of_the_source(tmp_path: Path) -> None:
    folder = tumours(tmp_path)
    assert plan_for_folder(folder, ["network=unet_3d"]).architecture(1, 1).activation != "elu"
    with pytest.raises(ConfigError, match="that of the source model"):
        plan_for_folder(folder, ["network=unet_3d"], source=spec("core"))


def test_all_faults_come_at_once(tmp_path: Path) -> None:
    overrides = ["protocol.members=0", "protocol.sampels=1", "network=x"]
    with pytest.raises(MedsegError) as caught:
        plan_for_folder(tumours(tmp_path), overrides)
    assert all(name in str(caught.value) for name in ("members", "sampels", "network"))


def test_real_folders_are_recognised(shared_data: Path) -> None:
    source = spec("whole", channels=("flair", "t1"))
    for name in ("ms_ljubljana", "ms_mslesseg"):
        plan = plan_for_folder(shared_data / name, source=source)
        assert plan.target.source.name == "ms"
        assert plan.protocol.regions.names == ("lesion",)
    with pytest.raises(DataError, match=r"As ms.*As brats|As ms or brats"):
        plan_for_folder(shared_data / "ms_lesion_masks")
