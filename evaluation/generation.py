"""
Measures what a model says: continuations of spoken prompts, transcribed and judged as text.
Rows go to MODEL/eval.json.

    python -m evaluation.generation --model=out/x --prompts=bench/ssc          the papers' GenPPL and auto-BLEU
    python -m evaluation.generation --model=out/x --prompts=LibriSpeech/dev-clean --min_seconds=6 --cut=word \\
        --judge=https://api.openai.com/v1 --judge_model=gpt-4o                 an LLM's marks, judge.py
    python -m evaluation.generation --model=out/x --prompts= --speech=FOLDER   word error rate of resynthesis

Prompts are the first `seconds` of the right stories of spoken StoryCloze (N_NAME.wav with an even
N, in order of N), or of every audio file of another folder, in order of path. With cut='word' a
prompt ends where the word does that ends nearest to `seconds`, as under the papers' judge; word
ends are those of --words, of the folder's manifest, or what --asr hears. The vocoder speaks a
continuation's units twice: after the prompt's units, as the papers measure it (rows /whole), and
alone (rows /continuation). Scores of the transcripts:

    genppl       exp(mean over texts of the mean over a text's tokens of -log p), p by the language
                 model. It puts its bos first where its tokenizer does, and never predicts a text's
                 first token (SIMS A.3; Slam 3; slamkit).
    auto_bleu2   share of a text's bigrams (places) that occur in it again; mean over texts (Lakhotia
                 et al. 2021, 4.2; the papers' "Auto-BLEU" and "Self-BLEU")
    self_bleu2   mean BLEU-2 of each text with all others as references (Zhu et al. 2018, 2.3)
    judge        mean mark, 1 to 5, that a chat model gives the continuation (judge.py; the papers'
                 GPTScore where --rubric is slamkit's file)
    wer          (substitutions + insertions + deletions) / words of --speech's texts: of the recording
                 (/original), and after audio -> units -> vocoder (/resynthesis). Letter case,
                 punctuation and composition of letters do not count (speech.words.plain_words); in
                 scripts without spaces each letter is a word. --normalizer=whisper: Whisper's own
                 for English, which reads numbers and contractions ("O'Neil's" is "0 neil is").
    cer          the same for characters, a blank between words among them

A text of fewer than two tokens has no perplexity, one of fewer than two words no BLEU: such texts
are left out of those means and counted in `empty` (auto_bleu2 takes them as 0, as slamkit does).
`repeated` counts the texts of which every bigram occurs again. samples_generation.jsonl has
prompts, units, transcripts, each score and the judge's words.
"""
import math
import re
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch

from configurator import Refused, pick_device, run
from corpora.folder import utterances
from evaluation.judge import ask, read_rubric
from evaluation.likelihood import load
from evaluation.results import folder_of, refuse_unwritable_results, store, table
from evaluation.scores import mean_and_stderr, ratio_and_stderr
from evaluation.text_scores import auto_bleu2, bigrams, character_errors, self_bleu2, word_errors
from files import progress, record, visible
from speech.audio import RATE, load_audio
from speech.pretrained import load_model, load_tokenizer, model_file
from speech.unit_cache import load_encoder, wave_for
from speech.units import refuse_foreign_units
from speech.vocoder import load_vocoder
from speech.whisper import Whisper
from speech.word_files import read_words
from speech.words import plain_words
from tasks.storycloze import numbered_pairs
from vocab import UNITS, allowed_ids, codebook_order, prompt_ids


