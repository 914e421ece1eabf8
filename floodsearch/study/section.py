"""What every table of a spec is."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict

AUTO: Literal["auto"] = "auto"
"""What a study file says where the data decide: a highest level that the pilot finds, or the engine."""


class Section(BaseModel):
    """A part of a spec: immutable, nothing unknown, no silent conversion, no NaN or infinity."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)
