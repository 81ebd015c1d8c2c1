"""
K-means: centroids of an encoder's features, read from safetensors or fitted.
"""
import math
import os

import torch
from safetensors import SafetensorError, safe_open
from torch import nn

from configurator import Refused
from files import check_readable
from speech.nets import kind_of
from speech.syllables import RATE_OF_SYLLABLES


def load_centroids(path):
    """A safetensors file that holds 'centroids' -> float32 (K, C). Raises Refused for anything else."""
    check_readable(path)
    try:
        with safe_open(path, 'pt') as f:
            centroids = f.get_tensor('centroids').float()
    except FileNotFoundError:
        raise Refused(f"{path}: no such k-means file; expected --kmeans=FILE.safetensors holding 'centroids'") from None
    except (SafetensorError, OSError) as e:
        raise Refused(f"{path}: expected safetensors holding 'centroids' ({e}); a pickled k-means is never read here, "
                      "convert it: python -m speech.convert --kmeans=FILE --out=FILE.safetensors") from None
    if centroids.dim() != 2 or not 1 <= len(centroids) <= 65535 or not centroids.isfinite().all():
        raise Refused(f"{path}: centroids of shape {tuple(centroids.shape)}, "
                      "expected (K, C) finite numbers, K up to 65535")
    return centroids

def load_segments(path, wanted='', rate=None):
    """What Encoder takes besides the centroids of a file fitted to segments: {'rate', 'labels'}; {} for frames.

    wanted: 'syllables' refuses frames, and segments at another `rate`, if one is given.
    """
    with safe_open(path, 'pt') as f:
        fields = {name: f.get_tensor(name) for name in ('rate', 'labels') if name in f.keys()}
    fitted = fields['rate'].item() if 'rate' in fields else None
    if wanted and (fitted is None or rate not in (None, fitted)):
        kind = f"segments at --rate={fitted:g}" if fitted else "frames"
        raise Refused(f"{path}: its centroids are of {kind}, asked for are segments at "
                      f"--rate={rate or RATE_OF_SYLLABLES:g}: fit others (--fit_kmeans=K --kmeans=NEW.safetensors)")
    return {'rate': fitted, 'labels': fields.get('labels')} if fitted else {}

@torch.inference_mode()
def merge(centroids, counts, K):
    """Ward's agglomerative clustering of centroids (n, C), nearest to counts (n,) rows -> labels (n,) in 0..K-1.

    Again and again the two clusters are joined by which the sum of squared distances to the clusters' means grows
    least: by |a - b|^2 times m_a m_b / (m_a + m_b), for means a, b of m_a and m_b rows. Memory: n x n numbers.
    """
    x = centroids.double()
    m = counts.double().clamp(min=1e-9)
    labels = torch.arange(len(x))
    growth = torch.cdist(x, x).square() * (m[:, None] * m / (m[:, None] + m))
    growth.fill_diagonal_(math.inf)
    for _ in range(len(x) - K):
        a, b = sorted(divmod(growth.argmin().item(), len(x)))
        x[a] = (x[a] * m[a] + x[b] * m[b]) / (m[a] + m[b])
        m[a] += m[b]
        labels[labels == b] = a
        row = (x - x[a]).square().sum(1) * (m * m[a] / (m + m[a]))
        row[torch.isinf(growth[a])] = math.inf # itself, and the clusters that are gone
        growth[a] = growth[:, a] = row
        growth[b] = growth[:, b] = math.inf
    return torch.unique(labels, return_inverse=True)[1]

def centroids_path(name, kmeans=None):
    """The k-means file for encoder `name`: `kmeans`, or kmeans.safetensors in the encoder's folder.

    None for Mimi, which has its own codebook; Refused if a k-means file is given for it.
    """
    kind, _ = kind_of(name)
    if kind != 'mimi':
        return kmeans or os.path.join(name, 'kmeans.safetensors')
    if kmeans:
        raise Refused(f"{name}: Mimi has its own codebook, --kmeans={kmeans} does not apply")
    return None

def assign(x, centroids, rows=16384):
    """x (n, C) -> the label (n,) of the nearest centroid and the squared distance (n,) to it.

    Works on `rows` rows at a time. |x - c|^2 = |x|^2 - 2 (x . c - |c|^2 / 2): the nearest centroid
    has the largest score in the brackets.
    """
    half_square = centroids.square().sum(1) / 2
    best = [(part @ centroids.T - half_square).max(1) for part in x.split(rows)]
    score = torch.cat([part.values for part in best])
    label = torch.cat([part.indices for part in best])
    return label, (x.square().sum(1) - 2 * score).clamp(min=0)

def _first_centroids(x, K, generator):
    """k-means++: K rows of x (n, C).

    The first row is drawn uniformly, each further one with a probability in proportion to its
    squared distance to the nearest row so far. Of 2 + ln K draws, the one that lowers the sum of
    these distances most is taken.
    """
    tries = 2 + int(math.log(K))
    square = x.square().sum(1)
    picked = torch.randint(len(x), (1,), generator=generator).to(x.device)
    distance = (square - 2 * x @ x[picked[0]] + square[picked[0]]).clamp(min=0)
    for _ in range(K - 1):
        total = distance.double().cumsum(0)
        draws = torch.rand(tries, generator=generator, dtype=torch.float64).to(x.device) * total[-1]
        rows = torch.searchsorted(total, draws).clamp(max=len(x) - 1)
        to_rows = (square[:, None] - 2 * x @ x[rows].T + square[rows]).clamp(min=0) # (n, tries)
        after = to_rows.minimum(distance[:, None])
        best = after.sum(0, dtype=torch.float64).argmin()
        distance = after[:, best]
        picked = torch.cat([picked, rows[best:best + 1]])
    return x[picked]

@torch.inference_mode()
def fit_kmeans(x, K, seed=0, iterations=100, tolerance=1e-4):
    """float32 x (n, C), n >= K -> centroids (K, C) and the mean squared distance to the nearest of them.

    k-means++ and Lloyd's algorithm on x's device, until the mean squared distance falls by less
    than `tolerance` of itself. Sums are products with 0/1 matrices, not atomic additions: the same
    seed on the same machine gives the same bits. A centroid that is nearest to no row is moved to
    the row that is farthest from its centroid.
    """
    mean = x.mean(0)
    x = x - mean # distances that are computed by products lose fewer digits around 0
    centroids = _first_centroids(x, K, torch.Generator().manual_seed(seed))
    previous = math.inf
    for _ in range(iterations):
        label, distance = assign(x, centroids)
        inertia = distance.mean(dtype=torch.float64).item()
        if previous - inertia <= tolerance * inertia:
            break
        previous = inertia
        sums = torch.zeros_like(centroids, dtype=torch.float64)
        counts = torch.zeros(K, device=x.device)
        for labels, rows in zip(label.split(16384), x.split(16384)):
            member = nn.functional.one_hot(labels, K).to(x.dtype) # (rows, K)
            sums = sums + member.T @ rows
            counts = counts + member.sum(0)
        centroids = (sums / counts.clamp(min=1)[:, None]).to(x.dtype)
        empty = counts == 0
        centroids[empty] = x[distance.topk(int(empty.sum())).indices]
    _, distance = assign(x, centroids)
    return centroids + mean, distance.mean(dtype=torch.float64).item()
