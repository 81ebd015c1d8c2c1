"""
Reads and writes the Hugging Face folder of a model:

    config.json                    the family and its sizes: GPTConfig of hub/families.py
    model.safetensors              all tensors by name, or, from 5 GB on,
    model-00001-of-00002.safetensors, ... and model.safetensors.index.json, each tensor's file
    vocab.json                     which id is what (vocab.py); other folders: see `vocabulary`

A hub id stands for its download. model.py maps the tensors' names to views of its parameters, here
called `tensors`. Reading is strict: every tensor that is missing, extra, duplicated, not finite or
of another shape is named, and the folder is refused. Files are memory-mapped; nothing is unpickled.
"""
import re
from fnmatch import fnmatch
from pathlib import Path

import torch
from einops import rearrange
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from configurator import Refused
from files import atomically, check_readable, is_finite, read_json, read_value, why_changed, write_json
from hub.families import GPTConfig
from hub.tokenizer import TextTokenizer, check_ids, vocabulary_of
from vocab import PAPERS_UNITS, PUBLISHED, Vocab

WRITER = "transformers' save_pretrained" # what makes the files that are read here
SHARD_BYTES = 5 * 10**9 # a written file has at most this many
BUFFERS = r'rotary_emb\.inv_freq$|\.attention\.(masked_)?bias$' # in files of old transformers, not weights

def local_folder(name, files=('*.json', '*.safetensors')):
    """The folder of a checkpoint: name itself, or the download of its files from the hub."""
    check_readable(name)
    if Path(name).is_dir():
        return Path(name)
    if not re.fullmatch(r'[\w.-]+/[\w.-]+', str(name)) or Path(name).parent.is_dir():
        raise Refused(f"{name}: no such model folder; expected a folder, or a hub id like Qwen/Qwen2.5-0.5B")
    from huggingface_hub import snapshot_download
    try:
        return Path(snapshot_download(str(name), allow_patterns=files))
    except (OSError, ValueError) as e:
        raise Refused(f"{name}: no such folder, and its download from the hub failed ({type(e).__name__}); "
                      f"where there is a network: hf download {name} --local-dir=FOLDER") from None

def read_config(folder):
    """The GPTConfig of a folder or hub id."""
    path = local_folder(folder, ['config.json']) / 'config.json'
    return GPTConfig.from_hf(read_json(path.parent, path.name, WRITER), path)

def check_unchanged(folder, *patterns):
    """Refuses a model of train.py or dpo.py whose files of these patterns are not as its MANIFEST.json says."""
    if not (folder / 'MANIFEST.json').is_file():
        return
    files = read_json(folder, 'MANIFEST.json', 'train.py').get('files')
    try:
        why = why_changed(folder, {name: files[name] for name in files if any(fnmatch(name, p) for p in patterns)})
    except (TypeError, KeyError) as e:
        why = f"MANIFEST.json cannot be read ({type(e).__name__})"
    if why:
        raise Refused(f"{folder}: {why}; the command that made the model writes it again from its last step-N; "
                      "where the change was meant, remove MANIFEST.json")

def knows_units(name):
    """Where a folder or hub id says which ids are units, or None: see vocabulary for the values."""
    folder = local_folder(name, ['*.json', 'merges.txt'])
    try:
        content = read_value(folder / 'vocab.json')
        # The tokenizers of Qwen2.5, SmolLM2 and OPT have a file of that name too: token -> id.
        if isinstance(content.get('kind'), str):
            return 'ours'
    except FileNotFoundError:
        pass
    except (OSError, ValueError, AttributeError):
        return 'ours' # damaged, as Vocab.load will report
    tokenizer = folder / 'tokenizer.json'
    if tokenizer.is_file() and '"<Un0>"' in tokenizer.read_text(encoding='utf-8'):
        return 'tokenizer'
    config = folder / 'config.json'
    return 'slamkit' if config.is_file() and 'base_config' in read_json(folder, 'config.json', WRITER) else None

