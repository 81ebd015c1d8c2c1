"""
A model's Hugging Face folder, read and written; model.py says which of its tensors has which name there (`places`).

    config.json                    the family and its sizes: GPTConfig of hub/families.py
    model.safetensors              all tensors by name, or, from 5 GB on,
    model-00001-of-00002.safetensors, ... and model.safetensors.index.json, which says in which file a tensor is

    vocab.json                      which id is what (vocab.py); folders from elsewhere have none, see `vocabulary`

A folder may also be a hub id, which is downloaded. Reading is strict: each tensor that is missing, extra, there twice, of
another shape or not finite is named, and the folder refused. Files are memory-mapped; nothing is unpickled.
"""
import json
import re
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from configurator import Refused
from files import atomically, write_json
from hub.families import GPTConfig
from hub.tokenizer import TextTokenizer, vocabulary_of
from vocab import PUBLISHED, Vocab

SHARD_BYTES = 5 * 10**9 # of a file that is written
BUFFERS = r'rotary_emb\.inv_freq$|\.attention\.(masked_)?bias$' # in files of old transformers, not weights

def local_folder(name, files=('*.json', '*.safetensors')):
    """The folder of a checkpoint: name itself, or the download of its files from the hub."""
    if Path(name).is_dir():
        return Path(name)
    if not re.fullmatch(r'[\w.-]+/[\w.-]+', str(name)) or Path(name).parent.is_dir():
        raise Refused(f"{name}: no such model folder; expected a folder, or a hub id like Qwen/Qwen2.5-0.5B")
    from huggingface_hub import snapshot_download
    try:
        return Path(snapshot_download(str(name), allow_patterns=files))
    except (OSError, ValueError) as e:
        raise Refused(f"{name}: no such folder, and not to be had from the hub ({type(e).__name__}); where there is a network: "
                      f"hf download {name} --local-dir=FOLDER") from None

def read_config(folder):
    """The GPTConfig of a folder or hub id."""
    path = local_folder(folder, ['config.json']) / 'config.json'
    return GPTConfig.from_hf(_read_json(path), path)

def knows_units(name):
    """Whose way a folder or hub id says which ids are units: 'ours', 'tokenizer', 'slamkit', or None: not at all."""
    folder = local_folder(name, ['*.json', 'merges.txt'])
    try:
        if isinstance(json.loads((folder / 'vocab.json').read_text(encoding='utf-8')).get('kind'), str):
            return 'ours' # Qwen2.5, SmolLM2, OPT may have a file of that name, of their tokenizer: token -> id
    except FileNotFoundError:
        pass
    except (OSError, ValueError, AttributeError):
        return 'ours' # and damaged, which Vocab.load says
    tokenizer, config = folder / 'tokenizer.json', folder / 'config.json'
    if tokenizer.is_file() and '"<Un0>"' in tokenizer.read_text(encoding='utf-8'):
        return 'tokenizer'
    return 'slamkit' if config.is_file() and 'base_config' in _read_json(config) else None

def vocabulary(name):
    """(Vocab, its TextTokenizer or None) of a model's folder or hub id:

    ours        vocab.json
    tokenizer   units in its tokenizer.json, in one of vocab.py's layouts
    slamkit     (slprl/*) config.json with base_config, and no tokenizer: vocab_size is K + 2, or T + K + 2 with the text tokenizer
                of base_model_name (or of a tokenizer.json put beside it); K = 500, or num_units of tokeniser_config.json;
                units of slprl/mhubert-base-25hz, layer 11
    None        a TextLM: its tokenizer
    """
    folder, way = local_folder(name, ['*.json', 'merges.txt']), knows_units(name)
    if way == 'slamkit':
        return _published(folder, _read_json(folder / 'config.json'))
    if way is None and any((folder / file).is_file() for file in ('tokenizer.json', 'merges.txt')):
        return (tokenizer := TextTokenizer(folder)).vocab, tokenizer
    vocab = vocabulary_of(folder) if way == 'tokenizer' else Vocab.load(folder)
    return vocab, None if vocab.kind == 'speech' else TextTokenizer(folder)

def _published(folder, config):
    """(Vocab, TextTokenizer or None) of a folder that slamkit saved."""
    said = folder / 'tokeniser_config.json'
    K, V, base = _read_json(said).get('num_units') if said.is_file() else 500, config.get('vocab_size'), config['base_config']
    if V == K + 2:
        special = tuple(base.get(f'{key}_token_id') for key in ('pad', 'bos', 'eos'))
        if special != (0, 1, 1):
            raise Refused(f"{folder}/config.json: pad, bos and eos of {V} ids are {special}, expected (0, 1, 1) before {K} units")
        return Vocab('speech', n_units=K, units=PUBLISHED), None
    tokenizer = TextTokenizer(folder if (folder / 'tokenizer.json').is_file() else str(config.get('base_model_name')))
    if V != tokenizer.size + K + 2:
        raise Refused(f"{folder}/config.json: vocab_size {V} is neither {K} + 2 nor the {tokenizer.size} ids of tokenizer "
                      f"{tokenizer.name} + {K} + 2; put the tokenizer.json of its text model into the folder")
    return Vocab('joint', tokenizer.size, K, tokenizer.hash, PUBLISHED), tokenizer

