"""The report of a run as one HTML page, and the same live: `report`, and `keystep.view.live.serve`."""

from keystep.view.page import report

__all__ = ["report"]
