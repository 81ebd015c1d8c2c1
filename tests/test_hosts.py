"""
Two hosts: network namespaces that a cable joins, with a host name each and a rank each, under torchrun.

    case                                outcome
    a whole run                         ends as a run of two ranks on one host, to the bit
    the link is down for 4 s            waits, and ends so too
    the link is down for good           both end within the timeout, name the other host; goes on to the bit
    a host is lost                      the other ends at once and names it; goes on to the bit
    SIGTERM to one host                 both save and end; goes on to the bit
    settings or data of a host differ   both end before the first step and name what differs
    a host lacks the data               both end before the first step and name the host and the folder
    a host does not see --out           both end before the first step and name the host
"""
# ruff: noqa: F401, F811 (fixtures of test_train)
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from test_train import ROOT, command, config, corpus, losses_of, make_corpus, make_tokenizer, state_of, weights_of

from training import checkpoint

LIMIT = 1200 # seconds after which a host counts as hanging, on a machine as busy as it may be
TIMEOUT = 40 # the runs' timeout: far longer than any step
ADDRESSES = {'a': '10.77.0.1', 'b': '10.77.0.2'}

def ip(*args):
    return subprocess.run(['ip', *args], capture_output=True, text=True)

class Hosts:
    """The hosts a and b."""

    def __init__(self):
        self.names = {host: f'nanoslm-{os.getpid()}-{host}' for host in ADDRESSES}
        self.port = 29400

    def up(self):
        """Makes them -> None, or why they cannot be made."""
        if not shutil.which('ip') or not shutil.which('unshare'):
            return 'no ip or no unshare'
        if os.geteuid() != 0:
            return 'needs root'
        for name in self.names.values():
            if error := ip('netns', 'add', name).stderr:
                return error.strip()
        a, b = self.names.values()
        if error := ip('-n', a, 'link', 'add', 'cable', 'type', 'veth', 'peer', 'name', 'cable', 'netns', b).stderr:
            return error.strip()
        for host, name in self.names.items():
            ip('-n', name, 'addr', 'add', f'{ADDRESSES[host]}/24', 'dev', 'cable')
            ip('-n', name, 'link', 'set', 'lo', 'up')
            ip('-n', name, 'link', 'set', 'cable', 'up')
            # torchrun waits for a host that is gone as long as the kernel does: 15 minutes, with this 100 seconds.
            ip('netns', 'exec', name, 'sysctl', '-qw', 'net.ipv4.tcp_retries2=8')

    def down(self):
        for host, name in self.names.items():
            self.kill(host)
            ip('netns', 'del', name)

    def kill(self, host):
        """Ends all processes of a host at once."""
        for pid in ip('netns', 'pids', self.names[host]).stdout.split():
            os.kill(int(pid), signal.SIGKILL)

    def link(self, state):
        ip('-n', self.names['b'], 'link', 'set', 'cable', state)

    def start(self, host, cfg, log, mount='true'):
        """torchrun of one rank in the background; mount: a command by which the host sees other disks."""
        script = f'hostname host-{host}; {mount} && exec "$@"'
        line = ['ip', 'netns', 'exec', self.names[host], 'unshare', '--uts', '--mount', 'sh', '-c', script, 'sh',
                sys.executable, '-m', 'torch.distributed.run', '--nnodes=2', '--nproc_per_node=1',
                '--rdzv_backend=c10d', f'--rdzv_endpoint={ADDRESSES["a"]}:{self.port}', f'--rdzv_id={self.port}',
                f'--local_addr={ADDRESSES[host]}', f'--rdzv_conf=is_host={int(host == "a")}', *command(cfg)[1:]]
        env = {**os.environ, 'GLOO_SOCKET_IFNAME': 'cable', 'TP_SOCKET_IFNAME': 'cable', 'OMP_NUM_THREADS': '1'}
        return subprocess.Popen(line, cwd=ROOT, env=env, stdout=open(log, 'w'), stderr=subprocess.STDOUT)