def _read_json(path):
    try:
        return json.loads(path.read_text(encoding='utf-8'))
    except FileNotFoundError:
        raise Refused(f"{path}: missing; expected a Hugging Face folder with config.json and safetensors") from None
    except ValueError as e: # not JSON, or not UTF-8
        raise Refused(f"{path}: not JSON ({e})") from None

def _shape(view):
    """The shape in a file of what model.py gives: heads, q | k | v and channels of a fused tensor are its rows."""
    return view.shape if view.ndim < 3 else (-1, view.size(-1)) if view.ndim == 4 else (-1,)

# ----------------------------------------------------------------------------------------------------------------
# writing

def write_weights(folder, places, dtype):
    """places: {name: tensor} -> the folder's safetensors files, in dtype; those of an earlier save go."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    shards, size = [{}], 0
    for name, view in places.items():
        nbytes = view.numel() * dtype.itemsize
        if shards[-1] and size + nbytes > SHARD_BYTES:
            shards.append({})
            size = 0
        shards[-1][name], size = view, size + nbytes
    files = ['model.safetensors'] if len(shards) == 1 else \
        [f'model-{i + 1:05d}-of-{len(shards):05d}.safetensors' for i in range(len(shards))]
    for file, shard in zip(files, shards):
        shard = {name: view.to('cpu', dtype, copy=True).reshape(_shape(view)) for name, view in shard.items()}
        with atomically(folder / file) as tmp:
            save_file(shard, tmp, {'format': 'pt'})
    index = folder / 'model.safetensors.index.json'
    if len(files) > 1:
        weights = {name: file for file, shard in zip(files, shards) for name in shard}
        total = sum(view.numel() for view in places.values()) * dtype.itemsize
        write_json(index, {'metadata': {'total_size': total}, 'weight_map': weights})
    for stale in set(folder.glob('model*.safetensors')) - {folder / file for file in files}:
        stale.unlink()
    if len(files) == 1:
        index.unlink(missing_ok=True)

# ----------------------------------------------------------------------------------------------------------------
# reading

def read_weights(folder, places, tied, prefix):
    """Copies the folder's tensors into places, {name: tensor}, each once and none left.

    tied: {name of a tensor that some files save too: the one in places it must equal}; prefix: what names may leave out.
    """
    problems, missing, also = [], set(places), {}
    for file in _weight_files(folder):
        try:
            with safe_open(file, 'pt') as tensors: # memory-mapped
                for theirs in tensors.keys():
                    name = theirs.removeprefix('lm.') # of slprl/*
                    name = name if name in places or prefix + name not in places else prefix + name
                    if name in tied:
                        also[name] = tensors.get_tensor(theirs)
                        continue
                    twice = name in places and name not in missing
                    problem = f"{theirs} is there twice" if twice else _fill(places.get(name), tensors, theirs)
                    problems += [problem] if problem else []
                    missing.discard(name)
        except (SafetensorError, OSError) as e:
            raise Refused(f"{file}: not a whole safetensors file ({str(e).splitlines()[0]})") from None
    problems += [f"{name} is missing" for name in sorted(missing)]
    problems += [f"{name} differs from the embedding, to which config.json ties it" for name, tensor in also.items()
                 if not torch.equal(tensor.to(places[tied[name]]), places[tied[name]])]
    if problems:
        more = f" and {len(problems) - 10} more" if len(problems) > 10 else ""
        raise Refused(f"{folder}: the weights are not those of its config.json: {'; '.join(problems[:10])}{more}")

def _fill(place, tensors, name):
    """Copies a tensor of a file into place; what is wrong with it as a string, else None."""
    if place is None:
        return None if re.search(BUFFERS, name) else f"{name} is extra"
    header, shape = tensors.get_slice(name), tuple(torch.empty(place.shape, device='meta').reshape(_shape(place)).shape)
    if tuple(header.get_shape()) != shape:
        return f"{name} is {tuple(header.get_shape())}, expected {shape}"
    if header.get_dtype() not in ('F32', 'F16', 'BF16'):
        return f"{name} is {header.get_dtype()}, expected F32, F16 or BF16"
    tensor = tensors.get_tensor(name)
    if not tensor.isfinite().all():
        return f"{name} has values that are not finite"
    place.copy_(tensor.view(place.shape))

def _weight_files(folder):
    """The safetensors files of a folder: one, or those its index names."""
    index = folder / 'model.safetensors.index.json'
    if (folder / 'model.safetensors').is_file():
        return [folder / 'model.safetensors']
    if not index.is_file():
        raise Refused(f"{folder}: no model.safetensors and no model.safetensors.index.json; pytorch_model.bin is a pickle and is "
                      "not read: convert it once by transformers' AutoModelForCausalLM.from_pretrained(NAME).save_pretrained(FOLDER)")
    files = sorted(set(_read_json(index).get('weight_map', {}).values()))
    for file in files:
        if not re.fullmatch(r'[\w-][\w.-]*\.safetensors', file): # no path parts
            raise Refused(f"{index}: {file!r} is no file name of this folder")
        if not (folder / file).is_file():
            raise Refused(f"{folder / file}: missing, though {index.name} names it")
    return [folder / file for file in files]
