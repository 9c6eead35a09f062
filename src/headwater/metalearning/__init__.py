"""Meta-learning: from many small tasks to a start from which a new one takes few rows.

A new method is a class and a row in the table.
"""

from __future__ import annotations

METHODS = {
    "reptile": "headwater.metalearning.methods:Reptile",
    "fomaml": "headwater.metalearning.methods:FirstOrderMAML",
    "prototypes": "headwater.metalearning.methods:Prototypes",
}
