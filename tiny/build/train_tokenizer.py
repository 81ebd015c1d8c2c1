"""
The embedded text tokenizer: byte-level BPE on the stories and the talk of the corpus, about ten seconds.

    python -m tiny.build.train_tokenizer --out=tiny/tokenizer

Laid out exactly as Qwen2.5's tokenizer.json (its splitting pattern, NFC, one added token <|endoftext|> at the end), so
the embedded default takes the path of the papers' models: ids by tiktoken, and transformers' Qwen2 classes read it.
Ids 0..255 are the bytes, then the merges in order. The same settings give the same file.
"""
from dataclasses import dataclass
from pathlib import Path

from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

from configurator import run
from files import atomically, record, write_json
from hub.tokenizer import TextTokenizer

PATTERN = (r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*"
           r"|\s*[\r\n]+|\s+(?!\S)|\s+") # Qwen2.5's
EOT = '<|endoftext|>'

@dataclass(frozen=True)
class Config:
    out: str = 'tiny/tokenizer' # folder that tokenizer.json and tokenizer_config.json go to
    n_ids: int = 2048           # T: 256 bytes, merges, <|endoftext|>
    documents: int = 40000      # of stories and of talk to train on, each
    seed: int = 1               # of the grammars

def corpus(documents, seed):
    """Texts of the training stories, then of the talk."""
    from tiny.stories import stories
    from tiny.talk import utterances
    yield from (story.text for story in stories('train', documents, seed))
    yield from (said.text for said in utterances(documents, seed))

def train(texts, n_ids):
    """tokenizers' Tokenizer of at most n_ids ids; fewer where the text has no more pairs to merge."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.NFC()
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.Split(Regex(PATTERN), 'isolated'), byte_level])
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.train_from_iterator(texts, trainers.BpeTrainer(
        vocab_size=n_ids - 1, min_frequency=2, show_progress=False, initial_alphabet=byte_level.alphabet()))
    tokenizer.add_special_tokens([EOT])
    return tokenizer

def main(cfg):
    texts = list(corpus(cfg.documents, cfg.seed))
    tokenizer = train(texts, cfg.n_ids)
    with atomically(Path(cfg.out) / 'tokenizer.json') as tmp:
        tmp.write_text(tokenizer.to_str() + '\n', encoding='utf-8')
    write_json(Path(cfg.out) / 'tokenizer_config.json', {
        'tokenizer_class': 'PreTrainedTokenizerFast', 'eos_token': EOT, 'pad_token': EOT,
        'clean_up_tokenization_spaces': False})
    write_json(Path(cfg.out) / 'record.json', record(cfg))
    made = TextTokenizer(cfg.out)
    for name, part in (('stories', texts[:cfg.documents]), ('talk', texts[cfg.documents:])):
        words, tokens = sum(len(t.split()) for t in part), sum(map(len, made.encode_batch(part)))
        print(f"{name}: {len(part):,} documents, {words:,} words, {tokens / words:.3f} tokens a word, its marks included")
    print(f"{cfg.out}: {made.size} ids, hash {made.hash}")

if __name__ == '__main__':
    run(main, Config)
