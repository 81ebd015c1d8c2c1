"""
Small inputs that many tests share. They have the formats of real data and models, but are made in a
moment when a test runs.

    speech_like, waves      audio: random sounds that change about as often as speech does
    make_tokenizer          a text tokenizer whose ids are the 256 bytes and <|endoftext|>
    make_units, make_items  a units folder, of given documents or of items of tasks/tiny.py
    make_model              a model folder as train.py leaves it, with random weights
    checkpoint_tensors      what a checkpoint of train.py holds
    make_whisper            a Whisper folder with random weights
    killed                  runs a function in a process that is killed at a given write to disk
    waiting_in              runs a function in a process that waits where it calls another function

All are deterministic. Encoders and vocoders are made in the tests of their modules.
"""
import json
import os
import signal
import sys
from contextlib import contextmanager
from string import ascii_lowercase

import numpy as np
import torch
from safetensors.torch import load_file

from files import write_json
from hub.families import GPTConfig
from hub.tokenizer import TextTokenizer
from model import GPT
from speech.audio import RATE
from speech.units import write_units_shard
from vocab import Vocab

K = 20 # units of every vocabulary and units folder here

# --------------------------------------------------------------------------------------------------
# audio

def speech_like(seconds, seed, rate=RATE):
    """Noise and three harmonics of a tone, float32 (seconds * rate,), of which all change 12 times a second.

    Neighboring frames differ, and some steps are nearly silent, as in speech.
    """
    rng = np.random.default_rng(seed)
    n = round(seconds * rate)
    step = rate // 12
    t = np.arange(step) / rate
    steps = []
    for _ in range(n // step + 1):
        f = rng.uniform(80, 3000)
        tone = sum(np.sin(2 * np.pi * f * k * t + rng.uniform(0, 6)) / k for k in range(1, 4))
        tone = rng.choice([0, .02, .3]) * tone
        noise = rng.choice([0.001, .1]) * rng.standard_normal(step)
        steps.append(tone + noise)
    return np.concatenate(steps)[:n].astype(np.float32)

def waves(*seconds):
    """A list of speech-like waves of the given lengths, each with a seed of its own."""
    return [speech_like(s, i) for i, s in enumerate(seconds)]

# --------------------------------------------------------------------------------------------------
# text and units

def byte_level(tokens):
    """A byte-level tokenizer of the tokenizers library, without merges; tokens: in the order of ids."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    tokenizer = Tokenizer(models.BPE({token: i for i, token in enumerate(tokens)}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer

def make_tokenizer(folder):
    """Writes a tokenizer of 257 ids (every byte, and <|endoftext|>) to folder -> TextTokenizer."""
    from tokenizers import pre_tokenizers
    tokenizer = byte_level(sorted(pre_tokenizers.ByteLevel.alphabet()))
    tokenizer.add_special_tokens(['<|endoftext|>'])
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(folder / 'tokenizer.json'))
    (folder / 'tokenizer_config.json').write_text(json.dumps({'eos_token': '<|endoftext|>'}))
    return TextTokenizer(folder)

def make_units(folder, documents, units_hash='abc', hop=640):
    """Writes a units folder of one shard, as tokenize_speech.py does -> folder.

    documents: {id: (text, units)}; each unit lasts 1, 2 or 3 frames of hop samples at 16 kHz.
    """
    docs = []
    for i, (name, (text, units)) in enumerate(sorted(documents.items())):
        runs = 1 + (np.arange(len(units)) + i) % 3
        seconds = float(runs.sum() * hop / 16000)
        info = {'id': name, 'path': None, 'seconds': seconds, 'speaker': None, 'text': text}
        docs.append((info, np.array(units), runs))
    write_units_shard(folder, 0, docs)
    write_json(folder / 'info.json', {
        'n_units': K,
        'units_hash': units_hash,
        'hop': hop,
        'frame_hz': 16000 / hop,
        'documents': len(docs)})
    return folder

def make_items(folder, n=3, seed=0):
    """Writes a units folder of the items m00000, m00001, ... of tasks/tiny.py -> folder.

    Units are random and never equal to the one before, as after de-duplication. The right, wrong and
    topic endings of item i have 5 + i units each.
    """
    rng = np.random.default_rng(seed)
    documents = {}
    def units(length):
        return (np.cumsum(rng.integers(1, K, length)) % K).tolist()
    for i in range(n):
        context = units(9)
        documents[f'm{i:05d}/context'] = ('Tom saw a cat.', context)
        for which in ('right', 'wrong', 'topic'):
            ending = units(5 + i)
            text = f'It was {which} {i}.'
            documents[f'm{i:05d}/{which}'] = (text, ending)
            documents[f'm{i:05d}/context+{which}'] = (f'Tom saw a cat. {text}', context + ending)
    return make_units(folder, documents)

# --------------------------------------------------------------------------------------------------
# models

def make_model(folder, tokenizer_folder, kind='joint', seed=0):
    """Writes a random 2-layer model to folder, as train.py leaves it -> (model, vocab).

    tokenizer_folder: as make_tokenizer writes it; kind: of the vocabulary, 'joint', 'speech' or 'text'.
    """
    tokenizer = TextTokenizer(tokenizer_folder)
    vocab = {'joint': Vocab('joint', tokenizer.size, K, tokenizer.hash, 'abc'),
             'speech': Vocab('speech', 0, K, '', 'abc'),
             'text': tokenizer.vocab}[kind]
    torch.manual_seed(seed)
    model = GPT(GPTConfig(
        vocab_size=vocab.size, n_layer=2, n_head=4, n_kv_head=2, n_embd=32, head_dim=8, n_ffn=48))
    model.save_pretrained(folder, vocab=vocab, tokenizer=tokenizer_folder)
    return model.eval(), vocab

def make_whisper(folder):
    """Writes a random Whisper to folder, with all files of OpenAI's folders -> folder.

    It transcribes any audio as a few tokens, and then ends.
    """
    from transformers import WhisperConfig, WhisperFeatureExtractor, WhisperForConditionalGeneration
    # A byte-level tokenizer writes a space as Ġ.
    characters = [*ascii_lowercase, *('Ġ' + letter for letter in ascii_lowercase), ',']
    special = ('endoftext', 'startoftranscript', 'en', 'zh', 'translate', 'transcribe',
               'startoflm', 'startofprev', 'nospeech', 'notimestamps')
    tokenizer = byte_level(characters)
    tokenizer.add_special_tokens([f'<|{token}|>' for token in special])
    tokenizer.save(str(folder / 'tokenizer.json'))
    end = len(characters) # the id of <|endoftext|>
    torch.manual_seed(0)
    model = WhisperForConditionalGeneration(WhisperConfig(
        vocab_size=tokenizer.get_vocab_size(),
        d_model=32,
        encoder_layers=2,
        decoder_layers=4,
        encoder_attention_heads=4,
        decoder_attention_heads=4,
        encoder_ffn_dim=32,
        decoder_ffn_dim=32,
        init_std=.4,
        pad_token_id=end,
        bos_token_id=end,
        eos_token_id=end,
        decoder_start_token_id=end + 1))
    with torch.no_grad():
        end_weight = model.proj_out.weight[end]
        end_weight.copy_(.6 * torch.randn(32)) # it is zero, since `end` is also the padding
        # From ten tokens after the prompt on, the position makes the end the likeliest token.
        model.model.decoder.embed_positions.weight[14:] = 60 * end_weight
    model.save_pretrained(folder)
    WhisperFeatureExtractor().save_pretrained(folder)
    generation_config = {'alignment_heads': [[2, 1], [3, 0], [3, 2]], 'suppress_tokens': [12, 26]}
    (folder / 'generation_config.json').write_text(json.dumps(generation_config))
    return folder

def checkpoint_tensors(folder):
    """{name: tensor} of a checkpoint: the rows of all its parts."""
    parts = [load_file(path) for path in sorted(folder.glob('part-*.safetensors'))]
    return {name: torch.cat([part[name] for part in parts]) for name in parts[0]}

# --------------------------------------------------------------------------------------------------
# crashes

def killed(work, folder, moment=None):
    """Runs work() in a child process and kills it (SIGKILL) just before a change below folder.

    Changes are files opened for writing, and files and folders that are made, renamed or removed;
    moment is the number of the change, from 0. With moment=None nothing is killed, and the number of
    changes is returned.
    """
    count_path = os.path.join(os.path.dirname(folder), 'changes')
    folder = os.path.abspath(folder)
    if child := os.fork():
        exit_code = os.waitpid(child, 0)[1]
        expected = 0 if moment is None else signal.SIGKILL
        assert exit_code == expected, f"ended with {exit_code}, expected {expected}"
        if moment is not None:
            return moment
        with open(count_path) as f:
            return int(f.read())

    n_changes = 0

    def hook(event, args):
        nonlocal n_changes
        is_write = event in ('os.rename', 'os.mkdir', 'os.remove', 'os.rmdir')
        if event == 'open':
            is_write = args[2] & (os.O_WRONLY | os.O_RDWR)
        if is_write and os.path.abspath(str(args[0])).startswith(folder):
            if n_changes == moment:
                os.kill(os.getpid(), signal.SIGKILL)
            n_changes += 1

    status = 1
    try:
        sys.addaudithook(hook)
        work()
        n = n_changes
        with open(count_path, 'w') as f: # lies outside folder
            f.write(str(n))
        status = 0
    finally:
        os._exit(status)

@contextmanager
def waiting_in(module, name, work):
    """Runs work() in a child process, which stops at its first call of module.NAME. Yields the child's pid and a
    function that lets it go on; in the end the child has gone on, and must have ended well or been killed."""
    at_call, child_at_call = os.pipe()
    child_may_go, may_go = os.pipe()
    child = os.fork()
    if not child:
        status = 1
        try:
            function = getattr(module, name)
            def wait_once(*args, **kwargs):
                setattr(module, name, function)
                os.write(child_at_call, b'.')
                os.read(child_may_go, 1)
                return function(*args, **kwargs)
            setattr(module, name, wait_once)
            work()
            status = 0
        finally:
            os._exit(status)
    os.close(child_at_call)
    assert os.read(at_call, 1), f"the child ended before it called {name}"
    try:
        yield child, lambda: os.write(may_go, b'.')
    finally:
        os.write(may_go, b'.')
        code = os.waitpid(child, 0)[1]
        for pipe in (at_call, child_may_go, may_go):
            os.close(pipe)
    assert code in (0, signal.SIGKILL), code
