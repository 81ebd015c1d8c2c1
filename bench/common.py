"""
What the scripts of bench/ share: a description of the machine, interleaved timing of several
implementations of the same work, the speed limits of this device, and the printing and saving of
results.

A script prints its rows as a Markdown table and writes bench/results/NAME.json: the machine, the
command, and the rows. With --dry it runs once on tiny shapes and writes nothing.
"""
import os
import platform
import re
import statistics
import subprocess
import sys
import time
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))
from files import progress, write_json

DEVICE = 'cuda' if torch.cuda.is_available() else 'cpu'
FLUSH = 2 ** 31 # bytes that are overwritten before each timed call on a GPU

def _first_line(*command):
    """The first line that a command prints, or '' if the command fails."""
    try:
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return ''
    return done.stdout.partition('\n')[0].strip()

def _version(package):
    try:
        return version(package)
    except PackageNotFoundError:
        return None

def commit():
    """What `git describe` calls this tree, with '+' appended if it was changed.

    $COMMIT takes precedence: it names the commit of a tree that was copied without its .git.
    """
    return os.environ.get('COMMIT') or _first_line(
        'git', 'describe', '--always', '--dirty=+', '--exclude=*')

def machine():
    """The hardware and the versions that a measured number depends on, as a dict."""
    cpuinfo = Path('/proc/cpuinfo').read_text()
    model_name = re.search(r'(?m)^model name.*?:([^:\n]*)', cpuinfo)
    cpu = model_name[1].strip() if model_name else platform.processor()
    gpu = {}
    if DEVICE == 'cuda':
        driver = _first_line('nvidia-smi', '--query-gpu=driver_version', '--format=csv,noheader')
        gpu = {'gpu': torch.cuda.get_device_name(), 'driver': driver}
    return {**gpu,
            'machine': cpu,
            'threads': torch.get_num_threads(),
            'torch': torch.__version__,
            'triton': _version('triton'),
            'transformers': _version('transformers'),
            'commit': commit()}

def _require_gpu(script, dry):
    if not dry and DEVICE == 'cpu':
        raise SystemExit(f"{Path(script).name}: expected a CUDA GPU; "
                         "--dry runs it once on tiny shapes without one")

def parse_part(usage, parts):
    """The command line PART [--dry], where PART is one of parts -> (PART, whether --dry is there).

    Ends the process with `usage` for anything else, and with a message if a real run is started
    without a GPU.
    """
    script, *arguments = sys.argv
    dry = '--dry' in arguments
    names = [argument for argument in arguments if argument != '--dry']
    if len(names) != 1 or names[0] not in parts:
        raise SystemExit(usage)
    _require_gpu(script, dry)
    return names[0], dry

def parse_dry(usage):
    """Whether the command line is --dry (True) or empty (False); ends the process as parse_part does."""
    script, *arguments = sys.argv
    if arguments not in ([], ['--dry']):
        raise SystemExit(usage)
    _require_gpu(script, bool(arguments))
    return bool(arguments)

# --------------------------------------------------------------------------------------------------
# timing

def _timestamp(device, clock):
    """A point in time: a recorded CUDA event on a GPU, the clock's seconds on a CPU."""
    if device == 'cpu':
        return clock()
    event = torch.cuda.Event(enable_timing=True)
    event.record()
    return event

def _warm_up(call, device):
    """Calls once on a CPU -> {}, twice on a GPU -> {'peak_mb'}; {'error'} if the call raises.

    The peak is that of the second call, above what was allocated before the first. It includes what
    the first call leaves on the GPU, such as a model that it builds.
    """
    allocated = torch.cuda.memory_allocated() # 0 without a GPU
    try:
        call() # compiles
        if device == 'cpu':
            return {}
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        call()
        torch.cuda.synchronize()
    except Exception as e: # whatever an implementation raises is reported in its row
        return {'error': f'{type(e).__name__}: {e}'.splitlines()[0][:160]}
    return {'peak_mb': round((torch.cuda.max_memory_allocated() - allocated) / 2 ** 20)}

