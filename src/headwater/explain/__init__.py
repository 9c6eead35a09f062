"""Explanations: what in a row a prediction rests on."""
