"""The loop: who proposes, what gates a proposal passes, what is kept and remembered. It never imports what it judges."""
