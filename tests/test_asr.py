"""speech/whisper.py on a small random Whisper: texts beside transformers', words and their times, what is refused; a real one if there."""
import json
import os
import re
from difflib import SequenceMatcher
from pathlib import Path

import numpy as np
import pytest
import torch
from small import make_whisper, speech_like, waves
from transformers import HubertConfig, HubertModel, WhisperForConditionalGeneration

from configurator import Refused
from speech import whisper as asr
from speech.audio import RATE, load_audio
from speech.ctc import cuts
from speech.whisper import Whisper, spell

LIBRISPEECH = Path(__file__).parent.parent.parent / 'shared/data/librispeech_mini'
WHISPER = Path(os.environ.get('ASSETS', 'assets')) / 'whisper-base' # as tiny/build/build.sh has it

@pytest.fixture(scope='module')
def whisper(tmp_path_factory):
    return make_whisper(tmp_path_factory.mktemp('whisper'))

# ----------------------------------------------------------------------------------------------------------------
# text

@pytest.mark.parametrize('language', ['zh', ''])
def test_texts_are_those_of_transformers_generate_and_the_same_alone_and_together(whisper, language):
    model, x = Whisper(whisper, language=language), waves(2, 7.3, 12, .3, 29)
    theirs = WhisperForConditionalGeneration.from_pretrained(whisper)
    specials = range(model.end + 1, theirs.config.vocab_size)
    languages, task = {f'<|{code}|>': i for code, i in model.languages.items()}, model.task
    vars(theirs.generation_config).update(
        is_multilingual=True, lang_to_id=languages, task_to_id={'transcribe': task[0]}, no_timestamps_token_id=task[1],
        suppress_tokens=[*model.suppressed, *specials], decoder_start_token_id=model.start, eos_token_id=model.end,
        pad_token_id=model.end)
    expected = []
    for wave in x:
        features = model.features(wave, sampling_rate=RATE, return_tensors='pt').input_features
        ids = theirs.generate(features, max_new_tokens=200, do_sample=False, task='transcribe', language=language or None)[0]
        expected.append(model.tokenizer.decode(ids.tolist()).strip())
    assert model.transcribe(x) == expected and all(expected) and len(set(expected)) > 2
    assert [model.transcribe([wave])[0] for wave in x] == expected

def test_long_audio_is_heard_piece_by_piece_and_of_next_to_nothing_no_word_is_made(whisper):
    model, [wave] = Whisper(whisper, language='en'), waves(70)
    pieces = [wave[first:last] for first, last in cuts(wave, model.hop)]
    text, empty, short = model.transcribe([wave, wave[:0], wave[:1599]])
    assert len(pieces) > 2 and text == ' '.join(model.transcribe(pieces)) and empty == short == ''

# ----------------------------------------------------------------------------------------------------------------
# words and times

@pytest.mark.parametrize('pieces, spaceless, expected', [
    ([' There', "'s", ' iron', ',', ' they', ' say', '.'], False,
     [(" There's", 0, 2), (' iron,', 2, 3), (' they', 4, 5), (' say.', 5, 6)]), # a sign's time is not the word's
    ([' well', '-', 'known'], False, [(' well-known', 0, 3)]),
    ([' -', ' so', ' --', ' what'], False, [(' - so --', 0, 2), (' what', 3, 4)]),
    (['東', '京', '。'], True, [('東', 0, 1), ('京。', 1, 2)]),
    (['...'], False, []), ([], False, []),
])
def test_words_of_whispers_tokens(pieces, spaceless, expected):
    assert spell(pieces, spaceless) == expected

