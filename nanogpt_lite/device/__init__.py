"""What depends on the machine: devices, number formats, threads, memory, seeds, signals, profiling, several processes.

It decides where and in which number format to compute; what is computed is in `model`, `optim`, `generation` and
`trainer`. Start with `devices.py`; training on several GPUs is in `distributed.py`.
"""
