"""Methods that change what clients minimize, or how their steps are counted: both halves of each in one object.

Each is a `LocalMethod` on the clients and an `UpdateTransform` on the server; several go together.
"""
