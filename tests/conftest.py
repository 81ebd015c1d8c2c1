"""
tqdm shares a lock between forked processes, and one that a test kills while it holds the lock would stop all later
ones. In the tests each process has a lock of its own.
"""
import threading

from tqdm import tqdm

tqdm.set_lock(threading.RLock())
