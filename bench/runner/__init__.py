"""The process that is judged: `python -m bench.runner`, inside the sandbox. It sees of bench this folder, protocol.py and aot.py alone."""
