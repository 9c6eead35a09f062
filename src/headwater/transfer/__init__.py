"""Transfer: what a source model knows, carried to a target task. A new method is a function and a row in the table."""

from __future__ import annotations

METHODS = {
    "scratch": "headwater.transfer.methods:scratch",
    "init": "headwater.transfer.methods:init",
    "features": "headwater.transfer.methods:features",
    "finetune": "headwater.transfer.methods:finetune",
    "multitask": "headwater.transfer.methods:multitask",
}
