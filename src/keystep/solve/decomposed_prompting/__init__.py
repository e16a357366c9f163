"""Decomposed Prompting: a decomposer emits a program line by line, every line is given to the handler that it names.

Khot, Trivedi, Finlayson, Fu, Richardson, Clark, Sabharwal 2023, "Decomposed Prompting: A Modular Approach for Solving Complex Tasks",
ICLR 2023, arXiv 2210.02406. A program P = ((f1, Q1, A1), …, (fk, Qk, Ak)) is a list of lines, `[f] Q` or `(operator) [f] Q`, each with
its answer; the decomposer D is called with the query and all lines so far and gives the next one, until it gives [EOQ]; the last answer is
the answer. A handler f is a `keystep.Skill`, of any kind: a few-shot prompt, another decomposer (hierarchy), the same one (recursion), a
function, a retriever, a small trained model, a skill of one's own. Every line becomes a `Plan` as it is emitted, its sub-questions side by
side.

- `grammar`: lines, `#i` references, operators, post-operations
- `handlers`, `decomposer`, `retrieval`: the kinds of handlers
- `program`: handlers by name, from a YAML file
- `solver`: the solver
- `scoring`: the metrics of the paper's data sets

Beyond the paper: every call can be voted on; a line that does not parse, names no handler or no earlier step, or does not fit the answers
it refers to is flagged and drawn again; handlers may be typed; calls, tokens and depth are bounded. Not covered: the code's best-first
search over several lines at once, which with one sample a call, as in all of the paper's figures, is the greedy loop that is here.
"""
