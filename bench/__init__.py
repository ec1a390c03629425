"""The judge: what is asked of a kernel and of a trial, how it is measured, and how it is decided. Never edited by the agent."""
