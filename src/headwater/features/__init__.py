"""Rows to what a model reads: tokenizers, the vocabulary, word vectors; standardized numbers. No torch here.

What a featurizer learned from the training rows is saved with the model, so that a device prepares rows the same way.
"""
