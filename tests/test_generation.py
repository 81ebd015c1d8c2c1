"""
What is measured on generated speech: texts against definitions and worked examples, the judge against a server of this
test, the whole run with a model, a vocoder and a language model made on the spot (the recognizer is a stand-in).
"""
import json
import math
import re
import threading
import unicodedata
from collections import Counter
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import numpy as np
import pytest
import torch
from small import K, make_model, make_tokenizer
from test_tasks import Ear, make_numbered, write_wav
from transformers import AutoModelForCausalLM

import eval as evaluate
from configurator import Refused
from evaluation import generation
from evaluation.generation import Config, load_llm, load_normalizer, main
from evaluation.judge import ask, read_rubric
from evaluation.text_scores import auto_bleu2, character_errors, self_bleu2, word_errors, words
from hub.tokenizer import TextTokenizer
from model import GPT
from speech import unit_cache
from speech.vocoder import SourceFilter, SourceFilterConfig
from speech.words import plain_words


@pytest.mark.parametrize('text, expected', [
    ("It's a dog. It's a dog.", "It 's a dog. It 's a dog ."),
    ('He said, "I cannot go!" and left...', "He said , `` I can not go ! '' and left ..."),
    ("They're 10,000 at 3:30, aren't they?", "They 're 10,000 at 3:30 , are n't they ?"),
    ("Mr. Smith's dogs' tails (gonna wag).", "Mr. Smith 's dogs ' tails ( gon na wag ) ."),
    ("'Tis 'a' day -- no", "' Tis ' a ' day -- no"), ('', '')])
def test_words_are_those_of_nltk(text, expected):
    """The answers of its NLTKWordTokenizer, written down."""
    assert words(text) == expected.split()

def test_words_equal_nltk_where_it_is_installed():
    nltk = pytest.importorskip('nltk.tokenize', reason='nltk is not installed')
    pieces = ["it's", 'a', 'dog.', '"no', 'yes"', "don't", 'cannot', 'cannot.', 'gonna,', 'I-gotta', 'wanna',
              '*sigh*', '9–5', 'Mr.', '3,000', 'so,', 'well;', "dogs'", "'tis", '(and)', 'x--y', '...']
    rng = np.random.default_rng(0)
    for _ in range(300):
        text = ' '.join(rng.choice(pieces, rng.integers(0, 8)))
        assert words(text) == nltk.NLTKWordTokenizer().tokenize(text), text

@pytest.mark.parametrize('text, expected', [
    ('the cat sat on the mat and the cat sat', 4 / 9), ('a b a b a b', 1.0), ("It's a dog. It's a dog.", 0.5),
    ('one', 0.0), ('', 0.0)])
def test_auto_bleu_of_worked_examples(text, expected):
    assert auto_bleu2(text) == pytest.approx(expected)

def k_grams(tokens, k):
    return Counter(tuple(tokens[i:i + k]) for i in range(len(tokens) - k + 1))

def slow_self_bleu2(texts, i):
    """BLEU-2 of texts[i] against the others (Papineni et al. 2002), straight from the definition."""
    hypothesis = words(texts[i])
    references = [words(text) for j, text in enumerate(texts) if j != i]
    log_precisions = []
    for k in (1, 2):
        grams = k_grams(hypothesis, k)
        hits = 0
        for gram, n in grams.items():
            most_in_a_reference = max(k_grams(reference, k)[gram] for reference in references)
            hits += min(n, most_in_a_reference)
        if not hits:
            return 0.0
        log_precisions.append(math.log(hits / grams.total()))
    c = len(hypothesis)
    r = min(map(len, references), key=lambda n: (abs(n - c), n))
    brevity = 1 if c > r else math.exp(1 - r / c)
    return brevity * math.exp(sum(log_precisions) / 2)

