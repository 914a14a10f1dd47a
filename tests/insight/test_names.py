"""Which names a question means."""

from __future__ import annotations

import pytest

from nrt.errors import InputError
from nrt.insight.names import matching_names

NAMES = (
    "/layer4/layer4.2/conv3/Conv",
    "/layer4/layer4.2/bn3/BatchNormalization",
    "/layer4/layer4.1/conv3/Conv",
    "layer4.2.conv3.bias",
    "stem.conv",
    "stem[0]",
    "Stem.ReLU",
)


@pytest.mark.parametrize(
    ("query", "want"),
    [
        ("stem.conv", ("stem.conv",)),
        ("stem[0]", ("stem[0]",)),
        ("stem*", ("stem.conv", "stem[0]")),
        ("/layer4/*/conv3/*", (NAMES[0], NAMES[2])),
        ("layer4.2.*", (NAMES[3],)),
        ("layer4.2.conv3.c*", (NAMES[0],)),
        ("conv3.*", (NAMES[0], NAMES[2], NAMES[3])),
        ("layer4.2.conv3.conv", (NAMES[0],)),
        ("4.2.conv3", ()),
        ("LAYER4/layer4.2", (NAMES[0], NAMES[1])),
        ("relu", ("Stem.ReLU",)),
        ("layer4.2.conv3", (NAMES[0], NAMES[3])),
        ("conv", (NAMES[0], NAMES[2], "stem.conv")),
    ],
)
def test_what_is_meant(query: str, want: tuple[str, ...]) -> None:
    if not want:
        with pytest.raises(InputError, match="near names"):
            matching_names(query, NAMES)
    else:
        assert matching_names(query, NAMES) == want


def test_the_end_of_a_name_wins() -> None:
    assert matching_names("conv1", ("conv1.bn", "layer1.conv1")) == ("layer1.conv1",)
    assert matching_names("conv1", ("conv1.bn", "conv11")) == ("conv1.bn",)


def test_unknown_names_get_near_ones() -> None:
    with pytest.raises(InputError) as caught:
        matching_names("stem.cnv", NAMES)
    assert str(caught.value).startswith(
        "no layer and no node of the model is called 'stem.cnv'; near names: 'stem.conv'"
    )
    with pytest.raises(InputError, match=r"'xyzzy'; there are 7 names: '/layer4.*' …$"):
        matching_names("xyzzy", NAMES)
    with pytest.raises(InputError, match=r"''; there are 1 names: 'a'$"):
        matching_names("", ("a",))
    with pytest.raises(InputError, match=r"'layer9\*'"):
        matching_names("layer9*", NAMES)
