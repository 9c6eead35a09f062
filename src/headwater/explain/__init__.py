"""Explanations: what in a row a prediction rests on.

They ask for nothing but predictions, so that an exported file explains itself as its checkpoint does.
"""