def test_self_bleu_equals_its_definition_on_random_texts():
    rng = np.random.default_rng(0)
    for _ in range(30):
        texts = [' '.join(rng.choice(list('abcd'), rng.integers(2, 9))) for _ in range(6)]
        assert self_bleu2(texts) == pytest.approx([slow_self_bleu2(texts, i) for i in range(6)])
    assert self_bleu2(['a b c', 'a b c', 'x y']) == pytest.approx([1, 1, 0])
    assert self_bleu2(['a b']) == [None]

@pytest.mark.parametrize('reference, heard, expected', [
    ('The cat sat.', 'the cat sat', (0, 3)), ("It's here", 'its here', (1, 2)), ('a b c', '', (3, 3)),
    ('a b c', 'x a b c y', (2, 3)), ('one two three four', 'one three five four', (2, 4)), ('', 'a', (1, 0))])
def test_word_errors(reference, heard, expected):
    assert word_errors(reference, heard) == expected

@pytest.mark.parametrize('reference, heard, expected', [
    (unicodedata.normalize('NFD', 'er fährt'), 'Er fährt!', (0, 2)),
    ('हिन्दी भाषा', 'हिन्दी भाषा', (0, 2)), ('हिन्दी', 'हन्दा', (1, 1)), ('தமிழ் மொழி', 'தமிழ் மொழி', (0, 2)),
    ('שָׁלוֹם עוֹלָם', 'שָׁלוֹם עוֹלָם', (0, 2)), ('مَرْحَبًا بِكُمْ', 'مَرْحَبًا بِكُمْ', (0, 2)),
    ('İstanbul', 'istanbul', (0, 1)), ('STRASSE', 'Straße', (0, 1)), ('ΣΊΣΥΦΟΣ', 'σίσυφος', (0, 1)),
    ('l’été', "l'e\u0301te\u0301", (0, 1)), ('co\u00adop', 'coop', (0, 1)), ('ＯＫ', 'ok', (0, 1)),
    ("rock 'n' roll, '90s", 'rock n roll 90s', (0, 4)), ('3.14 e-mail', '3 14 e mail', (0, 4)),
    ('_ “…” 🎵️', '', (0, 0)),
    ('今天天气好', '今天天气坏', (1, 5)), ('我爱NLP。', '我爱 nlp', (0, 3)), ('สวัสดี', 'สวัสดี', (0, 4)), # ส วั ส ดี
    ('오늘 날씨', unicodedata.normalize('NFD', '오늘 날씨'), (0, 2))])
def test_word_errors_of_any_script(reference, heard, expected):
    assert word_errors(reference, heard) == expected

def test_words_of_english_are_letters_digits_and_inner_apostrophes():
    rng = np.random.default_rng(0)
    for _ in range(300):
        text = ''.join(rng.choice(list("aB9 '.,-_é"), 30))
        plain = re.findall(r"[^\W_]+(?:'[^\W_]+)*", text.lower())
        assert plain_words(text) == plain, text

def test_character_errors_count_blanks_where_words_are_written_with_them():
    assert character_errors('The cat', 'the bat sat') == (5, 7)
    assert character_errors('今天，天气好', '今天 天气坏') == (1, 5)
    assert character_errors('', 'a') == (1, 0)

def test_perplexity_is_transformers_mean_loss_and_an_empty_text_has_none(tmp_path):
    make_tokenizer(tmp_path / 'tokenizer')
    make_model(tmp_path / 'llm', tmp_path / 'tokenizer', 'text')
    mean_losses = load_llm(str(tmp_path / 'llm'), 'cpu')
    (loss, n), *empty = mean_losses(['hello you', ' ', ''])
    ids = TextTokenizer(tmp_path / 'llm').encode(' hello you') # with a blank, as Whisper writes it
    ids = torch.tensor([list(map(int, ids))])
    reference = AutoModelForCausalLM.from_pretrained(tmp_path / 'llm')
    assert loss == pytest.approx(reference(ids, labels=ids).loss.item(), abs=1e-5)
    assert n == 9
    assert empty == 2 * [(None, 0)]

# --------------------------------------------------------------------------------------------------
# the judge

