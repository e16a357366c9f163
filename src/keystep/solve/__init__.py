"""Solvers: a Task in, an answer out. Each is a method of its own; all model calls go through `Context.ask`, all steps through
`Context.execute`."""
