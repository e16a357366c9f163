"""Torch blocks that several methods share. They know of tensors and nothing of methods."""
