"""What a training reports: the records, and the sinks that show or store them.

It owns the record types, the progress on standard error, `metrics.jsonl`, TensorBoard, Weights & Biases and the loss
plot. It decides nothing about training: see `trainer` for when a record is written, and `runs` for where the files are.
Start reading in `records`.
"""
