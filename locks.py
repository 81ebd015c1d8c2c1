"""
One process writes in a place at a time, on shared disks too.

    with writing_in('out/x'):        the folder, for a script that fills it
    with Lock('a.json.lock', 'a.json', wait=60):
"""
import errno
import fcntl
import json
import os
import socket
import threading
import time
from pathlib import Path

from configurator import Refused

BEAT = 10.0 # seconds between two signs of life of the process that holds a lock
STALE = 600.0 # a lock without a sign of life for so long is nobody's, even if two clocks differ by minutes
NO_LOCKS = {errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOLCK, errno.EINVAL} # what flock raises where there are none

class Busy(Refused):
    """Another process is writing there."""

class Lock:
    """The right to write something, which one process has at a time. A context manager; close() gives it back.

        with Lock('out/x/.lock', 'out/x'):
            ...

    path: a file that holds {"host", "pid", "since", "kernel"} of its process and is removed at the
    end. what: the name in the message. wait: seconds to wait for the other process before Busy is
    raised. A place that cannot be written raises Refused.

    The lock is the kernel's (flock), so it ends with its process, even one that was killed. It
    holds between machines on NFS 3 and 4 (Linux 2.6.12), SMB (5.5), CephFS, and Lustre mounted with
    `flock`. Lustre with `noflock` has none; with `localflock`, NFS with `local_lock` and BeeGFS by
    default have one for each machine. So the process touches the file every BEAT seconds; and who
    finds the file of another machine on a disk where flock may not reach it (`_reaches_all`), or no
    flock at all, takes it only if nobody touches it for 2.5 beats.
    """
    def __init__(self, path, what, wait=0.0):
        self.path = Path(path)
        self.what = what
        self.has_made_folder = not self.path.parent.exists()
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
        except OSError as e:
            raise self._unwritable(e) from None
        deadline = time.monotonic() + max(wait, 0.2) # the other process may be about to end
        while (holder := self._take()) is not None:
            if time.monotonic() >= deadline:
                raise Busy(f"{what}: another process is writing here ({holder})")
            time.sleep(0.05)
        self._end = threading.Event()
        self._heart = threading.Thread(target=self._beat, daemon=True)
        self._heart.start()

    def _unwritable(self, error):
        return Refused(f"{self.what}: cannot be written ({error.filename}: {error.strerror}); take another place")

    def _open(self):
        """The file's descriptor, and whether this process made the file."""
        try:
            return os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o666), True
        except FileExistsError:
            return os.open(self.path, os.O_RDWR), False

    def _take(self):
        """None once this process has the lock, else who has it."""
        try:
            self.fd, is_new = self._open()
        except FileNotFoundError: # its process has just removed it
            return self._holder()
        except OSError as e:
            raise self._unwritable(e) from None
        has_flock = True
        try:
            fcntl.flock(self.fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as e:
            has_flock = e.errno not in NO_LOCKS
            if has_flock: # another process has it
                os.close(self.fd)
                return self._holder()
        try:
            is_removed = not os.path.samestat(os.fstat(self.fd), os.stat(self.path))
        except FileNotFoundError:
            is_removed = True
        is_certain = is_new or has_flock and (self._record().get('kernel') == _kernel() or _reaches_all(self.path))
        if is_removed or not is_certain and self._beats():
            os.close(self.fd)
            return self._holder()
        text = json.dumps({'host': socket.gethostname(), 'pid': os.getpid(), 'kernel': _kernel(),
                           'since': time.strftime('%Y-%m-%d %H:%M:%S')})
        try:
            os.truncate(self.fd, 0)
            os.pwrite(self.fd, text.encode(), 0)
        except OSError:
            pass # a full disk: the flock stays
        if not is_certain: # two processes may have found the same dead one
            time.sleep(1)
            if self._record() != json.loads(text):
                os.close(self.fd)
                return self._holder()
        return None

    def _record(self):
        """What the file says of its process; {} where it says nothing."""
        try: # opened anew: NFS looks at the server only then
            record = json.loads(self.path.read_text())
            return record if isinstance(record, dict) else {}
        except (OSError, ValueError, RecursionError):
            return {}

    def _holder(self):
        record = self._record()
        return f"pid {record.get('pid', '?')} on {record.get('host', '?')}, since {record.get('since', '?')}"

    def _beats(self):
        """Whether the process of another machine still touches the file."""
        first = None
        end = time.monotonic() + 2.5 * BEAT
        while time.monotonic() < end:
            try:
                with open(self.path) as f:
                    touched = os.fstat(f.fileno()).st_mtime
            except OSError:
                return True # it was removed: try again
            first = first or touched
            if touched != first:
                return True
            if time.time() - touched > STALE:
                return False
            time.sleep(BEAT / 20)
        return False

    def _beat(self):
        while not self._end.wait(BEAT):
            try:
                os.utime(self.fd)
            except OSError:
                pass # the disk is away for a while: the flock stays

    def close(self):
        self._end.set()
        self._heart.join()
        try:
            if os.path.samestat(os.fstat(self.fd), os.stat(self.path)): # not that of a process which took it over
                self.path.unlink()
        except OSError: # it was removed, or the disk is read-only now
            pass
        os.close(self.fd)
        if self.has_made_folder:
            try:
                self.path.parent.rmdir()
            except OSError:
                pass # something was written in it

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()

def _kernel():
    """Tells apart the running kernels, within each of which flock always holds."""
    try:
        return Path('/proc/sys/kernel/random/boot_id').read_text().strip()
    except OSError:
        return socket.gethostname()

def _reaches_all(path):
    """Whether flock on a file holds on all machines that see it, by the entry of its disk in /proc/mounts."""
    path = Path(os.path.realpath(path))
    try:
        lines = Path('/proc/mounts').read_text().splitlines()
    except OSError:
        return False
    folder = kind = options = ''
    for line in lines:
        _, mounted_at, disk_kind, disk_options, *_ = line.split(' ')
        if path.is_relative_to(mounted_at) and len(mounted_at) >= len(folder):
            folder = mounted_at
            kind = disk_kind
            options = disk_options.split(',')
    if kind in ('nfs', 'nfs4', 'lustre'):
        return ('flock' if kind == 'lustre' else 'local_lock=none') in options
    return kind in ('cifs', 'smb3', 'ceph', 'ext4', 'xfs', 'btrfs', 'zfs', 'tmpfs', 'overlay') # or of one machine

def refuse_held(path, what):
    """Raises Busy if another process has the lock of this path."""
    if Path(path).exists():
        Lock(path, what).close()

def writing_in(folder, rank=0):
    """The Lock of a folder that this rank writes in."""
    lock = Lock(Path(folder, f'.{rank}.lock' if rank else '.lock'), folder)
    try:
        refuse_held(f'{Path(folder)}.tmp.lock', folder) # of a stage that makes the folder at once (files.atomically)
    except Refused:
        lock.close()
        raise
    return lock

def remove_left_locks(folder):
    """Removes the lock files that killed ranks have left in a folder."""
    for path in Path(folder).glob('.*.lock'):
        try:
            Lock(path, folder).close()
        except Busy:
            pass # of a rank that is at work
