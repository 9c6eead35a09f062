"""Rows: where they come from, how they are checked, chosen and split, and how they become batches.

Tables are files of the user's own; a card names a public set and where to get it, pinned by its checksum. All but
`batches` needs no torch, since a device reads and pads rows too.
"""
