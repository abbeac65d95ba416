"""LoRA adapters: read from the folders that peft writes, fitted to the model they are for, held in memory while used.

Knows nothing of requests, schedules or names that requests use.
"""
