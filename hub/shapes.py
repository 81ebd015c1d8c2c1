"""
The shapes of the TextLMs that the papers start from, and of later ones, to plan with before anything is downloaded.

A run reads the config.json of its folder or hub id. `planned_config` takes SHAPES where there is none yet.
"""
from pathlib import Path
from typing import NamedTuple

from hub.families import GPTConfig
from hub.folders import read_config


class Shape(NamedTuple):
    """A published model: its config.json, and its numbers of parameters and of text ids."""
    family: str
    n_layer: int
    n_head: int
    n_kv_head: int
    n_embd: int
    n_ffn: int
    embedding_rows: int # of the published table, which has more rows than the tokenizer has ids
    n_params: int
    n_text_ids: int
    extra: dict = {} # further fields of GPTConfig

    def config(self, vocab_size):
        """The GPTConfig of this shape with a table of vocab_size rows."""
        return GPTConfig(family=self.family, vocab_size=vocab_size, n_layer=self.n_layer, n_head=self.n_head,
                         n_kv_head=self.n_kv_head, n_embd=self.n_embd, n_ffn=self.n_ffn, **self.extra)

OLMO = {'tied': False, 'norm_eps': 1e-6, 'rope_theta': 5e5, 'n_positions': 4096}
SHAPES = {
    'Qwen/Qwen2.5-0.5B': Shape('qwen2', 24, 14, 2, 896, 4864, 151936, 494_032_768, 151665),
    'Qwen/Qwen2.5-1.5B': Shape('qwen2', 28, 12, 2, 1536, 8960, 151936, 1_543_714_304, 151665),
    'Qwen/Qwen2.5-3B': Shape('qwen2', 36, 16, 2, 2048, 11008, 151936, 3_085_938_688, 151665),
    'Qwen/Qwen2.5-7B': Shape('qwen2', 28, 28, 4, 3584, 18944, 152064, 7_615_616_512, 151665, {'tied': False}),
    'meta-llama/Llama-3.2-1B': Shape('llama', 16, 32, 8, 2048, 8192, 128256, 1_235_814_400, 128256),
    'meta-llama/Llama-3.2-3B': Shape('llama', 28, 24, 8, 3072, 8192, 128256, 3_212_749_824, 128256),
    'HuggingFaceTB/SmolLM2-1.7B': Shape('llama', 24, 32, 32, 2048, 8192, 49152, 1_711_376_384, 49152),
    'google/gemma-2-2b': Shape('gemma2', 26, 8, 4, 2304, 9216, 256000, 2_614_341_888, 256000, {'head_dim': 256}),
    'EleutherAI/pythia-160m': Shape('gpt_neox', 12, 12, 12, 768, 3072, 50304, 162_322_944, 50277, {'tied': False}),
    'facebook/opt-125m': Shape('opt', 12, 12, 12, 768, 3072, 50272, 125_239_296, 50265, {'n_positions': 2048}),
    'bigscience/bloom-1b7': Shape('bloom', 24, 16, 16, 2048, 8192, 250880, 1_722_408_960, 250680),
    # Later than the papers. Qwen3 has 4 ids more than Qwen2.5: <think>, <tool_response> and their ends.
    'Qwen/Qwen3-0.6B-Base': Shape('qwen3', 28, 16, 8, 1024, 3072, 151936, 596_049_920, 151669, {'head_dim': 128}),
    'Qwen/Qwen3-1.7B-Base': Shape('qwen3', 28, 16, 8, 2048, 6144, 151936, 1_720_574_976, 151669, {'head_dim': 128}),
    'Qwen/Qwen3-4B-Base': Shape('qwen3', 36, 32, 8, 2560, 9728, 151936, 4_022_468_096, 151669, {'head_dim': 128}),
    'Qwen/Qwen3-8B-Base': Shape('qwen3', 36, 32, 8, 4096, 12288, 151936, 8_190_735_360, 151669,
                                {'head_dim': 128, 'tied': False}),
    'HuggingFaceTB/SmolLM3-3B-Base': Shape('smollm3', 36, 16, 4, 2048, 11008, 128256, 3_075_098_624, 128256,
                                           {'rope_theta': 5e6}),
    'allenai/OLMo-2-0425-1B': Shape('olmo2', 16, 16, 16, 2048, 8192, 100352, 1_484_916_736, 100278, OLMO),
    'allenai/OLMo-2-1124-7B': Shape('olmo2', 32, 32, 32, 4096, 11008, 100352, 7_298_617_344, 100278, OLMO),
    'allenai/Olmo-3-1025-7B': Shape('olmo3', 32, 32, 32, 4096, 11008, 100278, 7_298_011_136, 100278,
                                    OLMO | {'n_positions': 65536, 'yarn': (8.0, 8192, 1.2079441541679836, 32.0, 1.0)}),
}

def planned_config(name):
    """The GPTConfig to plan with: of a folder's config.json or a downloaded one, else of SHAPES, else of the hub.

    Raises Refused, as read_config does, where all of these fail.
    """
    if name in SHAPES and not Path(name).is_dir() and not is_downloaded(name):
        return SHAPES[name].config(SHAPES[name].embedding_rows)
    return read_config(name)

def is_downloaded(hub_id):
    from huggingface_hub import try_to_load_from_cache
    return isinstance(try_to_load_from_cache(hub_id, 'config.json'), str)
