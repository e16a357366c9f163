"""Skill localization by grafting: the few weights in which a fine-tuned skill lives, as a patch.

Panigrahi, Saunshi, Zhao, Arora 2023, *Task-Specific Skill Localization in Fine-tuned Language Models*, arXiv 2302.06600. `graft` learns
the mask, `patch` is the file and what can be done with it, `library` has patches as skills of one model.
"""

from keystep.edit.localize.graft import PUBLISHED, Locate, Located, compare, locate, movement
from keystep.edit.localize.patch import Patch, overlap, patch_of

__all__ = ["PUBLISHED", "Locate", "Located", "Patch", "compare", "locate", "movement", "overlap", "patch_of"]
