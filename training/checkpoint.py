"""
Training state that survives a kill at any moment, and resumes to the bit. Used by train.py and dpo.py.

    out/x/step-N/               written as step-N.tmp/, every file fsynced, renamed, the parent fsynced
      config.json, model.safetensors, ...   the model as a Hugging Face folder, float32: the master weights themselves
      state.safetensors         the optimizer's moments as `parameter.exp_avg`, ...; `rng`, `rng.cuda`
      state.json                {"format": 1, "step": N, ...} whatever else the loop must remember
      MANIFEST.json             {"format": 1, "files": {name: {"bytes", "sha256"}}} of all the others

A folder counts only if every file has the size and hash that its manifest gives. `newest` returns
the newest such folder and says which ones it passed over and why. If there are folders and none of
them counts, it refuses: a run never restarts in silence. `open_run` gives the loop what an earlier
start left, and refuses to continue a run of other settings; `save_run` saves it and `export` ends
it. Nothing is pickled: tensors are safetensors, everything else is JSON.
"""
import hashlib
import json
import re
import shutil
from dataclasses import asdict, fields
from pathlib import Path
from typing import NamedTuple

import torch
import torch.distributed as dist
from safetensors.torch import load_file, save_file
from torch.distributed.tensor import DTensor, distribute_tensor

from configurator import Refused
from files import atomically, check_readable, record, sha256, write_json
from training.processes import Place
from vocab import Vocab

FORMAT = 1
KEEP = 2 # folders that stay: a failing disk may damage the newest one
NEW_RUN, REFUSED = -1, -2 # what `find` sends from rank 0 in place of a step

# --------------------------------------------------------------------------------------------------
# checkpoint folders

def folders(out_dir):
    """The step-N folders of out_dir, newest first."""
    paths = [path for path in Path(out_dir).glob('step-*') if re.fullmatch(r'step-\d+', path.name)]
    return sorted(paths, key=_step_of, reverse=True)

def _step_of(folder):
    return int(folder.name.removeprefix('step-'))

def why_unusable(folder):
    """Why a folder is not to be trusted; None if it is what was written."""
    check_readable(folder)
    try:
        manifest = json.loads((folder / 'MANIFEST.json').read_text())
        if manifest['format'] != FORMAT:
            return f"format {manifest['format']}, this code reads {FORMAT}"
        for name, expected in manifest['files'].items():
            path = folder / name
            if Path(name).name != name or not path.is_file():
                return f"{name} is missing"
            if path.stat().st_size != expected['bytes']:
                return f"{name} has {path.stat().st_size} bytes, not {expected['bytes']}"
            if sha256(path) != expected['sha256']:
                return f"{name} has changed since it was written (sha256)"
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as e:
        return f"MANIFEST.json cannot be read ({type(e).__name__})"
    return None

def newest(out_dir):
    """The newest usable folder; None if out_dir has no folder at all, Refused if none is usable."""
    unusable = []
    for folder in folders(out_dir):
        reason = why_unusable(folder)
        if reason is None:
            if unusable:
                print(f"{'; '.join(unusable)}: going back to {folder}")
            return folder
        unusable.append(f"{folder}: {reason}")
    if unusable:
        raise Refused(f"no checkpoint of {out_dir} verifies: {'; '.join(unusable)}; "
                      "to start anew, move the folder away")
    return None

def full_tensor(tensor):
    """A sharded tensor (DTensor) gathered on every rank; any other tensor as it is."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor

def whole_model(model, rank):
    """The model on rank 0, sharded weights gathered on the CPU; None on the others, which call it too."""
    if not any(isinstance(p, DTensor) for p in model.parameters()):
        return model if rank == 0 else None
    with torch.device('meta'):
        copy = type(model)(model.cfg)
    for name, p in model.named_parameters():
        full = full_tensor(p.detach()) # one parameter at a time is whole on the device
        if rank == 0:
            module, _, attribute = name.rpartition('.')
            setattr(copy.get_submodule(module), attribute, torch.nn.Parameter(full.cpu()))
    return copy if rank == 0 else None

def _state_tensors(model, optimizer, rank):
    """On rank 0 the optimizer's tensors, named after their parameters; everywhere the random states."""
    tensors = {}
    for name, p in model.named_parameters():
        for key, value in optimizer.state[p].items():
            value = full_tensor(value)
            if rank == 0:
                tensors[f'{name}.{key}'] = value.cpu()
    tensors['rng'] = torch.get_rng_state()
    if next(model.parameters()).is_cuda:
        tensors['rng.cuda'] = torch.cuda.get_rng_state()
    return {name: value.detach().cpu().contiguous() for name, value in tensors.items()}

