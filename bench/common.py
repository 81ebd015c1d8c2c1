"""
What the scripts of bench/ share: the machine, times of ways to do the same, this machine's ceilings, tables and results.
"""
import os
import platform
import statistics
import subprocess
import sys
import time
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch

from files import progress, write_json

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

DEVICE = 'cuda' if torch.cuda.is_available() else 'cpu'
FLUSH = 2 ** 31 # bytes, written before a call on a GPU

def _line(*command):
    """The first line a command prints; '' where it fails."""
    try:
        said = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout
        return said.partition('\n')[0].strip()
    except (OSError, subprocess.CalledProcessError):
        return ''

def _version(package):
    try:
        return version(package)
    except PackageNotFoundError:
        return None

def commit():
    """What git calls the tree, '+' behind it when it was changed; $COMMIT where the tree came without its .git."""
    return os.environ.get('COMMIT') or _line('git', 'describe', '--always', '--dirty=+', '--exclude=*')

def machine():
    """What a number needs beside it."""
    cpu = next((line.split(':')[1].strip() for line in Path('/proc/cpuinfo').read_text().splitlines()
                if line.startswith('model name')), platform.processor())
    driver = _line('nvidia-smi', '--query-gpu=driver_version', '--format=csv,noheader')
    gpu = {'gpu': torch.cuda.get_device_name(), 'driver': driver} if DEVICE == 'cuda' else {}
    return {**gpu, 'machine': cpu, 'threads': torch.get_num_threads(), 'torch': torch.__version__,
            'triton': _version('triton'), 'transformers': _version('transformers'), 'commit': commit()}

def asked_dry(doc):
    """Whether the command line says --dry. Without it, and without a GPU, there is nothing to measure."""
    if sys.argv[1:] not in ([], ['--dry']):
        raise SystemExit(doc)
    if not sys.argv[1:] and DEVICE == 'cpu':
        raise SystemExit(f"{Path(sys.argv[0]).name}: expected a CUDA GPU; --dry runs it once on tiny shapes without one")
    return bool(sys.argv[1:])

# ----------------------------------------------------------------------------------------------------------------

def _now(device, clock=time.perf_counter):
    """This moment on the device's clock: an event recorded, or on a CPU the time."""
    if device == 'cpu':
        return clock()
    event = torch.cuda.Event(enable_timing=True)
    event.record()
    return event

def _warmed(way, device):
    """What a way holds at most on the GPU in a call, with all it made in an earlier one; or why it cannot be called."""
    held = torch.cuda.memory_allocated() # 0 without a GPU
    try:
        way() # compiles
        if device == 'cpu':
            return {}
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        way()
        torch.cuda.synchronize()
    except Exception as e: # whatever a competitor raises belongs in its row
        return {'error': f'{type(e).__name__}: {e}'.splitlines()[0][:160]}
    return {'peak_mb': round((torch.cuda.max_memory_allocated() - held) / 2 ** 20)}

def measure(ways, repeats, device=DEVICE, clock=time.perf_counter):
    """{name: way()} -> {name: {'ms', 'least', 'most', 'peak_mb'}}, or {'error'} of a way that raises.

    Medians of interleaved repeats, so that what else the machine does meets all alike. On a GPU 2 GiB are overwritten
    before each call: the L2 cache is cold for all, and the host launches while the device is busy, so its gaps do not count.
    clock: of a CPU; time.process_time where others have their share of it (sensible for one thread alone).
    """
    rows = {name: _warmed(way, device) for name, way in ways.items()}
    marks = {name: [] for name in ways if 'error' not in rows[name]}
    if device == 'cuda':
        torch.cuda.empty_cache() # of those that failed
    flush = torch.empty(FLUSH if device == 'cuda' else 0, dtype=torch.uint8, device=device)
    for _ in progress(range(repeats), desc='repeats'):
        for name in marks:
            flush.zero_()
            begin = _now(device, clock)
            ways[name]()
            marks[name].append((begin, _now(device, clock)))
    if device == 'cuda':
        torch.cuda.synchronize()
    for name, pairs in marks.items():
        ms = [(end - begin) * 1e3 if device == 'cpu' else begin.elapsed_time(end) for begin, end in pairs]
        rows[name] |= {'ms': round(statistics.median(ms), 4), 'least': round(min(ms), 4), 'most': round(max(ms), 4)}
    return rows

def ceilings(dry):
    """What this device does at best, now: TFLOP/s of a bf16 product and GB/s, read and written, of a copy."""
    n, size = (64, 2 ** 16) if dry else (8192, 2 ** 30)
    a, b = torch.randn(2, n, n, device=DEVICE).bfloat16()
    source = torch.randn(size, device=DEVICE)
    target = torch.empty_like(source)
    rows = measure({'product': lambda: a @ b, 'copy': lambda: target.copy_(source)}, 2 if dry else 20)
    return {'tflops': 2 * n ** 3 / rows['product']['ms'] / 1e9, 'gbs': 8 * size / rows['copy']['ms'] / 1e6}

def table(rows, *columns, keep=lambda rows: None):
    """Prints rows as Markdown, each as it is made, and gives them as a list; keep is called with those made so far, so that
    a run that is cut short keeps them. An error stands in the last column."""
    print(f"\n| {' | '.join(columns)} |\n{'|---' * len(columns)}|")
    done = []
    for row in rows:
        *cells, last = (f'{x:.4g}' if isinstance(x, float) else str(x) for x in (row.get(c, '') for c in columns))
        print('|', ' | '.join([*cells, row.get('error', last)]), '|', flush=True)
        done.append(row)
        keep(done)
    return done

def save(name, dry, **found):
    """bench/results/NAME.json, or nothing if it is only a dry run."""
    if not dry:
        near = lambda path: os.path.relpath(path, ROOT) if Path(path).resolve().is_relative_to(ROOT) else Path(path).name
        command = ' '.join(['python', *(near(arg) if os.path.exists(arg) else arg for arg in sys.argv)])
        write_json(ROOT / 'bench' / 'results' / f'{name}.json', {**machine(), 'command': command, **found})
