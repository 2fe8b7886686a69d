"""The public functions: prepare, train, sample, evaluate, load; what `import nanogpt_lite` offers comes from here.

Connects the packages below; it holds no mathematics of its own. Start with `pipeline.py` (train, training, run), then
`request.py` and `setup.py` (how a run starts or resumes) and `inference.py` (sample, stream, load, evaluate).
"""