@dataclass(frozen=True)
class Config:
    model: str = 'out/tiny' # folder that train.py wrote
    prompts: str = 'out/bench/ssc' # folder of spoken StoryCloze or of any audio to continue; '' for none
    speech: str = '' # folder of audio with texts, for the word error rate of resynthesis; '' for none
    n: int = 1000 # number of prompts, and of utterances of speech, to take from the beginning
    seconds: float = 3.0 # length of a prompt in seconds
    min_seconds: float = 0.0 # prompts are taken from audio of this length at least; the papers' judge: 6
    cut: str = 'seconds' # where prompts end: 'seconds', or 'word', at the word end nearest to that
    words: str = '' # words with times, for cut='word' (as align.py --words); '': the manifest's, or asr finds them
    max_new_tokens: int = 150 # length of a continuation in tokens, at most
    temperature: float = 0.8 # sampling temperature; 0: greedy
    top_k: int = 25 # number of the likeliest tokens to sample from
    repetition_penalty: float = 1.0 # factor against tokens already there; 1: none, as in SIMS; Slam after DPO: 1.1
    seed: int = 0 # seed of the sampling
    batch: int = 16 # number of prompts continued together
    encoder: str = 'tiny/hubert' # encoder of the model's units
    layer: int = 4 # layer of the encoder that the units come from
    kmeans: str | None = None # file of the units' centroids; None: kmeans.safetensors in the encoder's folder
    normalize: bool | None = None # of the units' waves, as for tokenize_speech.py
    vocoder: str = 'tiny/vocoder' # folder of the vocoder that speaks the units
    asr: str = 'openai/whisper-large-v3-turbo' # Whisper that transcribes the speech, a folder or hub id
    normalizer: str = 'unicode' # of texts for wer and cer; whisper: its English one, with normalizer.json of --asr
    llm: str = 'meta-llama/Llama-3.2-1B' # language model of GenPPL, a folder or hub id; '' for no GenPPL
    llm_dtype: str = 'float32' # of the language model, as in slamkit; or 'bfloat16', 'float16'
    judge: str = '' # URL of an OpenAI-compatible endpoint, up to /v1; '' for no judge
    judge_model: str = 'gpt-4o' # name of the judge's model at the endpoint
    judge_key: str = 'OPENAI_API_KEY' # environment variable that holds the endpoint's key, if it wants one
    judge_temperature: float | None = None # None: the endpoint's own, as in slamkit
    rubric: str = 'papers' # 'papers' (their question in our words), 'ours', or a file, as slamkit's llm_as_judge.yaml
    answer: str = '' # pattern of an answer, group 1 is the mark; '': \boxed{(\d+)}, or that of 'ours'
    device: str = 'auto' # cpu or cuda; auto: cuda where there is a GPU

    def __post_init__(self):
        if not (self.prompts or self.speech):
            raise Refused("prompts and speech are both empty: nothing to measure")
        for key in ('n', 'seconds', 'max_new_tokens', 'top_k', 'repetition_penalty', 'batch'):
            if not getattr(self, key) > 0:
                raise Refused(f"{key} is {getattr(self, key)}, must be above 0")
        if self.normalizer not in ('unicode', 'whisper'):
            raise Refused(f"normalizer is {self.normalizer}, expected unicode or whisper")
        if self.temperature < 0:
            raise Refused(f"temperature is {self.temperature}, must be 0 (greedy) or more")
        for key, choices in (('cut', ('seconds', 'word')), ('llm_dtype', ('float32', 'bfloat16', 'float16'))):
            if getattr(self, key) not in choices:
                raise Refused(f"{key} is {getattr(self, key)!r}, expected {' or '.join(map(repr, choices))}")
        if self.words and self.cut != 'word':
            raise Refused("words has no effect with cut='seconds': expected cut='word'")

# --------------------------------------------------------------------------------------------------
# other people's models

def load_asr(name, device):
    """A function from float32 waves at 16 kHz to their transcripts."""
    return Whisper(name, device).transcribe

def load_aligner(name, device):
    """A function from float32 waves at 16 kHz to [(words, starts, ends, reason)], times in samples."""
    return Whisper(name, device).align

def load_normalizer(cfg):
    """What cuts a text into the words that word error rates compare."""
    if cfg.normalizer == 'unicode':
        return plain_words
    from transformers.models.whisper.english_normalizer import EnglishTextNormalizer
    spellings = model_file(cfg.asr, 'normalizer.json', needed=False)
    if spellings is None:
        raise Refused(f"{cfg.asr}: no normalizer.json, Whisper's list of spellings; take it from openai/whisper-base")
    normalize = EnglishTextNormalizer(spellings)
    return lambda text: normalize(text).split()

