# torchrun --nproc_per_node=8 train.py config/olmo2-1b.py          2.63e19 FLOPs: 1.8 h on 8 H200 at 50 % MFU
#
# The recipe of SIMS from a TextLM that is later than the paper, OLMo-2-1B: an interleaved SLM, 20k steps as for the
# paper's families. Context, batch, schedule and the rest are train.py's defaults, which are the paper's [SIMS A.2].
data = ('out/tokens/librilight,out/tokens/librispeech,out/tokens/swc,out/tokens/tedlium,out/tokens/peoples_speech,'
        'out/tokens/voxpopuli,out/tokens/stinystories,out/tokens/redpajama')
init = 'allenai/OLMo-2-0425-1B'
out = 'out/olmo2-1b'

micro_batch = 3
max_steps = 20000 # 2.95B tokens
