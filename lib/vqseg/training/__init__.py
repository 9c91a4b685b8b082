"""The algorithm (`step.py`), the loop (`trainer.py`) and what they need."""
