"""Errors for misspelt names list the known ones and suggest the most similar, for fields also without their section."""

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


def test_the_most_similar_name_is_found_in_any_case() -> None:
    assert nearest("CNN14", ("cnn14", "transformer")) == "cnn14" and nearest("S3", ("Table", "x")) == ""
    assert unknown("tabel2", ("table2", "table4"), "table") == (
        "there is no table 'tabel2' (did you mean table2?); known names: table2, table4"
    )
    assert unknown("zzz", ("table2",), "table") == "there is no table 'zzz'; known names: table2"


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"nmae": 1}, "unknown field (did you mean name?); known fields: name, box, shape, shapes"),
        ({"widht": 1}, "unknown field (did you mean box.width?); known fields: name, box, shape, shapes"),
        ({"sise": 1}, "unknown field (did you mean box.size?); known fields: name, box, shape, shapes"),
        ({"box": {"widht": 1}}, "unknown field (did you mean width?); known fields: width, size"),
        (
            {"shape": {"use": "square", "lenght": 1}},
            "unknown field (did you mean length?); known fields: use, length, colour",
        ),
        (
            {"shapes": {"a": {"use": "round", "radios": 1}}},
            "unknown field (did you mean radius?); known fields: use, radius",
        ),
        ({"shape": {"use": "round", "zzz": 1}}, "unknown field; known fields: use,"),
    ],
)
def test_an_error_lists_the_fields_of_the_section_of_an_unknown_field(given: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError) as raised:
        Whole.model_validate(given)
    (fault,) = raised.value.errors()
    assert unknown_field(Whole, fault["loc"]).startswith(message)


def test_an_error_suggests_the_most_similar_choice() -> None:
    with pytest.raises(ValidationError) as raised:
        Square.model_validate({"colour": "gren", "length": "long"})
    length, colour = raised.value.errors()
    assert near_choice(colour) == ", did you mean green?" and near_choice(length) == ""


def test_an_error_suggests_the_most_similar_section() -> None:
    with pytest.raises(SepsceneError, match=r"bax\.width is not a field .* no section 'bax' \(did you mean box\?"):
        Whole().changed({"bax.width": 2})
    with pytest.raises(SepsceneError, match=r"name\.first is not a field of the configuration: name is not a section"):
        Whole().changed({"name.first": 2})


def test_a_change_is_validated_and_its_error_names_the_field() -> None:
    with pytest.raises(SepsceneError, match=r"box\.widht: unknown field \(did you mean width\?\); known fields: width"):
        Whole().changed({"box.widht": 2})
    with pytest.raises(SepsceneError, match=r"bad configuration with box\.width: box\.width: Input should be a valid"):
        Whole().changed({"box.width": "wide"})


def test_a_section_and_a_field_of_it_can_be_changed_together() -> None:
    assert Whole().changed({"box": Box(width=2.0), "name": "y"}) == Whole(name="y", box=Box(width=2.0))
    assert Whole().changed({"shape": Square(length=3.0), "shape.colour": "green"}) == Whole(
        shape=Square(length=3.0, colour="green")
    )