def load_llm(name, device, dtype='float32'):
    """A function from texts to [(mean -log p per predicted token or None, predicted tokens)], by a causal LM.

    Each text gets a blank before it, as Whisper writes texts and slamkit hands them on.
    """
    tokenizer = load_tokenizer(name)
    model = load_model('AutoModelForCausalLM', name, dtype=getattr(torch, dtype)).to(device)
    @torch.inference_mode()
    def mean_losses(texts):
        out = []
        for text in progress(texts, desc='perplexity', leave=False):
            ids = torch.tensor([tokenizer(' ' + text).input_ids], dtype=torch.long, device=device)
            if not text.strip() or ids.shape[1] < 2:
                out.append((None, 0))
                continue
            logits = model(ids).logits[0, :-1].float()
            loss = torch.nn.functional.cross_entropy(logits, ids[0, 1:])
            out.append((loss.item(), ids.shape[1] - 1))
        return out
    return mean_losses

# --------------------------------------------------------------------------------------------------
# continuations

def prompt_files(cfg):
    """[(id, path, ends)] of all prompts: right stories by number, or audio files by path.

    ends: where words end, in seconds, by --words or else by the folder's manifest; None: unknown.
    """
    folder = Path(cfg.prompts)
    if not folder.is_dir():
        raise Refused(f"{folder}: no such folder; expected spoken StoryCloze (N_NAME.wav) or a folder of audio")
    names = [path.name for path in visible(folder, '*.wav')]
    if names and re.match(r'\d+[_+.]', names[0]):
        files = [(path.stem, path, None) for _, path, _ in numbered_pairs(folder)]
    else:
        files = []
        for prompt in utterances(folder):
            words = prompt['words']
            ends = None if words is None else [end for _, _, end in words if end is not None and end > 0]
            files.append((prompt['id'], Path(prompt['path']), ends))
    if cfg.words:
        docs = read_words(cfg.words, [id for id, _, _ in files])
        files = [(id, path, docs[id][2] if id in docs else ()) for id, path, _ in files]
        files = [(id, path, [end / RATE for end in ends if end > 0]) for id, path, ends in files] # not the NaNs
    return files

def cut_prompts(cfg, device):
    """The first n prompts -> [(id, path, seconds, wave)], cut; what is left out is named on the terminal.

    With cut='word' a prompt lasts to the word end that is nearest to cfg.seconds, the earlier of two
    (slamkit). wave: float32 at 16 kHz.
    """
    prompts = []
    short = []
    wordless = []
    align = None
    for id, path, ends in progress(prompt_files(cfg), desc='prompts', leave=False):
        if len(prompts) == cfg.n:
            break
        wave = load_audio(path)
        if len(wave) < cfg.min_seconds * RATE:
            short.append(id)
            continue
        if cfg.cut == 'seconds':
            ends = [cfg.seconds]
        elif ends is None:
            align = align or load_aligner(cfg.asr, device)
            ends = [end / RATE for end in align([wave])[0][2] if end > 0]
        if not ends:
            wordless.append(id)
            continue
        seconds = float(min(ends, key=lambda end: abs(end - cfg.seconds)))
        prompts.append((id, path, seconds, wave[:round(seconds * RATE)]))
    for why, ids in ((f'shorter than {cfg.min_seconds:g} s', short), ('no word with an end', wordless)):
        if ids:
            print(f"{cfg.prompts}: {len(ids)} left out, {why}: {', '.join(ids[:5])}{', ...' if ids[5:] else ''}")
    if not prompts:
        raise Refused(f"{cfg.prompts}: no prompt remains: {len(short)} are shorter than "
                      f"min_seconds={cfg.min_seconds:g}, {len(wordless)} have no word with an end")
    return prompts

