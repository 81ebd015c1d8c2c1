# torchrun --nproc_per_node=8 train.py config/opt-125m.py          2.22e18 FLOPs: 0.16 h on 8 H200 at 50 % MFU
#
# SIMS Figures 2 and 5 [4.2, B]: an interleaved SLM from OPT-125M, 20k steps as for all families.
# Context, batch, schedule and the rest are train.py's defaults, which are the paper's [A.2].
# Weights and moments are float32 here and bf16 in the papers' code: for that, dtype = 'pure_bfloat16'.
data = ('out/tokens/librilight,out/tokens/librispeech,out/tokens/swc,out/tokens/tedlium,out/tokens/peoples_speech,'
        'out/tokens/voxpopuli,out/tokens/stinystories,out/tokens/redpajama')
init = 'facebook/opt-125m'
out = 'out/opt-125m'

micro_batch = 9
max_steps = 20000 # 2.95B tokens
