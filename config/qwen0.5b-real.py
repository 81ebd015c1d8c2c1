# torchrun --nproc_per_node=8 train.py config/qwen0.5b-real.py          8.75e18 FLOPs: 0.61 h on 8 H200 at 50 % MFU
#
# SIMS Table 1, first row [4.1]: config/qwen0.5b.py without synthetic speech.
# Weights and moments are float32 here and bf16 in the papers' code: for that, dtype = 'pure_bfloat16'.
data = ('out/tokens/librilight,out/tokens/librispeech,out/tokens/swc,out/tokens/tedlium,out/tokens/peoples_speech,'
        'out/tokens/voxpopuli,out/tokens/redpajama')
init = 'Qwen/Qwen2.5-0.5B'
out = 'out/qwen0.5b-real'

micro_batch = 9
max_steps = 20000 # 2.95B tokens
