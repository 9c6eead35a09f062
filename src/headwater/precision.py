"""The type that products are computed in; weights and sums are float32 always."""

from __future__ import annotations

from typing import Literal

import torch

from headwater.errors import ConfigError

Precision = Literal["float32", "bfloat16", "auto"]
"""`auto` is bfloat16 where the processor has such arithmetic."""


def precision(wanted: Precision, device: torch.device) -> torch.autocast:
    """Return the context that computes in a type.

    Raises:
        ConfigError: bfloat16 was asked for and the processor has no such arithmetic.
    """
    if device.type == "cuda":
        able = torch.cuda.is_bf16_supported()
    else:
        able = torch.backends.cpu.get_cpu_capability() == "AVX512" and torch.cpu._is_avx512_bf16_supported()  # noqa: SLF001 - there is no public name
    if wanted == "bfloat16" and not able:
        raise ConfigError("precision = 'bfloat16': this processor has no bfloat16 arithmetic; use float32")
    # Without the cache: it would keep the bfloat16 copies that the first step made of the weights.
    on = wanted != "float32" and able
    return torch.autocast(device.type, dtype=torch.bfloat16, enabled=on, cache_enabled=False)
