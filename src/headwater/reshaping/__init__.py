"""Reshaping: other widths, layers and directions for a model, with what it has learned."""