def vocabulary(name):
    """(Vocab, its TextTokenizer or None) of a model's folder or hub id, by what knows_units says:

    ours        vocab.json
    tokenizer   units in its tokenizer.json, in one of vocab.py's layouts
    slamkit     (slprl/*) config.json with base_config and no tokenizer. vocab_size is K + 2, or
                n_text + K + 2 with the n_text ids of the tokenizer of base_model_name (or of a
                tokenizer.json put beside it). K is num_units of tokeniser_config.json, or 500. The
                units are those of slprl/mhubert-base-25hz, layer 11
    None        a text model: its tokenizer

    A tokenizer that does not give the ids that the model was trained on is refused.
    """
    folder = local_folder(name, ['*.json', 'merges.txt'])
    check_unchanged(folder, 'vocab.json')
    source = knows_units(name)
    if source == 'slamkit':
        return _published(folder, read_json(folder, 'config.json', WRITER))
    if source is None and any((folder / file).is_file() for file in ('tokenizer.json', 'merges.txt')):
        tokenizer = TextTokenizer(folder)
        return tokenizer.vocab, tokenizer
    vocab = vocabulary_of(folder) if source == 'tokenizer' else Vocab.load(folder)
    tokenizer = None if vocab.kind == 'speech' else TextTokenizer(folder)
    check_ids(folder, vocab, tokenizer)
    return vocab, tokenizer

def _published(folder, config):
    """(Vocab, TextTokenizer or None) of a folder that slamkit saved."""
    tokeniser = folder / 'tokeniser_config.json'
    K = read_json(folder, tokeniser.name, WRITER).get('num_units') if tokeniser.is_file() else PAPERS_UNITS
    V = config.get('vocab_size')
    base = config['base_config']
    if V == K + 2:
        special = tuple(base.get(f'{key}_token_id') for key in ('pad', 'bos', 'eos'))
        if special != (0, 1, 1):
            raise Refused(f"{folder}/config.json: pad, bos and eos of {V} ids are {special}, "
                          f"expected (0, 1, 1) before {K} units")
        return Vocab('speech', n_units=K, units=PUBLISHED), None
    has_tokenizer = (folder / 'tokenizer.json').is_file()
    tokenizer = TextTokenizer(folder if has_tokenizer else str(config.get('base_model_name')))
    if V != tokenizer.size + K + 2:
        raise Refused(f"{folder}/config.json: vocab_size {V} is neither {K} + 2 nor the {tokenizer.size} ids "
                      f"of tokenizer {tokenizer.name} + {K} + 2; put the tokenizer.json of its text model "
                      "into the folder")
    return Vocab('joint', tokenizer.size, K, tokenizer.hash, PUBLISHED), tokenizer

def _as_in_file(view):
    """A view in the shape of its file: a fused q | k | v (H, 3, D, ...) has all heads as rows there."""
    return view if view.ndim < 3 else rearrange(view, 'h qkv d ... -> (h qkv d) ...')

# --------------------------------------------------------------------------------------------------
# writing

