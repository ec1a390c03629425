"""What an LLM that researches is made of: the conversation, its tools, its memory, and the proposer that puts them together."""
