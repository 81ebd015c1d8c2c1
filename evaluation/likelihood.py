"""
Log-likelihoods of documents under a model: many documents in one forward pass, shared prefixes computed once.

A row of a forward pass holds groups of documents. The ids that all documents of a group begin with
stand once, at the front of the group; the rest of each document is a branch behind them:

    [prefix of a, b, c | rest of a | rest of b | rest of c] [prefix of d, e | rest of d | rest of e]

A token sees its branch and the prefix. hidden_span tells attention which tokens between the two it
does not see: none for a, the rest of a for b, the rests of a and b for c.
"""
import numpy as np
import torch

from configurator import Refused
from files import progress, sha256, visible
from hub.folders import local_folder, vocabulary
from model import GPT


def shared_prefixes(documents, row_tokens, min_prefix=8, max_group=64):
    """Groups sorted documents so that storing each group's common prefix once saves the most tokens.

    documents: sorted int arrays of at least 2 ids. -> [(first, last, n)]: documents[first:last] all
    begin with the same n ids; a document alone is (i, i + 1, 1). Dynamic programming over the
    sorted list. A group has at most max_group documents, a prefix at least min_prefix ids, and it
    fits one row.
    """
    # n_common[i]: the ids that documents i - 1 and i begin with, short of the last id of either.
    n_common = [0]
    for a, b in zip(documents, documents[1:]):
        limit = min(len(a), len(b)) - 1
        differing = np.flatnonzero(a[:limit] != b[:limit])
        n_common.append(int(differing[0]) if len(differing) else limit)
    # saved[i]: the most tokens that grouping the first i documents saves.
    # best_group[i]: the group that holds document i when the first i + 1 are grouped so.
    saved = [0]
    best_group = []
    for i, document in enumerate(documents):
        saved.append(saved[i])
        best_group.append((i, i + 1, 1))
        n = size = len(document)
        # Try the groups that end with document i, each one document longer than the last.
        for first in range(i - 1, max(i - max_group, -1), -1):
            n = min(n, n_common[first + 1])
            size += len(documents[first])
            if n < min_prefix or size - (i - first) * n > row_tokens:
                break
            candidate = saved[first] + (i - first) * n
            if candidate > saved[-1]:
                saved[-1] = candidate
                best_group[-1] = (first, i + 1, n)
    groups = []
    end = len(documents)
    while end:
        groups.append(best_group[end - 1])
        end = groups[-1][0]
    return groups[::-1]

def pack_groups(groups, documents):
    """Lays groups of shared_prefixes into one row of T tokens.

    -> int64 arrays tokens and doc_start (T,), hidden_span (T, 2), rows and targets (n,): the model's
    output at rows[i] predicts targets[i]. Last comes [(index of a document, the slice of the n losses
    that belongs to its prefix, the slice that belongs to its branch)].
    """
    tokens = []
    doc_start = []
    hidden_span = []
    rows = []
    targets = []
    spans = []
    offset = 0 # tokens so far
    n_losses = 0
    for first, last, n in groups:
        start = offset
        offset += n
        prefix = documents[first][:n]
        prefix_losses = slice(n_losses, n_losses + n - 1)
        n_losses += n - 1
        tokens.append(prefix)
        targets.append(prefix[1:])
        rows.append(np.arange(start, offset - 1))
        hidden_span.append(np.zeros((n, 2), np.int64))
        for i in range(first, last):
            branch = documents[i][n:]
            n_read = len(branch) - 1 # the last id is only a target
            hidden = (start + n, offset) if i > first else (0, 0)
            tokens.append(branch[:-1])
            targets.append(branch)
            # The prefix's last token predicts the first id of every branch.
            rows += [[start + n - 1], np.arange(offset, offset + n_read)]
            hidden_span.append(np.tile(hidden, (n_read, 1)))
            spans.append((i, prefix_losses, slice(n_losses, n_losses + len(branch))))
            offset += n_read
            n_losses += len(branch)
        doc_start.append(np.full(offset - start, start))
    parts = (tokens, doc_start, hidden_span, rows, targets)
    return *(np.concatenate(part).astype(np.int64) for part in parts), spans

def _key(document):
    """A document as bytes that sort in the order of its ids."""
    return np.asarray(document, '>i8').tobytes()

def _rows_of_groups(groups, documents, row_tokens):
    """Fills rows with groups in order; yields the groups of each row."""
    row = []
    n_tokens = 0
    for first, last, n in groups:
        size = n + sum(len(document) - n - 1 for document in documents[first:last])
        if row and n_tokens + size > row_tokens:
            yield row
            row = []
            n_tokens = 0
        row.append((first, last, n))
        n_tokens += size
    if row:
        yield row

@torch.inference_mode()
def document_losses(model, documents, row_tokens=2048):
    """For each array of n ids: float32 (n - 1,), -log p of ids 1..n-1.

    Equal documents, such as a right ending that two tasks share, are scored once, and so is a
    prefix that several documents share, such as the context of an item.
    """
    device = model.embed.device
    cfg = model.cfg
    losses = {_key(document): np.zeros(0, np.float32) for document in documents}
    keys = sorted(key for key in losses if len(key) > 8) # a single id (8 bytes) predicts nothing
    unique = [np.frombuffer(key, '>i8').astype(np.int64) for key in keys]
    if cfg.position == 'learned':
        row_tokens = min(row_tokens, cfg.n_positions) # places in a row count as positions
    # On a GPU, windows and ALiBi measure distances along the row, where a branch is far from its prefix.
    share = device.type == 'cpu' or not (cfg.window or cfg.position == 'alibi')
    groups = shared_prefixes(unique, row_tokens, max_group=64 if share else 1)
    for row in _rows_of_groups(progress(groups, desc='score', leave=False), unique, row_tokens):
        *arrays, spans = pack_groups(row, unique)
        tokens, doc_start, hidden_span, rows, targets = (torch.from_numpy(a).to(device) for a in arrays)
        hidden_span = hidden_span[None] if hidden_span.any() else None
        row_losses = model.losses(tokens[None], doc_start[None], targets, hidden_span, rows).cpu().numpy()
        for i, prefix, branch in spans:
            losses[keys[i]] = np.concatenate([row_losses[prefix], row_losses[branch]])
    return [losses[_key(document)] for document in documents]

def load(folder, device):
    """(model, vocab, tokenizer or None, {file: sha256}) of a model folder or an id of the hub.

    The folder is one that train.py wrote, a published model (slprl/*) or a TextLM.
    Raises Refused where the model has fewer embedding rows than the vocabulary has ids.
    """
    vocab, tokenizer = vocabulary(folder)
    model = GPT.from_pretrained(folder, device=device).eval()
    if model.cfg.vocab_size < vocab.size:
        raise Refused(f"{folder}: {model.cfg.vocab_size} embedding rows, its vocabulary has {vocab.size} ids; "
                      "are config.json and vocab.json of the same model?")
    hashes = {path.name: sha256(path) for path in visible(local_folder(folder), '*.safetensors')}
    return model, vocab, tokenizer, hashes
