"""Flat Mimi: random weights of the real class, from the wave to the ids of a model and back."""
from types import SimpleNamespace

import numpy as np
import pytest
import soundfile
import torch
from small import make_tokenizer, speech_like
from test_encoders import mimi  # noqa: F401
from test_tokenize_speech import config as tokenize_config
from test_tokenize_speech import corpus  # noqa: F401
from transformers import MimiModel

import eval as evaluate
import interleave
import sample
import tokenize_speech
from configurator import Refused
from data import Shards
from files import read_json, write_json
from hub.families import GPTConfig
from interleave import unit_ranges
from model import GPT
from speech.audio import RATE, resample
from speech.corpus import Batch
from speech.encoders import Encoder
from speech.unit_cache import load_encoder
from speech.units import Units
from speech.vocoder import load_vocoder, settled
from vocab import UNITS, Vocab, allowed_ids, codebook_order, prompt_ids, spans_of

SIZE = 128 # entries of a codebook of the small Mimi

def codes_of(folder, wave, n):
    """The codes (F, n) of whole frames, by transformers' encode of the whole wave, which has no cache."""
    model = MimiModel.from_pretrained(folder).eval()
    with torch.inference_mode():
        codes = model.encode(torch.from_numpy(wave)[None, None], num_quantizers=n).audio_codes[0]
    return codes.T.numpy()[:len(wave) // 1920]

def flat(codes):
    return codes + SIZE * np.arange(codes.shape[1])

@pytest.mark.parametrize('n', [1, 3, 4])
def test_flat_units_in_pieces_are_the_codes_of_the_whole_wave(mimi, n):  # noqa: F811
    wave = speech_like(6.03, 5, 24000) # longer than the attention's window of 20 frames
    expected = flat(codes_of(mimi, wave, n))
    whole = Encoder(mimi, 1, None, codebooks=n)
    pieces = Encoder(mimi, 1, None, window_s=.4, margin_s=.08, codebooks=n)
    assert (whole.n_units, whole.hop, whole.hash) == (n * SIZE, 1280, pieces.hash)
    assert expected.shape == (75, n) and len(np.unique(expected)) > 20
    for rows in (*whole.encode([wave]), *pieces.encode([wave]), pieces.encode_blocks(np.array_split(wave, 7))):
        assert np.array_equal(rows, expected)
    units, runs = whole.runs(expected)
    assert np.array_equal(units, expected.ravel()) and runs.sum() == 75
    assert np.array_equal(runs.reshape(75, n), np.eye(n, dtype=int)[np.zeros(75, int)])

def test_waves_have_the_same_flat_units_alone_and_together(mimi):  # noqa: F811
    encoder = Encoder(mimi, 1, None, window_s=1, margin_s=.1, codebooks=4)
    waves = [speech_like(s, i, 24000) for i, s in enumerate((.09, 1, 2.34, .5))]
    for wave, rows in zip(waves, encoder.encode(waves)):
        assert np.array_equal(rows, encoder.encode([wave])[0]) and len(rows) == len(wave) // 1920

def test_what_mimi_cannot_do_is_refused_in_one_line(mimi):  # noqa: F811
    with pytest.raises(Refused, match='codebooks is 5; it has 4 of 128 entries, expected 1 to 4'):
        Encoder(mimi, 1, None, codebooks=5)
    with pytest.raises(Refused, match='codebooks is -1; it has 4'):
        Encoder(mimi, 1, None, codebooks=-1)
    with pytest.raises(Refused, match='it is a hubert encoder, which has one unit a frame'):
        Encoder('tiny/hubert', 4, torch.zeros(500, 256), codebooks=2)
    hashes = {Encoder(mimi, 1, None, codebooks=n).hash for n in range(5)}
    assert len(hashes) == 5 # that of n = 0 is the de-duplicated first codebook
    with pytest.raises(Refused, match='the model was trained on'): # a model of 3 codebooks, and one of HuBERT
        load_encoder(mimi, 1, None, 'cpu', Vocab('speech', n_units=3 * SIZE, units='other', codebooks=3))
    with pytest.raises(Refused, match='3 flat codebooks of a Mimi'):
        load_encoder('tiny/hubert', 4, None, 'cpu', Vocab('speech', n_units=3 * SIZE, units='x', codebooks=3))
    with pytest.raises(Refused, match='a hubert model; flat units of 2 codebooks are spoken by'):
        load_vocoder('tiny/hubert', 2)

def test_supervised_tokenizers_are_refused_by_what_is_missing(tmp_path):
    config = {'model_type': 'whisper', 'architectures': ['WhisperVQEncoder'], 'quantize_vocab_size': 16384,
              'pooling_kernel_size': 4, 'quantize_position': 16}
    write_json(tmp_path / 'glm' / 'config.json', config)
    (tmp_path / 'cosyvoice').mkdir()
    (tmp_path / 'cosyvoice' / 'speech_tokenizer_v2.onnx').write_bytes(b'x')
    for path, words in (('glm', 'a WhisperVQEncoder, .*transformers has no such class'),
                        ('cosyvoice', 'speech_tokenizer_v2.onnx is an ONNX graph, .*by onnxruntime'),
                        ('cosyvoice/speech_tokenizer_v2.onnx', 'is an ONNX graph')):
        with pytest.raises(Refused, match=words) as e:
            Encoder(str(tmp_path / path), 4, torch.zeros(1, 8))
        assert '\n' not in str(e.value)

# --------------------------------------------------------------------------------------------------
# vocabulary, generation

def test_a_flat_vocabulary_knows_its_codebooks_and_others_keep_their_files():
    vocab = Vocab('joint', 10, 12, 't', 'u', codebooks=3)
    assert vocab.codebook(np.arange(vocab.size)).tolist() == [-1] * 10 + [0] * 4 + [1] * 4 + [2] * 4 + [-1] * 2
    assert Vocab(**vocab.as_dict()) == vocab and vocab.hash() != Vocab('joint', 10, 12, 't', 'u').hash()
    assert 'codebooks' not in Vocab('joint', 10, 12, 't', 'u').as_dict()
    assert codebook_order(Vocab('speech', n_units=4)) == {}
    assert not Vocab('speech', n_units=12, codebooks=3).accepts(Vocab('speech', n_units=12))
    for fields in ({'codebooks': 5}, {'codebooks': -1}, {'codebooks': 1.0}):
        with pytest.raises(Refused, match='a divisor of the number of units'):
            Vocab('speech', n_units=12, **fields)

@pytest.mark.parametrize('kind, output', [('speech', 'speech'), ('joint', 'speech'), ('joint', 'free')])
@pytest.mark.parametrize('temperature, top_k', [(0, None), (1e4, None), (1e4, 5)])
def test_generated_ids_keep_the_order_of_the_codebooks(kind, output, temperature, top_k, tmp_path):
    tokenizer = make_tokenizer(tmp_path)
    n_text = {'speech': 0, 'joint': tokenizer.size}[kind]
    vocab = Vocab(kind, n_text, 12, tokenizer.hash if n_text else '', codebooks=3)
    torch.manual_seed(1)
    model = GPT(GPTConfig(vocab_size=vocab.size + 5, n_layer=1, n_head=2, n_kv_head=1, head_dim=8, n_embd=16,
                          n_ffn=16, n_positions=200)).eval() # with more rows than ids
    frames = np.array([[0, 5, 9], [3, 4, 8]])
    prompts = [prompt_ids([{'kind': UNITS, 'units': frames[:i].ravel()}], output, vocab, tokenizer) for i in (1, 2, 2)]
    allowed, stop = allowed_ids(vocab, tokenizer, output)
    allowed[list(stop)] = False
    new = model.generate(prompts, 60, temperature, top_k, 1.3, allowed, stop, torch.Generator().manual_seed(0),
                         **codebook_order(vocab))
    assert all(len(tokens) == 60 for tokens in new)
    used = set()
    for tokens in new:
        tokens = np.minimum(tokens, vocab.size - 1) # rows behind the vocabulary are no units
        due = 0
        for codebook in vocab.codebook(tokens).tolist():
            assert codebook == due or codebook == -1 and due == 0
            due = (codebook + 1) % 3
            used.add(codebook)
        spans = spans_of(tokens.tolist(), vocab, tokenizer)
        for span in spans:
            if span['kind'] == UNITS:
                assert (np.reshape(span['units'], (-1, 3)) // 4 == [0, 1, 2]).all()
    if output == 'speech' or temperature and not top_k:
        assert used == ({0, 1, 2} if output == 'speech' else {-1, 0, 1, 2})

def test_a_frame_that_was_cut_off_is_no_part_of_a_span():
    vocab = Vocab('speech', n_units=12, codebooks=3)
    assert spans_of([2, 6, 10, 3, 7], vocab, None) == [{'kind': UNITS, 'units': [0, 4, 8]}]
    assert spans_of([2, 6], vocab, None) == []

# --------------------------------------------------------------------------------------------------
# folders

def test_spans_are_cut_between_frames():
    rng = np.random.default_rng(0)
    for n in (1, 2, 5):
        frames = rng.integers(1, 9, 20) # of 20 documents
        offsets = np.concatenate([[0], np.cumsum(n * frames)])
        doc = rng.integers(0, 20, 500)
        start = rng.integers(0, 100, 500) * frames[doc] // 100 * 10 + rng.integers(0, 10, 500)
        end = start + rng.integers(0, 50, 500)
        by_frame = np.concatenate([[0], np.cumsum(frames)])
        i, j = unit_ranges(np.ones(frames.sum(), int), by_frame, 10, doc, start, end)
        runs = np.tile(np.arange(n) == 0, frames.sum())
        flat_i, flat_j = unit_ranges(runs, offsets, 10, doc, start, end, n)
        assert np.array_equal(flat_i, n * i) and np.array_equal(flat_j, n * j)

def test_interleaved_spans_hold_whole_frames(tmp_path):
    """Two documents of words: behind <speech> the codebooks come in turn until the next separator."""
    tokenizer = make_tokenizer(tmp_path)
    vocab = Vocab('joint', tokenizer.size, 12, tokenizer.hash, codebooks=3)
    frames = np.array([40, 25])
    rng = np.random.default_rng(0)
    units = (rng.integers(0, 4, (65, 3)) + [0, 4, 8]).ravel()
    runs = np.tile([1, 0, 0], 65)
    starts = np.concatenate([np.linspace(0, n * 1280 - 1500, 8).astype(int) for n in frames])
    batch = Batch(units, runs, np.array([0, 120, 195]), np.zeros(16, int), starts, starts + 1400,
                  np.array([0, 8, 16]), np.zeros(2, bool))
    table = SimpleNamespace(tokens=np.array([65]), first=np.array([0]), count=np.array([1]), strings=['A'])
    spoken = interleave.spoken_words(interleave.draw_keys(np.arange(2, dtype=np.uint64), 0, 0), batch.n_words)
    tokens, lengths = interleave.interleaved_documents(batch, spoken, table, tokenizer, vocab, 1280)
    assert lengths.sum() == len(tokens) and spoken.any() and not spoken.all()
    codebooks = vocab.codebook(tokens.astype(np.int64))
    spans = ''.join('s' if codebook < 0 else str(codebook) for codebook in codebooks).split('s')
    spans = [span for span in spans if span]
    assert spans and all(span == '012' * (len(span) // 3) for span in spans)

@pytest.fixture
def units(corpus, mimi, tmp_path):  # noqa: F811
    out = tmp_path / 'units'
    tokenize_speech.main(tokenize_config(corpus, mimi, out, codebooks=4))
    return out

def test_a_flat_folder_says_so_and_is_checked(units, mimi):  # noqa: F811
    u = Units(units)
    assert (u.info['codebooks'], u.info['n_units'], u.info['frame_hz']) == (4, 4 * SIZE, 12.5)
    assert u.info['units_hash'] == Encoder(mimi, 1, None, codebooks=4).hash
    ids, runs = u[0]
    assert len(ids) == 4 * runs.sum() == 4 * int(u.meta[0]['seconds'] * 12.5)
    path = units / '00000' / 'units.npy'
    before = path.read_bytes()
    array = np.load(path)
    array[[0, 1]] = array[[1, 0]]
    np.save(path, array)
    with pytest.raises(Refused, match='not whole frames of 4 codebooks in turn'):
        Units(units)
    path.write_bytes(before)

def test_tokens_of_flat_units_know_the_codebooks(units, tmp_path):
    make_tokenizer(tmp_path / 'tokenizer')
    interleave.main(interleave.Config(units=str(units), tokenizer=str(tmp_path / 'tokenizer'), val_frac=0,
                                      out=str(tmp_path / 'tokens'), sources=('speech', 'textless')))
    for source in ('speech', 'textless'):
        shards = Shards(tmp_path / 'tokens' / 'train' / source)
        assert shards.vocab.codebooks == 4
        codebooks = shards.vocab.codebook(shards.read(0).astype(np.int64))
        codebooks = codebooks[codebooks >= 0]
        assert np.array_equal(codebooks, np.arange(len(codebooks)) % 4) and len(codebooks) == len(Units(units)[0][0])

def test_mimi_speaks_its_own_units(mimi):  # noqa: F811
    vocoder = load_vocoder(mimi, 4)
    wave = speech_like(2, 5, 24000)
    codes = codes_of(mimi, wave, 4)
    units = flat(codes).ravel()
    with torch.inference_mode():
        model = MimiModel.from_pretrained(mimi).eval()
        expected = model.decode(torch.from_numpy(codes.T.copy())[None]).audio_values[0, 0].numpy()
    spoken, empty = vocoder.speak([units, units[:0]], units_hash=Encoder(mimi, 1, None, codebooks=4).hash)
    assert np.array_equal(spoken, resample(expected, 24000, RATE)) and spoken.std() > 0 and not len(empty)
    assert len(spoken) == len(units) * vocoder.hop == 25 * 1280
    n = settled(vocoder, units[:40])
    [longer], [shorter] = (vocoder.speak([part]) for part in (units, units[:40]))
    assert 40 * vocoder.hop - 3200 < n < len(shorter) and np.abs(longer[:n] - shorter[:n]).max() < 1e-4 * spoken.std()
    for wrong in (units[:-1], units[::-1]):
        with pytest.raises(Refused, match='whole frames of 4 codebooks in turn'):
            vocoder.speak([wrong])
    with pytest.raises(Refused, match='made for units'):
        vocoder.speak([units], units_hash=Encoder(mimi, 1, None, codebooks=3).hash)

# --------------------------------------------------------------------------------------------------
# the stages

def flat_model(folder, tokenizer_folder, units_hash):
    """A random joint model of 4 codebooks, as train.py leaves it."""
    tokenizer = make_tokenizer(tokenizer_folder)
    vocab = Vocab('joint', tokenizer.size, 4 * SIZE, tokenizer.hash, units_hash, codebooks=4)
    torch.manual_seed(0)
    model = GPT(GPTConfig(vocab_size=vocab.size, n_layer=1, n_head=2, n_kv_head=1, head_dim=8, n_embd=16, n_ffn=16,
                          n_positions=2000))
    model.save_pretrained(folder, vocab=vocab, tokenizer=tokenizer_folder)
    return folder

@pytest.mark.slow
def test_a_model_of_flat_units_samples_and_is_measured_by_its_vocabulary_alone(mimi, tmp_path):  # noqa: F811
    """No setting of sample.py or eval.py names the codebooks: vocab.json does."""
    encoder = Encoder(mimi, 1, None, codebooks=4)
    model = str(flat_model(tmp_path / 'model', tmp_path / 'tokenizer', encoder.hash))
    settings = {'model': model, 'encoder': str(mimi), 'device': 'cpu'}
    out = tmp_path / 'samples'
    sample.main(sample.Config(prompt='tiny/audio/m00000.context.flac', output='speech', max_new_tokens=42, seconds=1.0,
                              vocoder=str(mimi), out=str(out), temperature=1.0, **settings))
    [line] = read_json(out, 'samples.json', 'sample.py')['samples']
    [prompt], [span] = line['prompt'], line['spans']
    assert len(prompt['units']) == 4 * 12 and sum(prompt['runs']) == 12
    assert len(span['units']) == 40 and (np.reshape(span['units'], (10, 4)) // SIZE == range(4)).all()
    wave, rate = soundfile.read(out / '000.wav')
    assert (len(wave), rate) == (10 * 1280, RATE) and span['seconds'] == .8
    evaluate.main(evaluate.Config(tasks='acoustic', where='acoustic=tiny/audio', data='', items='', directions=('S',),
                                  cache=str(tmp_path / 'cache'), **settings))
    rows = read_json(model, 'eval.json', 'eval.py')['results']
    assert set(rows) == {f'acoustic/{part}/S' for part in ('speaker', 'gender', 'room')}
    with pytest.raises(Refused, match='4 flat codebooks of a Mimi'):
        sample.main(sample.Config(prompt='tiny/audio/m00000.context.flac', model=model, encoder='tiny/hubert',
                                  vocoder=str(mimi), out=str(tmp_path / 'b'), device='cpu'))
