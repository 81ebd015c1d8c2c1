"""
The Triton kernels, run by Triton's interpreter on the CPU. The interpreter is chosen where a kernel is defined, so
these tests need a process of their own:

    TRITON_INTERPRET=1 python -m pytest tests/interpreted
"""
import os

import pytest


def pytest_configure():
    if os.environ.get('TRITON_INTERPRET') != '1':
        raise pytest.UsageError("tests/interpreted: run it as TRITON_INTERPRET=1 python -m pytest tests/interpreted")
