# torchrun --nproc_per_node=8 train.py config/llama3.2-1b.py          2.19e19 FLOPs: 1.5 h on 8 H200 at 50 % MFU
#
# SIMS Figure 2 [4.2]: an interleaved SLM from Llama-3.2-1B, 20k steps as for all families.
# Context, batch, schedule and the rest are train.py's defaults, which are the paper's [A.2].
# Weights and moments are float32 here and bf16 in the papers' code: for that, dtype = 'pure_bfloat16'.
data = ('out/tokens/librilight,out/tokens/librispeech,out/tokens/swc,out/tokens/tedlium,out/tokens/peoples_speech,'
        'out/tokens/voxpopuli,out/tokens/stinystories,out/tokens/redpajama')
init = 'meta-llama/Llama-3.2-1B'
out = 'out/llama3.2-1b'

micro_batch = 3
max_steps = 20000 # 2.95B tokens
