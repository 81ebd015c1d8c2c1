# torchrun --nproc_per_node=8 train.py config/qwen0.5b.py          8.75e18 FLOPs: 0.61 h on 8 H200 at 50 % MFU
#
# SIMS Figures 2, 3 and Table 1, last row [4.1-4.3]: an interleaved SLM from Qwen2.5-0.5B, 20k steps. At
# --max_steps=5000 interleaving begins to help. The paper compares the run with one of speech only (--sources=speech)
# and with one from random weights (--init=scratch --init_config=Qwen/Qwen2.5-0.5B).
# Context, batch, schedule and the rest are train.py's defaults, which are the paper's [A.2].
# Weights and moments are float32 here and bf16 in the papers' code: for that, dtype = 'pure_bfloat16'.
data = ('out/tokens/librilight,out/tokens/librispeech,out/tokens/swc,out/tokens/tedlium,out/tokens/peoples_speech,'
        'out/tokens/voxpopuli,out/tokens/stinystories,out/tokens/redpajama')
init = 'Qwen/Qwen2.5-0.5B'
out = 'out/qwen0.5b'

micro_batch = 9
max_steps = 20000 # 2.95B tokens
