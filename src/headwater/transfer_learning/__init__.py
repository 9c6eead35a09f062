"""Transfer: what a source model knows, carried to a target task. A new method is a function and a row in the table."""

from __future__ import annotations

METHODS = {
    "scratch": "headwater.transfer_learning.methods:scratch",
    "init": "headwater.transfer_learning.methods:init",
    "features": "headwater.transfer_learning.methods:features",
    "finetune": "headwater.transfer_learning.methods:finetune",
    "multitask": "headwater.transfer_learning.methods:multitask",
    "lora": "headwater.transfer_learning.methods:lora",
    "adapters": "headwater.transfer_learning.adapters:adapters",
    "prototypes": "headwater.transfer_learning.class_means:prototypes",
}
