"""
Frames of speech -> segments about as long as syllables, at a given rate a second.

As SylBoost has it (Baade et al., 2024, SyllableLM, after Peng et al., 2023): frames are the nodes of
a graph, and a segmentation is good where frames of a segment resemble each other more than those
around it. With W the similarity of frames less than a window apart, the segments S of N frames, K in
number and none longer than the window, minimize the sum of normalized cuts

    ncut(S) = 1 - W(S, S) / W(S, all),   W(A, B) = sum of W_ij over i in A, j in B

W_ij is the cosine of what frames i and j have beyond the mean frame, 0 where it is negative. The
minimum is exact: dynamic programming over the number of segments and where the last one ends.
"""
import numpy as np

from configurator import Refused

RATE_OF_SYLLABLES = 6.25 # a second
LONGEST = 0.5 # seconds of a segment, and how far apart frames are compared

def similarities(x, window):
    """Frames x (F, C) -> W (F, window) in float64: W[i, d] is the similarity of frames i and i - d, 0 where i < d."""
    x = np.asarray(x, np.float64)
    x = x - x.mean(0)
    x /= np.maximum(np.linalg.norm(x, axis=1, keepdims=True), 1e-9)
    W = np.zeros((len(x), window))
    for d in range(min(window, len(x))):
        W[d:, d] = (x[d:] * x[:len(x) - d]).sum(1)
    W[:, 0] = 1 # also of a frame that is the mean
    return np.maximum(W, 0)

def cut_costs(W):
    """W of similarities -> (F + 1, window + 1): ncut of the segment of l frames that ends before frame e.

    It is infinite where there is no such segment.
    """
    F, window = W.shape
    within = np.cumsum(W, axis=1) # (F, d): of frame i with frames i - d..i
    degree = within[:, -1].copy()
    for d in range(1, min(window, F)):
        degree[:F - d] += W[d:, d]
    total = np.concatenate([[0], np.cumsum(degree)])
    inner = np.zeros(F + 1) # W(S, S) of the segments of l frames, by their end
    costs = np.full((F + 1, window + 1), np.inf)
    for length in range(1, min(window, F) + 1):
        longer = np.zeros(F + 1)
        longer[length:] = inner[length - 1:-1] + 2 * within[length - 1:, length - 1] - 1
        inner = longer
        costs[length:, length] = 1 - inner[length:] / (total[length:] - total[:F + 1 - length])
    return costs

def best_cut(costs, K):
    """costs of cut_costs -> the K segments of least cost, as where each ends (K,); the last is F."""
    F = len(costs) - 1
    window = costs.shape[1] - 1
    by_length = costs[:, :0:-1] # (F + 1, window), from the longest to one frame
    least = np.full(F + 1 + window, np.inf) # of the first k segments, by their end, behind `window` infinities
    least[window] = 0
    lengths = np.zeros((K, F + 1), np.int32) # of the last of k + 1 segments
    for k in range(K):
        before = np.lib.stride_tricks.sliding_window_view(least, window)[:F + 1] # those that end window..1 earlier
        sums = before + by_length
        choice = sums.argmin(1)
        least[window:] = sums[np.arange(F + 1), choice]
        lengths[k] = window - choice
    ends = np.zeros(K, np.int64)
    end = F
    for k in range(K - 1, -1, -1):
        ends[k] = end
        end -= lengths[k, end]
    return ends

def refuse_rate(rate, frame_hz):
    """Raises Refused for a number of segments a second that frames of this rate cannot have."""
    lowest = 1 / LONGEST
    if not lowest <= rate <= frame_hz:
        raise Refused(f"rate is {rate:g} segments a second: the encoder has {frame_hz:g} frames a second, and a "
                      f"segment is at most {LONGEST:g} s long; expected {lowest:g} to {frame_hz:g}")

def segment(x, K, window):
    """Frames x (F, C) -> the lengths (K',) of the segments in frames.

    K' is K, or as near to it as F frames in segments of 1 to `window` frames allow.
    """
    K = min(max(K, -(-len(x) // window)), len(x))
    ends = best_cut(cut_costs(similarities(x, window)), K)
    return np.diff(ends, prepend=0)

def means(x, lengths):
    """Frames x (F, C), lengths (K,) of segments -> the mean frame of each, float32 (K, C)."""
    starts = np.cumsum(lengths) - lengths
    return (np.add.reduceat(np.asarray(x, np.float64), starts) / lengths[:, None]).astype(np.float32)
