# torchrun --nproc_per_node=8 train.py config/qwen0.5b-synthetic.py          8.75e18 FLOPs: 0.61 h on 8 H200 at 50 % MFU
#
# SIMS Table 1, second row [4.1]: config/qwen0.5b.py with synthetic speech alone.
# Weights and moments are float32 here and bf16 in the papers' code: for that, dtype = 'pure_bfloat16'.
data = 'out/tokens/stinystories,out/tokens/redpajama'
init = 'Qwen/Qwen2.5-0.5B'
out = 'out/qwen0.5b-synthetic'

micro_batch = 9
max_steps = 20000 # 2.95B tokens
