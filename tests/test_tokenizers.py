"""
Every way in which a model's folder comes about, with config.json beside its tokenizer, as AutoTokenizer reads it: our
ids for text, units and mixtures of both, the vocabulary's number of ids, the text back, and the same after it was
saved again. With transformers as it is installed; the slow test runs the same folders in environments of other
versions.
"""
import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import transformers
from test_hub import publish
from test_train import write
from test_vocab import make_tokenizer
from tokenizer_reader import problems
from tokenizers import Tokenizer, decoders, models, normalizers, trainers

import eval as evaluation
import sample
import train
from configurator import Refused
from hub.families import GPTConfig
from hub.folders import vocabulary
from hub.tokenizer import PROBES, TextTokenizer, export_tokenizer
from model import GPT
from training import export
from vocab import Vocab

K = 20
# The kind of tokenizer that a family's models have.
OF_FAMILY = {'qwen2': 'qwen2', 'llama': 'llama3', 'gemma2': 'gemma', 'gpt_neox': 'gpt_neox', 'opt': 'opt',
             'bloom': 'opt', 'qwen3': 'qwen2', 'smollm3': 'llama3', 'olmo2': 'llama3', 'olmo3': 'llama3'}
FOREIGN = ('llama3', 'gemma', 'gpt_neox', 'opt', 'llama2', 'qwen2 of other marks') # for a qwen2 of random weights
TEXTS = ("The little dog ran home.", " She'll count  1234 sheep\n\nbefore 5:30!", "caf\u00e9 \u65e5\u672c \U0001f600",
         "It wasn 't theirs , she said .")
OTHER_VERSIONS = ('transformers==4.57.6', 'transformers==5.23.0', 'transformers') # the last: the newest on PyPI

def make_text_folder(kind, folder):
    """A text tokenizer of a kind of test_vocab.py; 'llama2', as sentencepiece's; or Qwen's with other marks."""
    if kind == 'qwen2 of other marks':
        make_tokenizer('qwen2', folder)
        for path in (folder / 'tokenizer.json', folder / 'tokenizer_config.json'):
            path.write_text(path.read_text().replace('<|endoftext|>', '</s><s>'))
        return folder
    if kind != 'llama2':
        return make_tokenizer(kind, folder)
    tokenizer = Tokenizer(models.BPE(byte_fallback=True, unk_token='<unk>', fuse_unk=True))
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend('\u2581'), normalizers.Replace(' ', '\u2581')])
    steps = [decoders.Replace('\u2581', ' '), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(' ', 1, 0)]
    tokenizer.decoder = decoders.Sequence(steps)
    specials = ['<unk>', '<s>', '</s>', *(f'<0x{b:02X}>' for b in range(256))]
    trainer = trainers.BpeTrainer(vocab_size=400, show_progress=False, special_tokens=specials)
    tokenizer.train_from_iterator(TEXTS, trainer)
    spec = json.loads(tokenizer.to_str())
    spec['added_tokens'] = spec['added_tokens'][:3] # bytes are no markup
    folder.mkdir()
    (folder / 'tokenizer.json').write_text(json.dumps(spec))
    (folder / 'tokenizer_config.json').write_text('{"eos_token": "</s>", "unk_token": "<unk>", "add_bos_token": false}')
    return folder

def write_expected(folder, vocab, text):
    """expected.json of a folder: the ids of our own code for texts, units and mixtures."""
    texts = []
    if vocab.kind == 'speech':
        units = [3, 19, 7, 7, 0]
        written = ''.join(f'<Un{unit}>' for unit in units)
        texts.append((written, [vocab.bos, *vocab.unit_to_token(units).tolist(), vocab.bos], written))
    else:
        texts += [(written, [*text.first, *text.encode(written)], written) for written in TEXTS]
    if vocab.kind == 'joint':
        spoken = '<speech><Un3><Un19><Un0>'
        spoken_ids = [vocab.speech, *vocab.unit_to_token([3, 19, 0]).tolist()]
        blank = ' ' if text.name.endswith('llama2') else '' # it puts one before each text, and removes the first alone
        for written in TEXTS:
            ids = [*text.first, *spoken_ids, vocab.text, *text.encode(' ' + written), *spoken_ids]
            texts.append((f'{spoken}<text> {written}{spoken}', ids, f'{spoken}<text>{blank} {written}{spoken}'))
    (folder / 'expected.json').write_text(json.dumps({'size': vocab.size, 'texts': texts}))

