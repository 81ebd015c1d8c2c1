# torchrun --nproc_per_node=8 train.py config/smollm2.py          3.03e19 FLOPs: 2.1 h on 8 H200 at 50 % MFU
#
# SIMS Figure 2 [4.2]: an interleaved SLM from SmolLM2-1.7B, 20k steps as for all families.
# Context, batch, schedule and the rest are train.py's defaults, which are the paper's [A.2].
# Weights and moments are float32 here and bf16 in the papers' code: for that, dtype = 'pure_bfloat16'.
data = ('out/tokens/librilight,out/tokens/librispeech,out/tokens/swc,out/tokens/tedlium,out/tokens/peoples_speech,'
        'out/tokens/voxpopuli,out/tokens/stinystories,out/tokens/redpajama')
init = 'HuggingFaceTB/SmolLM2-1.7B'
out = 'out/smollm2'

micro_batch = 3
max_steps = 20000 # 2.95B tokens
