# torchrun --nproc_per_node=8 train.py config/qwen1.5b.py          2.00e20 FLOPs: 14.0 h on 8 H200 at 50 % MFU
#
# SIMS Table 2 [5]: Qwen2.5-1.5B at 2e20 FLOPs.
# Context, batch, schedule and the rest are train.py's defaults, which are the paper's [A.2].
# Weights and moments are float32 here and bf16 in the papers' code: for that, dtype = 'pure_bfloat16'.
data = ('out/tokens/librilight,out/tokens/librispeech,out/tokens/swc,out/tokens/tedlium,out/tokens/peoples_speech,'
        'out/tokens/voxpopuli,out/tokens/stinystories,out/tokens/redpajama')
init = 'Qwen/Qwen2.5-1.5B'
out = 'out/qwen1.5b'

micro_batch = 3
lr = 3e-4 # 5e-4 below 2e20 FLOPs
max_flops = 2e20 # 146,402 steps, 21.6B tokens
