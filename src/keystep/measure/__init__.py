"""Measures: what a model or an agent can do, and for how long."""
