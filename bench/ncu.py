"""
Hardware counters of one forward of attention by Nsight Compute, on a GPU: how busy the tensor cores are.

    python bench/ncu.py             28 heads over 4 of 128 channels, 8 rows of 2,048 tokens
    python bench/ncu.py --dry       reads an example of ncu's output; runs without a GPU

Where ncu is not on the PATH, that is the result, and the exit status is 0. The clocks are left as they are.

Writes bench/results/gpu-ncu.json.
"""
import csv
import re
import shutil
import subprocess
import sys
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from bench.common import DEVICE, parse_dry, save, table
from kernels.attention import attention

SECTIONS = 'SpeedOfLight', 'ComputeWorkloadAnalysis', 'WarpStateStats', 'LaunchStats', 'Occupancy'
# Of some 150 counters of these sections.
WANTED = re.compile(r'gpu__time_duration|pipe_tensor|inst_executed_pipe_xu|issue_active|warps_active'
                    r'|registers_per_thread|dram__throughput|lts__throughput|issue_stalled_\w+_per_warp_active'
                    r'|occupancy_limit')
SECONDS = 22
EXAMPLE = ('==PROF== Connected\n"ID","Kernel Name","gpu__time_duration.sum",'
           '"sm__inst_executed_pipe_tensor.avg.pct_of_peak_sustained_active"\n'
           '"","","us","%"\n"0","_forward","1,234.5","61.2"\n')

def launch():
    """Two forwards of attention: the second is what is counted."""
    qkv = [torch.randn(8, 2048, heads, 128, device=DEVICE).bfloat16() for heads in (28, 4, 4)]
    for _ in range(2):
        attention(*qkv)
    torch.cuda.synchronize()

def counters(output):
    """ncu's output with --csv --page raw -> [{counter: (value, unit)}], a dict for each kernel."""
    lines = [line for line in output.splitlines() if line.startswith('"')]
    if len(lines) < 3:
        return []
    names, units, *kernels = csv.reader(lines)
    result = []
    for values in kernels:
        result.append({name: (value, unit) for name, unit, value in zip(names, units, values) if WANTED.search(name)})
    return result

def counted():
    """Runs this script under ncu -> (its output, its last line if there are no counters in it)."""
    command = ['ncu', '--clock-control', 'none', '--kernel-name', 'regex:_forward', '--launch-skip', '1',
               '--launch-count', '1', '--csv', '--page', 'raw']
    for section in SECTIONS:
        command += ['--section', section]
    try:
        done = subprocess.run([*command, sys.executable, __file__, 'launch'],
                              capture_output=True, text=True, timeout=SECONDS)
    except subprocess.TimeoutExpired:
        return '', f'not done after {SECONDS} s'
    lines = (done.stderr + done.stdout).strip().splitlines()
    return done.stdout, lines[-1] if lines else f'exit status {done.returncode}'

def rows_of(output, error):
    """Yields a row for each counter, or one with the error."""
    kernels = counters(output)
    if not kernels:
        yield {'counter': 'none', 'error': error[:160]}
    for kernel in kernels:
        for name, (value, unit) in kernel.items():
            yield {'counter': name, 'value': value, 'unit': unit}

def main():
    if sys.argv[1:] == ['launch']:
        return launch()
    dry = parse_dry(__doc__)
    if not dry and shutil.which('ncu') is None:
        print("skipped: no ncu on the PATH")
        save('gpu-ncu', dry, skipped="no ncu on the PATH")
        return 0
    output, error = (EXAMPLE, '') if dry else counted()
    rows = table(rows_of(output, error), 'counter', 'value', 'unit',
                 on_row=lambda rows: save('gpu-ncu', dry, rows=rows))
    return int(any('error' in row for row in rows))

if __name__ == '__main__':
    raise SystemExit(main())
