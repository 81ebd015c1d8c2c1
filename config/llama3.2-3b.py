# torchrun --nproc_per_node=8 train.py config/llama3.2-3b.py          5.90e19 FLOPs: 4.1 h on 8 H200 at 50 % MFU
#
# SIMS Table 2 [4.2, 5]: Llama-3.2-3B at 5.9e19 FLOPs, which is within 4 % of the 20k steps of all families.
# Context, batch, schedule and the rest are train.py's defaults, which are the paper's [A.2].
# Weights and moments are float32 here and bf16 in the papers' code: for that, dtype = 'pure_bfloat16'.
data = ('out/tokens/librilight,out/tokens/librispeech,out/tokens/swc,out/tokens/tedlium,out/tokens/peoples_speech,'
        'out/tokens/voxpopuli,out/tokens/stinystories,out/tokens/redpajama')
init = 'meta-llama/Llama-3.2-3B'
out = 'out/llama3.2-3b'

micro_batch = 3
max_flops = 5.9e19 # 20,746 steps, 3.1B tokens