def save_model(folder, family, vocab, tokenizer):
    """A folder as train.py leaves it."""
    cfg = GPTConfig(family=family, vocab_size=vocab.size, n_layer=1, n_head=2, n_embd=16)
    GPT(cfg).save_pretrained(folder, vocab, tokenizer)
    write_expected(folder, vocab, tokenizer and TextTokenizer(tokenizer))

def joint_of(text):
    return Vocab('joint', text.size, K, text.hash, 'abc')

def write_folders(root):
    """One folder a way, named by it -> their paths."""
    kinds = {*OF_FAMILY.values(), *FOREIGN}
    texts = {kind: TextTokenizer(make_text_folder(kind, root / f'text tokenizer {kind}')) for kind in sorted(kinds)}
    out = root / 'models'
    for family, kind in OF_FAMILY.items():
        text = texts[kind]
        save_model(out / f'{family}, text', family, text.vocab, text.name)
        save_model(out / f'{family}, joint by TWIST', family, joint_of(text), text.name)
        save_model(out / f'{family}, speech', family, Vocab('speech', n_units=K), None)
    for kind in FOREIGN:
        text = texts[kind]
        save_model(out / f'qwen2 from scratch, text of {kind}', 'qwen2', text.vocab, text.name)
        save_model(out / f'qwen2 from scratch, joint of {kind}', 'qwen2', joint_of(text), text.name)
    for way in ('qwen2, joint by TWIST', 'qwen2 from scratch, joint of llama2'):
        vocab, text = vocabulary(out / way)
        save_model(out / f'DPO of {way}', 'qwen2', vocab, text.name)
    text = write_old_format(texts['opt'], root / 'old')
    save_model(out / 'opt, joint of vocab.json and merges.txt', 'opt', joint_of(text), text.name)
    for kind in ('joint', 'speech'):
        published = publish(root / f'published {kind}', texts['qwen2'].name, kind)
        folder = out / f'published {kind}, exported'
        export.main(export.Config(model=str(published), out=str(folder)))
        write_expected(folder, vocabulary(folder)[0], texts['qwen2'])
    shutil.copytree('tiny/slm', out / 'shipped model')
    write_expected(out / 'shipped model', *vocabulary('tiny/slm'))
    shutil.copytree('tiny/tokenizer', out / 'shipped tokenizer')
    text = TextTokenizer('tiny/tokenizer')
    write_expected(out / 'shipped tokenizer', text.vocab, text)
    return sorted(out.iterdir())

def write_old_format(text, folder):
    """A byte-level TextTokenizer as vocab.json and merges.txt, as OPT's."""
    model = json.loads((Path(text.name) / 'tokenizer.json').read_text())['model']
    config = {'tokenizer_class': 'GPT2Tokenizer', 'eos_token': '</s>', 'bos_token': '</s>', 'unk_token': '</s>'}
    folder.mkdir()
    (folder / 'vocab.json').write_text(json.dumps({**model['vocab'], '</s>': len(model['vocab'])}))
    (folder / 'merges.txt').write_text('\n'.join(['#version: 0.2', *map(' '.join, model['merges'])]) + '\n')
    (folder / 'tokenizer_config.json').write_text(json.dumps(config))
    return TextTokenizer(folder)

@pytest.fixture(scope='module')
def folders(tmp_path_factory):
    """{folder: what is wrong with its tokenizer}; the folder's subfolder `saved` has what transformers saves of it."""
    return {folder: problems(folder) for folder in write_folders(tmp_path_factory.mktemp('ways'))}

