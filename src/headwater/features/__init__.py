"""Raw data to numbers. What a featurizer learned is saved with the model, so the device prepares text the same way."""