class Pair:
    """A run on both hosts."""

    def __init__(self, hosts, folder, cfg, cfg_b=None, mount='true'):
        folder.mkdir(parents=True, exist_ok=True)
        hosts.port += 1
        self.logs = {host: folder / f'{host}.{hosts.port}.txt' for host in ADDRESSES}
        self.processes = {'a': hosts.start('a', cfg, self.logs['a']),
                          'b': hosts.start('b', cfg_b or cfg, self.logs['b'], mount)}

    def wait_for(self, text):
        """Returns when rank 0 has printed a text."""
        end = time.monotonic() + LIMIT
        while text not in self.logs['a'].read_text():
            assert time.monotonic() < end and self.processes['a'].poll() is None, self.logs['a'].read_text()
            time.sleep(0.02)

    def ended(self):
        """Waits for both -> {host: (exit status, what it printed)}."""
        end = time.monotonic() + LIMIT
        return {host: (process.wait(max(end - time.monotonic(), 1)), self.logs[host].read_text())
                for host, process in self.processes.items()}

    def refusals(self):
        """The last lines of train.py on both hosts, of which each has ended with an error."""
        lines = []
        for host, (status, text) in self.ended().items():
            assert status == 1, text
            [line] = {line for line in text.splitlines() if line.startswith('train.py: ')}
            assert 'Traceback' not in text.split('ChildFailedError')[0].split(line)[0], text # of torch, before the line
            lines.append(line)
        return lines

@pytest.fixture(scope='module')
def hosts():
    hosts = Hosts()
    try:
        if why := hosts.up():
            pytest.skip(f"no two hosts as network namespaces can be made here: {why}")
        yield hosts
    finally:
        hosts.down()

@pytest.fixture
def linked(hosts):
    yield hosts
    hosts.link('up')
    for host in ADDRESSES:
        hosts.kill(host)

@pytest.fixture(scope='module')
def long_run(corpus):
    """A function: a folder, changes -> settings of a run of some seconds."""
    from test_train import small
    def settings(folder, **changes):
        return small(corpus, folder / 'run', micro_batch=3, max_steps=300, save_every=50, log_every=1,
                     **{'timeout': TIMEOUT, **changes})
    return settings

@pytest.fixture(scope='module')
def whole(hosts, long_run, tmp_path_factory):
    folder = tmp_path_factory.mktemp('whole')
    cfg = long_run(folder)
    for status, text in Pair(hosts, folder, cfg).ended().values():
        assert status == 0, text
    return cfg.out

def goes_on_to_the_end(hosts, folder, cfg, whole):
    for status, text in Pair(hosts, folder, cfg).ended().values():
        assert status == 0, text
    assert losses_of(cfg.out) == losses_of(whole) and len(losses_of(whole)) == 300
    assert state_of(cfg.out) == state_of(whole) and weights_of(cfg.out) == weights_of(whole)

pytestmark = pytest.mark.slow

def test_two_hosts_train_as_two_ranks_of_one(whole, long_run, tmp_path):
    from test_train import on_ranks

    import train
    cfg = long_run(tmp_path)
    assert on_ranks(2, lambda rank: train.main(cfg)) == [0, 0]
    assert losses_of(cfg.out) == losses_of(whole) and weights_of(cfg.out) == weights_of(whole)

def test_a_link_that_is_down_for_seconds_costs_seconds(linked, long_run, whole, tmp_path):
    cfg = long_run(tmp_path)
    pair = Pair(linked, tmp_path, cfg)
    pair.wait_for('step 13/')
    linked.link('down')
    time.sleep(4)
    linked.link('up')
    for status, text in pair.ended().values():
        assert status == 0, text
    assert losses_of(cfg.out) == losses_of(whole) and weights_of(cfg.out) == weights_of(whole)

def test_a_link_that_is_down_for_good_is_named(linked, long_run, whole, tmp_path):
    cfg = long_run(tmp_path)
    pair = Pair(linked, tmp_path, cfg)
    pair.wait_for('step 63/')
    linked.link('down')
    line_a, line_b = pair.refusals()
    last = checkpoint.folders(cfg.out)[0]
    assert line_a.startswith("train.py: rank 0 on host-a lost others; missing: rank 1 on host-b (cannot be reached); "
                             f"the same command goes on from {last} (")
    assert line_b.startswith("train.py: rank 1 on host-b lost others; missing: rank 0 on host-a (cannot be reached); "
                             f"the same command goes on from {last} (")
    linked.link('up')
    goes_on_to_the_end(linked, tmp_path, cfg, whole)

