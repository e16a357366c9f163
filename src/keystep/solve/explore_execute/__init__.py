"""Explore–Execute chains (E²C): a short plan is drawn, then carried out; `solver` searches over plans, `train` teaches a model the two."""
