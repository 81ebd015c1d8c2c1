"""papers/lens.py: a model that is built to know the word, and ranks by the model's own logits."""
import csv
from dataclasses import replace

import numpy as np
import pytest
import torch
from small import make_model, make_tokenizer, make_units

from configurator import Refused
from files import write_json
from hub.tokenizer import TextTokenizer
from papers import lens
from speech.corpus import Corpus
from speech.words import write_words_shard

WORDS = ['b', 'c', 'd', 'e'] # each is one token of make_tokenizer
CFG = lens.Config(val_frac=0.9, documents=20)

def make_corpus(folder, n=20):
    """A units folder in which the unit 10 + i ends the word WORDS[i], and units below 10 do not end any."""
    rng = np.random.default_rng(0)
    documents, words = {}, []
    for i in range(n):
        spoken = rng.integers(0, len(WORDS), 6)
        units = [unit for word in spoken for unit in (int(rng.integers(0, 10)), 10 + int(word))]
        documents[f'd{i:02d}'] = ('', units)
        ends = np.cumsum([(1 + (k + i) % 3) * 640 for k in range(len(units))]) # as make_units has them
        words.append((f'd{i:02d}', [WORDS[word] for word in spoken], [0, *ends[1:-1:2]], ends[1::2]))
    make_units(folder, documents)
    write_words_shard(folder / 'words', 0, words)
    write_json(folder / 'words' / 'info.json', {'documents': n, 'words': 6 * n})
    return Corpus(folder, 'words')

@pytest.fixture
def corpus(tmp_path):
    make_tokenizer(tmp_path / 'tokenizer')
    return make_corpus(tmp_path / 'units')

def knowing_model(folder, tokenizer_folder):
    """A model whose layers add nothing, and in which the unit that ends a word has the word's row of the table."""
    model, vocab = make_model(folder, tokenizer_folder)
    tokenizer = TextTokenizer(tokenizer_folder)
    with torch.no_grad():
        for block in model.layers:
            block.out.weight.zero_()
            block.down.weight.zero_()
        model.embed.copy_(torch.nn.functional.normalize(torch.randn(model.embed.shape), dim=1))
        for i, word in enumerate(WORDS):
            model.embed[vocab.unit_offset + 10 + i] = model.embed[tokenizer.encode(word)[0]].clone()
        if model.head is not None:
            model.head.copy_(model.embed)
    model.save_pretrained(folder, vocab=vocab, tokenizer=tokenizer_folder)

def test_the_word_is_read_off_where_it_is_known(tmp_path, corpus):
    knowing_model(tmp_path / 'm', tmp_path / 'tokenizer')
    docs = lens.held_out(corpus, CFG.val_frac, CFG.documents)
    rows = lens.measure(str(tmp_path / 'm'), corpus, docs, CFG)
    assert [row['layer'] for row in rows] == [0, 1, 2]
    assert [row['word top-1'] for row in rows] == [1, 1, 1]
    for asked in ('next', 'control'): # each of 4 words comes as often
        assert all(0.1 < row[f'{asked} top-1'] < 0.45 for row in rows)

def test_the_last_layer_is_the_model_itself(tmp_path, corpus):
    model, vocab = make_model(tmp_path / 'm', tmp_path / 'tokenizer')
    tokens = vocab.unit_to_token(torch.arange(10))
    with torch.inference_mode():
        states = lens.layer_states(model, tokens)
        logits = model.logits(model(tokens[None])[0])[:, :vocab.n_text]
        targets = torch.arange(40, 50)
        rank = lens.ranks(model, states, targets, vocab.n_text)
    torch.testing.assert_close(states[-1], model(tokens[None])[0])
    order = logits.argsort(-1, descending=True)
    assert rank[-1].tolist() == [order[i].tolist().index(40 + i) for i in range(10)]

def test_words_end_at_their_last_unit(corpus):
    units, words, last = lens.words_of(corpus, 3)
    assert [WORDS[unit - 10] for unit in units[last]] == words

def test_the_command_draws_its_numbers(tmp_path, corpus, capsys):
    make_model(tmp_path / 'm', tmp_path / 'tokenizer')
    out = tmp_path / 'lens.png'
    lens.main(replace(CFG, models=str(tmp_path / 'm'), units=str(tmp_path / 'units'), out=str(out)))
    with open(out.with_suffix('.csv'), newline='') as f:
        rows = list(csv.DictReader(f))
    assert [row['layer'] for row in rows] == ['0', '1', '2']
    assert out.stat().st_size > 10_000
    assert 'words of' in capsys.readouterr().out

def test_what_has_no_text_or_other_units_is_refused(tmp_path, corpus):
    make_model(tmp_path / 'm', tmp_path / 'tokenizer', kind='speech')
    with pytest.raises(Refused, match="a speech vocabulary, expected a joint one"):
        lens.measure(str(tmp_path / 'm'), corpus, [0], CFG)
    make_model(tmp_path / 'j', tmp_path / 'tokenizer')
    corpus.units.info['units_hash'] = 'other'
    with pytest.raises(Refused, match="trained on other units"):
        lens.measure(str(tmp_path / 'j'), corpus, [0], CFG)
    with pytest.raises(Refused, match="no document of several words is held out"):
        lens.held_out(corpus, 0.0, 5)
