"""
Our own Triton kernels: attention inside packed documents, the fused linear cross-entropy, and what
lies between a layer's products: norm, rotary positions and SwiGLU (elementwise.py).
attention_torch.py is the attention of the CPU, and of GPUs where the kernels do not run, in plain
torch; decoding.py the cache of keys and values, and a token's step.

May import: configurator and files. model.py uses the kernels.
"""