def write_weights(folder, tensors, dtype):
    """Writes tensors, {name: view}, as the folder's files in dtype; removes those of an earlier save."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    shards = [{}]
    size = 0
    for name, view in tensors.items():
        nbytes = view.numel() * dtype.itemsize
        if shards[-1] and size + nbytes > SHARD_BYTES:
            shards.append({})
            size = 0
        shards[-1][name] = view
        size += nbytes
    n = len(shards)
    files = ['model.safetensors']
    if n > 1:
        files = [f'model-{i + 1:05d}-of-{n:05d}.safetensors' for i in range(n)]
    for file, shard in zip(files, shards):
        shard = {name: _as_in_file(view.to('cpu', dtype, copy=True)) for name, view in shard.items()}
        with atomically(folder / file) as tmp:
            save_file(shard, tmp, {'format': 'pt'})
    index = folder / 'model.safetensors.index.json'
    if n > 1:
        weight_map = {name: file for file, shard in zip(files, shards) for name in shard}
        total = sum(view.numel() for view in tensors.values()) * dtype.itemsize
        write_json(index, {'metadata': {'total_size': total}, 'weight_map': weight_map})
    for stale in set(folder.glob('model*.safetensors')) - {folder / file for file in files}:
        stale.unlink()
    if n == 1:
        index.unlink(missing_ok=True)

# --------------------------------------------------------------------------------------------------
# reading

def read_weights(folder, tensors, tied, prefix):
    """Fills tensors, {name: view}, from the folder's files; refused unless each is filled exactly once.

    tied    {name of a copy that some files have: name of the tensor that it must equal}
    prefix  what the names in files may leave out

    Of views on the meta device, which take no memory, only names, shapes and dtypes are compared.
    """
    problems = []
    missing = set(tensors)
    copies = {}
    for file in _weight_files(folder):
        try:
            with safe_open(file, 'pt') as weights: # memory-mapped
                for key in weights.keys():
                    name = key.removeprefix('lm.') # of slprl/*
                    if name not in tensors and prefix + name in tensors:
                        name = prefix + name
                    if name in tied:
                        if not tensors[tied[name]].is_meta:
                            copies[name] = weights.get_tensor(key)
                        continue
                    if name in tensors and name not in missing:
                        problem = f"{key} is there twice"
                    else:
                        problem = _fill(tensors.get(name), weights, key)
                    if problem:
                        problems.append(problem)
                    missing.discard(name)
        except (SafetensorError, OSError) as e:
            raise _not_whole(file, e) from None
    problems += [f"{name} is missing" for name in sorted(missing)]
    for name, copy in copies.items():
        embedding = tensors[tied[name]]
        if not torch.equal(copy.to(embedding), embedding):
            problems.append(f"{name} differs from the embedding, to which config.json ties it")
    if problems:
        rest = f" and {len(problems) - 10} more" if len(problems) > 10 else ""
        raise Refused(f"{folder}: the weights are not those of its config.json: {'; '.join(problems[:10])}{rest}")

def check_layers(folder, n_layer):
    """Refuses a config.json of more layers than the folder's files have tensors, before any is made."""
    n_tensors = 0
    for file in _weight_files(folder):
        try:
            with safe_open(file, 'pt') as weights:
                n_tensors += len(weights.keys())
        except (SafetensorError, OSError) as e:
            raise _not_whole(file, e) from None
    if n_layer > n_tensors:
        raise Refused(f"{folder}: config.json has {n_layer:,} layers, and the weights are {n_tensors:,} tensors; "
                      "take the config.json that was published with the weights")

def _not_whole(file, error):
    return Refused(f"{file}: not a whole safetensors file ({str(error).splitlines()[0]})")

def _fill(view, weights, key):
    """Copies a file's tensor into view -> None, or what is wrong with it."""
    if view is None:
        return None if re.search(BUFFERS, key) else f"{key} is extra"
    header = weights.get_slice(key)
    shape = tuple(header.get_shape())
    expected = tuple(_as_in_file(torch.empty(view.shape, device='meta')).shape)
    if shape != expected:
        return f"{key} is {shape}, expected {expected}"
    if header.get_dtype() not in ('F32', 'F16', 'BF16'):
        return f"{key} is {header.get_dtype()}, expected F32, F16 or BF16"
    if view.is_meta:
        return None
    tensor = weights.get_tensor(key)
    if not is_finite(tensor):
        return f"{key} has values that are not finite"
    view.copy_(tensor.view(view.shape))

def _weight_files(folder):
    """The safetensors files of a folder: model.safetensors, or those that the index names."""
    single = folder / 'model.safetensors'
    if single.is_file():
        return [single]
    index = folder / 'model.safetensors.index.json'
    if (folder / 'part-00000.safetensors').is_file():
        raise Refused(f"{folder}: a checkpoint, whose weights are in parts; "
                      f"python -m training.export --model={folder} --out=NEW_FOLDER makes a model of it")
    if not index.is_file():
        raise Refused(f"{folder}: no model.safetensors and no model.safetensors.index.json; pytorch_model.bin "
                      "is a pickle and is not read: convert it once by transformers' "
                      "AutoModelForCausalLM.from_pretrained(NAME).save_pretrained(FOLDER)")
    weight_map = read_json(index.parent, index.name, WRITER).get('weight_map')
    if not isinstance(weight_map, dict) or not all(isinstance(file, str) for file in weight_map.values()):
        raise Refused(f"{index}: expected a weight_map, {{tensor: file}}; copy the folder again")
    files = sorted(set(weight_map.values()))
    for file in files:
        if not re.fullmatch(r'[\w-][\w.-]*\.safetensors', file): # no path parts
            raise Refused(f"{index}: {file!r} is no file name of this folder")
        if not (folder / file).is_file():
            raise Refused(f"{folder / file}: missing, though {index.name} names it")
    return [folder / file for file in files]
