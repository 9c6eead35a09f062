"""Text to numbers: tokenizers, the vocabulary, word vectors. No torch here.

What a featurizer learned from the training rows is saved with the model, so that a device prepares text the same way.
"""