@pytest.fixture
def server():
    """A chat endpoint that keeps its `requests` and gives `replies`, (status, text) each, of which the last repeats."""
    class Handler(BaseHTTPRequestHandler):
        def do_POST(self):
            body = json.loads(self.rfile.read(int(self.headers['Content-Length'])))
            server.requests.append((self.path, dict(self.headers), body))
            status, text = server.replies.pop(0) if len(server.replies) > 1 else server.replies[0]
            data = json.dumps({'choices': [{'message': {'content': text}}]}).encode()
            self.send_response(status)
            self.end_headers()
            self.wfile.write(data)
        def log_message(self, *_):
            pass
    server = HTTPServer(('127.0.0.1', 0), Handler)
    server.requests = []
    server.replies = []
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server
    server.shutdown()
    server.server_close()

def url_of(server):
    return f'http://127.0.0.1:{server.server_port}/v1'

def judge_of(server):
    return Config(judge=url_of(server), judge_model='m', judge_key='NANOSLM_TEST_KEY')

def test_the_judge_gets_one_message_and_the_key(server, monkeypatch):
    monkeypatch.setenv('NANOSLM_TEST_KEY', 'secret')
    server.replies = [(200, 'It stays on topic.')]
    assert ask(judge_of(server), 'the message') == 'It stays on topic.'
    path, headers, body = server.requests[0]
    assert path == '/v1/chat/completions' and headers['Authorization'] == 'Bearer secret'
    assert body == {'model': 'm', 'messages': [{'role': 'user', 'content': 'the message'}]} # no temperature
    ask(replace(judge_of(server), judge_temperature=0.0), 'x')
    assert server.requests[1][2]['temperature'] == 0

@pytest.mark.parametrize('name, answer, mark', [
    ('ours', '**Score: 5**', 5), ('ours', 'Fine.\nScore: 3\n', 3), ('ours', 'score: 7', None),
    ('ours', 'I like it', None), ('ours', 'Score: 4.5', None), ('ours', r'The final answer is $\boxed{4}$', None),
    ('papers', r'It fits. The final answer is $\boxed{4}$.', 4), ('papers', r'\boxed{2} and not \boxed{5}', 2),
    ('papers', r'\boxed{x}, that is \boxed{3}', 3), ('papers', 'Score: 4', None), ('papers', r'\boxed{4.5}', None),
    ('papers', r'\boxed{7}', None), ('papers', r'\boxed{0}', None), ('papers', '', None)])
def test_a_mark_is_a_whole_number_in_the_rubrics_form_of_answer(name, answer, mark):
    assert read_rubric(name).mark(answer) == mark

def test_a_rubric_is_filled_with_both_transcripts_as_whisper_writes_them():
    for name in ('papers', 'ours'):
        rubric = read_rubric(name)
        message = rubric.fill('Once upon', 'a [prompt_audio_transcription] {x}')
        assert message.count(' Once upon') == 1 and ' a [prompt_audio_transcription] {x}' in message
        assert rubric.fill('', '').count('_transcription]') == 0
    assert r'The final answer is $\boxed{x}$' in read_rubric('papers').instruction
    assert all(f'\n{mark} - ' in read_rubric('papers').instruction for mark in range(1, 6))

def test_a_rubric_of_a_file_is_taken_to_the_letter(tmp_path):
    """The .yaml has the shape of slamkit's: other keys, one double-quoted line with escapes."""
    text = 'Rate "[generated_audio_transcription]" after "[prompt_audio_transcription]".\n\\boxed{x}'
    (tmp_path / 'own.txt').write_text(text)
    lines = ['defaults:', '  - default', '', 'prompt_length: 3', f'instruction: {json.dumps(text)}', '']
    (tmp_path / 'judge.yaml').write_text('\n'.join(lines))
    for name in ('own.txt', 'judge.yaml'):
        rubric = read_rubric(tmp_path / name)
        assert rubric.fill('A b.', 'c') == 'Rate " c" after " A b.".\n\\boxed{x}'
        assert rubric.mark(r'\boxed{2}') == 2
    assert read_rubric(tmp_path / 'own.txt', r'mark=(\d)').mark('mark=3') == 3

