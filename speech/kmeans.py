"""
K-means: centroids of an encoder's features, read from safetensors or fitted.
"""
import math
import os

import torch
from safetensors import SafetensorError, safe_open
from torch import nn

from configurator import Refused
from speech.encoders import kind_of


def load_centroids(path):
    """safetensors {"centroids"} -> float32 (K, C)."""
    try:
        with safe_open(path, 'pt') as f:
            c = f.get_tensor('centroids').float()
    except FileNotFoundError:
        raise Refused(f"{path}: no such k-means file; expected --kmeans=FILE.safetensors holding 'centroids'") from None
    except (SafetensorError, OSError) as e:
        raise Refused(f"{path}: expected safetensors holding 'centroids' ({e}); a pickled k-means is never read here: "
                      "python -m speech.convert --kmeans=FILE --out=FILE.safetensors") from None
    if c.dim() != 2 or not 1 <= len(c) <= 65535 or not c.isfinite().all():
        raise Refused(f"{path}: centroids of shape {tuple(c.shape)}, expected (K, C) finite numbers, K up to 65535")
    return c

def centroids_path(name, kmeans=None):
    """The k-means file of an encoder: the one given, or kmeans.safetensors in its folder; None for Mimi, which has its own."""
    if kind_of(name)[0] == 'mimi':
        if kmeans:
            raise Refused(f"{name}: Mimi has its own codebook, --kmeans={kmeans} does not apply")
        return None
    return kmeans or os.path.join(name, 'kmeans.safetensors')

def _assign(x, centroids, rows=16384):
    """x (n, C) -> the nearest centroid's number and the squared distance to it, for so many rows at a time."""
    half = centroids.square().sum(1) / 2
    best = [(part @ centroids.T - half).max(1) for part in x.split(rows)]
    score, label = torch.cat([b.values for b in best]), torch.cat([b.indices for b in best])
    return label, (x.square().sum(1) - 2 * score).clamp(min=0)

def _first_centroids(x, K, generator):
    """k-means++: each next centroid is a row drawn by its squared distance to the nearest so far; the best of a few draws."""
    tries, square = 2 + int(math.log(K)), x.square().sum(1)
    picked = torch.randint(len(x), (1,), generator=generator).to(x.device)
    distance = (square - 2 * x @ x[picked[0]] + square[picked[0]]).clamp(min=0)
    for _ in range(K - 1):
        total = distance.double().cumsum(0)
        draws = torch.rand(tries, generator=generator, dtype=torch.float64).to(x.device) * total[-1]
        rows = torch.searchsorted(total, draws).clamp(max=len(x) - 1)
        after = (square[:, None] - 2 * x @ x[rows].T + square[rows]).clamp(min=0).minimum(distance[:, None]) # (n, tries)
        best = after.sum(0, dtype=torch.float64).argmin()
        distance, picked = after[:, best], torch.cat([picked, rows[best:best + 1]])
    return x[picked]

@torch.inference_mode()
def fit_kmeans(x, K, seed=0, iterations=100, tolerance=1e-4):
    """float32 x (n, C), n >= K -> centroids (K, C) and the mean squared distance to the nearest of them.

    k-means++ and Lloyd's algorithm on x's device until the distance falls by less than `tolerance` of itself. Sums are
    products with 0/1 matrices, not atomics: the same seed on the same machine repeats its bits. A centroid that is nobody's
    nearest is moved to the row that is furthest from its own.
    """
    centre = x.mean(0)
    x = x - centre # distances by products lose fewer digits
    centroids, before = _first_centroids(x, K, torch.Generator().manual_seed(seed)), math.inf
    for _ in range(iterations):
        label, distance = _assign(x, centroids)
        inertia = distance.mean(dtype=torch.float64).item()
        if before - inertia <= tolerance * inertia:
            break
        before = inertia
        sums, counts = torch.zeros_like(centroids, dtype=torch.float64), torch.zeros(K, device=x.device)
        for part, rows in zip(label.split(16384), x.split(16384)):
            member = nn.functional.one_hot(part, K).to(x.dtype) # (rows, K)
            sums, counts = sums + member.T @ rows, counts + member.sum(0)
        empty = counts == 0
        centroids = (sums / counts.clamp(min=1)[:, None]).to(x.dtype)
        centroids[empty] = x[distance.topk(int(empty.sum())).indices]
    return centroids + centre, _assign(x, centroids)[1].mean(dtype=torch.float64).item()
