"""Long-horizon execution: how many dependent steps a worker carries out, and why it fails in the end.

"The Illusion of Diminishing Returns: Measuring Long Horizon Execution in LLMs" (Sinha, Arun, Goel, Staab, Geiping 2025, arXiv 2509.09677):
a dictionary of words and numbers, a running sum, K words a turn. Plan and knowledge are both given, so that only execution is measured:
S_t = S_(t-1) + sum_j D[k_(t,j)]. Here: the reference's generator, conversations and the other ways of putting the plan to a worker, the
accuracies and horizons with intervals, and the histories with errors that tell self-conditioning from long context.

Not covered: native reasoning interfaces (text in <think> tags is taken out of the history), and the reference's random choice among
tied votes (the engine draws on until one leads).

Names: H_s is `horizon`, p the accuracy of a step, K `per_turn`, e the rate at which errors are put into a history.
"""

from keystep.measure.long_horizon.measures import (
    Answers,
    Interval,
    Scores,
    author_error,
    bootstrap,
    horizon,
    horizon_law,
    horizon_slope,
    inject,
    realised_rate,
    score,
    self_conditioned_error,
    step_accuracy,
    turn_accuracy,
)
from keystep.measure.long_horizon.task import Plan, generate

__all__ = [
    "Answers",
    "Interval",
    "Plan",
    "Scores",
    "author_error",
    "bootstrap",
    "generate",
    "horizon",
    "horizon_law",
    "horizon_slope",
    "inject",
    "realised_rate",
    "score",
    "self_conditioned_error",
    "step_accuracy",
    "turn_accuracy",
]
