"""
Log-likelihoods of documents under a model: many documents in one forward pass, shared prefixes computed once.
"""
import numpy as np
import torch

from configurator import Refused
from files import progress, sha256
from hub.folders import local_folder, vocabulary
from model import GPT


def shared_prefixes(documents, row_tokens, least=8, most=64):
    """Sorted documents (int arrays of 2 ids and more) -> [(first, last, n)]: documents first..last-1 share their first n ids,
    and where those stand once for each group the fewest tokens are left of all. At most `most` share, at least `least` ids,
    in at most a row."""
    alike = [0] # of each document with the one before: ids, of which it keeps one for itself
    for a, b in zip(documents, documents[1:]):
        k = min(len(a), len(b)) - 1
        differ = np.flatnonzero(a[:k] != b[:k])
        alike.append(int(differ[0]) if len(differ) else k)
    saved, group = [0], [] # of the first i documents: tokens; the last group of the first i + 1
    for i, document in enumerate(documents):
        saved.append(saved[i])
        group.append((i, i + 1, 1))
        n = size = len(document)
        for j in range(i, max(i - most + 1, 0), -1): # might j - 1 .. i be one?
            n, size = min(n, alike[j]), size + len(documents[j - 1])
            if n < least or size - (i - j + 1) * n > row_tokens:
                break
            if saved[j - 1] + (i - j + 1) * n > saved[-1]:
                saved[-1], group[-1] = saved[j - 1] + (i - j + 1) * n, (j - 1, i + 1, n)
    found, i = [], len(documents)
    while i:
        found.append(group[i - 1])
        i = found[-1][0]
    return found[::-1]

def pack_groups(groups, documents):
    """Groups of `beginnings` in one row: tokens and doc_start (T,), gap (T, 2), the rows (n,) that losses follow and their
    targets (n,), and [(document, where its shared losses are, where its own)]."""
    tokens, starts, gaps, rows, targets, where, at, n = [], [], [], [], [], [], 0, 0
    for first, last, p in groups:
        start, shared = at, slice(n, n + p - 1)
        at, n = at + p, n + p - 1
        tokens.append(documents[first][:p])
        targets.append(documents[first][1:p])
        rows.append(np.arange(start, start + p - 1))
        gaps.append(np.zeros((p, 2), np.int64))
        for i in range(first, last):
            branch = documents[i][p:] # its last id is a target alone
            tokens.append(branch[:-1])
            targets.append(branch)
            rows += [[start + p - 1], np.arange(at, at + len(branch) - 1)]
            gaps.append(np.tile((start + p, at) if i > first else (0, 0), (len(branch) - 1, 1)))
            where.append((i, shared, slice(n, n + len(branch))))
            at, n = at + len(branch) - 1, n + len(branch)
        starts.append(np.full(at - start, start))
    return *(np.concatenate(x).astype(np.int64) for x in (tokens, starts, gaps, rows, targets)), where

@torch.inference_mode()
def document_losses(model, documents, row_tokens=2048):
    """For each array of n ids: float32 (n - 1,), -log p of ids 1..n-1.

    Many documents share a forward pass. Equal ones (an item's right ending stands in two tasks) are scored once, and what
    several begin with (an item's context) is there once, each one's rest a branch behind it.
    """
    device, cfg = model.embed.device, model.cfg
    key = lambda document: np.asarray(document, '>i8').tobytes() # in the order of the ids
    losses = {key(document): np.zeros(0, np.float32) for document in documents}
    keys = sorted(k for k in losses if len(k) > 8) # of one id nothing is predicted
    unique = [np.frombuffer(k, '>i8').astype(np.int64) for k in keys]
    if cfg.position == 'learned':
        row_tokens = min(row_tokens, cfg.n_positions) # a row is no longer than its positions
    apart = device.type != 'cpu' and (cfg.window or cfg.position == 'alibi') # which a mask counts along the row
    groups = shared_prefixes(unique, row_tokens, most=1 if apart else 64)
    size = lambda group: group[2] + sum(len(unique[i]) - group[2] - 1 for i in range(*group[:2]))
    def flush(row):
        *arrays, where = pack_groups(row, unique)
        tokens, starts, gap, rows, targets = (torch.from_numpy(a).to(device) for a in arrays)
        out = model.losses(tokens[None], starts[None], targets, gap[None] if gap.any() else None, rows).cpu().numpy()
        for i, shared, own in where:
            losses[keys[i]] = np.concatenate([out[shared], out[own]])
    row, held = [], 0
    for group in progress(groups, desc='score', leave=False):
        if row and held + size(group) > row_tokens:
            flush(row)
            row, held = [], 0
        row.append(group)
        held += size(group)
    if row:
        flush(row)
    return [losses[key(document)] for document in documents]

def load(folder, device):
    """(model, vocab, tokenizer or None, {file: sha256}) of a folder of train.py, of slprl/*, or of a TextLM."""
    vocab, tokenizer = vocabulary(folder)
    model = GPT.from_pretrained(folder, device=device).eval()
    if model.cfg.vocab_size < vocab.size:
        raise Refused(f"{folder}: {model.cfg.vocab_size} rows for a vocabulary of {vocab.size}")
    return model, vocab, tokenizer, {p.name: sha256(p) for p in sorted(local_folder(folder).glob('*.safetensors'))}
