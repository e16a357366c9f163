"""Skill unlearning at run time: Neuron Adjust and Key Space Detection, as a guard beside a model whose weights stay as they are.

Li, Sun, Weng 2025, *Effective Skill Unlearning through Intervention and Abstention*, arXiv 2503.21730. `forget` makes a guard,
`key_space` and `neuron_adjust` are the methods, `guarded` is the guard at work, `guard` its folder, `report` what it does.
"""

from keystep.edit.unlearn.forget import Forget, Forgotten, Split, batches_of, forget
from keystep.edit.unlearn.guard import Attached, attach, load, save
from keystep.edit.unlearn.guarded import Box, Guard, Shift, Zeroed
from keystep.edit.unlearn.report import Figures, Relearn, Relearned, Row, figures, relearn, report

__all__ = [
    "Attached", "Box", "Figures", "Forget", "Forgotten", "Guard", "Relearn", "Relearned", "Row", "Shift", "Split", "Zeroed", "attach",
    "batches_of", "figures", "forget", "load", "relearn", "report", "save",
]  # fmt: skip
