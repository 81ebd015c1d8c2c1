"""
Training state that survives a kill at any moment, is written while training goes on, and resumes to
the bit; on another number of ranks, up to rounding. Used by train.py and dpo.py.

    out/x/step-N/               written as step-N.tmp/, every file fsynced, renamed, the parent fsynced
      part-00000.safetensors    rank 0's rows of the weights, and of the optimizer's tensors as `parameter.exp_avg`, ...
      part-00001.safetensors    those of rank 1, and so on
      config.json, ...          what the model's Hugging Face folder has beside the weights
      state.json                {"format": 2, "step": N, ...} whatever else the loop must remember
      MANIFEST.json             {"format": 2, "parts": n, "tensors": {name: shape of all parts together},
                                 "files": {name: {"bytes", "sha256"}}} of all the others

Part r of n has rows r c to (r + 1) c - 1 of each tensor, c = ceil(rows / n), as FSDP has them; a
number is a tensor of one row. Where ranks have copies (DDP), each writes its part all the same. So a
checkpoint is never gathered, and any number of ranks reads the rows that it needs.

A folder counts only if every file has the size and hash that its manifest gives. `newest` returns
the newest such folder and says which ones it passed over and why. If there are folders and none of
them counts, it refuses: a run never restarts in silence. `open_run` gives the loop what an earlier
start left, and refuses to continue a run of other settings; a `Saver` saves it and `export` ends
it. Nothing is pickled: tensors are safetensors, everything else is JSON. No random numbers are drawn
after the start of a run, so no generator is saved.
"""
import hashlib
import json
import os
import re
import shutil
from dataclasses import asdict, fields
from pathlib import Path
from threading import Event, Thread
from typing import NamedTuple

import torch
import torch.distributed as dist
from safetensors import safe_open
from torch.distributed.tensor import DTensor

from configurator import Refused, disk_refusal
from files import check_readable, fingerprint, record, rename_whole, why_changed, write_json
from hub.folders import read_config
from model import GPT
from training.peers import WRITER, Place, check_same, gather_texts, together
from vocab import Vocab

FORMAT = 2
KEEP = 2 # folders that stay: a failing disk may damage the newest one
CHUNK = 1 << 26 # bytes that are hashed and written at a time
DTYPES = {torch.float32: 'F32', torch.bfloat16: 'BF16', torch.float64: 'F64', torch.int64: 'I64'} # safetensors' names

# --------------------------------------------------------------------------------------------------
# checkpoint folders

def folders(out_dir):
    """The step-N folders of out_dir, newest first."""
    paths = [path for path in Path(out_dir).glob('step-*') if re.fullmatch(r'step-\d+', path.name)]
    return sorted(paths, key=_step_of, reverse=True)

def _step_of(folder):
    return int(folder.name.removeprefix('step-'))

def is_checkpoint(folder):
    return (Path(folder) / 'part-00000.safetensors').is_file()

def read_manifest(folder):
    return json.loads(Path(folder, 'MANIFEST.json').read_text())

def _hash_of(manifest):
    """A hash of what a manifest says."""
    fields = {key: value for key, value in manifest.items() if key != 'sha256'}
    return hashlib.sha256(json.dumps(fields, sort_keys=True).encode()).hexdigest()

def why_unusable(folder, place=Place()):
    """Why a folder is not to be trusted; None if it is what was written. Of the files, each rank reads a share."""
    check_readable(folder)
    try:
        manifest = read_manifest(folder)
        if manifest['format'] == 1:
            return "format 1, which only the versions before December 2026 continue; its weights can start " \
                   f"another run: --init={folder} --out=NEW_FOLDER"
        if manifest['format'] != FORMAT:
            return f"format {manifest['format']}, this code reads {FORMAT}"
        names = sorted(manifest['files'])[place.rank::place.world]
        changed = why_changed(folder, {name: manifest['files'][name] for name in names})
        if changed is None and manifest['sha256'] != _hash_of(manifest):
            changed = "MANIFEST.json has changed since it was written (sha256)"
        return changed
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as e:
        return f"MANIFEST.json cannot be read ({type(e).__name__})"

