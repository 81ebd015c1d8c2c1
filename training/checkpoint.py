"""
Training state that survives a kill at any moment, and resumes to the bit. Used by train.py and dpo.py.

    out/x/step-N/               written as step-N.tmp/, every file fsynced, renamed, the parent fsynced
      config.json, model.safetensors, ...   the model as a Hugging Face folder, float32: the master weights themselves
      state.safetensors         the optimizer's moments as `parameter.exp_avg`, ...; `rng`, `rng.cuda`
      state.json                {"format": 1, "step": N, ...} whatever else the loop must remember
      MANIFEST.json             {"format": 1, "files": {name: {"bytes", "sha256"}}} of all the others

A folder counts only if every file has the size and hash its manifest says; `newest` takes the newest that does, says
which it passed over and why, and refuses when there are some and all are bad: a run never restarts in silence.
open_run gives a loop what an earlier start left, and refuses to go on with another run's; export ends it.
No pickle: tensors are safetensors, all else is JSON.
"""
import hashlib
import json
import re
import shutil
from dataclasses import asdict
from pathlib import Path
from typing import NamedTuple

import torch
import torch.distributed as dist
from safetensors.torch import load_file, save_file
from torch.distributed.tensor import DTensor, distribute_tensor

from configurator import Refused
from files import atomically, record, sha256, write_json
from training.processes import Place
from vocab import Vocab

FORMAT = 1
KEEP = 2 # folders that stay: the newest may be the one a failing disk eats

def folders(out_dir):
    """The step-N folders of out_dir, newest first."""
    found = [(int(m[1]), p) for p in Path(out_dir).glob('step-*') if (m := re.fullmatch(r'step-(\d+)', p.name))]
    return [path for _, path in sorted(found, reverse=True)]

def why_unusable(folder):
    """Why a folder is not to be trusted; None if it is what was written."""
    try:
        manifest = json.loads((folder / 'MANIFEST.json').read_text())
        if manifest['format'] != FORMAT:
            return f"format {manifest['format']}, this code reads {FORMAT}"
        for name, want in manifest['files'].items():
            path = folder / name
            if Path(name).name != name or not path.is_file():
                return f"{name} is missing"
            if path.stat().st_size != want['bytes']:
                return f"{name} has {path.stat().st_size} bytes, not {want['bytes']}"
            if sha256(path) != want['sha256']:
                return f"{name} has changed since it was written (sha256)"
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as e:
        return f"MANIFEST.json cannot be read ({type(e).__name__})"
    return None

def newest(out_dir):
    """The newest folder that verifies, None where there is none at all; Refused when all of them are bad."""
    bad = []
    for folder in folders(out_dir):
        why = why_unusable(folder)
        if why is None:
            if bad:
                print(f"{'; '.join(bad)}: going back to {folder}")
            return folder
        bad.append(f"{folder}: {why}")
    if bad:
        raise Refused(f"no checkpoint of {out_dir} verifies: {'; '.join(bad)}; to start anew, move the folder away")
    return None

