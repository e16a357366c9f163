"""Auto-CoT: demonstrations for a prompt that no one had to write. Questions are clustered, and of every cluster the one nearest to its
centre whose zero-shot chain of thought passes some simple checks becomes a demonstration.

Zhang, Zhang, Li, Smola 2022, "Automatic Chain of Thought Prompting in Large Language Models", ICLR 2023, arXiv 2210.03493. `AutoCot` is
the solver: demonstrations, then the question, one call (without demonstrations it is Zero-Shot-CoT). `Selection` makes demonstrations, in
one go (stages 1 and 2 of the paper's Algorithm 1) or in bootstrapping batches (Auto-CoT*, section 5.3), where every batch is answered
with demonstrations made of the batches before. Vectors and clusters are in `clusters`, zero-shot chains in
`keystep.solve.chains`.

Names: `clusters` is k, `batch` is m, `Heuristics` are the checks of section 4.2 as the published code has them. A file of demonstrations
is of the form that the published code reads and writes; the logs of zero-shot runs that it starts from are read by
`keystep.solve.questions.zero_shot_log`, as any rows whose rationale is there already.
"""

from keystep.solve.auto_cot.selection import Heuristics, Selection, unresolving_rate
from keystep.solve.auto_cot.solver import AutoCot, ClusterReport, Demo, Demos, Tried, cleaned, read_demos

__all__ = [
    "AutoCot",
    "ClusterReport",
    "Demo",
    "Demos",
    "Heuristics",
    "Selection",
    "Tried",
    "cleaned",
    "read_demos",
    "unresolving_rate",
]
