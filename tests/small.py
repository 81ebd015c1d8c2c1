"""Small inputs that several tests share, made on the spot: a byte tokenizer, a units folder of items, a random model."""
import json
import os
import signal
import sys
from string import ascii_lowercase

import numpy as np
import torch

from files import write_json
from hub.families import GPTConfig
from hub.tokenizer import TextTokenizer
from model import GPT
from speech.audio import RATE
from speech.units import write_units_shard
from vocab import Vocab

K = 20 # units

def speech_like(seconds, seed, rate=RATE):
    """Noise and gliding harmonics that change every 80 ms: neighboring frames differ, silence comes too."""
    rng, n, step = np.random.default_rng(seed), round(seconds * rate), rate // 12
    out = []
    for _ in range(n // step + 1):
        t, f = np.arange(step) / rate, rng.uniform(80, 3000)
        tone = sum(np.sin(2 * np.pi * f * k * t + rng.uniform(0, 6)) / k for k in range(1, 4))
        out.append(rng.choice([0, .02, .3]) * tone + rng.choice([0.001, .1]) * rng.standard_normal(step))
    return np.concatenate(out)[:n].astype(np.float32)

def waves(*seconds):
    return [speech_like(s, i) for i, s in enumerate(seconds)]

def make_tokenizer(folder):
    """A byte-level tokenizer of 257 ids (every byte, and <|endoftext|>) -> TextTokenizer."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE({c: i for i, c in enumerate(alphabet)}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(['<|endoftext|>'])
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(folder / 'tokenizer.json'))
    (folder / 'tokenizer_config.json').write_text(json.dumps({'eos_token': '<|endoftext|>'}))
    return TextTokenizer(folder)

def make_units(folder, documents, units_hash='abc', hop=640):
    """documents: {id: (text, units)} -> a units folder with runs of 1..3 frames."""
    docs = []
    for i, (name, (text, units)) in enumerate(sorted(documents.items())):
        runs = 1 + (np.arange(len(units)) + i) % 3
        docs.append(({'id': name, 'path': None, 'seconds': float(runs.sum() * hop / 16000), 'speaker': None, 'text': text},
                     np.array(units), runs))
    write_units_shard(folder, 0, docs)
    write_json(folder / 'info.json', {'n_units': K, 'units_hash': units_hash, 'hop': hop, 'frame_hz': 16000 / hop,
                                      'documents': len(docs)})
    return folder

def make_items(folder, n=3, seed=0):
    """Items m00000.. of tasks/tiny.py with random units (no repeats, as after de-duplication)."""
    rng, documents = np.random.default_rng(seed), {}
    def units(length):
        return (np.cumsum(rng.integers(1, K, length)) % K).tolist()
    for i in range(n):
        context = units(9)
        documents[f'm{i:05d}/context'] = ('Tom saw a cat.', context)
        for which in ('right', 'wrong', 'topic'):
            ending = units(5 + i)
            documents[f'm{i:05d}/{which}'] = (f'It was {which} {i}.', ending)
            documents[f'm{i:05d}/context+{which}'] = (f'Tom saw a cat. It was {which} {i}.', context + ending)
    return make_units(folder, documents)

def make_model(folder, tokenizer_folder, kind='joint', seed=0):
    """A random 2-layer model in a folder as train.py leaves it -> (model, vocab)."""
    tokenizer = TextTokenizer(tokenizer_folder)
    vocab = {'joint': Vocab('joint', tokenizer.size, K, tokenizer.hash, 'abc'), 'speech': Vocab('speech', 0, K, '', 'abc'),
             'text': tokenizer.vocab}[kind]
    torch.manual_seed(seed)
    model = GPT(GPTConfig(vocab_size=vocab.size, n_layer=2, n_head=4, n_kv_head=2, n_embd=32, head_dim=8, n_ffn=48))
    model.save_pretrained(folder, vocab=vocab, tokenizer=tokenizer_folder)
    vocab.save(folder)
    return model.eval(), vocab

def make_whisper(folder):
    """A random Whisper that says a few tokens, then the end, and has all a folder of OpenAI's has."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import WhisperConfig, WhisperFeatureExtractor, WhisperForConditionalGeneration
    text = list(ascii_lowercase) + ['Ġ' + c for c in ascii_lowercase] + [','] # byte-level: Ġ is the space
    tokenizer = Tokenizer(models.BPE({c: i for i, c in enumerate(text)}, []))
    tokenizer.pre_tokenizer, tokenizer.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    tokenizer.add_special_tokens([f'<|{t}|>' for t in (
        'endoftext', 'startoftranscript', 'en', 'zh', 'translate', 'transcribe', 'startoflm', 'startofprev', 'nospeech', 'notimestamps')])
    tokenizer.save(str(folder / 'tokenizer.json'))
    end, size = len(text), tokenizer.get_vocab_size()
    torch.manual_seed(0)
    model = WhisperForConditionalGeneration(WhisperConfig(
        vocab_size=size, d_model=32, encoder_layers=2, decoder_layers=4, encoder_attention_heads=4, decoder_attention_heads=4,
        encoder_ffn_dim=32, decoder_ffn_dim=32, init_std=.4, pad_token_id=end, bos_token_id=end, eos_token_id=end,
        decoder_start_token_id=end + 1))
    with torch.no_grad():
        model.proj_out.weight[end] = .6 * torch.randn(32) # as padding it is zero
        model.model.decoder.embed_positions.weight[14:] = 60 * model.proj_out.weight[end] # ten tokens after the prompt: the end
    model.save_pretrained(folder)
    WhisperFeatureExtractor().save_pretrained(folder)
    (folder / 'generation_config.json').write_text(json.dumps({'alignment_heads': [[2, 1], [3, 0], [3, 2]], 'suppress_tokens': [12, 26]}))
    return folder

def killed(work, folder, moment=None):
    """Runs work() in a process of its own, ended by SIGKILL when it makes its moment-th change below folder.

    Changes are files opened to be written, names made, changed and removed. Returns how many there were (moment None).
    """
    counted, folder = os.path.join(os.path.dirname(folder), 'changes'), os.path.abspath(folder)
    if child := os.fork():
        ended = os.waitpid(child, 0)[1]
        assert ended == (0 if moment is None else signal.SIGKILL), f"ended with {ended}"
        return int(open(counted).read()) if moment is None else moment
    changes, code = [], 1
    def hook(event, args):
        writes = event in ('os.rename', 'os.mkdir', 'os.remove', 'os.rmdir') or event == 'open' and args[2] & (os.O_WRONLY | os.O_RDWR)
        if writes and os.path.abspath(str(args[0])).startswith(folder):
            if len(changes) == moment:
                os.kill(os.getpid(), signal.SIGKILL)
            changes.append(event)
    try:
        sys.addaudithook(hook)
        work()
        n = len(changes)
        with open(counted, 'w') as f:
            f.write(str(n))
        code = 0
    finally:
        os._exit(code)
