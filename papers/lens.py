"""
Where is the word? At which layer of a speech model the text token of a spoken word can be read off.

    python -m papers.lens --models=out/tiny,out/tiny-scratch --units=out/data/stories --out=out/lens.png

The logit lens (nostalgebraist, 2020) takes the hidden state behind each layer as if it were the last:
the model's final norm and head turn it into logits. Here the model reads a held-out document as units
alone, and is asked at the last unit of each word that another one follows (word times are those of
align.py, or exact) for the first text token of

    word       the word that ends there
    next       the word that follows: a language model's state is about what comes next
    control    the word of another place, drawn at random: what a state would reach that knows only
               how frequent words are

top-1 and top-10 are the shares for which fewer than 1, fewer than 10 text ids have a larger logit.
Ids of units and separators do not take part. A model needs a joint vocabulary; one trained on speech
alone keeps its TextLM's text ids with vocab='joint'. Layer 0 is the input of the first layer.

OUT.png is the figure, the .csv beside it has its numbers.
"""
from dataclasses import dataclass
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import torch
import torch.nn.functional as F

from configurator import Refused, run
from evaluation.likelihood import load
from files import progress
from interleave import is_val, unit_ranges
from scaling.figures import panels, save, style_of
from speech.corpus import Corpus, hash_ids

TOPS = (1, 10)
ASKED = {'word': '-', 'next': '--', 'control': ':'} # and how it is drawn
COLUMNS = ('model', 'layer', *(f'{asked} top-{top}' for asked in ASKED for top in TOPS), 'words')

@dataclass(frozen=True)
class Config:
    models: str = 'out/tiny' # model folders, separated by commas
    units: str = 'out/data/stories' # units folder with words
    val_frac: float = 0.03 # as in interleave.py: which documents are held out
    documents: int = 200 # held-out documents to read, at most
    seed: int = 0 # of the control's draws
    device: str = 'cpu' # 'cpu' or 'cuda'
    out: str = 'out/lens.png' # the figure

def held_out(corpus, val_frac, n):
    """Numbers of the first n documents that interleave.py holds out and that have two words or more."""
    chosen = np.flatnonzero(is_val(hash_ids(corpus.words.ids), val_frac))
    chosen = [int(i) for i in chosen if len(corpus.words[i][0]) > 1][:n]
    if not chosen:
        raise Refused(f"{corpus.folder}: no document of several words is held out at val_frac = {val_frac}; "
                      "take a larger one")
    return chosen

def words_of(corpus, doc):
    """-> units (U,), the words of a document, and the last run of units of each (W,)."""
    units, runs = corpus.units[doc]
    words, start, end = corpus.words[doc]
    whole = np.zeros(len(words), np.int64)
    _, stop = unit_ranges(runs, np.array([0, len(runs)]), corpus.units.info['hop'], whole, start, end)
    return units, words, stop - 1

def layer_states(model, tokens):
    """tokens (T,) -> hidden states before and behind each layer as the head reads them, (n_layer + 1, T, n_word)."""
    states = []
    handles = [model.layers[0].register_forward_pre_hook(lambda _, inputs: states.append(inputs[0]))]
    handles += [block.register_forward_hook(lambda _, __, output: states.append(output)) for block in model.layers]
    try:
        model(tokens[None])
    finally:
        for handle in handles:
            handle.remove()
    states = torch.cat(states) # (n_layer + 1, T, C)
    if model.norm is not None:
        states = model.norm(states)
    return states if model.word_out is None else model.word_out(states)

def ranks(model, states, targets, n_text):
    """states (L, W, n_word), text ids (W,) -> how many text ids have a larger logit, (L, W)."""
    logits = F.linear(states, model.head_weight[:n_text]).float() # a soft-cap would keep the order
    return (logits > logits.gather(-1, targets.expand(len(logits), -1)[..., None])).sum(-1)

@torch.inference_mode()
def measure(folder, corpus, docs, cfg):
    """Rows of COLUMNS for a model, a layer each."""
    model, vocab, tokenizer, _ = load(folder, cfg.device)
    if vocab.kind != 'joint':
        raise Refused(f"{folder}: a {vocab.kind} vocabulary, expected a joint one, which has both units and text; "
                      "train speech alone with --vocab=joint --sources=speech")
    if not vocab.speaks(corpus.units.info.get('units_hash'), corpus.units.info.get('encoder')):
        raise Refused(f"{folder}: trained on other units than those of {corpus.folder}; "
                      "give the --units of its training")
    documents = [words_of(corpus, doc) for doc in docs]
    first_token = {word: tokenizer.encode(word)[0] for _, words, _ in documents for word in words}
    word = torch.tensor([first_token[word] for _, words, _ in documents for word in words[:-1]], device=cfg.device)
    following = torch.tensor([first_token[word] for _, words, _ in documents for word in words[1:]], device=cfg.device)
    control = word[torch.randperm(len(word), generator=torch.Generator().manual_seed(cfg.seed))]
    hits = torch.zeros(len(ASKED), len(TOPS), model.cfg.n_layer + 1, device=cfg.device)
    done = 0
    for units, words, last in progress(documents, desc=folder, unit='document'):
        tokens = [*tokenizer.first, *vocab.unit_to_token(units).tolist()]
        states = layer_states(model, torch.tensor(tokens, device=cfg.device))
        states = states[:, torch.as_tensor(last[:-1] + len(tokenizer.first), device=cfg.device)]
        for i, targets in enumerate((word, following, control)):
            rank = ranks(model, states, targets[done:done + len(last) - 1], vocab.n_text)
            hits[i] += torch.stack([(rank < top).sum(1) for top in TOPS])
        done += len(last) - 1
    shares = (hits / done).flatten(0, 1).T.tolist()
    return [dict(zip(COLUMNS, (Path(folder).name, layer, *row, done))) for layer, row in enumerate(shares)]

def draw(rows, out):
    """The shares over depth, a line for each model and word that is asked for."""
    figure, axes = panels(len(TOPS))
    for i, name in enumerate(dict.fromkeys(row['model'] for row in rows)):
        of_model = [row for row in rows if row['model'] == name]
        depth = [row['layer'] / (len(of_model) - 1) for row in of_model]
        for axis, top in zip(axes, TOPS):
            for asked, line in ASKED.items():
                shares = [100 * row[f'{asked} top-{top}'] for row in of_model]
                label = f'{name}, {asked}' if asked != 'control' else None
                axis.plot(depth, shares, line, label=label, **style_of(i), markersize=3)
    for axis, top in zip(axes, TOPS):
        axis.set(ylabel=f'top-{top}, % of words', ylim=(0, None))
    axes[-1].set(xlabel='depth: layers passed, of all (dotted: control)')
    axes[0].set(title='text tokens read off at the end of a spoken word')
    axes[0].legend(frameon=False)
    save(figure, out, COLUMNS, [row.values() for row in rows])
    plt.close(figure)

def main(cfg):
    corpus = Corpus(cfg.units, 'words')
    docs = held_out(corpus, cfg.val_frac, cfg.documents)
    rows = [row for folder in cfg.models.split(',') for row in measure(folder, corpus, docs, cfg)]
    draw(rows, cfg.out)
    for row in rows:
        numbers = '  '.join(f'{row[name]:6.1%}' for name in COLUMNS[2:-1])
        print(f"{row['model']:20} layer {row['layer']:2}  {numbers}")
    print(f"{cfg.out}: {', '.join(COLUMNS[2:-1])} at the ends of {rows[0]['words']:,} words of {len(docs)} documents")

if __name__ == '__main__':
    run(main, Config)