def continuations(cfg, model, vocab, tokenizer, prompts, device):
    """The new units that continue each prompt, as arrays.

    Prompts of like length share a batch; all batches share one seeded generator.
    """
    allowed, stop = allowed_ids(vocab, tokenizer, 'speech')
    allowed = allowed.to(device)
    ids = [prompt_ids([{'kind': UNITS, 'units': units}], 'speech', vocab, tokenizer) for units in prompts]
    generator = torch.Generator(device).manual_seed(cfg.seed)
    by_length = sorted(range(len(ids)), key=lambda i: len(ids[i]))
    out = [None] * len(ids)
    for start in progress(range(0, len(ids), cfg.batch), desc='continue', leave=False):
        batch = by_length[start:start + cfg.batch]
        new = model.generate([ids[i] for i in batch], cfg.max_new_tokens, cfg.temperature, cfg.top_k,
                             cfg.repetition_penalty, allowed, stop, generator, **codebook_order(vocab))
        for i, tokens in zip(batch, new):
            out[i] = vocab.whole_frames(vocab.token_to_unit([token for token in tokens if token not in stop]))
    return out

def mean_of_texts(name, part, lines, values):
    """The row of a score of the transcripts lines[i][part]; each line gets its own value.

    values: a number of each line, or None where its transcript is too short. {} where all are None.
    """
    present = [value for value in values if value is not None]
    if not present:
        print(f"{name}/{part}: not one of {len(values)} transcripts has enough words")
        return {}
    for line, value in zip(lines, values):
        line[f'{name}_{part}'] = value
    mean, stderr = mean_and_stderr(present)
    return {'value': mean, 'stderr': stderr, 'n': len(present), 'empty': len(values) - len(present)}

def measure_texts(lines, part, llm):
    """{row name: row} of the transcripts lines[i][part]; each line gets its own scores."""
    texts = [line[part] for line in lines]
    repetition = [auto_bleu2(text) for text in texts]
    rows = {}
    if llm:
        losses = llm(texts)
        row = mean_of_texts('genppl', part, lines, [loss for loss, _ in losses])
        if row:
            # The error of exp(mean) by the delta method: exp(mean) times the error of the mean.
            perplexity = math.exp(row['value'])
            row['value'] = perplexity
            row['stderr'] = row['stderr'] and perplexity * row['stderr']
            row['repeated'] = sum(share == 1 for share in repetition)
            row['tokens'] = sum(n for _, n in losses)
        rows['genppl'] = row
    rows['auto_bleu2'] = mean_of_texts('auto_bleu2', part, lines, repetition)
    if rows['auto_bleu2']:
        rows['auto_bleu2']['empty'] = sum(not bigrams(text) for text in texts)
    rows['self_bleu2'] = mean_of_texts('self_bleu2', part, lines, self_bleu2(texts))
    return {f'{name}/{part}': row for name, row in rows.items() if row}

def judge_continuations(cfg, rubric, lines):
    """The row of the judge's marks; each line gets its mark and the judge's answer."""
    for line in progress(lines, desc='judge', leave=False):
        line['answer'] = ask(cfg, rubric.fill(line['prompt'], line['continuation']))
        line['mark'] = rubric.mark(line['answer'])
    marks = [line['mark'] for line in lines if line['mark'] is not None]
    if not marks:
        raise Refused(f"{cfg.judge}: none of {len(lines)} answers of {cfg.judge_model} holds {rubric.answer} "
                      f"with 1 to 5; the first is {lines[0]['answer'][:80]!r}")
    mean, stderr = mean_and_stderr(marks)
    return {'value': mean, 'stderr': stderr, 'n': len(marks), 'unparsed': len(lines) - len(marks)}

def measure_continuations(cfg, model, vocab, tokenizer, encoder, vocoder, asr, device):
    """({row name: row}, a line of the samples file for each prompt) of --prompts."""
    # Loaded before the slow part, so that a wrong name is refused at once.
    rubric = read_rubric(cfg.rubric, cfg.answer) if cfg.judge else None
    llm = load_llm(cfg.llm, device, cfg.llm_dtype) if cfg.llm else None
    files = cut_prompts(cfg, device)
    waves = [wave for *_, wave in files]
    frames = encoder.encode([wave_for(encoder, path, seconds=seconds) for _, path, seconds, _ in files])
    prompts = [encoder.runs(rows)[0] for rows in frames]
    new = continuations(cfg, model, vocab, tokenizer, prompts, device)
    prompts_and_new = [np.concatenate(pair) for pair in zip(prompts, new)]
    transcripts = {'prompt': asr(waves)}
    transcripts['whole'] = asr(vocoder.speak(prompts_and_new, units_hash=vocab.units))
    transcripts['continuation'] = asr(vocoder.speak(new, units_hash=vocab.units))
    lines = []
    for i, (name, path, seconds, _) in enumerate(files):
        line = {'id': name, 'path': str(path), 'seconds': seconds, 'prompt_units': prompts[i].tolist(),
                'units': new[i].tolist()}
        lines.append(line | {part: texts[i] for part, texts in transcripts.items()})
    rows = {}
    for part in ('whole', 'continuation'):
        rows |= measure_texts(lines, part, llm)
    if cfg.judge:
        rows['judge/continuation'] = judge_continuations(cfg, rubric, lines)
    return rows, lines

