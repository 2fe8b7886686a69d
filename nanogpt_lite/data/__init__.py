"""Data: from a text to batches of token ids.

The order of the work: `sources` finds and reads a text, `download` fetches one by URL, `encoding` cuts the train and
val splits and writes their token ids, `dataset` is the prepared folder, `verification` checks it, and `batching`
makes (x, y) of it. Start with `preparation`, whose `prepare` does all but the last two. See `nanogpt_lite.tokenizers`
for the tokens.
"""
