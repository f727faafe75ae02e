"""What every configuration and every user-facing error of Sepscene has in common."""

from pydantic import BaseModel, ConfigDict


class SepsceneError(Exception):
    """An error whose message a user can act on: it names the file or field, what is wrong and how to mend it.

    The command line prints the message alone, without a traceback, and exits with code 2.

    Example:
        >>> try:
        ...     sepscene.load_encoder("runs/nothing/encoder")
        ... except sepscene.SepsceneError as error:
        ...     print(error)
    """


class CheckpointError(SepsceneError):
    """A checkpoint that can't be trusted or understood; the message names the file and what to do."""


class Config(BaseModel):
    """A frozen, strict piece of configuration: unknown fields and numbers without an end are refused, values never
    change after validation.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", validate_default=True, allow_inf_nan=False)