# --------------------------------------------------------------------------------------------------
# resynthesis

def measure_resynthesis(cfg, vocab, encoder, vocoder, asr):
    """({row name: row}, a line of the samples file for each utterance) of --speech: errors of words, characters."""
    cut = load_normalizer(cfg)
    all_speech = list(utterances(cfg.speech))
    speech = [utterance for utterance in all_speech if utterance['text'] and cut(utterance['text'])][:cfg.n]
    if not speech:
        raise Refused(f"{cfg.speech}: none of {len(all_speech)} utterances has a text; "
                      "expected NAME.txt beside NAME.wav, or a manifest")
    spans = [(utterance['path'], utterance['start'], utterance['end']) for utterance in speech]
    waves = [load_audio(*span) for span in spans]
    frames = encoder.encode([wave_for(encoder, *span) for span in spans])
    units, runs = zip(*map(encoder.runs, frames))
    transcripts = {'original': asr(waves), 'resynthesis': asr(vocoder.speak(units, runs, units_hash=vocab.units))}
    lines = []
    for i, utterance in enumerate(speech):
        line = {'id': utterance['id'], 'text': utterance['text']}
        lines.append(line | {part: texts[i] for part, texts in transcripts.items()})
    rows = {}
    for part in transcripts:
        for name, unit, errors_of in (('wer', 'words', word_errors), ('cer', 'characters', character_errors)):
            counts = np.array([errors_of(line['text'], line[part], cut) for line in lines], dtype=np.float64)
            errors, n_units = counts.T
            value, stderr = ratio_and_stderr(errors, n_units)
            stderr = stderr if len(lines) > 1 else None
            rows[f'{name}/{part}'] = {'value': value, 'stderr': stderr, 'n': len(lines), unit: int(n_units.sum())}
    return rows, lines

# --------------------------------------------------------------------------------------------------
# the run

def main(cfg):
    refuse_unwritable_results(cfg.model)
    device = pick_device(cfg.device)
    model, vocab, tokenizer, weights = load(cfg.model, device)
    if vocab.kind == 'text':
        raise Refused(f"{cfg.model}: a text-only model generates no units; measure it with eval.py")
    encoder = load_encoder(cfg.encoder, cfg.layer, cfg.kmeans, device, vocab, cfg.normalize)
    vocab = replace(vocab, units=encoder.hash)
    vocoder = load_vocoder(cfg.vocoder, vocab.codebooks).to(device)
    # Before the slow part, so that a vocoder of other units is refused at once.
    refuse_foreign_units([], vocab.n_units, vocab.units, vocoder.cfg.units_hash)
    asr = load_asr(cfg.asr, device)
    rows = {}
    samples = {}
    if cfg.prompts:
        rows, samples['generation'] = measure_continuations(cfg, model, vocab, tokenizer, encoder, vocoder, asr, device)
    if cfg.speech:
        word_error_rows, samples['resynthesis'] = measure_resynthesis(cfg, vocab, encoder, vocoder, asr)
        rows |= word_error_rows
    tasks = {name.split('/')[0]: {} for name in rows}
    store(cfg.model, weights, rows, samples, tasks, record(cfg))
    print(table({cfg.model: rows}))
    names = ['eval.json', *(f'samples_{name}.jsonl' for name in samples)]
    print('; '.join(f'{folder_of(cfg.model)}/{name}' for name in names))

if __name__ == '__main__':
    run(main, Config)
