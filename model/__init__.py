"""The thin GPT whose bits per byte a trial measures: `gpt.py` the architecture, `optim.py` the optimizer, `train.py` the loop."""
