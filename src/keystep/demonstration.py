"""Demonstration and Segment: records of someone doing a task."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, ConfigDict, Field, model_validator

from keystep.errors import BadInput


class Segment(BaseModel):
    """The part of a demonstration from index `start` up to, not including, `end`."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    start: int = Field(ge=0)
    end: int = Field(ge=1)
    label: str = ""
    skill: str | None = None
    score: float | None = None

    @model_validator(mode="after")
    def _runs_forward(self) -> Segment:
        if self.end <= self.start:
            raise BadInput("a segment ends after it starts", field="end", value=self.end, mend=f"make it larger than start = {self.start}")
        return self


class Demonstration(BaseModel):
    """A time-ordered record: any of observations, actions, words and a video, with the segments known or found in it.

    `observations` and `actions` are sequences over time (lists here; the rooms that hold arrays convert at their door); `times` are
    seconds, ascending; `video` is a path; `actions` may be one shorter than `observations` (the last state has no action).
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    id: str = Field(min_length=1)
    goal: str = ""
    observations: tuple[Any, ...] = ()
    actions: tuple[Any, ...] = ()
    times: tuple[float, ...] = ()
    words: tuple[str, ...] = ()
    video: str | None = None
    segments: tuple[Segment, ...] = ()

    @model_validator(mode="after")
    def _is_a_record(self) -> Demonstration:
        if self.observations and self.actions and len(self.observations) - len(self.actions) not in (0, 1):
            raise BadInput(
                "observations and actions do not belong together", field="actions", value=len(self.actions),
                mend=f"give {len(self.observations)} or {len(self.observations) - 1} actions",
            )  # fmt: skip
        if any(later < earlier for earlier, later in zip(self.times, self.times[1:], strict=False)):
            raise BadInput("times go backwards", field="times", mend="sort the record by time")
        if self.observations and self.times and len(self.times) != len(self.observations):
            raise BadInput("one time per observation", field="times", value=len(self.times), mend=f"give {len(self.observations)}")
        length = len(self) or None
        for segment in self.segments:
            if length and segment.end > length:
                raise BadInput("a segment ends after the record", field="segments", value=segment.end, mend=f"end it at {length} or before")
        return self

    def __len__(self) -> int:
        """Number of time steps (0 when only a video is given)."""
        return max(len(self.observations), len(self.actions), len(self.words))