# --------------------------------------------------------------------------------------------------
# other readers

def test_auto_tokenizer_gives_our_ids_for_every_way_to_make_a_folder(folders):
    assert len(folders) == 49
    wrong = {folder.name: lines for folder, lines in folders.items() if lines}
    assert not wrong, json.dumps(wrong, indent=1)

def test_a_folder_that_transformers_has_saved_again_is_read_by_us(folders):
    for folder in folders:
        if (folder / 'vocab.json').is_file():
            shutil.copy(folder / 'vocab.json', folder / 'saved')
            assert vocabulary(folder / 'saved')[0] == vocabulary(folder)[0], folder.name
            (folder / 'saved' / 'vocab.json').unlink() # as of a merged LoRA
            if 'text' not in folder.name:
                assert vocabulary(folder / 'saved')[0].size == vocabulary(folder)[0].size

def read_in(environment, folders):
    """Asserts that transformers of this environment reads the folders as we do."""
    command = [environment / 'bin' / 'python', 'tests/tokenizer_reader.py', *folders]
    wrong = json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
    wrong = {folder: lines for folder, lines in wrong.items() if lines}
    assert not wrong, f"{environment.name}: {json.dumps(wrong, indent=1)}"
    print(f"{environment.name}: {len(folders)} folders, all ids are ours")

@pytest.mark.slow
def test_so_it_is_in_other_versions_also_where_an_older_one_has_saved_the_tokenizer_again(tmp_path):
    folders = write_folders(tmp_path)
    environments = [tmp_path / requirement for requirement in OTHER_VERSIONS]
    for environment in environments:
        subprocess.run([sys.executable, '-m', 'venv', environment], check=True)
        command = [environment / 'bin' / 'python', '-m', 'pip', 'install', '--quiet', environment.name]
        pip = subprocess.run(command, capture_output=True, text=True)
        if pip.returncode:
            pytest.skip(f"{environment.name} cannot be installed: {pip.stderr.strip().splitlines()[-1]}")
        read_in(environment, folders)
        for folder in folders:
            shutil.copytree(folder / 'saved', tmp_path / 'saved' / environment.name / folder.name)
    for newer, older in ((1, 0), (2, 0), (2, 1)): # 4.57 refuses the class that 5 names
        read_in(environments[newer], sorted((tmp_path / 'saved' / environments[older].name).iterdir()))

# --------------------------------------------------------------------------------------------------
# folders of earlier versions, and folders that another tool has changed

def write_speech_folder_of_earlier_versions(folder):
    """A speech model whose units are words of the tokenizer, not added tokens."""
    vocab = Vocab('speech', n_units=K)
    save_model(folder, 'qwen2', vocab, None)
    path = folder / 'tokenizer.json'
    spec = json.loads(path.read_text())
    split = {'type': 'Split', 'pattern': {'String': '>'}, 'behavior': 'MergedWithPrevious', 'invert': False}
    model = {'type': 'WordLevel', 'vocab': spec['model']['vocab'], 'unk_token': '<PAD>'}
    spec |= {'normalizer': None, 'decoder': {'type': 'Fuse'}, 'pre_tokenizer': split, 'model': model,
             'added_tokens': spec['added_tokens'][:2]}
    path.write_text(json.dumps(spec))
    marks = {'pad_token': '<PAD>', 'bos_token': '<S>', 'eos_token': '<S>'}
    config = {**marks, 'tokenizer_class': 'PreTrainedTokenizerFast'}
    (folder / 'tokenizer_config.json').write_text(json.dumps(config))
    return vocab

def write_joint_folder_of_earlier_versions(root):
    """A joint qwen2 with Llama's splitting, whose tokenizer_config.json does not name the class for AutoTokenizer."""
    root.mkdir()
    text = TextTokenizer(make_text_folder('llama3', root / 'text'))
    save_model(root / 'model', 'qwen2', joint_of(text), text.name)
    vocab = json.loads((root / 'model' / 'vocab.json').read_text())
    assert list(vocab.pop('probes')) == list(PROBES)
    (root / 'model' / 'vocab.json').write_text(json.dumps(vocab))
    path = root / 'model' / 'tokenizer_config.json'
    config = json.loads(path.read_text())
    del config['auto_map']
    path.write_text(json.dumps(config))
    return joint_of(text)