def _is_finished_in_format_1(folder):
    """Whether a checkpoint is the last of a run that an earlier version finished; its model is in the folder above."""
    try:
        is_format_1 = read_manifest(folder)['format'] == 1
        return is_format_1 and read_state(folder)['finished'] and (folder.parent / 'settings.json').is_file()
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return False

def newest(out_dir, place=Place()):
    """The newest usable folder; None if out_dir has no folder at all, Refused if none is usable. All ranks call it."""
    unusable = []
    names = json.loads(gather_texts(json.dumps([folder.name for folder in folders(out_dir)]), place)[0])
    for folder in [Path(out_dir, name) for name in names]:
        with together(place):
            reason = why_unusable(folder, place)
            if reason and _is_finished_in_format_1(folder):
                reason = None # nothing but its state is read
        reason = next(filter(None, gather_texts(reason or '', place)), None)
        if reason is None:
            if unusable and place.rank == 0:
                print(f"{'; '.join(unusable)}: going back to {folder}")
            return folder
        unusable.append(f"{folder}: {reason}")
    if unusable:
        raise Refused(f"no checkpoint of {out_dir} verifies: {'; '.join(unusable)}; "
                      "to start anew, move the folder away")
    return None

# --------------------------------------------------------------------------------------------------
# parts

def rows_of_part(n, part, parts):
    """(first, last + 1) of n rows."""
    size = -(-n // parts)
    return min(part * size, n), min((part + 1) * size, n)

def _part_name(part):
    return f'part-{part:05d}.safetensors'

def full_tensor(tensor):
    """A sharded tensor (DTensor) gathered on every rank; any other tensor as it is."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor

def _tensors(model, optimizer):
    """{name: tensor} of the weights and of the optimizer, sharded or not."""
    tensors = {}
    for name, p in model.named_parameters():
        tensors[name] = p.detach()
        for key, value in optimizer.state.get(p, {}).items():
            tensors[f'{name}.{key}'] = value
    return tensors

def _rows(tensor, place):
    """The rows of a tensor that a rank writes, and which it has if the tensor is sharded."""
    if isinstance(tensor, DTensor):
        return tensor.to_local()
    first, end = rows_of_part(len(torch.atleast_1d(tensor)), place.rank, place.world)
    return torch.atleast_1d(tensor)[first:end]

def write_part(path, header, data):
    """Writes a safetensors file of a header and the bytes of its tensors (an array) to the disk -> its fingerprint."""
    text = json.dumps(header).encode()
    text += b' ' * (-len(text) % 8)
    text = len(text).to_bytes(8, 'little') + text
    digest = hashlib.sha256(text)
    with open(path, 'wb') as file:
        file.write(text)
        for begin in range(0, len(data), CHUNK):
            chunk = memoryview(data[begin:begin + CHUNK])
            digest.update(chunk)
            file.write(chunk)
        file.flush()
        os.fsync(file.fileno())
    return {'bytes': len(text) + len(data), 'sha256': digest.hexdigest()}

class Saver:
    """Saves a run while it trains on. All ranks call its methods at the same steps; what one refuses, all refuse.

        start(...)      begins to copy this rank's rows to host memory, and has a thread write them
        wait_for_copy() returns when weights and moments may change again; a forward and backward may come before
        written         whether this rank has written its part (or failed)
        commit()        to be called when all have: rank 0 completes and renames the folder, in a thread too
        wait()          returns when the last checkpoint is complete
    """

    def __init__(self, run, model, optimizer, log):
        self.run = run
        self.model = model
        self.optimizer = optimizer
        self.log = log
        self.is_writing = False
        self.thread = None
        self.error = None # of the thread
        self.fingerprints = {} # of the files that this rank has written
        # The buffer has room for the weights and two moments. It is made now, as that takes time.
        n_bytes = 3 * sum(_rows(p.detach(), run.place).nbytes for p in model.parameters())
        self.buffer = self._new_buffer(n_bytes)
        self.stream = torch.cuda.Stream() if self.buffer.is_pinned() else None # of the copies
        self.is_copied = Event()
        self.is_copied.set()

    def _new_buffer(self, n_bytes):
        return torch.zeros(n_bytes, dtype=torch.uint8, pin_memory=self.run.place.device.type == 'cuda')

    def _in_thread(self, work, *args):
        def run():
            try:
                work(*args)
            except Exception as e: # told to all ranks by commit or wait
                self.error = disk_refusal(e, self._folder()[0]) or e
        self.thread = Thread(target=run, name=WRITER)
        self.thread.start()

    @property
    def written(self):
        return self.is_writing and not self.thread.is_alive()

    def start(self, step, seconds, done):
        """Begins to save what a later start continues from: model, optimizer, and where the loop and its Log stand.

        Refuses, later, weights or moments that are not finite, so that a bad checkpoint never replaces a
        good one, and a disk without room for the files.
        """
        self.wait()
        run, log = self.run, self.log
        run.state.update(step=step, seconds=seconds, skipped=log.skipped, streak=log.streak,
                         no_targets=log.no_targets, finished=done, run=run.identity)
        tensors = _tensors(self.model, self.optimizer)
        self.step = step
        self.state = json.dumps({'format': FORMAT, **run.state}, indent=1) + '\n'
        self.shapes = {name: list(tensor.shape) for name, tensor in tensors.items()}
        self.n_bytes = sum(tensor.numel() * tensor.itemsize for tensor in tensors.values()) # of all parts
        rows, copies = self._lay_out(tensors)
        self.is_writing = True
        if self.buffer.is_pinned():
            self.stream.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(self.stream):
                _copy(rows, copies)
        self.is_copied.clear()
        self._in_thread(self._write, rows, copies)

    def _lay_out(self, tensors):
        """This rank's rows and their places in the buffer, {name: tensor} each."""
        rows = {name: _rows(tensor, self.run.place) for name, tensor in tensors.items()}
        # Wide numbers come first, so that each is at a multiple of its width.
        rows = dict(sorted(rows.items(), key=lambda item: (-item[1].itemsize, item[0])))
        n_bytes = sum(value.nbytes for value in rows.values())
        if n_bytes > len(self.buffer):
            self.buffer = self._new_buffer(n_bytes)
        copies = {}
        end = 0
        for name, value in rows.items():
            begin = end
            end += value.nbytes
            copies[name] = self.buffer[begin:end].view(value.dtype).view(value.shape)
        return rows, copies

    def wait_for_copy(self):
        if not self.buffer.is_pinned():
            self.is_copied.wait()
        elif self.is_writing:
            torch.cuda.current_stream().wait_stream(self.stream)

    def _folder(self):
        """The folder, and its name until it is whole."""
        folder = Path(self.run.cfg.out, f'step-{self.step}')
        return folder, folder.with_name(folder.name + '.tmp')

    def _write(self, rows, copies):
        """Writes this rank's files; a rank that is alone also completes the folder."""
        if self.buffer.is_pinned():
            self.stream.synchronize()
        else:
            try:
                _copy(rows, copies)
            finally:
                self.is_copied.set()
        folder, tmp = self._folder()
        for name, value in copies.items():
            if value.numel() and value.is_floating_point() and not torch.stack(value.aminmax()).isfinite().all():
                raise Refused(f"step {self.step}: {name} is not finite, not saved; "
                              f"the last good one is {next(iter(folders(folder.parent)), 'none')}")
        rank = self.run.place.rank
        free_bytes = shutil.disk_usage(folder.parent).free
        if rank == 0 and free_bytes < self.n_bytes:
            raise Refused(f"{folder.parent}: a checkpoint needs {self.n_bytes:,} bytes, "
                          f"{free_bytes:,} are free; the older ones are intact")
        tmp.mkdir(exist_ok=True)
        header = {}
        end = 0
        for name, value in copies.items():
            begin = end
            end += value.nbytes
            header[name] = {'dtype': DTYPES[value.dtype], 'shape': list(value.shape), 'data_offsets': [begin, end]}
        name = _part_name(rank)
        self.fingerprints = {name: write_part(tmp / name, header, self.buffer[:end].numpy())}
        if rank == 0:
            self.log.sync()
            self.model.save_config(tmp, self.run.vocab, self.run.tokenizer)
            (tmp / 'state.json').write_text(self.state)
            others = sorted(path for path in tmp.iterdir() if not path.name.startswith('part-'))
            self.fingerprints |= {path.name: fingerprint(path) for path in others}
        if self.run.place.world == 1: # nobody to wait for: what the loop does meanwhile cannot lose this checkpoint
            self._publish(self.fingerprints)

    def commit(self):
        """Once all ranks have written: tells all of an error, or has rank 0 of several make the folder a checkpoint."""
        if not self.is_writing:
            return
        self.thread.join()
        self.is_writing = False
        place = self.run.place
        try:
            with together(place):
                if self.error:
                    raise self.error
        except (Refused, OSError):
            shutil.rmtree(self._folder()[1], ignore_errors=True)
            raise
        if place.world == 1: # _write has done the rest
            return
        files = {}
        for text in gather_texts(json.dumps(self.fingerprints), place):
            files |= json.loads(text)
        if place.rank == 0:
            self._in_thread(self._publish, files)

    def _publish(self, files):
        """Completes the folder, renames it, and removes all but the newest KEEP folders. files: {name: fingerprint}."""
        folder, tmp = self._folder()
        manifest = {'format': FORMAT, 'parts': self.run.place.world, 'tensors': self.shapes, 'files': files}
        manifest['sha256'] = _hash_of(manifest)
        (tmp / 'MANIFEST.json').write_text(json.dumps(manifest, indent=1) + '\n')
        if folder.exists(): # an unusable one, whose step a resumed run has reached again
            shutil.rmtree(folder)
        rename_whole(tmp, folder)
        _purge(folder.parent, self.step)

    def wait(self):
        """Returns when the checkpoint that was started last is complete."""
        place = self.run.place
        while self.is_writing:
            self.thread.join(0.2)
            # The ranks ask each other meanwhile, so that a lost one is noticed within cfg.timeout.
            n_written = torch.tensor(float(self.written), device=place.device)
            if place.world > 1:
                dist.all_reduce(n_written)
            if n_written == place.world:
                self.commit()
        if self.thread:
            self.thread.join()
        with together(place):
            if self.error:
                raise self.error

def _copy(rows, copies):
    for name, value in rows.items():
        copies[name].copy_(value, non_blocking=True)

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

class _Parts:
    """The files of a checkpoint, opened when they are needed."""

    def __init__(self, folder, n):
        self.folder = Path(folder)
        self.n = n
        self.files = {}

    def fill(self, target, first, n_rows, name):
        """Fills target with the rows of a tensor from `first` on; the tensor has n_rows."""
        for part in range(self.n):
            begin, end = rows_of_part(n_rows, part, self.n)
            low = max(begin, first)
            high = min(end, first + len(target))
            if low < high:
                rows = self._file(part).get_slice(name)[low - begin:high - begin]
                target[low - first:high - first].copy_(rows)

    def _file(self, part):
        if part not in self.files:
            self.files[part] = safe_open(self.folder / _part_name(part), 'pt') # memory-mapped
        return self.files[part]

    def dtype(self, name):
        codes = {code: dtype for dtype, code in DTYPES.items()}
        return codes[self._file(0).get_slice(name).get_dtype()]

def load(folder, model, optimizer=None, place=Place()):
    """Fills the weights of a model, sharded or not, and its optimizer. Refuses names or shapes unlike the model's."""
    with together(place), torch.no_grad():
        _load(folder, model, optimizer, place)

def _load(folder, model, optimizer, place):
    manifest = read_manifest(folder)
    parts = _Parts(folder, manifest['parts'])
    parameters = dict(model.named_parameters())
    def fill(tensor, name):
        shape = manifest['tensors'][name]
        n_rows = shape[0] if shape else 1
        is_shard = isinstance(tensor, DTensor)
        first = rows_of_part(n_rows, place.rank, place.world)[0] if is_shard else 0
        parts.fill(torch.atleast_1d(tensor.to_local() if is_shard else tensor), first, n_rows, name)
    for name, shape in manifest['tensors'].items():
        owner, _, key = name.rpartition('.')
        p = parameters.get(name, parameters.get(owner))
        if p is None or shape != list(p.shape) and (shape or name in parameters):
            raise Refused(f"{folder}: {name} {tuple(shape)} fits no parameter of the model")
        if name in parameters:
            fill(p, name)
        elif optimizer:
            dtype = parts.dtype(name)
            value = torch.empty_like(p, dtype=dtype) if shape else torch.empty((), dtype=dtype, device=p.device)
            fill(value, name)
            optimizer.state[p][key] = value
    missing = [name for name in parameters if name not in manifest['tensors']]
    if optimizer:
        without = [name for name, p in parameters.items() if p not in optimizer.state]
        missing += without if len(without) < len(parameters) else [] # all, if it was saved before the first step
    if missing:
        raise Refused(f"{folder}: nothing for {', '.join(missing[:10])}")

def read_model(folder):
    """The model of a checkpoint, on the CPU."""
    model = GPT.unfilled(read_config(folder))
    load(folder, model)
    return model

# --------------------------------------------------------------------------------------------------
# a run, and which checkpoint it continues from

def digest(hashes):
    """One short hash of many."""
    return hashlib.sha256(' '.join(hashes).encode()).hexdigest()[:16]

def find(out_dir, identity, place, defaults):
    """The folder to continue from, or None for a new run. Refused if out_dir holds another run."""
    folder = newest(out_dir, place)
    with together(place):
        if folder:
            _refuse_another_run(defaults | read_state(folder)['run'], identity, out_dir)
        elif Path(out_dir, 'settings.json').is_file():
            raise Refused(f"{out_dir} holds a finished model without its step-N; choose another --out")
        if place.rank == 0:
            for unfinished in Path(out_dir).glob('step-*.tmp'): # of a killed run
                shutil.rmtree(unfinished, ignore_errors=True)
    return folder

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

    finished: bool      # it is done, and --out has the model

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
    origin = record(cfg)
    check_same(settings | inputs | origin['versions'] | {'commit': origin['commit']}, place)
    identity = {name: settings[name] for name in settings if name not in may_change} | inputs
    # A run of a version without one of the settings had what is its default now, and inputs as they are.
    defaults = inputs | {field.name: field.default for field in fields(cfg) if field.name in identity}
    folder = find(Path(cfg.out), identity, place, defaults)
    if folder:
        state = read_state(folder)
    else:
        state = {'step': 0, 'seconds': 0.0, 'skipped': 0, 'streak': 0, 'finished': False, 'val': {}}
    damage = None
    if folder and read_manifest(folder)['format'] == 1: # finished by a version that left no hashes of its model
        damage = ''
    elif state['finished']:
        damage = gather_texts(why_damaged(cfg.out) or '' if place.rank == 0 else '', place)[0]
    run = Run(cfg, place, stop_signals, vocab, tokenizer, inputs, identity, folder, state, damage == '')
    if run.finished:
        run.say(f"{cfg.out}: finished before, at step {state['step']}; nothing to do "
                "(remove the folder to train again)")
    elif damage:
        run.say(f"{cfg.out}: {damage}; writing the model again from {folder}")
    elif folder:
        run.say(f"{cfg.out}: going on from {folder}")
    return run

def why_damaged(out):
    """Why a finished run's --out is not the model that `export` left there; None if it is."""
    try:
        return why_changed(out, read_manifest(out)['files'])
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as e:
        return f"MANIFEST.json cannot be read ({type(e).__name__})"

def export(run, done, step, counts):
    """Ends a run: if it is done, --out becomes a Hugging Face folder with settings.json and a MANIFEST.json of both.

    Rank 0 reads the model from the last checkpoint, so that nothing is gathered.
    counts: what settings.json says beside the numbers of parameters and steps
    """
    out = Path(run.cfg.out)
    if not done:
        run.say(f"stopped by a signal, saved as {out}/step-{step}; "
                "the same command goes on from there")
        return
    if run.place.rank > 0:
        return
    tmp = out / 'export.tmp'
    shutil.rmtree(tmp, ignore_errors=True) # of a killed run
    model = read_model(out / f'step-{step}')
    model.save_pretrained(tmp, run.vocab, run.tokenizer)
    results = {'parameters': model.num_params(), 'steps': step, **counts, 'inputs': run.inputs}
    write_json(tmp / 'settings.json', record(run.cfg) | results)
    files = {path.name: fingerprint(path) for path in sorted(tmp.iterdir())}
    for name in files:
        os.replace(tmp / name, out / name)
    tmp.rmdir()
    write_json(out / 'MANIFEST.json', {'format': FORMAT, 'files': files}) # fsyncs the folder too