def measure(calls, repeats, device=DEVICE, clock=time.perf_counter):
    """Times calls: {name: function()} -> {name: {'ms', 'least', 'most', 'peak_mb'}}.

    ms is the median of the repeats, least and most are their extremes; peak_mb is measured on a GPU
    only. A call that raises has {'error'} instead. The calls take turns, so that other load on the
    machine affects all of them alike. On a GPU, 2 GiB are overwritten before each call: every call
    starts with a cold L2 cache, and the host launches kernels while the device is busy, so its gaps
    do not count.

    clock: of a CPU. time.process_time ignores other processes; it is meaningful for one thread only.
    """
    rows = {name: _warm_up(call, device) for name, call in calls.items()}
    intervals = {name: [] for name in calls if 'error' not in rows[name]}
    if device == 'cuda':
        torch.cuda.empty_cache() # of the calls that failed
    flush = torch.empty(FLUSH if device == 'cuda' else 0, dtype=torch.uint8, device=device)
    for _ in progress(range(repeats), desc='repeats'):
        for name in intervals:
            flush.zero_()
            begin = _timestamp(device, clock)
            calls[name]()
            intervals[name].append((begin, _timestamp(device, clock)))
    if device == 'cuda':
        torch.cuda.synchronize()
    for name, pairs in intervals.items():
        if device == 'cpu':
            ms = [(end - begin) * 1e3 for begin, end in pairs]
        else:
            ms = [begin.elapsed_time(end) for begin, end in pairs]
        rows[name] |= {'ms': round(statistics.median(ms), 4),
                       'least': round(min(ms), 4),
                       'most': round(max(ms), 4)}
    return rows

def ceilings(dry):
    """Measures the speed limits of this device -> {'tflops', 'gbs'}.

    tflops is the rate of a bf16 product, gbs the GB/s that a copy reads and writes.
    """
    n, size = (64, 2 ** 16) if dry else (8192, 2 ** 30)
    a, b = torch.randn(2, n, n, device=DEVICE).bfloat16()
    source = torch.randn(size, device=DEVICE)
    target = torch.empty_like(source)
    calls = {'product': lambda: a @ b, 'copy': lambda: target.copy_(source)}
    rows = measure(calls, 2 if dry else 20)
    return {'tflops': 2 * n ** 3 / rows['product']['ms'] / 1e9,
            'gbs': 8 * size / rows['copy']['ms'] / 1e6}

# --------------------------------------------------------------------------------------------------
# results

def table(rows, *columns, on_row=None):
    """Prints rows, dicts, as a Markdown table, each as soon as it is computed, and returns them as a list.

    An error is printed in the last column. on_row is called after each row with all rows so far, so
    that a run that is interrupted can keep them.
    """
    print(f"\n| {' | '.join(columns)} |\n{'|---' * len(columns)}|")
    done = []
    for row in rows:
        values = [row.get(column, '') for column in columns]
        cells = [f'{x:.4g}' if isinstance(x, float) else str(x) for x in values]
        cells[-1] = row.get('error', cells[-1])
        print('|', ' | '.join(cells), '|', flush=True)
        done.append(row)
        if on_row:
            on_row(done)
    return done

def _portable(argument):
    """An argument of the command line: a path below ROOT relative to it, only the name of any other path."""
    if not os.path.exists(argument):
        return argument
    path = Path(argument)
    return os.path.relpath(path, ROOT) if path.resolve().is_relative_to(ROOT) else path.name

def save(name, dry, **results):
    """Writes bench/results/NAME.json, unless this is a dry run."""
    if not dry:
        command = ' '.join(['python', *map(_portable, sys.argv)])
        path = ROOT / 'bench' / 'results' / f'{name}.json'
        write_json(path, {**machine(), 'command': command, **results})
