"""The process that is judged: `python -m bench.runner`, inside the sandbox. It sees of bench this folder,
protocol.py, device_memory.py, aot.py, and of sandbox/ what confines it."""
