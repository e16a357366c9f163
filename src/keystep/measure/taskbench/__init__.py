"""TaskBench: tool graphs, tasks made from them by "back-instruct", and TaskEval, the scoring of a planner that uses them.

Shen, Song, Tan, Zhang, Ren, Yuan, Lu, Li, Zhuang 2023, "TaskBench: Benchmarking Large Language Models for Task Automation" (NeurIPS 2024
Datasets and Benchmarks, arXiv 2311.18760). A resource graph links a tool to those that can use its output, a temporal one every tool to
every other; a node, chain or DAG is sampled from it, a model words the request that needs it, two critics keep what is sound, and a
planner's steps, tools, links and parameters are compared with it.

Covered: both kinds of graph, sampling, back-instruct with the model's and the rule critic (and by templates, without a model), the
official files in both their schemas, inference, every figure of TaskEval but BERTScore (which a caller may plug in: it needs weights;
`steps_tfidf_cosine` is what needs none and is not it), plans that `Run.execute` carries out, baselines that need no model. Not covered:
the human check of the released data.
"""

from keystep.measure.taskbench.graph import Parameter, Tool, ToolGraph, load_graph, resource_graph, temporal_graph
from keystep.measure.taskbench.samples import Node, Sample, Solution, lint, load_samples, sample_of, solution_of
from keystep.measure.taskbench.sampling import SubGraph, draw, sample
from keystep.measure.taskbench.scoring import report

__all__ = [
    "Node",
    "Parameter",
    "Sample",
    "Solution",
    "SubGraph",
    "Tool",
    "ToolGraph",
    "draw",
    "lint",
    "load_graph",
    "load_samples",
    "report",
    "resource_graph",
    "sample",
    "sample_of",
    "solution_of",
    "temporal_graph",
]
