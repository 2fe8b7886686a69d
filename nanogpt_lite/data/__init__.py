"""Data: from a text to batches of token ids.

The order of the work: `sources` finds and reads a text, `download` fetches one by URL, `encoding` cuts the train and
val splits and writes their token ids, `dataset` is the prepared folder, `folder_names` says how it is called, and
`manifest` what it was made of, `verification` checks it, `fingerprints` says which files have not changed since they
were read, and `batching` makes (x, y) of the ids. Start with `preparation`, whose `prepare` does all but the last. See
`nanogpt_lite.tokenizers` for the tokens.
"""
