"""Custom parts in a configuration: their names and settings."""

from typing import Any

import pytest
from pydantic import AliasChoices, BaseModel, ConfigDict, Field, computed_field, model_validator

from sepscene.models.config import SepsceneError
from sepscene.models.custom import CustomEncoder, named_parts, settings_for
from sepscene.models.names import AUGMENTATIONS


def test_two_parts_cannot_have_the_same_name() -> None:
    parts = {"mix-back": {"share": 0.1}, "mix_back": {"share": 0.9}}
    with pytest.raises(ValueError, match="two parts with the name 'mix_back'"):
        named_parts(parts, AUGMENTATIONS, "augmentation", ())


@pytest.mark.parametrize("changes", [{"size": 3, "use": "lab.nets:New"}, {"use": "lab.nets:New", "size": 3}])
def test_a_changed_choice_replaces_its_settings_in_any_order(changes: dict[str, object]) -> None:
    before = CustomEncoder.model_validate({"use": "lab.nets:Old", "width": 5})
    assert before.changed(changes).model_dump() == {"use": "lab.nets:New", "size": 3}


class Plain(BaseModel):
    width: int = 4
    layers: int = Field(2, validation_alias=AliasChoices("layers", "depth"))

    @model_validator(mode="before")
    @classmethod
    def _read_old_name(cls, given: dict[str, Any]) -> dict[str, Any]:
        return {("width" if name == "wide" else name): value for name, value in given.items()}

    @computed_field  # type: ignore[prop-decorator]
    @property
    def size(self) -> int:
        return self.width * self.layers


class Anything(Plain):
    model_config = ConfigDict(extra="allow")


class Nothing(Plain):
    model_config = ConfigDict(extra="ignore")


def settings_of(config: type[BaseModel], **options: Any) -> Any:
    part = type("Part", (), {"Config": config})
    return settings_for(part, CustomEncoder.model_validate({"use": "lab.nets:Part", **options}), "part lab")


def test_an_option_that_is_no_setting_of_custom_code_is_refused() -> None:
    with pytest.raises(
        SepsceneError, match=r"^part lab: widht: unknown field \(did you mean width\?\); known fields: width"
    ):
        settings_of(Plain, widht=8)
    with pytest.raises(SepsceneError, match=r"^part lab: width: Input should be a valid integer"):
        settings_of(Plain, width="wide")


def test_custom_code_decides_what_it_accepts() -> None:
    assert settings_of(Plain, wide=8, depth=3) == Plain(width=8, layers=3)
    assert type(settings_of(Plain, width=8)) is Plain
    assert settings_of(Anything, other=1).other == 1
    assert settings_of(Nothing, other=1) == Nothing()


def test_settings_that_were_saved_are_read_again() -> None:
    saved = settings_of(Plain, width=8).model_dump()
    assert saved["size"] == 16 and settings_of(Plain, **saved) == Plain(width=8)
