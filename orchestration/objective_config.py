"""The section `objective` of an experiment: the terms of the loss, their weights, and the paper's short forms."""

from typing import Any, ClassVar

from pydantic import Field, model_validator

from sepscene.models.config import Config
from sepscene.models.custom import named_parts
from sepscene.models.names import TERMS
from sepscene.tasks.losses.settings import CoincidenceSettings, NtXentSettings, TermChoice

RESERVED = ("loss", "pairs", "temperature", "bad", "rows", "step", "keys", "values", "items", "pop")
"""Names that a term cannot have, because step metrics or torch modules use them already."""

SHORT_FORMS = {
    "alpha": ("coincidence", "weight"),
    "alpha_warmup_steps": ("coincidence", "warmup_steps"),
    "temperature": ("similarity", "temperature"),
    "learn_temperature": ("similarity", "learn_temperature"),
    "triplet_margin": ("similarity", "margin"),
}
"""The paper's names for settings of terms: short form -> term and field."""

_OF = {"temperature": "nt-xent", "learn_temperature": "nt-xent", "triplet_margin": "triplet"}
"""Short form -> the only loss that has it. Other losses ignore it, because older files contain all short forms."""


class Objective(Config):
    """L = sum of weight * term over the global batch. In the paper: similarity (NT-Xent) + alpha * coincidence.

    The paper's names are short forms: `alpha` is `terms.coincidence.weight`, `alpha_warmup_steps` is its
    `warmup_steps`, and `similarity` is `terms.similarity.use`, whose settings are `temperature`, `learn_temperature`
    and `triplet_margin`.
    """

    short_names: ClassVar = (*SHORT_FORMS, "similarity")

    terms: dict[str, TermChoice] = Field(
        {"similarity": NtXentSettings(), "coincidence": CoincidenceSettings()},
        description="loss terms by names of your choice, which are also the names of their metrics; `use` is nt-xent, "
        "triplet, vicreg, coincidence or custom code. `use` can be omitted if the name is that of a term",
    )
    projection_dim: int = Field(128, ge=1, description="dimensions of z [open]")
    head_hidden: int = Field(512, ge=1, description="hidden units of the heads [open]")

    @model_validator(mode="before")
    @classmethod
    def _short_forms(cls, given: Any) -> Any:
        if not isinstance(given, dict):
            return given
        if given.get("coincidence_pairs", "same") != "same":
            raise ValueError("objective.coincidence_pairs was removed: all terms learn from the same pairs")
        converted = (*SHORT_FORMS, "similarity", "coincidence_pairs")
        rest = {name: value for name, value in given.items() if name not in converted}
        terms = rest.get("terms", {"similarity": {}, "coincidence": {}})
        if not isinstance(terms, dict):
            return given
        terms = named_parts(terms, TERMS, "loss term", RESERVED, similarity="nt-xent")
        short = {name: value for name, value in given.items() if name in SHORT_FORMS}
        if "similarity" in given:
            before = terms.pop("similarity", {})
            kept = before if before.get("use") == given["similarity"] else {"weight": before.get("weight", 1.0)}
            terms = {"similarity": kept | {"use": given["similarity"]}} | terms
        for name, value in short.items():
            term, field = SHORT_FORMS[name]
            settings = terms.setdefault(term, {"use": "coincidence" if term == "coincidence" else "nt-xent"})
            if name == "learn_temperature" and value and settings["use"] == "triplet":
                raise ValueError("the triplet loss has no temperature: set objective.learn_temperature to false")
            if settings["use"] == _OF.get(name, settings["use"]):
                settings[field] = value
            elif settings["use"] not in ("nt-xent", "triplet"):
                use = settings["use"]
                raise ValueError(f"objective.{name} is a setting of {_OF[name]}, not of {use}: remove it")
        return rest | {"terms": terms}

    @model_validator(mode="after")
    def _something_to_learn(self) -> "Objective":
        if not self.used_terms:
            raise ValueError("objective.terms has no term whose weight is above 0: there is nothing to learn")
        return self

    @property
    def used_terms(self) -> dict[str, Any]:
        """The settings of the terms with a weight above 0, in their order."""
        return {name: term for name, term in self.terms.items() if term.weight > 0}

    def weights_at(self, step: int) -> dict[str, float]:
        """The terms' weights at step 0, 1, …"""
        return {name: term.weight_at(step) for name, term in self.used_terms.items()}

    @property
    def alpha(self) -> float:
        """Weight of the term `coincidence`; 0 if there is none."""
        return self.terms["coincidence"].weight if "coincidence" in self.terms else 0.0

    @property
    def alpha_warmup_steps(self) -> int:
        """Number of steps over which alpha grows."""
        return self.terms["coincidence"].warmup_steps if "coincidence" in self.terms else 0

    @property
    def similarity(self) -> str:
        """The loss of the term `similarity`; empty if there is none."""
        return str(self.terms["similarity"].use) if "similarity" in self.terms else ""

    @property
    def temperature(self) -> float | None:
        """tau of the term `similarity`; None if its loss has none."""
        return getattr(self.terms.get("similarity"), "temperature", None)

    @property
    def short_forms(self) -> dict[str, Any]:
        """The settings that all rows of the paper's tables share, by their short forms, and all further terms."""
        settings = {"temperature": 0.2, "learn_temperature": False, "triplet_margin": 0.1}
        for name in settings:
            term, field = SHORT_FORMS[name]
            settings[name] = getattr(self.terms.get(term), field, settings[name])
        others = {
            name: term.model_dump() for name, term in self.terms.items() if name not in ("similarity", "coincidence")
        }
        return settings | others

    @property
    def description(self) -> str:
        """The sum of weighted terms as text."""
        return " + ".join(
            term.description if term.weight == 1 and number == 0 else f"{term.weight:g} {term.description}"
            for number, term in enumerate(self.used_terms.values())
        )
