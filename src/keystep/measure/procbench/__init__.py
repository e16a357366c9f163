"""ProcBench: how long a fully specified procedure a worker can follow, and where it first goes wrong.

"ProcBench: Benchmark for Multi-Step Reasoning and Following Procedure" (Fujisawa, Nobe, Seto, Onda, Uchida, Ikoma, Chien, Kanai 2024,
arXiv 2410.03117): 23 tasks, each a rule that is told and an instance it is to be carried out on; 2 to 25 steps; every state is asked for
and scored. Here: all tasks by rule, instances from a seed or from the published files, the scores, and two ways to put them to a model: the
whole procedure in one answer, or one step a call.

Not covered: the second model that the reference has turn answers into JSON (here it is done by rule, so that a score does not depend on
it), and the reference's exact draws (its rules, its distributions, our random numbers).

Names: Y and Z of the paper are the true and the predicted states, PML, PA, SM and FM its four scores.
"""

from keystep.measure.procbench.problems import KINDS, Problem, generate, load
from keystep.measure.procbench.scoring import Score, extract, geometric, matches, score

__all__ = ["KINDS", "Problem", "Score", "extract", "generate", "geometric", "load", "matches", "score"]