def save(out_dir, step, model, optimizer, state, vocab, tokenizer, rank=0):
    """Writes out_dir/step-N, then removes all but the newest KEEP folders.

    All ranks call it; rank 0 writes. Refuses weights or moments that are not finite, so that a bad
    checkpoint never replaces a good one, and a disk without room for the files.
    """
    out_dir = Path(out_dir)
    tensors = _state_tensors(model, optimizer, rank)
    model = whole_model(model, rank)
    if model is None:
        return None
    for name, value in [*model.named_parameters(), *tensors.items()]:
        if value.is_floating_point() and not value.isfinite().all():
            raise Refused(f"step {step}: {name} is not finite, not saved; "
                          f"the last good one is {newest(out_dir)}")
    for unfinished in out_dir.glob('step-*.tmp'): # of a killed run
        shutil.rmtree(unfinished, ignore_errors=True)
    needed_bytes = sum(t.nbytes for t in tensors.values())
    needed_bytes += sum(4 * p.numel() for p in model.parameters()) # float32 in the files
    free_bytes = shutil.disk_usage(out_dir).free
    if free_bytes < needed_bytes:
        raise Refused(f"{out_dir}: a checkpoint needs {needed_bytes:,} bytes, "
                      f"{free_bytes:,} are free; the older ones are intact")
    folder = out_dir / f'step-{step}'
    if folder.exists(): # an unusable one, whose step a resumed run has reached again
        shutil.rmtree(folder)
    with atomically(folder) as tmp:
        model.save_pretrained(tmp, vocab, tokenizer)
        save_file(tensors, tmp / 'state.safetensors')
        _write_json(tmp / 'state.json', {'format': FORMAT, 'step': step, **state})
        files = {}
        for path in sorted(tmp.iterdir()):
            files[path.name] = {'bytes': path.stat().st_size, 'sha256': sha256(path)}
        _write_json(tmp / 'MANIFEST.json', {'format': FORMAT, 'files': files})
    _purge(out_dir, step)
    return folder

def _write_json(path, value):
    """Like files.write_json, but the folder is fsynced and renamed as a whole."""
    path.write_text(json.dumps(value, indent=1) + '\n')

def _purge(out_dir, step):
    """Removes all folders but the newest KEEP up to `step`; one that cannot be removed is reported.

    Folders of later steps did not verify when the run resumed, else it would be past them.
    """
    up_to_step = [folder for folder in folders(out_dir) if _step_of(folder) <= step]
    for folder in set(folders(out_dir)) - set(up_to_step[:KEEP]):
        try: # renamed first, so that a kill in between leaves no half folder under a valid name
            shutil.rmtree(folder.rename(folder.with_name(folder.name + '.tmp')))
        except OSError as e:
            print(f"{folder}: not removed ({e})")

def read_state(folder):
    """state.json of a folder."""
    return json.loads((Path(folder) / 'state.json').read_text())

def load_optimizer(folder, model, optimizer):
    """Restores moments and random states of a folder. Refuses names or shapes unlike the model's."""
    path = f'{folder}/state.safetensors'
    tensors = load_file(path)
    torch.set_rng_state(tensors.pop('rng'))
    cuda_rng = tensors.pop('rng.cuda', None)
    if cuda_rng is not None and next(model.parameters()).is_cuda:
        torch.cuda.set_rng_state(cuda_rng)
    parameters = dict(model.named_parameters())
    for tensor_name, value in tensors.items():
        name, key = tensor_name.rsplit('.', 1)
        if name not in parameters or value.dim() and value.shape != parameters[name].shape:
            raise Refused(f"{path}: {tensor_name} {tuple(value.shape)} "
                          "fits no parameter of the model")
        p = parameters[name]
        if isinstance(p, DTensor) and value.dim():
            # Without a source rank, each rank cuts its shard from its own copy: no communication.
            value = distribute_tensor(value.to(p.device), p.device_mesh, p.placements,
                                      src_data_rank=None)
        optimizer.state[p][key] = value.to(p.device)
    missing = [name for name, p in parameters.items() if p not in optimizer.state]
    if missing and len(missing) < len(parameters): # all are missing if it was saved before the first step
        raise Refused(f"{path}: nothing for {', '.join(missing[:10])}")

# --------------------------------------------------------------------------------------------------
# a run, and which checkpoint it continues from

def digest(hashes):
    """One short hash of many."""
    return hashlib.sha256(' '.join(hashes).encode()).hexdigest()[:16]

