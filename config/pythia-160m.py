# torchrun --nproc_per_node=8 train.py config/pythia-160m.py          2.89e18 FLOPs: 0.20 h on 8 H200 at 50 % MFU
#
# SIMS Figure 2 [4.2]: an interleaved SLM from Pythia-160M, 20k steps as for all families.
# Context, batch, schedule and the rest are train.py's defaults, which are the paper's [A.2].
# Weights and moments are float32 here and bf16 in the papers' code: for that, dtype = 'pure_bfloat16'.
data = ('out/tokens/librilight,out/tokens/librispeech,out/tokens/swc,out/tokens/tedlium,out/tokens/peoples_speech,'
        'out/tokens/voxpopuli,out/tokens/stinystories,out/tokens/redpajama')
init = 'EleutherAI/pythia-160m'
out = 'out/pythia-160m'

micro_batch = 9
max_steps = 20000 # 2.95B tokens
