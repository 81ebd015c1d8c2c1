# torchrun --nproc_per_node=8 train.py config/qwen3-1.7b.py          3.05e19 FLOPs: 2.1 h on 8 H200 at 50 % MFU
#
# The recipe of SIMS from a TextLM that is later than the paper, Qwen3-1.7B: an interleaved SLM, 20k steps as for the
# paper's families. Context, batch, schedule and the rest are train.py's defaults, which are the paper's [SIMS A.2].
data = ('out/tokens/librilight,out/tokens/librispeech,out/tokens/swc,out/tokens/tedlium,out/tokens/peoples_speech,'
        'out/tokens/voxpopuli,out/tokens/stinystories,out/tokens/redpajama')
init = 'Qwen/Qwen3-1.7B-Base'
out = 'out/qwen3-1.7b'

micro_batch = 3
max_steps = 20000 # 2.95B tokens