def find(out_dir, identity, place, defaults):
    """The folder to continue from, or None for a new run. Refused if out_dir holds another run.

    Rank 0 reads every byte of a checkpoint to verify it; the others wait for the step that it found.
    """
    step = NEW_RUN
    error = None
    if place.rank == 0:
        try:
            Path(out_dir).mkdir(parents=True, exist_ok=True)
            if folder := newest(out_dir):
                step = _step_of(folder)
                _refuse_another_run(defaults | read_state(folder)['run'], identity, out_dir)
            elif Path(out_dir, 'settings.json').is_file():
                raise Refused(f"{out_dir} holds a finished model without its step-N; choose another --out")
        except (Refused, OSError) as e:
            step = REFUSED
            error = Refused(str(e))
    if place.world > 1:
        rank_0_step = torch.tensor(step)
        dist.broadcast(rank_0_step, 0, group=place.checkpoint_group)
        step = int(rank_0_step)
    if step == REFUSED:
        raise error or Refused("refused by rank 0")
    return None if step == NEW_RUN else Path(out_dir, f'step-{step}')

def _refuse_another_run(saved, identity, out_dir):
    """Refuses a run whose identity is not the one saved in a checkpoint, naming each field."""
    saved, identity = json.loads(json.dumps([saved, identity])) # JSON turns tuples into lists
    changed = [key for key in {**saved, **identity} if saved.get(key) != identity.get(key)]
    if changed:
        difference = ', '.join(f"{key} was {saved.get(key)!r} and is {identity.get(key)!r}"
                               for key in changed)
        raise Refused(f"{out_dir} holds another run: {difference}; "
                      "take the old settings back or choose another --out")

class Run(NamedTuple):
    """What the loop and the end of a run need: settings, processes, what the newest checkpoint left."""
    cfg: object
    place: Place
    stop_signals: list  # signals that arrived
    vocab: Vocab
    tokenizer: str      # folder of the text tokenizer; '' for speech
    inputs: dict        # {input: its hash}
    identity: dict      # what a resumed run must have in common with the earlier start
    folder: Path | None # the checkpoint to continue from
    state: dict         # state.json of that checkpoint, or the state of a new run

    @property
    def finished(self):
        return self.state['finished'] and Path(self.cfg.out, 'settings.json').is_file()

    def say(self, *values, **options):
        """print, on rank 0 alone."""
        if self.place.rank == 0:
            print(*values, **options)

    def autocast(self):
        enabled = self.cfg.dtype != 'float32'
        return torch.autocast(self.place.device.type, torch.bfloat16, enabled=enabled)

def open_run(cfg, may_change, place, stop_signals, vocab, tokenizer, inputs):
    """The Run of these settings, from its newest checkpoint on; says whether it continues or is done.

    may_change: names of the settings that may differ from those of the earlier start
    """
    settings = asdict(cfg)
    identity = {name: settings[name] for name in settings if name not in may_change} | inputs
    # A run of a version without one of the settings had what is its default now, and inputs as they are.
    defaults = inputs | {field.name: field.default for field in fields(cfg) if field.name in identity}
    folder = find(Path(cfg.out), identity, place, defaults)
    if folder:
        state = read_state(folder)
    else:
        state = {'step': 0, 'seconds': 0.0, 'skipped': 0, 'streak': 0, 'finished': False, 'val': {}}
    run = Run(cfg, place, stop_signals, vocab, tokenizer, inputs, identity, folder, state)
    if run.finished:
        run.say(f"{cfg.out}: finished before, at step {state['step']}; nothing to do "
                "(remove the folder to train again)")
    elif folder:
        run.say(f"{cfg.out}: going on from {folder}")
    return run

def save_run(run, step, model, optimizer, log, seconds, done):
    """Saves what a later start continues from: the model and the optimizer, and where the loop and its Log stand."""
    run.state.update(step=step, seconds=seconds, skipped=log.skipped, streak=log.streak, no_targets=log.no_targets,
                     finished=done, run=run.identity)
    log.sync()
    out = Path(run.cfg.out)
    save(out, step, model, optimizer, run.state, run.vocab, run.tokenizer, run.place.rank)

def export(run, model, done, step, counts):
    """Ends a run: if it is done, --out becomes a Hugging Face folder with settings.json.

    counts: what settings.json says beside the numbers of parameters and steps
    """
    out = run.cfg.out
    if not done:
        run.say(f"stopped by a signal, saved as {out}/step-{step}; "
                "the same command goes on from there")
        return
    full_model = whole_model(model, run.place.rank)
    if full_model:
        full_model.save_pretrained(out, run.vocab, run.tokenizer)
        results = {'parameters': model.num_params(), 'steps': step, **counts, 'inputs': run.inputs}
        write_json(Path(out, 'settings.json'), record(run.cfg) | results)