def test_folders_of_earlier_versions_are_read_and_export_mends_them(tmp_path):
    kinds = {'speech': write_speech_folder_of_earlier_versions(tmp_path / 'speech'),
             'joint/model': write_joint_folder_of_earlier_versions(tmp_path / 'joint')}
    for name, vocab in kinds.items():
        assert vocabulary(tmp_path / name)[0] == vocab
        assert problems(tmp_path / name) != [], "this version of transformers needs no auto_map any more"
        export.main(export.Config(model=str(tmp_path / name), out=str(tmp_path / 'out' / name)))
        shutil.copy(tmp_path / name / 'expected.json', tmp_path / 'out' / name)
        assert problems(tmp_path / 'out' / name) == []

def save_again(folder):
    """What many tools do with a folder: they read its tokenizer and save it over the old one."""
    transformers.AutoTokenizer.from_pretrained(folder).save_pretrained(folder)

def test_a_tokenizer_that_another_tool_has_changed_is_refused_with_the_first_text_that_differs(tmp_path):
    write_speech_folder_of_earlier_versions(tmp_path / 'speech')
    save_again(tmp_path / 'speech')
    with pytest.raises(Refused, match=r"speech: its tokenizer gives \[\] for '<Un3><Un19><Un0>', the model was trained "
                                      r"on \[5, 21, 2\]; another tool has changed the tokenizer's files"):
        vocabulary(tmp_path / 'speech')
    write_joint_folder_of_earlier_versions(tmp_path / 'joint')
    folder = tmp_path / 'joint' / 'model'
    vocab, text = vocabulary(folder)
    save_again(folder)
    with pytest.raises(Refused, match=f'model: tokenizer .*{text.size} ids, the vocabulary was made with {text.hash}'):
        vocabulary(folder)
    vocab.save(folder, {probe: [*text.first, *text.encode(probe)] for probe in PROBES})
    write(tmp_path / 'tokens' / 'train' / 'speech', vocab, [[vocab.n_text + 1] * 9] * 9)
    training = train.Config(data=str(tmp_path / 'tokens'), sources=('speech',), init=str(folder), max_steps=1,
                            batch_tokens=8, block_size=8, micro_batch=1, out=str(tmp_path / 'run'), device='cpu')
    sampling = sample.Config(model=str(folder), prompt='a', output='text', device='cpu')
    measuring = evaluation.Config(model=str(folder), data='', device='cpu')
    message = "model: .* for \"She'll count 1234 sheep before 5:30!\", the model was trained on"
    for main, cfg in ((train.main, training), (sample.main, sampling), (evaluation.main, measuring)):
        with pytest.raises(Refused, match=message):
            main(cfg)

def test_missing_units_and_ids_that_were_added_are_refused(tmp_path):
    text = TextTokenizer(make_text_folder('qwen2', tmp_path / 'text'))
    vocab = joint_of(text)
    save_model(tmp_path / 'model', 'qwen2', vocab, text.name)
    shutil.copy(tmp_path / 'text' / 'tokenizer.json', tmp_path / 'model') # that of the TextLM below
    with pytest.raises(Refused, match="for '<speech><Un3><Un19><Un0><text>', the model was trained on"):
        vocabulary(tmp_path / 'model')
    export_tokenizer(text.name, vocab, tmp_path / 'model')
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path / 'model')
    tokenizer.add_tokens(['<laughter>'])
    tokenizer.save_pretrained(tmp_path / 'model')
    with pytest.raises(Refused, match=f'its tokenizer has {vocab.size + 1} ids, the model was trained on {vocab.size}'):
        vocabulary(tmp_path / 'model')
