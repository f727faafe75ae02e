"""What every configuration and every user-facing error of Sepscene has in common."""

from collections.abc import Mapping
from typing import Any, Self

from pydantic import BaseModel, ConfigDict

from sepscene.models.spelling import unknown


class SepsceneError(Exception):
    """An error whose message a user can act on: it names the file or field, what is wrong and how to fix it.

    The command line prints the message alone, without a traceback, and exits with code 2.

    Example:
        >>> try:
        ...     sepscene.load_encoder("runs/nothing/encoder")
        ... except sepscene.SepsceneError as error:
        ...     print(error)
    """


class CheckpointError(SepsceneError):
    """A checkpoint that can't be trusted or understood; the message names the file and what to do."""


def first_line(error: BaseException) -> str:
    """The first line of an error's message, or its type where it says nothing."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]


class Config(BaseModel):
    """A frozen, strict piece of configuration: unknown fields and numbers without an end are refused, values never
    change after validation.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", validate_default=True, allow_inf_nan=False)

    def changed(self, changes: Mapping[str, Any]) -> Self:
        """A copy with some fields changed, checked like any other: the one way to change a configuration.

        Args:
            changes: dotted field -> value, e.g. {"objective.temperature": 0.1}; they are checked together. Another
                name in a field `use` (which encoder, …) takes all that stood beside it away: it meant something else.

        Raises:
            SepsceneError: for a field whose parent does not exist.
            ValidationError: for an unknown field or a value that the field refuses.
        """
        tree = self.model_dump()
        for path, value in sorted(changes.items(), key=lambda change: not change[0].endswith(".use")):
            *parents, leaf = path.split(".")
            node: Any = tree
            for key in parents:
                known = node
                node = known.get(key)
                if not isinstance(node, dict):
                    said = f"{key} is no section" if key in known else unknown(key, known, "section")
                    raise SepsceneError(f"{path} is no field of the configuration: {said}; `sepscene show` prints all")
            if leaf == "use" and value != node.get(leaf):
                node.clear()
            node[leaf] = value
        return self.model_validate(tree)
