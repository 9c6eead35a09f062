"""What differential privacy costs: the noise that keeps a federation within epsilon, and the epsilon it has spent.

Numbers only: it knows neither models nor clients. The clipping and the noise themselves are a transform of updates, in
`headwater.federated.clip_and_noise`.
"""