def full_tensor(tensor):
    """A tensor that is in shards over the ranks, put together on each; any other as it is."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor

def whole_model(model, rank):
    """On rank 0 the model, its shards put together on the CPU; None on the others, which must call it too."""
    if not any(isinstance(p, DTensor) for p in model.parameters()):
        return model if rank == 0 else None
    with torch.device('meta'):
        copy = type(model)(model.cfg)
    for name, p in model.named_parameters(): # one at a time on the device
        full, (parent, _, leaf) = full_tensor(p.detach()), name.rpartition('.')
        if rank == 0:
            setattr(copy.get_submodule(parent), leaf, torch.nn.Parameter(full.cpu()))
    return copy if rank == 0 else None

def _state_tensors(model, optimizer, rank):
    """On rank 0 the optimizer's tensors under their parameters' names, and the random states."""
    tensors = {}
    for name, p in model.named_parameters():
        for key, value in optimizer.state[p].items():
            value = full_tensor(value)
            tensors |= {f'{name}.{key}': value.cpu()} if rank == 0 else {}
    tensors['rng'] = torch.get_rng_state()
    if next(model.parameters()).is_cuda:
        tensors['rng.cuda'] = torch.cuda.get_rng_state()
    return {name: value.detach().cpu().contiguous() for name, value in tensors.items()}

def save(out_dir, step, model, optimizer, state, vocab, tokenizer, rank=0):
    """Writes out_dir/step-N, then removes all but the newest KEEP. All ranks call it; rank 0 writes.

    Weights or moments that are not finite are refused: nothing is ever saved over a good checkpoint with a bad one.
    """
    out_dir = Path(out_dir)
    tensors, model = _state_tensors(model, optimizer, rank), whole_model(model, rank)
    if model is None:
        return None
    for name, value in [*model.named_parameters(), *tensors.items()]:
        if value.is_floating_point() and not value.isfinite().all():
            raise Refused(f"step {step}: {name} is not finite, not saved; the last good one is {newest(out_dir)}")
    for old in out_dir.glob('step-*.tmp'): # of a killed run
        shutil.rmtree(old, ignore_errors=True)
    need = sum(t.nbytes for t in tensors.values()) + sum(4 * p.numel() for p in model.parameters()) # float32 in the files
    free = shutil.disk_usage(out_dir).free
    if free < need:
        raise Refused(f"{out_dir}: a checkpoint needs {need:,} bytes, {free:,} are free; the older ones are intact")
    final = out_dir / f'step-{step}'
    if final.exists(): # one that did not verify, reached again
        shutil.rmtree(final)
    with atomically(final) as tmp:
        model.save_pretrained(tmp, vocab, tokenizer)
        save_file(tensors, tmp / 'state.safetensors')
        (tmp / 'state.json').write_text(json.dumps({'format': FORMAT, 'step': step, **state}, indent=1) + '\n')
        files = {p.name: {'bytes': p.stat().st_size, 'sha256': sha256(p)} for p in sorted(tmp.iterdir())}
        (tmp / 'MANIFEST.json').write_text(json.dumps({'format': FORMAT, 'files': files}, indent=1) + '\n')
    _purge(out_dir, step)
    return final

def _purge(out_dir, step):
    """Keeps `step` and the one before; those after it are of a branch that did not verify. A failure only warns."""
    older = [f for f in folders(out_dir) if int(f.name[5:]) <= step]
    for folder in set(folders(out_dir)) - set(older[:KEEP]):
        try: # renamed first, so that a kill in between leaves no half folder under a good name
            shutil.rmtree(folder.rename(folder.with_name(folder.name + '.tmp')))
        except OSError as e:
            print(f"{folder}: not removed ({e})")

def read_state(folder):
    """state.json of a folder."""
    return json.loads((Path(folder) / 'state.json').read_text())

def load_optimizer(folder, model, optimizer):
    """Puts the moments and the random states of a folder back; names and shapes must be the model's."""
    tensors = load_file(Path(folder) / 'state.safetensors')
    torch.set_rng_state(tensors.pop('rng'))
    cuda = tensors.pop('rng.cuda', None)
    if cuda is not None and next(model.parameters()).is_cuda:
        torch.cuda.set_rng_state(cuda)
    parameters = dict(model.named_parameters())
    for full, value in tensors.items():
        name, key = full.rsplit('.', 1)
        if name not in parameters or value.dim() and value.shape != parameters[name].shape:
            raise Refused(f"{folder}/state.safetensors: {full} {tuple(value.shape)} fits no parameter of the model")
        p = parameters[name]
        if isinstance(p, DTensor) and value.dim():
            value = distribute_tensor(value.to(p.device), p.device_mesh, p.placements, src_data_rank=None) # no communication
        optimizer.state[p][key] = value.to(p.device)
    missing = [name for name, p in parameters.items() if p not in optimizer.state]
    if missing and len(missing) < len(parameters): # none at all: saved before the first step
        raise Refused(f"{folder}/state.safetensors: nothing for {', '.join(missing[:10])}")

