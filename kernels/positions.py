"""
What positions add to attention: rotary frequencies and tables, and ALiBi's slopes.

cfg is a GPTConfig (hub/families.py), whose position, rope_theta, rope_scaling and yarn say which.
"""
import math

import torch


def rope_frequencies(cfg, device=None, stretched=True):
    """Radians a position of each rotated pair, float32 (n_rope / 2,): theta^(-2i/R), i = 0, 1, ...

    stretched: with the scaling of cfg, if any; without it, layers with a window may have another theta.
    """
    R = cfg.n_rope
    theta = cfg.rope_theta if stretched else cfg.window_theta or cfg.rope_theta
    freq = theta ** -(torch.arange(0, R, 2, device=device).float() / R) # (R/2,)
    if not stretched or not (cfg.rope_scaling or cfg.yarn):
        return freq
    # Long wavelengths are stretched by the factor and short ones stay, with a ramp in between: in llama3
    # by how often a pair turns within the original positions; in yarn (2309.00071) by the number of the
    # pair, between the pairs that turn `fast` and `slow` times.
    if cfg.rope_scaling:
        factor, low, high, original = cfg.rope_scaling
        ramp = (original * freq / (2 * math.pi) - low) / (high - low)
    else:
        factor, original, _, fast, slow = cfg.yarn
        first, last = (R * math.log(original / (2 * math.pi * turns), theta) / 2 for turns in (fast, slow))
        first = max(math.floor(first), 0)
        last = min(math.ceil(last), R - 1)
        ramp = 1 - (torch.arange(R // 2, device=device) - first) / max(last - first, 0.001)
    ramp = ramp.clamp(0, 1)
    return freq * (ramp + (1 - ramp) / factor)

def rotary_table(cfg, positions, stretched=True):
    """cos and sin of int positions (...,): (..., n_rope), sin negated in the first half."""
    angle = positions[..., None].float() * rope_frequencies(cfg, positions.device, stretched)
    scale = cfg.yarn[2] if cfg.yarn and stretched else 1.0
    cos = angle.cos() * scale
    sin = angle.sin() * scale
    return torch.cat((cos, cos), -1), torch.cat((-sin, sin), -1)

def alibi_slopes(n_head):
    """ALiBi's slopes (2108.12409), (H,) float32: 2^(-8 i / H), i = 1..H, if H is a power of 2.

    Else they are those of the power of 2 below H, then every second slope of twice that power.
    """
    power = 2 ** int(math.log2(n_head))
    slopes = [2 ** (-8 * i / power) for i in range(1, power + 1)]
    slopes += [2 ** (-4 * i / power) for i in range(1, 2 * (n_head - power), 2)]
    return torch.tensor(slopes)
