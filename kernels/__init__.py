"""
Our own Triton kernels: attention inside packed documents, and the fused linear cross-entropy.

May import: configurator and files. model.py is what uses them.
"""