@pytest.mark.parametrize('name, answer, message', [
    ('theirs', '', 'rubric theirs: cannot be read .* expected papers, ours or a file'),
    ('a.txt', '', r'a.txt: no \[prompt_audio_transcription\] in it'), ('a.yaml', '', 'a.yaml: not YAML'),
    ('b.yaml', '', 'b.yaml: no text `instruction: ...` in it'), ('ours', '(', 'not a regular expression'),
    ('ours', r'\d', '0 groups, expected one')])
def test_a_bad_rubric_is_one_line(tmp_path, monkeypatch, name, answer, message):
    monkeypatch.chdir(tmp_path)
    (tmp_path / 'a.txt').write_text('[generated_audio_transcription]')
    (tmp_path / 'a.yaml').write_text('instruction: "x')
    (tmp_path / 'b.yaml').write_text('instruction: 3')
    with pytest.raises(Refused, match=message) as refused:
        read_rubric(name, answer)
    assert '\n' not in str(refused.value)

def test_a_busy_judge_is_asked_again_and_a_wrong_address_is_one_line(server):
    server.replies = [(429, ''), (503, ''), (200, 'Score: 1')]
    assert ask(judge_of(server), 'a', wait=0) == 'Score: 1' and len(server.requests) == 3
    server.replies = [(401, '')]
    with pytest.raises(Refused, match='status 401; expected an OpenAI-compatible endpoint'):
        ask(judge_of(server), 'a', wait=0)
    assert len(server.requests) == 4 # not asked again

# --------------------------------------------------------------------------------------------------
# the whole run

def transcribe(waves):
    """A stand-in for Whisper: a text that depends on the length of the wave, none for a short one."""
    texts = []
    for wave in waves:
        sentence = f'word{len(wave) // 640 % 5} here'
        texts.append('' if len(wave) < 1600 else ' '.join([sentence] * 3))
    return texts

@pytest.fixture
def house(tmp_path, monkeypatch):
    """A folder of models of every kind, a vocoder and prompts; the encoder and Whisper are stand-ins."""
    make_tokenizer(tmp_path / 'tokenizer')
    for kind in ('joint', 'speech', 'text'):
        make_model(tmp_path / kind, tmp_path / 'tokenizer', kind)
    vocoder = SourceFilter(SourceFilterConfig(n_units=K, n_embd=16, units_hash='abc'))
    vocoder.save_pretrained(tmp_path / 'vocoder')
    make_numbered(tmp_path / 'ssc', n=4)
    monkeypatch.setattr(unit_cache, 'Encoder', lambda *_, **__: Ear())
    monkeypatch.setattr(unit_cache, 'centroids_path', lambda *_: None)
    set_asr(monkeypatch, transcribe)
    return tmp_path

def set_asr(monkeypatch, function):
    """Puts a function from waves to texts in Whisper's place."""
    monkeypatch.setattr(generation, 'load_asr', lambda *_: function)

def config_of(house, kind, **settings):
    """Three short prompts for a model of the house, its text model for GenPPL."""
    defaults = {'model': str(house / kind), 'prompts': str(house / 'ssc'), 'n': 3, 'seconds': 0.3, 'max_new_tokens': 8,
                'llm': str(house / 'text'), 'vocoder': str(house / 'vocoder'), 'device': 'cpu'}
    return Config(**{**defaults, **settings})

def read_samples(folder):
    return [json.loads(line) for line in open(folder / 'samples_generation.jsonl')]

def read_eval(folder):
    return json.loads((folder / 'eval.json').read_text())