def test_words_are_the_same_alone_and_together_and_stay_in_their_audio(whisper):
    model, x = Whisper(whisper, language='en'), waves(2, 7.3, 40, .3, 12)
    together, alone = model.align(x), [model.align([w])[0] for w in x]
    assert together == alone
    assert any(words for words, *_ in together)
    for (words, starts, ends, reason), wave in zip(together, x):
        edges = np.stack([starts, ends], 1).ravel()
        assert len(words) == len(starts) == len(ends) and (np.diff(edges) >= 0).all() and reason in ('', 'TOO_MANY_WORDS')
        assert not len(edges) or 0 <= edges[0] <= edges[-1] <= len(wave)
        assert 'm' not in ''.join(words) and ' a' not in ''.join(words) # suppressed
    assert len({t // (20 * RATE) for t in together[2][1]}) > 1 # 40 s: words in both pieces

def test_scores_are_those_of_transformers_own_attention(whisper):
    model, [x] = Whisper(whisper, language='en'), waves(3)
    features = model.features([x], sampling_rate=RATE, return_tensors='pt').input_features
    prompt, text = [model.start, model.languages['en'], *model.task], [3, 30, 4, 9]
    with torch.inference_mode():
        [ours] = model._scores(model.model.model.encoder(features).last_hidden_state, [prompt], [text + [model.end]], [150])
        eager = WhisperForConditionalGeneration.from_pretrained(whisper, attn_implementation='eager').eval()
        theirs = eager(input_features=features, decoder_input_ids=torch.tensor([prompt + text]), output_attentions=True).cross_attentions
    w = np.stack([theirs[k][0, h, :, :150].double().numpy() for k, h in ((2, 1), (3, 0), (3, 2))])
    w /= w.sum(-1, keepdims=True) # softmax over the audio's own frames
    w = (w - w.mean(1, keepdims=True)) / w.std(1, keepdims=True)
    w = np.pad(w, ((0, 0), (0, 0), (3, 3)), mode='reflect')
    w = np.median(np.lib.stride_tricks.sliding_window_view(w, 7, axis=-1), axis=-1).mean(0)
    assert np.allclose(ours.numpy(), w[3:].T, atol=1e-4) and ours.shape == (150, 5)

def test_without_a_list_the_heads_are_those_of_the_upper_half_and_the_language_is_heard(whisper, tmp_path):
    for file in whisper.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    (tmp_path / 'generation_config.json').unlink()
    model = Whisper(tmp_path)
    assert model.heads == {2: [0, 1, 2, 3], 3: [0, 1, 2, 3]} and list(model.languages) == ['en', 'zh']
    words, starts, _, reason = model.align(waves(5))[0]
    assert reason == '' and len(words) == len(starts)

def test_times_begin_where_tokens_do_and_loops_and_silence_are_told(whisper, monkeypatch):
    model = Whisper(whisper, language='en')
    a, d = 0, model.tokenizer.token_to_id('Ġd')
    x = torch.full((100, 5), -1.0)
    for token, (first, last) in enumerate(((0, 20), (20, 30), (30, 60), (60, 61), (61, 100))): # the last is the end's
        x[first:last, token] = 1
    monkeypatch.setattr(asr, 'tighten', lambda wave, starts, ends: (starts, ends))
    def said(tokens, silent=False, scores=x):
        monkeypatch.setattr(model, '_decode', lambda *args: ([tokens], [silent]))
        monkeypatch.setattr(model, '_scores', lambda *args: [scores])
        return model.align([speech_like(2, 0)])[0]
    assert said([d, a, d, 52, model.end]) == ([' da', ' d,'], [0, 9600], [9600, 19200], '')
    assert said([d, a, d, 52, model.end], silent=True) == ([], [], [], '')
    assert said([d, a, d, a]) == ([], [], [], 'WHISPER_LOOPS') # no end
    assert said([d, a] * 100 + [model.end]) == ([], [], [], 'WHISPER_LOOPS')
    assert said([d, a, d, a, model.end], scores=x[:3]) == ([], [], [], 'TOO_MANY_WORDS')

def test_a_window_that_loops_is_heard_again_in_parts(whisper, monkeypatch):
    model, heard = Whisper(whisper, language='en'), []
    def windows(part, spoken):
        heard.extend(len(piece) / RATE for *_, piece in part)
        return [([], [], [], 'WHISPER_LOOPS') if len(piece) > longest * RATE else ([' x'], [0], [len(piece)], '') for *_, piece in part]
    monkeypatch.setattr(model, '_windows', windows)
    longest = 16
    words, starts, ends, reason = model.align(waves(50))[0]
    assert reason == '' and starts[0] == 0 and ends[-1] == 50 * RATE and starts[1:] == ends[:-1] and max(heard) > 16
    longest = 5
    assert model.align(waves(50))[0] == ([], [], [], 'WHISPER_LOOPS')

def test_what_is_no_whisper_is_refused_in_one_line(whisper, tmp_path):
    for make, message in ((lambda: Whisper(tmp_path), 'no tokenizer.json'), (lambda: Whisper(whisper, language='xx'), "no language 'xx'"),
                          (lambda: Whisper(tmp_path / 'none' / 'x' / 'y'), 'nor a hub id')):
        with pytest.raises(Refused) as e:
            make()
        assert message in str(e.value) and '\n' not in str(e.value), e.value
    for file in whisper.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    (tmp_path / 'generation_config.json').write_text('{"alignment_heads": [[4, 0]]}')
    with pytest.raises(Refused, match='expected .layer, head. of its 4 layers of 4'):
        Whisper(tmp_path)
    HubertModel(HubertConfig(hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16)).save_pretrained(tmp_path)
    with pytest.raises(Refused, match="holds a 'hubert', expected one of whisper"):
        Whisper(tmp_path)

@pytest.mark.slow
@pytest.mark.skipif(not (WHISPER / 'model.safetensors').exists(), reason=f"no {WHISPER}; ASSETS=FOLDER says where whisper-base is")
@pytest.mark.skipif(not LIBRISPEECH.is_dir(), reason='librispeech_mini is not here')
def test_whispers_word_starts_are_within_120_ms_of_a_forced_alignment_in_the_median():
    lines = [json.loads(line) for line in (LIBRISPEECH / 'manifest.jsonl').read_text().splitlines()][::17] # 8 speakers
    letters = lambda word: re.sub("[^a-z0-9']", '', word.casefold())
    errors, n = [], 0
    heard = Whisper(WHISPER).align([load_audio(LIBRISPEECH / line['audio']) for line in lines])
    for line, (words, starts, _, reason) in zip(lines, heard):
        assert reason == ''
        truth = line['words']
        n += len(truth)
        same = SequenceMatcher(None, [letters(w) for w in words], [letters(w) for w, *_ in truth], autojunk=False)
        errors += [abs(starts[m.a + k] / RATE - truth[m.b + k][1]) for m in same.get_matching_blocks() for k in range(m.size)]
    assert len(errors) > .8 * n and np.median(errors) < .12, f"{len(errors)} of {n} words, median {np.median(errors):.3f} s"
