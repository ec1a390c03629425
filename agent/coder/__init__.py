"""What a coding agent that runs headless needs around it: a desk with files, a process with limits, and an ear for its last words."""
