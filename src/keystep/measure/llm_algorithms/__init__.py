"""LLM-based algorithms: what error, cost and latency to expect of an input that is split over many calls, and how finely to split it.

Chen, Li, Ding, Zhou 2024, "On the Design and Analysis of LLM-Based Algorithms" (TMLR, arXiv 2407.14788). A pipeline is a graph of calls
and exact programs; from the error and cost of one call at each input size follow those of the whole, for counting, sorting, retrieval,
retrieval-augmented answering and graphs of one's own.

Paper to code: n the size of the input, m (`size`) that of a sub-task, k (`calls`) how many there are, p (`parallel`) how many run at
once, L_sys `CallCost.system`, L_pre and L_dec `tokens_in` and `tokens_out`, f(m) a `Curve`, E(v) and C(v) an `Estimate`.

Covered: cost and latency models, error models with bias and spread kept apart, prediction, the choice under a constraint, profiles from
pilot calls and from journals, and the four algorithms run on any model. Not covered: memory, iterative retrieval.
"""

from keystep.measure.llm_algorithms.costs import CallCost, Prices, Speed, latency
from keystep.measure.llm_algorithms.curves import Curve
from keystep.measure.llm_algorithms.graph import (
    CallError,
    Estimate,
    Given,
    Node,
    Pipeline,
    PowerLaw,
    divide_and_conquer,
    load,
    parallel,
    retrieval_augmented,
)
from keystep.measure.llm_algorithms.predict import Choice, Prediction, choose, grid, predict
from keystep.measure.llm_algorithms.profile import Profile, calls_of, journaled_profile, pilot
from keystep.measure.llm_algorithms.run import Measured, compare, measure
from keystep.measure.llm_algorithms.tasks import TASKS, Algorithm, Counting, RetrievalAugmented, Retrieving, Sorting

__all__ = [
    "TASKS",
    "Algorithm",
    "CallCost",
    "CallError",
    "Choice",
    "Counting",
    "Curve",
    "Estimate",
    "Given",
    "Measured",
    "Node",
    "Pipeline",
    "PowerLaw",
    "Prediction",
    "Prices",
    "Profile",
    "RetrievalAugmented",
    "Retrieving",
    "Sorting",
    "Speed",
    "calls_of",
    "choose",
    "compare",
    "divide_and_conquer",
    "grid",
    "journaled_profile",
    "latency",
    "load",
    "measure",
    "parallel",
    "pilot",
    "predict",
    "retrieval_augmented",
]