@pytest.mark.parametrize('kind', ['joint', 'speech'])
def test_continuations_are_measured_and_everything_is_kept(house, kind, server, capsys):
    server.replies = [(200, r'\boxed{2}'), (200, 'none'), (200, r'\boxed{3}')]
    cfg = config_of(house, kind, batch=2, judge=url_of(server))
    main(cfg)
    content = read_eval(house / kind)
    rows = content['results']
    parts = ('whole', 'continuation')
    names = {f'{name}/{part}' for name in ('genppl', 'auto_bleu2', 'self_bleu2') for part in parts}
    assert rows.keys() == names | {'judge/continuation'}
    lines = read_samples(house / kind)
    right_stories = ['0_0000_correct', '2_0001_correct', '4_0002_correct']
    assert [line['id'] for line in lines] == right_stories # in order
    assert rows['judge/continuation'] == {'value': 2.5, 'stderr': 0.5, 'n': 2, 'unparsed': 1}
    mean_loss = np.mean([line['genppl_whole'] for line in lines])
    assert rows['genppl/whole']['value'] == pytest.approx(math.exp(mean_loss))
    assert rows['genppl/whole']['n'] == 3
    for line in lines:
        assert len(line['units']) <= 8 and max(line['units'], default=0) < K
    mean_auto_bleu = np.mean([auto_bleu2(line['whole']) for line in lines])
    assert rows['auto_bleu2/whole']['value'] == pytest.approx(mean_auto_bleu)
    settings = content['tasks']['genppl']['settings']
    sampling = ('seconds', 'max_new_tokens', 'temperature', 'top_k', 'repetition_penalty')
    assert [settings[key] for key in sampling] == [0.3, 8, 0.8, 25, 1]
    messages = [body['messages'][0]['content'] for _, _, body in server.requests]
    assert messages == [read_rubric('papers').fill(line['prompt'], line['continuation']) for line in lines]
    assert f"{'genppl/whole':34} {3:5d}" in capsys.readouterr().out
    server.replies = [(200, r'\boxed{2}')]
    main(cfg) # the same seed: the same units
    assert [line['units'] for line in read_samples(house / kind)] == [line['units'] for line in lines]

def test_genppl_is_sampled_as_the_papers_say():
    """SIMS A.3: 150 tokens, top-k 25, temperature 0.8, 3 s of 1000 stories; it names no repetition penalty."""
    cfg = Config()
    assert (cfg.n, cfg.seconds, cfg.max_new_tokens, cfg.top_k, cfg.temperature) == (1000, 3.0, 150, 25, 0.8)
    assert cfg.repetition_penalty == 1 and cfg.cut == 'seconds' and cfg.min_seconds == 0
    assert cfg.llm_dtype == 'float32' and cfg.judge_temperature is None and cfg.rubric == 'papers'

@pytest.mark.parametrize('dtype', ['float32', 'bfloat16'])
def test_the_language_model_is_loaded_in_the_dtype_that_is_asked_for(tmp_path, dtype):
    make_tokenizer(tmp_path / 'tokenizer')
    make_model(tmp_path / 'llm', tmp_path / 'tokenizer', 'text')
    mean_losses = load_llm(str(tmp_path / 'llm'), 'cpu', dtype)
    model = AutoModelForCausalLM.from_pretrained(tmp_path / 'llm', dtype=getattr(torch, dtype))
    ids = torch.tensor([list(map(int, TextTokenizer(tmp_path / 'llm').encode(' hello you')))])
    loss = torch.nn.functional.cross_entropy(model(ids).logits[0, :-1].float(), ids[0, 1:])
    assert mean_losses(['hello you'])[0][0] == pytest.approx(loss.item(), abs=1e-6)

# --------------------------------------------------------------------------------------------------
# prompts cut at a word's end

def make_talk(folder):
    """Four waves of 1.0, 0.5, 1.0 and 1.0 s; the first two have words, the third has words without a known end."""
    words = {'a': [['x', 0.0, 0.25], ['y', 0.25, 0.5], ['z', 0.5, 0.96]], 'b': [['x', 0.0, 0.4]],
             'c': [['x', 0.1, None]], 'd': None}
    lines = []
    for i, (id, doc) in enumerate(words.items()):
        write_wav(folder / f'{id}.wav', i, 0.5 if id == 'b' else 1.0)
        lines.append(json.dumps({'id': id, 'audio': f'{id}.wav', 'words': doc}) + '\n')
    (folder / 'manifest.jsonl').write_text(''.join(lines))
    return folder

