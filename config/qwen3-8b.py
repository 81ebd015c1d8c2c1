# torchrun --nproc_per_node=8 train.py config/qwen3-8b.py          1.45e20 FLOPs: 10.2 h on 8 H200 at 50 % MFU
#
# The recipe of SIMS from a TextLM that is later than the paper, Qwen3-8B: an interleaved SLM, 20k steps as for the
# paper's families. Context, batch, schedule and the rest are train.py's defaults, which are the paper's [SIMS A.2].
# Sharded by FSDP, a run takes 55 GB on each of 8 GPUs (--memory=8).
data = ('out/tokens/librilight,out/tokens/librispeech,out/tokens/swc,out/tokens/tedlium,out/tokens/peoples_speech,'
        'out/tokens/voxpopuli,out/tokens/stinystories,out/tokens/redpajama')
init = 'Qwen/Qwen3-8B-Base'
out = 'out/qwen3-8b'

micro_batch = 3
parallel = 'fsdp'
max_steps = 20000 # 2.95B tokens
