"""
sTinyStories (https://huggingface.co/datasets/slprl/sTinyStories): TinyStories in the voice of LJ,
30,000 h, with words.

    hf download slprl/sTinyStories --repo-type dataset --include 'data/data-000*' --local-dir data/sts
    python tokenize_speech.py --corpus=stinystories --audio=data/sts/data --out=...

    data/data-00000-of-02191.parquet    columns audio (16 kHz), text, aligned_text, split_sentence (not used);
                                        aligned_text: [{"word", "start_time", "end_time"}, ...] in seconds

--audio is the folder data or one of its files. All 1.9 million rows with their words do not fit in most memories, so
take some files at a time. ids are FILE/ROW.
"""
from configurator import Refused
from corpora.download import script
from corpora.folder import is_word
from corpora.tree import parquet_files, rows, utterance

SUBSET = 'the folder data of slprl/sTinyStories'

def utterances(root):
    for name, path in parquet_files(root, SUBSET).items():
        for number, (audio, row) in enumerate(rows(path, ('text', 'aligned_text'))):
            aligned = row['aligned_text'] or [] # null where there is none
            try:
                words = [[w['word'], w['start_time'], w['end_time']] for w in aligned]
                if not all(map(is_word, words)):
                    raise TypeError
            except (TypeError, KeyError):
                raise Refused(f"{audio}: expected aligned_text with word, start_time and end_time, "
                              f"got {str(aligned)[:60]}") from None
            yield utterance(f'{name}/{number:06d}', audio, text=row['text'], speaker='LJ', words=words or None)

if __name__ == '__main__':
    script(utterances)
