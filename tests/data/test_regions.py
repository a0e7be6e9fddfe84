import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from monai.transforms import ConvertToMultiChannelBasedOnBratsClasses

from medseg.data.regions import MS_LESION, WHOLE_TUMOUR, RegionSettings, decode, encode
from medseg.errors import LabelError, ShapeError

LABELS = st.lists(st.integers(0, 4), min_size=8, max_size=8).map(
    lambda values: torch.tensor(values, dtype=torch.uint8).view(2, 2, 2)
)
NAMES = st.lists(st.sampled_from(sorted(WHOLE_TUMOUR)), min_size=1, unique=True)
EXCLUSIVE = {"necrosis": (1,), "oedema": (2,), "rest": (3, 4)}


@given(LABELS, NAMES)
def test_decode_after_encode_gives_the_union_of_labels(
    label: torch.Tensor, names: list[str]
) -> None:
    target, known = encode(label, names=names, definition=WHOLE_TUMOUR)
    assert known.all()
    masks = decode(target, settings=RegionSettings(names=tuple(names)))
    for name in names:
        expected = sum((label == value) for value in WHOLE_TUMOUR[name]).bool()  # type: ignore[union-attr]
        assert torch.equal(masks[name], expected)


@given(LABELS)
def test_classes_partition_the_volume(label: torch.Tensor) -> None:
    names = tuple(EXCLUSIVE)
    target, known = encode(label, names=names, definition=EXCLUSIVE, mode="classes")
    assert target.shape == (4, 2, 2, 2)
    assert torch.equal(target.sum(0), torch.ones(2, 2, 2))
    assert torch.equal(target[0] == 1, label == 0)
    assert known.tolist() == [True] * 4
    masks = decode(target, settings=RegionSettings(mode="classes", names=names))
    assert torch.equal(masks["rest"], label >= 3)


@given(LABELS)
def test_regions_agree_with_monai(label: torch.Tensor) -> None:
    label = torch.where(label == 3, 1, label)  # MONAI knows the convention 1-2-4
    theirs = ConvertToMultiChannelBasedOnBratsClasses()(label[None])
    ours, _ = encode(label, names=["core", "whole", "enhancing"], definition=WHOLE_TUMOUR)
    assert torch.equal(ours.bool(), torch.as_tensor(theirs).bool())


def test_undefined_region_is_unknown_not_empty() -> None:
    label = torch.ones(2, 2, 2, dtype=torch.uint8)
    target, known = encode(label, names=["core", "lesion"], definition=MS_LESION)
    assert known.tolist() == [False, True]
    assert target[0].sum() == 0
    assert target[1].sum() == 8
    _, known = encode(label, names=["core", "lesion"], definition=MS_LESION, mode="classes")
    assert known.tolist() == [True, False, True]


def test_refusals() -> None:
    label = torch.zeros(2, 2, 2, dtype=torch.uint8)
    with pytest.raises(LabelError, match="belong to more than one"):
        encode(label, names=["core", "whole"], definition=WHOLE_TUMOUR, mode="classes")
    with pytest.raises(LabelError, match="different names"):
        encode(label, names=["core", "core"], definition=WHOLE_TUMOUR)
    with pytest.raises(LabelError, match=r"'a' is \[\]"):
        encode(label, names=["a"], definition={"a": ()})
    with pytest.raises(LabelError, match=r"'a' is \[0\]"):
        encode(label, names=["a"], definition={"a": (0,)})
    with pytest.raises(ShapeError, match="has 2 channels, but the probabilities have 3"):
        decode(torch.zeros(3, 2, 2, 2), settings=RegionSettings(names=("core", "whole")))


def test_threshold_is_exclusive_and_channels_are_counted() -> None:
    settings = RegionSettings(names=("core",))
    probability = torch.tensor([[0.5, 0.51]])
    assert decode(probability, settings=settings)["core"].tolist() == [False, True]
    assert decode(probability, settings=settings, threshold=0.505)["core"].tolist() == [False, True]
    assert settings.channels == 1
    assert RegionSettings(names=("core",), mode="classes").channels == 2