def align(waves):
    """A stand-in for Whisper, which hears two words; times in samples."""
    return [(['one', 'two'], [0, 5000], [4800, 9600], '') for _ in waves]

def test_prompts_end_with_the_nearest_word_and_short_ones_are_named(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(generation, 'load_aligner', lambda *_: align)
    talk = str(make_talk(tmp_path / 'talk'))
    cfg = Config(prompts=talk, cut='word', seconds=0.375, min_seconds=0.6)
    prompts = generation.cut_prompts(cfg, 'cpu')
    # 0.25 and 0.5 are equally far from 0.375: the earlier one, as slamkit's argmin has it.
    assert [(id, seconds, len(wave)) for id, _, seconds, wave in prompts] == [('a', 0.25, 4000), ('d', 0.3, 4800)]
    out = capsys.readouterr().out
    assert '1 left out, shorter than 0.6 s: b' in out and '1 left out, no word with an end: c' in out
    prompts = generation.cut_prompts(replace(cfg, seconds=0.4, min_seconds=0.0, n=2), 'cpu')
    assert [(id, seconds) for id, _, seconds, _ in prompts] == [('a', 0.5), ('b', 0.4)]
    with pytest.raises(Refused, match='no prompt remains: 4 are shorter than min_seconds=2, 0 have'):
        generation.cut_prompts(replace(cfg, min_seconds=2.0), 'cpu')

def test_words_of_slamkits_files_come_before_all_others(tmp_path):
    make_talk(tmp_path / 'talk')
    (tmp_path / 'words').mkdir()
    for id, end in (('a', 0.6), ('d', 0.72)):
        words = [[' one', 0.0, end], [' two', end, 0.99]]
        doc = {'file_name': f'/x/{id}.wav', 'text': ' one two', 'aligned_text': words}
        (tmp_path / 'words' / f'{id}.json').write_text(json.dumps(doc))
    cfg = Config(prompts=str(tmp_path / 'talk'), words=str(tmp_path / 'words'), cut='word', seconds=0.5)
    prompts = generation.cut_prompts(cfg, 'cpu')
    assert [(id, seconds) for id, _, seconds, _ in prompts] == [('a', 0.6), ('d', 0.72)]

def test_the_run_measures_what_follows_the_word(house, monkeypatch):
    monkeypatch.setattr(generation, 'load_aligner', lambda *_: align)
    make_talk(house / 'talk')
    main(config_of(house, 'speech', prompts=str(house / 'talk'), cut='word', seconds=0.4, min_seconds=0.6))
    lines = read_samples(house / 'speech')
    assert [(line['id'], line['seconds']) for line in lines] == [('a', 0.5), ('d', 0.3)]
    assert all(len(line['prompt_units']) <= line['seconds'] * 25 for line in lines)

def test_empty_transcripts_are_counted_not_infinite(house, monkeypatch):
    set_asr(monkeypatch, lambda waves: ['', 'a b a b a b', 'c d e'][:len(waves)])
    main(config_of(house, 'joint', max_new_tokens=4))
    rows = read_eval(house / 'joint')['results']
    for part in ('whole', 'continuation'):
        perplexity = rows[f'genppl/{part}']
        auto_bleu = rows[f'auto_bleu2/{part}']
        assert (perplexity['n'], perplexity['empty'], perplexity['repeated']) == (2, 1, 1)
        assert math.isfinite(perplexity['value'])
        assert auto_bleu['value'] == pytest.approx(1 / 3) and auto_bleu['empty'] == 1

def test_a_model_that_says_nothing_is_counted(house, monkeypatch, capsys):
    monkeypatch.setattr(GPT, 'generate', lambda self, prompts, *_: [[] for _ in prompts])
    main(config_of(house, 'speech', n=2))
    rows = read_eval(house / 'speech')['results']
    assert rows['auto_bleu2/continuation'] == {'value': 0.0, 'stderr': 0.0, 'n': 2, 'empty': 2}
    assert 'genppl/continuation' not in rows and rows['genppl/whole']['n'] == 2
    assert 'genppl/continuation: not one of 2 transcripts has enough words' in capsys.readouterr().out

def test_word_error_rate_of_resynthesis(house, monkeypatch):
    for i, text in enumerate(('One two three.', 'Four five')):
        write_wav(house / 'talk' / f'{i}.wav', i, 0.5)
        (house / 'talk' / f'{i}.txt').write_text(text)
    answers = iter([['one two three', 'four five'], ['one three', 'for five six']])
    set_asr(monkeypatch, lambda waves: next(answers))
    main(config_of(house, 'speech', prompts='', speech=str(house / 'talk')))
    rows = read_eval(house / 'speech')['results']
    assert rows['wer/original']['value'] == rows['cer/original']['value'] == 0
    # 'two ' is left out, u becomes nothing, ' six' is added; of 13 and 9 characters
    assert rows['cer/resynthesis'] == {**rows['cer/resynthesis'], 'value': 9 / 22, 'n': 2, 'characters': 22}
    row = rows['wer/resynthesis']
    assert row | {'stderr': 0} == {'value': 3 / 5, 'stderr': 0, 'n': 2, 'words': 5}
    assert row['stderr'] == pytest.approx(math.sqrt(2 * (4 / 5) ** 2 * 2) / 5) # residuals 1 - 9 / 5 and 2 - 6 / 5

def test_whispers_normalizer_by_its_name(tmp_path):
    cfg = Config(normalizer='whisper', asr=str(tmp_path))
    with pytest.raises(Refused, match='no normalizer.json'):
        load_normalizer(cfg)
    (tmp_path / 'normalizer.json').write_text('{"colour": "color"}')
    cut = load_normalizer(cfg)
    assert cut("Mr. O'Neil's colour, twenty-one [laughs] um") == ['mister', '0', 'neil', 'is', 'color', '21']
    assert word_errors("It's colour", 'it is color', cut) == (0, 3)

@pytest.mark.parametrize('settings, message', [
    ({'normalizer': 'jiwer'}, 'normalizer is jiwer, expected unicode or whisper'),
    ({'prompts': '', 'speech': ''}, 'nothing to measure'), ({'prompts': '/none'}, '/none: no such folder'),
    ({'top_k': 0}, 'top_k is 0'), ({'cut': 'x'}, "cut is 'x', expected 'seconds' or 'word'"),
    ({'words': 'x'}, "expected cut='word'"), ({'llm_dtype': 'half'}, "llm_dtype is 'half'"),
    ({'judge': 'http://x', 'rubric': '/none'}, 'rubric /none: cannot be read'),
    ({'llm': '/none'}, '/none: no such folder, nor a hub id'), ({'vocoder': '/none'}, '/none: no vocoder here')])
def test_bad_settings_are_one_line(house, settings, message):
    with pytest.raises(Refused, match=message):
        main(config_of(house, 'joint', **{'llm': '', **settings}))

def test_results_that_cannot_be_written_are_refused_before_anything_is_measured(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path('out').write_text('a file where the results of a model of the hub would be')
    for module in (generation, evaluate):
        with pytest.raises(Refused, match='out/eval/a--b/eval.json: cannot be written'):
            module.main(module.Config(model='a/b', device='cpu'))

def test_a_text_model_and_units_of_another_encoder_are_refused(house, monkeypatch):
    with pytest.raises(Refused, match='a text-only model generates no units'):
        main(config_of(house, 'text'))
    monkeypatch.setattr(Ear, 'hash', 'other')
    with pytest.raises(Refused, match='its units are other, the model was trained on abc'):
        main(config_of(house, 'joint'))