@pytest.mark.parametrize('lost', ['b', 'a'])
def test_a_host_that_is_lost_is_named_by_the_other(linked, long_run, whole, tmp_path, lost):
    cfg = long_run(tmp_path)
    pair = Pair(linked, tmp_path, cfg)
    pair.wait_for('step 63/')
    linked.kill(lost)
    left, rank = ('a', 1) if lost == 'b' else ('b', 0)
    status, text = pair.ended()[left]
    [line] = [line for line in text.splitlines() if line.startswith('train.py: ')]
    assert status == 1
    assert line.startswith(f"train.py: rank {1 - rank} on host-{left} lost others; missing: rank {rank} on host-{lost} "
                           f"(has ended); the same command goes on from {cfg.out}/step-")
    goes_on_to_the_end(linked, tmp_path, cfg, whole)

def test_sigterm_to_one_host_saves_and_ends_both(linked, long_run, whole, tmp_path):
    cfg = long_run(tmp_path)
    pair = Pair(linked, tmp_path, cfg)
    pair.wait_for('step 13/')
    pair.processes['b'].send_signal(signal.SIGTERM)
    texts = [text for _, text in pair.ended().values()]
    assert f"stopped by a signal, saved as {checkpoint.folders(cfg.out)[0]}; the same command goes on" in texts[0]
    assert not any('train.py", line' in text for text in texts) # a traceback of ours; torchrun has one of its own
    goes_on_to_the_end(linked, tmp_path, cfg, whole)

def test_hosts_with_other_settings_or_data_are_refused_on_both(linked, long_run, corpus, tmp_path):
    tail = '; expected the same command, code, data and packages on all hosts'
    cfg = long_run(tmp_path)
    both = Pair(linked, tmp_path, cfg, long_run(tmp_path, lr=5e-3, seed=7)).refusals()
    assert both == ["train.py: rank 1 on host-b differs from rank 0 on host-a: lr is 0.005, not 0.01; "
                    f"seed is 7, not 0{tail}"] * 2
    other = make_corpus(tmp_path / 'other', make_tokenizer(tmp_path / 'tokenizer'), seed=5)
    both = Pair(linked, tmp_path, cfg, mount=f'mount --bind {other} {corpus}').refusals()
    pattern = ("train.py: rank 1 on host-b differs from rank 0 on host-a: "
               + '; '.join(rf"{name} is '\w+', not '\w+'" for name in
                           [*(f'{source} shards' for source in cfg.sources),
                            *(f'{source} plan' for source in cfg.sources),
                            *(f'held-out {corpus.name}/{source}' for source in cfg.sources)]))
    assert both[0] == both[1] and re.fullmatch(pattern + re.escape(tail), both[0]), both
    assert not Path(cfg.out, 'log.jsonl').exists()

def test_what_one_host_lacks_is_refused_on_both(linked, long_run, corpus, tmp_path):
    cfg = long_run(tmp_path)
    both = Pair(linked, tmp_path, cfg, mount=f'mount -t tmpfs none {corpus}').refusals()
    assert both == [f"train.py: rank 1 on host-b: {corpus}/train/text: no such folder; "
                    "expected token shards as interleave.py writes them"] * 2

def test_a_folder_that_is_not_shared_is_refused_on_both(linked, long_run, tmp_path):
    cfg = long_run(tmp_path / 'mine')
    (tmp_path / 'mine').mkdir()
    both = Pair(linked, tmp_path, cfg, mount=f'mount -t tmpfs none {Path(cfg.out).parent}').refusals()
    assert both == [f"train.py: rank 1 on host-b: {cfg.out}: does not hold what rank 0 on host-a writes there; "
                    "expected --out on a disk that all hosts share"] * 2
