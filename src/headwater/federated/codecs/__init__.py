"""Codecs: tensors written with fewer bytes than their float32 numbers take.

A codec is two pure functions on one tensor (`base.py`). A stack applies them one behind the other: what is still
float32 after one goes through the next, such as the values that `top_k` keeps through `int8`. `transforms.py` makes
update transforms of stacks: one for what clients send, one for what the server sends.
"""
