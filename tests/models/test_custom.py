"""Custom parts in a configuration: their names and settings."""

import pytest

from sepscene.models.custom import CustomEncoder, named_parts
from sepscene.models.names import AUGMENTATIONS


def test_two_parts_cannot_have_the_same_name() -> None:
    parts = {"mix-back": {"share": 0.1}, "mix_back": {"share": 0.9}}
    with pytest.raises(ValueError, match="two parts with the name 'mix_back'"):
        named_parts(parts, AUGMENTATIONS, "augmentation", ())


@pytest.mark.parametrize("changes", [{"size": 3, "use": "lab.nets:New"}, {"use": "lab.nets:New", "size": 3}])
def test_a_changed_choice_replaces_its_settings_in_any_order(changes: dict[str, object]) -> None:
    before = CustomEncoder.model_validate({"use": "lab.nets:Old", "width": 5})
    assert before.changed(changes).model_dump() == {"use": "lab.nets:New", "size": 3}
