"""A misspelt name is answered with what is known and the nearest; of a field also where its section is missing."""

from typing import Annotated, Any, ClassVar, Literal

import pytest
from pydantic import Discriminator, Tag, ValidationError

from sepscene.models.config import Config, SepsceneError
from sepscene.models.spelling import near_choice, nearest, unknown, unknown_field


class Round(Config):
    use: Literal["round"] = "round"
    radius: float = 1.0


class Square(Config):
    use: Literal["square"] = "square"
    length: float = 1.0
    colour: Literal["red", "green"] = "red"


Shape = Annotated[
    Annotated[Round, Tag("<round>")] | Annotated[Square, Tag("<square>")],
    Discriminator(lambda value: f"<{value['use'] if isinstance(value, dict) else value.use}>"),
]


class Box(Config):
    short_names: ClassVar = ("size",)
    width: float = 1.0


class Whole(Config):
    name: str = "x"
    box: Box = Box()
    shape: Shape = Round()
    shapes: dict[str, Shape] = {}


def test_the_nearest_name_is_found_whatever_its_case() -> None:
    assert nearest("CNN14", ("cnn14", "transformer")) == "cnn14" and nearest("S3", ("Table", "x")) == ""
    assert unknown("tabel2", ("table2", "table4"), "table") == (
        "there is no table 'tabel2' (did you mean table2?); known are table2, table4"
    )
    assert unknown("zzz", ("table2",), "table") == "there is no table 'zzz'; known are table2"


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({"nmae": 1}, "unknown field (did you mean name?); known are name, box, shape, shapes"),
        ({"widht": 1}, "unknown field (did you mean box.width?); known are name, box, shape, shapes"),
        ({"sise": 1}, "unknown field (did you mean box.size?); known are name, box, shape, shapes"),
        ({"box": {"widht": 1}}, "unknown field (did you mean width?); known are width, size"),
        (
            {"shape": {"use": "square", "lenght": 1}},
            "unknown field (did you mean length?); known are use, length, colour",
        ),
        (
            {"shapes": {"a": {"use": "round", "radios": 1}}},
            "unknown field (did you mean radius?); known are use, radius",
        ),
        ({"shape": {"use": "round", "zzz": 1}}, "unknown field; known are use,"),
    ],
)
def test_an_unknown_field_is_answered_from_the_model_that_it_was_given_to(given: dict[str, Any], says: str) -> None:
    with pytest.raises(ValidationError) as raised:
        Whole.model_validate(given)
    (fault,) = raised.value.errors()
    assert unknown_field(Whole, fault["loc"]).startswith(says)


def test_a_choice_is_answered_with_the_nearest() -> None:
    with pytest.raises(ValidationError) as raised:
        Square.model_validate({"colour": "gren", "length": "long"})
    length, colour = raised.value.errors()
    assert near_choice(colour) == ", did you mean green?" and near_choice(length) == ""


def test_a_section_that_is_not_there_is_answered_as_well() -> None:
    with pytest.raises(SepsceneError, match=r"bax\.width is no field .* no section 'bax' \(did you mean box\?"):
        Whole().changed({"bax.width": 2})
    with pytest.raises(SepsceneError, match=r"name\.first is no field of the configuration: name is no section"):
        Whole().changed({"name.first": 2})