def digest(hashes):
    """One short hash of many."""
    return hashlib.sha256(' '.join(hashes).encode()).hexdigest()[:16]

def find(out_dir, identity, place):
    """The folder to go on from, None for a new run. Rank 0 looks; Refused where it holds a run of another identity."""
    at, error = -1, None
    if place.rank == 0:
        try:
            Path(out_dir).mkdir(parents=True, exist_ok=True)
            if folder := newest(out_dir):
                at = int(folder.name.removeprefix('step-'))
                _same(read_state(folder)['run'], identity, out_dir)
            elif Path(out_dir, 'settings.json').is_file():
                raise Refused(f"{out_dir} holds a finished model without its step-N; choose another --out")
        except (Refused, OSError) as e:
            at, error = -2, Refused(str(e))
    if place.world > 1: # rank 0 hashes every byte of a checkpoint meanwhile
        shared = torch.tensor(at)
        dist.broadcast(shared, 0, group=place.checkpoint_group)
        at = int(shared)
    if at == -2:
        raise error or Refused("refused by rank 0")
    return Path(out_dir, f'step-{at}') if at >= 0 else None

def _same(saved, now, where):
    """Refuses a run that differs in a field from the one that left a checkpoint, naming each such field."""
    now = json.loads(json.dumps(now)) # as it was saved: tuples are lists there
    fields = [key for key in {**saved, **now} if saved.get(key) != now.get(key)]
    if fields:
        diff = ', '.join(f"{key} was {saved.get(key)!r} and is {now.get(key)!r}" for key in fields)
        raise Refused(f"{where} holds another run: {diff}; take the old settings back or choose another --out")

# ----------------------------------------------------------------------------------------------------------------
# a run: what its loop and its end need

class Run(NamedTuple):
    """Settings, processes, and what the newest checkpoint of an earlier start left."""
    cfg: object
    place: Place
    asked: list         # signals to stop that came
    vocab: Vocab
    tokenizer: str      # folder of the text tokenizer; '' for speech
    inputs: dict        # {input: its hash}
    identity: dict      # what a resumed run must share
    folder: Path | None # the checkpoint to go on from
    state: dict         # of that, or of a new run

    @property
    def finished(self):
        return self.state['finished'] and Path(self.cfg.out, 'settings.json').is_file()

    def say(self, *what, **how):
        if self.place.rank == 0:
            print(*what, **how)

    def autocast(self):
        return torch.autocast(self.place.device.type, torch.bfloat16, enabled=self.cfg.dtype != 'float32')

def open_run(cfg, free, place, asked, vocab, tokenizer, inputs):
    """The Run of these settings, of which those named in free may differ from an earlier start's; says where it stands."""
    identity = {k: v for k, v in asdict(cfg).items() if k not in free} | inputs
    folder = find(Path(cfg.out), identity, place)
    fresh = {'step': 0, 'seconds': 0.0, 'skipped': 0, 'streak': 0, 'finished': False, 'val': {}}
    state = read_state(folder) if folder else fresh
    run = Run(cfg, place, asked, vocab, tokenizer, inputs, identity, folder, state)
    if run.finished:
        run.say(f"{cfg.out}: finished before, at step {state['step']}; nothing to do (remove the folder to train "
                "again)")
    elif folder:
        run.say(f"{cfg.out}: going on from {folder}")
    return run

def export(run, model, done, step, more):
    """The end of a run: out_dir becomes a Hugging Face folder with its settings.json, if all is done."""
    out = run.cfg.out
    if not done:
        run.say(f"stopped by a signal, saved as {out}/step-{step}; the same command goes on from there")
    elif whole := whole_model(model, run.place.rank):
        whole.save_pretrained(out, run.vocab, run.tokenizer)
        write_json(Path(out, 'settings.json'), record(run.cfg) | {
            'parameters': model.num_params(), 'steps': step, **more, 'inputs': run.inputs})
